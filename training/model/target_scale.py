"""Regression targets of any size are trained as if they had unit spread; the saved weights give their own units.

A target's scale is the power of two nearest its standard deviation. Dividing the head by it and multiplying it again
changes no bit of a weight, so checkpoints hold the real units too, a resumed run goes on exactly, and nothing that
loads the model needs to know of this. The head's bias starts at the targets' mean, where a target would be zero
otherwise.
"""

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


class TargetScale:
    """The scale of each of C targets. While it is on, the head works in units of it, its state dict in real ones."""

    def __init__(self, targets: list[Any]):
        """`targets`: the training rows' numbers, (N,) or (N, C)."""
        table = np.array(targets, dtype=np.float64).reshape(len(targets), -1)  # (N, C)
        self.mean, spread = table.mean(0), table.std(0)
        exponents = np.round(np.log2(np.where(spread > 0, spread, 1))).clip(-60, 60)
        self.scale = 2.0**exponents  # (C,)
        self._hooks: list[Any] = []

    def divide(self, targets: list[Any]) -> list[Any]:
        """Targets (N,) or (N, C) as the head is to give them while the scale is on."""
        table = np.array(targets, dtype=np.float64)
        return (table / (self.scale if table.ndim > 1 else self.scale[0])).tolist()

    def switch_on(self, head: nn.Linear, fresh: bool) -> None:
        """From now on `head` gives numbers in units of the scale; a `fresh` one first gives the targets' mean."""
        with torch.no_grad():
            if fresh:  # its weights are random, and of the right size for targets of unit spread
                head.bias.copy_(torch.as_tensor(self.mean / self.scale))
            else:
                self._multiply(head.weight, head.bias, 1 / self.scale)
        self._hooks = [
            head.register_state_dict_post_hook(partial(self._multiply_entries, self.scale)),
            head.register_load_state_dict_pre_hook(partial(self._multiply_entries, 1 / self.scale)),
        ]

    def switch_off(self, head: nn.Linear) -> None:
        """`head` gives real numbers again: this folds the scale into its weights."""
        for hook in self._hooks:
            hook.remove()
        with torch.no_grad():
            self._multiply(head.weight, head.bias, self.scale)

    @classmethod
    def _multiply_entries(
        cls, factors: np.ndarray, head: nn.Module, state: dict[str, Tensor], prefix: str, *others: Any
    ) -> None:
        """A hook of `state_dict` and of `load_state_dict`: the head's entries in other units."""
        names = [f"{prefix}weight", f"{prefix}bias"]
        state |= {name: state[name].clone() for name in names}  # they are the weights themselves, or a caller's
        cls._multiply(*(state[name] for name in names), factors)

    @staticmethod
    def _multiply(weight: Tensor, bias: Tensor, factors: np.ndarray) -> None:
        by = torch.as_tensor(factors, dtype=weight.dtype, device=weight.device)  # (C,)
        weight.mul_(by[:, None])
        bias.mul_(by)
