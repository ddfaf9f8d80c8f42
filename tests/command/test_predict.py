"""The command `predict` as users run it: on what training has written, through pipes, in several processes.

And the lines that are printed, and those in the card: they give the answers of the table for every text.
"""

import configparser
import contextlib
import csv
import gzip
import importlib
import io
import json
import os
import re
import resource
import subprocess
import sys

import numpy as np
import pandas
import pyarrow.dataset
import pytest
from datasets import Dataset, DatasetDict
from transformers import AutoTokenizer

from lstmpool.predict import main
from lstmpool.train_trainer import main as train
from lstmpool.training.printing import READER_GONE

from ..conftest import tiny_model
from ..training_fixtures import ROOT, WORDS, run_python, save_backbone, sentences, write_csv


PREDICT = ["-m", "lstmpool.predict"]


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with a backbone and rows for each task."""
    folder = tmp_path_factory.mktemp("work")
    save_backbone(folder / "backbone")
    for split, n in (("train", 24), ("validation", 12), ("test", 17)):
        texts = [" ".join([text] * (1 + i % 4)) for i, text in enumerate(sentences(n))]
        columns = {
            "text": texts,
            "label": [["yes", "no", "=c"][i % 3] for i in range(n)],
            "colours": ["|".join(name for name in ("red", "blue") if name in text) or "none" for text in texts],
            "price": [f"{20_000 + 500 * (i % 8) + 0.5}" for i in range(n)],
            "key": [f"{split}-{i}" for i in range(n)],
        }
        write_csv(folder / f"{split}.csv", columns)
        names = {"sentence1": texts, "sentence2": texts[::-1], "label": columns["label"]}
        write_csv(folder / f"pairs-{split}.csv", names)
    return folder


def trained(work, name, *words, prefix=""):
    """A folder that the training command has written, with its predictions of the test rows."""
    files = [f"--{split}_file={work / f'{prefix}{split}.csv'}" for split in ("train", "validation", "test")]
    if "--cv_folds=2" in words:
        del files[1]
    short = ["--max_steps=4", "--stages=one", "--baselines=False", "--report_to=none", "--disable_tqdm=True"]
    where = [f"--backbone={work / 'backbone'}", f"--output_dir={work / name}", "--use_cpu", "--lstm_hidden_size=4"]
    assert train([*where, *files, *short, "--head_learning_rate=0.5", *words]) == 0
    return work / name


@pytest.fixture(scope="module")
def model(work):
    return trained(work, "model", "--id_column_name=key", "--calibrate=temperature")


def as_in_training(folder, rows, *words):
    """Asserts that the command gives what training wrote for the same rows."""
    output = folder.parent / f"{folder.name}.parquet"
    assert main([str(folder), str(rows), f"--output={output}", "--use_cpu", "--disable_tqdm", *words]) == 0
    found, expected = pandas.read_parquet(output), pandas.read_csv(folder / "test_predictions.csv", dtype={"id": str})
    assert found["id"].astype(str).tolist() == expected["id"].tolist()
    for name in set(expected) - {"id", "label"}:  # which training alone knows
        if expected[name].dtype == np.float64:
            np.testing.assert_allclose(found[name], expected[name], rtol=2e-6, atol=1e-6)
        else:
            assert found[name].tolist() == expected[name].str.removeprefix("'").tolist()


def test_predictions_and_scores_are_those_that_training_wrote(model, work):
    as_in_training(model, work / "test.csv", "--scores")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("several", ["--label_column_name=colours", "--tune_thresholds"]),
        ("numbers", ["--label_column_name=price"]),
        ("folds", ["--cv_folds=2"]),
        ("adapter", ["--peft=lora"]),
        ("pairs", []),
    ],
)
def test_it_is_so_for_each_kind_of_model(work, name, words):
    prefix = "pairs-" if name == "pairs" else ""
    folder = trained(work, name, *words, prefix=prefix)
    as_in_training(folder, work / f"{prefix}test.csv", *([] if name == "numbers" else ["--scores"]))
    if prefix:
        assert main([str(folder), str(work / "test.csv")]) == 2


def test_all_kinds_of_rows_give_the_same(model, work, capsysbinary, monkeypatch):
    monkeypatch.chdir(work)
    rows = pandas.read_csv("test.csv")[["text", "key"]]
    (work / "rows.csv.gz").write_bytes(gzip.compress(rows.to_csv(index=False).encode()))
    rows.to_csv("rows.tsv", sep="\t", index=False)
    rows.to_parquet("rows.parquet")
    rows.to_json("rows.jsonl", orient="records", lines=True)
    rows.to_json("rows.json", orient="records")
    Dataset.from_pandas(rows).save_to_disk("rows")
    DatasetDict({"train": Dataset.from_pandas(rows[:2]), "test": Dataset.from_pandas(rows)}).save_to_disk("splits")
    os.makedirs("files", exist_ok=True)
    rows.to_csv("files/test.csv", index=False)
    found = {}
    for file in ("rows.csv.gz", "rows.tsv", "rows.parquet", "rows.jsonl", "rows.json", "rows"):
        assert main([str(model), file, "--use_cpu"]) == 0
        found[file] = capsysbinary.readouterr().out
    for data_set in ("splits", "files"):
        assert main([str(model), "--dataset_name", data_set, "--use_cpu"]) == 0
        found[data_set] = capsysbinary.readouterr().out
    assert len(set(found.values())) == 1
    first, second, *_ = found["rows"].decode().splitlines()
    assert first == "id,prediction,confidence" and second.startswith("test-0,")
    assert main([str(model), "--dataset_name", "splits", "--split_name", "tset"]) == 2
    assert b"--split_name tset: splits has train, test. Did you mean 'test'?" in capsysbinary.readouterr().err


def test_lines_come_in_and_rows_go_out_and_nothing_else(model, work):
    words = [sys.executable, *PREDICT, str(model), "-", "--format=jsonl", "--top_k=2", "--use_cpu"]
    options = {"cwd": work, "capture_output": True, "env": os.environ | {"OMP_NUM_THREADS": "1"}}
    done = subprocess.run(words, input=b"red dog\r\nblue cat\n", check=False, **options)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["id"] for row in rows] == [0, 1]
    assert rows[0]["prediction"] == rows[0]["top_1"] and rows[0]["confidence"] == rows[0]["top_1_score"]
    assert b"rows/s" in done.stderr


@pytest.mark.parametrize("format", ["csv", pytest.param("parquet", marks=pytest.mark.slow)])
def test_a_pipe_whose_reader_is_gone_ends_it_quietly(model, work, format):
    words = [sys.executable, *PREDICT, str(model), "test.csv", f"--format={format}", "--use_cpu", "--disable_tqdm"]
    process = subprocess.Popen(words, cwd=work, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    error = process.stderr.read().decode()
    assert (process.wait(), error) == (READER_GONE, "")


WRONG = [
    (["model"], "expected files of rows (or - for the standard input) or --dataset_name, found neither."),
    (["model", "a.csv", "--dataset_name=d"], "found both."),
    (["model", "a.csv", "-"], "expected either files or -, the standard input, found both."),
    (["model", "a.csv", "--ouput=x.csv"], "unknown flag --ouput=x.csv. Did you mean '--output'? See --help."),
    (["model", "a.csv", "--output=x.txt"], "--output x.txt must end in .csv, .jsonl, .parquet; or name a --format."),
    (["model", "a.csv", "--output=x.csv", "--format=jsonl"], "contradict each other. Name one."),
    (["model", "a.csv", "--resume"], "--resume is about a file; name it with --output."),
    (["model", "-", "--output=x.csv", "--resume"], "--resume reads the rows again, and the standard input has none"),
    (["model", "a.csv", "--shard=4/3", "--output=x"], "--shard 4/3: expected a shard and their number, such as 3/16."),
    (["model", "a.csv", "--shard=1/3"], "several processes or shards write a file each; name their folder"),
    (["model", "a.csv", "--shard=1/3", "--output=x.csv"], "several processes or shards write Parquet: name a folder"),
    (["model", "a.csv", "--top_k=0"], "--top_k must be 1 or more, got 0."),
    (["model", "test.csv", "--top_k=4"], "expected --top_k of at most 3, the model's labels, found 4."),
    (["model", "a.csv", "--raw_csv", "--format=jsonl"], "--raw_csv is about the format csv."),
    (["model", "none.csv"], "expected a file of rows, found nothing at none.csv."),
    (["model", "test.csv", "--text_column_names=txet"], "test.csv: expected a column 'txet', found text,"),
    (["model", "pairs-test.csv"], "model reads one text a row, found pairs (sentence1, sentence2)."),
    (["model", "test.csv", "--output=test.csv/x.csv"], "test.csv/x.csv.part cannot be written: "),
]


@pytest.mark.parametrize(("words", "message"), WRONG, ids=[" ".join(words) for words, _ in WRONG])
def test_wrong_input_ends_with_status_2_and_one_line(model, work, monkeypatch, capsys, words, message):
    monkeypatch.chdir(work)
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert message in error


def test_each_command_has_a_console_script():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    scripts = dict(line.split(" = ") for line in parser["options.entry_points"]["console_scripts"].split("\n") if line)
    assert set(scripts) == {f"lstmpool-{verb}" for verb in ("train", "predict", "compare", "export", "publish")}
    for place in scripts.values():
        module, _, name = place.partition(":")
        assert callable(getattr(importlib.import_module(module), name))


@pytest.mark.parametrize("name", ["train", "predict", "compare", "export", "publish"])
def test_help_costs_little(name, tmp_path):
    places = {"train": "lstmpool.train_trainer", "publish": "lstmpool.training.publish"}
    module = places.get(name, f"lstmpool.{name}")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = run_python("-c", f"import sys; from {module} import main; sys.exit(main())", "--help", cwd=tmp_path)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0 and "usage: " in done.stdout
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.5


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_processes_of_a_launcher_write_one_table(model, work, launcher):
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    if launcher == "accelerate":
        launch = "-m accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1".split()
        launch += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    done = run_python(*launch, *PREDICT, "model", "test.csv", f"--output={launcher}", "--use_cpu", cwd=work)
    assert done.returncode == 0, done.stderr[-2000:]
    table = pyarrow.dataset.dataset(work / launcher).to_table().to_pandas()
    assert sorted(table["id"]) == sorted(pandas.read_csv(work / "test.csv")["key"])


MEASURED = """
import resource, sys
from lstmpool.predict import main
assert main(sys.argv[1:]) == 0
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_rows(model, work):
    memory = []
    for rows in (2_000, 200_000):
        write_csv(work / "many.csv", {"text": sentences(rows)})
        words = ["model", "many.csv", "--output=many_predicted.csv", "--overwrite", "--use_cpu", "--disable_tqdm"]
        done = run_python("-c", MEASURED, *words, cwd=work)
        assert done.returncode == 0, done.stderr
        memory.append(float(done.stdout))
    with open(work / "many_predicted.csv", encoding="utf-8") as lines:
        assert sum(1 for _ in lines) == 200_001
    assert memory[1] - memory[0] < 150


LONG = " ".join(WORDS[i % len(WORDS)] for i in range(5000))
TEXTS = ["cat", "red dog one", " ".join(WORDS[:12]), "moon " * 40, LONG]
APART = ["--text_column_names=text,other", "--pair_encoding=apart", "--linear_skip=True", "--learning_rate=0.01"]
TASKS = {
    "one label": ["--label_column_name=label"],
    "several labels": ["--label_column_name=labels"],
    "one number": ["--label_column_name=price"],
    "several numbers": ["--label_column_name=price,weight"],
    "pairs": ["--label_column_name=label", "--text_column_names=text,other"],
    "pairs apart": ["--label_column_name=label", "--calibrate=temperature", *APART],
    "one number of pairs apart": ["--label_column_name=price", *APART],
    "pairs apart, frozen": ["--label_column_name=label", "--freeze_backbone", *APART],
    "adapter": ["--label_column_name=label", "--peft=lora"],
    "adapter of pairs apart": ["--label_column_name=label", "--peft=lora", *APART],
}


@pytest.fixture(scope="module")
def odd_lengths(tmp_path_factory):
    """A backbone, and rows; the test rows are short, cut, and far longer than the backbone can read."""
    folder = tmp_path_factory.mktemp("odd_lengths")
    save_backbone(folder / "backbone")
    for split, texts in (("train", sentences(24)), ("validation", sentences(9)), ("test", TEXTS)):
        rows = range(len(texts))
        columns = {
            "text": texts,
            "other": texts[::-1],
            "label": [("no", "yes", 'it\'s "odd"')[i % 3] for i in rows],
            "labels": [("one", "one two", "two")[i % 3] for i in rows],
            "price": [f"{20_000 + 1_000 * (i % 4) + 0.5}" for i in rows],
            "weight": [f"{0.001 * (i % 4) + 0.0005}" for i in rows],
        }
        write_csv(folder / f"{split}.csv", columns)
    return folder


def answers(lines):
    """For each of `TEXTS`, the score of each label that the lines give."""
    space = {}
    with contextlib.redirect_stdout(io.StringIO()):
        exec("\n".join(lines), space)
    pair = '"text_pair"' in lines[-1]
    found = []
    for text, other in zip(TEXTS, TEXTS[::-1], strict=True):
        given = space["classifier"]({"text": text, "text_pair": other} if pair else text)
        given = given[0] if isinstance(given, list) and isinstance(given[0], list) else given
        found.append({entry["label"]: entry["score"] for entry in (given if isinstance(given, list) else [given])})
    return found


def table(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


QUICK = ("one label", "several labels", "one number", "pairs", "one number of pairs apart")
SLOW = [pytest.param(task, marks=pytest.mark.slow) for task in TASKS if task not in QUICK]


@pytest.mark.parametrize("task", [*QUICK, *SLOW])
def test_the_lines_give_the_answers_of_the_table(odd_lengths, monkeypatch, capsys, task):
    output = f"out of {task}"
    monkeypatch.chdir(odd_lengths)
    settings = ["--backbone=backbone", "--lstm_hidden_size=4", "--use_cpu", "--num_train_epochs=1"]
    settings += ["--head_learning_rate=0.1", "--max_seq_length=8", "--report_to=none", "--disable_tqdm=True"]
    files = [f"--{split}_file={split}.csv" for split in ("train", "validation", "test")]
    assert train([*settings, *files, *TASKS[task], f"--output_dir={output}"]) == 0
    printed = capsys.readouterr().out.split("these lines load it:\n\n")[1].splitlines()
    card = (odd_lengths / output / "README.md").read_text(encoding="utf-8")
    (in_card,) = re.findall(r"^```python\n(.*?)\n```$", card, re.DOTALL | re.MULTILINE)
    rows = table(odd_lengths / output / "test_predictions.csv")
    for lines in (printed, in_card.splitlines()):
        for row, scores in zip(rows, answers(lines), strict=True):
            compare(row, scores, task)


def compare(row, scores, task):
    if task.startswith("one number"):
        assert list(scores.values()) == pytest.approx([float(row["prediction"])], rel=1e-5)
        return
    column = "prediction_" if task == "several numbers" else "score_"
    assert {f"{column}{name}" for name in scores} <= set(row)
    assert scores == pytest.approx({name: float(row[f"{column}{name}"]) for name in scores}, rel=1e-5)
    if task == "several labels":
        assert "|".join(name for name in ("one", "two") if scores[name] > 0.5) == row["prediction"]
    elif task != "several numbers":
        assert list(scores) == [row["prediction"]]


@pytest.mark.parametrize(
    ("trained_on", "columns", "message"),
    [
        (
            2,
            "text",
            "new.csv: expected two texts a row, since --init_from joint was trained on pairs, found one.",
        ),
        (1, "text,other", "new.csv: expected one text a row, since --init_from joint was trained on single texts"),
        (2, "text,other", ""),
        (1, "text", ""),
        (None, "text", ""),  # an earlier release has not noted it
    ],
)
def test_a_finished_model_is_given_rows_like_those_that_it_was_trained_on(
    odd_lengths, monkeypatch, capsys, trained_on, columns, message
):
    """Also where its config does not tell: a pair that is read as one text."""
    monkeypatch.chdir(odd_lengths)
    tiny_model(id2label={0: "no", 1: "yes"}).config.save_pretrained("joint")  # whose weights are missing
    AutoTokenizer.from_pretrained("backbone").save_pretrained("joint")
    write_csv(odd_lengths / "new.csv", {"text": ["dog", "cat"], "other": ["sun", "moon"]})
    data = {"train": {} if trained_on is None else {"texts_a_row": trained_on}}
    (odd_lengths / "joint" / "metrics.json").write_text(json.dumps({"data": data}))
    words = ["--init_from=joint", "--use_cpu", "--test_file=new.csv", f"--text_column_names={columns}"]
    assert train([*words, "--output_dir=refused"]) == 2
    assert (message or "its weights cannot be loaded") in capsys.readouterr().err
    assert not (odd_lengths / "refused").exists()


@pytest.mark.parametrize("source", ["--backbone=backbone", "--init_from=pairs"])
def test_pairs_apart_of_single_texts_are_refused_before_any_weights_are_read(odd_lengths, monkeypatch, capsys, source):
    monkeypatch.chdir(odd_lengths)
    words = [source, "--use_cpu", "--train_file=train.csv", "--label_column_name=label", "--output_dir=refused"]
    if source.startswith("--backbone"):
        words.append("--pair_encoding=apart")
    else:
        template = {"prefix": [2], "middle": [3], "suffix": [3]}
        tiny_model(pair_encoding="apart", pair_template=template).config.save_pretrained("pairs")
        AutoTokenizer.from_pretrained("backbone").save_pretrained("pairs")
        words += ["--text_column_names=text"]
    assert train(words) == 2
    assert "train.csv: expected two texts a row" in capsys.readouterr().err
    assert not (odd_lengths / "refused").exists()
