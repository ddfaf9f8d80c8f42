"""What differs from one kind of backbone to another: inputs of its own, the right vector, the scale of its layers."""

import json
import shutil

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModel

from lstmpool.configuration_lstmpool import LstmPoolConfig
from lstmpool.modeling_lstmpool import LstmPoolForSequenceClassification, LstmPoolModel

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


# ---------------------------------------------------------------------------------- the backbone's own token pooling
MODULE = "sentence_transformers.models."
MODULES = [{"path": "", "type": f"{MODULE}Transformer"}, {"path": "1_Pooling", "type": f"{MODULE}Pooling"}]
FLAGS = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")


def chosen(*names):
    """The Pooling module's config as older versions of sentence-transformers saved it."""
    return {"word_embedding_dimension": 16} | {f"pooling_mode_{flag}": flag in names for flag in FLAGS}


def backbone_folder(folder, family="bert"):
    """A saved backbone of 4 layers."""
    AutoModel.from_config(CONFIG_MAPPING[family](**SIZES)).save_pretrained(folder)
    return folder


def state(folder, pooling, modules=MODULES, place="1_Pooling"):
    """Adds sentence-transformers' files to a folder. `pooling` and `modules` are what JSON is made of, or bytes."""
    (folder / place).mkdir(parents=True, exist_ok=True)
    for path, content in ((folder / place / "config.json", pooling), (folder / "modules.json", modules)):
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return folder


def pooling_on(name, cls=LstmPoolModel, **options):
    return cls.from_backbone(str(name), lstm_hidden_size=5, **options).config.token_pooling


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return backbone_folder(tmp_path_factory.mktemp("bert"))


@pytest.fixture
def mine(bert, tmp_path):
    """A BERT, whose family reads the CLS vector, for a test to add to."""
    return shutil.copytree(bert, tmp_path / "up" / "mine")


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        (chosen("cls_token"), "cls"),
        (chosen("mean_tokens"), "mean"),
        (chosen("max_tokens"), "max"),
        (chosen("lasttoken"), "last"),
        ({"pooling_mode": "cls"}, "cls"),
        ({"pooling_mode": "mean", "include_prompt": True}, "mean"),
        ({"pooling_mode": "max"}, "max"),
        ({"pooling_mode": "lasttoken"}, "last"),
        ({"pooling_mode": ["mean"]}, "mean"),
        ({"pooling_mode": "max", "pooling_mode_mean_tokens": True}, "max"),
        # several at once, unknown ones and none
        (chosen("mean_tokens", "max_tokens"), "cls"),
        (chosen("mean_tokens", "weightedmean_tokens"), "cls"),
        (chosen("mean_sqrt_len_tokens"), "cls"),
        (chosen("weightedmean_tokens"), "cls"),
        (chosen(), "cls"),
        ({"pooling_mode": ["mean", "max"]}, "cls"),
        ({"pooling_mode": "mean_sqrt_len_tokens"}, "cls"),
        ({"pooling_mode": "weightedmean"}, "cls"),
        ({"pooling_mode": "of_tomorrow"}, "cls"),
        ({}, "cls"),
    ],
)
def test_a_new_model_reads_the_vector_that_its_backbone_states(mine, stated, expected):
    assert pooling_on(state(mine, stated)) == expected


def test_the_statement_holds_for_both_models_and_less_than_what_is_asked_for(mine, tmp_path):
    state(mine, chosen("mean_tokens"))
    model = LstmPoolForSequenceClassification.from_backbone(str(mine), token_pooling=None)
    assert model.config.token_pooling == "mean"
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["token_pooling"] == "mean"
    assert pooling_on(mine, LstmPoolForSequenceClassification, token_pooling="max") == "max"
    assert LstmPoolConfig(backbone_config=model.config.backbone_config).token_pooling == "cls"


@pytest.mark.parametrize(
    ("family", "stated", "expected"),
    [
        ("gpt2", "cls", "last"),  # whose first token has seen nothing
        ("gpt2", "mean", "mean"),
        ("gpt2", "lasttoken", "last"),
        ("gpt2", "weightedmean", "last"),
        ("t5", "cls", "cls"),
        ("t5", "mean_sqrt_len_tokens", "mean"),
    ],
)
def test_the_family_decides_where_no_statement_can_be_followed(tmp_path, family, stated, expected):
    folder = state(backbone_folder(tmp_path, family), {"pooling_mode": stated})
    assert pooling_on(folder) == expected


DEEP = b"[" * 100_000
POOLING = {"path": "1_Pooling", "type": f"{MODULE}Pooling"}


@pytest.mark.parametrize(
    "modules",
    [
        *(b"", b"{", b"\xff\xfe", b"null", b"[]", b"{}", b"[1]", b"[[]]", b"[null, {}]", DEEP),
        [POOLING],
        [MODULES[0], {"path": "1_Pooling"}],
        [MODULES[0], {"type": f"{MODULE}Pooling"}],
        [MODULES[0], {"path": 1, "type": f"{MODULE}Pooling"}],
        [MODULES[0], {"path": "1_Pooling", "type": None}],
        [MODULES[0], {"path": "1_Pooling", "type": f"{MODULE}SpladePooling"}],
        [MODULES[0], {"path": "\0", "type": f"{MODULE}Pooling"}],
        [MODULES[0], {"path": "a" * 5000, "type": f"{MODULE}Pooling"}],
        [*MODULES, {"path": "2_Pooling", "type": f"{MODULE}Pooling"}],
        [{"path": "0_Other", "type": f"{MODULE}Transformer"}, POOLING],  # of another backbone
    ],
)
def test_a_broken_list_of_modules_states_nothing(mine, modules):
    assert pooling_on(state(mine, chosen("mean_tokens"), modules)) == "cls"


@pytest.mark.parametrize(
    "stated",
    [
        *(b"", b"{", b"\xff", b"null", b"[]", b'"mean"', DEEP),
        *({"pooling_mode": mode} for mode in (None, True, 1, {"mean": True}, [["mean"]], [])),
        {"pooling_mode_mean_tokens": "yes"},
    ],
)
def test_a_broken_pooling_states_nothing(mine, stated):
    assert pooling_on(state(mine, stated)) == "cls"


def test_missing_files_state_nothing(mine):
    state(mine, chosen("mean_tokens"))
    (mine / "1_Pooling" / "config.json").unlink()
    assert pooling_on(mine) == "cls"
    (mine / "modules.json").unlink()
    (mine / "modules.json").mkdir()
    assert pooling_on(mine) == "cls"


@pytest.mark.parametrize("path", ["../other", "1_Pooling/../../other", "{up}/other", "..\\other", "C:x"])
def test_no_path_leads_out_of_the_folder(mine, path):
    named = path.format(up=mine.parent)
    state(mine, chosen("mean_tokens"), [MODULES[0], {"path": named, "type": f"{MODULE}Pooling"}], place=named)
    assert pooling_on(mine) == "cls"
    state(mine, chosen("mean_tokens"), place="1_Pooling")
    assert pooling_on(mine) == "mean"


def test_a_backbone_in_a_folder_of_its_own_is_named_in_the_folder_above(bert, tmp_path, monkeypatch):
    """As sentence-transformers saved until it put the transformer beside modules.json."""
    shutil.copytree(bert, tmp_path / "0_Transformer")
    state(tmp_path, chosen("max_tokens"), [MODULES[0] | {"path": "0_Transformer"}, POOLING])
    assert pooling_on(tmp_path / "0_Transformer") == "max"
    assert pooling_on(tmp_path, subfolder="0_Transformer") == "max"
    monkeypatch.chdir(tmp_path / "0_Transformer")
    assert pooling_on(".") == "max"
    shutil.copytree(bert, tmp_path / "other")
    assert pooling_on(tmp_path / "other") == pooling_on(tmp_path, subfolder="other") == "cls"
    state(tmp_path / "0_Transformer", chosen("mean_tokens"))  # its own word counts more
    assert pooling_on(tmp_path / "0_Transformer") == pooling_on(tmp_path, subfolder="0_Transformer") == "mean"


@pytest.mark.parametrize("saved", ["cls", None])
def test_a_model_that_is_saved_already_asks_nobody(tmp_path, saved):
    """A config.json that lacks the field means what the release did that wrote it."""
    tiny_model("bert", token_pooling="cls").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    if saved is None:
        del config["token_pooling"]
    state(tmp_path, chosen("mean_tokens"))
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert LstmPoolForSequenceClassification.from_pretrained(tmp_path).config.token_pooling == "cls"
