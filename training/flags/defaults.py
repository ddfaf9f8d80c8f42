"""The values of flags that were not given: defaults for fine-tuning, and what follows from the rows at hand.

`worked_out` is a pure function: it does not change its arguments. `rules` checks what it returns.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from lstmpool.training.flags.arguments import AUTO, DataArguments


# Where a fine-tune needs something other than the library's defaults.
FINE_TUNING = {
    "learning_rate": 5e-5,
    "warmup_steps": 0.1,  # a share of all steps
    "weight_decay": 0.01,
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 64,
    "logging_strategy": "epoch",
    "logging_nan_inf_filter": False,  # it would hide from the log that a loss is NaN
    "save_strategy": "epoch",
    "save_total_limit": 1,
    "metric_for_best_model": AUTO,
    "restore_callback_states_from_checkpoint": True,
    "ddp_timeout": 24 * 60 * 60,  # seconds: the others wait while the first process fills the cache of layer states
    "ddp_find_unused_parameters": False,  # most backbones have none; the library would look for them at every step
}
DOING = {  # flag -> the split whose rows it needs
    "do_train": "train",
    "do_eval": "validation",
    "do_predict": "test",
}
STEPS = 500  # between evaluations by steps, if no number is named: the library's own default
LEAST_STEPS = 200  # of a run, where the user leaves its length to the command
LEAST_TOKENS = 100_000  # fewer steps will do if they read so many
MOST_EVALUATIONS = 10  # of a run that is made longer: its epochs may be tiny
LENGTH = ("num_train_epochs", "max_steps")
EVALUATION = ("eval_strategy", "eval_steps", "eval_delay", "save_strategy", "save_steps")
LOGGING = ("logging_strategy", "logging_steps")
# Flags that count in training alone: how to train, and how to evaluate, log and save meanwhile. With --init_from and
# --early_exit nothing is trained unless a flag of LENGTH says so.
OF_TRAINING = (
    *("do_train", "learning_rate", "head_learning_rate", "layerwise_lr_decay", "weight_decay", "warmup_steps"),
    *("lr_scheduler_type", "lr_scheduler_kwargs", "per_device_train_batch_size", "gradient_accumulation_steps"),
    *("optim", "optim_args", "optim_target_modules", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm"),
    *("class_weights", "label_smoothing_factor", "neftune_noise_alpha", "regression_loss", "standardize_targets"),
    *("freeze_backbone", "freeze_embeddings", "freeze_layers", "peft", "stages", "contrastive_steps"),
    *("original_defaults", "layer_cache", "baselines", "hp_search", "hp_space", "resume_from_checkpoint"),
    *("bf16", "fp16", "gradient_checkpointing", "gradient_checkpointing_kwargs", "activation_checkpointing"),
    *("activation_checkpointing_kwargs", "use_cache", "torch_empty_cache_steps", "auto_find_batch_size"),
    *("data_seed", "train_sampling_strategy", "length_column_name", "remove_unused_columns"),
    *("average_tokens_across_devices", "ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_broadcast_buffers"),
    *("ddp_static_graph", "liger_kernel_config", "include_for_metrics", "include_num_input_tokens_seen"),
    *("load_best_model_at_end", "metric_for_best_model", "early_stopping_patience"),
    *("eval_strategy", "eval_steps", "eval_delay", "eval_on_start", "logging_strategy", "logging_steps"),
    *("logging_first_step", "logging_nan_inf_filter", "save_strategy", "save_steps", "save_total_limit"),
    *("save_on_each_node", "fsdp_config"),
)


FEW_ROWS = 500  # of fewer, none are held out: a tenth of them would decide by chance, and is missed in training
VALIDATION = (
    *("validation_size", "do_eval", "eval_strategy", "eval_steps", "eval_on_start", "load_best_model_at_end"),
    *("metric_for_best_model", "greater_is_better", "early_stopping_patience", "calibrate", "tune_thresholds"),
    *("hp_search", "max_eval_samples", "group_column", "early_exit", "layer_report"),
)


class Limits(NamedTuple):
    """How long a run is at least, and how often it evaluates and logs at most. 0: as its other arguments say."""

    least_steps: int = 0
    most_evaluations: int = 0  # and saves, which go with them
    logs: int = 0
    few_rows: int = 0  # if there are fewer, none are held out for validation

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> "Limits":
        """The limits of a run whose user has named the flags `given`. What is named wins."""
        few_rows = 0 if any(name in given for name in VALIDATION) else FEW_ROWS
        if any(name in given for name in LENGTH):
            return cls(few_rows=few_rows)
        evaluations, logs = [
            0 if any(name in given for name in names) else MOST_EVALUATIONS for names in (EVALUATION, LOGGING)
        ]
        return cls(LEAST_STEPS, evaluations, logs, few_rows)


class Budget(NamedTuple):
    """How long a run is."""

    epochs: float
    steps: int

    def every(self, most: int) -> int:
        """The steps between evaluations, of which there are `most`; 0 if one an epoch is not too often."""
        return 0 if most == 0 or self.epochs <= most else math.ceil(self.steps / most)


def steps_for(tokens: float, batch: int, least_steps: int) -> int:
    """The least number of steps for texts of so many `tokens`: fewer for long ones, which cost more."""
    return min(least_steps, math.ceil(LEAST_TOKENS / (batch * max(tokens, 1))))


def budget(rows: int, batch: int, epochs: float, least_steps: int = LEAST_STEPS) -> Budget:
    """The length of a run over `rows`: so many epochs, or as many whole ones as give `least_steps`.

    Args:
        rows: that are trained on.
        batch: rows a step, over all processes and accumulated batches.
        epochs: the least number of epochs.
        least_steps: 0 for none.
    """
    steps_an_epoch = math.ceil(rows / batch)
    if epochs * steps_an_epoch < least_steps:
        epochs = math.ceil(least_steps / steps_an_epoch)
    return Budget(epochs, math.ceil(epochs * steps_an_epoch))


def worked_out(
    given: Mapping[str, Any], defaults: Mapping[str, Any], data: DataArguments, places: Mapping[str, str]
) -> dict[str, Any]:
    """The values of the training arguments: those `given`, then `defaults`, then what follows from the splits.

    Args:
        given: the training flags that were named.
        defaults: values of flags that were not named, such as `FINE_TUNING`.
        data: the data flags, which say whether rows are held out or put into folds.
        places: where the rows of each split are, see `named_splits`.
    """
    values = dict(defaults)
    values.update(given)
    _choose_what_is_done(values, data, places)
    if values.get("do_eval"):
        _choose_evaluation(values, saving_is_given="save_strategy" in given)
    return values


def only_looks(given: Mapping[str, Any]) -> str:
    """The flag among those `given` that takes a finished model as it is, with training rows; empty if there is none.

    The model is trained further only where a flag says for how long.
    """
    if not given.get("init_from") or any(name in given for name in LENGTH):
        return ""
    return next((name for name in ("early_exit", "layer_report") if given.get(name)), "")


def splits_of(data: DataArguments, places: Mapping[str, str], trains: bool) -> set[str]:
    """The splits that have rows: those at `places`, and validation where a share or a fold of the training rows serves
    as validation rows."""
    splits = set(places)
    if trains and "train" in splits and (data.validation_size or data.cv_folds):
        splits.add("validation")
    return splits


def _choose_what_is_done(values: dict[str, Any], data: DataArguments, places: Mapping[str, str]) -> None:
    """If no do_* flag is on, turns on those whose split has rows, except those that were turned off."""
    if any(values.get(flag) for flag in DOING):
        return
    values.setdefault("do_train", "train" in places)
    splits = splits_of(data, places, values["do_train"])
    for flag, split in DOING.items():
        values.setdefault(flag, split in splits)


def _choose_evaluation(values: dict[str, Any], saving_is_given: bool) -> None:
    """Chooses when to evaluate and to save, so that the best model can be kept."""
    values.setdefault("eval_strategy", "steps" if values["save_strategy"] == "steps" else "epoch")
    if values["eval_strategy"] == "steps" and values["save_strategy"] == "epoch" and not saving_is_given:
        values["save_strategy"] = "steps"
    if values["eval_strategy"] == values["save_strategy"] == "steps":  # one of the two numbers may be left out
        named = [values[name] for name in ("eval_steps", "save_steps", "logging_steps") if name in values]
        number = named[0] if named else STEPS
        values.setdefault("eval_steps", number)
        values.setdefault("save_steps", number)
    values.setdefault("load_best_model_at_end", values["eval_strategy"] == values["save_strategy"] != "no")
