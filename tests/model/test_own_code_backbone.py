"""Backbones with code of their own. It may come with the checkpoint: trusted or refused, trained, and not saved into a
folder that nobody else could load. Or somebody changes or wraps a backbone of the library."""

import subprocess
import sys
from functools import partial

import pytest
import torch
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing
from torch.utils.checkpoint import checkpoint as run_again
from transformers import AutoConfig, BertModel
from transformers.models.bert.modeling_bert import BertAttention, BertEncoder, BertLayer, BertOutput

from lstmpool.configuration_lstmpool import LstmPoolConfig
from lstmpool.modeling_lstmpool import LstmPoolForSequenceClassification

from ..conftest import backbone_config, random_inputs, tiny_config, tiny_model
from .test_capture import assert_same_by_hidden_states, reset


CONFIGURATION = """
from transformers import PretrainedConfig


class PlainConfig(PretrainedConfig):
    model_type = "plain_test"

    def __init__(self, vocab_size=50, hidden_size=16, num_hidden_layers=3, **kwargs):
        self.vocab_size, self.hidden_size, self.num_hidden_layers = vocab_size, hidden_size, num_hidden_layers
        super().__init__(**kwargs)
"""
MODELING = """
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from .configuration_plain import PlainConfig


class PlainModel(PreTrainedModel):
    config_class = PlainConfig

    def __init__(self, config):
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            nn.Linear(config.hidden_size, config.hidden_size) for _ in range(config.num_hidden_layers)
        )
        self.post_init()

    def get_input_embeddings(self):
        return self.embed

    def forward(self, input_ids=None, attention_mask=None, output_hidden_states=False, return_dict=True):
        hidden = self.embed(input_ids)
        states = [hidden]
        for layer in self.layers:
            hidden = layer(hidden).tanh()
            states.append(hidden)
        return BaseModelOutput(hidden, tuple(states) if output_hidden_states else None)
"""
MAKE = """
import sys
sys.path.insert(0, {folder!r})
import torch
from plain.configuration_plain import PlainConfig
from plain.modeling_plain import PlainModel
PlainConfig.register_for_auto_class()
PlainModel.register_for_auto_class("AutoModel")
torch.manual_seed(3)
PlainModel(PlainConfig()).save_pretrained({checkpoint!r})
"""


@pytest.fixture
def checkpoint(tmp_path):
    package = tmp_path / "source" / "plain"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "configuration_plain.py").write_text(CONFIGURATION)
    (package / "modeling_plain.py").write_text(MODELING)
    checkpoint = tmp_path / "checkpoint"
    run(MAKE.format(folder=str(package.parent), checkpoint=str(checkpoint)))
    return checkpoint


def run(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_trusted_it_is_read_and_trained(checkpoint):
    model = LstmPoolForSequenceClassification.from_backbone(str(checkpoint), trust_remote_code=True, num_labels=2)
    assert type(model.lstmpool.backbone).__module__.startswith("transformers_modules.")
    assert model.config.layers == [1, 2, 3] and model.config.token_pooling == "cls" and model.lstmpool.capture.streams
    inputs = random_inputs(lengths=[7, 3, 5])
    hidden_states = model(**inputs, output_hidden_states=True).hidden_states
    states = torch.stack([hidden_states[layer][:, 0] for layer in (1, 2, 3)], dim=1)
    assert torch.equal(model(**inputs).layer_states, states)
    model(**inputs, labels=torch.tensor([0, 1, 1])).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("given", [{}, {"trust_remote_code": False}])
def test_without_trust_it_is_refused(checkpoint, given, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *args: "n")  # what the library asks on a terminal
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        LstmPoolForSequenceClassification.from_backbone(str(checkpoint), **given)


def test_saving_says_what_to_do(checkpoint, tmp_path):
    model = LstmPoolForSequenceClassification.from_backbone(str(checkpoint), trust_remote_code=True)
    with pytest.raises(ValueError, match="comes from its own repository.*AutoConfig.register and AutoModel.register"):
        model.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved" / "config.json").exists()


def test_what_it_says_works(checkpoint, tmp_path):
    """The backbone's code in a module of one's own that registers it: saved here, loaded in another process."""
    registered = f"""
import sys
sys.path.insert(0, {str(tmp_path / "source")!r})
import torch
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification
from plain.configuration_plain import PlainConfig
from plain.modeling_plain import PlainModel
AutoConfig.register("plain_test", PlainConfig)
AutoModel.register(PlainConfig, PlainModel)
from lstmpool.modeling_lstmpool import LstmPoolForSequenceClassification
inputs = torch.arange(6, 18).view(2, 6)
"""
    saved, logits = str(tmp_path / "saved"), str(tmp_path / "logits.pt")
    run(f"""{registered}
model = LstmPoolForSequenceClassification.from_backbone({str(checkpoint)!r})
model.save_pretrained({saved!r})
torch.save(model(inputs).logits.detach(), {logits!r})
""")
    run(f"""{registered}
model = AutoModelForSequenceClassification.from_pretrained({saved!r})
assert torch.equal(model(inputs).logits, torch.load({logits!r}))
""")


def test_a_folder_of_an_unknown_family_says_what_to_do(tmp_path):
    with pytest.raises(ValueError, match="'plain_test', which this version.*AutoConfig.register"):
        LstmPoolConfig(backbone_config={"model_type": "plain_test", "num_hidden_layers": 3})
    with pytest.raises(ValueError, match="plain_test"):
        AutoConfig.for_model("plain_test")


# -------------------------------------------------------------------------- backbones that somebody changed or wrapped
class MixesAfterTheStack(BertModel):
    def forward(self, input_ids=None, attention_mask=None, position_ids=None, **kwargs):
        outputs = super().forward(input_ids, attention_mask, position_ids=position_ids, **kwargs)
        outputs.last_hidden_state = outputs.last_hidden_state + outputs.last_hidden_state.mean(1, keepdim=True)
        return outputs


class MixesInTheLayer(BertOutput):
    def forward(self, hidden, inputs):
        return super().forward(hidden, inputs).flip(1)


def mix(module, args, output):
    return output - output.mean(1, keepdim=True)


def with_own_output(backbone):
    backbone.encoder.layer[-1].output = MixesInTheLayer(backbone.config)


def with_hook_inside(backbone):
    backbone.encoder.layer[-1].output.dense.register_forward_hook(mix)


def with_hook_on_the_encoder(backbone):
    backbone.encoder.register_forward_pre_hook(lambda module, args: None)


def with_own_forward(backbone):
    output = backbone.encoder.layer[-1].output
    forward = output.forward
    output.forward = lambda *args: mix(output, args, forward(*args))


def with_backward_hook(backbone):
    backbone.encoder.layer[-1].register_full_backward_hook(lambda module, inputs, outputs: None)


def with_backward_pre_hook(backbone):
    backbone.encoder.layer[-1].output.register_full_backward_pre_hook(lambda module, outputs: None)


def with_chunks(backbone):
    for layer in backbone.encoder.layer:
        layer.chunk_size_feed_forward = 4


CHANGES = [
    with_own_output,
    with_hook_inside,
    with_hook_on_the_encoder,
    with_own_forward,
    with_backward_hook,
    with_backward_pre_hook,
    with_chunks,
]


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_a_backbone_with_code_of_ones_own(change, later):
    torch.manual_seed(0)
    backbone = BertModel(backbone_config())
    if not later:
        change(backbone)
    model = LstmPoolForSequenceClassification(tiny_config(), backbone=backbone).eval()
    inputs = random_inputs(tokens=8, lengths=[8, 3, 5])
    before = model(**inputs).logits
    if later:
        change(backbone)
        silent = (with_hook_on_the_encoder, with_backward_hook, with_backward_pre_hook, with_chunks)
        assert torch.allclose(model(**inputs).logits, before, atol=1e-6) == (change in silent)
    assert_same_by_hidden_states(model, inputs)


def test_the_highest_state_is_what_the_backbone_returns_in_the_end():
    model, inputs = tiny_model(), random_inputs()
    plain = model.lstmpool(**inputs)
    model.lstmpool.backbone.__class__ = MixesAfterTheStack
    mixed = model.lstmpool(**inputs)
    assert torch.equal(mixed.layer_states[:, -1], mixed.last_hidden_state[:, 0])
    assert torch.equal(mixed.layer_states[:, :-1], plain.layer_states[:, :-1])
    assert not torch.allclose(mixed.layer_states[:, -1], plain.layer_states[:, -1], atol=1e-3)


@pytest.mark.parametrize("kind", [BertModel, BertEncoder, BertLayer, BertAttention])
def test_what_runs_again_in_the_backward_pass(kind):
    model = tiny_model().train()
    apply_activation_checkpointing(model, check_fn=lambda module: isinstance(module, kind))
    assert_same_by_hidden_states(model, random_inputs(lengths=[7, 3, 5]))


def test_layers_whose_forward_is_checkpointed():
    model = tiny_model().train()
    for layer in model.lstmpool.backbone.encoder.layer:
        layer.forward = partial(run_again, layer.forward, use_reentrant=False)
    assert_same_by_hidden_states(model, random_inputs(lengths=[7, 3, 5]))


def test_layers_that_are_compiled_by_themselves():
    reset()
    model, inputs = tiny_model(), random_inputs(lengths=[7, 3, 5])
    wanted = model(**inputs)
    for layer in model.lstmpool.backbone.encoder.layer:
        layer.compile(backend="eager")
    found = model(**inputs)
    torch.testing.assert_close(found.layer_states, wanted.layer_states, atol=1e-6, rtol=0)
    torch.testing.assert_close(found.logits, wanted.logits, atol=1e-6, rtol=0)


@pytest.mark.parametrize("adapted", [["query", "value"], ["query", "dense"]])
def test_adapters(adapted):
    peft = pytest.importorskip("peft")
    model = tiny_model()
    peft.get_peft_model(model, peft.LoraConfig(target_modules=adapted, init_lora_weights=False))
    assert_same_by_hidden_states(model, random_inputs(lengths=[7, 3, 5]))


def test_a_backbone_that_was_put_into_something_else():
    class Wrapper(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, *args, **kwargs):
            return self.inner(*args, **kwargs)

    model, inputs = tiny_model(), random_inputs()
    wanted = model(**inputs).logits
    model.lstmpool.backbone = Wrapper(model.lstmpool.backbone)
    assert torch.equal(model(**inputs).logits, wanted)
