"""`--layer_pooling auto`: what is tried, who chooses, and that a run keeps what was chosen when it began."""

import json
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lstmpool.fields_lstmpool import LAYER_POOLINGS, MULTI, REGRESSION, SINGLE
from lstmpool.train_trainer import main
from lstmpool.training.data.rows import Split
from lstmpool.training.errors import InputError
from lstmpool.training.flags.arguments import ModelArguments
from lstmpool.training.flags.conditions import UNFIT_FOR_AUTO, Flags
from lstmpool.training.flags.rules import AT_ONCE, check
from lstmpool.training.model import layer_cache
from lstmpool.training.model.linear_start import label_tensor, summed_loss
from lstmpool.training.output.terminal import describe_choice
from lstmpool.training.runs import finish, pooling_choice
from lstmpool.training.runs.pooling_choice import (
    SIMPLEST_FIRST,
    Candidate,
    Judge,
    Result,
    Rows,
    candidates_for,
    folds_of,
    try_all,
)
from lstmpool.training.tasks.multi_label import MultiLabel
from lstmpool.training.tasks.regression import Regression
from lstmpool.training.tasks.single_label import SingleLabel
from lstmpool.training.tasks.task import BestBy

from ...conftest import tiny_model
from ...training_fixtures import save_backbone, sentences, task_of, write_csv


ACCURACY = BestBy("accuracy", True)


# ------------------------------------------------------------------------------------------------------- what is tried
def test_each_pooling_and_each_of_the_highest_four_layers_are_tried():
    assert set(SIMPLEST_FIRST) == set(LAYER_POOLINGS)
    found = candidates_for([1, 2, 3, 4, 5, 6])
    assert [of.layers for of in found if of.pooling == "last"] == [(3,), (4,), (5,), (6,)]
    assert {of.pooling: of.layers for of in found[4:]} == dict.fromkeys(SIMPLEST_FIRST[1:], (1, 2, 3, 4, 5, 6))
    assert len(found) == 10
    named = candidates_for([2, 4])  # --layers 2 4
    assert [of.layers for of in named if of.pooling == "last"] == [(2,), (4,)] and {of.layers for of in named[2:]} == {
        (2, 4)
    }
    frozen = candidates_for([1, 2, 3, 4, 5, 6], least=5)  # --freeze_layers 5: they must all be there
    assert [of.layers for of in frozen if of.pooling == "last"] == [(5,), (6,)]


def rows_of(states, labels, held):
    """Rows of which the last `held` choose."""
    total = len(labels)
    part = (np.arange(total - held), np.arange(total - held, total))
    return Rows(torch.tensor(states, dtype=torch.float32), label_tensor(labels), labels, [part])


def noise(rows, seed=0):
    """States (N, 4, 16) that say nothing."""
    return np.random.default_rng(seed).normal(size=(rows, 4, 16))


def tried_on(rows, kind=SingleLabel, problem_type=SINGLE, best=ACCURACY, outputs=2):
    model = tiny_model(num_labels=outputs, problem_type=problem_type, lstm_hidden_size=32)
    judge = Judge(task_of(kind, outputs), best, summed_loss(problem_type), np.ones(1))
    return try_all(candidates_for(model.config.layers), model, rows, judge, seed=0, quiet=True)


def test_where_one_layer_carries_the_label_it_wins_alone(monkeypatch):
    monkeypatch.setattr(pooling_choice, "STEPS", 80)
    labels = np.arange(240) % 2
    for layer in (2, 4):
        states = 4 * noise(240)
        states[:, layer - 1] = noise(240, seed=1)[:, 0]
        states[:, layer - 1, 0] += np.where(labels == 1, 3, -3)
        tried = tried_on(rows_of(states, labels, held=120))
        assert tried[0][0] == Candidate("last", (layer,)) and tried[0][1].score > 0.95
        others = [found.score for of, found in tried if of.pooling == "last"][1:]
        assert max(others) < 0.7


@pytest.mark.slow
def test_where_two_layers_say_it_only_together_a_net_wins(monkeypatch):
    monkeypatch.setattr(pooling_choice, "RATES", (4e-3,))
    monkeypatch.setattr(pooling_choice, "RATES_OF_NETS", (4e-3,))
    labels = np.arange(400) % 2
    states = 0.1 * noise(400)
    signs = np.where(np.arange(400) // 2 % 2 == 1, 1, -1)
    states[:, 1, 0] += 2 * signs
    states[:, 3, 0] += 2 * signs * np.where(labels == 1, 1, -1)  # the label says whether the two agree
    (best, result), *_ = tried_on(rows_of(states, labels, held=200))
    assert best.pooling in ("concat", "gru", "lstm") and best.layers == (1, 2, 3, 4) and result.score > 0.95


@pytest.mark.parametrize(
    ("kind", "problem_type", "best"),
    [(MultiLabel, MULTI, BestBy("f1_micro", True)), (Regression, REGRESSION, BestBy("mse", False))],
)
@pytest.mark.slow
def test_other_tasks_choose_by_their_own_metric(monkeypatch, kind, problem_type, best):
    monkeypatch.setattr(pooling_choice, "SIMPLEST_FIRST", ("last", "weighted"))
    states = 4 * noise(160)
    states[:, 2] /= 4
    labels = states[:, 2, :2] * 3  # (N, C): the third layer says it
    labels = (labels > 0).astype(int) if kind is MultiLabel else labels
    tried = tried_on(rows_of(states, labels, held=80), kind, problem_type, best)
    assert tried[0][0] == Candidate("last", (3,))
    scores = [found.score for _, found in tried]
    assert scores == sorted(scores, reverse=best.greater_is_better)


def test_the_same_seed_gives_the_same_results_and_another_one_others(monkeypatch):
    monkeypatch.setattr(pooling_choice, "STEPS", 8)
    rows = rows_of(noise(60), np.arange(60) % 2, held=30)
    assert tried_on(rows) == tried_on(rows)


# -------------------------------------------------------------------------------------------------------- who is first
@pytest.mark.parametrize(
    ("given", "greater", "first"),
    [
        ({"max": (0.8, 0.5), "lstm": (0.9, 9.0)}, True, "lstm"),  # the score counts
        ({"max": (0.8, 0.5), "lstm": (0.9, 9.0)}, False, "max"),
        ({"max": (0.9, 0.5), "lstm": (0.9, 0.4)}, True, "lstm"),  # of equal scores, the loss
        ({"gru": (0.9, 0.5), "lstm": (0.9, 0.5), "concat": (0.9, 0.5)}, True, "concat"),  # of equal ones, the simplest
        ({"max": (float("nan"), 0.1), "lstm": (0.1, 9.0)}, True, "lstm"),  # what is no number is worst
        ({"max": (float("nan"), 0.1), "lstm": (0.1, 9.0)}, False, "lstm"),
    ],
)
def test_ties_are_broken_by_the_loss_and_then_by_the_simpler_pooling(monkeypatch, given, greater, first):
    results = {name: Result(*numbers, rate=1.0) for name, numbers in given.items()}
    worst = Result(float("nan"), float("inf"), 1.0)
    monkeypatch.setattr(pooling_choice, "try_one", lambda candidate, *args: results.get(candidate.pooling, worst))
    judge = Judge(None, BestBy("some", greater), None, np.ones(1))
    tried = try_all(candidates_for([1, 2]), None, None, judge, 0, quiet=True)
    assert tried[0][0].pooling == first


def test_of_a_pooling_the_best_rate_counts(monkeypatch):
    monkeypatch.setattr(pooling_choice, "try_one", lambda *args: Result(-args[-1], 0.0, args[-1]))
    judge = Judge(None, ACCURACY, None, np.ones(1))
    tried = try_all([Candidate("max", (1,)), Candidate("lstm", (1,))], None, None, judge, 0, quiet=True)
    assert [(of.pooling, found.rate) for of, found in tried] == [("lstm", 5e-4), ("max", 1e-3)]
    tried = try_all([Candidate("max", (1,))], None, None, judge, 0, True, named_rate=0.3)
    assert tried[0][1].rate == 0.3


def test_logits_are_judged_in_the_labels_own_units():
    labels = np.array([[10.0], [30.0]])
    rows = Rows(torch.zeros(2, 1, 1), torch.tensor([[2.5], [7.5]]), labels, [(np.arange(0), np.arange(2))])
    judge = Judge(task_of(Regression, 1), BestBy("mse", False), summed_loss(REGRESSION), np.array([4.0]))
    result = judge.result(np.array([[3.0], [7.5]]), rows, 1.0)  # 12 and 30
    assert result.score == 2.0 and result.loss == 0.125
    assert judge.result(np.array([[np.nan], [7.5]]), rows, 1.0).loss == np.inf


def test_without_validation_rows_each_row_is_held_out_once_and_equal_texts_together():
    units, strata = np.arange(30) // 2, np.arange(30) // 2 % 3
    parts = folds_of(units, strata, seed=1)
    assert sorted(np.concatenate([held for _, held in parts]).tolist()) == list(range(30))
    for train, held in parts:
        assert not set(units[train]) & set(units[held]) and set(strata[held]) == {0, 1, 2}
    assert len(folds_of(np.arange(1002), np.zeros(1002, dtype=int), seed=1)) == 1
    assert len(folds_of(np.arange(4), np.arange(4), seed=1)) == 3  # classes of one row each
    assert len(folds_of(np.arange(9), np.array([-7, -7, 2**40] * 3), seed=1)) == 3  # strata of several labels
    with pytest.raises(InputError, match="it needs 3 different texts to train on, found 2"):
        folds_of(np.array([0, 1, 1]), np.zeros(3, dtype=int), seed=1)


@pytest.mark.parametrize("name", UNFIT_FOR_AUTO)
def test_what_does_not_go_with_it_is_refused(name):
    model = ModelArguments(backbone="b", layer_pooling="auto")
    with pytest.raises(InputError, match=f"--{name} does not go with --layer_pooling auto: "):
        check(AT_ONCE, Flags(model, given={"output_dir": "out", name: 1}))
    finished = ModelArguments(init_from="m", layer_pooling="auto")
    with pytest.raises(InputError, match="--layer_pooling is settled by the model of --init_from"):
        check(AT_ONCE, Flags(finished, given={"output_dir": "out", "layer_pooling": "auto"}))


# ---------------------------------------------------------------------------------------------------------- whole runs
@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A backbone of two layers, and rows; the test rows' labels are all wrong."""
    folder = tmp_path_factory.mktemp("data")
    save_backbone(folder / "backbone")
    for split, n in (("train", 36), ("validation", 12), ("test", 12)):
        labels = ["yes" if (i % 16 < 8) != (split == "test") else "no" for i in range(n)]
        pair = sentences(n + 5)[5:]
        columns = {"text": sentences(n), "other": pair, "label": labels, "price": [f"{500 * i}.5" for i in range(n)]}
        columns |= {"red": [i % 2 for i in range(n)], "blue": [i // 2 % 2 for i in range(n)]}
        write_csv(folder / f"{split}.csv", columns)
    return folder


@pytest.fixture
def work(data, tmp_path, monkeypatch):
    for path in data.iterdir():
        os.symlink(path, tmp_path / path.name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(layer_cache, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(pooling_choice, "STEPS", 6)
    monkeypatch.setattr(pooling_choice, "STEPS_IN_FOLDS", 4)
    monkeypatch.setattr(pooling_choice, "LEAST_HELD", 12)
    monkeypatch.setattr(finish, "plots_of", lambda *args: {})
    return tmp_path


AUTO = "--layer_pooling=auto"
FROZEN = ["--freeze_backbone", "--stages=one"]
VALIDATION = "--validation_file=validation.csv"
TEXT = ["--text_column_names=text", "--label_column_name=label"]


def train(*words, output="out"):
    base = [
        "--backbone=backbone",
        "--train_file=train.csv",
        f"--output_dir={output}",
        "--use_cpu",
        "--baselines=False",
    ]
    base += ["--lstm_hidden_size=4", "--report_to=none", "--disable_tqdm=True", "--bf16=False"]
    base += ["--save_total_limit=9"]
    return main([*base, *TEXT, *words])


def read(folder):
    """What was chosen, the config and the weights."""
    choice = json.loads((folder / "metrics.json").read_text())["layer_pooling"]
    config = json.loads((folder / "config.json").read_text())
    return choice, config, (folder / "model.safetensors").read_bytes()


def test_the_run_then_goes_on_as_if_the_winner_had_been_typed(work, monkeypatch, capsys):
    monkeypatch.setattr(pooling_choice, "RATES", (0.016,))  # not the default rate
    monkeypatch.setattr(pooling_choice, "RATES_OF_NETS", (0.004,))
    assert train(AUTO, VALIDATION, *FROZEN, "--max_steps=4") == 0
    said = capsys.readouterr().out
    choice, config, weights = read(work / "out")
    (line,) = [line for line in said.splitlines() if line.startswith("Layer pooling: ")]
    assert " on 12 validation rows; next " in line and "(8 tried on the frozen backbone, " in line
    assert list(choice) == sorted(choice) and all(list(of) == sorted(of) for of in choice["tried"])
    assert (choice["on"], choice["rows"], choice["metric"]) == ("validation", 12, "accuracy")
    assert len(choice["tried"]) == 8 and choice["tried"][0]["layer_pooling"] == choice["chosen"]
    assert choice["tried"][0]["layers"] == choice["layers"]
    assert config["layer_pooling"] == choice["chosen"] != "auto" and config["layers"] == choice["layers"]
    card = (work / "out" / "README.md").read_text()
    assert "\n## Layer pooling\n" in card and "took the best on 12 validation rows." in card
    assert "These rows also chose the epoch." in card and card.count("| last on layer ") == 2

    layers = ["--layers", *map(str, choice["layers"])]
    rate = f"--head_learning_rate={choice['head_learning_rate']}"
    assert choice["head_learning_rate"] == choice["tried"][0]["learning_rate"]
    typed = ["--layer_pooling", choice["chosen"], *layers, rate, VALIDATION, *FROZEN, "--max_steps=4"]
    assert train(*typed, output="typed") == 0
    assert (work / "typed" / "model.safetensors").read_bytes() == weights
    assert "Layer pooling" not in (work / "typed" / "README.md").read_text()

    # no test row is read before the end, and the same seed gives the same choice
    assert train(AUTO, VALIDATION, *FROZEN, "--max_steps=4", "--test_file=test.csv", output="tested") == 0
    assert read(work / "tested")[::2] == (choice, weights)


def cut_off(folder, step):
    """Makes a finished run look as if it had been killed soon after a step."""
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(record | {"finished": False}))
    for name in ("model.safetensors", "metrics.json"):
        (folder / name).unlink()
    for path in folder.glob("checkpoint-*"):
        if int(path.name.removeprefix("checkpoint-")) > step:
            shutil.rmtree(path)


def first(monkeypatch, wanted):
    """From now on, `wanted` is the best of all that is tried."""

    def tried(candidates, *args):
        found = [(of, Result(0.5, 1.0, 0.016)) for of in candidates]
        return sorted(found, key=lambda pair: pair[0] != wanted)

    monkeypatch.setattr(pooling_choice, "try_all", tried)


@pytest.mark.parametrize("how", [FROZEN, pytest.param(["--stages=two"], marks=pytest.mark.slow)])
def test_a_run_that_goes_on_keeps_the_choice(work, monkeypatch, capsys, how):
    words = [AUTO, VALIDATION, *how, "--max_steps=4", "--eval_strategy=steps", "--eval_steps=2"]
    with monkeypatch.context() as patched:
        first(patched, Candidate("last", (1,)))
        assert train(*words) == 0
        before = read(work / "out")
        assert before[0]["chosen"] == "last" and before[1]["layers"] == [1]
        assert before[0]["head_learning_rate"] == (0.016 if how is FROZEN else None)
        cut_off(work / "out", step=-1)  # before the first checkpoint: it is chosen again
        assert train(*words) == 0
        assert read(work / "out") == before
    first(monkeypatch, Candidate("gru", (1, 2)))  # rows of another order would now choose this
    cut_off(work / "out", step=2)
    capsys.readouterr()
    assert train(*words) == 0
    assert "It goes on from out/checkpoint-2." in capsys.readouterr().out
    assert read(work / "out") == before


def test_the_fields_of_the_winner_are_in_the_config_and_layers_above_are_not_built(work, monkeypatch):
    first(monkeypatch, Candidate("last", (1,)))
    assert train(AUTO, VALIDATION, *FROZEN, "--max_steps=1") == 0
    _, config, _ = read(work / "out")
    assert (config["layer_pooling"], config["layers"]) == ("last", [1])
    names = load_file(work / "out" / "model.safetensors")
    assert any(".layer.0." in name for name in names) and not any(".layer.1." in name for name in names)


@pytest.mark.slow
def test_in_a_cross_validation_the_rows_that_a_fold_predicts_do_not_choose(work):
    assert train(AUTO, *FROZEN, "--cv_folds=2", "--max_steps=1") == 0
    for fold in ("fold-1", "fold-2"):
        choice = json.loads((work / "out" / fold / "metrics.json").read_text())["layer_pooling"]
        assert (choice["on"], choice["rows"]) == ("train", 18)
        card = (work / "out" / fold / "README.md").read_text()
        assert "took the best on 18 training rows, held out in turn." in card and "also chose the epoch" not in card


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(["--label_column_name=price", VALIDATION], marks=pytest.mark.slow),
        ["--label_column_name=red,blue", "--problem_type=multi_label_classification"],
        pytest.param(["--text_column_names=text,other", "--pair_encoding=apart", VALIDATION], marks=pytest.mark.slow),
        pytest.param(["--label_smoothing_factor=0.1", "--class_weights=balanced"], marks=pytest.mark.slow),
        pytest.param(["--peft=lora", "--merge"], marks=pytest.mark.slow),
        pytest.param(["--freeze_backbone", "--layer_cache=no"], marks=pytest.mark.slow),
        pytest.param(["--metric_for_best_model=loss", VALIDATION], marks=pytest.mark.slow),
    ],
)
def test_it_works_with_whatever_else_is_asked(work, words):
    """With two stages, and without validation rows unless they are named."""
    assert train(AUTO, "--max_steps=1", *words) == 0
    choice, config, _ = read(work / "out")
    assert config["layer_pooling"] == choice["chosen"] and config["linear_skip"]
    assert choice["on"] == (
        "validation" if VALIDATION in words or "--metric_for_best_model=loss" in words else "train"
    )
    assert all(np.isfinite(of["score"]) for of in choice["tried"])
    assert not list((work / "cache" / "first_stage").rglob("*.arrow"))


def test_a_frozen_backbone_that_is_read_whole_runs_once(work, monkeypatch):
    first(monkeypatch, Candidate("max", (1, 2)))
    written, write = [], layer_cache._write
    monkeypatch.setattr(layer_cache, "_write", lambda *args: written.append(args[0].parent) or write(*args))
    assert train(AUTO, VALIDATION, *FROZEN, "--max_steps=1") == 0
    assert written == [work / "cache"] * 2  # training and validation rows, which stay for later runs


def test_without_room_for_the_states_it_is_refused_before_anything_is_replaced(work, monkeypatch, capsys):
    assert train(VALIDATION, *FROZEN, "--max_steps=1") == 0
    before = (work / "out" / "model.safetensors").read_bytes()
    shutil.rmtree(work / "cache")
    monkeypatch.setattr(layer_cache.shutil, "disk_usage", lambda folder: SimpleNamespace(free=100))
    assert train(AUTO, VALIDATION, *FROZEN, "--max_steps=1", "--overwrite") == 2
    error = capsys.readouterr().err
    assert "error: --layer_pooling auto: the layer states of train take " in error
    assert error.rstrip().endswith("Or name a pooling, such as --layer_pooling lstm.")
    assert (work / "out" / "model.safetensors").read_bytes() == before


def test_the_line_says_by_how_much_it_won():
    tried = [
        {"layer_pooling": name, "layers": [1, 2, 3], "score": score} for name, score in (("max", 0.9), ("gru", 0.8))
    ]
    tried.insert(1, {"layer_pooling": "last", "layers": [2], "score": 0.85})
    choice = {"chosen": "max", "metric": "f1_macro", "on": "validation", "rows": 300, "tried": tried}
    choice["head_learning_rate"] = None
    assert describe_choice(choice, {"f1_macro": "macro F1"}, 30.6) == (
        "Layer pooling: max, 0.900 macro F1 on 300 validation rows; next last on layer 2 0.850, gru 0.800 (3 tried on "
        "the frozen backbone, 31 s)."
    )
    said = describe_choice(choice | {"head_learning_rate": 0.016}, {}, 1)
    assert said.endswith(" 1 s). Its best rate, 0.016, is taken; --head_learning_rate sets another one.")


def test_few_validation_rows_do_not_choose():
    def has(rows, cv_folds=None):
        split = Split("validation", ["a"] * rows, None, [0] * rows, list(range(rows)))
        job = SimpleNamespace(splits={"validation": split}, data_args=SimpleNamespace(cv_folds=cv_folds))
        return pooling_choice._has_validation(SimpleNamespace(job=job))

    assert has(pooling_choice.LEAST_HELD) and not has(pooling_choice.LEAST_HELD - 1)
    assert not has(pooling_choice.LEAST_HELD, cv_folds=2)
