"""Folds what is learnt after training into the classifier's weights, so all code that loads the model obeys it.

It comes in this order: the scale of regression targets, the temperature of `--calibrate`, the thresholds of
`--tune_thresholds`. Each changes logits by a formula. The formula is also applied to logits that were computed before,
and the tests compare the two.

`HeadThresholds` says what `--tune_thresholds` has taken from the logits in all runs that led to a model. A run that
starts from a finished model reads it in that model's metrics.json, and hands it on in its own. Exits that are added by
a later run lose as much: then they give the same answers as the head.

N rows, C outputs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import expit
from torch import nn

from lstmpool.training.evaluation.by_class import margins
from lstmpool.training.evaluation.calibration import (
    fit_temperature,
    fold_temperature,
    fold_thresholds,
    probability_metrics,
    tune_thresholds,
    tune_two_classes,
)
from lstmpool.training.model.target_scale import TargetScale
from lstmpool.training.tasks.task import Classification, Task


Arrays = dict[str, np.ndarray]  # by split
ENTRY = "head_thresholds"  # of metrics.json: `HeadThresholds`
HALVINGS = 40  # of the interval in which a share is searched
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


# ----------------------------------------------------------------------------------------------------- of earlier runs
@dataclass(frozen=True)
class HeadThresholds:
    """The thresholds that are in a head, in units of its logits."""

    settled: np.ndarray  # (C,), taken since the head was trained: all of them are still in it
    trained: np.ndarray  # (C,), taken before it was trained further, which may have undone a part or all of them

    @classmethod
    def none(cls, outputs: int) -> "HeadThresholds":
        return cls(np.zeros(outputs), np.zeros(outputs))

    @classmethod
    def read(cls, metrics: Mapping[str, Any], outputs: int) -> "HeadThresholds":
        """Those of a finished model with so many outputs, from its metrics.json; none if it names none that fit.

        Earlier releases name only those of the last run.
        """
        entry = metrics.get(ENTRY)
        if not isinstance(entry, dict):
            learned = metrics.get("learned_on_validation")
            entry = {"settled": learned.get("folded_thresholds")} if isinstance(learned, dict) else {}
        return cls(*(_numbers(entry.get(name), outputs) for name in ("settled", "trained")))

    @property
    def are_none(self) -> bool:
        return not (self.settled.any() or self.trained.any())

    def after(self, learned: Mapping[str, Any], trains: bool) -> "HeadThresholds":
        """Those after a run that `trains` the model, or does not, and folds into the head what it has `learned`."""
        settled, trained = self.settled, self.trained
        if trains:
            settled, trained = np.zeros_like(settled), settled + trained
        temperature = learned.get("temperature", 1.0)
        own = learned.get("folded_thresholds", 0.0)  # found after the temperature
        return HeadThresholds(settled / temperature + own, trained / temperature)

    def left(self, task: Classification, logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """What is still in the head, (C,), as validation rows with these `logits` (N, C) and labels show.

        Of each threshold that training may have undone, it is the share that must be given back for the least
        log-loss.
        """
        if not self.trained.any():
            return self.settled
        before, labels, thresholds = logits + self.settled, np.asarray(labels), self.trained
        if task.has_two_classes:  # of which only the difference counts
            before, labels = margins(before)[:, None], labels[:, None]
            thresholds = thresholds[1:] - thresholds[:1]
        return self.settled + self.trained * _shares(before, labels, thresholds)

    def record(self) -> dict[str, list[float]]:
        """The entry of metrics.json."""
        return {"settled": self.settled.tolist(), "trained": self.trained.tolist()}


def _numbers(found: Any, outputs: int) -> np.ndarray:
    """What metrics.json holds, (C,); zeros if these are not `outputs` finite numbers."""
    fits = isinstance(found, list) and len(found) == outputs and all(isinstance(each, float) for each in found)
    return np.array(found) if fits and np.isfinite(found).all() else np.zeros(outputs)


def _shares(logits: np.ndarray, labels: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """The shares (C,), from 0 to 1, with which `logits + share * thresholds` (N, C) have the least log-loss for the
    `labels` (N, C) of zeros and ones. The loss is convex: its slope says on which side of a share its least lies."""
    low, high = np.zeros(len(thresholds)), np.ones(len(thresholds))
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        slope = thresholds * (expit(logits + middle * thresholds) - labels).mean(0)
        high = np.where(slope > 0, middle, high)
        low = np.where(slope > 0, low, middle)
    return high
