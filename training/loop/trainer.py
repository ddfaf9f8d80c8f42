"""The Trainer, which has a learning rate for each part of the model, and whose runs can be cut off anywhere."""

import tempfile
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate.state import AcceleratorState
from datasets import Dataset
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.checkpoint import checkpoint as recompute
from torch.utils.data import Sampler
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import EvalLoopOutput

from lstmpool.training.data.order import lengths_of
from lstmpool.training.errors import InputError
from lstmpool.training.flags.training_arguments import DEFAULTS, TrainingArguments, refused
from lstmpool.training.loop.checkpoints import PREFIX, Kept, find_best, read_state, wins_tie
from lstmpool.training.loop.divergence import StopAtDivergence, check_weights
from lstmpool.training.loop.measuring import in_float32, same_random_numbers
from lstmpool.training.loop.trainer_arguments import changed
from lstmpool.training.model.trainable_parts import learning_rates
from lstmpool.training.writing import bytes_free, saving


def split_groups(optimizer: torch.optim.Optimizer, rates: dict[int, float]) -> None:
    """Gives each parameter the rate under its `id` in `rates`. It keeps all other settings of its group."""
    groups = list(optimizer.param_groups)
    optimizer.param_groups.clear()
    for group in groups:
        by_rate: dict[float, list[torch.nn.Parameter]] = {}
        for parameter in group["params"]:
            rate = rates.get(id(parameter), group["lr"])
            by_rate.setdefault(rate, []).append(parameter)
        for rate, parameters in by_rate.items():
            optimizer.param_groups.append(group | {"params": parameters, "lr": rate})


def check_settings(args: TrainingArguments) -> None:
    """Has the library check the settings, before any weights are read.

    The library checks them only where it uses them. So this sets up the training of one weight.

    Raises:
        InputError: for settings that the library refuses, such as an optimizer or a log whose package is missing. It
            names the flag.
    """
    try:
        _set_up(args)
    except Exception as error:  # each setting raises errors of its own kind
        plain = TrainingArguments(args.output_dir, use_cpu=args.use_cpu, **DEFAULTS)
        names = [entry.name for entry in fields(args)]
        values = {name: getattr(args, name) for name in names if getattr(args, name) != getattr(plain, name)}

        def without(name: str) -> None:
            AcceleratorState._reset_state()  # it keeps the settings of the first trainer
            _set_up(changed(args, **{name: getattr(plain, name)}))

        raise refused(error, values, without) from None


def _set_up(args: TrainingArguments) -> None:
    """Makes all that the library makes before the first step, for a model of one weight."""
    with tempfile.TemporaryDirectory() as folder:
        own = changed(
            args,
            output_dir=folder,
            push_to_hub=False,  # with it, a trainer makes a repository and a folder at once
            label_smoothing_factor=0.0,  # with it, a trainer reads the config of its model, and this one has none
            train_sampling_strategy="random",  # the others look at tokens
        )
        trainer = Trainer(torch.nn.Linear(1, 1), own, train_dataset=[0], eval_dataset=[0])
    trainer.create_optimizer_and_scheduler(num_training_steps=10)
    trainer.get_train_dataloader()
    trainer.get_eval_dataloader()
    if args.torch_compile:
        trainer.accelerator.prepare_model(trainer.model)
    if isinstance(trainer.lr_scheduler, LambdaLR):
        for share in trainer.lr_scheduler.lr_lambdas:
            float(share(9))  # of the peak rate, at the last step
    if args.activation_checkpointing:
        _recompute(args)


def _recompute(args: TrainingArguments) -> None:
    """Computes something again as --activation_checkpointing would."""
    options = dict(args.activation_checkpointing_kwargs or {})
    every, offload = options.pop("every_n_layers", 1), options.pop("offload", False)  # the library's own
    if not isinstance(every, int) or every < 1:
        raise ValueError(f"every_n_layers must be 1 or more, got {every}")
    if offload and args.device.type == "cpu":
        raise ValueError("offload needs a GPU")
    recompute(torch.nn.Identity(), torch.zeros(1), **({"use_reentrant": False} | options))


def check_room(model: torch.nn.Module, args: TrainingArguments) -> None:
    """Raises InputError if the disk of the output folder cannot hold a single checkpoint, before any step is trained.

    What is needed is a lower bound: the weights that are saved, and the two numbers that AdamW keeps of each weight
    that it trains. Of a model with adapters, frozen weights are not saved.
    """
    trained = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    needed = trained
    if isinstance(model, PreTrainedModel):
        needed = sum(p.nbytes for p in model.parameters())
    if args.optim in ("adamw_torch", "adamw_torch_fused") and args.save_strategy != "no":
        needed += 2 * trained
    free = bytes_free(Path(args.output_dir))
    if free < needed:
        raise InputError(
            f"a checkpoint takes at least {needed / 1e9:.3f} GB in {args.output_dir}, found {free / 1e9:.3f} GB free. "
            "Make room, or choose an --output_dir on another disk."
        )


class StartCounts(TrainerCallback):
    """The model as it is before the first step is evaluated and saved, and is the first of those that may be kept.

    Args:
        trainer: its checkpoint is number 0.
        scores: metrics that are already known of the model. They go to the log, which checkpoints keep.
        may_be_kept: if not, only the scores are noted.
    """

    def __init__(self, trainer: "LstmPoolTrainer", scores: dict[str, float], may_be_kept: bool):
        self.trainer = trainer
        self.scores = scores
        self.may_be_kept = may_be_kept

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Does it. A run that goes on from a checkpoint has done so before, and must not have this callback."""
        state.log_history.append({"epoch": 0, "step": 0, "start": self.scores})
        if args.load_best_model_at_end and self.may_be_kept:
            args.eval_on_start = False  # a second evaluation would count as one without an improvement
            self.trainer.count_start()


class _LengthGroupedSampler(LengthGroupedSampler):
    """The library's sampler, with an order that depends on the seed and the epoch alone.

    The library's own order depends on the state of the global generator, which a resumed run cannot know.
    """

    def __init__(self, batch_size: int, lengths: list[int], seed: int):
        super().__init__(batch_size, lengths=lengths, generator=torch.Generator())
        self.seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Sets the order of an epoch, counted from 0. The library calls it when the epoch begins."""
        self.generator.manual_seed(self.seed + epoch)


class EarlyStoppingCallback(transformers.EarlyStoppingCallback):
    """The library's, where an equal metric with a lower loss is an improvement, too: see `wins_tie`.

    It keeps the library's name, under which checkpoints hold its count.
    """

    def check_metric_value(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metric_value: float
    ) -> None:
        """Counts the evaluations in a row without an improvement."""
        super().check_metric_value(args, state, control, metric_value)
        if wins_tie(state, metric_value):
            self.early_stopping_patience_counter = 0


class LstmPoolTrainer(Trainer):
    """The library's Trainer, with a group in the optimizer for each rate (see `learning_rates`).

    A run that goes on from a checkpoint ends with the same weights, bit for bit, as one that never stopped.
    """

    def __init__(self, model: PreTrainedModel, args: TrainingArguments, **options: Any):
        """`options` are those of the library's Trainer."""
        self.kept = Kept.of(args)
        super().__init__(model, changed(args, save_total_limit=None), **options)  # `kept` sees to the limit
        self.add_callback(StopAtDivergence())

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """Makes the library's optimizer, once, and splits its groups by rate."""
        fresh = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if fresh:
            rates = learning_rates(self.model, self.args)
            named = (self.model if model is None else model).named_parameters()
            by_name = {name.removeprefix("module."): parameter for name, parameter in named}
            split_groups(optimizer, {id(by_name[name]): rate for name, rate in rates.items() if name in by_name})
        return optimizer

    def count_start(self) -> None:
        """Evaluates and saves the model before its first step. `train` has set up everything by then."""
        self._determine_best_metric(self.evaluate(), trial=None)
        self._save_checkpoint(self.model_wrapped, trial=None)

    def train_from(self, checkpoint: str | None) -> None:
        """Trains to the end, from `checkpoint` if there is one. If training was over there, it only loads the weights.

        Raises:
            InputError: if the best checkpoint so far is not whole, the disk is full, several processes wait for
                gradients in vain, or the backbone cannot recompute activations.
        """
        if self.args.activation_checkpointing and not self.model.supports_gradient_checkpointing:
            raise InputError("this kind of backbone does not support --activation_checkpointing. Leave it out.")
        if not checkpoint:
            self._train(None)
            return
        state = read_state(Path(checkpoint))
        best = None
        if self.args.load_best_model_at_end:
            best = find_best(Path(checkpoint), Path(self.args.output_dir))
        if not self._is_over(state):
            self._train(checkpoint)
            return
        self.state = state
        self._load_from_checkpoint(checkpoint)
        if best:
            state.best_model_checkpoint = str(best)
            self._load_best_model()

    def _train(self, checkpoint: str | None) -> None:
        if self.args.should_save:
            check_room(self.model, self.args)
        try:
            self.train(resume_from_checkpoint=checkpoint)
        except InputError:
            self._end_line_of_progress()
            raise
        except RuntimeError as error:
            if "Expected to have finished reduction in the prior iteration" not in str(error):
                raise
            raise InputError(
                "several processes expect a gradient of every parameter, and found some of this backbone that get "
                "none. Add --ddp_find_unused_parameters True."
            ) from None

    def _end_line_of_progress(self) -> None:
        """Closes the progress bar, so that the error stands on a line of its own."""
        for callback in self.callback_handler.callbacks:
            bar = getattr(callback, "training_bar", None)
            if bar is not None:
                bar.close()

    def evaluation_loop(self, *args: Any, **options: Any) -> EvalLoopOutput:
        """Evaluates as the library does, and leaves the random numbers of training as they would be without it."""
        with same_random_numbers():
            return super().evaluation_loop(*args, **options)

    def prediction_step(self, *args: Any, **options: Any) -> tuple[torch.Tensor | None, ...]:
        """Takes the library's arguments, and runs the model in float32, as it is saved and will be loaded."""
        with in_float32(self):
            return super().prediction_step(*args, **options)

    def _is_over(self, state: TrainerState) -> bool:
        """Whether no step is left. The library would train one more epoch after an early stop, and one more step
        after `max_steps`."""
        stopper = state.stateful_callbacks.get(EarlyStoppingCallback.__name__, {})
        evaluations_without = stopper.get("attributes", {}).get("early_stopping_patience_counter", 0)
        patience = self.args.early_stopping_patience
        if patience is not None and evaluations_without >= patience:
            return True
        last_step = self.set_initial_training_values(self.args, self.get_train_dataloader())[-1]
        return state.global_step >= last_step

    def _determine_best_metric(self, metrics: dict[str, float], trial: None) -> bool:
        """Whether this evaluation is the best one so far: as in the library, but ties are decided by `wins_tie`."""
        named = self.args.metric_for_best_model
        value = metrics.get(f"eval_{named.removeprefix('eval_')}") if named else None
        if not wins_tie(self.state, value):
            return super()._determine_best_metric(metrics, trial)
        self.state.best_global_step = self.state.global_step
        return True

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        args = self.args
        if args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        dataset = self.train_dataset if train_dataset is None else train_dataset
        together = args.train_batch_size * args.gradient_accumulation_steps
        seed = args.seed if args.data_seed is None else args.data_seed
        return _LengthGroupedSampler(together, lengths_of(dataset), seed)

    def _name_best_start(self) -> None:
        """Names the best checkpoint if it is number 0, which the library takes for none.

        Its folder may have moved since. A run that was resumed from another folder's checkpoint has none of its own.
        """
        start = self.kept.folder / f"{PREFIX}0"
        if self.state.best_global_step == 0 and (self.state.global_step == 0 or start.is_dir()):
            self.state.best_model_checkpoint = str(start)

    def _save_checkpoint(self, model: torch.nn.Module, trial: None) -> None:
        """Saves as the library does, with `kept` at work before and after, while the other processes wait.

        Raises:
            Diverged: if a weight is NaN or infinite. Nothing is then saved.
            InputError: if the disk is full. Older checkpoints stay.
        """
        check_weights(self.model, self.state.global_step)
        checkpoint = self.kept.of_step(self.state)
        self._name_best_start()
        with saving(checkpoint, half_made=checkpoint if self.args.should_save else None):
            if self.args.should_save:
                self.kept.before_save(self.state)
            self.accelerator.wait_for_everyone()
            super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            self.kept.after_save(self.state)
