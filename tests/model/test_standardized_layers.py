"""Each layer's features centred and scaled, against numbers worked out by hand; and in which precision."""

import math

import pytest
import torch

from lstmpool.fields_lstmpool import LAYER_POOLINGS
from lstmpool.modeling_lstmpool import LstmPoolForSequenceClassification, LstmPoolModel

from ..conftest import random_inputs, tiny_config, tiny_model


# (2 rows, 2 layers, 2): the root mean square of the layers is 5 and 50, of which a hundredth is the least scale
TRAINING = torch.tensor([[[1.0, 5.0], [-70.0, 50.1]], [[7.0, 5.0], [10.0, 49.9]]])
MEAN, SCALE = [[4.0, 5.0], [-30.0, 50.0]], [[3.0, 0.05], [40.0, 0.5]]
STANDARDISED = {"lstmpool.pooler.standardization.mean", "lstmpool.pooler.standardization.scale"}


def fitted(name="last", **fields):
    """A pooling of 2 layers of width 2 that is fitted to `TRAINING`."""
    config = tiny_config(layer_pooling=name, layers=[1, 2], standardize_layers=True, **fields)
    config.backbone_config.hidden_size = 2
    config.backbone_config.num_attention_heads = 1
    pooler = LstmPoolModel(config).pooler.eval()
    pooler.standardization.fit(TRAINING)
    return pooler


def test_mean_and_scale_by_hand():
    standardization = fitted().standardization
    torch.testing.assert_close(standardization.mean, torch.tensor(MEAN))
    torch.testing.assert_close(standardization.scale, torch.tensor(SCALE))
    states = torch.tensor([[[10.0, 5.1], [50.0, 49.0]]])
    torch.testing.assert_close(standardization(states), torch.tensor([[[2.0, 2.0], [2.0, -2.0]]]))
    standardization.fit(torch.zeros(3, 2, 2))
    assert standardization.scale.tolist() == [[1.0, 1.0], [1.0, 1.0]]


@pytest.mark.parametrize("name", LAYER_POOLINGS)
def test_every_pooling_reads_standardised_layers(name):
    states = torch.randn(3, 2, 2)
    raw = states * torch.tensor(SCALE) + torch.tensor(MEAN)
    pooler = fitted(name)
    torch.testing.assert_close(pooler(raw), pooler.pool(states), atol=1e-4, rtol=1e-4)


def test_the_norm_reads_standardised_layers():
    states = torch.tensor([[[0.0, 0.0], [50.0, 51.0]]])  # whose top layer is (2, 2) then
    torch.testing.assert_close(fitted(layer_norm=True)(states), torch.zeros(1, 2), atol=0.05, rtol=0)


def test_a_fresh_standardization_changes_nothing_and_its_absence_adds_no_weight():
    plain, fresh = tiny_model(), tiny_model(standardize_layers=True)
    assert fresh.state_dict().keys() - plain.state_dict().keys() == STANDARDISED
    assert all(torch.equal(fresh.state_dict()[name], tensor) for name, tensor in plain.state_dict().items())
    assert {name for name, _ in fresh.named_parameters()} == {name for name, _ in plain.named_parameters()}
    with torch.no_grad():
        assert torch.equal(fresh(**random_inputs()).logits, plain(**random_inputs()).logits)
    assert "standardize_layers" not in plain.config.to_diff_dict()  # as releases that do not know it wrote it
    assert fresh.config.to_diff_dict()["standardize_layers"] is True


@pytest.mark.parametrize(
    ("states", "found"),
    [
        (torch.full((3, 2, 2), math.nan), "found 12 of 12 that are NaN or infinite"),
        (torch.tensor([[[1.0, 2.0], [3.0, math.inf]]]), "found 1 of 4 that are NaN or infinite"),
        (torch.full((3, 2, 2), 1e30), "whose squares are finite, too, found 0 of 12"),
        (torch.zeros(0, 2, 2), r"\(1 or more, 2, 2\), got \(0, 2, 2\)"),
        (torch.zeros(3, 2), r"\(1 or more, 2, 2\), got \(3, 2\)"),
        (torch.zeros(3, 1, 2), r"\(1 or more, 2, 2\), got \(3, 1, 2\)"),
    ],
)
def test_states_that_cannot_be_standardised_are_refused_and_change_nothing(states, found):
    standardization = fitted().standardization
    with pytest.raises(ValueError, match=found):
        standardization.fit(states)
    torch.testing.assert_close(standardization.mean, torch.tensor(MEAN))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_mean_and_scale_stay_in_float32(dtype, tmp_path):
    """Of 100.25, bfloat16 has 100."""
    states = torch.tensor([100.25, 100.75]).view(2, 1, 1).expand(2, 4, 16)
    model = tiny_model(standardize_layers=True)
    model.lstmpool.pooler.standardization.fit(states)
    model.save_pretrained(tmp_path)
    loaded = LstmPoolForSequenceClassification.from_pretrained(tmp_path, dtype=dtype)
    cast = {torch.float16: model.half, torch.bfloat16: model.bfloat16, torch.float64: model.double}[dtype]
    for each in (loaded, cast(), model.to(dtype)):
        standardization = each.lstmpool.pooler.standardization
        assert each.classifier.weight.dtype == dtype
        assert standardization.mean.dtype == standardization.scale.dtype == torch.float32
        assert (standardization.mean == 100.5).all()
        # the least scale, a hundredth of a root mean square of 100.5003
        torch.testing.assert_close(standardization.scale, torch.full((4, 16), 1.005003))
        found = standardization(torch.full((1, 4, 16), 101.0, dtype=dtype))
        assert found.dtype == dtype
        torch.testing.assert_close(found.float(), torch.full((1, 4, 16), 0.5 / 1.005003), atol=2e-3, rtol=0)
        assert each.eval()(**random_inputs()).logits.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_leaves_the_standardised_as_they_are(dtype):
    standardization = fitted().standardization
    states = torch.tensor([[[10.0, 5.125], [50.0, 49.0]]], dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16):
        found = standardization(states)
    assert found.dtype == dtype and torch.equal(found, standardization(states))
    torch.testing.assert_close(found.float()[0, 0, 1], torch.tensor(2.5), atol=1e-4, rtol=0)


def test_a_gradient_reaches_the_states_and_not_the_mean_and_scale():
    standardization = fitted().standardization
    states = torch.zeros(1, 2, 2, requires_grad=True)
    standardization(states).sum().backward()
    torch.testing.assert_close(states.grad[0], 1 / torch.tensor(SCALE))
    assert not standardization.mean.requires_grad and not standardization.scale.requires_grad
    assert not list(standardization.parameters())


def test_the_skip_reads_the_layers_as_they_are():
    model = tiny_model(standardize_layers=True, linear_skip=True)
    states = torch.randn(3, 4, 16)
    model.lstmpool.pooler.standardization.fit(100 * states + 7)
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.zero_()
        model.linear_skip.weight.normal_()
        expected = states.reshape(3, 64) @ model.linear_skip.weight.T
        torch.testing.assert_close(model(layer_states=states).logits, expected)


def test_a_standardization_that_a_folder_lacks_is_loaded_as_none(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    model, report = LstmPoolForSequenceClassification.from_pretrained(
        tmp_path, standardize_layers=True, output_loading_info=True
    )
    assert set(report["missing_keys"]) == STANDARDISED
    standardization = model.lstmpool.pooler.standardization
    assert not standardization.mean.any() and (standardization.scale == 1).all()


@pytest.mark.parametrize("base", [False, True])
def test_the_statistics_are_saved_and_loaded(tmp_path, base):
    model = tiny_model(standardize_layers=True)
    model.lstmpool.pooler.standardization.fit(torch.randn(9, 4, 16) + 3)
    with torch.no_grad():
        expected = model(**random_inputs()).logits
    (model.lstmpool if base else model).save_pretrained(tmp_path)
    loaded = LstmPoolForSequenceClassification.from_pretrained(tmp_path)
    for name in STANDARDISED:
        assert torch.equal(loaded.state_dict()[name], model.state_dict()[name])
    loaded.classifier.load_state_dict(model.classifier.state_dict())  # which the base model lacks
    with torch.no_grad():
        torch.testing.assert_close(loaded(**random_inputs()).logits, expected)
