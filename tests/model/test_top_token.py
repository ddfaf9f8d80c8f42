"""The classifier runs its top layer, after the attention, for the CLS token alone: where that is the same, and only
there. A full run is one with `output_hidden_states=True`, which asks for all tokens of every layer."""

import copy
from functools import partial

import pytest
import torch
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertForSequenceClassification, BertModel
from transformers.models.bert.modeling_bert import BertAttention, BertEncoder, BertLayer, BertOutput

from lstmpool.configuration_lstmpool import Families, LstmPoolConfig
from lstmpool.modeling_lstmpool import LstmPoolForSequenceClassification

from ..conftest import FAMILIES, backbone_config, random_inputs, tiny_config, tiny_model
from .families import tiny_backbone_config
from .test_families import batch, pad_id, spread, texts


def layers_of(model):
    return model.lstmpool.backbone.get_submodule(model.lstmpool._stack)


def tokens_out(model, inputs, run=None, **kwargs):
    """How many tokens came out of the top layer in each run of the backbone."""
    seen, of_class = [], type(model.lstmpool)._run_backbone

    def watched(base, *args):
        outputs, states = of_class(base, *args)
        seen.append(outputs.last_hidden_state.size(1))
        return outputs, states

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(type(model.lstmpool), "_run_backbone", watched)
        (run or model)(**inputs, **kwargs)
    return seen


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
        model.lstmpool.backbone.compile(backend="aot_eager", fullgraph=True)
        assert tokens_out(model, inputs) == [1]
        torch.testing.assert_close(model(**inputs).logits, wanted.logits, atol=1e-12, rtol=0)
        whole = model.lstmpool(**inputs)
        torch.testing.assert_close(whole.layer_states, wanted.layer_states, atol=1e-12, rtol=0)
    assert whole.last_hidden_state.size(1) == 7


@pytest.mark.parametrize("adapted", [["query", "value"], ["query", "dense"]])
def test_with_adapters_in_the_top_layer_it_does_it_too(adapted):
    peft = pytest.importorskip("peft")
    model, inputs = tiny_model(), random_inputs(lengths=[7, 3, 5])
    peft.get_peft_model(model, peft.LoraConfig(target_modules=adapted, init_lora_weights=False))
    assert tokens_out(model, inputs) == [1]
    assert_same_as_a_full_run(model, inputs)


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
    assert model.lstmpool.backbone(**inputs).last_hidden_state.size(1) == 7


def test_a_layer_that_wants_chunks_of_tokens_gets_them():
    model, inputs = tiny_model(), random_inputs(tokens=8)
    layers_of(model)[-1].chunk_size_feed_forward = 2
    assert tokens_out(model, inputs) == [8]


class MixesAfterTheStack(BertModel):
    def forward(self, input_ids=None, attention_mask=None, position_ids=None, **kwargs):
        outputs = super().forward(input_ids, attention_mask, position_ids=position_ids, **kwargs)
        hidden = outputs.last_hidden_state
        outputs.last_hidden_state = hidden + hidden.mean(1, keepdim=True)
        return outputs


class MixesInTheLayer(BertOutput):
    def forward(self, hidden, inputs):
        return super().forward(hidden, inputs).flip(1)


def mix(module, args, output):
    if isinstance(output, tuple):  # as a layer of older versions gives
        return mix(module, args, output[0]), *output[1:]
    return output - output.mean(1, keepdim=True)


def with_own_output(backbone):
    backbone.encoder.layer[-1].output = MixesInTheLayer(backbone.config)


def with_own_class(backbone):
    backbone.__class__ = MixesAfterTheStack


def with_hook(backbone):
    backbone.encoder.layer[-1].register_forward_hook(mix)


def with_hook_inside(backbone):
    backbone.encoder.layer[-1].output.dense.register_forward_hook(mix)


def with_hook_on_the_backbone(backbone):
    backbone.encoder.register_forward_pre_hook(lambda module, args: None)


def with_own_forward(backbone):
    output = backbone.encoder.layer[-1].output
    forward = output.forward
    output.forward = lambda *args: mix(output, args, forward(*args))


def with_backward_hook(backbone):
    backbone.encoder.layer[-1].register_full_backward_hook(lambda module, inputs, outputs: None)


def with_backward_pre_hook(backbone):
    backbone.encoder.layer[-1].output.register_full_backward_pre_hook(lambda module, outputs: None)


CHANGES = [
    *(with_own_output, with_own_class, with_hook, with_hook_inside, with_hook_on_the_backbone),
    *(with_own_forward, with_backward_hook, with_backward_pre_hook),
]


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_code_of_ones_own_in_the_top_layer_or_around_it_runs_in_full(change, later):
    torch.manual_seed(0)
    backbone, inputs = BertModel(backbone_config()), random_inputs(lengths=[7, 3, 5])
    if not later:
        change(backbone)
    model = LstmPoolForSequenceClassification(tiny_config(), backbone=backbone).eval()
    if later:
        assert tokens_out(model, inputs) == [1]
        change(backbone)
    assert tokens_out(model, inputs) == [7]
    assert_same_as_a_full_run(model, inputs)


def test_a_layer_that_is_compiled_by_itself_runs_in_full_and_once():
    torch._dynamo.reset()
    model, inputs = tiny_model(), random_inputs(lengths=[7, 3, 5])
    wanted = model(**inputs).logits
    for layer in layers_of(model):
        layer.compile(backend="eager")
    assert tokens_out(model, inputs) == [7]
    torch.testing.assert_close(model(**inputs).logits, wanted, atol=1e-6, rtol=0)


def test_a_layer_that_stands_twice_in_the_stack_gives_the_states_of_both_places():
    torch.manual_seed(0)
    backbone, inputs = BertModel(backbone_config()), random_inputs(lengths=[7, 3, 5])
    backbone.encoder.layer[2] = backbone.encoder.layer[1]
    model = LstmPoolForSequenceClassification(tiny_config(), backbone=backbone).eval()
    outputs = model(**inputs, output_hidden_states=True)
    wanted = torch.stack([hidden[:, 0] for hidden in outputs.hidden_states[1:]], dim=1)
    assert torch.equal(outputs.layer_states, wanted) and torch.equal(model(**inputs).layer_states, wanted)


def test_a_config_that_is_changed_after_the_model_was_made():
    model, inputs = tiny_model(), random_inputs(lengths=[7, 3, 5])
    model.config.token_pooling = "mean"
    assert tokens_out(model, inputs) == [7]
    assert_same_as_a_full_run(model, inputs)


@pytest.mark.parametrize("kind", [BertModel, BertEncoder, BertLayer, BertAttention])
def test_whatever_runs_again_around_the_top_layer_or_in_it_runs_in_full(kind):
    model, inputs = tiny_model().train(), random_inputs()
    apply_activation_checkpointing(model, check_fn=lambda module: isinstance(module, kind))
    assert tokens_out(model, inputs) == [7]
    assert_same_as_a_full_run(model, inputs)


def test_so_does_a_layer_whose_forward_is_checkpointed():
    model, inputs = tiny_model().train(), random_inputs()
    for layer in layers_of(model):
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    assert_same_as_a_full_run(model, inputs)


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


def test_a_convolution_over_all_tokens_gets_them():
    # it is added to the lowest layer's output: to that of one token, it would broadcast
    config = tiny_config("deberta-v2", layers=[1])
    config.backbone_config.conv_kernel_size = 3
    model, inputs = LstmPoolForSequenceClassification(config).eval(), random_inputs(lengths=[7, 3, 5])
    assert tokens_out(model, inputs) == [7]
    assert_same_as_a_full_run(model, inputs)


def test_what_spreads_the_token_again_is_noticed_at_the_first_run(monkeypatch):
    of_library, runs = BertModel.forward, []

    def forward(self, input_ids, attention_mask, **kwargs):  # as a later version might do
        outputs = of_library(self, input_ids, attention_mask, **kwargs)
        outputs.last_hidden_state = outputs.last_hidden_state + torch.arange(input_ids.size(1))[:, None]
        runs.append(1)
        return outputs

    monkeypatch.setattr(BertModel, "forward", forward)
    model, inputs = tiny_model(), random_inputs(lengths=[7, 3, 5])
    assert tokens_out(model, inputs)[-1] == 7 and len(runs) == 2
    assert tokens_out(model, inputs) == [7] and len(runs) == 3
    assert_same_as_a_full_run(copy.deepcopy(model), inputs)


@pytest.mark.parametrize("family", ["bert", "distilbert", "deberta-v2", "electra"])
def test_a_layer_that_runs_again_in_the_backward_pass_runs_in_full(family):
    model, inputs = tiny_model(family).train(), random_inputs(lengths=[7, 3, 5])
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert_same_as_a_full_run(model, inputs)
    assert tokens_out(model, inputs)[0] == 7
    assert tokens_out(model.eval(), inputs) == [1]


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
