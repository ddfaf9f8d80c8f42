"""Notices that training has diverged, and stops it before a checkpoint or a result is saved.

A diverged model has weights, losses or logits that are NaN or infinite. Earlier checkpoints stay as they are.
"""

import math
from typing import Any

import numpy as np
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState

from lstmpool.training.errors import Diverged
from lstmpool.training.flags.training_arguments import TrainingArguments
from lstmpool.training.model.trainable_parts import not_finite, trained_head, trained_skip


REMEDY = "Lower --learning_rate and --head_learning_rate, or leave out --fp16."


def check_weights(model: PreTrainedModel, step: int) -> None:
    """Raises Diverged if a weight of the model is NaN or infinite. `step`: the number of steps that it was trained."""
    if name := not_finite(model):
        raise Diverged(
            f"training has diverged by step {step}: expected numbers in {name}, found NaN or infinity. These weights "
            f"are not saved. {REMEDY}"
        )


def check_logits(logits: np.ndarray) -> None:
    """Raises Diverged if some of the logits (N, C) are NaN or infinite."""
    if not np.isfinite(logits).all():
        raise Diverged(
            "expected numbers from the model, found NaN or infinity: it has diverged, and was not saved. " + REMEDY
        )


class StopAtDivergence(TrainerCallback):
    """Ends training at the first step that leaves NaN or infinity in the head, or the first log of such a loss.

    A loss of NaN makes each gradient NaN, so the head shows it at once, in each of several processes.
    """

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: PreTrainedModel | None = None,
        **kwargs: Any,
    ) -> None:
        """Looks at the head alone: it is small, and looking takes no time beside a step."""
        skip = trained_skip(model)
        if not_finite(trained_head(model)) or (skip is not None and not_finite(skip)):
            check_weights(model, state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Looks at the loss that is logged. It may be infinite while all weights are numbers."""
        loss = logs.get("loss", 0.0)
        if not math.isfinite(loss):
            raise Diverged(
                f"training has diverged by step {state.global_step}: expected a number as the training loss, found "
                f"{loss}. These weights are not saved. {REMEDY}"
            )
