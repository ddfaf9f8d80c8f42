"""Fits the exits of a trained model: for each layer below the highest, a regularised linear model of its vectors.

The model itself stays as it is. The fit has no chance in it: it minimises the task's own loss. Of a few strengths of
regularisation, each exit takes the one with the least loss on validation rows. N training rows, M validation rows, E
exits, L layers read, S width of a layer's vector, C labels.
"""

from collections.abc import Iterator
from operator import attrgetter
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from lstmpool.exits_lstmpool import LayerExits, confidence
from lstmpool.training.model.linear_start import Loss, Weights, fit_weights, label_tensor, summed_loss


STRENGTHS = (1e-3, 1e-2, 1e-1)  # C of a logistic regression
FOLDS = 5
AT_A_TIME = 1024  # rows that pass the exits


class Rows(NamedTuple):
    """Rows that exits are fitted to, or judged by."""

    states: np.ndarray  # (N, L, S)
    labels: np.ndarray  # encoded, (N,) or (N, C)


class Inputs(NamedTuple):
    """What the head of one exit reads of some rows, and their labels."""

    vectors: Tensor  # (N, S), standardised
    targets: Tensor  # (N,) or (N, C)

    def of(self, chosen: Tensor) -> "Inputs":
        return Inputs(self.vectors[chosen], self.targets[chosen])

    def and_(self, others: "Inputs") -> "Inputs":
        return Inputs(torch.cat([self.vectors, others.vectors]), torch.cat([self.targets, others.targets]))


class Choice(NamedTuple):
    """A head that was fitted to training rows with one strength of regularisation."""

    loss: float  # on validation rows
    strength: float
    weights: Weights
    logits: Tensor  # (M, C), of validation rows


def fit_heads(exits: LayerExits, train: Rows, validation: Rows, problem_type: str, to_both: bool) -> np.ndarray:
    """Fits the standardisation of `exits` to the training rows, and all heads to these or, if `to_both`, to validation
    rows as well. The heads' parameters get no gradient from now on.

    Returns the logits (M, E, C) of heads that were not fitted to the validation rows for which they give them: in
    `to_both`, each of `FOLDS` parts of these rows is left out in turn.
    """
    exits.standardization.fit(torch.from_numpy(train.states))
    exits.requires_grad_(False)
    loss = summed_loss(problem_type)
    held_out = []
    for index, head in enumerate(exits.heads):
        fitted_to, unseen = _inputs(exits, index, train), _inputs(exits, index, validation)
        choice = _choose_strength(fitted_to, unseen, loss, head)
        weights, logits = choice.weights, choice.logits
        if to_both:
            weights, logits = _fit_to_both(fitted_to, unseen, loss, choice)
        with torch.no_grad():
            head.weight.copy_(weights[0])
            head.bias.copy_(weights[1])
        held_out.append(logits.float().cpu().numpy())
    return np.stack(held_out, axis=1)


def _choose_strength(train: Inputs, validation: Inputs, loss: Loss, head: nn.Linear) -> Choice:
    """The head that is fitted to training rows and has the least loss on validation rows. `head` says its size."""
    weights = torch.zeros_like(head.weight), torch.zeros_like(head.bias)
    choices = []
    for strength in STRENGTHS:  # each starts where the last one ended
        weights = fit_weights(*train, loss, strength, weights)
        logits = _logits(weights, validation.vectors)
        choices.append(Choice(float(loss(logits, validation.targets)), strength, weights, logits))
    return min(choices, key=attrgetter("loss"))


def _fit_to_both(train: Inputs, validation: Inputs, loss: Loss, choice: Choice) -> tuple[Weights, Tensor]:
    """The weights of a head that is fitted to training and validation rows, and the logits (M, C) of the latter.

    These come from heads that each left out a part. All fits begin at the weights of `choice`, which have seen no
    validation row.
    """
    part_of = torch.arange(len(validation.targets)) % FOLDS  # neighbours are apart: files may be sorted by label
    logits = torch.empty_like(choice.logits)
    for part in part_of.unique():
        left_out = part_of == part
        weights = fit_weights(*train.and_(validation.of(~left_out)), loss, choice.strength, choice.weights)
        logits[left_out] = _logits(weights, validation.vectors[left_out])
    return fit_weights(*train.and_(validation), loss, choice.strength, choice.weights), logits


def _logits(weights: Weights, vectors: Tensor) -> Tensor:
    """The logits (N, C) of `vectors` (N, S)."""
    weight, bias = weights
    return vectors @ weight.T + bias


def _inputs(exits: LayerExits, index: int, rows: Rows) -> Inputs:
    """What the head of the exit number `index` reads of some rows."""
    mean, scale = exits.standardization.mean[index], exits.standardization.scale[index]
    vectors = torch.from_numpy(rows.states[:, index]).to(mean.device)
    return Inputs((vectors - mean) / scale, label_tensor(rows.labels).to(mean.device))


@torch.no_grad()
def logits_of_exits(exits: LayerExits, blocks: Iterator[np.ndarray]) -> np.ndarray:
    """What the exits give for layer states, which come in `blocks` (M, L, S) of rows: (N, L - 1, C)."""
    device = exits.standardization.mean.device
    return np.concatenate([exits(torch.from_numpy(block).to(device)).float().cpu().numpy() for block in blocks])


def confidences_of(logits: np.ndarray, problem_type: str) -> np.ndarray:
    """How sure `logits` (..., C) are, as the model itself computes it, (...)."""
    return confidence(torch.from_numpy(np.asarray(logits, dtype=np.float32)), problem_type).double().numpy()
