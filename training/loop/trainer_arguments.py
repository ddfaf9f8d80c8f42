"""Makes the arguments for Trainer. It writes to them, so it gets a copy; the parsed ones stay as they are."""

import copy
from typing import Any

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
