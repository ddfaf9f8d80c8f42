"""`Flags`, the view that rules have of a command's flags, and the conditions of `rules` that need more than one line.

A condition is named after the mistake that it finds. If it finds one, it returns the values for the braces of the
rule's message, or True if there are none.
"""

import importlib.util
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from transformers.utils import is_torch_bf16_gpu_available

from lstmpool.fields_lstmpool import DEFAULTS as CONFIG_FIELDS
from lstmpool.training.flags.arguments import LIMITS, OBJECTS, OF_DATA_SETS, OF_FILES, DataArguments, ModelArguments
from lstmpool.training.flags.defaults import DOING, OF_TRAINING, only_looks, splits_of


class Bounds(NamedTuple):
    """A number must be `least` or more, or above it where `above` is set, and below `end`. NaN never is."""

    least: float
    end: float = math.inf
    above: bool = False

    def broken_by(self, value: float) -> str:
        """Says what the value must be, if it is not."""
        high_enough = value > self.least if self.above else value >= self.least
        if high_enough and value < self.end:
            return ""
        if high_enough and self.end < math.inf:
            return f"below {self.end:.0f}"
        if self.above:
            return f"more than {self.least:g}"
        return f"{self.least:g} or more"


COUNT = Bounds(0, 2**31, above=True)
STEPS = Bounds(0, above=True)
RATE = Bounds(0)
SEED = Bounds(0, 2**32)
SEVERAL = Bounds(2, 1001)  # runs; each of them takes a folder and its time
PROCESSES = 1024  # more of them would bring down the machine
BOUNDS = {
    "per_device_train_batch_size": COUNT,
    "per_device_eval_batch_size": COUNT,
    "num_train_epochs": Bounds(0, 10**6, above=True),
    "gradient_accumulation_steps": COUNT,
    "early_stopping_patience": COUNT,
    "hp_search": COUNT,
    "seeds": SEVERAL,
    "eval_accumulation_steps": COUNT,
    "save_total_limit": COUNT,  # the library takes 0 for no limit
    "torch_empty_cache_steps": COUNT,
    "ddp_bucket_cap_mb": COUNT,
    "ddp_timeout": COUNT,
    "dataloader_prefetch_factor": COUNT,
    "preprocessing_num_workers": Bounds(0, PROCESSES, above=True),
    "dataloader_num_workers": Bounds(0, PROCESSES),
    "contrastive_steps": Bounds(0, 10**6),
    "early_exit_max_drop": Bounds(0, 100),
    "exit_threshold": RATE,
    "learning_rate": RATE,
    "head_learning_rate": RATE,
    "weight_decay": RATE,
    "max_grad_norm": RATE,  # the library takes what is negative for no limit, as 0
    "neftune_noise_alpha": RATE,
    "eval_delay": RATE,
    "warmup_steps": RATE,
    "logging_steps": STEPS,
    "eval_steps": STEPS,
    "save_steps": STEPS,
    "adam_beta1": Bounds(0, 1),
    "adam_beta2": Bounds(0, 1),
    "adam_epsilon": Bounds(0, above=True),
    "seed": SEED,
    "data_seed": SEED,
    "shuffle_seed": SEED,
}
SHARES_OF_STEPS = ("warmup_steps", "logging_steps", "eval_steps", "save_steps")  # below 1; else numbers of steps
UNFIT = {  # flag -> the value that the command cannot do without, and why
    "batch_eval_metrics": (False, "metrics such as F1 and correlations are computed over all rows at once"),
    "eval_do_concat_batches": (True, "metrics are computed over all rows at once"),
    "dataloader_drop_last": (False, "the library would drop rows of an evaluation as well"),
    "use_liger_kernel": (False, "Liger has no kernels for this kind of model"),
    "prediction_loss_only": (False, "metrics need the predictions"),
    "label_names": (None, "this command makes the column of the labels, which is called labels"),
    "restore_callback_states_from_checkpoint": (True, "early stopping would lose its count"),
    "dataloader_persistent_workers": (False, "a resumed run would draw different random numbers"),
    "ignore_data_skip": (False, "a resumed run would see rows twice"),
    "save_only_model": (False, "a run could not go on from such a checkpoint"),
    "enable_jit_checkpoint": (False, "this command itself saves at the end of the step after a SIGTERM"),
    "bf16_full_eval": (False, "the library would round the weights that are saved; evaluations run in float32"),
    "fp16_full_eval": (False, "the library would round the weights that are saved; evaluations run in float32"),
    "debug": ("", "the library's hooks fail on the masks of this kind of model"),
    "hub_always_push": (False, "a save is not pushed while the push before it is still under way"),
}
UNFIT_FOR_FOLDS = {  # flag -> why it does not go with folds
    "push_to_hub": "there is one model a fold, and none stands for all. Publish one with lstmpool.training.publish.",
    "calibrate": "the temperature would be fitted on the very rows that a fold predicts. Leave it out.",
    "tune_thresholds": "the thresholds would be fitted on the very rows that a fold predicts. Leave it out.",
    "resume_from_checkpoint": "each fold goes on by itself when you repeat the command. Leave it out.",
    "hp_search": "a search needs one validation split. Search without folds first.",
    "early_exit": "the threshold would be chosen on the very rows that a fold predicts. Leave it out.",
    "layer_report": "it is about one model, and there is one a fold. Train one without folds.",
}
UNFIT_FOR_SEEDS = {  # flag -> why it does not go with several seeds
    "cv_folds": "the spread of seeds and that of folds would be one. Leave one of them out.",
    "push_to_hub": "there is one model a seed, and none stands for all. Publish one with lstmpool.training.publish.",
    "resume_from_checkpoint": "each seed goes on by itself when you repeat the command. Leave it out.",
    "hp_search": "each seed would find other settings. Search first, and give what was found.",
    "early_exit": "each model would have exits of its own. Add them to one of the models later, with --init_from.",
}
UNFIT_FOR_EXITS = {  # flag -> why it does not go with exits
    "fsdp": "the model is spread over processes",
    "deepspeed": "the model is spread over processes",
    "peft": "an adapter that is not merged has no place for them; --merge saves a whole model",
}
OF_EXITS = ("early_exit_max_drop", "early_exit_rule", "exit_threshold")
UNFIT_FOR_AUTO = {  # flag -> why it does not go with a layer pooling that is chosen
    "hp_search": "each trial would choose again. Choose one first, and search with its name.",
    "reinit_layers": "it replaces layers whose states would choose. Name a pooling.",
    "fsdp": "the model is spread over processes. Name a pooling.",
    "deepspeed": "the model is spread over processes. Name a pooling.",
}
OF_VALIDATION_ROWS = ("validation_file", "validation_split_name", "max_eval_samples")
NOT_WITH_ADAPTERS = ("freeze_backbone", "freeze_embeddings", "freeze_layers", "reinit_layers")


@dataclass(frozen=True)
class Flags:
    """What is known of a command's flags when rules are checked. What is not known yet keeps its default."""

    model: ModelArguments = field(default_factory=ModelArguments)
    data: DataArguments = field(default_factory=DataArguments)
    given: Mapping[str, Any] = field(default_factory=dict)  # the flags that were named, of all groups
    training: Mapping[str, Any] = field(default_factory=dict)  # the training arguments, named or worked out
    places: Mapping[str, str] = field(default_factory=dict)  # where the rows of each split are, see `named_splits`
    processes: int = 1
    device: str = "cpu"  # the kind of device that is trained on
    loggers: tuple[str, ...] = ()  # installed ones
    task: str = ""  # its problem_type
    outputs: int = 0  # number of the task's labels or targets
    metrics: tuple[str, ...] = ()  # names of the task's metrics
    layers: int = 0  # number of the model's layers

    @property
    def splits(self) -> set[str]:
        """The splits that have rows, including validation rows held out of the training rows."""
        return splits_of(self.data, self.places, bool(self.training.get("do_train")))


Broken = Mapping[str, Any] | bool | None  # values for the braces of a message; True: it has none; falsy: all is well


def _first(names: list[str]) -> Broken:
    return {"name": names[0]} if names else None


def unfit(flags: Flags, reasons: Mapping[str, str]) -> Broken:
    """A flag is named that cannot work with another one, by `reasons`."""
    return next(({"name": name, "reason": why} for name, why in reasons.items() if flags.given.get(name)), None)


def out_of_bounds(flags: Flags) -> Broken:
    """A number is not what `BOUNDS` asks for."""
    for name, bounds in BOUNDS.items():
        value = flags.given.get(name)
        if value is not None and (expected := bounds.broken_by(value)):
            return {"name": name, "expected": expected, "value": value}
    return None


def fraction_of_a_step(flags: Flags) -> Broken:
    """A number of steps is 1 or more, and not whole. The library would cut it."""
    for name in SHARES_OF_STEPS:
        value = flags.given.get(name, 0)
        if value > 1 and value != int(value):
            return {"name": name, "value": value}
    return None


def no_steps(flags: Flags) -> Broken:
    """--max_steps allows none. The library would train one step, or take it for no limit."""
    return flags.given.get("max_steps", -1) < 1 and flags.given.get("max_steps", -1) != -1


def not_an_object(flags: Flags) -> Broken:
    """A flag needs a JSON object, and has other text. Text that begins as an object does has been read by now."""
    for name in OBJECTS:
        value = flags.given.get(name)
        if isinstance(value, str) and not value.lstrip().startswith("{"):
            return {"name": name, "value": value}
    return None


def without_its_switch(flags: Flags) -> Broken:
    """A flag says how to do what is not done."""
    for name in ("activation_checkpointing", "gradient_checkpointing"):
        switched_on = flags.given.get("activation_checkpointing") or flags.given.get("gradient_checkpointing")
        if f"{name}_kwargs" in flags.given and not switched_on:
            return {"name": f"{name}_kwargs", "switch": name}
    alone = [name for name in OF_EXITS if name in flags.given and not flags.model.early_exit]
    return {"name": alone[0], "switch": "early_exit"} if alone else None


def bf16_without_gpu(flags: Flags) -> Broken:
    """--bf16 is named, there is no GPU for it, and the CPU is not asked for."""
    return bool(flags.given.get("bf16")) and not flags.given.get("use_cpu") and not is_torch_bf16_gpu_available()


def limit_without_rows(flags: Flags) -> Broken:
    """A limit on the rows of a split allows none."""
    for name in LIMITS.values():
        limit = getattr(flags.data, name)
        if limit is not None and limit < 1:
            return {"name": name, "value": limit}
    return None


def settled_by_init_from(flags: Flags) -> Broken:
    """A flag sets what the model of --init_from already says."""
    settled = flags.given.keys() & {*CONFIG_FIELDS, "reinit_layers", "problem_type"} - {"early_exit", "exit_threshold"}
    return _first(sorted(settled)) if flags.model.init_from else None


def unfit_value(flags: Flags) -> Broken:
    """A flag of the library has a value that this command cannot work with."""
    for name, (needed, reason) in UNFIT.items():
        if flags.given.get(name, needed) != needed:
            return {"name": name, "value": flags.given[name], "reason": reason}
    return None


def part_of_no_data_set(flags: Flags) -> Broken:
    """A flag describes a data set, but none is named."""
    if flags.data.dataset_name is not None:
        return None
    return _first([name for name in OF_DATA_SETS if getattr(flags.data, name) is not None])


def files_and_data_set(flags: Flags) -> Broken:
    """Both a file and a data set are named."""
    if flags.data.dataset_name is None:
        return None
    return _first([name for name in OF_FILES if getattr(flags.data, name) is not None])


def hub_without_push(flags: Flags) -> Broken:
    """A flag of the Hub is named without --push_to_hub."""
    if flags.given.get("push_to_hub"):
        return None
    return _first(sorted(name for name in flags.given if name.startswith("hub_")))


def folds_and_validation_rows(flags: Flags) -> Broken:
    """Validation rows are named beside folds."""
    if flags.data.cv_folds is None:
        return None
    return _first([name for name in OF_VALIDATION_ROWS if getattr(flags.data, name) is not None])


def unfit_for_exits(flags: Flags) -> Broken:
    """A flag cannot work with --early_exit."""
    for name, reason in UNFIT_FOR_EXITS.items():
        is_merged = name == "peft" and flags.model.merge
        if flags.model.early_exit and flags.given.get(name) and not is_merged:
            return {"name": name, "reason": reason}
    return None


def training_or_exits(flags: Flags) -> Broken:
    """A flag says how to train, where a finished model is taken as it is. To be off, it need not be on."""
    switch = only_looks(flags.given)
    if not switch:
        return None
    off = (None, False)
    found = [name for name in OF_TRAINING if not any(flags.given.get(name) is value for value in off)]
    return {"name": found[0], "switch": switch} if found else None


def adapter_flag_alone(flags: Flags) -> Broken:
    """A flag of adapters is named without --peft."""
    if flags.model.peft is not None:
        return None
    return _first(sorted(name for name in flags.given if name.startswith("lora_") or name == "merge"))


def layers_beside_adapters(flags: Flags) -> Broken:
    """A flag says how to train the backbone's layers, which --peft freezes."""
    if flags.model.peft is None:
        return None
    against = [name for name in NOT_WITH_ADAPTERS if flags.given.get(name)]
    if flags.given.get("layerwise_lr_decay", 1) != 1:
        against.append("layerwise_lr_decay")
    return _first(against)


def adapter_out_of_range(flags: Flags) -> Broken:
    """With --peft, a size or the dropout of the adapters is out of its range."""
    model = flags.model
    fits = model.lora_rank > 0 and model.lora_alpha > 0 and 0 <= model.lora_dropout < 1
    return model.peft is not None and not fits


def push_of_adapter(flags: Flags) -> Broken:
    """An adapter would be pushed: it is not merged, or checkpoints are pushed before the merge."""
    if flags.model.peft is None or not flags.given.get("push_to_hub"):
        return None
    return not (flags.model.merge and flags.given.get("hub_strategy") == "end")


def half_of_folds(flags: Flags) -> Broken:
    """With folds, training or evaluation is off."""
    if flags.data.cv_folds is None:
        return None
    others = any(flags.given.get(flag) for flag in DOING)
    return _first([name for name in ("do_train", "do_eval") if not flags.given.get(name, not others)])


def groups_without_use(flags: Flags) -> Broken:
    """Groups are named, but there are neither folds nor rows to hold out."""
    if flags.data.group_column is None or flags.data.cv_folds is not None:
        return None
    held_out = "train" in flags.places and "validation" not in flags.places and flags.data.validation_size > 0
    return not (held_out and flags.given.get("do_train", True) and flags.given.get("do_eval", True))


def split_without_rows(flags: Flags) -> Broken:
    """A do_* flag is on, but its split has no rows."""
    for flag, split in DOING.items():
        if flags.training.get(flag) and split not in flags.splits:
            return {"flag": flag, "split": split}
    return None


def best_without_its_checkpoint(flags: Flags) -> Broken:
    """The best model is to be kept, but evaluations and saves fall on different steps."""
    training = flags.training
    if not (training.get("do_eval") and training.get("load_best_model_at_end")):
        return None
    by_steps = training["eval_strategy"] == training["save_strategy"] == "steps"
    return by_steps and training["eval_steps"] != training["save_steps"]


def missing_logger(flags: Flags) -> Broken:
    """--report_to names a logger that is not installed."""
    known = {*flags.loggers, "azure_ml", "flyte"}  # the library knows these two but does not list them
    missing = sorted({*flags.training["report_to"]} - known)
    return {"name": missing[0], "found": ", ".join(flags.loggers) or "none"} if missing else None


def fitted_without_rows(flags: Flags) -> Broken:
    """A flag needs validation rows to fit on, but evaluation is off."""
    if flags.training["do_eval"]:
        return None
    return _first([name for name in ("calibrate", "tune_thresholds") if flags.training[name]])


def unknown_metric(flags: Flags) -> Broken:
    """The task has no metric of the name in --metric_for_best_model."""
    name = flags.training["metric_for_best_model"]
    return {"name": name, "known": ", ".join(flags.metrics)} if name not in flags.metrics else None


def more_layers_than_there_are(flags: Flags) -> Broken:
    """A number of layers is negative, or higher than the model's."""
    for name in ("freeze_layers", "reinit_layers"):
        if not 0 <= getattr(flags.model, name) <= flags.layers:
            return {"name": name, "value": getattr(flags.model, name)}
    return None


def frozen_and_fresh_layers(flags: Flags) -> Broken:
    """A layer would be both frozen and reset to random weights."""
    model = flags.model
    overlap = model.freeze_layers + model.reinit_layers > flags.layers
    return bool(model.reinit_layers and (model.freeze_backbone or overlap))


def is_missing(package: str) -> bool:
    """Whether a package is not installed."""
    return importlib.util.find_spec(package) is None
