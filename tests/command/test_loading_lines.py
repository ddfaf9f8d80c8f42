"""The lines that are printed, and those in the card, give the answers of the table of predictions for every text."""

import contextlib
import csv
import io
import json
import re

import pytest
from transformers import AutoTokenizer

from lstmpool.train_trainer import main

from ..conftest import tiny_model
from ..training_fixtures import WORDS, save_backbone, sentences, write_csv


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
def work(tmp_path_factory):
    """A backbone, and rows; the test rows are short, cut, and far longer than the backbone can read."""
    folder = tmp_path_factory.mktemp("work")
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
def test_the_lines_give_the_answers_of_the_table(work, monkeypatch, capsys, task):
    output = f"out of {task}"
    monkeypatch.chdir(work)
    settings = ["--backbone=backbone", "--lstm_hidden_size=4", "--use_cpu", "--num_train_epochs=1"]
    settings += ["--head_learning_rate=0.1", "--max_seq_length=8", "--report_to=none", "--disable_tqdm=True"]
    files = [f"--{split}_file={split}.csv" for split in ("train", "validation", "test")]
    assert main([*settings, *files, *TASKS[task], f"--output_dir={output}"]) == 0
    printed = capsys.readouterr().out.split("these lines load it:\n\n")[1].splitlines()
    card = (work / output / "README.md").read_text(encoding="utf-8")
    (in_card,) = re.findall(r"^```python\n(.*?)\n```$", card, re.DOTALL | re.MULTILINE)
    rows = table(work / output / "test_predictions.csv")
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
    work, monkeypatch, capsys, trained_on, columns, message
):
    """Also where its config does not tell: a pair that is read as one text."""
    monkeypatch.chdir(work)
    tiny_model(id2label={0: "no", 1: "yes"}).config.save_pretrained("joint")  # whose weights are missing
    AutoTokenizer.from_pretrained("backbone").save_pretrained("joint")
    write_csv(work / "new.csv", {"text": ["dog", "cat"], "other": ["sun", "moon"]})
    data = {"train": {} if trained_on is None else {"texts_a_row": trained_on}}
    (work / "joint" / "metrics.json").write_text(json.dumps({"data": data}))
    words = ["--init_from=joint", "--use_cpu", "--test_file=new.csv", f"--text_column_names={columns}"]
    assert main([*words, "--output_dir=refused"]) == 2
    assert (message or "its weights cannot be loaded") in capsys.readouterr().err
    assert not (work / "refused").exists()


@pytest.mark.parametrize("source", ["--backbone=backbone", "--init_from=pairs"])
def test_pairs_apart_of_single_texts_are_refused_before_any_weights_are_read(work, monkeypatch, capsys, source):
    monkeypatch.chdir(work)
    words = [source, "--use_cpu", "--train_file=train.csv", "--label_column_name=label", "--output_dir=refused"]
    if source.startswith("--backbone"):
        words.append("--pair_encoding=apart")
    else:
        template = {"prefix": [2], "middle": [3], "suffix": [3]}
        tiny_model(pair_encoding="apart", pair_template=template).config.save_pretrained("pairs")
        AutoTokenizer.from_pretrained("backbone").save_pretrained("pairs")
        words += ["--text_column_names=text"]
    assert main(words) == 2
    assert "train.csv: expected two texts a row" in capsys.readouterr().err
    assert not (work / "refused").exists()
