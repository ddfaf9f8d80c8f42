"""The Trainer, with a higher learning rate for the new layers than for the pretrained ones."""

import torch
from datasets import Dataset
from transformers import Trainer


def split_groups(optimizer: torch.optim.Optimizer, head: set[int], learning_rate: float) -> None:
    """Gives the parameters whose `id` is in `head` their own rate, and leaves all else of their groups as it is."""
    groups = list(optimizer.param_groups)
    optimizer.param_groups.clear()
    for group in groups:
        for of_head in (False, True):
            params = [parameter for parameter in group["params"] if (id(parameter) in head) == of_head]
            if params:
                rate = learning_rate if of_head else group["lr"]
                optimizer.param_groups.append({**group, "params": params, "lr": rate})


class LstmPoolTrainer(Trainer):
    """The library's Trainer, whose optimizer has groups for the backbone and for pooler and classifier."""

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        fresh = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if fresh and self.args.head_learning_rate is not None:
            named = (self.model if model is None else model).named_parameters()
            head = {id(parameter) for name, parameter in named if ".backbone." not in f".{name}"}
            split_groups(optimizer, head, self.args.head_learning_rate)
        return optimizer

    def measure(self, dataset: Dataset) -> dict[str, float]:
        """The loss and the metrics on a data set."""
        metrics = self.predict(dataset, metric_key_prefix="test").metrics
        timing = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time")
        return {key: metrics[f"test_{key}"] for key in (k.removeprefix("test_") for k in metrics) if key not in timing}
