"""Predicting: what the columns hold, that what was cut off goes on, and that shards are parts of one table."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch
from transformers import AutoTokenizer

from lstmpool.modeling_lstmpool import LstmPoolForSequenceClassification
from lstmpool.predict import main
from lstmpool.training.errors import InputError
from lstmpool.training.output.run_record import RunRecord
from lstmpool.training.predicting import rows as rows_module
from lstmpool.training.predicting.model import Finished, batches
from lstmpool.training.predicting.options import Options, parse
from lstmpool.training.predicting.output import Answers, csv_header, csv_lines, json_lines
from lstmpool.training.predicting.rows import Chunk, Columns, Rows, Source
from lstmpool.training.tasks.multi_label import MultiLabel
from lstmpool.training.tasks.regression import Regression
from lstmpool.training.tasks.single_label import SingleLabel

from ...training_fixtures import task_of, write_csv
from .conftest import NAMES, TEXTS, predict, save_model


# ------------------------------------------------------------------------------------------------------------- numbers
def test_rows_get_the_logits_that_the_model_gives_each_text_alone(made):
    model = LstmPoolForSequenceClassification.from_pretrained(made / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(made / "model")
    with torch.no_grad():
        alone = torch.cat([model(**tokenizer(text, return_tensors="pt")).logits for text in TEXTS]).numpy()
    predictor = Finished.find(str(made / "model")).load(use_cpu=True, bf16=False)
    found = predictor.logits(Chunk(1, texts=TEXTS), batch_size=5, batch_tokens=60)
    np.testing.assert_allclose(found, alone, atol=1e-5)
    assert np.ptp(alone[:, 0]) > 0.1


def test_no_batch_has_more_rows_or_tokens_than_asked_for():
    lengths = np.array([50, 20, 10, 10, 9, 3, 3, 3, 3])
    found = [lengths[rows].tolist() for rows in batches(lengths, batch_size=3, batch_tokens=40)]
    assert found == [[50], [20, 10], [10, 9, 3], [3, 3, 3]]


def columns_of(task, logits, **options) -> dict:
    chunk = Chunk(1, texts=["a"] * len(logits), ids=list(range(len(logits))))
    return Answers(task, Options(**options), None).table(chunk, np.array(logits)).to_pydict()


def test_columns_of_one_label_a_text():
    logits = [[0, math.log(6), 0], [math.log(2), 0, 0]]  # probabilities 1/8, 6/8, 1/8 and 2/4, 1/4, 1/4
    found = columns_of(task_of(SingleLabel), logits)
    assert found == {"id": [0, 1], "prediction": ["b", "a"], "confidence": [0.75, 0.5]}
    more = columns_of(task_of(SingleLabel), logits, top_k=2, scores=True, with_text=True)
    assert list(more) == [
        *("id", "text", "prediction", "confidence", "top_1", "top_1_score", "top_2", "top_2_score"),
        *("score_a", "score_b", "score_c"),
    ]
    assert (more["top_2"], more["top_2_score"], more["score_c"]) == (["a", "b"], [0.125, 0.25], [0.125, 0.25])


def test_columns_of_several_labels_and_of_numbers():
    logits = [[math.log(9), math.log(3), -math.log(4)], [-math.log(9)] * 3]  # .9, .75, .2 and .1 each
    found = columns_of(task_of(MultiLabel), logits)
    assert found["prediction"] == ["a|b", ""]
    assert found["confidence"] == pytest.approx([0.75, 0.9])  # of the least sure: b is given, and none is
    assert columns_of(task_of(Regression, 1), [[2.5], [-1]]) == {"id": [0, 1], "prediction": [2.5, -1]}
    several = columns_of(task_of(Regression, 2), [[2.5, 1]])
    assert several == {"id": [0], "prediction_a": [2.5], "prediction_b": [1]}


def test_a_cell_that_a_spreadsheet_would_run_is_guarded_unless_it_stays_raw():
    columns = {"id": ["=1+1", None, "a\rb"], "score": np.array([0.1, -1, 1e-7], np.float32)}
    table = pyarrow.table(columns)
    assert csv_header(["id", "=x"], raw=False) == b"id,'=x\n"
    assert csv_lines(table, raw=False) == b'\'=1+1,0.1\n,-1\n"a\rb","1e-7"\n'
    assert csv_lines(table, raw=True).startswith(b"=1+1,0.1\n")
    assert json_lines(table).splitlines()[0] == b'{"id": "=1+1", "score": 0.1}'
    assert json_lines(table).splitlines()[1] == b'{"id": null, "score": -1.0}'


# ------------------------------------------------------------------------------------------------------------ chunks
def chunks_of(*tables, **columns) -> list[Chunk]:
    sources = [
        Source(f"file {i}", lambda wanted, t=table: iter([t.select(wanted(t.column_names))]))
        for i, table in enumerate(map(pyarrow.table, tables))
    ]
    return list(Rows(sources, Columns("m", **columns)).chunks())


def test_chunks_keep_the_order_and_are_bounded_by_rows_and_characters(monkeypatch):
    monkeypatch.setattr(rows_module, "ROWS", 3)
    monkeypatch.setattr(rows_module, "CHARACTERS", 100)
    found = chunks_of({"text": ["a", "b"]}, {"text": ["c", "d", "x" * 100, "e"]})
    assert [chunk.texts for chunk in found] == [["a", "b", "c"], ["d", "x" * 100], ["e"]]
    assert [chunk.ids for chunk in found] == [[0, 1, 2], [3, 4], [5]]
    assert [chunk.first for chunk in found] == [1, 4, 6]


def test_a_broken_row_is_named_by_its_own_file():
    with pytest.raises(InputError, match="^file 1, column 'text', row 2: the text is empty.* Row 1 is the first"):
        chunks_of({"text": ["a", "b"]}, {"text": ["c", " "]})
    with pytest.raises(InputError, match="file 1, column 'id', row 1: the id 'a.*' holds control characters"):
        chunks_of({"text": ["a"], "id": ["b"]}, {"text": ["c"], "id": ["a\x1b"]})
    with pytest.raises(InputError, match="^file 0 has a column of ids, file 1 has none"):
        chunks_of({"text": ["a"], "id": ["b"]}, {"text": ["c"]})


def test_ids_that_are_no_numbers_of_64_bits(work, capsysbinary):
    large = {"text": TEXTS[:2], "id": pyarrow.array([2**64 - 1, 1], pyarrow.uint64())}
    pyarrow.parquet.write_table(pyarrow.table(large), "large.parquet")
    assert predict("large.parquet") == 0
    ids = [line.split(b",")[0] for line in capsysbinary.readouterr().out.split()]
    assert ids == [b"id", b"18446744073709551615", b"1"]
    pyarrow.parquet.write_table(pyarrow.table({"text": TEXTS[:2], "id": [math.nan, 1.5]}), "nan.parquet")
    assert predict("nan.parquet", "--format=jsonl") == 0
    rows = capsysbinary.readouterr().out.splitlines()
    assert [row.split(b",")[0] for row in rows] == [b'{"id": null', b'{"id": 1.5']


def test_a_model_reads_pairs_or_single_texts_as_in_training():
    both = {"text": ["a"], "sentence1": ["b"], "sentence2": ["c"]}
    (pairs,), (single,) = chunks_of(both, reads_pairs=True), chunks_of(both, reads_pairs=False)
    assert (pairs.texts, pairs.pairs) == (["b"], ["c"])
    assert (single.texts, single.pairs) == (["a"], [])
    with pytest.raises(InputError, match="file 0: m reads pairs of texts, found one text a row .text.. Name the"):
        chunks_of({"text": ["a"]}, reads_pairs=True)
    with pytest.raises(InputError, match="file 0: m reads one text a row, found pairs .sentence1, sentence2.. Name"):
        chunks_of({"sentence1": ["b"], "sentence2": ["c"]}, reads_pairs=False)
    (joined,) = chunks_of(both, reads_pairs=False, texts="sentence1,sentence2", delimiter=" / ")
    assert joined.texts == ["b / c"]


def test_the_columns_of_training_are_read_unless_flags_name_others():
    trained = {"text_column_names": "review", "id_column_name": "key"}
    request = parse(["m", "a.csv"], "")
    columns = Columns.of(request, "m", False, trained)
    assert columns.wanted(["id", "key", "review", "text"], "f") == ["review", "key"]
    assert columns.wanted(["id", "review"], "f") == ["review", "id"]
    named = parse(["m", "a.csv", "--text_column_names=text", "--id_column_name=id"], "")
    assert Columns.of(named, "m", False, trained).wanted(["id", "key", "review", "text"], "f") == ["text", "id"]


# -------------------------------------------------------------------------------------------------------------- models
def test_folds_are_an_ensemble(work, made, capsys):
    for fold in (1, 2):
        folder = save_model(made / "backbone", work / "folds" / f"fold-{fold}", seed=fold)
        RunRecord({}, {}, finished=True).write(folder)
    RunRecord({"cv_folds": 2}, {}, finished=True).write(work / "folds")
    scores = []
    for model in ("folds/fold-1", "folds/fold-2", "folds"):
        assert main([model, "new.csv", "--output=out.parquet", "--overwrite", "--scores", "--use_cpu"]) == 0
        table = pyarrow.parquet.read_table("out.parquet")
        scores.append(np.column_stack([table[f"score_{name}"].to_numpy() for name in NAMES]))
    np.testing.assert_allclose(scores[2], (scores[0] + scores[1]) / 2, atol=1e-6)
    assert np.abs(scores[0] - scores[1]).max() > 0.01
    RunRecord({}, {}, finished=False).write(work / "folds" / "fold-2")
    assert main(["folds", "new.csv"]) == 2
    assert "error: folds/fold-2 is not finished." in capsys.readouterr().err


def test_an_adapter_is_put_on_its_backbone(work, made, capsys):
    from lstmpool.training.model.adapters import AdapterModel, lora_config

    model = LstmPoolForSequenceClassification.from_pretrained(made / "model")
    adapted = AdapterModel(model, lora_config(model))
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight)
    adapted.backbone_name = str(made / "backbone")
    adapted.save_pretrained(work / "adapter")
    AutoTokenizer.from_pretrained(made / "model").save_pretrained(work / "adapter")
    tokens = AutoTokenizer.from_pretrained(made / "model")(TEXTS[0], return_tensors="pt")
    with torch.no_grad():
        expected = adapted.eval()(**tokens).logits.softmax(-1).amax().item()
    write_csv(work / "one.csv", {"text": TEXTS[:1]})
    assert main(["adapter", "one.csv", "--output=out.parquet", "--use_cpu"]) == 0
    assert pyarrow.parquet.read_table("out.parquet")["confidence"][0].as_py() == pytest.approx(expected, abs=1e-6)
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        (work / "adapter" / name).write_bytes((work / "adapter" / name).read_bytes()[:-9])
        assert main(["adapter", "one.csv", "--use_cpu"]) == 2
        assert "error: the adapter adapter cannot be loaded: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [
        ({"data": {"train": {"texts_a_row": 2}}}, True),
        ({"data": {"train": {"texts_a_row": 1}}}, False),
        ({"data": {"train": {}}}, None),  # of an earlier release
        (None, None),
    ],
)
def test_a_folder_knows_whether_its_model_reads_pairs(work, made, metrics, expected):
    folder = save_model(made / "backbone", work / "saved")
    if metrics is not None:
        (folder / "metrics.json").write_text(json.dumps(metrics))
    assert Finished.find(str(folder)).reads_pairs is expected


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("backbone", "backbone is a bert, not an LstmPool model. Train one on it, with train_trainer.py --backbone."),
        ("./modle", "expected the folder of a finished model, found nothing at ./modle. Did you mean 'model'?"),
        ("new.csv", "found the file new.csv. Name its folder."),
        (".", "found no config.json in .. Did you mean one of its folders: backbone, model?"),
        ("owner/name", "there is no folder owner/name here, and no such model on the Hub could be read: "),
    ],
)
def test_what_is_no_finished_model_is_told(work, capsys, model, message):
    assert main([model, "new.csv"]) == 2
    assert message in capsys.readouterr().err


def test_a_run_that_was_cut_off_is_no_model(work):
    Path("cut").mkdir()
    RunRecord({}, {}, finished=False).write(Path("cut"))
    with pytest.raises(InputError, match="cut holds a run that was cut off. Give its command once more"):
        Finished.find("cut")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.safetensors", b"\x10", "its weights cannot be loaded"),
        ("model.safetensors", None, "its weights cannot be loaded"),
        ("pytorch_model.bin", b"h\n", "its weights cannot be loaded"),
        ("tokenizer.json", b"{}", "has no tokenizer to load"),
        ("tokenizer_config.json", b"[]", "has no tokenizer to load"),
    ],
)
def test_a_damaged_folder_is_told(work, made, capsys, name, content, message):
    shutil.copytree(made / "model", "damaged")
    file = Path("damaged", name)
    if name.endswith(".bin"):
        Path("damaged/model.safetensors").unlink()
    file.write_bytes(file.read_bytes()[:-9] if content is None else content)
    assert main(["damaged", "new.csv", "--use_cpu"]) == 2
    assert f"error: damaged{':' if 'weights' in message else ''} {message}" in capsys.readouterr().err
