"""What of a model is trained, the scale of its targets, and where a new classifier starts, worked out by hand."""

import copy
import math

import numpy as np
import pytest
import torch

from lstmpool.configuration_lstmpool import LstmPoolConfig
from lstmpool.modeling_lstmpool import LstmPoolForSequenceClassification
from lstmpool.training.errors import InputError
from lstmpool.training.flags.arguments import ModelArguments
from lstmpool.training.flags.training_arguments import TrainingArguments
from lstmpool.training.model.starts import loss_of_prior, prior, set_prior
from lstmpool.training.model.target_scale import TargetScale
from lstmpool.training.model.trainable_parts import (
    check_layers,
    learning_rates,
    prepare_layers,
    stack_of,
    switch_off_dropout,
    trained_skip,
)
from lstmpool.training.tasks.multi_label import LabelTable, MultiLabel
from lstmpool.training.tasks.regression import Regression
from lstmpool.training.tasks.single_label import SingleLabel

from ...conftest import FAMILIES, backbone_config, random_inputs, tiny_config, tiny_model


def prepared(model=None, **options):
    model = model or tiny_model()
    prepare_layers(model, ModelArguments(**options))
    return model


def frozen(model):
    return {name.removeprefix("lstmpool.backbone.") for name, p in model.named_parameters() if not p.requires_grad}


def with_dropout(family, probability):
    """A tiny model in training mode, whose backbone drops units with this probability, and its pooler none."""
    config = backbone_config(family)
    for name, value in config.to_dict().items():
        if "drop" in name and isinstance(value, (int, float)) and not isinstance(value, bool) and "layer" not in name:
            setattr(config, name, probability)
    torch.manual_seed(0)
    return LstmPoolForSequenceClassification(LstmPoolConfig(config, pooler_dropout=0.0)).train()


@pytest.mark.parametrize("family", FAMILIES)
def test_dropout_can_be_switched_off_in_every_family(family):
    model = with_dropout(family, 0.5)
    inputs = random_inputs()
    switch_off_dropout(model.lstmpool.backbone)
    assert model.training and model.lstmpool.backbone.training
    with torch.no_grad():
        trained = model(**inputs).logits
        torch.testing.assert_close(trained, model.eval()(**inputs).logits)


def test_a_frozen_backbone_is_whole_and_without_dropout():
    model = tiny_model()
    for module in model.lstmpool.backbone.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    prepared(model, freeze_backbone=True)
    assert frozen(model) == {name for name, _ in model.lstmpool.backbone.named_parameters()}
    inputs = random_inputs()
    states = [model.train()(**inputs).layer_states for _ in range(2)]
    assert torch.equal(*states)
    assert model.lstmpool.pooler.training and model.dropout.training


@pytest.mark.parametrize("family", ["bert", "distilbert", "deberta-v2", "gpt2", "llama", "modernbert"])
def test_frozen_embeddings_and_layers(family):
    model = prepared(tiny_model(family), freeze_embeddings=True)
    embeddings = frozen(model)
    words = model.get_input_embeddings().weight
    assert not words.requires_grad and not any(".layer" in name or "layers." in name for name in embeddings)
    if family in ("bert", "distilbert", "deberta-v2"):
        assert any("position" in name for name in embeddings) or family == "deberta-v2"
        assert any("LayerNorm" in name for name in embeddings)
    prefix, _ = stack_of(model)
    model = prepared(tiny_model(family), freeze_layers=2)
    layers = {name for name in frozen(model) if name.startswith(prefix)}
    assert frozen(model) - layers == embeddings
    assert {name[len(prefix) + 1 :].split(".")[0] for name in layers} == {"0", "1"}
    assert all(p.requires_grad for name, p in model.named_parameters() if f"{prefix}.2." in name)


def test_training_a_partly_frozen_model_leaves_the_frozen_part_alone():
    model = prepared(freeze_layers=3).train()
    model(**random_inputs(), labels=torch.tensor([0, 1, 2])).loss.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == (name.removeprefix("lstmpool.backbone.") in frozen(model)), name


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_reinitialised_layers_are_random_and_the_others_as_they_were(tmp_path, family):
    tiny_model(family).lstmpool.backbone.save_pretrained(tmp_path)
    model = LstmPoolForSequenceClassification.from_backbone(str(tmp_path), num_labels=3)
    prefix, stack = stack_of(model)
    with torch.no_grad():
        for parameter in stack.parameters():
            parameter.add_(7.0)  # so that even a bias or a norm is not what it began with
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    prepare_layers(model, ModelArguments(reinit_layers=2))
    for name, parameter in model.named_parameters():
        fresh = any(f"{prefix}.{layer}." in name for layer in (2, 3))
        assert torch.equal(parameter, before[name]) != fresh, name
        if fresh:
            assert parameter.abs().max() < 2, name  # drawn again, not moved


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"freeze_layers": 5}, "--freeze_layers must lie in 0..4, the layers there are, got 5"),
        ({"reinit_layers": -1}, "--reinit_layers must lie in 0..4"),
        ({"freeze_layers": 3, "reinit_layers": 2}, "Freeze fewer layers"),
        ({"freeze_backbone": True, "reinit_layers": 1}, "Freeze fewer layers"),
    ],
)
def test_layers_that_are_not_there(options, message):
    with pytest.raises(InputError, match=message):
        check_layers(ModelArguments(**options), tiny_config())


def test_all_layers_may_be_frozen_or_fresh():
    for options in ({"freeze_layers": 4}, {"reinit_layers": 4}, {"freeze_layers": 3, "reinit_layers": 1}):
        check_layers(ModelArguments(**options), tiny_config())


def rates(model, tmp_path, **options):
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, learning_rate=1.0, report_to=[], **options)
    return {name.removeprefix("lstmpool."): rate for name, rate in learning_rates(model, args).items()}


def test_rates_fall_layer_by_layer(tmp_path):
    found = rates(tiny_model(), tmp_path, layerwise_lr_decay=0.5, head_learning_rate=3.0)
    for name, rate in found.items():
        if name.startswith("backbone.encoder.layer."):
            assert rate == 0.5 ** (3 - int(name.split(".")[3])), name
        else:
            assert rate == (0.5**4 if name.startswith("backbone.embeddings.") else 3.0), name


def test_the_linear_skip_goes_as_fast_as_the_backbone(tmp_path):
    # it starts at weights that fit, as the backbone does, and not at random ones
    model = tiny_model(linear_skip=True)
    assert trained_skip(model) is model.linear_skip and trained_skip(tiny_model()) is None
    found = rates(model, tmp_path, layerwise_lr_decay=0.5, head_learning_rate=3.0)
    assert found["linear_skip.weight"] == 1.0
    assert found["classifier.weight"] == found["pooler.rnn.weight_hh_l0"] == 3.0
    found = rates(prepared(model, freeze_backbone=True), tmp_path, head_learning_rate=3.0)
    assert found["linear_skip.weight"] == 1.0 and not any("backbone" in name for name in found)


def test_what_lies_above_the_layers_goes_as_fast_as_the_highest(tmp_path):
    found = rates(tiny_model("llama"), tmp_path, layerwise_lr_decay=0.5, head_learning_rate=None)
    assert found["backbone.norm.weight"] == found["backbone.layers.3.mlp.up_proj.weight"] == 1.0
    assert found["backbone.embed_tokens.weight"] == 0.5**4
    assert found["classifier.weight"] == 1.0
    assert rates(tiny_model(), tmp_path, head_learning_rate=0.0)["classifier.weight"] == 0.0


def test_what_is_frozen_has_no_rate_and_layer_10_is_not_layer_1(tmp_path):
    model = LstmPoolForSequenceClassification(
        LstmPoolConfig(backbone_config=backbone_config(num_hidden_layers=11), num_labels=2)
    )
    found = rates(prepared(model, freeze_embeddings=True), tmp_path, layerwise_lr_decay=0.5)
    assert found["backbone.encoder.layer.1.output.dense.weight"] == 0.5**9
    assert found["backbone.encoder.layer.10.output.dense.weight"] == 1.0
    assert not any("embeddings" in name for name in found)


def test_layers_that_cannot_be_told_apart(tmp_path):
    with pytest.raises(InputError, match="whose 4 layers are one list, found 0 in AlbertModel"):
        rates(tiny_model("albert"), tmp_path, layerwise_lr_decay=0.5)
    assert set(rates(tiny_model("albert"), tmp_path, head_learning_rate=None).values()) == {1.0}


def test_a_model_cut_below_its_top(tmp_path):
    model = tiny_model(layers=[1, 3])
    found = rates(model, tmp_path, layerwise_lr_decay=0.5, head_learning_rate=None)
    assert found["backbone.encoder.layer.2.output.dense.weight"] == 1.0
    assert found["backbone.encoder.layer.0.output.dense.weight"] == 0.25


TARGETS = [[1.0, -300.0], [2.0, 900.0], [3.0, 0.0], [4.0, 7000.0]]


@pytest.fixture
def head():
    torch.manual_seed(0)
    return torch.nn.Linear(5, 2)


def test_a_scale_is_a_power_of_two_near_the_spread():
    scale = TargetScale(TARGETS)
    spread = np.array(TARGETS).std(0)
    assert np.log2(scale.scale).tolist() == np.round(np.log2(spread)).tolist()
    assert ((spread / scale.scale > 0.7) & (spread / scale.scale < 1.42)).all()
    assert TargetScale([5.0, 5.0, 5.0]).scale.tolist() == TargetScale([0.1] * 3).scale.tolist() == [1.0]
    assert TargetScale([-1e30, 1e30]).scale.tolist() == [2.0**60]  # within what float32 can divide and multiply


def test_targets_are_divided():
    scale = TargetScale([0.0, 8.0])
    assert scale.scale.tolist() == [4.0]
    assert scale.divide([0.0, 8.0]) == [0.0, 2.0]
    both = TargetScale([[0.0, 0.0], [8.0, 64.0]])
    assert both.divide([[8.0, 64.0]]) == [[2.0, 2.0]]


def test_a_fresh_head_starts_at_the_mean(head):
    scale, weights = TargetScale(TARGETS), head.weight.detach().clone()
    scale.switch_on(head, fresh=True)
    assert torch.equal(head.weight, weights)  # made for targets of unit spread
    assert (head.bias.detach().numpy() * scale.scale).tolist() == pytest.approx([2.5, 1900.0])


def test_the_state_dict_is_in_real_units_all_the_while(head):
    original, scale = copy.deepcopy(head.state_dict()), TargetScale(TARGETS)
    scale.switch_on(head, fresh=False)
    assert not torch.equal(head.weight, original["weight"])
    for name, tensor in head.state_dict().items():
        assert torch.equal(tensor, original[name])  # to the last bit
    states = torch.randn(7, 5)
    real = torch.nn.functional.linear(states, original["weight"], original["bias"])
    torch.testing.assert_close(head(states) * torch.tensor(scale.scale).float(), real)


def test_a_state_in_real_units_is_taken_back_to_the_last_bit(head):
    scale = TargetScale(TARGETS)
    scale.switch_on(head, fresh=False)
    trained = {name: tensor.detach().clone() for name, tensor in head.named_parameters()}
    saved = head.state_dict()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.fill_(99.0)
    head.load_state_dict(saved)
    assert all(torch.equal(p, trained[name]) for name, p in head.named_parameters())
    assert torch.equal(saved["weight"], head.state_dict()["weight"])  # the file's tensors are not written over


def test_switching_off_folds_the_scale_into_the_weights(head):
    original, scale = copy.deepcopy(head.state_dict()), TargetScale(TARGETS)
    scale.switch_on(head, fresh=False)
    scale.switch_off(head)
    assert all(torch.equal(p, original[name]) for name, p in head.named_parameters())
    head.load_state_dict({name: 3 * tensor for name, tensor in original.items()})
    assert all(torch.equal(p, 3 * original[name]) for name, p in head.named_parameters())


@pytest.mark.parametrize("fresh", [False, True])
def test_what_is_added_to_the_head_has_its_scale_too(head, fresh):
    skip, scale = torch.nn.Linear(4, 2, bias=False), TargetScale(TARGETS)
    original = skip.weight.detach().clone()
    scale.switch_on(head, fresh, skip)
    by = torch.tensor(scale.scale).float()[:, None]
    assert (by > 1).any() or (by < 1).any()
    assert torch.equal(skip.weight * by, original)
    assert torch.equal(skip.state_dict()["weight"], original)  # in real units
    skip.load_state_dict({"weight": 3 * original})
    assert torch.equal(skip.weight * by, 3 * original)
    scale.switch_off(head, skip)
    assert torch.equal(skip.weight, 3 * original) and torch.equal(skip.state_dict()["weight"], 3 * original)


# ------------------------------------------------------------------------------------------- where a classifier starts
ONE = SingleLabel(["a", "b", "c"])
SEVERAL = MultiLabel(["a", "b", "c"])


def bias_of(labels, task, **options):
    head = torch.nn.Linear(4, len(task.names))
    weight = head.weight.detach().clone()
    drawn = torch.get_rng_state()
    set_prior(head, labels, task, **options)
    assert torch.equal(head.weight, weight) and torch.equal(torch.get_rng_state(), drawn)
    return head.bias.tolist()


def test_one_label_starts_at_the_logarithms_of_the_shares():
    """Rows 3, 1 and 0, half a row more for each: 3.5, 1.5 and 0.5 of 5.5."""
    expected = [math.log(rows / 5.5) for rows in (3.5, 1.5, 0.5)]
    assert bias_of([0, 0, 1, 0], ONE) == pytest.approx(expected)
    assert torch.softmax(torch.tensor(bias_of([0, 0, 1, 0], ONE)), 0).tolist() == pytest.approx(
        [7 / 11, 3 / 11, 1 / 11]
    )


def test_where_the_loss_lets_classes_count_the_same_no_class_is_ahead():
    assert bias_of([0, 0, 1, 0], ONE, balanced=True) == [0, 0, 0]


@pytest.mark.parametrize("of", [list, lambda rows: LabelTable(np.array(rows, dtype=np.uint8))])
def test_several_labels_start_at_their_log_odds(of):
    """Of 4 rows, 1, all and none: 1/4, then 7/8 and 1/8, half a row away from what would be infinite."""
    rows = of([[1, 1, 0], [0, 1, 0], [0, 1, 0], [0, 1, 0]])
    assert bias_of(rows, SEVERAL) == pytest.approx([math.log(1 / 3), math.log(7), -math.log(7)])


def test_many_rows_of_a_byte_each_are_counted():
    rows = LabelTable(np.ones((600, 1), dtype=np.uint8))
    assert bias_of(rows, MultiLabel(["a"])) == pytest.approx([math.log(599.5 / 0.5)], rel=1e-5)


def test_numbers_start_at_their_means():
    assert bias_of([1.0, 2.0, 6.0], Regression(["x"])) == [3]
    assert bias_of([[1.0, -2.0], [3.0, 0.0]], Regression(["x", "y"])) == [2, -1]


def test_the_loss_of_one_answer_for_all_rows():
    assert loss_of_prior([0, 1], SingleLabel(["a", "b"])) == pytest.approx(math.log(2))
    assert loss_of_prior([[1.0, 0.0], [0.0, 1.0]], MultiLabel(["a", "b"])) == pytest.approx(math.log(2))
    assert loss_of_prior([1.0, 3.0], Regression(["x"])) == 1
    assert loss_of_prior([0, 0, 1, 0], ONE) == pytest.approx(-0.75 * math.log(7 / 11) - 0.25 * math.log(3 / 11))
    assert prior([0, 0, 1, 0], ONE).argmax() == 0
