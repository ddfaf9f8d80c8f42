import math

import pytest

from lstmpool.training.errors import InputError
from lstmpool.training.flags.arguments import ModelArguments
from lstmpool.training.flags.defaults import Limits
from lstmpool.training.flags.training_arguments import TrainingArguments
from lstmpool.training.runs.search_space import BOUNDS, Values, of_rows, space_of


def space(given, model=None, **flags):
    flags = {"output_dir": "out", "use_cpu": True, "hp_search": 5, "hp_space": given, **flags}
    return space_of(ModelArguments(**(model or {})), TrainingArguments(**flags))


def test_ranges_and_choices_are_read_from_json():
    found = space(
        '{"learning_rate": [1e-5, 1e-4, "log"], "weight_decay": [0, 0.1, "linear"], "lstm_hidden_size": [8, 64]}'
    )
    assert found == {
        "learning_rate": Values(float, 1e-5, 1e-4, True),
        "weight_decay": Values(float, 0.0, 0.1, False),
        "lstm_hidden_size": Values(int, choices=(8, 64)),
    }
    assert 2e-5 in found["learning_rate"] and 2e-4 not in found["learning_rate"] and None not in found["learning_rate"]
    assert 64 in found["lstm_hidden_size"] and 32 not in found["lstm_hidden_size"]


def test_a_file_of_yaml_whose_small_numbers_are_strings_there(tmp_path):
    path = tmp_path / "space.yaml"
    path.write_text("learning_rate: [1e-5, 1e-4, log]\nnum_train_epochs: [2, 3]\n")
    rates, epochs = Values(float, 1e-5, 1e-4, True), Values(float, choices=(2.0, 3.0))
    assert space(str(path)) == {"learning_rate": rates, "num_train_epochs": epochs}
    # as a recipe gives it: what is a dictionary there is JSON here
    assert space('{"learning_rate": ["1e-5", "1e-4", "log"]}') == {"learning_rate": rates}


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("learning_rate: [010, 1]", "found 010. A text needs quotes"),
        ("learning_rate: [1:30]", "found 1:30"),
        ("learning_rate: [.inf]", "found .inf"),
        ("learning_rate: &a [*a]", r"found the alias \*a"),
        ("learning_rate: [1]\nlearning_rate: [2]", "is given twice, in lines 1 and 2"),
        ("- learning_rate", "found a list"),
        ("", "found nothing"),
    ],
)
def test_a_file_of_a_space_is_read_as_a_recipe_is(tmp_path, written, message):
    path = tmp_path / "space.yaml"
    path.write_text(written)
    with pytest.raises(InputError, match=message):
        space(str(path))


def test_what_changes_nothing_is_not_searched():
    assert set(space(None)) == {"learning_rate", "head_learning_rate", "num_train_epochs"} <= BOUNDS.keys()
    assert set(space(None, {"freeze_backbone": True})) == {"head_learning_rate", "num_train_epochs"}
    assert set(space(None, max_steps=9)) == {"learning_rate", "head_learning_rate"}
    assert space(None, hp_search=None) == {}


def test_what_the_command_has_set_is_in_the_space_that_is_searched_by_default():
    found = space(None, num_train_epochs=1, learning_rate=1e-3, head_learning_rate=1e-5)
    assert found["num_train_epochs"].choices == (1, 2, 3, 4, 6)
    assert (found["learning_rate"].low, found["learning_rate"].high) == (1e-5, 1e-3)
    assert (found["head_learning_rate"].low, found["head_learning_rate"].high) == (1e-5, 1e-2)
    assert space(None, learning_rate=0)["learning_rate"] == Values(float, 1e-5, 2e-4, True)  # no log of it


@pytest.mark.parametrize(
    ("given", "model", "message"),
    [
        ('{"learning_rat": [1e-5, 1e-4]}', {}, "'learning_rat' cannot be searched. Did you mean 'learning_rate'"),
        (
            '{"learning_rate": [1e-5, 1e-4, "log"]}',
            {"freeze_backbone": True},
            "changes nothing with a frozen backbone",
        ),
        ('{"layerwise_lr_decay": [0.9, 1]}', {"peft": "lora"}, "changes nothing with a frozen backbone"),
        ('{"pooler_dropout": [0.1]}', {"init_from": "x"}, "changes nothing with the model of --init_from"),
        ('{"learning_rate": [1e-4, 1e-5, "log"]}', {}, "must go from a low number above 0 to a higher one"),
        ('{"learning_rate": [0, 1e-5, "log"]}', {}, "must go from a low number above 0 to a higher one"),
        ('{"learning_rate": [1e-5, "log"]}', {}, r"must be \[low, high, \"log\"\], .* found \[1e-05, 'log'\]"),
        ('{"learning_rate": []}', {}, "found \\[\\]"),
        ('{"learning_rate": 1e-5}', {}, "found 1e-05"),
        ('{"learning_rate": [-1e-5]}', {}, "must be float of 0 to inf, got -1e-05"),
        ('{"learning_rate": [NaN]}', {}, "expected a finite number, found NaN"),
        ('{"learning_rate": [true]}', {}, "found \\[True\\]"),
        ('{"lstm_hidden_size": [8.5]}', {}, "must be int of 1 to inf, got 8.5"),
        ('{"layerwise_lr_decay": [0.5, 1.5, "linear"]}', {}, "must be float of 0.001 to 1, got 1.5"),
        ('{"learning_rate": [1e-5,', {}, "--hp_space is not valid JSON"),
        ("no_such_file.yaml", {}, "expected JSON, .* or a file, cannot read it"),
        ('{"learning_rate": [1e-5], "learning_rate": [1]}', {}, "the key 'learning_rate' is given twice"),
        ('{"learning_rate": [1e999]}', {}, "expected a number such as 8 or 1e-5, found 1e999"),
        ('{"learning_rate": ' + "[" * 9000, {}, "--hp_space is not valid JSON: maximum recursion"),
        ('{"learning_rate": [' + "9" * 5000 + "]}", {}, "expected a number such as 8 or 1e-5, found 999"),
        ("x" * 300, {}, "cannot read it: .* File name too long"),
        ("a\0b", {}, "cannot read it: embedded null byte"),
        ("{}", {}, "must hold lists by the names of settings"),
    ],
)
def test_a_space_that_makes_no_sense_is_refused(given, model, message):
    with pytest.raises(InputError, match=message):
        space(given, model)


def test_a_list_of_choices_is_no_range():
    assert math.isnan(Values(int, choices=(1,)).low)


def limited(given, limits, rows=300, tokens=1, **flags):
    """The space and the arguments for so many rows of so many tokens, 16 a step."""
    flags |= {"output_dir": "out", "use_cpu": True, "hp_search": 5, "hp_space": given}
    args = TrainingArguments(per_device_train_batch_size=16, **flags)
    args.limits = limits
    return of_rows(space_of(ModelArguments(), args), args, rows, tokens)


def test_where_rows_are_few_the_default_space_has_as_many_more_epochs_as_a_run_without_a_search():
    """16 epochs of 19 steps in the place of 3: 5.33 times as many."""
    found, args = limited(None, Limits(300, 10, 10))
    assert found["num_train_epochs"].choices == (11, 16, 21, 32) and args.num_train_epochs == 16
    assert args.limits == (0, 10, 10, 0)  # each trial has the epochs that it says
    found, args = limited(None, Limits(300, 10, 10), tokens=62.5)  # 100 steps are enough: 6 epochs
    assert found["num_train_epochs"].choices == (4, 6, 8, 12) and args.num_train_epochs == 6
    found, args = limited(None, Limits(300, 10, 10), rows=10_000)
    assert found["num_train_epochs"].choices == (2, 3, 4, 6) and args.num_train_epochs == 3


def test_epochs_that_the_user_names_are_left_as_they_are():
    found, args = limited('{"num_train_epochs": [2, 3]}', Limits(300, 10, 10))
    assert found["num_train_epochs"].choices == (2, 3) and args.limits == Limits()
    found, args = limited('{"weight_decay": [0, 1]}', Limits(300, 10, 10))
    assert set(found) == {"weight_decay"} and args.limits == (300, 10, 10, 0)  # a trial is as long as a run
    found, args = limited(None, Limits(), num_train_epochs=1)
    assert found["num_train_epochs"].choices == (1, 2, 3, 4, 6) and args.num_train_epochs == 1
