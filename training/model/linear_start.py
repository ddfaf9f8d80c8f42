"""Where the model's linear path starts: at the weights of a regularised linear model of the frozen layers' vectors.

From the rows' layer states (N, L, S), taken once from the backbone as it is, `fit_start` fits linear models: of the
top layer alone and of all layers, each with several strengths of regularisation. Cross-validation chooses among them,
by the loss. `put` writes the chosen one into a model, which then answers as the linear model does, before any step of
training.

The vectors are standardised over the rows. A penalty on the squared weights does not depend on the axes of the space,
so with fewer rows than features the fit is done in the rows' own span, where it is many times faster. N rows, L
layers, S the width of a layer's vector, C outputs.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.model_selection import KFold, StratifiedKFold
from torch import Tensor
from transformers import PreTrainedModel

from lstmpool.fields_lstmpool import MULTI, REGRESSION
from lstmpool.pooling_lstmpool import mean_and_scale
from lstmpool.training.model.trainable_parts import trained_head, trained_skip


ROWS = 5000  # that are read, at most: training everything overtakes a linear model long before
ROWS_TO_CHOOSE = 2000  # on which its strength is chosen
FOLDS = 5  # of the cross-validation, for up to `FEW` rows; else one split, with a fifth held out
FEW = 1000
STRENGTHS = np.logspace(-5, 1, 7)  # C of a logistic regression, or 1 / alpha of a ridge regression
MOST_TURNED = 2500  # rows whose span is looked for: the time for that grows with their cube
MOST_ITERATIONS = 100  # of the optimiser, for each strength
ALL, TOP = "all", "top"

Loss = Callable[[Tensor, Tensor], Tensor]  # from logits (N, C) and labels to the sum of the rows' losses
Weights = tuple[Tensor, Tensor]  # (C, F), (C,)


@dataclass(frozen=True)
class LinearStart:
    """A linear model of layer states, and how it was chosen.

    Args:
        weight: (C, L * S), of states less their `mean`, divided by their `scale`, (L * S,) each.
        bias: (C,).
        layers: which layers' vectors it reads, `ALL` or `TOP`.
        strength: of its regularisation: C, or 1 / alpha.
        rows: numbers of the rows that were held out in turn, (M,), and
        logits: what models fitted without them gave, (M, C).
    """

    weight: Tensor
    bias: Tensor
    mean: Tensor
    scale: Tensor
    layers: str
    strength: float
    rows: np.ndarray
    logits: np.ndarray

    @torch.no_grad()
    def put(self, model: PreTrainedModel) -> None:
        """Writes it into the linear skip and the classifier's bias of `model`, an `LstmPoolForSequenceClassification`.

        Targets that are scaled during training must be scaled here too. The classifier's weights stay: what the LSTM
        adds is small at first.
        """
        skip = trained_skip(model)
        skip.weight.copy_(self.weight[:, -skip.in_features :])
        skip.mean.copy_(self.mean[-skip.in_features :])
        skip.scale.copy_(self.scale[-skip.in_features :])
        trained_head(model).bias.copy_(self.bias)


def summed_loss(problem_type: str) -> Loss:
    """The model's own loss, summed over the rows and, for several outputs, over these."""
    if problem_type == REGRESSION:
        return lambda logits, labels: F.mse_loss(logits, labels.view_as(logits), reduction="sum")
    if problem_type == MULTI:
        return lambda logits, labels: F.binary_cross_entropy_with_logits(logits, labels, reduction="sum")
    return lambda logits, labels: F.cross_entropy(logits, labels, reduction="sum")


def fit_start(
    states: np.ndarray,
    labels: np.ndarray,
    outputs: int,
    loss: Loss,
    strata: np.ndarray | None,
    seed: int,
    choices: tuple[str, ...] = (TOP, ALL),
    strengths: np.ndarray | None = None,
) -> LinearStart:
    """Chooses and fits the linear model.

    Args:
        states: layer states (N, L, S), in any order of rows.
        labels: integers (N,), zeros and ones (N, C), or numbers (N,) or (N, C).
        outputs: C.
        loss: the sum of the rows' losses.
        strata: the class of each row, (N,), which every fold should hold equally often; None: folds at random.
        seed: of the folds, and of the rows on which the strength is chosen.
        choices: which layers it may read.
        strengths: of its regularisation, see `LinearStart`. Unset: `STRENGTHS`.
    """
    few = np.random.default_rng(seed).permutation(len(states))[:ROWS_TO_CHOOSE]
    strengths = STRENGTHS if strengths is None else strengths
    best = None
    for layers in choices:
        features, _, _ = _standardised(_flat(states[few], layers), states.shape[2])
        of_few = strata if strata is None else strata[few]
        choice = _choose_strength(features, labels[few], outputs, loss, of_few, seed, strengths)
        if best is None or choice.loss < best[1].loss:
            best = layers, choice
    layers, choice = best
    features, mean, scale = _standardised(_flat(states, ALL), states.shape[2])
    lower = features.shape[1] - states.shape[2] if layers == TOP else 0  # features that it does not read
    axes = _Axes.of(features[:, lower:])
    start = torch.zeros(outputs, axes.inside.shape[1]), torch.zeros(outputs)
    weight, bias = fit_weights(axes.inside, label_tensor(labels), loss, choice.strength, start)
    weight = torch.cat([torch.zeros(outputs, lower), axes.outside(weight)], dim=1)
    return LinearStart(weight, bias, mean, scale, layers, choice.strength, few[choice.held], choice.logits.numpy())


# ------------------------------------------------------------------------------------------------------------ choosing
@dataclass(frozen=True)
class _Choice:
    """The chosen strength, and what models of that strength gave for rows held out from them."""

    loss: float  # mean over the rows held out
    strength: float
    held: np.ndarray  # (M,)
    logits: Tensor  # (M, C)


def _choose_strength(
    features: Tensor,
    labels: np.ndarray,
    outputs: int,
    loss: Loss,
    strata: np.ndarray | None,
    seed: int,
    strengths: np.ndarray,
) -> _Choice:
    """Chooses the one of `strengths` with the least loss on rows that were held out."""
    axes, targets = _Axes.of(features), label_tensor(labels)
    held, logits = [], []  # (M,) and (strengths, M, C) of each fold
    for inside, outside in _folds(len(features), strata, seed):
        fits = _path(axes.inside[inside], targets[inside], outputs, loss, strengths)
        logits.append(torch.stack([axes.inside[outside] @ weight.T + bias for weight, bias in fits]))
        held.append(outside)
    held, logits = np.concatenate(held), torch.cat(logits, dim=1)
    losses = [float(loss(of_strength, targets[held])) / len(held) for of_strength in logits]
    best = int(np.argmin(losses))
    return _Choice(losses[best], float(strengths[best]), held, logits[best])


def _folds(rows: int, strata: np.ndarray | None, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """The rows to fit on and those held out, for each fold. Of more than `FEW` rows, the first fold alone."""
    count = min(FOLDS, rows)
    if strata is None:
        splitter = KFold(count, shuffle=True, random_state=seed)
    else:
        splitter = StratifiedKFold(count, shuffle=True, random_state=seed)
        most = np.unique(strata, return_counts=True)[1].max()
        if most < count:  # every class is rarer than there are folds
            splitter, strata = KFold(count, shuffle=True, random_state=seed), None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class")  # its rows are spread as far as they go
        folds = list(splitter.split(np.zeros(rows), strata))
    return folds if rows <= FEW else folds[:1]


# ------------------------------------------------------------------------------------------------------------- fitting
def _path(features: Tensor, labels: Tensor, outputs: int, loss: Loss, strengths: np.ndarray) -> list[Weights]:
    """The linear models of all `strengths`, the strongest regularisation first; each starts where the last ended."""
    weights = torch.zeros(outputs, features.shape[1]), torch.zeros(outputs)
    fits = []
    for strength in strengths:
        weights = fit_weights(features, labels, loss, strength, weights)
        fits.append(weights)
    return fits


def fit_weights(features: Tensor, labels: Tensor, loss: Loss, strength: float, start: Weights) -> Weights:
    """Minimises the summed loss plus |weight|² / (2 * strength), as scikit-learn's C does; the bias is free."""
    weight, bias = (each.clone().requires_grad_() for each in start)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=MOST_ITERATIONS, tolerance_grad=1e-5, line_search_fn="strong_wolfe"
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        value = loss(features @ weight.T + bias, labels) + weight.square().sum() / (2 * strength)
        value = value / len(features)
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(objective)
    return weight.detach(), bias.detach()


def logits_without(
    fold_of: np.ndarray, states: np.ndarray, labels: np.ndarray, chosen: LinearStart, loss: Loss
) -> np.ndarray:
    """What linear models like the `chosen` one give for rows that they were not fitted to, (N, C).

    Args:
        fold_of: the fold of each row, (N,). Its model is fitted to all other folds; if there are none, to nothing.
        states: layer states (N, L, S).
        labels: as for `fit_start`.
        chosen: says which layers they read, and how strongly they are regularised.
        loss: the sum of the rows' losses.
    """
    features, _, _ = _standardised(_flat(states, chosen.layers), states.shape[2])
    inside = _Axes.of(features).inside
    targets = label_tensor(labels)
    logits = torch.zeros(len(states), len(chosen.bias))
    for fold in np.unique(fold_of):
        held, others = np.flatnonzero(fold_of == fold), np.flatnonzero(fold_of != fold)
        if len(others):
            start = torch.zeros(len(chosen.bias), inside.shape[1]), torch.zeros(len(chosen.bias))
            weight, bias = fit_weights(inside[others], targets[others], loss, chosen.strength, start)
            logits[held] = inside[held] @ weight.T + bias
    return logits.double().numpy()


@dataclass(frozen=True)
class _Axes:
    """Features (N, F) in axes of the space that the rows span, which are at most N.

    Args:
        inside: the features in these axes, (N, R).
        axes: (R, F); None: the features' own axes.
    """

    inside: Tensor
    axes: Tensor | None

    @classmethod
    def of(cls, features: Tensor) -> "_Axes":
        rows, width = features.shape
        if width <= rows or rows > MOST_TURNED:
            return cls(features, None)
        values, vectors = torch.linalg.eigh(features.double() @ features.double().T)
        kept = values > 1e-10 * values[-1].clamp(min=1e-30)
        lengths = values[kept].sqrt()
        inside = vectors[:, kept] * lengths
        axes = (vectors[:, kept] / lengths).T @ features.double()
        return cls(inside.float(), axes.float())

    def outside(self, weight: Tensor) -> Tensor:
        """Weights (C, F) for the features' own axes, from those (C, R) for these axes."""
        return weight if self.axes is None else weight @ self.axes


def _flat(states: np.ndarray, layers: str) -> Tensor:
    chosen = states[:, -1] if layers == TOP else states
    return torch.from_numpy(np.ascontiguousarray(chosen, dtype=np.float32)).flatten(1)


def _standardised(features: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """The features with mean 0 and spread 1 over the rows, and what was taken away and divided by, (F,) each.

    Tiny spreads stay small, see `mean_and_scale`. `width`: features of a layer.
    """
    mean, scale = mean_and_scale(features.view(len(features), -1, width))
    mean, scale = mean.flatten(), scale.flatten()
    return (features - mean) / scale, mean, scale


def label_tensor(labels: np.ndarray) -> Tensor:
    """Classes (N,) as whole numbers; zeros and ones, or numbers, (N,) or (N, C), as floats."""
    tensor = torch.from_numpy(np.ascontiguousarray(labels))
    is_class = tensor.ndim == 1 and not tensor.is_floating_point()
    return tensor.long() if is_class else tensor.float()
