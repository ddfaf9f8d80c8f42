"""What the exits of a model were fitted to, when they are taken, and what that costs and saves.

N rows, E exits, C outputs. Layers are the numbers of the backbone's layers that are read, lowest first.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from lstmpool.training.evaluation.exit_rules import candidates, lowest_within, mixed, places_of, rows_needed
from lstmpool.training.evaluation.results import Evaluation
from lstmpool.training.flags.arguments import BOUNDED
from lstmpool.training.tasks.task import Task


POINTS = 60  # thresholds of the curve that the picture shows


class Tried(NamedTuple):
    """What a threshold would give on rows."""

    threshold: float
    mean_layers: float
    score: float  # the headline metric


@dataclass(frozen=True)
class ExitSettings:
    """What was asked for. `rule`: None if a flag names the threshold."""

    rule: str | None
    max_drop: float  # points

    @property
    def drop(self) -> float:
        """`max_drop` in the units of a metric from 0 to 1."""
        return self.max_drop / 100


@dataclass(frozen=True)
class ExitResults:
    """The exits of a run."""

    settings: ExitSettings
    layers: list[int]
    rows: int  # of the training rows, to which the exits were fitted
    fitted_to_validation: bool  # and to the validation rows, each of which is judged by exits fitted without it
    seconds: float  # which that took
    temperatures: list[float]  # of the exits
    folded_thresholds: list[float]  # that were taken from the logits of the head, and of the exits, (C,)
    threshold: float | None  # None: off
    places: dict[str, np.ndarray]  # of the rows of each split, (N,)
    alone: dict[str, list[float]]  # by labelled split: the headline metric of each exit by itself, then of the model
    curve: dict[str, list[Tried]]  # by labelled split
    answers: Evaluation  # of the model with its exits
    validation_rows: int
    gains: dict[int, float] = field(default_factory=dict)  # by the rows of a batch: how many times as fast

    @property
    def is_on(self) -> bool:
        return self.threshold is not None

    @property
    def why_off(self) -> str:
        """Why no text leaves early; empty if some may."""
        if self.is_on:
            return ""
        if self.settings.rule == BOUNDED:
            needed = rows_needed(self.settings.drop)
            if self.validation_rows < needed:
                return (
                    f"the rule {BOUNDED} needs {needed:,} validation rows for a drop of {self.settings.max_drop:g} "
                    f"points if none of them is lost, found {self.validation_rows:,}"
                )
        return f"none keeps the drop on validation rows within {self.settings.max_drop:g} points and saves a layer"

    def mean_layers(self, split: str) -> float:
        """How many layers of the backbone run for a row of `split`, on average."""
        return float(np.array(self.layers)[self.places[split]].mean())

    def shares(self, split: str) -> list[float]:
        """The share of the rows of `split` that are answered at each layer."""
        return (np.bincount(self.places[split], minlength=len(self.layers)) / len(self.places[split])).tolist()

    @property
    def shallower(self) -> list[int] | None:
        """The layers up to the lowest one that by itself is within the drop on validation; None: there is none."""
        *below, whole = self.alone["validation"]
        place = lowest_within(below, whole, self.settings.drop)
        return None if place is None else self.layers[: place + 1]

    def record(self) -> dict[str, Any]:
        """The entry `early_exit` of metrics.json."""
        recorded = self.answers.record()
        headline = self.answers.task.headline
        by_split = {}
        for split in self.places:
            by_split[split] = {"mean_layers": self.mean_layers(split), "share_at_layer": self.shares(split)}
            if split in self.alone:
                by_split[split] |= {
                    "layer_alone": self.alone[split][:-1],
                    "whole_model": self.alone[split][-1],
                    "with_exits": self.answers.results[split][headline],
                }
        return {
            "threshold": self.threshold,
            "rule": self.settings.rule,
            "max_drop": self.settings.max_drop,
            "why_off": self.why_off,
            "rows": self.rows,
            "fitted_to_validation": self.fitted_to_validation,
            "validation_rows": self.validation_rows,
            "layers": self.layers,
            "temperatures": self.temperatures,
            "folded_thresholds": self.folded_thresholds,
            "metric": headline,
            "splits": by_split,
            "times_as_fast": {str(size): gain for size, gain in self.gains.items()},
            "results": recorded["results"],
            "intervals": recorded["intervals"],
        }


def headline_of(task: Task, logits: np.ndarray, labels: np.ndarray) -> float:
    """The headline metric of `logits` (N, C). Of classes and labels, higher is better."""
    return float(task.headline_of(*task.by_row(task.decide(logits), labels)))


def are_right(task: Task, logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Whether each row's answer is right, (N,): of several labels, all of them."""
    answers = task.decide(logits)
    return (answers == np.asarray(labels).reshape(answers.shape)).reshape(len(answers), -1).all(1)


def scores_alone(task: Task, exit_logits: np.ndarray, logits: np.ndarray, labels: np.ndarray) -> list[float]:
    """The headline metric of each exit (N, E, C) by itself, and of the whole model (N, C)."""
    columns = [exit_logits[:, place] for place in range(exit_logits.shape[1])]
    return [headline_of(task, of_layer, labels) for of_layer in (*columns, logits)]


def curve_of(
    task: Task,
    confidences: np.ndarray,
    exit_logits: np.ndarray,
    logits: np.ndarray,
    labels: np.ndarray,
    layers: list[int],
) -> list[Tried]:
    """What `POINTS` thresholds would give, from the surest down."""
    tried = candidates(confidences)
    tried = tried[np.unique(np.linspace(0, len(tried) - 1, POINTS).round().astype(int))]
    found = []
    for threshold in tried:
        places = places_of(confidences, threshold)
        score = headline_of(task, mixed(exit_logits, logits, places), labels)
        found.append(Tried(float(threshold), float(np.array(layers)[places].mean()), score))
    return found


def results_of(metrics: Mapping[str, Any], name: str) -> Any:
    """The entry `name` of a metrics.json, "results" or "intervals", of what the folder's model answers: with its exits
    where they are on."""
    exits = metrics.get("early_exit")
    return exits[name] if exits and exits["threshold"] is not None and name in exits else metrics.get(name, {})
