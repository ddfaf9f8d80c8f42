"""Exits by depth: linear heads on lower layers, by which a text leaves once its answer is clear.

    the vectors of layer k, (B, S) -> standardised -> head k -> `logits` (B, C) -> `confidence` (B,)
    a row whose confidence reaches the threshold takes these logits, and the layers above do not read it

The exits are trained after the model, which stays as it is and answers for the rows that reach its highest layer.
DeeBERT (Xin et al. 2020, https://arxiv.org/abs/2004.12993) has such exits for one text at a time.

B batch, L layers read, S width of a layer's vector, C labels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .configuration_lstmpool import LstmPoolConfig
from .fields_lstmpool import MULTI
from .pooling_lstmpool import LayerStandardization


def confidence(logits: Tensor, problem_type: str) -> Tensor:
    """How sure `logits` (..., C) are, from 0 to 1, (...): the probability of the likeliest class or, of several
    labels, that of the decision which is the least sure."""
    if problem_type == MULTI:
        return logits.float().abs().sigmoid().amin(-1)
    return logits.float().softmax(-1).amax(-1)


class LayerExits(nn.Module):
    """A linear head on the standardised vector of each layer that is read, except for the highest."""

    def __init__(self, config: LstmPoolConfig):
        super().__init__()
        self.standardization = LayerStandardization(config)
        below = config.layers[:-1]
        self.heads = nn.ModuleList([nn.Linear(config.state_size, config.num_labels) for _ in below])

    def forward(self, layer_states: Tensor) -> Tensor:
        """The logits (B, L - 1, C) of every exit for `layer_states` (B, L, S)."""
        states = self.standardization(layer_states)
        return torch.stack([head(states[:, index]) for index, head in enumerate(self.heads)], dim=1)

    def at(self, index: int, vectors: Tensor) -> Tensor:
        """The logits (B, C) of the exit number `index`, the lowest's being 0, for its layer's `vectors` (B, S)."""
        mean, scale = self.standardization.mean[index], self.standardization.scale[index]
        standardised = ((vectors - mean) / scale).to(vectors.dtype)
        return self.heads[index](standardised)
