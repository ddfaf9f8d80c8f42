"""A backbone whose code comes with its checkpoint: trusted or refused, trained, and not saved into a folder that
nobody else could load."""

import subprocess
import sys

import pytest
import torch
from transformers import AutoConfig

from lstmpool.configuration_lstmpool import LstmPoolConfig
from lstmpool.modeling_lstmpool import LstmPoolForSequenceClassification

from ..conftest import random_inputs


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
