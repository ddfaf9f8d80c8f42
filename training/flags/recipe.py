"""A recipe: a YAML or JSON file of flags by name. It becomes words of a command line, so one parser reads both."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from lstmpool.training.errors import InputError, did_you_mean
from lstmpool.training.flags.arguments import OF_DATA_SETS, OF_FILES


RENAMED = {
    "evaluation_strategy": "eval_strategy",
    "group_by_length": "train_sampling_strategy",
    "model_name_or_path": "backbone",
    "no_cuda": "use_cpu",
    "overwrite_output_dir": "overwrite",
    "warmup_ratio": "warmup_steps",
}
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
    recipe, typed = Path(words[0]), words[1:]
    names = {word.partition("=")[0].lstrip("-").replace("-", "_") for word in typed if word.startswith("--")}
    left_out = set()
    if names & set(OF_FILES):
        left_out = {"dataset_name", *OF_DATA_SETS}
    elif "dataset_name" in names:
        left_out = set(OF_FILES)
    flags = []
    for key, value in _read(recipe).items():
        name = str(key).replace("-", "_")
        if name not in actions:
            raise unknown(str(key), f"key in the recipe {recipe}", actions)
        if name not in left_out:
            flags += _words(actions[name], value)
    return flags + typed


def unknown(name: str, what: str, actions: Actions) -> InputError:
    """The error for a `name` that is no flag, with a hint at the flag that was probably meant."""
    renamed = RENAMED.get(name.replace("-", "_"))
    hint = f" It is called {renamed!r} here." if renamed else did_you_mean(name.replace("-", "_"), actions)
    return InputError(f"unknown {what}: {name!r}.{hint} --help lists all.")


def _read(path: Path) -> dict[Any, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        recipe = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"expected a recipe (.yaml, .json) as the first word, cannot read {path}: {error}") from None
    except (yaml.YAMLError, json.JSONDecodeError) as error:
        raise InputError(f"recipe {path} is not valid {path.suffix[1:].upper() or 'YAML'}: {error}") from None
    if not isinstance(recipe, dict):
        raise InputError(f"recipe {path} must hold lines 'flag: value', found a {type(recipe).__name__}.")
    return recipe


def _words(action: argparse.Action, value: Any) -> list[str]:
    """One entry of a recipe as words of a command line. `null` leaves the default."""
    flag = f"--{action.dest}"
    if value is None:
        return []
    if value is False and action.choices and "no" in action.choices:
        value = "no"  # YAML reads an unquoted no as False
    if isinstance(value, dict):
        value = json.dumps(value)
    if isinstance(value, list):
        if action.nargs == "+":
            return [flag, *map(str, value)]
        value = ",".join(map(str, value))
    return [f"{flag}={value}"]
