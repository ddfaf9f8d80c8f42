"""Thousands of labels: no table is of size labels x labels, and a row's labels take a byte each."""

import json
import tracemalloc
from contextlib import contextmanager
from functools import partial

import numpy as np
import pytest
from datasets import Dataset
from scipy.special import softmax
from sklearn.metrics import f1_score, matthews_corrcoef

from lstmpool import train_trainer
from lstmpool.training.data.holdout import hold_out
from lstmpool.training.data.order import Tokens, by_length
from lstmpool.training.data.rows import Split
from lstmpool.training.data.summary import remarks
from lstmpool.training.evaluation.calibration import fit_temperature, probability_metrics
from lstmpool.training.evaluation.results import Evaluation
from lstmpool.training.flags.arguments import TrainingFields
from lstmpool.training.output.artifacts import plots_of, predictions_of
from lstmpool.training.tasks.multi_label import LabelTable, MultiLabel
from lstmpool.training.tasks.single_label import SingleLabel

from ..training_fixtures import ROOT, run_python, save_backbone, sentences, write_csv


@contextmanager
def memory_below(megabytes):
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < megabytes * 1e6, f"{peak / 1e6:.1f} MB"


def test_one_label_of_many_takes_no_table_of_pairs(tmp_path):
    """3,000 labels, of which a table of pairs takes 72 MB, and the logits of 60 rows 1.4 MB."""
    task = SingleLabel([f"label {i}" for i in range(3000)])
    logits, labels = np.random.default_rng(0).normal(size=(60, 3000)), np.arange(60) * 7
    rows = Split("x.csv", sentences(60), None, labels.tolist(), list(range(60)))
    with memory_below(12):
        evaluation = Evaluation.of(task, {"test": logits}, {"test": labels}, {"temperature": 2.0})
        fit_temperature(task, logits, labels)
        plots = plots_of(evaluation, [])
        predictions_of(evaluation, {"test": rows}, TrainingFields())["test_predictions.csv"](tmp_path / "table.csv")
        remarks({"train": rows, "validation": rows}, task, weighted=False)
    assert set(plots) == {"reliability.png"}
    head, first, *_ = (tmp_path / "table.csv").read_text().splitlines()
    assert head == "id,score,prediction,label"
    assert first.endswith(f",label {logits[0].argmax()},label 0")
    assert float(first.split(",")[1]) == pytest.approx(softmax(logits[0]).max())


def test_several_labels_of_many_take_a_byte_a_cell(tmp_path):
    """2,000 rows of 300 labels: 0.6 MB as bytes, 4.8 MB as numbers, 19 MB as lists of floats."""
    task, generator = MultiLabel([f"l{i}" for i in range(300)], separator="|"), np.random.default_rng(0)
    cells = ["|".join(f"l{i}" for i in row) for row in generator.integers(300, size=(2000, 3))]
    texts, ids = [f"text {i}" for i in range(2000)], list(range(2000))
    logits = generator.normal(size=(2000, 300)).astype(np.float32)
    with memory_below(9):
        split = Split("x.csv", texts, None, task.encode({"label": cells}, "x.csv"), ids)
        train, held = hold_out(split, task, 0.5, seed=0)
        remarks({"train": train, "validation": held}, task, weighted=False)
        task.indicators(train.labels, np.arange(len(train)) // 2, folds=3)
    tokens = Tokens(Dataset.from_dict({"input_ids": [[1] * (1 + i % 5) for i in ids]}), 0.0)
    with memory_below(4):
        ordered, order = by_length(tokens.with_labels(split.labels))
    assert ordered[0]["labels"] == split.labels[int(order[0])]
    targets = np.asarray(split.labels)
    with memory_below(90):  # blocks of 2^22 numbers in float64, and what they are computed from
        task.score(task.decide(logits), targets)
        task.interval(task.decide(logits), targets)
        probability_metrics(task, logits, targets)


def test_a_table_of_labels_reads_like_lists():
    table = LabelTable(np.array([[1, 0], [0, 1], [1, 1]], dtype=np.uint8))
    assert table == [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]] and table != [[1.0, 0.0]] and table != [[1.0, 0.0]] * 3
    assert len(table) == 3 and list(table)[1] == [0.0, 1.0] and repr(table[1]) == "[0.0, 1.0]"
    assert table[[2, 0]] == [[1.0, 1.0], [1.0, 0.0]] and np.asarray(table).dtype == np.uint8
    rows = Tokens(Dataset.from_dict({"input_ids": [[1], [2], [3], [4]]}), 0.0, chosen=[3, 1, 0]).with_labels(table)
    assert [rows[i]["labels"] for i in (3, 1, 0)] == [[1, 0], [0, 1], [1, 1]]


def test_the_metrics_are_those_of_the_library():
    generator = np.random.default_rng(0)
    for classes in (2, 5, 40):
        true, predicted = generator.integers(classes, size=(2, 90))
        found = SingleLabel([str(i) for i in range(classes)]).score(predicted, true)
        by_library = partial(f1_score, true, predicted, zero_division=0)
        assert found["f1_macro"] == pytest.approx(by_library(average="macro"))
        assert found["f1_weighted"] == pytest.approx(by_library(average="weighted"))
        assert found["matthews_correlation"] == pytest.approx(matthews_corrcoef(true, predicted))
        true, predicted = generator.integers(2, size=(2, 9, classes))
        found = MultiLabel([str(i) for i in range(classes)]).score(predicted, true)
        for average in ("micro", "macro"):
            assert found[f"f1_{average}"] == pytest.approx(f1_score(true, predicted, average=average, zero_division=0))
    one_class = SingleLabel(["a", "b"]).score(np.zeros(4, dtype=int), np.zeros(4, dtype=int))
    assert one_class["matthews_correlation"] == 0 and one_class["f1_macro"] == 1


def test_sums_over_blocks_are_those_over_all_rows(monkeypatch):
    logits, labels = np.random.default_rng(0).normal(size=(7, 3)), np.array([0, 1, 2, 0, 1, 2, 0])
    several = (logits > 0.5).astype(np.uint8)[::-1]
    whole = [probability_metrics(SingleLabel(list("abc")), logits, labels)]
    whole.append(probability_metrics(MultiLabel(list("abc")), logits, several))
    strata = MultiLabel(list("abc")).strata(several)
    monkeypatch.setattr("lstmpool.training.tasks.task.BLOCK", 6)  # two rows at a time
    assert probability_metrics(SingleLabel(list("abc")), logits, labels) == pytest.approx(whole[0])
    assert probability_metrics(MultiLabel(list("abc")), logits, several) == pytest.approx(whole[1])
    assert MultiLabel(list("abc")).strata(several) == strata


def test_of_many_labels_the_scores_of_those_given_are_told():
    task = MultiLabel([f"l{i}" for i in range(1001)])
    logits = np.full((2, 1001), -1.0)
    logits[0, [3, 1000]] = [np.log(3), 0.5]
    columns = task.prediction_columns(logits)
    assert columns == {"score": ["0.75|0.622459", ""], "prediction": ["l3|l1000", ""]}


def test_of_many_labels_no_linear_baseline_is_fitted(tmp_path, capsys):
    save_backbone(tmp_path)
    rows = write_csv(tmp_path / "rows.csv", {"text": sentences(1001), "label": [f"l{i}" for i in range(1001)]})
    words = ["--backbone", str(tmp_path), "--train_file", str(rows), "--validation_size", "0", "--max_steps", "1"]
    assert train_trainer.main([*words, "--output_dir", str(tmp_path / "out"), "--lstm_hidden_size", "4"]) == 0
    assert "No linear baseline: it is for up to 1000 outputs, found 1001." in capsys.readouterr().out


# --------------------------------------------------------------------------------------------------------- the command
PROGRAM = """
import resource, sys
from lstmpool import train_trainer
status = train_trainer.main(sys.argv[1:])
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1000)
sys.exit(status)
"""


def run(folder, rows, *flags):
    """The peak of the memory, in MB, of a command that trains for two steps."""
    save_backbone(folder)
    with (folder / "rows.jsonl").open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    words = [
        "--backbone",
        str(folder),
        "--train_file",
        str(folder / "rows.jsonl"),
        "--output_dir",
        str(folder / "out"),
    ]
    words += ["--max_steps", "2", "--lstm_hidden_size", "8", *flags]
    done = run_python("-c", PROGRAM, *words, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    return int(done.stdout.split("peak ")[1])


@pytest.mark.slow
def test_20000_rows_of_3000_labels_take_less_than_a_gigabyte(tmp_path):
    labels = np.random.default_rng(0).integers(3000, size=(20_000, 3)).tolist()
    rows = [{"text": f"alpha beta {i}", "label": [f"l{j}" for j in row]} for i, row in enumerate(labels)]
    assert run(tmp_path, rows) < 1000


@pytest.mark.slow
def test_a_run_of_50000_labels_ends(tmp_path):
    rows = [{"text": f"alpha beta {i}", "label": f"label {i % 50_000}"} for i in range(100_000)]
    flags = ["--max_eval_samples", "500", "--test_file", str(tmp_path / "rows.jsonl"), "--max_predict_samples", "200"]
    assert run(tmp_path, rows, *flags, "--calibrate", "temperature") < 2500
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert len(metrics["data"]["train"]["labels"]) == 50_000
    card = (tmp_path / "out" / "README.md").read_text()
    assert "and 49800 more, which config.json names" in card and len(card) < 20_000


@pytest.mark.slow
def test_200000_rows_take_less_than_900_megabytes(tmp_path):
    rows = [{"text": f"alpha beta gamma delta {i}", "label": "abcd"[i % 4]} for i in range(200_000)]
    assert run(tmp_path, rows, "--max_eval_samples", "500") < 900
