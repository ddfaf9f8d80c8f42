"""From a command line, `[RECIPE] [--flag value ...]`, to the three groups of arguments.

A recipe (YAML or JSON) holds flags by name. It is turned into flags that stand before those of the command line, so
that both pass the same checks and the command line wins.
"""

import argparse
import importlib.util
import json
import math
import shutil
import textwrap
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml
from transformers import HfArgumentParser
from transformers.integrations import get_available_reporting_integrations

from lstmpool.training.arguments import DataArguments, ModelArguments, TrainingArguments
from lstmpool.training.data.fold_assignment import check_flags
from lstmpool.training.data.sources import SPLITS, named_splits
from lstmpool.training.errors import InputError, did_you_mean
from lstmpool.training.tasks.task import AUTO


# What a fine-tune wants, where it differs from the library's defaults.
DEFAULTS = {
    "learning_rate": 5e-5,
    "warmup_steps": 0.1,  # a share of all steps
    "weight_decay": 0.01,
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 64,
    "logging_strategy": "epoch",
    "save_strategy": "epoch",
    "save_total_limit": 1,
    "metric_for_best_model": AUTO,
    "restore_callback_states_from_checkpoint": True,
    "ddp_timeout": 24 * 60 * 60,  # seconds: the others wait while the first process fills the cache of layer states
    "ddp_find_unused_parameters": False,  # most backbones have none; the library would look for them at every step
    "dataloader_pin_memory": torch.cuda.is_available(),  # without a GPU, every epoch warns of it
    "report_to": ["tensorboard"] if importlib.util.find_spec("tensorboard") else ["none"],
}
UNFIT = {  # what the command cannot do without
    "batch_eval_metrics": (False, "metrics such as F1 and correlations are computed over all rows at once"),
    "eval_do_concat_batches": (True, "metrics are computed over all rows at once"),
    "dataloader_drop_last": (False, "the library would drop rows of an evaluation as well"),
    "use_liger_kernel": (False, "Liger has no kernels for this kind of model"),
    "prediction_loss_only": (False, "metrics need the predictions"),
    "label_names": (None, "the labels of every task are in the column that this command makes, labels"),
    "restore_callback_states_from_checkpoint": (True, "early stopping would forget what it has counted"),
    "dataloader_persistent_workers": (False, "a resumed run would draw other random numbers"),
    "ignore_data_skip": (False, "a resumed run would see rows twice"),
    "save_only_model": (False, "a run could not go on from such a checkpoint"),
    "enable_jit_checkpoint": (False, "SIGTERM makes this command save at the end of the step, without it"),
    "hub_always_push": (False, "a save is pushed unless the push before it is still under way"),
}
POSITIVE = {
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "num_train_epochs",
    "gradient_accumulation_steps",
    "early_stopping_patience",
    "hp_search",
    "preprocessing_num_workers",
}
HELP = {  # of the library's flags, those that one needs; its own texts run over many lines
    "output_dir": "Folder that the finished model is written to, ready for the Hub. Required.",
    "do_train": "Train. If none of the three do_* flags is named, all are done for which there are rows.",
    "do_eval": "Evaluate on the validation rows, after each epoch and at the end.",
    "do_predict": "Evaluate on the test rows, once, at the end.",
    "num_train_epochs": "Number of passes over the training rows.",
    "max_steps": "Stop after so many steps; -1: after num_train_epochs.",
    "per_device_train_batch_size": "Rows in a training batch.",
    "per_device_eval_batch_size": "Rows in a batch of an evaluation.",
    "train_sampling_strategy": "Order of the rows: random, sequential, or group_by_length for less padding.",
    "label_smoothing_factor": "One label a text: share of the target that is spread over all classes.",
    "gradient_accumulation_steps": "Batches whose gradients are added up for one step.",
    "learning_rate": "Peak learning rate of the backbone.",
    "warmup_steps": "Steps over which the rates rise to their peaks; below 1, a share of all steps.",
    "lr_scheduler_type": "How the rates fall after that: linear, cosine, constant and others.",
    "weight_decay": "Weight decay of all weights but biases and norms.",
    "max_grad_norm": "Gradients are scaled down to this norm.",
    "eval_strategy": "When to evaluate: no, steps (see eval_steps) or epoch. Unset: epoch, with validation rows.",
    "load_best_model_at_end": "Keep the best epoch, not the last. On where there are validation rows.",
    "metric_for_best_model": "Metric by which the best epoch is chosen. Unset: by the task.",
    "save_total_limit": "How many checkpoints are kept, the best one included.",
    "resume_from_checkpoint": "Continue from this checkpoint folder; 'last' for the newest in output_dir. A run that "
    "was cut off goes on by itself when its command is given again.",
    "seed": "Seed of the new weights, the order of the rows and dropout.",
    "report_to": "Where training is logged, besides the terminal. Unset: tensorboard, if it is installed.",
    "push_to_hub": "Push the finished model, checked as by lstmpool.training.publish, and checkpoints before it.",
    "hub_model_id": "Where to: OWNER/NAME; made if it is not there.",
    "hub_private_repo": "Make it, if it is new, a private repository.",
    "hub_strategy": "What is pushed: end (the finished model), every_save, or checkpoint (to resume from, too).",
    "hub_revision": "Branch to push to; made if it is not there. Unset: main.",
    "bf16": "Train in bfloat16 mixed precision.",
    "fp16": "Train in float16 mixed precision.",
    "activation_checkpointing": "Less memory for more time.",
}
RENAMED = {
    "evaluation_strategy": "eval_strategy",
    "group_by_length": "train_sampling_strategy",
    "model_name_or_path": "backbone",
    "no_cuda": "use_cpu",
    "overwrite_output_dir": "overwrite",
    "warmup_ratio": "warmup_steps",
}


FILES = {f"{split}_file" for split in SPLITS}
OF_DATA_SET = {"dataset_name", "dataset_config_name", "dataset_revision", *(f"{split}_split_name" for split in SPLITS)}


class _Parser(HfArgumentParser):
    def error(self, message: str) -> None:  # argparse would print the usage first
        raise InputError(f"{message}. See --help.")


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """One spelling of each flag, and its default where it has one."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        kind = getattr(action.type, "__name__", "")
        metavar = "{" + ",".join(action.choices) + "}" if action.choices and len(action.choices) < 8 else None
        metavar = metavar or {"int": "N", "float": "X"}.get(kind, "VALUE")
        takes = {"?": "", 0: "", "+": f" {metavar} ..."}.get(action.nargs, f" {metavar}")
        return action.option_strings[0] + takes

    def _get_help_string(self, action: argparse.Action) -> str:
        default = getattr(action.default, "value", action.default)
        unset = default in (None, False, argparse.SUPPRESS) or "Unset:" in action.help
        return action.help if unset else f"{action.help} (default: {default})"


def make_parser(description: str) -> HfArgumentParser:
    """The parser of all flags, with help for those that one needs and the names of the others."""
    width = min(119, shutil.get_terminal_size().columns)
    parser = _Parser(
        [ModelArguments, DataArguments, TrainingArguments],
        usage="python train_trainer.py [RECIPE.yaml or RECIPE.json] [--flag value ...]",
        description=description,
        formatter_class=lambda prog: _Formatter(prog, max_help_position=32, width=width),
        allow_abbrev=False,
    )
    parser.set_defaults(**DEFAULTS)
    library, others = {f.name for f in fields(transformers.TrainingArguments)}, []
    for action in parser._actions:
        if action.nargs == 0 and action.dest != "help":  # --no_x, made by the library for every x that is on
            action.help = argparse.SUPPRESS
        elif action.dest in library - HELP.keys():
            others.append(action.dest)
            action.help = argparse.SUPPRESS
        else:
            action.help = HELP.get(action.dest, action.help)
            if action.default is True:
                action.help += f" Off with --no_{action.dest}."
    names = textwrap.fill(" ".join(others), width, initial_indent="  ", subsequent_indent="  ")
    parser.epilog = f"every other field of transformers.TrainingArguments is a flag too:\n{names}"
    return parser


def parse_arguments(
    argv: list[str], description: str
) -> tuple[ModelArguments, DataArguments, TrainingArguments, dict[str, str]]:
    """The three groups of arguments from `argv`, the words after the program's name; and where the rows of each split
    are (see `named_splits`).

    Raises:
        InputError: for a recipe that cannot be read, an unknown name, a value of the wrong kind, or arguments that
            contradict each other.
    """
    parser = make_parser(description)
    actions = {action.dest: action for action in parser._actions if action.nargs != 0}
    words = list(argv)
    if words and not words[0].startswith("-"):
        words[:1] = _give_way(_flags_of_recipe(Path(words[0]), actions), words[1:])
    # A namespace that has an attribute keeps it: what is not `unset` afterwards was asked for.
    unset = object()
    blank = argparse.Namespace(**dict.fromkeys(actions, unset))
    namespace, unknown = parser.parse_known_args(words, blank)
    for word in unknown:
        if not word.startswith("-"):
            raise InputError(f"expected --flags after the recipe, found {word!r}; a recipe is the first word.")
        raise _unknown(word.lstrip("-").partition("=")[0], "flag", actions)
    given = {name: value for name, value in vars(namespace).items() if value is not unset}
    for name in given.keys() & POSITIVE:
        if given[name] <= 0:
            raise InputError(f"--{name} must be more than 0, got {given[name]}.")
    for name in given.keys() & {"learning_rate", "head_learning_rate"}:
        if not 0 <= given[name] < math.inf:  # nor NaN
            raise InputError(f"--{name} must be 0 or more, got {given[name]}.")

    groups = (ModelArguments, DataArguments, TrainingArguments)
    model, data, training = ({f.name: given[f.name] for f in fields(group) if f.name in given} for group in groups)
    model_args, data_args = ModelArguments(**model), DataArguments(**data)
    fixed = sorted(model.keys() & (model_args.config_fields().keys() | {"reinit_layers", "problem_type"}))
    if model_args.init_from and fixed:
        raise InputError(
            f"--{fixed[0]} is settled by the model of --init_from. Leave it out, or start from --backbone."
        )
    if not training.get("output_dir"):
        raise InputError("expected --output_dir, the folder for the finished model, found none.")
    places = check_flags(data_args, training, named_splits(data_args))
    args = _training_arguments(training, places, model_args, data_args)
    args.check_adapters(model_args, set(model))
    return model_args, data_args, args, places


def _flags_of_recipe(path: Path, actions: dict[str, argparse.Action]) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8")
        recipe = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"expected a recipe (.yaml, .json) as the first word, cannot read {path}: {error}") from None
    except (yaml.YAMLError, json.JSONDecodeError) as error:
        raise InputError(f"recipe {path} is not valid {path.suffix[1:].upper() or 'YAML'}: {error}") from None
    if not isinstance(recipe, dict):
        raise InputError(f"recipe {path} must hold lines 'flag: value', found a {type(recipe).__name__}.")
    words = []
    for key, value in recipe.items():
        name = str(key).replace("-", "_")
        if name not in actions:
            raise _unknown(str(key), f"key in the recipe {path}", actions)
        words += _words(actions[name], value)
    return words


def _give_way(recipe: list[str], typed: list[str]) -> list[str]:
    """The recipe's words, less its data set if files are typed, and less its files if a data set is."""
    names = {word.partition("=")[0].lstrip("-").replace("-", "_") for word in typed if word.startswith("--")}
    gone = OF_DATA_SET if names & FILES else FILES if "dataset_name" in names else set()
    return [word for word in recipe if word.partition("=")[0].removeprefix("--") not in gone]


def _words(action: argparse.Action, value: Any) -> list[str]:
    """One entry of a recipe as words of a command line. `null` leaves the default."""
    flag = f"--{action.dest}"
    if value is None:
        return []
    if value is False and action.choices and "no" in action.choices:
        value = "no"  # YAML reads an unquoted no as False
    if isinstance(value, dict):
        value = json.dumps(value)
    if isinstance(value, list) and action.nargs == "+":
        return [flag, *map(str, value)]
    return [f"{flag}={','.join(map(str, value)) if isinstance(value, list) else value}"]


def _unknown(name: str, what: str, actions: dict[str, argparse.Action]) -> InputError:
    renamed = RENAMED.get(name.replace("-", "_"))
    hint = f" It is called {renamed!r} here." if renamed else did_you_mean(name.replace("-", "_"), actions)
    return InputError(f"unknown {what}: {name!r}.{hint} --help lists all.")


def _training_arguments(
    given: dict[str, Any], places: dict[str, str], model_args: ModelArguments, data_args: DataArguments
) -> TrainingArguments:
    """`given` on top of what a fine-tune wants, and of what follows from the splits that there are."""
    _check_hub(given)
    if "greater_is_better" in given:
        raise InputError("--greater_is_better follows from the metric here. Leave it out.")
    for name, (needed, reason) in UNFIT.items():
        if given.get(name, needed) != needed:
            raise InputError(f"--{name} cannot be {given[name]} here: {reason}. Leave it out.")
    values = {**DEFAULTS, **given}
    splits = set(places)
    doing = {"do_train": "train", "do_eval": "validation", "do_predict": "test"}
    unnamed = not any(values.get(flag) for flag in doing)
    trains = values.get("do_train") or (unnamed and values.get("do_train") is None)
    if "train" in splits and trains and (data_args.validation_size or data_args.cv_folds):
        splits.add("validation")  # held out of the training rows where there is none, or a fold
    if unnamed:
        values |= {flag: split in splits for flag, split in doing.items() if flag not in given}
    for flag, split in doing.items():
        if values.get(flag) and split not in splits:
            raise InputError(f"--{flag} needs {split} rows, found none. Name them with --{split}_file.")
    if not values.get("do_train") and not model_args.init_from:
        raise InputError("expected rows to train on, found none. Name them with --train_file or --dataset_name.")
    if values.get("push_to_hub") and not values.get("do_train"):
        raise InputError("--push_to_hub is for what is trained. See python -m lstmpool.training.publish for the rest.")
    if not any(values.get(flag) for flag in doing):
        raise InputError("expected rows, found none. Name them with --train_file, --validation_file or --test_file.")
    if values.get("do_eval"):
        values.setdefault("eval_strategy", values["save_strategy"] if values["save_strategy"] == "steps" else "epoch")
        if values["save_strategy"] == "epoch" and values["eval_strategy"] == "steps" and "save_strategy" not in given:
            values["save_strategy"] = "steps"
        by_steps = values["eval_strategy"] == values["save_strategy"] == "steps"
        if by_steps:  # of the two numbers, one may be left out
            named = (values[name] for name in ("eval_steps", "save_steps", "logging_steps") if name in values)
            values = dict.fromkeys(("eval_steps", "save_steps"), next(named, 500)) | values
        matching = values["eval_strategy"] == values["save_strategy"] != "no"
        values.setdefault("load_best_model_at_end", matching)
        if by_steps and values["load_best_model_at_end"] and values["eval_steps"] != values["save_steps"]:
            raise InputError(
                "to keep the best model, each evaluation needs its checkpoint: expected --eval_steps and --save_steps "
                f"to be the same, found {values['eval_steps']:g} and {values['save_steps']:g}. Give both the same "
                "number, or --load_best_model_at_end False."
            )
    elif values.get("eval_strategy", "no") != "no":
        raise InputError("eval_strategy needs validation rows, found none. Name them with --validation_file.")
    if values.get("early_stopping_patience") is not None and not values.get("load_best_model_at_end"):
        raise InputError(
            "--early_stopping_patience needs a best checkpoint to go back to. Give it validation rows, the same "
            "--eval_strategy and --save_strategy, and --load_best_model_at_end."
        )
    try:
        args = TrainingArguments(**values)
    except (ValueError, ImportError, RuntimeError, OSError) as error:
        raise InputError(error) from None
    loggers = get_available_reporting_integrations()
    if missing := sorted({*args.report_to} - {*loggers, "azure_ml", "flyte"}):  # two that the library does not list
        raise InputError(
            f"--report_to {missing[0]}: no such logger is installed, found {', '.join(loggers) or 'none'}. Install "
            "it, or leave it out."
        )
    return args


def _check_hub(given: dict[str, Any]) -> None:
    """Refuses flags for the Hub that do not belong together, and a token that would stay in logs and histories."""
    hub = sorted(name for name in given if name.startswith("hub_"))
    if "hub_token" in hub or "push_to_hub_token" in given:
        raise InputError("a token in a command is read by others, too. Log in with `hf auth login`, or set HF_TOKEN.")
    if hub and not given.get("push_to_hub"):
        raise InputError(f"--{hub[0]} needs --push_to_hub. Add it, or leave this out.")
    if given.get("push_to_hub") and not given.get("hub_model_id"):
        raise InputError("--push_to_hub needs --hub_model_id OWNER/NAME, found none.")
    if given.get("hub_strategy") == "all_checkpoints":
        raise InputError("--hub_strategy all_checkpoints would publish every optimizer. Use checkpoint, for the last.")
