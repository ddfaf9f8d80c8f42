"""The frozen regime: the backbone runs once over a set, and each run trains a pooling and a classifier on its states.

The loop does what `LstmPoolTrainer` does with the training command's settings; a test compares the two. It works on
tensors in memory: most of the time of a short run would otherwise be Trainer's own work.
"""

import time
import warnings
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lstmpool.training.data.rows import Split
from lstmpool.training.flags.arguments import ModelArguments
from lstmpool.training.model.backbone import Backbone, quiet_loading
from lstmpool.training.model.head_training import Head, predict_head, train_epochs
from lstmpool.training.model.layer_cache import StatesCollator, cached_states
from lstmpool.training.model.linear_start import summed_loss
from lstmpool.training.model.target_scale import TargetScale
from study.data import TextSet
from study.poolings import POOLINGS, put_pooling
from study.records import Setting
from study.variants import HELD_OUT, Linear, Variant, standardise


MEMBER = 1000  # between the seeds of an ensemble's members


@dataclass(frozen=True)
class Fit:
    """The logits (N, C) of one run, in the units of the labels, and what the run cost."""

    validation: np.ndarray
    test: np.ndarray | None
    parameters: int  # of pooling and classifier
    flops: int  # of their matrix products, for one text
    seconds: float  # of training, in processor time: waiting does not count


class FrozenSet:
    """A set's layer states, and the runs on them."""

    def __init__(self, backbone: str, data: TextSet, token_pooling: str, batch_size: int):
        found = Backbone.find(ModelArguments(backbone=backbone))
        self.tokenizer = found.load_tokenizer(None)
        with quiet_loading():
            fields = {**data.task.config_fields, "token_pooling": token_pooling, "layer_pooling": "last"}
            self.model, _ = found.load_model(fields)
        self.model.lstmpool.backbone.requires_grad_(False)
        self.batch_size = batch_size
        self.data = data
        self.token_poolings = (token_pooling,)
        labels, self.scale = data.train.labels, None
        if data.task.has_numbers:
            self.scale = TargetScale(labels)
            labels = self.scale.divide(labels)
        self.labels = torch.tensor(labels)
        self.states = cache(self._states)
        self.standardised = cache(lambda token_poolings: standardise(self.states(token_poolings)))
        self.linear = cache(self._linear)

    def _states(self, token_poolings: tuple[str, ...]) -> list[Tensor]:
        """The states (N, L, S) of train, validation and test, with the vectors of `token_poolings` side by side."""
        put_pooling(self.model, POOLINGS["last"], 0)  # the pooler of the last run may want wider vectors
        splits = []
        for split in (self.data.train, self.data.validation, self.data.test):
            each = []
            for token_pooling in token_poolings:
                self.model.config.token_pooling = token_pooling
                each.append(layer_states(self.model, self.tokenizer, split, self.data.name))
            splits.append(torch.cat(each, dim=-1))
        return splits

    def _linear(self, token_poolings: tuple[str, ...]) -> Linear:
        config = self.model.config
        return Linear.fit(
            self.states(token_poolings), self.labels, config.num_labels, summed_loss(config.problem_type)
        )

    def fit(self, variant: Variant, seed: int, setting: Setting, with_test: bool) -> Fit:
        """One run. The test rows are read only if `with_test` says so."""
        token_poolings = variant.token_poolings or self.token_poolings
        splits = self.standardised(token_poolings) if variant.standardised else self.states(token_poolings)
        read = splits[1:] if with_test else splits[1:2]
        started = time.process_time()
        linear = self.linear(token_poolings) if variant.linear else None
        logits = [np.zeros((len(split), self.model.config.num_labels)) for split in read]
        parameters, flops = 0, 0
        for member in range(variant.members if variant.build else 0):
            trained = self._train(variant, splits[0], linear, seed + MEMBER * member, setting)
            parameters += sum(p.numel() for p in trained)
            flops += head_flops(self.model, splits[0].size(-1))
            for of_split, split in zip(logits, read, strict=True):
                of_split += predict(self.model, split) / variant.members
        if linear is not None:
            parameters += linear.parameters
            flops += 2 * linear.parameters
            for of_split, way in zip(logits, (linear.validation, linear.test), strict=False):
                of_split += way.double().numpy()
        seconds = time.process_time() - started
        scale = 1.0 if self.scale is None else self.scale.scale
        validation, test = logits[0] * scale, logits[1] * scale if with_test else None
        return Fit(validation, test, parameters, flops, seconds)

    def _train(
        self, variant: Variant, states: Tensor, linear: Linear | None, seed: int, setting: Setting
    ) -> list[nn.Parameter]:
        """Trains a new pooler and classifier, and returns their parameters."""
        parameters = put_pooling(self.model, variant.build, seed)
        if self.scale is not None and linear is None:  # a linear model gives the targets' mean already
            self.scale.switch_on(self.model.classifier, fresh=True)
        beside = None
        if linear is not None:
            beside = linear.held_out if variant.linear == HELD_OUT else linear.train
        train_head(self.model, states, self.labels, setting, self.batch_size, seed, beside, variant.averaged)
        return parameters


def layer_states(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, split: Split, title: str) -> Tensor:
    """The states (N, L, H) of a split's texts, from the cache on disk where they are there."""
    tokens, _ = split.tokenize(tokenizer)
    rows = cached_states(model, tokens, DataCollatorWithPadding(tokenizer), 64, title=title).rows
    collator = StatesCollator(len(model.config.layers), model.config.hidden_size)
    return collator(list(rows))["layer_states"]


def train_head(
    model: PreTrainedModel,
    states: Tensor,
    labels: Tensor,
    setting: Setting,
    batch_size: int,
    seed: int,
    beside: Tensor | None = None,
    averaged: bool = False,
) -> None:
    """Trains pooler and classifier on `states` (N, L, S) and `labels` (N,) or (N, C).

    As in the training command. Only the batch differs: steps are small here, so it may hold more rows. `beside` (N, C)
    is added to the logits. With `averaged`, the weights are at last the mean of those that the second half of the
    epochs' steps gave.
    """
    head, loss = _head(model), summed_loss(model.config.problem_type)
    trained = list(head.parameters())
    sums, summed, done = [torch.zeros_like(p) for p in trained], 0, 0

    def add(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        nonlocal summed
        if done >= setting.epochs / 2:
            torch._foreach_add_(sums, [p.detach() for p in trained])
            summed += 1

    hook = register_optimizer_step_post_hook(add) if averaged else None
    rate, epochs = setting.learning_rate, setting.epochs
    for epoch in train_epochs(head, states, labels, loss, rate, epochs, batch_size, seed, beside):
        done = epoch
    if hook is not None:
        hook.remove()
        with torch.no_grad():
            for parameter, total in zip(trained, sums, strict=True):
                parameter.copy_(total / summed)


def predict(model: PreTrainedModel, states: Tensor) -> np.ndarray:
    """Logits (N, C)."""
    return predict_head(_head(model), states)


def _head(model: PreTrainedModel) -> Head:
    """What is above the layers. It takes states (B, L, S) of any width S, which the model itself would refuse."""
    return Head(model.lstmpool.pooler, model.classifier, model.config.pooler_dropout)


@torch.no_grad()
def head_flops(model: PreTrainedModel, width: int | None = None) -> int:
    """Floating-point operations of the matrix products of pooler and classifier, for one text.

    `width`: features of a layer's vector. Unset: those of the config.
    """
    states = torch.zeros(1, len(model.config.layers), width or model.config.hidden_size)
    # the counter does not see into the library's fused LSTM for processors
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about GPUs of another maker
        with torch.backends.mkldnn.flags(enabled=False), FlopCounterMode(display=False) as counter:
            _head(model).eval()(states)
    return counter.get_total_flops()
