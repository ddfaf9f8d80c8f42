"""What differs from one kind of backbone to another: inputs of its own, the right vector, the scale of its layers."""

import pytest
import torch
from transformers import CONFIG_MAPPING

from lstmpool.configuration_lstmpool import LstmPoolConfig
from lstmpool.modeling_lstmpool import LstmPoolForSequenceClassification

from ..conftest import SIZES, random_inputs, tiny_model
from .families import tiny_backbone_config


def model_of(family, **overrides):
    torch.manual_seed(0)
    config = CONFIG_MAPPING[family](**SIZES, **overrides)
    return LstmPoolForSequenceClassification(LstmPoolConfig(backbone_config=config, lstm_hidden_size=5)).eval()


BOXES = torch.tensor([10, 10, 90, 20]).repeat(3, 7, 1) * torch.arange(1, 8)[None, :, None]
EXTRA = {
    "token_type_ids": (lambda: model_of("bert"), torch.tensor([[0, 0, 0, 1, 1, 1, 1]] * 3)),
    "position_ids": (lambda: model_of("gpt2"), torch.arange(7).flip(0).repeat(3, 1)),
    "bbox": (lambda: model_of("layoutlm", max_2d_position_embeddings=1024), BOXES),
    "langs": (
        lambda: LstmPoolForSequenceClassification(
            LstmPoolConfig(backbone_config=tiny_backbone_config("xlm", n_langs=3, use_lang_emb=True))
        ).eval(),
        torch.full((3, 7), 2),
    ),
    "lang_ids": (
        lambda: model_of("xmod", languages=("en_XX", "de_DE"), default_language="en_XX"),
        torch.tensor([1] * 3),
    ),
    "input_shape_ids": (
        lambda: model_of(
            "roc_bert", shape_vocab_size=20, pronunciation_vocab_size=20, pronunciation_embed_dim=8, shape_embed_dim=8
        ),
        torch.full((3, 7), 4),
    ),
}


@pytest.mark.parametrize("name", EXTRA)
def test_an_input_of_the_backbones_own_reaches_it(name):
    make, value = EXTRA[name]
    model, inputs = make(), random_inputs()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():  # at initialisation some of them would make no difference
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    with torch.no_grad():
        states = [model(**inputs, **extra).layer_states for extra in ({}, {name: value})]
    assert not torch.allclose(*states, atol=1e-3)


@pytest.mark.parametrize("family", ["bert", "gpt2", "t5", "xlnet"])
@pytest.mark.parametrize("name", ["atention_mask", "bbox_", "langz", "layer_state"])
def test_a_typing_mistake_is_an_error(family, name):
    with pytest.raises(TypeError, match=name):
        tiny_model(family)(**random_inputs(), **{name: torch.ones(3, 7)})


@pytest.mark.parametrize(
    ("family", "expected"), [("bert", "cls"), ("gpt2", "last"), ("llama", "last"), ("t5", "mean"), ("xlnet", "cls")]
)
def test_the_vector_of_the_family_may_be_overridden(family, expected):
    model = tiny_model(family)
    assert model.config.token_pooling == expected
    inputs = random_inputs(lengths=[7, 3, 5])
    other = tiny_model(family, token_pooling="max")
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert not torch.allclose(model(**inputs).layer_states, other(**inputs).layer_states)


def test_the_encoder_alone_of_an_encoder_decoder_is_built():
    model = tiny_model("t5")
    assert not any("decoder" in name or "EncDecAttention" in name for name in model.state_dict())


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "t5", "modernbert"])
def test_training_moves_the_loss(family):
    """Texts of low and of high token ids, after 40 steps, with the defaults of the family."""
    torch.manual_seed(0)
    model = tiny_model(family, num_labels=2).train()
    assert model.config.layer_norm is (family != "bert")
    input_ids = torch.cat([torch.randint(5, 25, (8, 7)), torch.randint(27, 50, (8, 7))])
    labels = torch.tensor([0] * 8 + [1] * 8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    losses = []
    for _ in range(40):
        loss = model(input_ids=input_ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 0.6 and losses[-1] < 0.2


def test_layers_of_a_pre_norm_backbone_differ_in_scale_until_they_are_normalised():
    model = tiny_model("llama")
    for layer, module in enumerate(model.lstmpool.backbone.layers):
        module.mlp.down_proj.weight.data *= 40.0 * 10**layer  # as in trained models, where the residual stream grows
    states = model(**random_inputs()).layer_states
    norms = states.norm(dim=-1).mean(0)
    assert norms[2] / norms[0] > 20
    normalised = model.lstmpool.pooler.layer_norm(states).norm(dim=-1).mean(0)
    assert (normalised / normalised[0] - 1).abs().max() < 0.01
