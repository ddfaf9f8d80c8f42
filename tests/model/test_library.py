"""What transformers expects of any model: loading, saving, embeddings, dtypes, devices, outputs, Trainer, pipeline."""

import json
import logging
import os
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    BertForMaskedLM,
    BertModel,
)

from lstmpool.fields_lstmpool import LAYER_POOLINGS
from lstmpool.modeling_lstmpool import LstmPoolForSequenceClassification, LstmPoolModel

from ..conftest import CODE, FAMILIES, backbone_config, random_inputs, since, tiny_config, tiny_model


def scrambled(model):
    """The model with weights that no initialisation would give."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


@pytest.fixture
def messages():
    """What the library logs."""
    seen, handler = [], logging.Handler()
    handler.emit = lambda record: seen.append(record.getMessage())
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    yield seen
    logger.removeHandler(handler)


# ----------------------------------------------------------------------------------------------------- saving, loading
@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("layer_pooling", LAYER_POOLINGS)
def test_a_round_trip_keeps_every_bit(tmp_path, layer_pooling, layer_norm, messages):
    model = scrambled(tiny_model(layer_pooling=layer_pooling, layer_norm=layer_norm, layers=[1, 3]))
    model.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = LstmPoolForSequenceClassification.from_pretrained(tmp_path)
        # to rounding: loaded weights lie in memory as they do in the file, by which the order of a sum may change
        assert torch.allclose(loaded(**random_inputs()).logits, model(**random_inputs()).logits, atol=1e-6)
    assert loaded.state_dict().keys() == model.state_dict().keys() == load_file(tmp_path / "model.safetensors").keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert messages == []


@pytest.mark.parametrize("family", FAMILIES)
def test_a_round_trip_of_every_family(tmp_path, family):
    model = scrambled(tiny_model(family))
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert type(loaded) is LstmPoolForSequenceClassification
    assert type(loaded.lstmpool.backbone) is type(model.lstmpool.backbone)
    assert torch.equal(loaded(**random_inputs()).logits, model(**random_inputs()).logits)


def test_base_and_classifier_load_each_other(tmp_path):
    model = scrambled(tiny_model())
    model.save_pretrained(tmp_path / "whole")
    base, report = AutoModel.from_pretrained(tmp_path / "whole", output_loading_info=True)
    assert type(base) is LstmPoolModel
    assert torch.equal(base(**random_inputs()).layer_states, model.lstmpool(**random_inputs()).layer_states)
    assert not report["missing_keys"]
    base.save_pretrained(tmp_path / "base")
    again, report = LstmPoolForSequenceClassification.from_pretrained(tmp_path / "base", output_loading_info=True)
    assert set(report["missing_keys"]) == {"classifier.weight", "classifier.bias"}
    assert torch.equal(again(**random_inputs()).layer_states, model(**random_inputs()).layer_states)


def test_a_new_head_of_another_size(tmp_path):
    model = scrambled(tiny_model())
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=5, ignore_mismatched_sizes=True)
    assert loaded.config.num_labels == 5 and loaded.classifier.weight.shape == (5, 10)
    assert torch.equal(loaded(**random_inputs()).layer_states, model(**random_inputs()).layer_states)


def test_a_bare_backbone_is_refused_with_the_way_to_load_it(tmp_path):
    BertModel(backbone_config()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="from_backbone"):
        LstmPoolForSequenceClassification.from_pretrained(tmp_path)


@pytest.mark.parametrize("default", [torch.float32, torch.bfloat16])
def test_one_dtype_whatever_the_backbone_was_saved_in(default):
    config = tiny_config()
    config.backbone_config.dtype = torch.float16
    torch.set_default_dtype(default)
    try:
        model = LstmPoolForSequenceClassification(config)
    finally:
        torch.set_default_dtype(torch.float32)
    assert {parameter.dtype for parameter in model.parameters()} == {default}


def test_from_config_of_the_auto_classes():
    assert type(AutoModel.from_config(tiny_config())) is LstmPoolModel
    assert type(AutoModelForSequenceClassification.from_config(tiny_config())) is LstmPoolForSequenceClassification


def test_only_safetensors_are_written(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    assert set(os.listdir(tmp_path)) == {"config.json", "model.safetensors", *CODE}


@pytest.mark.parametrize("layer_pooling", LAYER_POOLINGS)
def test_missing_weights_are_reported_and_initialised(tmp_path, layer_pooling):
    model = scrambled(tiny_model(layer_pooling=layer_pooling, layer_norm=True))
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    missing = {name for name in weights if ".pooler." in name or name.startswith("classifier")}
    save_file(
        {name: t for name, t in weights.items() if name not in missing},
        tmp_path / "model.safetensors",
        {"format": "pt"},
    )

    def load(seed):
        torch.manual_seed(seed)
        return LstmPoolForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)

    loaded, report = load(1)
    assert set(report["missing_keys"]) == missing
    again, _ = load(1)
    for name in missing:
        value = loaded.state_dict()[name]
        assert torch.equal(value, again.state_dict()[name]), f"{name} is uninitialised memory"
        if "rnn" in name:
            assert 0 < value.abs().max() <= 5**-0.5
        elif "layer_norm" in name:
            assert (value == (1 if name.endswith("weight") else 0)).all()
        elif name.endswith("bias") or "layer_weights" in name:
            assert (value == 0).all()
        else:
            assert 0.005 < value.std() < 0.05


def test_a_partly_missing_gru_keeps_what_is_there(tmp_path):
    scrambled(tiny_model(layer_pooling="gru")).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    gone = "lstmpool.pooler.rnn.weight_hh_l0"
    save_file(
        {name: tensor for name, tensor in weights.items() if name != gone},
        tmp_path / "model.safetensors",
        {"format": "pt"},
    )
    loaded = LstmPoolForSequenceClassification.from_pretrained(tmp_path)
    for name, tensor in loaded.state_dict().items():
        assert (name == gone) is not torch.equal(tensor, weights[name]), name
    assert loaded.state_dict()[gone].abs().max() <= 5**-0.5


def test_it_can_be_made_on_the_meta_device():
    with torch.device("meta"):
        model = LstmPoolForSequenceClassification(tiny_config())
    assert all(parameter.is_meta for parameter in model.parameters())
    if not since("5.0"):
        pytest.skip("made, but not run: there the bare BERT looks into its input_ids, and a meta tensor has no values")
    assert model(random_inputs()["input_ids"].to("meta")).logits.shape == (3, 3)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", torch.bfloat16])
@pytest.mark.parametrize("layer_pooling", LAYER_POOLINGS)
def test_loading_in_half_precision(tmp_path, dtype, layer_pooling):
    model = tiny_model(layer_pooling=layer_pooling)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=dtype)
    wanted = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    assert {parameter.dtype for parameter in loaded.parameters()} == {wanted}
    logits = loaded(**random_inputs(), labels=torch.tensor([0, 1, 2])).logits
    torch.testing.assert_close(logits.float(), model(**random_inputs()).logits, atol=0.05, rtol=0.05)
    loaded.save_pretrained(tmp_path / "again")
    assert {t.dtype for t in load_file(tmp_path / "again" / "model.safetensors").values()} == {wanted}


@pytest.mark.parametrize("layer_pooling", ["lstm", "gru", "concat"])
def test_device_map_and_disk_offload(tmp_path, layer_pooling):
    model = scrambled(tiny_model(layer_pooling=layer_pooling))
    model.save_pretrained(tmp_path)
    for device_map in (
        "auto",
        {"": "cpu"},
        {"lstmpool.backbone": "disk", "lstmpool.pooler": "disk", "classifier": "cpu"},
    ):
        loaded = AutoModelForSequenceClassification.from_pretrained(
            tmp_path, device_map=device_map, offload_folder=str(tmp_path / "offload")
        )
        with torch.no_grad():
            for _ in range(2):
                assert torch.equal(loaded(**random_inputs()).logits, model(**random_inputs()).logits)


# ------------------------------------------------------------------------------------------------------- from_backbone
def test_from_backbone_has_the_backbones_weights(tmp_path):
    backbone = scrambled(BertModel(backbone_config(), add_pooling_layer=False))
    backbone.save_pretrained(tmp_path)
    for cls in (LstmPoolModel, LstmPoolForSequenceClassification):
        model, report = cls.from_backbone(str(tmp_path), lstm_hidden_size=5, output_loading_info=True)
        found = model.base_model.backbone.state_dict()
        assert found.keys() == backbone.state_dict().keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in backbone.state_dict().items())
        new = {name for name in model.state_dict() if "backbone" not in name}
        assert report["missing_keys"] == new and len(new) == (8 if cls is LstmPoolModel else 10)
        assert not model.training


def test_from_backbone_splits_its_keywords(tmp_path):
    BertModel(backbone_config()).save_pretrained(tmp_path)
    model = LstmPoolForSequenceClassification.from_backbone(
        str(tmp_path),
        layers=[-2, -1],
        layer_pooling="gru",
        id2label={0: "no", 1: "yes", 2: "maybe"},
        problem_type="multi_label_classification",
        attn_implementation="eager",
        dtype="bfloat16",
        hidden_dropout_prob=0.25,
    )
    config = model.config
    assert (config.layers, config.layer_pooling, config.num_labels) == ([3, 4], "gru", 3)
    assert config.problem_type == "multi_label_classification"
    assert model.lstmpool.backbone.config._attn_implementation == "eager"
    assert config.backbone_config.hidden_dropout_prob == 0.25
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_from_backbone_reports_what_is_dropped_once_and_nothing_else(tmp_path, messages):
    BertModel(backbone_config()).save_pretrained(tmp_path / "pooler")
    BertForMaskedLM(backbone_config()).save_pretrained(tmp_path / "head")
    BertModel(backbone_config(), add_pooling_layer=False).save_pretrained(tmp_path / "bare")
    of_the_head = "cls.predictions.bias" if since("5.0") else None  # which older versions drop without a word
    for name, dropped in (("pooler", "pooler.dense.weight"), ("head", of_the_head), ("bare", None)):
        messages.clear()
        LstmPoolForSequenceClassification.from_backbone(str(tmp_path / name))
        assert len(messages) == (dropped is not None), messages
        if dropped:
            assert dropped in messages[0] and "MISSING" not in messages[0]


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"layers": [5]}, ValueError, r"1\.\.4"),
        ({"layer_pooling": "lsmt"}, ValueError, "Did you mean 'lstm'"),
        ({"layer_poolin": "lstm"}, TypeError, "layer_poolin"),
    ],
)
def test_from_backbone_refuses_before_loading(tmp_path, kwargs, error, message):
    BertModel(backbone_config()).save_pretrained(tmp_path)
    with pytest.raises(error, match=message):
        LstmPoolForSequenceClassification.from_backbone(str(tmp_path), **kwargs)


def test_from_backbone_refuses_an_lstmpool(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="itself an LstmPoolConfig.*from_pretrained"):
        LstmPoolForSequenceClassification.from_backbone(str(tmp_path))


# ----------------------------------------------------------------------------------------------- embeddings, attention
@pytest.mark.parametrize("family", ["bert", "deberta-v2", "gpt2", "t5", "xlnet"])
def test_resizing_the_token_embeddings(tmp_path, family):
    model, inputs = tiny_model(family), random_inputs()
    wanted = model(**inputs).logits
    model.resize_token_embeddings(60)
    assert model.get_input_embeddings().num_embeddings == model.config.vocab_size == 60
    assert torch.equal(model(**inputs).logits, wanted)
    new = {"input_ids": torch.full((2, 4), 59)}  # one row alone is rounded by where the weights lie
    assert model(**new).logits.isfinite().all()
    model.save_pretrained(tmp_path)
    assert torch.equal(AutoModelForSequenceClassification.from_pretrained(tmp_path)(**new).logits, model(**new).logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_input_embeddings_are_the_backbones(family):
    model = tiny_model(family)
    assert model.get_input_embeddings() is model.lstmpool.backbone.get_input_embeddings()
    fresh = torch.nn.Embedding(50, model.get_input_embeddings().embedding_dim)
    model.set_input_embeddings(fresh)
    assert model.get_input_embeddings() is model.lstmpool.backbone.get_input_embeddings() is fresh
    assert model.get_output_embeddings() is None


@pytest.mark.parametrize(
    "given", ["eager", "sdpa", {"backbone_config": "eager"}, {"": "eager", "backbone_config": "sdpa"}]
)
def test_the_attention_implementation_reaches_the_backbone(tmp_path, given):
    wanted = given if isinstance(given, str) else given["backbone_config"]
    tiny_model().save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path, attn_implementation=given)
    assert loaded.lstmpool.backbone.config._attn_implementation == wanted


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_the_attention_implementation_can_be_changed(family):
    if family == "bert" and not since("5.0"):
        pytest.skip("there BERT has a class for each implementation: the library warns, and changes nothing")
    model = tiny_model(family)
    assert model.lstmpool.backbone.config._attn_implementation == "sdpa"
    model.set_attn_implementation("eager")
    assert model.lstmpool.backbone.config._attn_implementation == "eager"


@pytest.mark.parametrize("family", ["mpnet", "albert", "xlnet"])
def test_checkpointing_is_refused_where_the_backbone_has_none(family):
    with pytest.raises(ValueError, match="does not support"):
        tiny_model(family).gradient_checkpointing_enable()


# ------------------------------------------------------------------------------------------------------------- outputs
@pytest.mark.parametrize(
    ("asked", "returned"),
    [([0, 2], [0, 2]), ([-1], [4]), ([4, -5, 9], [0, 4]), (3, [3]), ([], None), ([9], []), (False, None)],
)
@pytest.mark.parametrize("family", ["bert", "gpt2", "t5", "xlnet"])
def test_hidden_states_that_were_not_asked_for_are_none(family, asked, returned):
    model, inputs = tiny_model(family), random_inputs()
    with torch.no_grad():
        everything = model(**inputs, output_hidden_states=True).hidden_states
        found = model(**inputs, output_hidden_states=asked).hidden_states
    if returned is None:
        assert found is None
        return
    assert len(found) == len(everything) == 5
    assert [i for i, state in enumerate(found) if state is not None] == returned
    assert all(torch.equal(found[i], everything[i]) for i in returned)
    if family == "bert" and since("5.23"):  # as the library's own model says
        own = model.lstmpool.backbone(**inputs, output_hidden_states=asked).hidden_states
        assert [state is None for state in own] == [state is None for state in found]


@pytest.mark.parametrize("layers", [None, [1, 3]])
def test_hidden_states_and_attentions_on_request(layers):
    model, inputs = tiny_model(layers=layers, attn_implementation="eager"), random_inputs()
    plain = model(**inputs)
    assert plain.hidden_states is None and plain.attentions is None
    outputs = model(**inputs, output_hidden_states=True, output_attentions=True)
    depth = 4 if layers is None else 3
    assert [tuple(state.shape) for state in outputs.hidden_states] == [(3, 7, 16)] * (depth + 1)
    assert [tuple(attention.shape) for attention in outputs.attentions] == [(3, 2, 7, 7)] * depth
    assert torch.equal(outputs.logits, plain.logits)
    base = model.lstmpool(**inputs, output_hidden_states=True)
    assert torch.equal(base.hidden_states[-1], base.last_hidden_state)
    model.config.output_hidden_states = True
    assert len(model(**inputs).hidden_states) == depth + 1
    assert model(**inputs, output_hidden_states=False).hidden_states is None


def test_the_tuple_is_the_dict():
    model, inputs = tiny_model(attn_implementation="eager"), random_inputs()
    everything = {"output_hidden_states": True, "output_attentions": True, "labels": torch.tensor([0, 1, 2])}
    outputs = model(**inputs, **everything)
    as_tuple = model(**inputs, **everything, return_dict=False)
    assert isinstance(as_tuple, tuple) and len(as_tuple) == 5
    assert torch.equal(as_tuple[0], outputs.loss) and torch.equal(as_tuple[1], outputs.logits)
    model.config.return_dict = False
    assert torch.equal(model(**inputs, output_hidden_states=True)[0], outputs.logits)
    assert isinstance(model.lstmpool(**inputs), tuple)


# --------------------------------------------------------------------------------------------------------- remote code
def test_the_saved_config_names_all_classes_whichever_was_saved(tmp_path):
    wanted = {
        "AutoConfig": "modeling_lstmpool.LstmPoolConfig",
        "AutoModel": "modeling_lstmpool.LstmPoolModel",
        "AutoModelForSequenceClassification": "modeling_lstmpool.LstmPoolForSequenceClassification",
    }
    for model in (tiny_model(), LstmPoolModel(tiny_config()), tiny_config()):
        model.save_pretrained(tmp_path / type(model).__name__)
        saved = json.loads((tmp_path / type(model).__name__ / "config.json").read_text())
        assert saved["auto_map"] == wanted
