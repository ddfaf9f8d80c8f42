"""The space of a search of settings: for each setting, a range or a list of choices (`--hp_space`)."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lstmpool.training.errors import InputError, did_you_mean
from lstmpool.training.flags.arguments import ModelArguments
from lstmpool.training.flags.defaults import Limits
from lstmpool.training.flags.documents import parse_document, read_text, typed
from lstmpool.training.flags.training_arguments import TrainingArguments
from lstmpool.training.loop.trainer_arguments import changed, within_limits


SCALES = ("log", "linear")
DEFAULT = {
    "learning_rate": [1e-5, 2e-4, "log"],
    "head_learning_rate": [1e-4, 1e-2, "log"],
    "num_train_epochs": [2, 3, 4, 6],
}
OF_BACKBONE = ("learning_rate", "layerwise_lr_decay")
OF_MODEL = ("pooler_dropout", "lstm_hidden_size")
BOUNDS = {  # for each setting that can be searched: kind, lowest, highest
    "learning_rate": (float, 0.0, math.inf),
    "head_learning_rate": (float, 0.0, math.inf),
    "layerwise_lr_decay": (float, 1e-3, 1.0),
    "num_train_epochs": (float, 1e-3, math.inf),
    "weight_decay": (float, 0.0, math.inf),
    "warmup_steps": (float, 0.0, math.inf),
    "max_grad_norm": (float, 0.0, math.inf),
    "per_device_train_batch_size": (int, 1, math.inf),
    "pooler_dropout": (float, 0.0, 0.99),
    "lstm_hidden_size": (int, 1, math.inf),
}


@dataclass(frozen=True)
class Values:
    """What one setting may be: a number from `low` to `high`, drawn on a linear or a log scale, or a choice."""

    kind: type
    low: float = math.nan
    high: float = math.nan
    log: bool = False
    choices: tuple[float, ...] = ()

    def __contains__(self, value: Any) -> bool:
        if value is None:
            return False
        if self.choices:
            return value in self.choices
        return self.low <= value <= self.high

    def with_own(self, own: float | None) -> "Values":
        """The same values, and the command's `own` value."""
        if own is None or own in self or (self.log and own <= 0):
            return self
        if self.choices:
            return replace(self, choices=tuple(sorted((*self.choices, own))))
        return replace(self, low=min(self.low, own), high=max(self.high, own))


Space = dict[str, Values]  # by the setting's name


def space_of(model_args: ModelArguments, args: TrainingArguments) -> Space:
    """What `--hp_search` searches; empty if it is not set.

    Raises:
        InputError: if `--hp_space` cannot be read, or names a setting that cannot be searched or changes nothing.
    """
    if args.hp_search is None:
        return {}
    useless = _useless(model_args, args)
    if args.hp_space is None:
        names = [name for name in DEFAULT if name not in useless]
        return {name: _values(name, DEFAULT[name]).with_own(getattr(args, name)) for name in names}
    space = _read(args.hp_space)
    for name in space:
        if name not in BOUNDS:
            raise InputError(
                f"--hp_space: {name!r} cannot be searched.{did_you_mean(str(name), BOUNDS)} Expected some of "
                f"{', '.join(BOUNDS)}."
            )
        if name in useless:
            reason = "--max_steps" if name == "num_train_epochs" else "a frozen backbone"
            reason = "the model of --init_from" if name in OF_MODEL else reason
            raise InputError(f"--hp_space: {name} changes nothing with {reason}. Leave it out.")
    return {name: _values(name, given) for name, given in space.items()}


def of_rows(space: Space, args: TrainingArguments, rows: int, tokens: float = 1) -> tuple[Space, TrainingArguments]:
    """The space and the arguments of a search that is to train on `rows`. `tokens`: of the median row.

    Where the numbers of epochs are searched, they alone say how long a trial is. Those of the default space are for
    runs that are long enough; where rows are few, each becomes as many times larger as the run without a search.
    """
    if "num_train_epochs" not in space:
        return space, args
    if args.hp_space is not None:
        return space, changed(args, limits=Limits())
    own = within_limits(args, rows, tokens).num_train_epochs
    times = own / args.num_train_epochs
    epochs = space["num_train_epochs"]
    if times > 1:
        epochs = replace(epochs, choices=tuple(sorted({float(round(choice * times)) for choice in epochs.choices})))
    limits = args.limits._replace(least_steps=0)
    return space | {"num_train_epochs": epochs}, changed(args, num_train_epochs=own, limits=limits)


def _useless(model_args: ModelArguments, args: TrainingArguments) -> set[str]:
    """The settings that change nothing in this run."""
    useless: set[str] = set()
    if model_args.freeze_backbone:
        useless |= set(OF_BACKBONE)
    if model_args.peft:  # it freezes the backbone, too
        useless.add("layerwise_lr_decay")
    if model_args.init_from:
        useless |= set(OF_MODEL)
    if args.max_steps > 0:
        useless.add("num_train_epochs")
    return useless


def _read(given: str) -> dict[Any, Any]:
    """The lists by setting. `given` is JSON, or the path of a JSON or YAML file."""
    text = given
    place = "--hp_space"
    if not given.lstrip().startswith("{"):
        place = f"--hp_space {given}"
        text = read_text(Path(given), f'{place}: expected JSON, {{"NAME": [...]}}, or a file, cannot read it')
    space = typed(parse_document(text, place, is_json=text.lstrip().startswith("{")), place)
    if not space:
        raise InputError(f"{place} must hold lists by the names of settings, found {space!r}.")
    return space


def _values(name: str, given: Any) -> Values:
    """What setting `name` may be, from its list in `--hp_space`. Raises InputError if the list is not well formed."""
    kind, lowest, highest = BOUNDS[name]
    form = f'[low, high, "log"], [low, high, "linear"], or a list of {kind.__name__} numbers'
    if not isinstance(given, list) or not given:
        raise InputError(f"--hp_space: {name} must be {form}, found {given!r}.")
    scale = given[-1] if given[-1] in SCALES else None
    numbers = [_number(value) for value in (given[:-1] if scale else given)]
    if None in numbers or (scale and len(numbers) != 2):
        raise InputError(f"--hp_space: {name} must be {form}, found {given!r}.")
    for number in numbers:
        if not lowest <= number <= highest or number == math.inf or (kind is int and number != int(number)):
            raise InputError(
                f"--hp_space: {name} must be {kind.__name__} of {lowest:g} to {highest:g}, got {number:g}."
            )
    if not scale:
        return Values(kind, choices=tuple(dict.fromkeys(map(kind, numbers))))
    low, high = map(kind, numbers)
    if not low < high or (scale == "log" and low <= 0):
        above = " above 0" if scale == "log" else ""
        raise InputError(f"--hp_space: {name} must go from a low number{above} to a higher one, got {given!r}.")
    return Values(kind, low, high, scale == "log")


def _number(value: Any) -> float | None:
    """`value` as a number, or None if it is not one. YAML reads 1e-5 as a string."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        return float(value)
    except ValueError:
        return None
