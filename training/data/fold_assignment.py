"""Which training rows are in which fold: spread by their labels, without leaks, and the same for the same seed.

Rows with the same text, or of the same group (`--group_column`), are in one fold, as those held out for validation are
on one side (see `units_of`). What is spread is, for one label a text, the classes; for one number, its bins of equally
many rows; for several labels, each of them, and the rows without any; for several numbers, the bins of each, as is
usual in competitions with such targets. The last two are iterative stratification (Sechidis et al., On the
Stratification of Multi-Label Data, 2011), which counts a unit of several rows as one.
"""

import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
from iterstrat.ml_stratifiers import MultilabelStratifiedKFold
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from lstmpool.training.arguments import DataArguments
from lstmpool.training.data.holdout import units_of
from lstmpool.training.data.rows import Split
from lstmpool.training.errors import InputError
from lstmpool.training.tasks.task import BINS, Task


UNFIT = {  # what does not go with folds
    "push_to_hub": "there is one model a fold, and none that stands for all. Publish one: lstmpool.training.publish",
    "calibrate": "the temperature would be fitted on the very rows that a fold predicts. Leave it out.",
    "tune_thresholds": "the thresholds would be fitted on the very rows that a fold predicts. Leave it out.",
    "resume_from_checkpoint": "each fold goes on by itself when the command is given again. Leave it out.",
    "hp_search": "a search takes the rows of one validation split. Search without folds first.",
}


def check_flags(data_args: DataArguments, given: dict[str, Any], places: dict[str, str]) -> dict[str, str]:
    """The `places` of the splits that are read, for these flags.

    Args:
        given: those of the training arguments that were named.
        places: of all splits that there are, see `named_splits`.

    Raises:
        InputError: for flags that do not go with --cv_folds, or that need it.
    """
    folds = data_args.cv_folds
    if folds is None:
        held_out = "train" in places and "validation" not in places and data_args.validation_size > 0
        if data_args.group_column and not (held_out and given.get("do_train", True) and given.get("do_eval", True)):
            raise InputError(
                "--group_column keeps rows together in --cv_folds, or where validation rows are held out of the "
                "training rows; found neither. Leave it out."
            )
        return places
    if folds < 2:
        raise InputError(f"--cv_folds must be 2 or more, got {folds}.")
    if "train" not in places:
        raise InputError("--cv_folds needs training rows, found none. Name them with --train_file or --dataset_name.")
    for name in ("validation_file", "validation_split_name", "max_eval_samples"):
        if getattr(data_args, name) is not None:
            raise InputError(
                f"--{name} does not go with --cv_folds, where each fold is validated on in turn. Leave it out, of the "
                "recipe too."
            )
    for name, why in UNFIT.items():
        if given.get(name):
            raise InputError(f"--{name} does not go with --cv_folds: {why}")
    for name in ("do_train", "do_eval"):
        if not given.get(name, not any(given.get(flag) for flag in ("do_train", "do_eval", "do_predict"))):
            raise InputError(f"--cv_folds trains and evaluates, found that {name} is off. Add --{name}.")
    if "validation" in places:
        print(f"The validation rows of {data_args.dataset_name} are not read: each fold is validated on in turn.")
    return {name: place for name, place in places.items() if name != "validation"}


def assign_folds(train: Split, task: Task, folds: int, seed: int) -> np.ndarray:
    """The fold (N,) of each row, from 1 to `folds`.

    Raises:
        InputError: if there are fewer rows, groups or rows of a class than folds, or a fold would be empty.
    """
    units = np.array(units_of(train))
    _check_enough(train, task, units, folds)
    indicators = task.indicators(train.labels, units, folds)
    if indicators is None:
        assigned = _by_stratum(train, task, units, folds, seed)
    else:
        assigned = _iterative(indicators, folds, seed)[units]
    if missing := sorted(set(range(1, folds + 1)) - set(assigned.tolist())):
        raise InputError(
            f"--cv_folds {folds}: fold {missing[0]} would be empty, because the groups are of very different sizes. "
            "Choose fewer folds."
        )
    return assigned


def _by_stratum(train: Split, task: Task, units: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """The fold (N,) of each row."""
    bins = min(BINS, (units.max() + 1) // folds)
    strata = np.array(task.strata(train.labels, bins))
    each_row_is_a_unit = len(set(units)) == len(units)
    kind = StratifiedKFold if each_row_is_a_unit else StratifiedGroupKFold
    splitter = kind(folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of bins with fewer units than folds
        return _numbered(splitter.split(strata, strata, units), len(train))


def _iterative(indicators: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """The fold (U,) of each unit, by `indicators` (U, K)."""
    splitter = MultilabelStratifiedKFold(folds, shuffle=True, random_state=seed)
    return _numbered(splitter.split(indicators, indicators), len(indicators))


def _numbered(splits: Iterable[tuple[np.ndarray, np.ndarray]], total: int) -> np.ndarray:
    """From pairs (kept, held out) to the number of the split in which each is held out, from 1; (total,)."""
    numbers = np.zeros(total, dtype=int)
    for number, (_, held) in enumerate(splits, 1):
        numbers[held] = number
    return numbers


def _check_enough(train: Split, task: Task, units: np.ndarray, folds: int) -> None:
    found, merged = units.max() + 1, ""
    if train.groups is not None and found < len(set(train.groups)):
        merged = f" (of {len(set(train.groups))} groups; rows of different ones with the same text join them)"
    what = "texts" if train.groups is None else "groups"
    if found < folds:
        raise InputError(
            f"--cv_folds {folds} needs that many different {what} in {train.source}, found {found}{merged}. Choose "
            "fewer folds."
        )
    rarest = task.rarest_class(train.labels, units)
    if rarest is not None and rarest[1] < folds:
        name, count = rarest
        raise InputError(
            f"--cv_folds {folds} needs that many different {what} of each class, found {count} of {name!r}{merged}. "
            "Choose fewer folds, add rows, or leave that class out."
        )
