"""Makes the arguments for Trainer. It writes to them, so it gets a copy; the parsed ones stay as they are."""

import copy
from typing import Any

from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from lstmpool.training.flags.defaults import Budget, Limits, budget, steps_for
from lstmpool.training.flags.training_arguments import TrainingArguments
from lstmpool.training.tasks.task import BestBy


def changed(args: TrainingArguments, **values: Any) -> TrainingArguments:
    """A copy of the arguments with other values. It repeats none of their checks, and sets up nothing again."""
    copied = copy.copy(args)
    copied.accelerator_config = copy.deepcopy(args.accelerator_config)  # Trainer writes to what it holds, too
    for name, value in values.items():
        setattr(copied, name, value)
    return copied


def trainer_arguments(args: TrainingArguments, best: BestBy, reads_layer_states: bool = False) -> TrainingArguments:
    """The copy for Trainer.

    Args:
        args: the parsed arguments.
        best: the metric by which the best epoch is chosen.
        reads_layer_states: whether Trainer reads a frozen backbone's layer states in place of tokens.
    """
    sampling = args.train_sampling_strategy
    if reads_layer_states and sampling != "sequential":
        sampling = "random"  # the other strategies look at tokens
    return changed(
        args,
        metric_for_best_model=best.metric,
        greater_is_better=best.greater_is_better,
        push_to_hub=False,  # its own pushes leave out the code
        remove_unused_columns=False,  # the model takes all columns
        train_sampling_strategy=sampling,
    )


def batch_of(args: TrainingArguments) -> int:
    """The rows of a step, over all processes and accumulated batches."""
    return args.train_batch_size * args.gradient_accumulation_steps * args.world_size


def budget_of(args: TrainingArguments, rows: int) -> Budget:
    """How long a run over `rows` is."""
    batch = batch_of(args)
    if args.max_steps > 0:
        return Budget(args.max_steps * batch / rows, args.max_steps)
    return budget(rows, batch, args.num_train_epochs, args.limits.least_steps)


def within_limits(args: TrainingArguments, rows: int, tokens: float = 1) -> TrainingArguments:
    """The arguments of a run over `rows`, made long enough. Its many short epochs are not all evaluated and saved.

    They depend on arguments and rows alone, so that a run which goes on has the same. `tokens`: of the median row.
    """
    if args.max_steps > 0 or args.limits == Limits():
        return args
    least_steps = steps_for(tokens, batch_of(args), args.limits.least_steps)
    args = changed(args, limits=args.limits._replace(least_steps=least_steps))
    length, values = budget_of(args, rows), {}
    values["num_train_epochs"] = length.epochs
    for kind, most in (
        ("eval", args.limits.most_evaluations),
        ("save", args.limits.most_evaluations),
        ("logging", args.limits.logs),
    ):
        every = length.every(most)
        strategy = getattr(args, f"{kind}_strategy")
        if every and strategy == "epoch":
            values[f"{kind}_strategy"] = SaveStrategy.STEPS if kind == "save" else IntervalStrategy.STEPS
            values[f"{kind}_steps"] = every
    return changed(args, **values)
