"""The parser of all flags, and its help, which prints without importing torch or the library's training arguments.

The library's own help texts are long, and most of its flags are seldom needed. So the help explains the flags in
`LibraryFlags` and lists the others by name.
"""

import argparse
import ast
import importlib.util
import shutil
import textwrap
from dataclasses import dataclass, field, fields
from functools import cache, partial
from pathlib import Path
from typing import Any

from transformers.hf_argparser import HfArgumentParser

from lstmpool.training.errors import InputError
from lstmpool.training.flags.arguments import DataArguments, ModelArguments, TrainingFields
from lstmpool.training.flags.defaults import FINE_TUNING, LEAST_STEPS


USAGE = "python train_trainer.py [RECIPE.yaml or RECIPE.json] [--flag value ...]"
LIBRARY = "transformers.training_args"


def _flag(default: Any, help: str, **options: Any) -> Any:
    return field(default=default, metadata={"help": help} | options)


@dataclass
class LibraryFlags:
    """The library's training arguments that users need most: its types and defaults, our own help."""

    output_dir: str | None = _flag(None, "Folder that the finished model is written to, ready for the Hub. Required.")
    do_train: bool = _flag(
        False, "Train. If you name none of the three do_* flags, the command does all that it has rows for."
    )
    do_eval: bool = _flag(False, "Evaluate on the validation rows, after each epoch and at the end.")
    do_predict: bool = _flag(False, "Evaluate on the test rows, once, at the end.")
    num_train_epochs: float = _flag(
        3.0,
        "Number of passes over the training rows. Unset, and without max_steps: more where 3 are fewer than "
        f"{LEAST_STEPS} steps, or fewer of long texts.",
    )
    max_steps: int = _flag(-1, "Stop after this many steps; -1: after num_train_epochs.")
    per_device_train_batch_size: int = _flag(8, "Rows in a training batch.")
    per_device_eval_batch_size: int = _flag(8, "Rows in a batch of an evaluation.")
    train_sampling_strategy: str = _flag(
        "random",
        "Order of the rows: random, sequential, or group_by_length for less padding.",
        choices=("random", "sequential", "group_by_length", "batch_rebalance"),
    )
    label_smoothing_factor: float = _flag(
        0.0, "With one label a text: share of the target that is spread over all classes."
    )
    gradient_accumulation_steps: int = _flag(1, "Batches whose gradients are summed for one step.")
    learning_rate: float = _flag(5e-5, "Peak learning rate of the backbone.")
    warmup_steps: float = _flag(0, "Steps over which the rates rise to their peaks; below 1, a share of all steps.")
    lr_scheduler_type: str = _flag("linear", "How the rates fall after that: linear, cosine, constant and others.")
    weight_decay: float = _flag(0.0, "Weight decay of all weights but biases and norms.")
    max_grad_norm: float = _flag(1.0, "Gradients with a larger norm are scaled down to this one.")
    eval_strategy: str = _flag(
        "no",
        "When to evaluate: no, steps (see eval_steps) or epoch. Unset: epoch, with validation rows.",
        choices=("no", "steps", "epoch"),
    )
    load_best_model_at_end: bool = _flag(False, "Keep the best epoch, not the last. On if there are validation rows.")
    metric_for_best_model: str | None = _flag(None, "Metric by which the best epoch is chosen. Unset: by the task.")
    save_total_limit: int | None = _flag(
        None,
        "How many checkpoints are kept, the best one included. Unset: the best and the last one while it trains, and "
        "none beside the finished model.",
    )
    resume_from_checkpoint: str | None = _flag(
        None,
        "Continue from this checkpoint folder; 'last' for the newest in output_dir. A run that was cut off goes on by "
        "itself when you repeat its command.",
    )
    seed: int = _flag(42, "Seed of the new weights, the order of the rows and dropout.")
    report_to: str = _flag(
        "none", "Where training is logged, besides the terminal. Unset: tensorboard, if it is installed."
    )
    push_to_hub: bool = _flag(
        False, "Push checkpoints and the finished model, with the checks of lstmpool.training.publish."
    )
    hub_model_id: str | None = _flag(None, "Repository to push to, OWNER/NAME; created if it does not exist.")
    hub_private_repo: bool = _flag(False, "Create that repository as a private one.")
    hub_strategy: str = _flag(
        "every_save",
        "What to push: end (the finished model), every_save, or checkpoint (to resume from, too).",
        choices=("end", "every_save", "checkpoint", "all_checkpoints"),
    )
    hub_revision: str | None = _flag(None, "Branch to push to; created if it does not exist. Unset: main.")
    bf16: bool = _flag(
        False,
        "Train in bfloat16 mixed precision. Unset: where a whole backbone is trained, and the processor or GPU "
        "multiplies such matrices faster.",
    )
    fp16: bool = _flag(False, "Train in float16 mixed precision.")
    activation_checkpointing: bool | None = _flag(None, "Use less memory and more time.", nargs="?", const=True)


@dataclass
class ExplainedArguments(TrainingFields, LibraryFlags):
    """The training arguments that the help explains. It stands in for `TrainingArguments`, whose import is slow."""

    _argument_group_name = "training"


class Parser(HfArgumentParser):
    def error(self, message: str) -> None:  # argparse would print the usage first
        raise InputError(f"{message}. See --help.")


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Shows one spelling of each flag, and its default if it has one."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings:
            return super()._format_action_invocation(action)
        flag = action.option_strings[0]
        if action.nargs in ("?", 0):
            return flag
        value = _placeholder(action)
        return f"{flag} {value} ..." if action.nargs == "+" else f"{flag} {value}"

    def _get_help_string(self, action: argparse.Action) -> str:
        default = getattr(action.default, "value", action.default)
        unset = default in (None, False, argparse.SUPPRESS) or "Unset:" in action.help
        text = action.help if unset else f"{action.help} (default: {default})"
        return text.replace("%", "%%")  # argparse takes what this returns for a format


def _placeholder(action: argparse.Action) -> str:
    """What stands for a flag's value in the help."""
    if action.choices and len(action.choices) <= 8:
        return "{" + ",".join(action.choices) + "}"
    kind = getattr(action.type, "__name__", "")
    return {"int": "N", "float": "X"}.get(kind, "VALUE")


def make_parser(description: str, training: type = ExplainedArguments) -> HfArgumentParser:
    """The parser of all flags. Its help explains those that users need most and names the others.

    With `TrainingArguments` as `training`, it reads all of the library's flags too.
    """
    width = min(119, shutil.get_terminal_size().columns)
    parser = Parser(
        [ModelArguments, DataArguments, training],
        usage=USAGE,
        description=description,
        formatter_class=partial(Formatter, max_help_position=32, width=width),
        allow_abbrev=False,
    )
    parser.set_defaults(**FINE_TUNING)
    explained = {entry.name: entry.metadata["help"] for entry in fields(LibraryFlags)}
    others = [name for name in library_flags() if name not in explained]
    for action in parser._actions:
        is_negation = action.nargs == 0 and action.dest != "help"  # --no_x, made for every x that is on
        if is_negation or action.dest in others:
            action.help = argparse.SUPPRESS
            continue
        action.help = explained.get(action.dest, action.help)
        if action.default is True:
            action.help += f" Off with --no_{action.dest}."
    names = textwrap.fill(" ".join(others), width, initial_indent="  ", subsequent_indent="  ")
    parser.epilog = f"every other field of transformers.TrainingArguments is a flag too:\n{names}"
    return parser


@cache
def library_flags() -> list[str]:
    """Names of the fields of the library's `TrainingArguments`, read from its source: importing it takes seconds."""
    source = Path(importlib.util.find_spec(LIBRARY).origin).read_text(encoding="utf-8")
    classes = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
    [arguments] = [node for node in classes if node.name == "TrainingArguments"]
    names = [node.target.id for node in arguments.body if isinstance(node, ast.AnnAssign)]
    return [name for name in names if not name.startswith("_")]


def exit_with_help_if_asked(words: list[str], description: str) -> None:
    """If the words of a command ask for help, prints it and ends the process with status 0."""
    if "--help" in words or "-h" in words:
        make_parser(description).parse_args(["--help"])
