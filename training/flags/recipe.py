"""A recipe: a YAML or JSON file of flags by name. It becomes words of a command line, so one parser reads both."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lstmpool.training.errors import InputError, control_in, did_you_mean
from lstmpool.training.flags.arguments import MAPS, OF_DATA_SETS, OF_FILES
from lstmpool.training.flags.documents import NUMBER, parse_document, read_text, typed
from lstmpool.training.flags.values import UTF8


RENAMED = {
    "evaluation_strategy": "eval_strategy",
    "group_by_length": "train_sampling_strategy",
    "model_name_or_path": "backbone",
    "no_cuda": "use_cpu",
    "overwrite_output_dir": "overwrite",
    "warmup_ratio": "warmup_steps",
}
LISTS = ("label_column_name", "report_to", "text_column_names")  # flags of several values, separated by commas
Actions = Mapping[str, argparse.Action]  # of the parser, by the flag's name


def with_recipe(words: list[str], actions: Actions) -> list[str]:
    """The words of a command. If the first word is a recipe, its flags replace it.

    They come before the typed flags, so the typed ones win. Typed files replace the recipe's data set, and a typed
    data set replaces its files.

    Raises:
        InputError: if the recipe cannot be read, or names a flag that does not exist.
    """
    if not words or words[0].startswith("-"):
        return words
    recipe, typed_words = Path(words[0]), words[1:]
    left_out = _left_out(typed_words)
    spellings = {option.lstrip("-"): name for name, action in actions.items() for option in action.option_strings}
    flags = []
    seen: dict[str, str] = {}
    for key, value in _read(recipe).items():
        name = spellings.get(key.replace("-", "_"))
        if name is None:
            raise unknown(key, f"key in the recipe {recipe}", actions)
        if name in seen:
            raise InputError(f"recipe {recipe}: {seen[name]!r} and {key!r} are the same flag. Leave one out.")
        seen[name] = key
        if name not in left_out:
            flags += _words(actions[name], value, f"recipe {recipe}, {key}")
    return flags + typed_words


def unknown(name: str, what: str, actions: Actions) -> InputError:
    """The error for a `name` that is not a flag, with a hint at the flag that was probably meant."""
    renamed = RENAMED.get(name.replace("-", "_"))
    hint = f" It is called {renamed!r} here." if renamed else did_you_mean(name.replace("-", "_"), actions)
    return InputError(f"unknown {what}: {name!r}.{hint} --help lists all.")


def _left_out(typed_words: list[str]) -> set[str]:
    """The flags of a recipe that typed ones replace, since rows come from files or from a data set."""
    names = {word.partition("=")[0].lstrip("-").replace("-", "_") for word in typed_words if word.startswith("--")}
    if names & set(OF_FILES):
        return {"dataset_name", *OF_DATA_SETS}
    return set(OF_FILES) if "dataset_name" in names else set()


def _read(path: Path) -> dict[str, Any]:
    what = f"expected a recipe (.yaml, .json) as the first word, cannot read {path}"
    character = control_in(str(path))
    if character:  # the model card names the recipe
        raise InputError(f"{what}: its name has the character {character}. {UTF8}")
    text = read_text(path, what)
    return parse_document(text, f"recipe {path}", is_json=path.suffix.lower() == ".json")


def _words(action: argparse.Action, value: Any, place: str) -> list[str]:
    """One entry of a recipe as words of a command line. `null` leaves the default."""
    flag = f"--{action.dest}"
    if value is None:
        return []
    if isinstance(value, dict):
        if action.dest not in MAPS:
            raise InputError(f"{place}: expected a value, found a mapping.")
        return [f"{flag}={json.dumps(typed(value, place))}"]
    if not isinstance(value, list):
        return [f"{flag}={_word(action, value, place)}"]
    items = [_word(action, item, place) for item in value]
    if action.nargs == "+":
        options = [item for item in items if item.startswith("-") and not NUMBER.fullmatch(item)]
        if options:
            raise InputError(f"{place}: expected values, found {options[0]!r}, which a command takes for a flag.")
        return [flag, *items]
    if action.dest not in LISTS:
        raise InputError(f"{place}: expected one value, found a list.")
    if any("," in item for item in items):
        raise InputError(f"{place}: expected names without commas, which separate them, found {value!r}.")
    return [f"{flag}={','.join(items)}"]


def _word(action: argparse.Action, value: Any, place: str) -> str:
    """A single value as it is typed on a command line."""
    if isinstance(value, (list, dict)) or value is None:
        raise InputError(f"{place}: expected a list of single values, found {value!r} in it.")
    if value is False and action.choices and "no" in action.choices:
        return "no"  # YAML reads an unquoted no as False
    may_be_true = value is True and action.dest == "resume_from_checkpoint"
    if isinstance(value, bool) and action.type is str and action.nargs != "?" and not may_be_true:
        raise InputError(f"{place}: expected a text, found what YAML reads as {value}. Put it in quotes.")
    return value if isinstance(value, str) else str(value)
