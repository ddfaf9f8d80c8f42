"""The variants of the LSTM that VARIANTS.md lists, and the controls that are given the same improvements.

A variant is a pooling, and what is done to the states before it, beside it or around it. All of that works on tensors:
a standardised pooling gets standardised states, a linear way around the pooling adds its own logits. So any pooling
can be given any improvement.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import torch
from sklearn.model_selection import KFold
from torch import Tensor, nn

from lstmpool.configuration_lstmpool import LstmPoolConfig
from lstmpool.pooling_lstmpool import LayerPooling, RecurrentPooling, TopLSTM, mean_and_scale
from lstmpool.training.model.linear_start import ALL, LinearStart, Loss, fit_start
from study.poolings import POOLINGS, Build, own
from study.records import Setting


HELD_OUT, FITTED = "held out", "fitted"  # of which rows the linear model's logits are, that the pooling corrects
FOLDS = 5
PROJECTED = 128  # features of a layer
DROPPED = 0.2  # share of the layers that a training step does not see
HEADS = 8
NET_SETTINGS = [Setting(*of) for of in product((2.5e-4, 1e-3, 4e-3), (4, 12))]  # the LSTM never took a higher rate
NO_TRAINING = [Setting(0.0, 1)]


@dataclass(frozen=True)
class Variant:
    """A pooling and what goes with it.

    Args:
        build: the pooling; None: there is none, and the linear way is all.
        standardised: whether each feature of each layer has mean 0 and spread 1 over the training rows.
        linear: whether the logits of a linear model of all layers are added: empty, or of which training rows they
            are while the pooling is trained. `FITTED`: of those that the linear model was fitted to. `HELD_OUT`: each
            row's are of a model that was fitted without it.
        averaged: whether the weights are averaged over the second half of the steps.
        members: how many are trained with seeds of their own; their logits are averaged.
        token_poolings: whose vectors lie side by side in place of the run's own.
        settings: that are tried; None: the regime's.
        tuned_as: the variant whose chosen setting it takes.
    """

    build: Build | None
    standardised: bool = False
    linear: str = ""
    averaged: bool = False
    members: int = 1
    token_poolings: tuple[str, ...] = ()
    settings: list[Setting] | None = None
    tuned_as: str = ""


# ------------------------------------------------------------------------------------------------------------ poolings
class ProjectedPooling(RecurrentPooling):
    """Each layer has a projection of its own to fewer features, before the LSTM."""

    def __init__(self, config: LstmPoolConfig):
        super().__init__(config)
        self.projection = nn.Parameter(torch.randn(len(config.layers), config.state_size, PROJECTED))
        self.projection.data *= config.state_size**-0.5
        self.rnn = TopLSTM(PROJECTED, self.units, batch_first=True, bidirectional=config.lstm_bidirectional)

    def pool(self, layer_states: Tensor) -> Tensor:
        return super().pool(torch.einsum("bls,lsk->blk", layer_states, self.projection))


class DroppedPooling(RecurrentPooling):
    """In training, each layer of each text is left out with a probability of `DROPPED`: it is zero, its mean."""

    def pool(self, layer_states: Tensor) -> Tensor:
        if self.training:
            kept = torch.rand(layer_states.shape[:2], device=layer_states.device) >= DROPPED  # (B, L)
            layer_states = layer_states * kept[..., None]
        return super().pool(layer_states)


class WidePooling(RecurrentPooling):
    """The LSTM over `vectors` vectors of each layer, side by side: (B, L, vectors * H)."""

    def __init__(self, config: LstmPoolConfig, vectors: int):
        super().__init__(config)
        width = vectors * config.state_size
        self.rnn = TopLSTM(width, self.units, batch_first=True, bidirectional=config.lstm_bidirectional)


class CrossAttentionPooling(LayerPooling):
    """A learned query attends to the CLS and the mean vector of every layer, after a LayerNorm.

    As in https://arxiv.org/abs/2601.09322, with `HEADS` heads. The states are (B, L, 2 H).
    """

    def __init__(self, config: LstmPoolConfig):
        super().__init__(config)
        self.norm = nn.LayerNorm(config.state_size)
        self.query = nn.Parameter(torch.randn(1, 1, config.state_size) * config.state_size**-0.5)
        self.attention = nn.MultiheadAttention(config.state_size, HEADS, batch_first=True)

    def pool(self, layer_states: Tensor) -> Tensor:
        vectors = torch.cat(layer_states.chunk(2, dim=-1), dim=1)  # (B, 2 L, H)
        vectors = self.norm(vectors)
        query = self.query.repeat(len(vectors), 1, 1)
        return self.attention(query, vectors, vectors, need_weights=False)[0][:, 0]


def made(kind: Callable[..., LayerPooling], *args: int) -> Build:
    """An entry whose pooling is `kind`, with an LSTM's fields."""
    return own(lambda config: kind(config, *args), layer_pooling="lstm")


LSTM_STD = Variant(POOLINGS["lstm"], standardised=True, settings=NET_SETTINGS)
RESIDUAL = replace(LSTM_STD, linear=HELD_OUT)
LINEAR = Variant(None, linear=FITTED, settings=NO_TRAINING)
CONTROL = Variant(None, standardised=True)
OF_LSTM: dict[str, Variant] = {
    "lstm_std": LSTM_STD,
    "lstm_small": replace(LSTM_STD, build=own(layer_pooling="lstm", lstm_hidden_size=64)),
    "lstm_projected": replace(LSTM_STD, build=made(ProjectedPooling)),
    "lstm_dropped": replace(LSTM_STD, build=made(DroppedPooling)),
    "lstm_averaged": replace(LSTM_STD, averaged=True),
    "lstm_wide": replace(LSTM_STD, build=made(WidePooling, 3), token_poolings=("cls", "mean", "max")),
    "lstm_linear": replace(LSTM_STD, linear=FITTED),
    "lstm_residual": RESIDUAL,
    "lstm_ensemble": replace(LSTM_STD, members=4, tuned_as="lstm_std"),
    "lstm_residual_ensemble": replace(RESIDUAL, members=4, tuned_as="lstm_residual"),
}
RIVALS: dict[str, Variant] = {
    "cross_attention": Variant(made(CrossAttentionPooling), token_poolings=("cls", "mean"), settings=NET_SETTINGS),
}
CONTROLS: dict[str, Variant] = {
    "linear_all": LINEAR,
    "linear_wide": replace(LINEAR, token_poolings=("cls", "mean", "max")),
    "last_std": replace(CONTROL, build=POOLINGS["last"]),
    "attention_std": replace(CONTROL, build=POOLINGS["attention"]),
    "concat_std": replace(CONTROL, build=POOLINGS["concat"]),
    "attention_residual": replace(CONTROL, build=POOLINGS["attention"], linear=HELD_OUT),
    "concat_residual": replace(CONTROL, build=POOLINGS["concat"], linear=HELD_OUT),
    "concat_residual_ensemble": replace(
        CONTROL, build=POOLINGS["concat"], linear=HELD_OUT, members=4, tuned_as="concat_residual"
    ),
}
VARIANTS = OF_LSTM | RIVALS | CONTROLS


# ------------------------------------------------------------------------------------------------------ the linear way
@dataclass(frozen=True)
class Linear:
    """A linear model of all layers' vectors: its logits, (N, C) of each split's rows."""

    train: Tensor  # of the rows that it was fitted to
    held_out: Tensor  # of the same rows, each by a model that was fitted without it
    validation: Tensor
    test: Tensor
    parameters: int

    @classmethod
    def fit(cls, splits: list[Tensor], labels: Tensor, outputs: int, loss: Loss) -> "Linear":
        """Fits it to the states (N, L, S) of the first of `splits` and their `labels`.

        Cross-validation chooses its strength. The other splits are validation and test.
        """
        states, targets = splits[0].numpy(), labels.numpy()
        strata = None if targets.ndim > 1 or targets.dtype.kind == "f" else targets
        chosen = fit_start(states, targets, outputs, loss, strata, 0, choices=(ALL,))
        held_out = torch.zeros(len(states), outputs)
        strength = np.array([chosen.strength])
        for inside, outside in KFold(FOLDS, shuffle=True, random_state=0).split(states):
            of = None if strata is None else strata[inside]
            without = fit_start(states[inside], targets[inside], outputs, loss, of, 0, (ALL,), strength)
            held_out[outside] = logits_of(without, splits[0][outside])
        each = [logits_of(chosen, split) for split in splits]
        return cls(each[0], held_out, each[1], each[2], chosen.weight.numel() + chosen.bias.numel())


def logits_of(linear: LinearStart, states: Tensor) -> Tensor:
    """Logits (N, C) of states (N, L, S)."""
    return ((states.flatten(1) - linear.mean) / linear.scale) @ linear.weight.T + linear.bias


def standardise(splits: list[Tensor]) -> list[Tensor]:
    """The splits' states (N, L, S), standardised by the first one, the training rows', as the model itself does it."""
    mean, scale = mean_and_scale(splits[0])
    return [(split - mean) / scale for split in splits]
