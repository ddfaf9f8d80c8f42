"""The parts of the export: what is asked for, where it goes, what it says, and graphs of many families (slow)."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import BertTokenizer

from lstmpool.configuration_lstmpool import LstmPoolConfig
from lstmpool.modeling_lstmpool import LstmPoolForSequenceClassification
from lstmpool.training.data.rows import Split
from lstmpool.training.errors import InputError
from lstmpool.training.exporting import graph as module
from lstmpool.training.exporting.card import Contents, card, file_table
from lstmpool.training.exporting.folder import check_output, new_folder, plain_config, write_config, write_tokenizer
from lstmpool.training.exporting.graph import check_graph, logits_of, model_to_export, probes, write_graph
from lstmpool.training.exporting.options import parse
from lstmpool.training.exporting.quantised import Graph, Rows, agreement
from lstmpool.training.predicting.engine import Exported, OnnxModel
from lstmpool.training.tasks.multi_label import MultiLabel
from lstmpool.training.tasks.regression import Regression
from lstmpool.training.tasks.single_label import SingleLabel

from ...model.families import FIRST_TEXT_ID, TOKENS, VOCAB, tiny_backbone_config
from ...training_fixtures import SPECIAL, WORDS, task_of


def words_to_request(*words):
    return parse(list(words), description="")


def tiny_model(family="bert", **fields):
    torch.manual_seed(0)
    return LstmPoolForSequenceClassification(
        LstmPoolConfig(backbone_config=tiny_backbone_config(family), lstm_hidden_size=4, **fields)
    ).eval()


def predictor_of(*models):
    return SimpleNamespace(title="mine", models=list(models))


def tokenizer_of():
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *WORDS])}
    return BertTokenizer(vocab=vocabulary, model_max_length=8)


# ------------------------------------------------------------------------------------------------------ what is asked
def test_the_folder_lies_beside_the_model_unless_named(tmp_path, monkeypatch):
    (tmp_path / "outputs" / "demo").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert str(words_to_request("outputs/demo/").output) == "outputs/demo-onnx"
    assert str(words_to_request("someone/model").output) == "model-onnx"  # of the Hub
    assert str(words_to_request("--overwrite", "outputs/demo", "--output=there").output) == "there"
    monkeypatch.chdir("outputs/demo")
    assert words_to_request(".").output == tmp_path / "outputs" / "demo-onnx"


def test_variants_are_read_in_order_once_each():
    assert words_to_request("m").variants == ["quantized", "qint8_avx512_vnni"]
    assert words_to_request("m", "--quantize=quint8_avx2, quantized,quint8_avx2").variants == [
        "quint8_avx2",
        "quantized",
    ]
    assert words_to_request("m", "--quantize=none").variants == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["m", "--quantize=quantised"], "found 'quantised'. Did you mean 'quantized'?"),
        (["m", "--quantize=none,quantized"], "found 'none'"),
        (["m", "--max_loss=-1"], "--max_loss must lie in 0..100 points, got -1"),
        (["m", "--max_loss=nan"], "--max_loss must lie in 0..100 points, got nan"),
        (["m", "--quantise=none"], "unknown flag --quantise=none. Did you mean '--quantize'? See --help."),
        (["m", "--output=s3://there"], "expected a folder on this machine"),
        (["m", "--output= "], "found ' '"),
    ],
)
def test_what_can_never_be_right_is_refused(words, message):
    with pytest.raises(InputError) as refused:
        words_to_request(*words)
    assert message in str(refused.value)


# --------------------------------------------------------------------------------------------------------- the folder
@pytest.fixture
def place(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("output", ["model", "model/onnx", "."])
def test_a_plain_config_never_lies_beside_the_weights(place, output):
    with pytest.raises(InputError, match="must lie outside of the model's folder"):
        check_output(words_to_request("model", f"--output={output}", "--overwrite"))


def test_only_an_export_is_replaced_and_only_if_asked(place):
    output = place / "model-onnx"
    check_output(words_to_request("model"))
    output.mkdir()
    check_output(words_to_request("model"))
    (output / "mine.txt").touch()
    with pytest.raises(InputError, match="is no export of this command"):
        check_output(words_to_request("model", "--overwrite"))
    (output / "export.json").write_text('{"files": []}')
    with pytest.raises(InputError, match="exists already. Choose another --output, or add --overwrite"):
        check_output(words_to_request("model"))
    check_output(words_to_request("model", "--overwrite"))
    with pytest.raises(InputError, match="there is no folder"):
        check_output(words_to_request("model", "--output=nowhere/there"))


@pytest.mark.parametrize("error", [None, KeyboardInterrupt, InputError("no")])
def test_the_new_folder_takes_its_place_once_it_is_whole(place, error):
    output = place / "model-onnx"
    (output / "onnx").mkdir(parents=True)
    (output / "old").touch()
    (place / ".model-onnx.unfinished").mkdir()  # of a kill
    try:
        with new_folder(output) as folder:
            (folder / "onnx" / "new").touch()
            assert (output / "old").exists()
            if error:
                raise error
    except (KeyboardInterrupt, InputError):
        assert error
    found = {path.name for path in output.rglob("*")}
    assert found == ({"onnx", "old"} if error else {"onnx", "new"})
    assert {path.name for path in place.iterdir()} == {"model", "model-onnx"}


# --------------------------------------------------------------------------------------------------------- the config
def test_stock_clients_find_the_backbones_type_and_the_labels(tmp_path):
    names = [f"label {i}" for i in range(12)]
    config = LstmPoolConfig(
        backbone_config=tiny_backbone_config("bert"),
        id2label=dict(enumerate(names)),
        problem_type="multi_label_classification",
    )
    write_config(tmp_path, config, tokenizer_of())
    found = json.loads((tmp_path / "config.json").read_text())
    assert (found["model_type"], found["architectures"]) == ("bert", ["BertForSequenceClassification"])
    assert (found["hidden_size"], found["num_hidden_layers"], found["max_position_embeddings"]) == (32, 4, 64)
    assert list(found["id2label"].values()) == names  # in their order, 10 after 9
    assert found["label2id"]["label 11"] == 11
    assert found["problem_type"] == "multi_label_classification"
    assert not {"auto_map", "backbone_config", "_name_or_path"} & set(found)


@pytest.mark.parametrize(
    ("family", "model_type", "architecture", "hidden_size"),
    [
        ("xlm-roberta", "xlm-roberta", "XLMRobertaForSequenceClassification", 32),
        ("distilbert", "distilbert", "DistilBertForSequenceClassification", 32),  # which calls it dim
        ("t5", "t5", "T5ForSequenceClassification", 32),  # and d_model
        ("gemma3", "gemma3_text", "Gemma3TextForSequenceClassification", 32),  # its text config alone
    ],
)
def test_the_config_has_at_its_top_what_clients_read(family, model_type, architecture, hidden_size):
    found = plain_config(LstmPoolConfig(backbone_config=tiny_backbone_config(family), num_labels=2), tokenizer_of())
    assert (found["model_type"], found["architectures"]) == (model_type, [architecture])
    assert (found["hidden_size"], found["num_hidden_layers"]) == (hidden_size, 4)
    assert found["max_position_embeddings"] in (64, 8)  # the backbone's, or where the tokenizer cuts


def test_the_tokenizer_cuts_and_pads_by_itself(tmp_path):
    from tokenizers import Tokenizer

    write_tokenizer(tmp_path, tokenizer_of())
    rows = Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode_batch(["dog " * 20, "cat"])
    assert [len(row.ids) for row in rows] == [8, 8]
    assert rows[1].attention_mask == [1, 1, 1, 0, 0, 0, 0, 0]
    assert rows[1].ids[3:] == [0] * 5


# --------------------------------------------------------------------------------------------- refused before the work
def test_what_no_graph_can_hold_is_refused_before_the_work(monkeypatch):
    with pytest.raises(InputError, match="mine is an ensemble of 2 folds.* such as mine/fold-1"):
        model_to_export(predictor_of(tiny_model(), tiny_model()))
    with pytest.raises(InputError, match=r"mine cannot be exported: .* \(its backbone is a longformer\)"):
        model_to_export(predictor_of(tiny_model("longformer")))
    monkeypatch.setattr(module, "MOST_BYTES", 1000)
    with pytest.raises(InputError, match="its float32 weights take .* GB, and a file of ONNX holds at most"):
        model_to_export(predictor_of(tiny_model()))


def test_a_model_with_exits_is_exported_at_full_depth_and_says_so(capsys):
    model = tiny_model()
    model.config.exit_threshold = 0.9
    exported = model_to_export(predictor_of(model))
    assert exported.config.exit_threshold is None and not exported.training
    assert "reads every text to the highest layer" in capsys.readouterr().out
    assert model_to_export(predictor_of(tiny_model())) and capsys.readouterr().out == ""


def test_without_the_package_one_line_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match=r"ONNX Runtime cannot be loaded: .* Install it: pip install"):
        OnnxModel(tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (None, "found no export.json"),
        ({"files": []}, "cannot be read: 'problem_type'"),
        (
            {"files": [], "problem_type": "regression", "labels": ["a"], "settings": {}, "reads_pairs": None},
            "holds no float graph",
        ),
    ],
)
def test_a_folder_that_is_no_export_is_refused(tmp_path, record, message):
    if record is not None:
        (tmp_path / "export.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match=message):
        Exported.find(str(tmp_path), is_int8=False)


# ---------------------------------------------------------------------------------------------------------- the checks
def test_probes_are_short_empty_cut_and_padded_on_both_sides():
    batches = probes(tokenizer_of(), tiny_model(), pairs=False)
    assert [tuple(batch["input_ids"].shape) for batch in batches] == [
        *((2, 8), (4, 8), (3, 8)),
        *((1, 5), (1, 8), (1, 2), (1, 8)),
    ]
    assert batches[1]["attention_mask"].sum(1).tolist() == [5, 8, 2, 8]
    assert batches[1]["attention_mask"][2].tolist() == [1, 1, 0, 0, 0, 0, 0, 0]
    assert batches[2]["attention_mask"][2].tolist() == [0, 0, 0, 0, 0, 0, 1, 1]
    pairs = probes(tokenizer_of(), tiny_model(), pairs=True)
    assert pairs[0]["token_type_ids"].max() == 1


@pytest.mark.parametrize(("shift", "refused"), [(0.9e-4, False), (1.1e-4, True), (float("nan"), True)])
def test_a_graph_whose_logits_differ_does_not_count(shift, refused):
    batch = {"input_ids": torch.zeros(1, 3)}

    expected = [np.array([[20.0, -40.0]], np.float32)]  # a difference is a share of the largest

    def graph(**columns):
        return SimpleNamespace(logits=torch.tensor([[20.0 + 40 * shift, -40.0]]))

    if refused:
        with pytest.raises(InputError, match=r"on a batch of 1x3 tokens its graph's logits differ by"):
            check_graph(graph, [batch], expected, "mine")
    else:
        assert check_graph(graph, [batch], expected, "mine") == pytest.approx(shift, rel=0.1)


def rows_of(task, logits, labels, metric):
    split = Split("rows.csv", ["a"] * len(logits), None, labels, list(range(len(logits))))
    return Rows(split, task, np.array(logits), metric)


def test_points_that_a_file_loses_by_hand():
    graph = Graph("model_quantized.onnx", "QInt8", 1, "any", metric=0.80)
    assert rows_of(task_of(SingleLabel), [[1.0, 0, 0]], [0], 0.815).points_lost(graph) == pytest.approx(1.5)
    graph.metric = 5.1  # of a mean squared error, higher is worse; in percent
    regression = rows_of(task_of(Regression, 1), [[1.0]], [[1.0]], 5.0)
    assert regression.points_lost(graph) == pytest.approx(2.0)
    graph.metric = 4.0
    assert regression.points_lost(graph) == pytest.approx(-20.0)


def test_answers_agree_where_all_of_a_rows_labels_do():
    single = task_of(SingleLabel, 2)
    assert agreement(single, np.array([[2.0, 1], [0, 1]]), np.array([[5.0, 1], [1, 0]])) == 0.5
    several = task_of(MultiLabel, 2)
    one, other = np.array([[1.0, -1], [1, 1], [-1, -1]]), np.array([[2.0, -2], [1, -1], [-3, -1]])
    assert agreement(several, one, other) == pytest.approx(2 / 3)
    assert agreement(task_of(Regression, 1), np.ones((2, 1)), np.zeros((2, 1))) is None


# --------------------------------------------------------------------------------------------------------- the handler
@pytest.mark.parametrize(
    ("problem_type", "expected"),
    [
        ("single_label_classification", [0.6652, 0.2447, 0.0900]),  # e^2, e and 1, of their sum
        ("multi_label_classification", [0.8808, 0.7311, 0.5]),
        ("regression", [2.0, 1.0, 0.0]),
    ],
)
def test_scores_of_a_handler_by_hand(problem_type, expected):
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    from lstmpool.training.exporting.handler import EndpointHandler, _applied

    handler = object.__new__(EndpointHandler)
    handler.labels, handler.needs_pairs, handler.applied = ["c", "a", "b"], False, _applied(problem_type, 3)
    handler._logits = lambda rows: np.array([[1.0, 2.0, 0.0]] * len(rows))
    ranked = handler({"inputs": "x", "parameters": {"top_k": None}})
    assert [entry["label"] for entry in ranked] == ["a", "c", "b"]
    assert [entry["score"] for entry in ranked] == pytest.approx(expected, abs=5e-5)
    assert handler({"inputs": ["x", "y"]}) == [ranked[0], ranked[0]] and handler({"inputs": "x"}) == [ranked[0]]
    assert handler({"inputs": {"text": "x", "text_pair": "y"}}) == handler({"inputs": [["x", "y"]]}) == ranked[0]
    for wrong in ({"inputs": []}, {}, {"inputs": [3]}, {"inputs": "x", "parameters": {"topk": 1}}):
        with pytest.raises(ValueError, match="expected"):
            handler(wrong)


# ------------------------------------------------------------------------------------------------------------ the card
GRAPHS = [
    Graph("model.onnx", "float32", 94_660_000, "any client", "", 2e-7, 1.0, 0.815),
    Graph("model_quantized.onnx", "QInt8", 24_150_000, "transformers.js", "", 0.02, 0.996, 0.81),
    Graph("model_qint8_avx512_vnni.onnx", "QInt8", 24_150_000, "VNNI", "model_quantized.onnx", 0.02, 0.996, 0.81),
]


def test_the_table_says_what_was_measured_and_which_files_are_the_same_bytes():
    rows = rows_of(task_of(SingleLabel), [[1.0, 0, 0]], [0], 0.815)
    head, first, second, third = file_table(GRAPHS, rows)
    assert head == ["file", "for", "MB", "largest difference of a logit", "same answers", "accuracy"]
    assert first == ["`onnx/model.onnx`", "any client", "94.7", "2e-07", "100.0 %", "0.8150"]
    assert second[4:] == ["99.6 %", "0.8100"]
    assert third[1] == "VNNI; the bytes of model_quantized.onnx"
    assert file_table(GRAPHS, None)[0] == head[:4]


def test_the_card_says_what_it_is_and_shows_each_client(monkeypatch):
    monkeypatch.setattr("lstmpool.training.exporting.card.version", lambda name: "1")  # an extra's may be missing
    task = task_of(Regression, 1)
    text = card(
        Contents("demo-onnx", "demo", "bert", task, False, GRAPHS[:1], 95_530_000, left_out=["Lost."], exits=True)
    )
    assert text.startswith("---\nlibrary_name: transformers.js\npipeline_tag: text-classification\n")
    for part in (
        "numbers, with nothing left to apply",
        "they read every text to the highest layer",
        "The float32 weights take 95.5 MB in torch.",
        "compared on no rows",
        "Lost.",
        'Tokenizer.from_file(f"{folder}/tokenizer.json")',
        'dtype: "fp32"',
        "a pipeline would apply a softmax",
        "## optimum (not run by",
        "## Text Embeddings Inference (not run by",
    ):
        assert part in text, part


# ------------------------------------------------------------------------------------------------------------ families
FAMILIES = (
    "bert roberta modernbert roberta-prelayernorm deberta-v2 electra distilbert albert mpnet xlm-roberta llama gpt2"
)
FAMILIES = f"{FAMILIES} bart t5 xlnet convbert".split()


def batch_of(rows, tokens, side):
    """Random ids; each row after the first has two tokens of padding more than the one before."""
    ids = torch.randint(FIRST_TEXT_ID, VOCAB, (rows, tokens))
    mask = torch.ones_like(ids)
    for row in range(1, rows):
        mask[row, slice(tokens - 2 * row, None) if side == "right" else slice(2 * row)] = 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_graph_answers_as_the_model_does(family, tmp_path):
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    model = tiny_model(family, num_labels=3)
    shapes = [(3, TOKENS.get(family, 11), "right"), (1, 7, "right"), (3, 13, "left"), (2, 40, "right")]
    batches = [batch_of(*shape) for shape in shapes]
    expected = [logits_of(model, batch) for batch in batches]
    attention = model.lstmpool.backbone.config._attn_implementation
    write_graph(model, batches[0], tmp_path / "model.onnx", "mine")
    assert not model.training
    assert model.lstmpool.backbone.config._attn_implementation == attention
    graph = OnnxModel(tmp_path / "model.onnx")
    assert [one.name for one in graph.session.get_outputs()] == ["logits"]
    check_graph(graph, batches, expected, family)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["fnet", "funnel", "mixtral", "qwen3_next"])
def test_a_family_that_cannot_be_traced_is_one_line_and_nothing_else(family, tmp_path, capfd):
    pytest.importorskip("onnx", reason="the extra onnx is not installed")
    with pytest.raises(
        InputError, match=rf"mine cannot be exported \(its backbone is a {family}\): .* Use it with torch"
    ):
        write_graph(tiny_model(family), batch_of(3, 11, "right"), tmp_path / "model.onnx", "mine")
    assert capfd.readouterr().out == ""
    assert family in module.NOT_EXPORTED


def test_every_family_that_is_refused_is_one_of_the_librarys():
    from ...model.families import FAMILIES as KNOWN

    assert set(module.NOT_EXPORTED) <= set(KNOWN)
