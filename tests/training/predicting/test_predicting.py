"""Predicting: what the columns hold, that what was cut off goes on, and that shards are parts of one table."""

import math
import os
import signal
from pathlib import Path

import numpy as np
import pyarrow.dataset
import pyarrow.parquet
import pytest
import torch
from filelock import FileLock
from transformers import AutoTokenizer

from lstmpool.modeling_lstmpool import LstmPoolForSequenceClassification
from lstmpool.predict import main
from lstmpool.training.errors import InputError
from lstmpool.training.output.run_record import RunRecord
from lstmpool.training.predicting import rows as rows_module
from lstmpool.training.predicting.model import Finished, Predictor, batches
from lstmpool.training.predicting.options import Options, Shard, parse
from lstmpool.training.predicting.output import Answers, csv_header, csv_lines, json_lines
from lstmpool.training.predicting.rows import Chunk, Columns, Rows, Source, Survey
from lstmpool.training.tasks.multi_label import MultiLabel
from lstmpool.training.tasks.regression import Regression
from lstmpool.training.tasks.single_label import SingleLabel

from ...training_fixtures import save_backbone, sentences, task_of, write_csv


from_backbone = LstmPoolForSequenceClassification.from_backbone
TEXTS = [" ".join([text] * (1 + i % 5)) for i, text in enumerate(sentences(23))]  # of several lengths
NAMES = ["late", "=lost", "other"]


def save_model(backbone: Path, folder: Path, seed: int = 0, **config) -> Path:
    torch.manual_seed(seed)
    config = {"id2label": dict(enumerate(NAMES)), "lstm_hidden_size": 4} | config
    model = from_backbone(str(backbone), **config)
    torch.nn.init.normal_(model.classifier.weight, std=30.0)  # logits that differ from text to text
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(backbone).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    save_backbone(folder / "backbone")
    save_model(folder / "backbone", folder / "model")
    write_csv(folder / "new.csv", {"text": TEXTS, "id": [f"row {i}" for i in range(len(TEXTS))]})
    return folder


@pytest.fixture
def work(made, tmp_path, monkeypatch):
    """A folder of its own, with chunks of 4 rows: 23 rows are 6 chunks."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(rows_module, "ROWS", 4)
    for name in ("model", "new.csv", "backbone"):
        os.symlink(made / name, tmp_path / name)
    return tmp_path


def predict(*words: str) -> int:
    return main(["model", *words, "--use_cpu", "--disable_tqdm"])


def whole(name: str) -> bytes:
    """What a run that nothing stops writes."""
    assert predict("new.csv", "--output", name) == 0
    content = Path(name).read_bytes()
    Path(name).unlink()
    return content


@pytest.fixture
def computed(monkeypatch):
    """The numbers of the chunks that the model has run on. A signal comes in the third one, if `stop` is set."""
    seen, original = [], Predictor.logits

    def logits(self, chunk, *sizes):
        seen.append(chunk.number)
        if len(seen) == 3 and seen.stop:
            os.kill(os.getpid(), seen.stop)
        return original(self, chunk, *sizes)

    class Seen(list):
        stop = 0

    seen = Seen()
    monkeypatch.setattr(Predictor, "logits", logits)
    return seen


# ------------------------------------------------------------------------------------------------------------- numbers
def test_rows_get_the_logits_that_the_model_gives_each_text_alone(made):
    model = LstmPoolForSequenceClassification.from_pretrained(made / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(made / "model")
    with torch.no_grad():
        alone = torch.cat([model(**tokenizer(text, return_tensors="pt")).logits for text in TEXTS]).numpy()
    predictor = Finished.find(str(made / "model")).load(use_cpu=True, bf16=False)
    found = predictor.logits(Chunk(0, 1, texts=TEXTS), batch_size=5, batch_tokens=60)
    np.testing.assert_allclose(found, alone, atol=1e-5)
    assert np.ptp(alone[:, 0]) > 0.1


def test_no_batch_has_more_rows_or_tokens_than_asked_for():
    lengths = np.array([50, 20, 10, 10, 9, 3, 3, 3, 3])
    found = [lengths[rows].tolist() for rows in batches(lengths, batch_size=3, batch_tokens=40)]
    assert found == [[50], [20, 10], [10, 9, 3], [3, 3, 3]]


def columns_of(task, logits, **options) -> dict:
    chunk = Chunk(0, 1, texts=["a"] * len(logits), ids=list(range(len(logits))))
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
    assert [(chunk.number, chunk.first) for chunk in found] == [(0, 1), (1, 4), (2, 6)]


def test_a_broken_row_is_named_by_its_own_file():
    with pytest.raises(InputError, match="^file 1, column 'text', row 2: the text is empty.* Row 1 is the first"):
        chunks_of({"text": ["a", "b"]}, {"text": ["c", " "]})
    with pytest.raises(InputError, match="file 1, column 'id', row 1: the id 'a.*' holds control characters"):
        chunks_of({"text": ["a"], "id": ["b"]}, {"text": ["c"], "id": ["a\x1b"]})
    with pytest.raises(InputError, match="^file 0 has a column of ids, file 1 has none"):
        chunks_of({"text": ["a"], "id": ["b"]}, {"text": ["c"]})


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


# ------------------------------------------------------------------------------------------------- stop and go on
@pytest.mark.parametrize("name", ["out.csv", "out.jsonl", "out.parquet"])
@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_what_was_stopped_goes_on_and_ends_as_if_it_had_not_been(work, computed, capsys, name, signum, status):
    expected = whole(name)
    computed.clear()
    computed.stop = signum
    assert predict("new.csv", "--output", name) == status
    assert "stopped after 3 chunks. The same command with --resume goes on from there." in capsys.readouterr().err
    assert not Path(name).exists()
    Path(f"{name}.part", f".000003.{name[4:]}.unfinished").write_bytes(b"half of a")  # as a kill in a write leaves
    computed.stop = 0
    assert predict("new.csv", "--output", name) == 2
    assert (
        f"{name}.part holds 3 chunks of predictions that were cut off. Go on with --resume" in capsys.readouterr().err
    )
    assert predict("new.csv", "--output", name, "--resume") == 0
    assert computed == [0, 1, 2, 3, 4, 5]
    assert Path(name).read_bytes() == expected
    assert not Path(f"{name}.part").exists()


@pytest.fixture
def stopped(work, computed):
    computed.stop = signal.SIGTERM
    assert predict("new.csv", "--output", "out.csv") == 143
    computed.stop = 0
    return work


def test_other_rows_settings_or_weights_do_not_go_on(stopped, made, computed, capsys):
    words = ("--output", "out.csv", "--resume")
    assert predict("new.csv", *words, "--scores") == 2
    assert "out.csv.part was begun with other scores (False there, True here). Give" in capsys.readouterr().err
    write_csv(stopped / "other.csv", {"text": TEXTS, "id": ["x"] * len(TEXTS)})
    assert predict("other.csv", *words) == 2
    assert "begun with other rows." in capsys.readouterr().err
    os.unlink("model")
    save_model(made / "backbone", stopped / "model", seed=1)
    assert predict("new.csv", *words) == 2
    assert "begun with other model." in capsys.readouterr().err
    assert predict("new.csv", *words, "--overwrite") == 2
    assert predict("new.csv", "--output", "out.csv", "--overwrite") == 0
    assert len(Path("out.csv").read_text().splitlines()) == 24


def test_a_file_that_is_there_is_replaced_only_with_overwrite_and_stays_until_then(work, computed, capsys):
    Path("out.csv").write_text("mine")
    assert predict("new.csv", "--output", "out.csv") == 2
    assert (
        "error: --output out.csv exists already. Choose another name, or add --overwrite." in capsys.readouterr().err
    )
    computed.stop = signal.SIGTERM
    assert predict("new.csv", "--output", "out.csv", "--overwrite") == 143
    assert Path("out.csv").read_text() == "mine"
    assert predict("new.csv", "--output", "out.csv", "--overwrite", "--resume") == 0
    assert computed == [0, 1, 2, 3, 4, 5]
    assert Path("out.csv").read_text().startswith("id,prediction,confidence\nrow 0,")
    content = Path("new.csv").read_bytes()
    assert predict("new.csv", "--output", "new.csv", "--overwrite") == 2
    assert "is one of the files to read" in capsys.readouterr().err
    assert Path("new.csv").read_bytes() == content


def test_a_file_that_another_process_writes_is_left_alone(work, capsys):
    Path("out.csv.part").mkdir()
    with FileLock(Path("out.csv.part/.lock")):
        assert predict("new.csv", "--output", "out.csv") == 2
    assert "another process writes out.csv already" in capsys.readouterr().err


# -------------------------------------------------------------------------------------------------------------- shards
def test_shards_are_parts_of_one_table_that_is_read_at_any_time(work, computed, capsys):
    assert predict("new.csv", "--output", "out", "--shard=1/3") == 0
    assert predict("new.csv", "--output", "out", "--shard=3/3") == 0
    computed.clear()
    computed.stop = signal.SIGTERM
    assert predict("new.csv", "--output", "out", "--shard=2/3") == 143
    computed.stop = 0
    table = pyarrow.dataset.dataset("out").to_table()  # the part that was cut off is no part of it
    names = {f"row {i}" for i in range(23)}
    assert len(table) == len(set(table["id"].to_pylist())) < 23
    for shard in ("1/3", "2/3"):  # the one that is finished stays
        assert predict("new.csv", "--output", "out", f"--shard={shard}", "--resume") == 0
    assert "out/part-00001-of-00003.parquet is finished already." in capsys.readouterr().err
    table = pyarrow.dataset.dataset("out").to_table()
    assert set(table["id"].to_pylist()) == names and len(table) == 23
    assert sorted(os.listdir("out")) == [f"part-0000{i}-of-00003.parquet" for i in (1, 2, 3)]
    assert predict("new.csv", "--output", "out", "--shard=1/2") == 2
    assert "holds part-00001-of-00003.parquet, of another number of shards" in capsys.readouterr().err


def test_processes_of_a_launcher_share_the_rows(work, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert parse(["m", "f.csv", "--output=out"], "").shard == Shard(2, 2)
    assert parse(["m", "f.csv", "--output=out", "--shard=3/16"], "").shard == Shard(6, 32)
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        assert predict("new.csv", "--output", "out") == 0
    assert sorted(pyarrow.dataset.dataset("out").to_table()["id"].to_pylist()) == sorted(f"row {i}" for i in range(23))


def test_the_bar_counts_the_rows_of_its_own_shard():
    survey = Survey([4, 3, 2, 1], "", pyarrow.int64(), has_pairs=False)
    assert [survey.of_shard(Shard(i, 3)) for i in (1, 2, 3)] == [[4, 1], [3], [2]]


def test_a_shard_without_rows_is_an_empty_part(work):
    write_csv(work / "two.csv", {"text": TEXTS[:2]})
    for shard in (1, 2, 3):
        assert predict("two.csv", "--output", "out", f"--shard={shard}/3") == 0
    table = pyarrow.dataset.dataset("out").to_table()
    assert sorted(table["id"].to_pylist()) == [0, 1]
    assert len(pyarrow.parquet.read_table("out/part-00003-of-00003.parquet")) == 0


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


def test_an_adapter_is_put_on_its_backbone(work, made):
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


@pytest.mark.parametrize(
    ("card", "settings", "config", "expected"),
    [
        ('print(classifier({"text": "a", "text_pair": "b"}))', {}, {}, True),
        ('print(classifier("a"))', {}, {}, False),
        ("", {"text_column_names": "a,b"}, {}, True),
        ("", {"text_column_names": "a,b", "text_column_delimiter": " "}, {}, False),
        ("of another kind", {}, {}, None),
    ],
)
def test_a_folder_knows_whether_its_model_reads_pairs(work, made, card, settings, config, expected):
    folder = save_model(made / "backbone", work / "saved", **config)
    (folder / "README.md").write_text(card)
    RunRecord(settings, {}, finished=True).write(folder)
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
