"""What is learnt after training goes into the classifier's weights, so that whatever loads the model obeys it.

In this order: the scale of regression targets, the temperature of `--calibrate`, the thresholds of
`--tune_thresholds`. Each changes logits by a formula, which is applied to those that were computed before, too; the
tests hold the two against each other.
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
)
from lstmpool.training.model.target_scale import TargetScale
from lstmpool.training.tasks.labels import MULTI
from lstmpool.training.tasks.metrics import TaskMetrics
from lstmpool.training.training_arguments import TrainingArguments


Arrays = dict[str, np.ndarray]  # by split


def fold_into(
    head: nn.Linear,
    args: TrainingArguments,
    problem_type: str,
    logits: Arrays,
    targets: Arrays,
    metrics: TaskMetrics,
    scale: TargetScale | None,
) -> tuple[Arrays, dict[str, Any]]:
    """Changes `head` in place; returns the logits (N, C) that the model gives from now on, and what was learnt.

    Args:
        logits: what the model gave for each split, (N, C).
        targets: the labels of the splits that have them.
        scale: what regression targets were divided by in training, if they were.
    """
    learned: dict[str, Any] = {}
    if scale is not None:
        scale.switch_off(head)
        logits = {name: values * scale.scale for name, values in logits.items()}
        learned["target_scale"] = scale.scale.tolist()
    if args.calibrate:
        temperature = fit_temperature(logits["validation"], targets["validation"], problem_type)
        fold_temperature(head, temperature)
        before, logits = logits, {name: values / temperature for name, values in logits.items()}
        learned["temperature"] = temperature
        learned["calibration"] = {
            name: {
                "before": probability_metrics(before[name], targets[name], problem_type),
                "after": probability_metrics(logits[name], targets[name], problem_type),
            }
            for name in targets
        }
    if problem_type == MULTI and "validation" in targets:
        thresholds = tune_thresholds(logits["validation"], targets["validation"])
        shifted = {name: values - thresholds for name, values in logits.items()}
        learned["thresholds"] = {
            "probabilities": (1 / (1 + np.exp(-thresholds))).tolist(),
            **{
                name: {
                    "at_half": metrics.compute(metrics.decide(logits[name]), targets[name]),
                    "at_thresholds": metrics.compute(metrics.decide(shifted[name]), targets[name]),
                }
                for name in targets
            },
        }
        if args.tune_thresholds:
            fold_thresholds(head, thresholds)
            learned["folded_thresholds"] = thresholds.tolist()  # as logits
            logits = shifted
    return logits, learned
