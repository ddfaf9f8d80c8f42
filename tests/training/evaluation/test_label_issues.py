"""Rows that look mislabelled: which are found, by whom they are judged, and what a run with the flag leaves."""

import csv
import json
import warnings
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pandas
import pytest
import torch
from cleanlab import multilabel_classification
from sklearn.linear_model import LogisticRegression

from lstmpool.fields_lstmpool import SINGLE
from lstmpool.train_trainer import main
from lstmpool.training.data.rows import Split
from lstmpool.training.evaluation.label_issues import find_issues, linear_issues
from lstmpool.training.hub.folder import choose_files
from lstmpool.training.model import layer_cache, linear_start
from lstmpool.training.model.linear_start import LinearStart, logits_without, summed_loss
from lstmpool.training.output.run_record import RunRecord
from lstmpool.training.runs import baseline, finish
from lstmpool.training.runs.baseline import judge_labels
from lstmpool.training.tasks.multi_label import MultiLabel
from lstmpool.training.tasks.single_label import SingleLabel

from ...training_fixtures import save_backbone, sentences, task_of, write_csv


def logits_of(*rows):
    """Logits of these probabilities of classes."""
    return np.log(np.array(rows))


def odds(*rows):
    """Logits of these probabilities of labels, each by itself."""
    scores = np.array(rows)
    return np.log(scores / (1 - scores))


# ------------------------------------------------------------------------------------------------------------- finding
FIRST, SECOND = [0.9, 0.1], [0.2, 0.8]


def test_rows_whose_label_the_model_doubts_are_listed_the_least_likely_first():
    logits = logits_of(*[SECOND] * 5, *[FIRST] * 5)
    labels = np.array([1, 1, 1, 0, 1, 0, 0, 1, 0, 0])  # row 3 has 0.2 for its label, and row 7 has 0.1
    issues = find_issues(task_of(SingleLabel, 2), logits, labels, np.arange(10) % 5)
    assert issues.rows.tolist() == [7, 3] and issues.suggested.tolist() == [0, 1]
    np.testing.assert_allclose(issues.quality, [0.1, 0.2])
    assert (issues.judged, issues.total) == (10, 10)
    drawn = find_issues(task_of(SingleLabel, 2), logits, labels, np.arange(10) % 5, rows=np.arange(0, 40, 4), total=50)
    assert drawn.rows.tolist() == [28, 12]
    assert drawn.record() == {"found": 2, "judged": 10, "rows": 50, "judged_by": "the model of its fold"}


def test_of_equal_rows_the_first_stands_first():
    logits = logits_of(*[FIRST] * 40, *[SECOND] * 40)
    labels = np.repeat([0, 1], 40)
    labels[[31, 3, 17]] = 1
    assert find_issues(task_of(SingleLabel, 2), logits, labels, np.arange(80) % 5).rows.tolist() == [3, 17, 31]


def test_a_label_that_no_other_fold_has_is_not_judged():
    """To its model it is as good as impossible, whatever the text."""
    task = task_of(SingleLabel, 3)
    logits = logits_of(*[[0.9, 0.09, 0.01]] * 5, *[[0.1, 0.89, 0.01]] * 5, [0.97, 0.02, 0.01], [0.97, 0.02, 0.01])
    labels = np.array([0] * 5 + [1] * 5 + [2, 2])
    alone = find_issues(task, logits, labels, np.array([0, 1] * 5 + [0, 0]))
    assert (len(alone.rows), alone.judged, alone.total) == (0, 10, 12)
    spread = find_issues(task, logits, labels, np.array([0, 1] * 5 + [0, 1]))
    assert spread.judged == 12 and 10 in spread.rows


def test_of_several_labels_each_is_judged():
    task = task_of(MultiLabel, 4)
    labels = np.array([[1, 0, 1, 0]] * 6 + [[0, 1, 1, 0]] * 6, dtype=np.uint8)  # all have c, none has d
    scores = np.array([[0.9, 0.1, 0.5, 0.5]] * 6 + [[0.1, 0.9, 0.5, 0.5]] * 6)
    labels[2, 0], labels[8, 0] = 0, 1
    scores[2, 0], scores[8, 0] = 0.95, 0.08
    issues = find_issues(task, odds(*scores), labels, np.arange(12) % 3)
    assert issues.rows.tolist() == [2, 8] and issues.judged == 12
    assert task.label_columns(issues.suggested)["label"] == ["a", "b"]
    # the least likely decision, whatever the row's others; what all rows have alike, c and d, does not count
    np.testing.assert_allclose(issues.quality, [0.05, 0.08])
    labels[5, 3] = 1  # the only row with d, which the other folds' models have not seen
    assert find_issues(task, odds(*scores), labels, np.arange(12) % 3).judged == 11


def test_of_several_labels_a_row_is_listed_only_where_the_model_is_sure_of_the_contrary():
    """Cleanlab alone would list row 8, too: with labels that are hard to tell, that is most rows."""
    task = task_of(MultiLabel, 2)
    labels = np.array([[1, 0]] * 6 + [[0, 1]] * 6)
    scores = np.array([[0.9, 0.1]] * 6 + [[0.1, 0.9]] * 6)
    labels[2, 0], labels[8, 0] = 0, 1
    scores[2, 0], scores[8, 0] = 0.95, 0.2
    given = [np.flatnonzero(row).tolist() for row in labels]
    assert np.flatnonzero(multilabel_classification.filter.find_label_issues(given, scores)).tolist() == [2, 8]
    assert find_issues(task, odds(*scores), labels, np.arange(12) % 3).rows.tolist() == [2]
    scores[8, 0] = 0.09
    assert find_issues(task, odds(*scores), labels, np.arange(12) % 3).rows.tolist() == [2, 8]


@pytest.mark.parametrize("dtype", [np.uint8, float])
def test_of_several_labels_one_may_be_the_only_one_that_tells_rows_apart(dtype):
    task = task_of(MultiLabel, 3)
    labels = np.array([[1, 1, 0]] * 6 + [[0, 1, 0]] * 6, dtype=dtype)  # all have b, none has c
    scores = np.array([[0.9, 0.5, 0.5]] * 6 + [[0.1, 0.5, 0.5]] * 6)
    labels[2, 0], labels[8, 0] = 0, 1
    scores[2, 0], scores[8, 0] = 0.95, 0.08
    issues = find_issues(task, odds(*scores), labels, np.arange(12) % 3)
    assert issues.rows.tolist() == [2, 8] and issues.judged == 12
    np.testing.assert_allclose(issues.quality, [0.05, 0.08])


@pytest.mark.parametrize(
    ("labels", "fold_of"),
    [([0, 0, 0], [0, 1, 2]), ([0, 1], [0, 1]), ([0, 1, 2], [0, 0, 0]), ([2], [0]), ([0, 1, 1], [0, 1, 2])],
)
def test_where_nothing_can_be_compared_nothing_is_found(labels, fold_of):
    logits = np.zeros((len(labels), 3))
    assert len(find_issues(task_of(SingleLabel), logits, np.array(labels), np.array(fold_of)).rows) == 0
    several = np.eye(3, dtype=np.uint8)[labels]
    assert len(find_issues(task_of(MultiLabel), logits, several, np.array(fold_of)).rows) == 0
    assert len(find_issues(task_of(MultiLabel), logits, several * 0, np.array(fold_of)).rows) == 0


def test_cleanlab_says_nothing_itself(capfd):
    rng = np.random.default_rng(0)
    several = (rng.random((60, 9)) < 0.2).astype(np.uint8)
    several[:, 7:] = 0
    several[0, 7] = several[1, 7] = several[1, 8] = 1  # row 1 is not judged, and then one row has label 7
    given = {SingleLabel: rng.integers(9, size=60), MultiLabel: several}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for kind, labels in given.items():
            assert len(find_issues(task_of(kind, 9), rng.normal(size=(60, 9)), labels, np.arange(60) % 5).rows)
    assert capfd.readouterr() == ("", "")


# ------------------------------------------------------------------------------------------------------------- judging
def states_of(labels, width=6, seed=0):
    """Layer states (N, 2, width) of noise; each label is in a feature of its own."""
    states = np.random.default_rng(seed).normal(size=(len(labels), 2, width)).astype(np.float32)
    states[np.arange(len(labels)), :, labels] += 5
    return states


def chosen(layers="all", strength=0.1, outputs=2):
    nothing = torch.zeros(outputs)
    return LinearStart(nothing, nothing, nothing, nothing, layers, strength, np.zeros(0), np.zeros(0))


@pytest.mark.parametrize(("layers", "width"), [("all", 4), ("all", 40), ("top", 4)])
def test_each_row_is_judged_by_the_logistic_regression_of_the_other_folds(layers, width):
    labels = np.arange(40) % 2
    states, fold_of = states_of(labels, width), np.arange(40) // 2 % 4
    found = logits_without(fold_of, states, labels, chosen(layers), summed_loss(SINGLE))
    flat = (states if layers == "all" else states[:, -1]).reshape(40, -1)
    flat = (flat - flat.mean(0)) / flat.std(0)
    for fold in range(4):
        held = fold_of == fold
        # the weights of two classes share the penalty on their difference, so C counts twice
        by_hand = LogisticRegression(C=2 * 0.1, tol=1e-8, max_iter=1000).fit(flat[~held], labels[~held])
        np.testing.assert_allclose(found[held, 1] - found[held, 0], by_hand.decision_function(flat[held]), atol=0.02)
    changed = labels.copy()
    changed[0] = 1  # which its own judge cannot see, and others do
    again = logits_without(fold_of, states, changed, chosen(layers), summed_loss(SINGLE))
    own = fold_of == fold_of[0]
    np.testing.assert_array_equal(again[own], found[own])
    assert not np.allclose(again[~own], found[~own])


def test_a_fold_that_is_all_there_is_has_no_judge():
    labels = np.array([0, 1, 0])
    assert not logits_without(np.zeros(3), states_of(labels), labels, chosen(), summed_loss(SINGLE)).any()


@pytest.fixture
def little(monkeypatch):
    """Little is tried by linear models."""
    monkeypatch.setattr(linear_start, "STRENGTHS", np.array([0.1]))
    monkeypatch.setattr(linear_start, "MOST_ITERATIONS", 20)


def test_changed_labels_are_found_and_rows_of_a_unit_stay_together(little):
    labels = np.arange(90) % 3
    states = states_of(labels, seed=1)
    labels[[7, 30]] = [2, 1]
    units = np.arange(90)
    units[[1, 5, 7]] = 1  # a row of another label, too
    task = task_of(SingleLabel)
    logits, fold_of = linear_issues(task, states, labels, units, seed=0)
    assert len(set(fold_of[[1, 5, 7]])) == 1 and np.bincount(fold_of).min() >= 16
    issues = find_issues(task, logits, labels, fold_of)
    assert sorted(issues.rows) == [7, 30]
    again, same_folds = linear_issues(task, states, labels, units, seed=0)
    assert np.array_equal(again, logits) and np.array_equal(same_folds, fold_of)


@pytest.mark.parametrize("kind", [SingleLabel, MultiLabel])
@pytest.mark.parametrize("labels", [[0], [0, 1], [0, 1, 2], [0, 0, 0, 1], [0, 0, 0], [0, 1, 1, 2, 2, 2, 2]])
def test_few_rows_are_judged_as_far_as_they_go(little, kind, labels):
    given = np.array(labels) if kind is SingleLabel else np.eye(3, dtype=np.uint8)[labels]
    task = task_of(kind)
    logits, fold_of = linear_issues(task, states_of(labels), given, np.arange(len(labels)), seed=0)
    issues = find_issues(task, logits, given, fold_of)
    counts = Counter(labels)
    assert issues.judged == sum(counts[label] > 1 for label in labels)
    assert np.isfinite(logits).all() and len(issues.rows) <= issues.judged


def test_a_row_that_nobody_can_judge_is_not_told_as_judged(little, monkeypatch, capsys):
    labels = [0, 0, 0, 1, 1, 1, 2]
    train = Split(ids=list("abcdefg"), texts=list("abcdefg"), pairs=None, labels=labels, source="")
    monkeypatch.setattr(baseline, "read_states", lambda state: (states_of(labels), np.arange(7)))
    job = SimpleNamespace(splits={"train": train}, task=task_of(SingleLabel))
    state = SimpleNamespace(job=job, args=SimpleNamespace(seed=0), is_first_process=True)
    judge_labels(state)
    assert capsys.readouterr().out.startswith("Labels: 6 of 7 training rows judged by ")
    assert state.label_issues.judged == 6


# --------------------------------------------------------------------------------------------------------------- runs
WORDS = ["--backbone=backbone", "--train_file=train.csv", "--validation_file=validation.csv", "--use_cpu"]
WORDS += ["--lstm_hidden_size=4", "--report_to=none", "--disable_tqdm=True", "--bf16=False", "--baselines=False"]
WORDS += ["--max_steps=4", "--eval_strategy=steps", "--eval_steps=2", "--save_steps=2", "--save_total_limit=9"]
TURNED = (5, 20)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    save_backbone(folder / "backbone")
    for split, n in (("train", 32), ("validation", 12)):
        labels = ["yes" if i % 16 < 8 else "no" for i in range(n)]
        for i in TURNED if split == "train" else ():
            labels[i] = {"yes": "no", "no": "yes"}[labels[i]]
        texts = [f"{text} {split}" for text in sentences(n)]
        write_csv(folder / f"{split}.csv", {"text": texts, "label": labels, "key": [f"={i}" for i in range(n)]})
    return folder


@pytest.fixture
def work(data, tmp_path, monkeypatch, little):
    for path in data.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(layer_cache, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(finish, "plots_of", lambda *args: {})
    return tmp_path


def run(*words, output="out"):
    assert main([*WORDS, *words, f"--output_dir={output}"]) == 0


def listed(folder):
    with (folder / "label_issues.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def metrics_of(folder):
    return json.loads((folder / "metrics.json").read_text())


@pytest.mark.parametrize("words", [[], ["--stages=one", "--freeze_backbone"]], ids=["two stages", "one, frozen"])
def test_the_flag_changes_no_weights_and_leaves_a_private_list(work, capsys, words):
    run(*words, output="plain")
    capsys.readouterr()
    run(*words, "--find_label_issues", "--id_column_name=key")
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Labels: ")]
    out = work / "out"
    assert (out / "model.safetensors").read_bytes() == (work / "plain" / "model.safetensors").read_bytes()
    assert not (work / "plain" / "label_issues.csv").exists()
    rows, numbers = listed(out), metrics_of(out).pop("label_issues")
    assert (numbers["found"], numbers["judged"], numbers["rows"]) == (len(rows), 32, 32)
    assert metrics_of(out)["results"] == metrics_of(work / "plain")["results"]
    assert said[0].startswith(
        "Labels: 32 of 32 training rows judged by a linear model of the backbone's layers before "
    )
    assert said[1].startswith(f"Labels: {len(rows)} of 32 training rows look mislabelled, by a linear model")
    assert len(said) == 2
    assert list(rows[0]) == ["id", "text", "label", "suggested", "quality"]
    assert rows[0]["id"].startswith("'=") and all(row["label"] != row["suggested"] for row in rows)
    names, left_out = choose_files(out)
    assert "label_issues.csv" in left_out and "label_issues.csv" not in names


def test_texts_that_were_compared_do_not_judge_and_a_run_that_goes_on_lists_the_same(work):
    run("--find_label_issues")
    expected, folder = listed(work / "out"), work / "compared"
    run("--find_label_issues", "--contrastive_steps=3", "--learning_rate=0.05", output="compared")
    assert listed(folder) == expected
    weights, metrics = (folder / "model.safetensors").read_bytes(), (folder / "metrics.json").read_text()
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(record | {"finished": False}))
    for name in ("model.safetensors", "metrics.json", "label_issues.csv"):
        (folder / name).unlink()
    run("--find_label_issues", "--contrastive_steps=3", "--learning_rate=0.05", output="compared")
    assert listed(folder) == expected and (folder / "metrics.json").read_text() == metrics
    assert (folder / "model.safetensors").read_bytes() == weights and RunRecord.read(folder).finished


def test_folds_judge_their_own_rows(work, capsys):
    words = [word for word in WORDS if not word.startswith("--validation_file")]
    words += ["--cv_folds=2", "--freeze_backbone", "--find_label_issues", "--output_dir=out"]
    assert main(words) == 0
    out = work / "out"
    table, rows = pandas.read_parquet(out / "oof.parquet"), listed(out)
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Labels: ")]
    assert said == [
        f"Labels: {len(rows)} of 32 training rows look mislabelled, by the model of its fold, which was fitted "
        "without the row. label_issues.csv lists them, the least likely label first."
    ]
    scores = table.set_index("id")
    for row in rows:
        own = scores.loc[int(row["id"])]
        assert float(row["quality"]) == pytest.approx(own[f"score_{row['label']}"])
        assert row["suggested"] == own["prediction"] != own["label"] == row["label"]
    assert len(rows) == metrics_of(out)["label_issues"]["found"] > 0
    assert not list(out.glob("fold-*/label_issues.csv"))
