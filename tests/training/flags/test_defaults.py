"""The flags that were not given: what is done, when it is evaluated, and how long a run is."""

import pytest

from lstmpool.training.flags.arguments import DataArguments
from lstmpool.training.flags.defaults import (
    FINE_TUNING,
    Budget,
    Limits,
    budget,
    only_looks,
    steps_for,
    worked_out,
)


TRAIN = {"train": "train.csv"}
ALL = {"train": "train.csv", "validation": "v.csv", "test": "test.csv"}
NO_VALIDATION = {"train": "train.csv", "test": "test.csv"}
DONE = ("do_train", "do_eval", "do_predict")


@pytest.mark.parametrize(
    ("places", "data", "given", "wanted"),
    [
        (TRAIN, {}, {}, (True, True, False)),  # a tenth is held out
        (TRAIN, {"validation_size": 0.0}, {}, (True, False, False)),
        (TRAIN, {"validation_size": 0.0, "cv_folds": 2}, {}, (True, True, False)),  # on each fold in turn
        (ALL, {}, {}, (True, True, True)),
        (ALL, {}, {"do_eval": False}, (True, False, True)),
        (ALL, {}, {"do_predict": True}, (None, None, True)),
        (NO_VALIDATION, {}, {"do_train": False}, (False, False, True)),  # nothing is held out
        ({"test": "t.csv"}, {}, {}, (False, False, True)),
    ],
)
def test_what_is_done_follows_from_the_rows(places, data, given, wanted):
    values = worked_out(given, FINE_TUNING, DataArguments(**data), places)
    assert tuple(values.get(flag) for flag in DONE) == wanted


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, ("epoch", "epoch", None, None, True)),
        ({"eval_steps": 50}, ("epoch", "epoch", 50, None, True)),
        ({"eval_strategy": "steps"}, ("steps", "steps", 500, 500, True)),
        ({"eval_strategy": "steps", "logging_steps": 5}, ("steps", "steps", 5, 5, True)),
        ({"save_strategy": "steps", "save_steps": 7}, ("steps", "steps", 7, 7, True)),
        ({"save_strategy": "steps", "eval_steps": 0.1, "logging_steps": 5}, ("steps", "steps", 0.1, 0.1, True)),
        ({"save_strategy": "epoch", "eval_strategy": "steps"}, ("steps", "epoch", None, None, False)),
        ({"save_strategy": "no"}, ("epoch", "no", None, None, False)),
        ({"save_strategy": "no", "eval_strategy": "no"}, ("no", "no", None, None, False)),
    ],
)
def test_when_is_evaluated_and_saved(given, wanted):
    values = worked_out(given, FINE_TUNING, DataArguments(), TRAIN)
    names = ("eval_strategy", "save_strategy", "eval_steps", "save_steps", "load_best_model_at_end")
    assert tuple(values.get(name) for name in names) == wanted


def test_working_out_changes_nothing_that_it_is_given():
    given, defaults, places = {"eval_strategy": "steps"}, dict(FINE_TUNING), dict(ALL)
    worked_out(given, defaults, DataArguments(), places)
    assert (given, defaults, places) == ({"eval_strategy": "steps"}, FINE_TUNING, ALL)


# --------------------------------------------------------------------------------------------- how long a run is
@pytest.mark.parametrize(
    ("rows", "batch", "epochs", "wanted"),
    [
        (300, 16, 3, Budget(16, 304)),  # 19 steps an epoch, of which 15 give 285
        (100, 16, 3, Budget(43, 301)),
        (4, 16, 3, Budget(300, 300)),
        (1600, 16, 3, Budget(3, 300)),
        (1599, 16, 3, Budget(3, 300)),
        (1584, 16, 3, Budget(4, 396)),  # 99 an epoch
        (10**6, 16, 3, Budget(3, 187_500)),
        (300, 16, 20.5, Budget(20.5, 390)),
        (300, 64, 3, Budget(60, 300)),
    ],
)
def test_few_rows_get_more_epochs(rows, batch, epochs, wanted):
    assert budget(rows, batch, epochs, least_steps=300) == wanted


def test_a_budget_without_a_least_number_of_steps_is_what_the_epochs_say():
    assert budget(300, 16, 3, least_steps=0) == Budget(3, 57)


@pytest.mark.parametrize(
    ("tokens", "steps"),
    [(4, 200), (31.25, 200), (62.5, 100), (500, 13), (10**7, 1), (0, 200)],  # 100,000 tokens are read, 16 rows a step
)
def test_long_texts_get_fewer_steps(tokens, steps):
    assert steps_for(tokens, 16, least_steps=200) == steps


@pytest.mark.parametrize(
    ("length", "most", "every"),
    [
        (Budget(16, 304), 10, 31),
        (Budget(300, 300), 10, 30),
        (Budget(11, 11), 10, 2),
        (Budget(10, 300), 10, 0),
        (Budget(16, 304), 0, 0),
    ],
)
def test_many_short_epochs_are_evaluated_a_few_times(length, most, every):
    assert length.every(most) == every


@pytest.mark.parametrize(
    ("given", "limits"),
    [
        ({}, (200, 10, 10, 500)),
        ({"learning_rate": 1e-4}, (200, 10, 10, 500)),
        ({"num_train_epochs": 3}, (0, 0, 0, 500)),
        ({"max_steps": 9}, (0, 0, 0, 500)),
        ({"eval_strategy": "epoch"}, (200, 0, 10, 0)),  # who speaks of validation gets validation rows
        ({"eval_delay": 2}, (200, 0, 10, 500)),
        ({"validation_size": 0.1}, (200, 10, 10, 0)),
        ({"early_stopping_patience": 2, "num_train_epochs": 9}, (0, 0, 0, 0)),
        ({"save_strategy": "epoch"}, (200, 0, 10, 500)),
        ({"logging_steps": 5}, (200, 10, 0, 500)),
        ({"early_exit": True}, (200, 10, 10, 0)),
    ],
)
def test_what_the_user_has_named_is_not_limited(given, limits):
    assert Limits.of(given) == limits


@pytest.mark.parametrize("flag", ["early_exit", "layer_report"])
def test_a_finished_model_is_taken_as_it_is_unless_a_flag_says_how_long_it_is_trained(flag):
    given = {"init_from": "m", flag: True}
    assert only_looks(given) == flag
    assert not only_looks(given | {"num_train_epochs": 1.0}) and not only_looks(given | {"max_steps": 3})
    assert not only_looks({"init_from": "m"}) and not only_looks({"backbone": "b", flag: True})
    assert not only_looks({"init_from": "m", flag: False})
