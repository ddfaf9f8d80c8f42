"""Hostile config.json files, of backbones and of finished folders, are refused in one line, or load.

Known holes of the library are told before one is read.
"""

import json
import os
import resource
import time
from pathlib import Path

import pytest
from transformers import AutoConfig

from lstmpool.configuration_lstmpool import logger, read_config
from lstmpool.modeling_lstmpool import LstmPoolForSequenceClassification
from lstmpool.training.errors import InputError
from lstmpool.training.model.backbone import Backbone

from ..conftest import backbone_config, tiny_config, tiny_model
from ..training_fixtures import ROOT, count_outcomes, run_python, save_backbone, sentences, write_csv


DEEP = "[" * 3000 + "]" * 3000
TEXTS = {  # whole files
    "null": "null",
    "true": "true",
    "number": "3",
    "NaN": "NaN",
    "string": '"bert"',
    "list": "[]",
    "list of objects": '[{"model_type": "bert"}]',
    "empty": "",
    "cut off": '{"model_type": "bert", "hidden',
    "deep list": "[" * 100_000,
    "deep object": '{"a":' * 100_000,
    "deep value": f'{{"model_type": "bert", "a": {DEEP}}}',
    "huge integer": f'{{"model_type": "bert", "num_hidden_layers": {"9" * 5000}}}',
    "not UTF-8": "\udcff\udcfe\0",
    "zeros": "\0" * 40,
}
BACKBONE = [  # entries of a backbone's config: at the top, or in the `backbone_config` of a finished folder
    {"num_hidden_layers": 10**9},
    {"num_hidden_layers": -1},
    {"num_hidden_layers": 0},
    {"num_hidden_layers": "12"},
    {"num_hidden_layers": 2.5},
    {"num_hidden_layers": None},
    {"num_hidden_layers": [4]},
    {"num_hidden_layers": 1e300},
    {"num_labels": 10**9},
    {"num_labels": "3"},
    {"num_labels": None},
    {"num_labels": 2.5},
    {"id2label": ["a"]},
    {"id2label": "ab"},
    {"id2label": {"a": "b"}},
    {"hidden_size": 0},
    {"hidden_size": "x"},
    {"hidden_size": None},
    {"num_attention_heads": 0},
    {"num_attention_heads": 3},
    {"hidden_act": "no_such_activation"},
    {"hidden_act": 3},
    {"hidden_act": ["gelu"]},
    {"dtype": "no_such_dtype"},
    {"dtype": "nn"},
    {"dtype": []},
    {"torch_dtype": "no_such_dtype"},
    {"vocab_size": -5},
    {"vocab_size": 0},
    {"vocab_size": "x"},
    {"pad_token_id": 10**6},
    {"pad_token_id": "x"},
    {"layer_norm_eps": "x"},
    {"layer_norm_eps": float("nan")},
    {"hidden_dropout_prob": 2.0},
    {"model_type": None},
    {"model_type": 3},
    {"model_type": []},
    {"model_type": {}},
    {"model_type": "no_such_family"},
    {"model_type": "lightglue", "trust_remote_code": True},
    {"model_type": "albert", "num_hidden_layers": 4, "inner_group_num": 10**9},
    {"model_type": "funnel", "block_sizes": [10**9], "block_repeats": [1]},
    {"model_type": "funnel", "block_sizes": ["x"], "block_repeats": [None]},
    {"auto_map": None},
    {"auto_map": {"AutoConfig": 3}},
    {"auto_map": {"AutoConfig": "owner/name--module.Class"}},
    {"attn_implementation": "no_such_attention"},
    {"attn_implementation": 3},
    {"attn_implementation": "owner/kernel"},
    {"_attn_implementation_internal": "owner/kernel"},
    {"quantization_config": "x"},
    {"quantization_config": []},
    {"text_config": 3},
    {"text_config": {"model_type": "bert"}},
    {"is_decoder": "x"},
    {"tie_word_embeddings": "x"},
    {"layer_types": ["x"]},
    {"per_layer_config": 3},
    {"rope_scaling": 3, "rope_theta": 1},
    {"configuration_files": 3},
    {"self": 1},
    {"__class__": "x"},
    {"__dict__": 3},
    {"to_dict": 3},
    {"get_text_config": 3},
    {"attribute_map": 3},
    {"sub_configs": 3},
]
FINISHED = [  # entries of a finished folder's config
    {"backbone_config": None},
    {"backbone_config": []},
    {"backbone_config": "bert"},
    {"backbone_config": {}},
    {"backbone_config": {"model_type": ["bert"]}},
    {"backbone_config": {"model_type": "lstmpool", "backbone_config": {"model_type": "lstmpool"}}},
    {"num_labels": 10**9},
    {"num_labels": -1},
    {"num_labels": 0},
    {"num_labels": "3"},
    {"id2label": ["a"]},
    {"id2label": {}},
    {"id2label": {"0": "a", "1": "b", "3": "c"}},
    {"id2label": {"0": "a", "1": "b", "-1": "c"}},
    {"id2label": {"0": "a", "1": "b", "01": "c"}},
    {"id2label": {"0": None, "1": [], "2": {}}},
    {"label2id": "x"},
    {"problem_type": "no_such_problem"},
    {"problem_type": []},
    {"dtype": "no_such_dtype"},
    {"dtype": "int8"},
    {"dtype": "Tensor"},
    {"dtype": 3},
    {"layers": [10**9]},
    {"layers": "1"},
    {"layers": [None]},
    {"layers": [[1]]},
    {"layers": []},
    {"layers": [1] * 100_000},
    {"token_pooling": []},
    {"layer_pooling": "x" * 100_000},
    {"layer_norm": "x"},
    {"lstm_hidden_size": 10**12},
    {"lstm_hidden_size": 10**400},
    {"lstm_bidirectional": None},
    {"pooler_dropout": float("nan")},
    {"attn_implementation": 3},
    {"attn_implementation": "owner/kernel"},
    {"self": 1},
    {"__class__": "x"},
    {"save_pretrained": 3},
    {"sub_configs": 3},
]


def backbones():
    """Name and text of each hostile config.json of a backbone."""
    good = backbone_config().to_dict()
    return TEXTS | {shorter(edit): json.dumps(good | edit) for edit in BACKBONE}


def finished_folders():
    """Name and text of each hostile config.json of a finished folder."""
    good = json.loads(tiny_config().to_json_string())
    edits = [*FINISHED, *({"backbone_config": good["backbone_config"] | edit} for edit in BACKBONE)]
    names = [*map(shorter, FINISHED), *(f"backbone {shorter(edit)}" for edit in BACKBONE)]
    return TEXTS | {name: json.dumps(good | edit) for name, edit in zip(names, edits, strict=True)}


def shorter(edit):
    return repr(edit)[:60]


def written(folder, text):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(text, encoding="utf-8", errors="surrogateescape")
    return folder


def source(flag, folder):
    return Backbone(flag, str(folder), folder.name, False, {"trust_remote_code": False, "revision": "main"})


def check_backbone(folder):
    """What the command does with a backbone before it reads any weights."""
    found = source("--backbone", folder)
    labels = {"num_labels": 2, "id2label": {0: "a", 1: "b"}, "problem_type": "single_label_classification"}
    found.check_fields(found.load_config(), labels)


def load_finished(folder):
    """What `from_pretrained` does, with the errors that count as clear."""
    try:
        LstmPoolForSequenceClassification.from_pretrained(folder)
    except ValueError as error:
        raise InputError(error) from None
    except OSError as error:  # the library says that the file is no JSON
        assert "not a valid JSON file" in str(error)
        raise InputError(error) from None
    except RuntimeError as error:  # the weights are of other sizes: the library has shown which
        assert "ignore_mismatched_sizes" in str(error)
        raise InputError(error) from None


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    tiny_model().save_pretrained(folder)
    return folder / "model.safetensors"


def test_hostile_configs_end_in_one_line(tmp_path, weights):
    cases, start = [], time.perf_counter()
    for number, (name, text) in enumerate(backbones().items()):
        folder = written(tmp_path / f"backbone{number}", text)
        cases.append((f"backbone {name}", lambda folder=folder: check_backbone(folder)))
    for number, (name, text) in enumerate(finished_folders().items()):
        folder = written(tmp_path / f"finished{number}", text)
        os.link(weights, folder / "model.safetensors")
        cases.append((f"finished {name}", lambda folder=folder: load_finished(folder)))
        cases.append((f"--init_from {name}", lambda folder=folder: source("--init_from", folder).load_config()))
    found = count_outcomes("configs", cases)
    assert len(cases) >= 200
    assert found["traceback"] == 0, found
    assert found["clear"] >= 150
    print(f"{time.perf_counter() - start:.1f} s")


@pytest.mark.parametrize(
    "entries",
    [
        {"num_labels": 10**9},
        {"backbone_config": {"model_type": "bert", "num_hidden_layers": 10**9}},
        {"backbone_config": {"model_type": "gpt2", "n_layer": 10**9}},
        {"backbone_config": {"model_type": "bert", "num_labels": 10**9}},
    ],
)
def test_a_config_with_a_billion_layers_or_labels_is_refused_at_once(tmp_path, entries):
    saved = json.loads(tiny_config().to_json_string())
    (tmp_path / "config.json").write_text(json.dumps(saved | entries))
    start, (before, _) = time.perf_counter(), resource.getrlimit(resource.RLIMIT_AS)
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + 2**28, resource.RLIM_INFINITY))
    try:
        with pytest.raises(ValueError, match="must have .* at most, got 1000000000"):
            LstmPoolForSequenceClassification.from_pretrained(tmp_path)
        with pytest.raises(ValueError, match="must have .* at most, got 1000000000"):
            AutoConfig.from_pretrained(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (before, resource.RLIM_INFINITY))
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation_internal"])
def test_a_config_cannot_name_code_on_the_hub(tmp_path, key):
    plain = backbone_config().to_dict()
    saved = json.loads(tiny_config().to_json_string())
    for config in (plain | {key: "owner/kernel"}, plain | {"text_config": {key: "owner/kernel"}}):
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match=f"the config.json of .* got {key}='owner/kernel'"):
            read_config(str(tmp_path))
        with pytest.raises(ValueError, match=f"got {key}='owner/kernel'"):
            LstmPoolForSequenceClassification.from_backbone(str(tmp_path))
        (tmp_path / "config.json").write_text(json.dumps(saved | {"backbone_config": config}))
        with pytest.raises(ValueError, match=f"got {key}='owner/kernel'"):
            LstmPoolForSequenceClassification.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("version", "holes"),
    [
        ("4.57.6", "CVE-2026-4372, CVE-2026-5241"),
        ("5.2.0", "CVE-2026-4372, CVE-2026-5241"),
        ("5.3.0", "CVE-2026-5241"),
        ("5.4.1", "CVE-2026-5241"),
        ("5.5.0", None),
        ("5.24.0", None),
        ("6.0.0.dev0", None),
    ],
)
def test_known_holes_are_told_before_a_config_is_read(tmp_path, monkeypatch, caplog, version, holes):
    logger.warning_once.cache_clear()
    monkeypatch.setattr("lstmpool.configuration_lstmpool.transformers.__version__", version)
    for load in (read_config, LstmPoolForSequenceClassification.from_backbone):
        with pytest.raises((OSError, ValueError)):  # there is none
            load(str(tmp_path))
    told = [text for text in caplog.messages if "CVE" in text]
    if holes is None:
        assert told == []
    else:
        assert len(told) == 1
        assert f"transformers {version} has known holes ({holes})" in told[0]
        assert "pip install 'transformers>=5.5'" in told[0] and "\n" not in told[0]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"id2label": {"0": "a"}, "label2id": {"a": 0}}, "--init_from one knows one class only, 'a'"),
        ({"id2label": {"0": "a", "1": "b", "2": "a"}}, "--init_from one knows the label 'a' twice"),
    ],
)
def test_the_command_refuses_a_finished_model_without_a_choice(tmp_path, labels, message):
    saved = json.loads(tiny_config().to_json_string()) | labels
    folder = written(tmp_path / "one", json.dumps(saved))
    with pytest.raises(InputError, match=message):
        source("--init_from", folder).load_config()
    assert AutoConfig.from_pretrained(folder).num_labels == len(labels["id2label"])  # Python loads it


@pytest.mark.slow
def test_the_command_ends_with_status_2_and_one_line(tmp_path):
    write_csv(tmp_path / "rows.csv", {"text": sentences(20), "label": ["yes", "no"] * 10})
    good = json.loads((save_backbone(tmp_path / "good") / "config.json").read_text())
    edits = {
        "null": "null",
        "layers": json.dumps(good | {"num_hidden_layers": 10**9}),
        "labels": json.dumps(good | {"num_labels": 10**9}),
        "activation": json.dumps(good | {"hidden_act": "no_such_activation"}),
    }
    for name, text in edits.items():
        folder = save_backbone(tmp_path / name)
        (folder / "config.json").write_text(text)
        words = ["train_trainer.py", f"--backbone={folder}", f"--train_file={tmp_path / 'rows.csv'}", "--max_steps=1"]
        done = run_python(*words, f"--output_dir={tmp_path / 'out'}", "--use_cpu", cwd=ROOT)
        assert done.returncode == 2, done.stderr[-2000:]
        assert "Traceback" not in done.stderr
        assert f"--backbone {name}" in done.stderr.splitlines()[-1]
