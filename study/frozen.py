"""The frozen regime: the backbone runs once over a set, and each run trains a pooling and a classifier on its states.

The loop does what `LstmPoolTrainer` does with the training command's settings; a test compares the two. It works on
tensors in memory: most of the time of a short run would otherwise be Trainer's own work.
"""

import time
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
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
from study.poolings import Build, put_pooling
from study.records import Setting


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
        tokenizer = found.load_tokenizer(None)
        with quiet_loading():
            fields = {**data.task.config_fields, "token_pooling": token_pooling, "layer_pooling": "last"}
            self.model, _ = found.load_model(fields)
        self.model.lstmpool.backbone.requires_grad_(False)
        self.batch_size = batch_size
        self.train = layer_states(self.model, tokenizer, data.train, data.name)
        self.validation = layer_states(self.model, tokenizer, data.validation, data.name)
        self.test = layer_states(self.model, tokenizer, data.test, data.name)
        labels, self.scale = data.train.labels, None
        if data.task.has_numbers:
            self.scale = TargetScale(labels)
            labels = self.scale.divide(labels)
        self.labels = torch.tensor(labels)

    def fit(self, build: Build, seed: int, setting: Setting, with_test: bool) -> Fit:
        """One run. The test rows are read only if `with_test` says so."""
        parameters = put_pooling(self.model, build, seed)
        if self.scale is not None:
            self.scale.switch_on(self.model.classifier, fresh=True)
        started = time.process_time()
        train_head(self.model, self.train, self.labels, setting, self.batch_size, seed)
        seconds = time.process_time() - started
        scale = 1.0 if self.scale is None else self.scale.scale
        logits = predict(self.model, self.validation) * scale
        test = predict(self.model, self.test) * scale if with_test else None
        return Fit(logits, test, sum(p.numel() for p in parameters), head_flops(self.model), seconds)


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
) -> None:
    """Trains pooler and classifier on `states` (N, L, H) and `labels` (N,) or (N, C).

    As in the training command. Only the batch differs: steps are small here, so it may hold more rows.
    """
    loss = summed_loss(model.config.problem_type)
    for _ in train_epochs(_head(model), states, labels, loss, setting.learning_rate, setting.epochs, batch_size, seed):
        pass


def predict(model: PreTrainedModel, states: Tensor) -> np.ndarray:
    """Logits (N, C)."""
    return predict_head(_head(model), states)


def _head(model: PreTrainedModel) -> Head:
    return Head(model.lstmpool.pooler, model.classifier, model.config.pooler_dropout)


@torch.no_grad()
def head_flops(model: PreTrainedModel) -> int:
    """Floating-point operations of the matrix products of pooler and classifier, for one text."""
    states = torch.zeros(1, len(model.config.layers), model.config.hidden_size)
    # the counter does not see into the library's fused LSTM for processors
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about GPUs of another maker
        with torch.backends.mkldnn.flags(enabled=False), FlopCounterMode(display=False) as counter:
            model.eval()(layer_states=states)
    return counter.get_total_flops()
