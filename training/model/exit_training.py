"""Fits the exits of a trained model: for each layer below the highest, a regularised linear model of its vectors.

The model itself stays as it is. The fit has no chance in it: it minimises the task's own loss, with one strength of
regularisation. On trec6 and sst2, that was as good as the best of four strengths by the log-loss on validation rows,
and better than 15, 30 or 60 epochs of AdamW. N rows, L layers read, S width of a layer's vector, C labels.
"""

from collections.abc import Iterator

import numpy as np
import torch

from lstmpool.exits_lstmpool import LayerExits, confidence
from lstmpool.training.model.linear_start import fit_weights, label_tensor, summed_loss


STRENGTH = 4.0  # C of a logistic regression, times the width of a vector
ROWS = 1024  # that pass the exits at a time


def fit_heads(exits: LayerExits, states: np.ndarray, labels: np.ndarray, problem_type: str) -> None:
    """Fits the standardisation and all heads of `exits` to layer states (N, L, S) and encoded labels, (N,) or (N, C).

    Their parameters get no gradient from now on.
    """
    exits.standardization.fit(torch.from_numpy(states))
    device = exits.standardization.mean.device
    targets, loss = label_tensor(labels).to(device), summed_loss(problem_type)
    for index, head in enumerate(exits.heads):
        mean, scale = exits.standardization.mean[index], exits.standardization.scale[index]
        vectors = (torch.from_numpy(states[:, index]).to(device) - mean) / scale  # (N, S)
        start = torch.zeros_like(head.weight), torch.zeros_like(head.bias)
        weight, bias = fit_weights(vectors, targets, loss, STRENGTH / vectors.shape[1], start)
        with torch.no_grad():
            head.weight.copy_(weight)
            head.bias.copy_(bias)
    exits.requires_grad_(False)


@torch.no_grad()
def logits_of_exits(exits: LayerExits, blocks: Iterator[np.ndarray]) -> np.ndarray:
    """What the exits give for layer states, which come in `blocks` (M, L, S) of rows: (N, L - 1, C)."""
    device = exits.standardization.mean.device
    return np.concatenate([exits(torch.from_numpy(block).to(device)).float().cpu().numpy() for block in blocks])


def confidences_of(logits: np.ndarray, problem_type: str) -> np.ndarray:
    """How sure `logits` (..., C) are, as the model itself computes it, (...)."""
    return confidence(torch.from_numpy(np.asarray(logits, dtype=np.float32)), problem_type).double().numpy()
