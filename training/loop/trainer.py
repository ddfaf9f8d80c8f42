"""The Trainer, with a learning rate of its own for each part of the model, and runs that can be cut off anywhere."""

import copy
import shutil
import tempfile
from pathlib import Path

import torch
from datasets import Dataset
from torch.utils.data import Sampler
from transformers import EarlyStoppingCallback, Trainer, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import rotate_checkpoints

from lstmpool.training.data.rows import token_counts
from lstmpool.training.errors import InputError
from lstmpool.training.loop.checkpoints import MANIFEST, damage, find_best, write_manifest
from lstmpool.training.model.trainable_parts import learning_rates
from lstmpool.training.training_arguments import TrainingArguments


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


class _LengthGroupedSampler(LengthGroupedSampler):
    """The library's, with an order that follows from the seed and the epoch: its own goes on from wherever the global
    generator is, which a resumed run cannot know."""

    def __init__(self, batch_size: int, lengths: list[int], seed: int):
        super().__init__(batch_size, lengths=lengths, generator=torch.Generator())
        self.seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Called at the start of each epoch, of which the first is 0."""
        self.generator.manual_seed(self.seed + epoch)


class LstmPoolTrainer(Trainer):
    """The library's Trainer, whose optimizer has a group for each rate (see `learning_rates`), and which goes on from
    a checkpoint to the same weights, bit for bit, as if it had never stopped."""

    limit: int | None = None  # of checkpoints, while `train_from` trains

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        fresh = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if fresh:
            rates = learning_rates(self.model, self.args)
            named = (self.model if model is None else model).named_parameters()
            by_name = {name.removeprefix("module."): parameter for name, parameter in named}
            split_groups(optimizer, {id(by_name[name]): rate for name, rate in rates.items() if name in by_name})
        return optimizer

    def train_from(self, checkpoint: str | None) -> None:
        """Trains to the end, from a checkpoint if there is one; if training was over with that one, it is loaded.

        Raises:
            InputError: if the best checkpoint so far is not whole, or several processes wait for gradients in vain.
        """
        state = TrainerState.load_from_json(Path(checkpoint, TRAINER_STATE_NAME)) if checkpoint else None
        kept = checkpoint and self.args.load_best_model_at_end
        best = find_best(Path(checkpoint), Path(self.args.output_dir)) if kept else None
        if state is None or not self._is_over(state):
            # the library would remove older checkpoints before a new one is whole, and the last one at the end
            self.limit, self.args.save_total_limit = self.args.save_total_limit, None
            try:
                self.train(resume_from_checkpoint=checkpoint)
            except RuntimeError as error:
                if "Expected to have finished reduction in the prior iteration" not in str(error):
                    raise
                raise InputError(
                    "several processes expect a gradient of every parameter, and found some of this backbone that get "
                    "none. Add --ddp_find_unused_parameters True."
                ) from None
            finally:
                self.args.save_total_limit = self.limit
            return
        self.state = state
        self._load_from_checkpoint(checkpoint)
        if best:
            state.best_model_checkpoint = str(best)
            self._load_best_model()

    def remove_last_checkpoint(self) -> None:
        """With `save_total_limit` 1 the best checkpoint alone is left. To be called when all else is written: until
        then, a run that is cut off goes on from the last one."""
        best, last = (
            self.state.best_model_checkpoint,
            Path(self.args.output_dir, f"checkpoint-{self.state.global_step}"),
        )
        if (
            self.args.save_total_limit == 1
            and self.args.load_best_model_at_end
            and best
            and last.name != Path(best).name
        ):
            shutil.rmtree(last, ignore_errors=True)

    def _is_over(self, state: TrainerState) -> bool:
        """The library would train one more epoch after an early stop, and one more step after `max_steps`."""
        stopper = state.stateful_callbacks.get(EarlyStoppingCallback.__name__, {})
        evaluations_without = stopper.get("attributes", {}).get("early_stopping_patience_counter", 0)
        patience = self.args.early_stopping_patience
        if patience is not None and evaluations_without >= patience:
            return True
        return state.global_step >= self.set_initial_training_values(self.args, self.get_train_dataloader())[-1]

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        args, rows = self.args, self.train_dataset if train_dataset is None else train_dataset
        if args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        together = args.train_batch_size * args.gradient_accumulation_steps
        seed = args.seed if args.data_seed is None else args.data_seed
        return _LengthGroupedSampler(together, token_counts(rows[:]), seed)

    def _save_checkpoint(self, model: torch.nn.Module, trial: None) -> None:
        """Older checkpoints are removed once this one is whole, and not before."""
        folder = Path(self.args.output_dir, f"checkpoint-{self.state.global_step}")
        if self.args.should_save and folder.exists():
            if damage(folder):
                shutil.rmtree(folder)  # a save that was cut off has left it
            else:
                (folder / MANIFEST).unlink()  # its files are replaced one by one
        self.accelerator.wait_for_everyone()
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            write_manifest(folder)
            rotate_checkpoints(self.args.output_dir, self.limit, self.state.best_model_checkpoint)
