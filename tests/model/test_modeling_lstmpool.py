"""The architecture: the seed, the order of the layers, padding, the losses."""

import math
from functools import partial

import pytest
import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoModel

from lstmpool.configuration_lstmpool import LstmPoolConfig
from lstmpool.fields_lstmpool import TOKEN_POOLINGS
from lstmpool.modeling_lstmpool import LstmPoolForSequenceClassification

from ..conftest import FAMILIES, SIZES, backbone_config, random_inputs, since, tiny_model


class Seed(nn.Module):
    """The system as its source describes it, written independently of the project."""

    def __init__(self, backbone, indices, units, labels):
        super().__init__()
        self.backbone, self.indices = backbone, indices
        self.lstm = nn.LSTM(backbone.config.hidden_size, units, bidirectional=True, batch_first=True)
        self.head = nn.Linear(2 * units, labels)

    def forward(self, **inputs):
        hidden_states = self.backbone(**inputs, output_hidden_states=True).hidden_states
        cls = [hidden_states[index][:, 0] for index in self.indices]
        out, _ = self.lstm(torch.stack(cls, dim=1))
        return self.head(out[:, -1, :])


@pytest.mark.parametrize("layers", [None, [2, 4], [1, 3]])
@pytest.mark.parametrize("family", ["bert", "roberta", "electra", "deberta-v2"])
def test_it_is_faithful_to_the_seed(family, layers):
    model = tiny_model(family, layers=layers, layer_norm=False)
    seed = Seed(AutoModel.from_config(backbone_config(family)).eval(), layers or [1, 2, 3, 4], units=5, labels=3)
    top = model.config.layers[-1]
    above = {name for name in seed.backbone.state_dict() for i in range(top, 4) if f"layer.{i}." in name}
    missing = seed.backbone.load_state_dict(model.lstmpool.backbone.state_dict(), strict=False)
    assert {name for name in missing.missing_keys if "pooler" not in name} == above
    seed.lstm.load_state_dict(model.lstmpool.pooler.rnn.state_dict())
    seed.head.load_state_dict(model.classifier.state_dict())

    inputs = random_inputs(lengths=[7, 3, 5], pad_id=1)
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, seed(**inputs), atol=1e-6, rtol=0)


# --------------------------------------------------------------------------------------------------- the layers' order
def constant_output(value, layer, args, output):
    """Forward hook: the layer's output with `value` everywhere; older layers return a tuple."""
    return (torch.full_like(output[0], value), *output[1:]) if isinstance(output, tuple) else output.fill_(value)


@pytest.mark.parametrize("batch", [1, 3])
def test_constant_layers_come_out_in_order(batch):
    # the reshape of public code, `stack(dim=-1).view(-1, L, H)`, mixes 0, 1, 2, 3 within a layer
    model = tiny_model()
    for index, layer in enumerate(model.lstmpool.backbone.encoder.layer):
        layer.register_forward_hook(partial(constant_output, index + 1.0))
    with torch.no_grad():
        states = model(**random_inputs(batch)).layer_states
    assert states.shape == (batch, 4, 16)
    for layer in range(4):
        assert (states[:, layer] == layer + 1).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_text_does_not_depend_on_its_batch_mates(family):
    model, inputs = tiny_model(family), random_inputs(lengths=[7, 7, 7])
    with torch.no_grad():
        together = model(**inputs).logits
        for row in range(3):
            alone = model(**{name: value[row : row + 1] for name, value in inputs.items()}).logits
            torch.testing.assert_close(alone[0], together[row], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_reading_some_layers_is_reading_those_of_all(family):
    full, inputs = tiny_model(family), random_inputs(lengths=[7, 3, 5])
    for layers in ([2, 4], [1, 2], [3]):
        part = tiny_model(family, layers=layers)
        part.lstmpool.backbone.load_state_dict(full.lstmpool.backbone.state_dict(), strict=False)
        with torch.no_grad():
            wanted = full.lstmpool(**inputs).layer_states[:, [layer - 1 for layer in layers]]
            assert torch.equal(part.lstmpool(**inputs).layer_states, wanted)


def test_layers_above_the_highest_one_read_are_not_built_and_nor_is_their_norm():
    assert len(tiny_model("bert", layers=[1, 3]).lstmpool.backbone.encoder.layer) == 3
    cut, whole = tiny_model("gpt2", layers=[1, 3]), tiny_model("gpt2", layers=[1, 4])
    assert {name for name in whole.state_dict() if name.endswith(("ln_f.weight", "h.3.ln_1.weight"))} != set()
    assert {name for name in cut.state_dict() if ".ln_f." in name or ".h.3." in name} == set()


# ------------------------------------------------------------------------------------------------------------- padding
@pytest.mark.parametrize("token_pooling", TOKEN_POOLINGS)
@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in ("gpt2", "llama", "t5")])
def test_padding_on_either_side_changes_nothing(family, token_pooling):
    if family == "distilbert" and not since("5.0"):
        pytest.skip("the backbone numbers tokens from the first column, and takes no position_ids")
    model = tiny_model(family, token_pooling=token_pooling)
    pad_id = model.config.backbone_config.pad_token_id or 0
    lengths, kinds = [4, 6], {"input_ids": 0, "attention_mask": 1}
    right = random_inputs(2, 8, lengths=lengths, pad_id=pad_id)
    left = {name: torch.empty_like(value) for name, value in right.items()}
    for row, length in enumerate(lengths):
        for name in kinds:
            left[name][row] = torch.roll(right[name][row], 8 - length)
    with torch.no_grad():
        on_the_right, on_the_left = model(**right).logits, model(**left).logits
        for row, length in enumerate(lengths):
            bare = model(input_ids=right["input_ids"][row : row + 1, :length]).logits[0]
            torch.testing.assert_close(on_the_right[row], bare, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(on_the_left[row], bare, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("token_pooling", TOKEN_POOLINGS)
@pytest.mark.parametrize("family", [*FAMILIES, "bert, eager"])
def test_a_row_without_tokens_has_one_answer_and_leaves_the_others_alone(family, token_pooling):
    """The same one by itself, as a batch of no columns, as a batch of padding alone, and beside other rows."""
    family, _, eager = family.partition(", ")
    if family in ("gpt2", "llama") and token_pooling == "cls":
        pytest.skip("a decoder's first token sees nothing else: it is refused")
    options = {"attn_implementation": "eager"} if eager else {}
    model = tiny_model(family, token_pooling=token_pooling, **options)
    inputs, width = random_inputs(lengths=[7, 0, 7]), model.get_input_embeddings().embedding_dim
    nothing = {"input_ids": torch.tensor([[], []]), "attention_mask": torch.tensor([[], []])}  # what a collator makes
    with torch.no_grad():
        logits = model(**inputs).logits
        alone = model(**{name: values[1:2] for name, values in inputs.items()}).logits
        of_no_columns = model(**nothing).logits
        of_no_vectors = model(inputs_embeds=torch.zeros(2, 0, width)).logits
        others = model(**{name: values[[0, 2]] for name, values in inputs.items()}).logits
    assert alone.isfinite().all()
    for row in (logits[1:2], of_no_columns[:1], of_no_columns[1:], of_no_vectors[:1]):
        torch.testing.assert_close(row, alone)
    torch.testing.assert_close(logits[[0, 2]], others, atol=1e-5, rtol=1e-5)


def test_inputs_of_the_backbones_own_may_be_empty_too():
    config = CONFIG_MAPPING["layoutlm"](**SIZES)
    model = LstmPoolForSequenceClassification(LstmPoolConfig(backbone_config=config, lstm_hidden_size=5)).eval()
    empty = torch.zeros(2, 0, dtype=torch.long)
    logits = model(input_ids=empty, token_type_ids=empty, bbox=torch.zeros(2, 0, 4, dtype=torch.long)).logits
    assert logits.shape == (2, 2) and logits.isfinite().all()


def test_cls_is_where_the_family_puts_it():
    inputs = random_inputs(2, 6, lengths=[6, 4])
    for family, kept in (("bert", [0, 0]), ("xlnet", [5, 3])):
        model = tiny_model(family, layers=[4])
        with torch.no_grad():
            outputs = model.lstmpool(**inputs)
        wanted = torch.stack([outputs.last_hidden_state[row, token] for row, token in enumerate(kept)])
        assert torch.equal(outputs.layer_states[:, 0], wanted)


# -------------------------------------------------------------------------------------------------------------- losses
def test_single_label_loss_by_hand():
    model = tiny_model(num_labels=3)
    outputs = model(**random_inputs(), labels=torch.tensor([2, 0, -100]))
    p = outputs.logits.detach().double().softmax(-1)
    assert outputs.loss.item() == pytest.approx(-(math.log(p[0, 2]) + math.log(p[1, 0])) / 2, abs=1e-6)


def test_multi_label_loss_by_hand():
    model = tiny_model(num_labels=2, problem_type="multi_label_classification")
    outputs = model(**random_inputs(2), labels=torch.tensor([[1, 0], [1, 1]]))
    p = outputs.logits.double().sigmoid()
    expected = -(p[0, 0].log() + (1 - p[0, 1]).log() + p[1, 0].log() + p[1, 1].log()) / 4
    assert outputs.loss.item() == pytest.approx(expected.item(), abs=1e-6)


@pytest.mark.parametrize("labels", [[1.5, -2.0], [[1.5], [-2.0]], [1, -2]])
def test_regression_loss_by_hand(labels):
    model = tiny_model(num_labels=1)
    outputs = model(**random_inputs(2), labels=torch.tensor(labels))
    first, second = outputs.logits[:, 0].tolist()
    target = torch.tensor(labels).flatten().tolist()
    assert outputs.loss.item() == pytest.approx(((first - target[0]) ** 2 + (second - target[1]) ** 2) / 2, abs=1e-5)


def test_regression_on_several_targets_by_hand():
    model = tiny_model(num_labels=6, problem_type="regression")
    targets = torch.arange(12.0).view(2, 6)
    outputs = model(**random_inputs(2), labels=targets)
    assert outputs.loss.item() == pytest.approx(((outputs.logits - targets) ** 2).sum().item() / 12, rel=1e-5)


@pytest.mark.parametrize(
    ("fields", "labels", "message"),
    [
        ({"num_labels": 3}, torch.tensor([0, 1, 3]), r"integers of shape \(3,\) in 0\.\.2"),
        ({"num_labels": 3}, torch.tensor([0, 1, -1]), r"0\.\.2"),
        ({"num_labels": 3}, torch.tensor([0.0, 1.0, 2.0]), "integers"),
        ({"num_labels": 3}, torch.eye(3), r"integers.*got torch.float32 of shape \(3, 3\)"),
        ({"num_labels": 3}, torch.tensor([0, 1]), r"shape \(3,\)"),
        ({"num_labels": 1}, torch.tensor([0.0, 1.0, math.nan]), "numbers"),
        ({"num_labels": 2, "problem_type": "regression"}, torch.zeros(3), r"numbers of shape \(3, 2\)"),
        ({"num_labels": 2, "problem_type": "multi_label_classification"}, torch.tensor([0, 1, 1]), "zeros and ones"),
        ({"num_labels": 2, "problem_type": "multi_label_classification"}, torch.full((3, 2), 2), "zeros and ones"),
    ],
)
def test_wrong_labels_are_refused(fields, labels, message):
    with pytest.raises(ValueError, match=message):
        tiny_model(**fields)(**random_inputs(), labels=labels)


# -------------------------------------------------------------------------------------------------------------- inputs
def test_layer_states_skip_the_backbone():
    model, inputs = tiny_model(), random_inputs()
    first = model(**inputs)
    model.lstmpool.backbone.forward = None  # it would raise if it were called
    again = model(layer_states=first.layer_states, labels=torch.tensor([0, 1, 2]))
    assert torch.equal(again.logits, first.logits)
    assert again.loss is not None
    states = first.layer_states.detach().requires_grad_()
    model(layer_states=states).logits.sum().backward()
    assert states.grad.shape == (3, 4, 16)


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        ({}, ValueError, "Give one of input_ids"),
        ({"layer_states": torch.zeros(2, 3, 16)}, ValueError, r"\(B, 4, 16\), got \(2, 3, 16\)"),
        ({"layer_states": torch.zeros(4, 16)}, ValueError, r"got \(4, 16\)"),
        (random_inputs() | {"attention_mask": torch.ones(3, 6)}, ValueError, r"\(3, 7\) and \(3, 6\)"),
        ({"input_ids": torch.tensor([5, 6])}, ValueError, r"\(B, T\), got \(2,\) and None"),
        (random_inputs() | {"token_typ_ids": torch.ones(3, 7)}, TypeError, "token_typ_ids.*token_type_ids"),
    ],
)
def test_wrong_inputs_are_refused(inputs, error, message):
    with pytest.raises(error, match=message):
        tiny_model()(**inputs)


def test_every_column_reaches_the_backbone():
    model, inputs = tiny_model(), random_inputs()
    with torch.no_grad():
        plain = model(**inputs).logits
        types = torch.cat([torch.zeros(3, 4), torch.ones(3, 3)], 1).long()
        assert not torch.allclose(model(**inputs, token_type_ids=types).logits, plain)
        assert not torch.allclose(model(**inputs, position_ids=torch.arange(7).flip(0)[None]).logits, plain)
        embeds = model.get_input_embeddings()(inputs["input_ids"])
        assert torch.equal(model(inputs_embeds=embeds, attention_mask=inputs["attention_mask"]).logits, plain)
        # a backbone without segments has no use for them, and tokenizers make them all the same
        assert tiny_model("gpt2")(**inputs, token_type_ids=types).logits.isfinite().all()
