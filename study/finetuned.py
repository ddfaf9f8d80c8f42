"""The regimes that train the backbone too: with a few rows a class, or with all; the stock head among the poolings.

Every run is one of Trainer's, with the training command's settings but for those of the grid. The stock head is the
library's AutoModelForSequenceClassification; what lies above its layers, a pooler among it, learns at the same rate as
what lies above those of the others.
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

from lstmpool.study.data import TextSet
from lstmpool.study.frozen import Fit, head_flops
from lstmpool.study.poolings import Build, put_pooling
from lstmpool.study.records import Setting
from lstmpool.training.arguments import ModelArguments
from lstmpool.training.data.rows import Split
from lstmpool.training.errors import InputError
from lstmpool.training.evaluation.predictions import predict_logits
from lstmpool.training.loop.trainer import LstmPoolTrainer, split_groups
from lstmpool.training.model.backbone import Backbone, quiet_loading
from lstmpool.training.model.target_scale import TargetScale
from lstmpool.training.tasks.labels import REGRESSION, SINGLE
from lstmpool.training.training_arguments import DEFAULTS, TrainingArguments


class FinetunedSet:
    """A set's rows as tokens, and the runs on them. With `shots`, each run draws so many rows a class by its seed."""

    def __init__(self, backbone: str, data: TextSet, token_pooling: str, batch_size: int, shots: int | None):
        if shots is not None and data.problem_type != SINGLE:
            raise InputError(f"few shots are counted by class; {data.name} is {data.problem_type}. Leave it out.")
        self.backbone = Backbone.find(ModelArguments(backbone=backbone))
        self.tokenizer = self.backbone.load_tokenizer(None)
        self.data, self.token_pooling, self.batch_size, self.shots = data, token_pooling, batch_size, shots
        self.scale = TargetScale(data.train.labels) if data.problem_type == REGRESSION else None

    def fit(self, build: Build | None, seed: int, setting: Setting, with_test: bool) -> Fit:
        """One run; of the stock head without `build`. Its test rows are read only if they are asked for."""
        set_seed(seed)
        model, new = self.make(build, seed)
        train = self.data.train if self.shots is None else draw(self.data.train, self.shots, seed)
        if self.scale is not None:
            train = replace(train, labels=self.scale.divide(train.labels))
            if isinstance(getattr(model, "classifier", None), nn.Linear):
                self.scale.switch_on(model.classifier, fresh=True)
        with tempfile.TemporaryDirectory() as folder:
            args = TrainingArguments(
                **{**DEFAULTS, "report_to": "none", "save_strategy": "no", "logging_strategy": "no"},
                output_dir=folder,
                seed=seed,
                num_train_epochs=setting.epochs,
                bf16=True,  # half the time on processors that multiply faster in it
                use_cpu=not torch.cuda.is_available(),  # bf16 is refused on a processor that is not asked for
                disable_tqdm=True,
            )
            args.learning_rate, args.head_learning_rate = setting.learning_rate, setting.head_learning_rate
            args.per_device_train_batch_size = self.batch_size
            kind = StockTrainer if build is None else LstmPoolTrainer
            trainer = kind(
                model,
                args,
                train_dataset=train.tokenize(self.tokenizer)[0].add_column("labels", train.labels),
                data_collator=DataCollatorWithPadding(self.tokenizer),
                processing_class=self.tokenizer,
            )
            started = time.process_time()
            trainer.train()
            seconds = time.process_time() - started
            logits = [
                self.predict(trainer, split) for split in (self.data.validation, self.data.test)[: 1 + with_test]
            ]
        parameters = sum(p.numel() for p in new)
        # a matrix of the stock head is used once a text
        flops = 2 * sum(p.numel() for p in new if p.ndim == 2) if build is None else head_flops(model)
        return Fit(logits[0], logits[1] if with_test else None, parameters, flops, seconds)

    def make(self, build: Build | None, seed: int) -> tuple[PreTrainedModel, list[nn.Parameter]]:
        """A pretrained model with a new head, and the parameters above the backbone's layers."""
        fields = self.data.labels.config_fields
        with quiet_loading():
            if build is not None:
                model, _ = self.backbone.load_model(
                    {**fields, "token_pooling": self.token_pooling, "layer_pooling": "last"}
                )
                return model, put_pooling(model, build, seed)
            model = AutoModelForSequenceClassification.from_pretrained(
                self.backbone.path, dtype=torch.float32, **self.backbone.loading, **fields
            )
        return model, above_layers(model)

    def predict(self, trainer: Trainer, split: Split) -> np.ndarray:
        logits = predict_logits(trainer, split.tokenize(self.tokenizer)[0])
        return logits if self.scale is None else logits * self.scale.scale


def above_layers(model: PreTrainedModel) -> list[nn.Parameter]:
    """What the library's classifier has above the layers, a pooler of the backbone's among it: checkpoints made for
    sentence vectors hold one that was never trained. One that was trained learns faster than it should."""
    pooler = getattr(model.base_model, "pooler", None)
    of_pooler = set() if pooler is None else set(map(id, pooler.parameters()))
    of_layers = set(map(id, model.base_model.parameters())) - of_pooler
    return [p for p in model.parameters() if id(p) not in of_layers]


class StockTrainer(Trainer):
    """The library's, with a rate of its own for what lies above the layers."""

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        fresh = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if fresh:
            split_groups(optimizer, dict.fromkeys(map(id, above_layers(self.model)), self.args.head_learning_rate))
        return optimizer


def draw(train: Split, shots: int, seed: int) -> Split:
    """`shots` rows of every class, or all that it has; drawn by `seed`."""
    rows_of: dict[int, list[int]] = defaultdict(list)
    for row, label in enumerate(train.labels):
        rows_of[label].append(row)
    generator = random.Random(seed)
    drawn = [row for _, rows in sorted(rows_of.items()) for row in generator.sample(rows, min(shots, len(rows)))]
    return train.take(sorted(drawn))
