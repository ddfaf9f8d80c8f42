"""Folds what is learnt after training into the classifier's weights, so all code that loads the model obeys it.

It comes in this order: the scale of regression targets, the temperature of `--calibrate`, the thresholds of
`--tune_thresholds`. Each changes logits by a formula. The formula is also applied to logits that were computed before,
and the tests compare the two.
"""

from typing import Any

import numpy as np
from torch import nn

from lstmpool.training.evaluation.calibration import (
    fit_temperature,
    fold_temperature,
    fold_thresholds,
    probability_metrics,
    tune_thresholds,
    tune_two_classes,
)
from lstmpool.training.model.target_scale import TargetScale
from lstmpool.training.tasks.task import Task


Arrays = dict[str, np.ndarray]  # by split
Learned = tuple[Arrays, dict[str, Any]]  # the logits (N, C) that the head gives from now on, and what was learnt


def fold_scale(head: nn.Linear, scale: TargetScale, logits: Arrays, skip: nn.Linear | None = None) -> Learned:
    """From now on, `head`, and `skip` beside it, give regression targets in their own units."""
    scale.switch_off(head, skip)
    scaled = {split: values * scale.scale for split, values in logits.items()}
    return scaled, {"target_scale": scale.scale.tolist()}


def calibrate(head: nn.Linear, task: Task, logits: Arrays, targets: Arrays, skip: nn.Linear | None = None) -> Learned:
    """Fits a temperature on validation, and divides `head`, and `skip` beside it, by it.

    `targets` are the labels, of the splits with any.
    """
    temperature = fit_temperature(task, logits["validation"], targets["validation"])
    fold_temperature(head, temperature, skip)
    calibrated = {split: values / temperature for split, values in logits.items()}
    effect = {}
    for split, labels in targets.items():
        effect[split] = {
            "before": probability_metrics(task, logits[split], labels),
            "after": probability_metrics(task, calibrated[split], labels),
        }
    return calibrated, {"temperature": temperature, "calibration": effect}


def find_thresholds(head: nn.Linear, task: Task, logits: Arrays, targets: Arrays, fold: bool) -> Learned:
    """Finds each label's best threshold on validation, or that of two classes, and moves it to 0 in `head`.

    With `fold` unset, it is only measured.
    """
    tune = tune_two_classes if task.has_two_classes else tune_thresholds
    thresholds = tune(logits["validation"], targets["validation"])  # (C,)
    thresholds = thresholds.astype(logits["validation"].dtype)  # or the logits of many labels would become wider
    found: dict[str, Any] = {"probabilities": task.probabilities(thresholds[None])[0].tolist()}  # that become 0.5
    for split, labels in targets.items():
        found[split] = {
            "at_half": task.score(task.decide(logits[split]), labels),
            "at_thresholds": task.score(task.decide(logits[split] - thresholds), labels),
        }
    if not fold:
        return logits, {"thresholds": found}
    fold_thresholds(head, thresholds)
    shifted = {split: values - thresholds for split, values in logits.items()}
    return shifted, {"thresholds": found, "folded_thresholds": thresholds.tolist()}  # folded ones are logits
