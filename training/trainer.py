"""The Trainer, with a learning rate of its own for each part of the model."""

import copy
import tempfile

import torch
from transformers import Trainer

from lstmpool.training.arguments import TrainingArguments
from lstmpool.training.errors import InputError
from lstmpool.training.layers import learning_rates


def split_groups(optimizer: torch.optim.Optimizer, rates: dict[int, float]) -> None:
    """Gives each parameter the rate under its `id` in `rates`, and leaves all else of its group as it is."""
    groups = list(optimizer.param_groups)
    optimizer.param_groups.clear()
    for group in groups:
        by_rate: dict[float, list[torch.nn.Parameter]] = {}
        for parameter in group["params"]:
            by_rate.setdefault(rates.get(id(parameter), group["lr"]), []).append(parameter)
        for rate, parameters in by_rate.items():
            optimizer.param_groups.append({**group, "params": parameters, "lr": rate})


def check_settings(args: TrainingArguments) -> None:
    """Makes a trainer of one weight, with its optimizer and schedule, as the library checks these where it makes them.

    Raises:
        InputError: for settings that it refuses, such as an optimizer or a log whose package is not installed.
    """
    args = copy.copy(args)
    args.push_to_hub = False  # a trainer makes its repository, and its folder, at once
    args.label_smoothing_factor = 0.0  # and asks a model's config for its task
    try:
        with tempfile.TemporaryDirectory() as args.output_dir:
            trainer = Trainer(torch.nn.Linear(1, 1), args, eval_dataset=[0])
        trainer.create_optimizer_and_scheduler(num_training_steps=10)
    except Exception as error:  # of every kind, by the setting
        raise InputError(f"these settings cannot be trained with: {error}") from None


class LstmPoolTrainer(Trainer):
    """The library's Trainer, whose optimizer has a group for each rate (see `learning_rates`)."""

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        fresh = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if fresh:
            rates = learning_rates(self.model, self.args)
            named = (self.model if model is None else model).named_parameters()
            by_name = {name.removeprefix("module."): parameter for name, parameter in named}
            split_groups(optimizer, {id(by_name[name]): rate for name, rate in rates.items() if name in by_name})
        return optimizer
