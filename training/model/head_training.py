"""Trains a pooling and its classifier on layer states in memory, without Trainer, which would take most of the time.

    states (N, L, S) -> `Head` -> logits (N, C)

The loop does what `LstmPoolTrainer` does with the command's defaults; a test of the study compares the two. N rows,
L layers, S width of a layer's vector, C outputs.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from transformers import get_linear_schedule_with_warmup

from lstmpool.training.model.linear_start import Loss


# As in the training command.
WARMUP = 0.1  # of the steps
WEIGHT_DECAY = 0.01
CLIP = 1.0
ROWS_AT_ONCE = 256  # of a prediction


class Head(nn.Module):
    """What a model has above its layers, with a pooling and a classifier that are made already."""

    def __init__(self, pooler: nn.Module, classifier: nn.Linear, dropout: float):
        super().__init__()
        self.pooler = pooler
        self.dropout = nn.Dropout(dropout)
        self.classifier = classifier

    def forward(self, layer_states: Tensor) -> Tensor:
        return self.classifier(self.dropout(self.pooler(layer_states)))  # (B, L, S) -> (B, C)


def train_epochs(
    head: Head,
    states: Tensor,
    labels: Tensor,
    loss: Loss,
    rate: float,
    epochs: int,
    batch_size: int,
    seed: int,
    beside: Tensor | None = None,
) -> Iterator[int]:
    """Trains `head` in place, and gives the number of each epoch, from 1, when it is done. Whoever has enough, stops.

    The optimizer is AdamW. Its rate rises over the first tenth of the steps and falls to zero over the others.
    Gradients are clipped.

    Args:
        head: on the device of the states.
        states: (N, L, S).
        labels: (N,) or (N, C).
        loss: a batch's is divided by the number of its labels.
        rate: the peak of the learning rate.
        epochs: passes over the rows, at most.
        batch_size: rows a step.
        seed: of the order of the batches.
        beside: (N, C), what is added to the logits.
    """
    named = list(head.named_parameters())
    # as in Trainer, biases and norms do not decay
    plain = [p for n, p in named if "bias" in n or "norm" in n]
    decayed = [p for n, p in named if not ("bias" in n or "norm" in n)]
    groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=rate, fused=True)
    steps = epochs * math.ceil(len(states) / batch_size)
    schedule = get_linear_schedule_with_warmup(optimizer, math.ceil(WARMUP * steps), steps)
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(1, epochs + 1):
        head.train()
        for rows in torch.randperm(len(states), generator=generator).split(batch_size):
            of_batch = labels[rows]
            logits = head(states[rows])
            if beside is not None:
                logits = logits + beside[rows]
            (loss(logits, of_batch) / of_batch.numel()).backward()
            nn.utils.clip_grad_norm_([*decayed, *plain], CLIP)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        yield epoch


@torch.no_grad()
def predict_head(head: Head, states: Tensor) -> np.ndarray:
    """Logits (N, C) for `states` (N, L, S)."""
    head.eval()
    return torch.cat([head(part) for part in states.split(ROWS_AT_ONCE)]).double().cpu().numpy()
