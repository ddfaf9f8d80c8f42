"""The classifier runs its top layer, after the attention, for the CLS token alone: where that is the same, and only
there. A full run is one with `output_hidden_states=True`, which asks for all tokens of every layer."""

import copy

import pytest
import torch
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel, BertConfig, BertForSequenceClassification, BertModel
from transformers.models.bert.modeling_bert import BertAttention, BertEncoder, BertLayer, BertOutput

from lstmpool.configuration_lstmpool import Families, LstmPoolConfig
from lstmpool.modeling_lstmpool import LstmPoolForSequenceClassification

from .conftest import FAMILIES, backbone_config, random_inputs, tiny_config, tiny_model
from .families import tiny_backbone_config
from .test_families import batch, pad_id, spread, texts


def layers_of(model):
    return model.lstmpool.backbone.get_submodule(model.lstmpool._stack)


def tokens_out(model, inputs, run=None, **kwargs):
    """How many tokens came out of the top layer in each of its runs."""
    seen = []
    hook = layers_of(model)[-1].register_forward_hook(lambda *call: seen.append(call[-1]))
    (run or model)(**inputs, **kwargs)
    hook.remove()
    return [(hidden[0] if isinstance(hidden, tuple) else hidden).size(1) for hidden in seen]


def assert_same_as_a_full_run(model, inputs):
    """Layer states, logits and every gradient, to 1e-9 in float64."""
    model, kinds = model.double(), ("layer_states", "logits")
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    runs = []
    for whole in (False, True):
        outputs = model(**inputs, output_hidden_states=whole, labels=torch.tensor([0, 1, 2]))
        gradients = torch.autograd.grad(outputs.loss, list(parameters.values()), allow_unused=True)
        runs.append({**{kind: outputs[kind] for kind in kinds}, **dict(zip(parameters, gradients, strict=True))})
    for name, full in runs[1].items():
        assert (runs[0][name] is None) == (full is None), name
        if full is not None:
            torch.testing.assert_close(runs[0][name], full, atol=1e-9, rtol=1e-9, msg=name)


# ------------------------------------------------------------------------------------------------------- where it does
def model_of(family, **fields):
    """With weights of trained size, by which a mistake shows."""
    torch.manual_seed(0)
    fields = {"lstm_hidden_size": 5, "num_labels": 3, "pooler_dropout": 0.0} | fields
    config = LstmPoolConfig(backbone_config=tiny_backbone_config(family), **fields)
    return spread(LstmPoolForSequenceClassification(config)).eval()


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("family", Families.ONE_TOKEN_AFTER)
def test_every_family_of_the_table_gives_the_same(family, left):
    model = model_of(family)
    inputs = batch(texts(family), pad_id(model), left)
    assert tokens_out(model, inputs) == [1]
    assert_same_as_a_full_run(model, inputs)


@pytest.mark.parametrize("layers", [[1, 3], [2], [1]])
def test_below_the_top_of_the_backbone_it_is_the_highest_layer_read(layers):
    model, inputs = model_of("bert", layers=layers), random_inputs(lengths=[7, 3, 5], pad_left=True)
    assert len(layers_of(model)) == layers[-1] and tokens_out(model, inputs) == [1]
    assert_same_as_a_full_run(model, inputs)


def test_in_training_with_dropout_every_parameter_learns():
    model, inputs = tiny_model(), random_inputs(lengths=[7, 3, 5])
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.2
    model.train()(**inputs, labels=torch.tensor([0, 1, 2])).loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert tokens_out(model, inputs) == [1]


def test_one_token_texts_and_rows_of_padding():
    assert_same_as_a_full_run(tiny_model(), random_inputs(3, 1))
    assert_same_as_a_full_run(tiny_model(attn_implementation="eager"), random_inputs(lengths=[7, 0, 3]))


def test_a_compiled_backbone_does_it_too():
    torch._dynamo.reset()
    model, inputs = tiny_model(layers=[1, 2]).double(), random_inputs(lengths=[7, 3, 5], pad_left=True)
    with torch.no_grad():
        wanted = model(**inputs)
        seen, backbone = [], model.lstmpool.backbone
        backbone.compile(backend="aot_eager", fullgraph=True)
        backbone.register_forward_hook(lambda *call: seen.append(call[-1].last_hidden_state.size(1)))
        torch.testing.assert_close(model(**inputs).logits, wanted.logits, atol=1e-12, rtol=0)
        whole = model.lstmpool(**inputs)
        torch.testing.assert_close(whole.layer_states, wanted.layer_states, atol=1e-12, rtol=0)
    assert seen == [1, 7] and whole.last_hidden_state.size(1) == 7


# --------------------------------------------------------------------------------------------------- where it does not
@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in Families.ONE_TOKEN_AFTER])
def test_a_family_that_the_table_does_not_name_runs_in_full(family):
    model, inputs = tiny_model(family), random_inputs()
    if model.lstmpool._stack is None:
        assert not model.lstmpool._top_token_alone
    else:
        assert tokens_out(model, inputs) == [7]


@pytest.mark.parametrize("token_pooling", ["mean", "max", "last"])
def test_it_needs_cls(token_pooling):
    assert tokens_out(tiny_model(token_pooling=token_pooling), random_inputs()) == [7]


def test_whoever_asks_for_more_gets_all_tokens():
    model, inputs = tiny_model(attn_implementation="eager"), random_inputs()
    for asked in ("output_hidden_states", "output_attentions"):
        assert tokens_out(model, inputs, **{asked: True}) == [7]
    assert model(**inputs, output_hidden_states=True).hidden_states[-1].shape == (3, 7, 16)
    assert tokens_out(model, inputs, run=model.lstmpool) == [7]
    assert model.lstmpool(**inputs).last_hidden_state.shape == (3, 7, 16)
    assert model.lstmpool(**inputs, needs_last_hidden_state=False).last_hidden_state is None
    assert tokens_out(model, inputs, run=model.lstmpool.backbone) == [7]


def test_a_layer_that_wants_chunks_of_tokens_gets_them():
    config = tiny_config()
    config.backbone_config.chunk_size_feed_forward = 2
    inputs = random_inputs(tokens=8)
    assert tokens_out(LstmPoolForSequenceClassification(config).eval(), inputs) == [8]


def test_a_layer_of_ones_own_runs_in_full():
    class Layer(BertLayer):
        """Its attention might do anything."""

    backbone = AutoModel.from_config(backbone_config())
    backbone.encoder.layer[-1].__class__ = Layer
    assert tokens_out(LstmPoolForSequenceClassification(tiny_config(), backbone=backbone), random_inputs()) == [7]


def test_code_of_ones_own_around_or_in_the_top_layer_runs_in_full():
    class MixesAfterTheStack(BertModel):
        def forward(self, input_ids=None, attention_mask=None, position_ids=None, **kwargs):
            outputs = super().forward(input_ids, attention_mask, position_ids=position_ids, **kwargs)
            hidden = outputs.last_hidden_state
            outputs.last_hidden_state = hidden + hidden.mean(1, keepdim=True)
            return outputs

    class MixesInTheLayer(BertOutput):
        def forward(self, hidden, inputs):
            return super().forward(hidden, inputs).flip(1)

    torch.manual_seed(0)
    around, within = MixesAfterTheStack(backbone_config()), BertModel(backbone_config())
    within.encoder.layer[-1].output = MixesInTheLayer(backbone_config())
    for backbone in (around, within):
        model = LstmPoolForSequenceClassification(tiny_config(), backbone=backbone).eval()
        assert not model.lstmpool._top_token_alone
        assert tokens_out(model, random_inputs()) == [7]


def test_a_config_that_is_changed_after_the_model_was_made():
    model, inputs = tiny_model(), random_inputs(lengths=[7, 3, 5])
    model.config.token_pooling = "mean"
    assert tokens_out(model, inputs) == [7]
    assert_same_as_a_full_run(model, inputs)


@pytest.mark.parametrize("kind", [BertModel, BertEncoder, BertAttention])
def test_whatever_runs_again_around_the_top_layer_or_in_it_runs_in_full(kind):
    model, inputs = tiny_model().train(), random_inputs()
    apply_activation_checkpointing(model, check_fn=lambda module: isinstance(module, kind))
    assert_same_as_a_full_run(model, inputs)
    with torch.no_grad():  # nothing runs again
        seen = tokens_out(model, inputs)
    assert seen == [1]


def test_a_backbone_that_was_put_into_something_else_runs_in_full():
    class Wrapper(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, *args, **kwargs):
            return self.inner(*args, **kwargs)

    model, inputs = tiny_model(), random_inputs()
    wanted = model(**inputs).logits
    model.lstmpool.backbone = Wrapper(model.lstmpool.backbone)
    torch.testing.assert_close(model(**inputs).logits, wanted, atol=1e-6, rtol=0)


def test_a_layer_that_spreads_the_token_again_is_noticed_at_the_first_run():
    # a convolution over all tokens is added to the lowest layer's output, which has one: that broadcasts
    config = tiny_config("deberta-v2", layers=[1])
    config.backbone_config.conv_kernel_size = 3
    model, inputs = LstmPoolForSequenceClassification(config).eval(), random_inputs(lengths=[7, 3, 5])
    assert tokens_out(model, inputs) == [1, 7]
    assert tokens_out(model, inputs) == [7]
    assert_same_as_a_full_run(copy.deepcopy(model), inputs)


@pytest.mark.parametrize("family", ["bert", "distilbert", "deberta-v2", "electra"])
def test_a_layer_that_runs_again_in_the_backward_pass_runs_in_full(family):
    model, inputs = tiny_model(family).train(), random_inputs(lengths=[7, 3, 5])
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert_same_as_a_full_run(model, inputs)
    assert tokens_out(model, inputs)[0] == 7
    assert tokens_out(model.eval(), inputs) == [1]


def test_so_does_a_layer_in_the_wrapper_that_fsdp_puts_around_it():
    model, inputs = tiny_model().train(), random_inputs(lengths=[7, 3, 5])
    apply_activation_checkpointing(model, check_fn=lambda module: isinstance(module, BertLayer))
    assert_same_as_a_full_run(model, inputs)


# ---------------------------------------------------------------------------------------------------- what it is worth
def flops(model, train, **kwargs):
    """Of one step on one text of 128 tokens."""
    # without oneDNN, and with eager attention: the counter takes what they do in one piece for nothing
    with torch.backends.mkldnn.flags(enabled=False), FlopCounterMode(display=False) as counter:
        with torch.set_grad_enabled(train):
            logits = model(torch.full((1, 128), 7), **kwargs).logits
        if train:
            logits.sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize(
    ("layers", "hidden", "train", "at_most"), [(6, 384, False, 0.92), (6, 384, True, 0.92), (12, 768, False, 0.97)]
)
def test_flops_over_the_librarys_own_classifier(layers, hidden, train, at_most):
    sizes = {"num_hidden_layers": layers, "hidden_size": hidden, "intermediate_size": 4 * hidden, "vocab_size": 10}
    config = BertConfig(**sizes, num_attention_heads=12, attn_implementation="eager")
    stock, model = BertForSequenceClassification(config), LstmPoolForSequenceClassification(LstmPoolConfig(config))
    wanted = flops(stock, train)
    assert flops(model, train) <= at_most * wanted
    assert wanted < flops(model, train, output_hidden_states=True) <= 1.01 * wanted  # all tokens of the top layer
