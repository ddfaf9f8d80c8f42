"""Fits the exits of a trained model: for each layer below the highest, a regularised linear model of its vectors.

The model itself stays as it is. The fit has no chance in it: it minimises the task's own loss. Of a few strengths of
regularisation, each exit takes the one with the least loss on validation rows. N training rows, M validation rows, E
exits, L layers read, S width of a layer's vector, C labels.
"""

from collections.abc import Iterator
from operator import itemgetter
from typing import NamedTuple

import numpy as np
import torch

from lstmpool.exits_lstmpool import LayerExits, confidence
from lstmpool.training.model.linear_start import fit_weights, label_tensor, summed_loss


STRENGTHS = (1e-3, 1e-2, 1e-1)  # C of a logistic regression
FOLDS = 5
ROWS = 1024  # that pass the exits at a time


class Rows(NamedTuple):
    """Rows that exits are fitted to, or judged by."""

    states: np.ndarray  # (N, L, S)
    labels: np.ndarray  # encoded, (N,) or (N, C)

    def of(self, chosen: np.ndarray) -> "Rows":
        return Rows(self.states[chosen], self.labels[chosen])

    def and_(self, others: "Rows") -> "Rows":
        return Rows(np.concatenate([self.states, others.states]), np.concatenate([self.labels, others.labels]))


def fit_heads(exits: LayerExits, train: Rows, validation: Rows, problem_type: str, to_both: bool) -> np.ndarray:
    """Fits the standardisation of `exits` to the training rows, and all heads to these or, if `to_both`, to validation
    rows as well. The heads' parameters get no gradient from now on.

    Returns the logits (M, E, C) of heads that were not fitted to the validation rows for which they give them: in
    `to_both`, each of `FOLDS` parts of these rows is left out in turn.
    """
    exits.standardization.fit(torch.from_numpy(train.states))
    exits.requires_grad_(False)
    fold = np.arange(len(validation.labels)) % FOLDS  # neighbours are in different parts: files may be sorted by label
    logits = [
        _fit_head(exits, index, train, validation, problem_type, fold if to_both else None)
        for index in range(len(exits.heads))
    ]
    return np.stack(logits, axis=1)


def _fit_head(
    exits: LayerExits, index: int, train: Rows, validation: Rows, problem_type: str, fold: np.ndarray | None
) -> np.ndarray:
    """Fits the head of one exit, see `fit_heads`. `fold`: the part (M,) of each validation row that is fitted to.

    Returns the logits (M, C) of the validation rows.
    """
    head, loss = exits.heads[index], summed_loss(problem_type)
    vectors, targets = _inputs(exits, index, train)
    unseen, truth = _inputs(exits, index, validation)
    weights = torch.zeros_like(head.weight), torch.zeros_like(head.bias)
    found = []
    for strength in STRENGTHS:  # each starts where the last one ended
        weights = fit_weights(vectors, targets, loss, strength, weights)
        logits = unseen @ weights[0].T + weights[1]
        found.append((float(loss(logits, truth)), strength, weights, logits))
    _, strength, weights, logits = min(found, key=itemgetter(0))
    if fold is not None:
        start = weights  # which has seen none of the validation rows
        for part in range(min(FOLDS, len(fold))):
            seen = torch.from_numpy(fold != part)
            both = torch.cat([vectors, unseen[seen]]), torch.cat([targets, truth[seen]])
            weight, bias = fit_weights(*both, loss, strength, start)
            logits[~seen] = unseen[~seen] @ weight.T + bias
        weights = fit_weights(torch.cat([vectors, unseen]), torch.cat([targets, truth]), loss, strength, start)
    with torch.no_grad():
        head.weight.copy_(weights[0])
        head.bias.copy_(weights[1])
    return logits.float().cpu().numpy()


def _inputs(exits: LayerExits, index: int, rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
    """What the head of an exit reads of some rows, (N, S), and their labels."""
    mean, scale = exits.standardization.mean[index], exits.standardization.scale[index]
    vectors = torch.from_numpy(rows.states[:, index]).to(mean.device)
    return (vectors - mean) / scale, label_tensor(rows.labels).to(mean.device)


@torch.no_grad()
def logits_of_exits(exits: LayerExits, blocks: Iterator[np.ndarray]) -> np.ndarray:
    """What the exits give for layer states, which come in `blocks` (M, L, S) of rows: (N, L - 1, C)."""
    device = exits.standardization.mean.device
    return np.concatenate([exits(torch.from_numpy(block).to(device)).float().cpu().numpy() for block in blocks])


def confidences_of(logits: np.ndarray, problem_type: str) -> np.ndarray:
    """How sure `logits` (..., C) are, as the model itself computes it, (...)."""
    return confidence(torch.from_numpy(np.asarray(logits, dtype=np.float32)), problem_type).double().numpy()
