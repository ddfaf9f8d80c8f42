"""Trains regression targets of any size as if they had unit spread. The saved weights give the targets' own units.

A target's scale is the power of two nearest its standard deviation. Dividing the head by it and multiplying again
changes no bit of a weight. So checkpoints hold the real units too, a resumed run goes on exactly, and code that loads
the model needs no scale. The bias of a fresh head starts at the targets' mean, not at zero.
"""

from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lstmpool.training.tasks.regression import spread_of


class TargetScale:
    """The scale of each of C targets. While it is on, the head works in its units, and the state dict in real ones."""

    def __init__(self, targets: list[Any]):
        """`targets`: the training rows' numbers, (N,) or (N, C)."""
        table = np.array(targets, dtype=np.float64).reshape(len(targets), -1)  # (N, C)
        self.mean = table.mean(0)  # (C,)
        spread = spread_of(table)
        exponents = np.round(np.log2(np.where(spread > 0, spread, 1))).clip(-60, 60)
        self.scale = 2.0**exponents  # (C,)
        self._hooks: list[Any] = []

    def divide(self, targets: list[Any]) -> list[Any]:
        """The targets, (N,) or (N, C), in units of the scale: what the head learns to give while it is on."""
        table = np.array(targets, dtype=np.float64)
        scale = self.scale if table.ndim > 1 else self.scale[0]
        return (table / scale).tolist()

    def switch_on(self, head: nn.Linear, fresh: bool, skip: nn.Linear | None = None) -> None:
        """From now on, `head` gives numbers in units of the scale. A `fresh` head starts at the targets' mean.

        `skip`: a linear map whose numbers are added to those of `head`. It starts at what it is, in real units.
        """
        with torch.no_grad():
            if fresh:  # its weights are random, and of the right size for targets of unit spread
                head.bias.copy_(torch.as_tensor(self.mean / self.scale))
            else:
                self._multiply(head.parameters(), 1 / self.scale)
            if skip is not None:
                self._multiply(skip.parameters(), 1 / self.scale)
        self._hooks = []
        for part in [head] if skip is None else [head, skip]:
            self._hooks.append(part.register_state_dict_post_hook(partial(self._multiply_entries, self.scale)))
            self._hooks.append(part.register_load_state_dict_pre_hook(partial(self._multiply_entries, 1 / self.scale)))

    def switch_off(self, head: nn.Linear, skip: nn.Linear | None = None) -> None:
        """Folds the scale into the weights of `head` and `skip`, which give real units again."""
        for hook in self._hooks:
            hook.remove()
        with torch.no_grad():
            for part in [head] if skip is None else [head, skip]:
                self._multiply(part.parameters(), self.scale)

    @classmethod
    def _multiply_entries(
        cls, factors: np.ndarray, head: nn.Module, state: dict[str, Tensor], prefix: str, *others: Any
    ) -> None:
        """A hook of `state_dict` and of `load_state_dict`, which puts the head's entries into other units."""
        names = [name for name in (f"{prefix}weight", f"{prefix}bias") if name in state]
        for name in names:
            state[name] = state[name].clone()  # the entries are the weights themselves, or the caller's tensors
        cls._multiply((state[name] for name in names), factors)

    @staticmethod
    def _multiply(tensors: Iterable[Tensor], factors: np.ndarray) -> None:
        """Multiplies weights (C, D) and biases (C,)."""
        for tensor in tensors:
            by = torch.as_tensor(factors, dtype=tensor.dtype, device=tensor.device)  # (C,)
            tensor.mul_(by[:, None] if tensor.dim() > 1 else by)
