import copy
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    T5Config,
    XLNetConfig,
)

from lstmpool.configuration_lstmpool import LstmPoolConfig, logger
from lstmpool.fields_lstmpool import DEFAULTS as FIELD_DEFAULTS
from lstmpool.fields_lstmpool import LAYER_POOLINGS, LSTM_READOUTS, TOKEN_POOLINGS
from lstmpool.modeling_lstmpool import LstmPoolForSequenceClassification

from ..conftest import FAMILIES, backbone_config, random_inputs, tiny_config, tiny_model


def test_alone_it_is_the_seed_on_bert():
    config = LstmPoolConfig()
    assert isinstance(config.backbone_config, BertConfig)
    assert config.layers == list(range(1, 13))
    assert (config.token_pooling, config.layer_pooling, config.lstm_readout) == ("cls", "lstm", "last")
    assert (config.lstm_hidden_size, config.lstm_bidirectional, config.pooler_dropout) == (256, True, 0.1)
    assert config.layer_norm is False


@pytest.mark.parametrize(
    ("given", "resolved"),
    [
        (None, [1, 2, 3, 4]),
        ([2, 4], [2, 4]),
        ([-2, -1], [3, 4]),
        ([1, -1], [1, 4]),
        (range(2, 5, 2), [2, 4]),
        (list(range(1, 5))[::2], [1, 3]),
        ((3,), [3]),
    ],
)
def test_layers_are_resolved(given, resolved):
    assert tiny_config(layers=given).layers == resolved


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([0, 1], r"1\.\.4 .*got \[0\].*4 layers"),
        ([1, 5], r"1\.\.4 .*got \[5\]"),
        ([-5], r"-4\.\.-1.*got \[-5\]"),
        ([], "got none"),
        ([2, 1], r"ascending.*Use \[1, 2\]"),
        ([4, -1], r"without repeats.*Use \[4\]"),
        ([True, 2], "list of integers"),
        ([1.0], "list of integers"),
        ("12", "list of integers"),
        (3, "list of integers"),
    ],
)
def test_wrong_layers_are_refused_with_the_remedy(given, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(layers=given)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"token_pooling": "avg"}, "token_pooling must be one of 'cls'"),
        ({"layer_pooling": "lsmt"}, "Did you mean 'lstm'"),
        ({"lstm_readout": "first"}, "lstm_readout must be one of"),
        ({"layer_norm": "yes"}, "layer_norm must be True or False, got 'yes'"),
        ({"lstm_bidirectional": 1}, "lstm_bidirectional must be True or False"),
        ({"standardize_layers": "yes"}, "standardize_layers must be True or False, got 'yes'"),
        ({"lstm_hidden_size": 0}, "positive integer"),
        ({"lstm_hidden_size": 2.5}, "positive integer"),
        ({"pooler_dropout": 1.0}, r"\[0, 1\)"),
        ({"pooler_dropout": "0.1"}, r"\[0, 1\)"),
        ({"problem_type": "regresion"}, "problem_type"),
        ({"layer_poolng": "gru"}, "Did you mean layer_pooling"),
        ({"hidden_size": 32}, "hidden_size is not a field.*backbone_config"),
        ({"backbone": "bert-base-uncased"}, "from_backbone"),
    ],
)
def test_wrong_fields_are_refused_with_the_remedy(fields, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**fields)


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        ({"hidden_size": 16}, "must name the backbone's family under 'model_type'"),
        ({"model_type": "brt"}, "model_type='brt', which this version of transformers does not know"),
        ("bert-base-uncased", "must be a config or a dict"),
        (LstmPoolConfig(), "itself an LstmPoolConfig"),
        ({"model_type": "vgg"}, "vgg"),
    ],
)
def test_wrong_backbones_are_refused(backbone, message):
    with pytest.raises(ValueError, match=message):
        LstmPoolConfig(backbone_config=backbone)


def test_the_backbone_may_be_a_dict():
    config = LstmPoolConfig(backbone_config={"model_type": "gpt2", "n_layer": 3})
    assert isinstance(config.backbone_config, GPT2Config)
    assert config.layers == [1, 2, 3]


@pytest.mark.parametrize(
    ("backbone", "token_pooling", "layer_norm"),
    [
        (BertConfig(), "cls", False),
        (BertConfig(is_decoder=True), "last", False),
        (GPT2Config(), "last", True),
        (LlamaConfig(), "last", True),
        (T5Config(), "mean", True),
        (XLNetConfig(), "cls", False),
    ],
)
def test_unset_fields_are_resolved_from_the_family_and_saved(tmp_path, backbone, token_pooling, layer_norm):
    config = LstmPoolConfig(backbone_config=backbone)
    assert (config.token_pooling, config.layer_norm) == (token_pooling, layer_norm)
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert (saved["token_pooling"], saved["layer_norm"]) == (token_pooling, layer_norm)


def test_set_fields_stay():
    config = LstmPoolConfig(backbone_config=GPT2Config(), token_pooling="mean", layer_norm=False)
    assert (config.token_pooling, config.layer_norm) == ("mean", False)


def test_a_causal_backbone_refuses_cls():
    with pytest.raises(ValueError, match="first token has seen nothing.*'last'"):
        LstmPoolConfig(backbone_config=GPT2Config(), token_pooling="cls")


def test_overrides_are_judged_together(tmp_path):
    tiny_model(num_labels=3).save_pretrained(tmp_path)
    ours = {"num_labels": 1, "problem_type": "regression", "ignore_mismatched_sizes": True}
    for auto in (LstmPoolForSequenceClassification, AutoModelForSequenceClassification):
        model = auto.from_pretrained(tmp_path, **ours)
        assert (model.config.num_labels, model.config.problem_type) == (1, "regression")
        assert model(**random_inputs()).logits.shape == (3, 1)
    config, unused = AutoConfig.from_pretrained(
        tmp_path, problem_type="multi_label_classification", num_labels=2, foo=1, return_unused_kwargs=True
    )
    assert (config.num_labels, config.problem_type, unused) == (2, "multi_label_classification", {"foo": 1})
    with pytest.raises(ValueError, match="problem_type must be one of"):
        AutoConfig.from_pretrained(tmp_path, num_labels=1, problem_type="x")


def test_one_class_loads_with_a_warning(tmp_path, caplog):
    logger.warning_once.cache_clear()
    model = tiny_model(num_labels=1, problem_type="single_label_classification")
    assert caplog.messages == [
        "problem_type='single_label_classification' with num_labels=1 always gives that one class. Set "
        "problem_type='regression' for a single number."
    ]
    model.save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert (again.config.num_labels, again.config.problem_type) == (1, "single_label_classification")
    assert torch.equal(again(**random_inputs()).logits, model(**random_inputs()).logits)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"id2label": {0: "a", 2: "b"}}, r"id2label must name the labels 0, 1, 2 ..., got \{0: 'a', 2: 'b'\}"),
        ({"id2label": {-1: "a", 0: "b"}}, "must name the labels 0, 1, 2"),
        ({"id2label": {}}, r"got \{\}"),
        ({"id2label": {0: "a", 1: None}}, "must hold the labels' names"),
        (
            {"id2label": {0: "a", 1: "b"}, "label2id": ["a", "b"]},
            "must hold the labels' names|label2id should be a dict",
        ),
    ],
)
def test_labels_without_a_name_each_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        LstmPoolConfig(backbone_config=backbone_config(), **labels)


def test_problem_type_is_always_chosen_and_saved(tmp_path):
    assert tiny_config(num_labels=3).problem_type == "single_label_classification"
    assert tiny_config(num_labels=1).problem_type == "regression"
    assert tiny_config(num_labels=1, problem_type="multi_label_classification").problem_type == (
        "multi_label_classification"
    )
    tiny_config(num_labels=1).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["problem_type"] == "regression"


@pytest.mark.parametrize("family", FAMILIES)
def test_round_trips(tmp_path, family):
    config = LstmPoolConfig(
        backbone_config=backbone_config(family),
        layers=[2, 4],
        token_pooling="mean",
        layer_pooling="gru",
        layer_norm=True,
        lstm_hidden_size=7,
        lstm_bidirectional=False,
        lstm_readout="final",
        pooler_dropout=0.3,
        id2label={0: "no", 1: "yes"},
    )
    config.save_pretrained(tmp_path)
    for other in (
        LstmPoolConfig.from_dict(config.to_dict()),
        LstmPoolConfig.from_pretrained(tmp_path),
        AutoConfig.from_pretrained(tmp_path),
        copy.deepcopy(config),
        LstmPoolConfig.from_json_file(tmp_path / "config.json"),
    ):
        assert type(other) is LstmPoolConfig
        assert type(other.backbone_config) is type(config.backbone_config)
        assert other == config
        assert other.id2label == {0: "no", 1: "yes"}
    assert config != tiny_config(family)


def test_a_value_that_is_nobodys_default_but_the_librarys_survives(tmp_path):
    # False is what any config has, but not T5's: a file that holds differences alone would lose it
    backbone = T5Config(num_layers=2, is_encoder_decoder=False, use_cache=False)
    LstmPoolConfig(backbone_config=backbone).save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path).backbone_config
    assert (loaded.is_encoder_decoder, loaded.use_cache) == (False, False)


def test_keyword_overrides_are_checked_when_loading(tmp_path):
    tiny_config().save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path, layers=[-1], layer_pooling="max").layers == [4]
    with pytest.raises(ValueError, match="got 'lsmt'"):
        AutoConfig.from_pretrained(tmp_path, layer_pooling="lsmt")


def test_assigned_values_are_checked_by_the_model():
    config = tiny_config()
    config.layers = [9]
    with pytest.raises(ValueError, match=r"1\.\.4"):
        LstmPoolForSequenceClassification(config)


def test_it_answers_for_the_backbone():
    config = tiny_config()
    assert (config.hidden_size, config.vocab_size, config.num_hidden_layers, config.num_attention_heads) == (
        16,
        50,
        4,
        2,
    )
    assert config.get_text_config() is config.backbone_config
    config.vocab_size = 60
    assert config.backbone_config.vocab_size == 60
    assert LstmPoolConfig(backbone_config=T5Config(num_layers=3, num_decoder_layers=5)).num_hidden_layers == 3


def test_no_path_of_the_machine_is_saved(tmp_path):
    backbone_config().save_pretrained(tmp_path / "backbone")
    config = LstmPoolConfig(backbone_config=AutoConfig.from_pretrained(tmp_path / "backbone"))
    config.save_pretrained(tmp_path / "model")
    assert str(tmp_path) not in (tmp_path / "model" / "config.json").read_text()


def test_the_backbone_keeps_its_attention():
    backbone = backbone_config()
    backbone._attn_implementation = "eager"
    assert LstmPoolConfig(backbone_config=backbone).backbone_config._attn_implementation == "eager"
    assert tiny_config(attn_implementation="eager").backbone_config._attn_implementation == "eager"


def test_a_config_is_saved_with_the_keys_and_values_of_the_release_before(tmp_path):
    before = tmp_path / "before"
    shutil.unpack_archive(Path(__file__).parents[1] / "data" / "saved_by_0_1_0.zip", before)
    LstmPoolConfig.from_pretrained(before).save_pretrained(tmp_path)
    old, new = (json.loads((folder / "config.json").read_text()) for folder in (before, tmp_path))
    # What the library writes of its own differs from version to version; use_cache was Trainer's.
    for name in ("transformers_version", "backbone_config", "use_cache"):
        old.pop(name)
        new.pop(name, None)
    # So that each folder runs its own code, and a CrossEncoder gives the table's numbers.
    old["auto_map"]["AutoConfig"] = "modeling_lstmpool.LstmPoolConfig"
    assert new.pop("sentence_transformers") == {"activation_fn": "torch.nn.modules.linear.Identity"}
    assert new == old


def test_each_field_is_explained_with_its_default():
    for name, default in FIELD_DEFAULTS.items():
        ends = "" if default is None else f", defaults to `{default}`"
        assert re.search(rf"{name} \(`[a-z\[\]]+`, \*optional\*{ends}\):", LstmPoolConfig.__doc__), name
    assert "Unset: by family, last for causal" in " ".join(LstmPoolConfig.__doc__.split())
    assert all(len(line) <= 119 for line in LstmPoolConfig.__doc__.splitlines())


MAYBE = st.one_of(st.none(), st.booleans(), st.integers(-3, 9), st.floats(-1, 2), st.text(max_size=4))


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    family=st.sampled_from(FAMILIES),
    layers=st.one_of(st.none(), MAYBE, st.lists(st.integers(-6, 6), max_size=4)),
    token_pooling=st.one_of(st.sampled_from((None, *TOKEN_POOLINGS)), MAYBE),
    layer_pooling=st.one_of(st.sampled_from(LAYER_POOLINGS), MAYBE),
    layer_norm=st.one_of(st.sampled_from((None, True, False)), MAYBE),
    lstm_hidden_size=st.one_of(st.integers(1, 9), MAYBE),
    lstm_bidirectional=st.one_of(st.booleans(), MAYBE),
    lstm_readout=st.one_of(st.sampled_from(LSTM_READOUTS), MAYBE),
    pooler_dropout=st.one_of(st.floats(0, 0.9), MAYBE),
    num_labels=st.integers(1, 4),
    problem_type=st.sampled_from(
        (None, "regression", "single_label_classification", "multi_label_classification", "other")
    ),
)
def test_any_mixture_gives_a_model_that_runs_or_an_error_that_helps(family, **fields):
    try:
        config = LstmPoolConfig(backbone_config=backbone_config(family), **fields)
    except ValueError as error:
        assert any(name in str(error) for name in fields), error
        return
    with_pad = random_inputs(lengths=[7, 2, 4])
    logits = LstmPoolForSequenceClassification(config).eval()(**with_pad).logits
    assert logits.shape == (3, fields["num_labels"])
    assert logits.isfinite().all()


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    family=st.sampled_from(FAMILIES),
    layers=st.one_of(st.none(), st.sets(st.integers(1, 4), min_size=1).map(sorted)),
    token_pooling=st.sampled_from((None, "mean", "max", "last")),
    layer_pooling=st.sampled_from(LAYER_POOLINGS),
    layer_norm=st.sampled_from((None, True, False)),
    lstm_hidden_size=st.integers(1, 9),
    lstm_bidirectional=st.booleans(),
    lstm_readout=st.sampled_from(LSTM_READOUTS),
    pooler_dropout=st.floats(0, 0.9),
)
def test_any_mixture_of_legal_values_gives_a_model_that_trains(family, **fields):
    model = LstmPoolForSequenceClassification(LstmPoolConfig(backbone_config=backbone_config(family), **fields))
    model(**random_inputs(lengths=[7, 2, 4]), labels=torch.tensor([0, 1, 1])).loss.backward()
    assert all(parameter.grad is not None for parameter in model.lstmpool.pooler.parameters())


def test_fields_may_be_given_by_their_place():
    config = LstmPoolConfig(backbone_config("bert"), [1, 2], "mean")
    assert (config.layers, config.token_pooling) == ([1, 2], "mean")
    with pytest.raises(ValueError, match="layers must lie in 1..4"):
        LstmPoolConfig(backbone_config("bert"), [9])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"early_exit": True, "problem_type": "regression"}, "early_exit=True needs classes"),
        ({"early_exit": True, "num_labels": 1}, "early_exit=True needs classes"),
        ({"early_exit": True, "layers": [3]}, r"two layers or more that are read, got layers=\[3\]"),
        ({"exit_threshold": 0.9}, "exit_threshold=0.9 needs early_exit=True"),
        ({"early_exit": True, "exit_threshold": -0.1}, "a confidence from 0 to 1"),
        ({"early_exit": True, "exit_threshold": float("nan")}, "a confidence from 0 to 1"),
    ],
)
def test_a_config_that_no_exits_go_with_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**fields)
