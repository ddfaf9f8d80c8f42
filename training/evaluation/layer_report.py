"""Which layers matter: linear models of some of the layers a model reads, judged on validation rows.

The layer states (N, L, S) of the finished model are read once. From these, `report_on` fits a regularised linear model
of layers 1 to k, of each layer alone, and of all layers but one. It also leaves out layers together, one by one, the
least harmful first, until the rest will not do. Each score stands beside that of all layers, with a paired interval of
their difference over the validation rows. The intervals ignore chance in training.

Training rows alone decide how strongly a model is regularised and which layer goes next. To these rows the backbone
has been fitted, unless it is frozen, so they say less than new ones would. Validation rows say where to stop. Of fewer
than `LEAST_JUDGED`, there are the numbers, and no layers are named that would do.

N training rows, M validation rows, L layers read, S width of a layer's vector, C outputs. Places are those of layers
in the order that they are read, from 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lstmpool.pooling_lstmpool import mean_and_scale
from lstmpool.training.evaluation.differences import paired_interval
from lstmpool.training.evaluation.linear import deal_folds, drawn
from lstmpool.training.model.exit_training import Rows
from lstmpool.training.model.linear_start import Loss, Weights, fit_weights, label_tensor, summed_loss
from lstmpool.training.tasks.metrics import LOWER_IS_BETTER
from lstmpool.training.tasks.task import Task


TOLERANCE = 0.005  # of the headline metric; of an error, this share of it
ROUNDING = 1e-9  # one of 200 rows is no more than that
# Of fewer validation rows, a single one is more than the tolerance.
LEAST_JUDGED = round(1 / TOLERANCE)
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1)  # C of a logistic regression
PARTS = 5  # of the training rows, of which one is held out
MOST_FITTED, LEAST_FITTED = 2000, 500  # training rows; so few are taken where more would take many minutes
MOST_JUDGED = 5000  # validation rows
WORK = 2e10  # training rows x features of all fits x outputs: about two minutes of one core


class LayerSet(NamedTuple):
    """A linear model of some layers."""

    layers: list[int]  # their numbers in the backbone
    score: float  # the headline metric on validation rows
    interval: tuple[float, float] | None = None  # of `score` less that of all layers; None: the same answers


@dataclass(frozen=True)
class LayerReport:
    """What linear models of some of the layers give on validation rows."""

    task: Task
    layers: list[int]  # that the model reads, lowest first
    rows: int  # of training, to which they were fitted
    validation_rows: int
    model_score: float  # the model's own, on the same rows
    whole: float  # of the linear model of all layers
    up_to: list[LayerSet]  # layers 1 to k, for each k
    alone: list[LayerSet]  # each layer
    without: list[LayerSet]  # all but one, for each layer
    path: list[LayerSet]  # layers left out together, one more each time, until the rest will not do
    seconds: float = 0.0  # which all that took

    def difference(self, of: LayerSet) -> float:
        """The score of these layers less that of all."""
        return of.score - self.whole

    @property
    def worse(self) -> int:
        """The sign of a difference that is a loss."""
        return 1 if self.task.headline in LOWER_IS_BETTER else -1

    @property
    def tolerance(self) -> float:
        """The largest loss that will do, in the units of the metric."""
        return TOLERANCE * (self.whole if self.task.has_numbers else 1)

    def most_lost(self, of: LayerSet) -> float:
        """The largest loss in the interval; below 0 if all of it is a gain, and 0 if there is none."""
        return max(self.worse * bound for bound in of.interval) if of.interval else 0.0

    def loses(self, of: LayerSet) -> bool:
        """Whether a loss shows: the whole interval is one."""
        return of.interval is not None and min(self.worse * bound for bound in of.interval) > 0

    def will_do(self, of: LayerSet) -> bool:
        """Whether no loss shows, and what is lost on these rows is within the tolerance."""
        return not self.loses(of) and self.worse * self.difference(of) <= self.tolerance + ROUNDING

    @property
    def is_enough(self) -> bool:
        """Whether there are enough validation rows to name layers that will do."""
        return self.validation_rows >= LEAST_JUDGED

    @property
    def shallow(self) -> LayerSet | None:
        """The fewest layers from the lowest up that will do, as more of them do.

        None: the highest is needed, or there are too few validation rows to say so.
        """
        found = None
        if not self.is_enough:
            return found
        for of in reversed(self.up_to[:-1]):
            if not self.will_do(of):
                break
            found = of
        return found

    @property
    def fewest(self) -> LayerSet | None:
        """The fewest layers on the path that will do; None if it ends with its first step, or as for `shallow`."""
        kept = [of for of in self.path if self.will_do(of)]
        return kept[-1] if kept and self.is_enough else None

    def record(self) -> dict[str, Any]:
        """The entry `layer_report` of metrics.json."""
        sets = {"up_to": self.up_to, "alone": self.alone, "without": self.without, "path": self.path}
        named = {"shallow": self.shallow, "fewest": self.fewest}
        return {
            "metric": self.task.headline,
            "layers": self.layers,
            "rows": self.rows,
            "validation_rows": self.validation_rows,
            "least_validation_rows": LEAST_JUDGED,  # of fewer, `shallow` and `fewest` are None
            "seconds": round(self.seconds, 1),
            "tolerance": self.tolerance,
            "model": self.model_score,
            "all_layers": self.whole,
            **{name: [self._record(of) for of in found] for name, found in sets.items()},
            **{f"{name}": of and of.layers for name, of in named.items()},
        }

    def _record(self, of: LayerSet) -> dict[str, Any]:
        return {**of._asdict(), "difference": self.difference(of)}


def report_on(
    task: Task, layers: list[int], train: Rows, validation: Rows, answers: np.ndarray, seed: int, device: str = "cpu"
) -> LayerReport:
    """Fits the linear models and judges them.

    Args:
        task: says which metric judges.
        layers: numbers of the L layers, lowest first; two or more.
        train: two rows or more. Of many, some are drawn.
        validation: one row or more.
        answers: the model's own, to the validation rows.
        seed: draws rows.
        device: where the models are fitted.
    """
    rows = drawn(len(train.labels), rows_fitted(*train.states.shape[1:], len(task.names)), seed)
    fits = Fits(task, Rows(train.states[rows], train.labels[rows]), validation.states, seed, device)
    places = tuple(range(len(layers)))
    judge = _Judge(task, fits, layers, validation.labels, fits.answers(places))
    whole = judge.score(judge.whole)
    report = LayerReport(
        task,
        layers,
        rows=len(rows),
        validation_rows=len(validation.labels),
        model_score=judge.score(answers),
        whole=whole,
        up_to=[judge.of(places[: k + 1]) for k in places],
        alone=[judge.of((place,)) for place in places],
        without=[judge.of(_less(places, place)) for place in places],
        path=[],
    )
    while len(places) > 1:
        places = fits.least_harmful(places)
        report.path.append(judge.of(places))
        if not report.will_do(report.path[-1]):
            break
    return report


def rows_fitted(layers: int, width: int, outputs: int) -> int:
    """To how many training rows at most the linear models of all sets of `layers` are fitted."""
    features = width * (1.5 * (len(STRENGTHS) + 1) * layers**2 + layers**3 / 3)  # of all sets, and of those tried
    return int(np.clip(WORK / (features * outputs), LEAST_FITTED, MOST_FITTED))


def _less(places: tuple[int, ...], left_out: int) -> tuple[int, ...]:
    return tuple(place for place in places if place != left_out)


# ------------------------------------------------------------------------------------------------------------ judging
@dataclass(frozen=True)
class _Judge:
    """Scores linear models of some layers on the validation rows, each set once."""

    task: Task
    fits: "Fits"
    layers: list[int]
    labels: np.ndarray  # (M,) or (M, C)
    whole: np.ndarray  # answers of the linear model of all layers
    judged: dict[tuple[int, ...], LayerSet] = field(default_factory=dict)

    def of(self, places: tuple[int, ...]) -> LayerSet:
        if places not in self.judged:
            answers = self.whole if len(places) == len(self.layers) else self.fits.answers(places)
            interval = paired_interval(self.task, answers, self.whole, self.labels)
            named = [self.layers[place] for place in places]
            self.judged[places] = LayerSet(named, self.score(answers), interval)
        return self.judged[places]

    def score(self, answers: np.ndarray) -> float:
        return float(self.task.headline_of(*self.task.by_row(answers, self.labels)))


# ------------------------------------------------------------------------------------------------------------ fitting
class Fits:
    """Linear models of some layers, each as regularised as held-out training rows find best.

    Args:
        task: its loss is minimised.
        train: the rows that they are fitted to. Their mean and spread standardise all states.
        states: layer states (M, L, S) that they are judged on.
        seed: draws the part of the training rows that is held out.
        device: where they are fitted.
    """

    def __init__(self, task: Task, train: Rows, states: np.ndarray, seed: int, device: str = "cpu"):
        self.task = task
        self.loss: Loss = summed_loss(task.problem_type)
        fitted_to = torch.from_numpy(train.states).to(device)
        mean, scale = mean_and_scale(fitted_to)
        self.train = (fitted_to - mean) / scale  # (N, L, S)
        self.judged = (torch.from_numpy(states).to(device) - mean) / scale  # (M, L, S)
        labels = np.asarray(train.labels)
        self.center, self.spread = np.zeros(1), np.ones(1)
        if task.has_numbers:  # fitted at unit spread, so that one strength suits all targets
            labels = labels.reshape(len(labels), -1)
            self.center, spread = labels.mean(0), labels.std(0)
            self.spread = np.where(spread > 0, spread, 1)
            labels = (labels - self.center) / self.spread
        self.targets = label_tensor(labels).to(device)
        parts = deal_folds(task.strata(train.labels), min(PARTS, len(labels)), seed)
        self.held = torch.from_numpy(parts == 0).to(device)  # (N,)

    def answers(self, places: Sequence[int]) -> np.ndarray:
        """The answers of the linear model of the layers at these places to the rows that are judged."""
        strength, weights = self._chosen(places)
        weight, bias = fit_weights(_flat(self.train, places), self.targets, self.loss, strength, weights)
        logits = (_flat(self.judged, places) @ weight.T + bias).double().cpu().numpy()
        return self.task.decide(logits * self.spread + self.center)

    def least_harmful(self, places: tuple[int, ...]) -> tuple[int, ...]:
        """These places less the one without which held-out training rows have the least loss.

        Of equals the highest goes, since that saves time.
        """
        strength, _ = self._chosen(places)
        fewer = [_less(places, place) for place in reversed(places)]
        losses = [self._held_out_loss(each, self._without_held(each, strength, None)) for each in fewer]
        return fewer[int(np.argmin(losses))]

    def _chosen(self, places: Sequence[int]) -> tuple[float, Weights]:
        """The strength with the least loss on held-out training rows, and weights that were fitted without these."""
        weights, tried = None, []
        for strength in STRENGTHS:  # each starts where the last one ended
            weights = self._without_held(places, strength, weights)
            tried.append((self._held_out_loss(places, weights), strength, weights))
        _, strength, weights = min(tried, key=lambda each: each[0])
        return strength, weights

    def _without_held(self, places: Sequence[int], strength: float, start: Weights | None) -> Weights:
        """A linear model of the training rows that are not held out."""
        vectors = _flat(self.train, places)[~self.held]
        if start is None:
            outputs = len(self.task.names)
            start = vectors.new_zeros(outputs, vectors.shape[1]), vectors.new_zeros(outputs)
        return fit_weights(vectors, self.targets[~self.held], self.loss, strength, start)

    def _held_out_loss(self, places: Sequence[int], weights: Weights) -> float:
        weight, bias = weights
        logits = _flat(self.train, places)[self.held] @ weight.T + bias
        return float(self.loss(logits, self.targets[self.held]))


def _flat(states: Tensor, places: Sequence[int]) -> Tensor:
    """The vectors of the layers at these places side by side, from (N, L, S) to (N, F)."""
    return states[:, list(places)].flatten(1)
