"""The regimes that train the backbone, too, on a few rows a class or on all of them.

Trainer makes every run, with the training command's settings except for those of the grid. The stock head, the
library's AutoModelForSequenceClassification, is among the poolings. What lies above its layers, which includes a
pooler, learns at the rate of what lies above the layers of the others.
"""

import random
import tempfile
import time
from collections import defaultdict
from dataclasses import replace

import numpy as np
import torch
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    PreTrainedModel,
    Trainer,
    set_seed,
)

from lstmpool.training.data.rows import Split
from lstmpool.training.errors import InputError
from lstmpool.training.flags.arguments import ModelArguments
from lstmpool.training.flags.training_arguments import DEFAULTS, TrainingArguments
from lstmpool.training.loop.measuring import predict_logits
from lstmpool.training.loop.trainer import LstmPoolTrainer, split_groups
from lstmpool.training.model.backbone import Backbone, quiet_loading
from lstmpool.training.model.target_scale import TargetScale
from lstmpool.training.tasks.single_label import SingleLabel
from study.data import TextSet
from study.frozen import Fit, head_flops
from study.poolings import Build, put_pooling
from study.records import Setting


class FinetunedSet:
    """A set's rows, and the runs on them. With `shots`, the seed of a run draws so many rows of each class."""

    def __init__(self, backbone: str, data: TextSet, token_pooling: str, batch_size: int, shots: int | None):
        if shots is not None and not isinstance(data.task, SingleLabel):
            raise InputError(
                f"few shots are counted by class, so they need one label a row; {data.name} is "
                f"{data.task.problem_type}. Leave it out."
            )
        self.backbone = Backbone.find(ModelArguments(backbone=backbone))
        self.tokenizer = self.backbone.load_tokenizer(None)
        self.data = data
        self.token_pooling = token_pooling
        self.batch_size = batch_size
        self.shots = shots
        self.scale = TargetScale(data.train.labels) if data.task.has_numbers else None

    def fit(self, build: Build | None, seed: int, setting: Setting, with_test: bool) -> Fit:
        """One run; without `build`, of the stock head. The test rows are read only if `with_test` says so."""
        set_seed(seed)
        model, new = self.make(build, seed)
        if self.scale is not None and isinstance(getattr(model, "classifier", None), nn.Linear):
            self.scale.switch_on(model.classifier, fresh=True)
        train = self.train_rows(seed)
        splits = [self.data.validation, self.data.test] if with_test else [self.data.validation]
        with tempfile.TemporaryDirectory() as folder:
            kind = StockTrainer if build is None else LstmPoolTrainer
            trainer = kind(
                model,
                self.arguments(folder, seed, setting),
                train_dataset=train.tokenize(self.tokenizer)[0].add_column("labels", train.labels),
                data_collator=DataCollatorWithPadding(self.tokenizer),
                processing_class=self.tokenizer,
            )
            started = time.process_time()
            trainer.train()
            seconds = time.process_time() - started
            logits = [self.predict(trainer, split) for split in splits]
        parameters = sum(p.numel() for p in new)
        if build is None:
            flops = 2 * sum(p.numel() for p in new if p.ndim == 2)  # a text uses each matrix of the stock head once
        else:
            flops = head_flops(model)
        return Fit(logits[0], logits[1] if with_test else None, parameters, flops, seconds)

    def train_rows(self, seed: int) -> Split:
        """The training rows of a run, with the targets of a regression scaled."""
        train = self.data.train
        if self.shots is not None:
            train = draw(train, self.shots, seed)
        if self.scale is not None:
            train = replace(train, labels=self.scale.divide(train.labels))
        return train

    def arguments(self, folder: str, seed: int, setting: Setting) -> TrainingArguments:
        """The training command's, with a run's own setting; nothing is saved or logged."""
        own = {
            "output_dir": folder,
            "seed": seed,
            "num_train_epochs": setting.epochs,
            "learning_rate": setting.learning_rate,
            "head_learning_rate": setting.head_learning_rate,
            "per_device_train_batch_size": self.batch_size,
            "bf16": True,  # half the time on processors that multiply faster in it
            "use_cpu": not torch.cuda.is_available(),  # bf16 is refused on a processor unless it is asked for
            "report_to": "none",
            "save_strategy": "no",
            "logging_strategy": "no",
            "disable_tqdm": True,
        }
        return TrainingArguments(**(DEFAULTS | own))

    def make(self, build: Build | None, seed: int) -> tuple[PreTrainedModel, list[nn.Parameter]]:
        """A pretrained model with a new head, and the parameters above the backbone's layers."""
        fields = self.data.task.config_fields
        with quiet_loading():
            if build is not None:
                own = {"token_pooling": self.token_pooling, "layer_pooling": "last"}
                model, _ = self.backbone.load_model(fields | own)
                return model, put_pooling(model, build, seed)
            model = AutoModelForSequenceClassification.from_pretrained(
                self.backbone.path, dtype=torch.float32, **self.backbone.loading, **fields
            )
        return model, above_layers(model)

    def predict(self, trainer: Trainer, split: Split) -> np.ndarray:
        logits = predict_logits(trainer, split.tokenize(self.tokenizer)[0])
        return logits if self.scale is None else logits * self.scale.scale


def above_layers(model: PreTrainedModel) -> list[nn.Parameter]:
    """What the library's classifier has above the layers, including the backbone's pooler.

    Checkpoints made for sentence vectors hold a pooler that was never trained. One that was trained learns faster here
    than it should.
    """
    of_layers = set(map(id, model.base_model.parameters()))
    if (pooler := getattr(model.base_model, "pooler", None)) is not None:
        of_layers -= set(map(id, pooler.parameters()))
    return [p for p in model.parameters() if id(p) not in of_layers]


class StockTrainer(Trainer):
    """The library's Trainer, with a rate of its own for what lies above the layers."""

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        fresh = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if fresh:
            split_groups(optimizer, dict.fromkeys(map(id, above_layers(self.model)), self.args.head_learning_rate))
        return optimizer


def draw(train: Split, shots: int, seed: int) -> Split:
    """`shots` rows of every class, or all that it has. `seed` draws them."""
    rows_of: dict[int, list[int]] = defaultdict(list)
    for row, label in enumerate(train.labels):
        rows_of[label].append(row)
    generator = random.Random(seed)
    drawn: list[int] = []
    for _, rows in sorted(rows_of.items()):
        drawn += generator.sample(rows, min(shots, len(rows)))
    return train.take(sorted(drawn))
