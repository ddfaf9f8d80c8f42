"""The frozen regime: the backbone runs once over a set, and each run trains a pooling and a classifier on its states.

The loop below does what `LstmPoolTrainer` does with the training command's settings; a test compares the two. It works
on tensors in memory: most of the time of a short run would otherwise be Trainer's own work.
"""

import math
import time
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    get_linear_schedule_with_warmup,
)

from lstmpool.training.data.rows import Split
from lstmpool.training.flags.arguments import ModelArguments
from lstmpool.training.model.backbone import Backbone, quiet_loading
from lstmpool.training.model.layer_cache import StatesCollator, cached_states
from lstmpool.training.model.target_scale import TargetScale
from study.data import TextSet
from study.poolings import Build, put_pooling
from study.records import Setting


# As in the training command. Only the batch differs: steps are small here, so a batch holds twice as many rows.
WARMUP = 0.1
WEIGHT_DECAY = 0.01
CLIP = 1.0


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

    The optimizer is AdamW. Its rate rises over the first tenth of the steps and falls to zero over the others.
    Gradients are clipped. `seed` draws the order of the batches.
    """
    named = [(n, p) for part in (model.lstmpool.pooler, model.classifier) for n, p in part.named_parameters()]
    # as in Trainer, biases and norms do not decay
    plain = [p for n, p in named if "bias" in n or "norm" in n]
    decayed = [p for n, p in named if not ("bias" in n or "norm" in n)]
    groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=setting.learning_rate, fused=True)
    steps = setting.epochs * math.ceil(len(states) / batch_size)
    schedule = get_linear_schedule_with_warmup(optimizer, math.ceil(WARMUP * steps), steps)
    generator = torch.Generator().manual_seed(seed)
    trained = [*decayed, *plain]
    model.train()
    for _ in range(setting.epochs):
        for rows in torch.randperm(len(states), generator=generator).split(batch_size):
            model(layer_states=states[rows], labels=labels[rows]).loss.backward()
            nn.utils.clip_grad_norm_(trained, CLIP)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()


@torch.no_grad()
def predict(model: PreTrainedModel, states: Tensor) -> np.ndarray:
    """Logits (N, C)."""
    model.eval()
    return torch.cat([model(layer_states=part).logits for part in states.split(256)]).double().numpy()


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
