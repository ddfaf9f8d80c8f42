"""Which training rows are in which fold: spread by their labels, without leaks, and the same for the same seed.

Rows with the same text, or of the same group (`--group_column`), are in one fold, as those held out for validation are
on one side (see `units_of`). What is spread is, for one label a text, the classes; for one number, its bins of equally
many rows; for several labels, each of them, and the rows without any; for several numbers, the bins of each, as is
usual in competitions with such targets. The last two are iterative stratification (Sechidis et al., On the
Stratification of Multi-Label Data, 2011), which counts a unit of several rows as one.
"""

import warnings
from collections import Counter, defaultdict
from typing import Any

import numpy as np
import pandas
from iterstrat.ml_stratifiers import MultilabelStratifiedKFold
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from lstmpool.training.arguments import DataArguments
from lstmpool.training.data.holdout import BINS, strata_of, units_of
from lstmpool.training.data.rows import Split
from lstmpool.training.errors import InputError
from lstmpool.training.tasks.labels import MULTI, REGRESSION, SINGLE, Labels


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


def assign_folds(train: Split, labels: Labels, folds: int, seed: int) -> np.ndarray:
    """The fold (N,) of each row, from 1 to `folds`.

    Raises:
        InputError: if there are fewer rows, groups or rows of a class than folds, or a fold would be empty.
    """
    units = np.array(units_of(train))
    _check_enough(train, labels, units, folds)
    if labels.problem_type == MULTI or (labels.problem_type == REGRESSION and len(labels.names) > 1):
        of_units = _iterative(train.labels, labels.problem_type, units, folds, seed)
        assigned = of_units[units]
    else:
        bins = min(BINS, (units.max() + 1) // folds)
        strata = np.array(strata_of(train.labels, labels.problem_type, bins))
        lone = len(set(units)) == len(units)
        splitter = (StratifiedKFold if lone else StratifiedGroupKFold)(folds, shuffle=True, random_state=seed)
        assigned = np.zeros(len(train), dtype=int)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of bins with fewer units than folds
            for fold, (_, held) in enumerate(splitter.split(strata, strata, units), 1):
                assigned[held] = fold
    if missing := sorted(set(range(1, folds + 1)) - set(assigned.tolist())):
        raise InputError(
            f"--cv_folds {folds}: fold {missing[0]} would be empty, because the groups are of very different sizes. "
            "Choose fewer folds."
        )
    return assigned


def _iterative(targets: list[Any], problem_type: str, units: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """The fold (U,) of each unit."""
    table = pandas.DataFrame(np.array(targets, dtype=float)).groupby(units)  # of (N, C), by unit
    if problem_type == MULTI:
        has = table.max().to_numpy() > 0  # (U, C)
        spread = np.column_stack([has, ~has.any(1)])
    else:
        means = table.mean().to_numpy()  # (U, C)
        shares = np.linspace(0, 1, min(BINS, len(means) // folds) + 1)[1:-1]
        edges = np.quantile(means, shares, axis=0)  # (bins - 1, C)
        bins = (means[:, :, None] > edges.T[None]).sum(-1)  # (U, C): equal numbers are in one bin
        spread = (bins[:, :, None] == np.arange(len(edges) + 1)).reshape(len(bins), -1)  # (U, C * bins)
    splitter = MultilabelStratifiedKFold(folds, shuffle=True, random_state=seed)
    assigned = np.zeros(len(spread), dtype=int)
    for fold, (_, held) in enumerate(splitter.split(spread, spread), 1):
        assigned[held] = fold
    return assigned


def _check_enough(train: Split, labels: Labels, units: np.ndarray, folds: int) -> None:
    found, merged = units.max() + 1, ""
    if train.groups is not None and found < len(set(train.groups)):
        merged = f" (of {len(set(train.groups))} groups; rows of different ones with the same text join them)"
    what = "texts" if train.groups is None else "groups"
    if found < folds:
        raise InputError(
            f"--cv_folds {folds} needs that many different {what} in {train.source}, found {found}{merged}. Choose "
            "fewer folds."
        )
    if labels.problem_type == SINGLE:
        units_with = defaultdict(set)
        for unit, label in zip(units.tolist(), train.labels, strict=True):
            units_with[label].add(unit)
        rarest, count = min(Counter({label: len(of) for label, of in units_with.items()}).items(), key=lambda x: x[1])
        if count < folds:
            raise InputError(
                f"--cv_folds {folds} needs that many different {what} of each class, found {count} of "
                f"{labels.names[rarest]!r}{merged}. Choose fewer folds, add rows, or leave that class out."
            )
