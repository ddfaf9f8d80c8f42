"""Turns a command line, `[RECIPE] [--flag value ...]`, into the three groups of arguments.

A recipe holds flags by name. One parser reads them before those of the command line, so the command line wins. The
same rules hold for both.
"""

import argparse
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from transformers.integrations import get_available_reporting_integrations

from lstmpool.training.data.sources import named_splits
from lstmpool.training.errors import InputError
from lstmpool.training.flags.arguments import MAPS, DataArguments, ModelArguments
from lstmpool.training.flags.defaults import Limits, only_looks, worked_out
from lstmpool.training.flags.documents import parse_document, typed
from lstmpool.training.flags.help import exit_with_help_if_asked, make_parser
from lstmpool.training.flags.recipe import unknown, with_recipe
from lstmpool.training.flags.rules import AT_ONCE, WITH_PROCESSES, WITH_SPLITS, Flags, check
from lstmpool.training.flags.training_arguments import DEFAULTS, TrainingArguments, build, choose_precision


def parse_arguments(
    argv: list[str], description: str
) -> tuple[ModelArguments, DataArguments, TrainingArguments, dict[str, str]]:
    """The three groups of arguments, and where the rows of each split are (see `named_splits`).

    Args:
        argv: the words after the program's name. If they ask for help, it is printed and the process ends.
        description: what the help says about the command.

    Raises:
        InputError: for a recipe that cannot be read, an unknown name, a value of the wrong kind, or flags that break
            one of the `rules`.
    """
    exit_with_help_if_asked(argv, description)
    given = _read_words(argv)
    model_args = ModelArguments(**_of_group(given, ModelArguments))
    data_args = DataArguments(**_of_group(given, DataArguments))
    check(AT_ONCE, Flags(model_args, data_args, given))

    places = named_splits(data_args)
    of_training = _of_group(given, TrainingArguments)
    if only_looks(given):
        of_training["do_train"] = False
    values = worked_out(of_training, DEFAULTS, data_args, places)
    check(WITH_SPLITS, Flags(model_args, data_args, given, values, places))

    args = build(values)
    args.limits = Limits() if model_args.original_defaults else Limits.of(given)
    args.keeps_checkpoints = "save_total_limit" in given
    args.named_head_rate = "head_learning_rate" in given
    if not model_args.original_defaults:
        choose_precision(args, given, trains_backbone=not model_args.freeze_backbone)
    loggers = tuple(get_available_reporting_integrations())
    found = {"processes": args.world_size, "device": args.device.type, "loggers": loggers}
    flags = Flags(model_args, data_args, given, vars(args), places, **found)
    check(WITH_PROCESSES, flags)
    return model_args, data_args, args, _places_read(data_args, places)


def _read_words(argv: list[str]) -> dict[str, Any]:
    """The flags that were named, in a recipe or in words, and their values."""
    parser = make_parser("", TrainingArguments)
    actions = {action.dest: action for action in parser._actions if action.nargs != 0}
    # The parser puts no default in place of an attribute that is there: what is not `unset` afterwards was named.
    unset = object()
    blank = argparse.Namespace(**dict.fromkeys(actions, unset))
    namespace, others = parser.parse_known_args(with_recipe(argv, actions), blank)
    for word in others:
        if not word.startswith("-"):
            raise InputError(f"expected --flags after the recipe, found {word!r}; a recipe is the first word.")
        raise unknown(word.lstrip("-").partition("=")[0], "flag", actions)
    given = {name: value for name, value in vars(namespace).items() if value is not unset}
    for name, value in given.items():
        if value == []:  # the parser drops the word --
            raise InputError(f"--{name}: expected a value, found '--'.")
    for name in MAPS:
        _check_json(given.get(name), f"--{name}")
    return given


def _check_json(value: Any, place: str) -> None:
    """Raises InputError for text that begins as JSON does and is not valid, or has a key twice."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        typed(parse_document(value, place, is_json=True), place)


def _of_group(given: Mapping[str, Any], group: type) -> dict[str, Any]:
    return {entry.name: given[entry.name] for entry in fields(group) if entry.name in given}


def _places_read(data_args: DataArguments, places: dict[str, str]) -> dict[str, str]:
    """The places of the splits to read. With folds, a data set's own validation rows are left out."""
    if data_args.cv_folds is None or "validation" not in places:
        return places
    print(f"The validation rows of {data_args.dataset_name} are not read: each fold serves as validation rows.")
    return {split: place for split, place in places.items() if split != "validation"}
