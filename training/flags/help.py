"""The parser of all flags, and its help, which is printed without torch or the library's training arguments.

The library's own texts run over many lines, and most of its flags are seldom needed. So `LibraryFlags` explains those
that one needs, and the others are listed by name.
"""

import argparse
import ast
import importlib.util
import shutil
import textwrap
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from transformers.hf_argparser import HfArgumentParser

from lstmpool.training.errors import InputError
from lstmpool.training.flags.arguments import DataArguments, ModelArguments, TrainingFields
from lstmpool.training.flags.defaults import FINE_TUNING


USAGE = "python train_trainer.py [RECIPE.yaml or RECIPE.json] [--flag value ...]"
LIBRARY = "transformers.training_args"


def _flag(default: Any, help: str, **options: Any) -> Any:
    return field(default=default, metadata={"help": help, **options})


@dataclass
class LibraryFlags:
    """Those of the library's training arguments that one needs: type and default as there, the help our own."""

    output_dir: str | None = _flag(None, "Folder that the finished model is written to, ready for the Hub. Required.")
    do_train: bool = _flag(
        False, "Train. If none of the three do_* flags is named, all are done for which there are rows."
    )
    do_eval: bool = _flag(False, "Evaluate on the validation rows, after each epoch and at the end.")
    do_predict: bool = _flag(False, "Evaluate on the test rows, once, at the end.")
    num_train_epochs: float = _flag(3.0, "Number of passes over the training rows.")
    max_steps: int = _flag(-1, "Stop after so many steps; -1: after num_train_epochs.")
    per_device_train_batch_size: int = _flag(8, "Rows in a training batch.")
    per_device_eval_batch_size: int = _flag(8, "Rows in a batch of an evaluation.")
    train_sampling_strategy: str = _flag(
        "random",
        "Order of the rows: random, sequential, or group_by_length for less padding.",
        choices=("random", "sequential", "group_by_length", "batch_rebalance"),
    )
    label_smoothing_factor: float = _flag(
        0.0, "One label a text: share of the target that is spread over all classes."
    )
    gradient_accumulation_steps: int = _flag(1, "Batches whose gradients are added up for one step.")
    learning_rate: float = _flag(5e-5, "Peak learning rate of the backbone.")
    warmup_steps: float = _flag(0, "Steps over which the rates rise to their peaks; below 1, a share of all steps.")
    lr_scheduler_type: str = _flag("linear", "How the rates fall after that: linear, cosine, constant and others.")
    weight_decay: float = _flag(0.0, "Weight decay of all weights but biases and norms.")
    max_grad_norm: float = _flag(1.0, "Gradients are scaled down to this norm.")
    eval_strategy: str = _flag(
        "no",
        "When to evaluate: no, steps (see eval_steps) or epoch. Unset: epoch, with validation rows.",
        choices=("no", "steps", "epoch"),
    )
    load_best_model_at_end: bool = _flag(
        False, "Keep the best epoch, not the last. On where there are validation rows."
    )
    metric_for_best_model: str | None = _flag(None, "Metric by which the best epoch is chosen. Unset: by the task.")
    save_total_limit: int | None = _flag(None, "How many checkpoints are kept, the best one included.")
    resume_from_checkpoint: str | None = _flag(
        None,
        "Continue from this checkpoint folder; 'last' for the newest in output_dir. A run that was cut off goes on by "
        "itself when its command is given again.",
    )
    seed: int = _flag(42, "Seed of the new weights, the order of the rows and dropout.")
    report_to: str = _flag(
        "none", "Where training is logged, besides the terminal. Unset: tensorboard, if it is installed."
    )
    push_to_hub: bool = _flag(
        False, "Push the finished model, checked as by lstmpool.training.publish, and checkpoints before it."
    )
    hub_model_id: str | None = _flag(None, "Where to: OWNER/NAME; made if it is not there.")
    hub_private_repo: bool = _flag(False, "Make it, if it is new, a private repository.")
    hub_strategy: str = _flag(
        "every_save",
        "What is pushed: end (the finished model), every_save, or checkpoint (to resume from, too).",
        choices=("end", "every_save", "checkpoint", "all_checkpoints"),
    )
    hub_revision: str | None = _flag(None, "Branch to push to; made if it is not there. Unset: main.")
    bf16: bool = _flag(False, "Train in bfloat16 mixed precision.")
    fp16: bool = _flag(False, "Train in float16 mixed precision.")
    activation_checkpointing: bool | None = _flag(None, "Less memory for more time.", nargs="?", const=True)


@dataclass
class ExplainedArguments(TrainingFields, LibraryFlags):
    """The training arguments that the help explains: stands for `TrainingArguments`, which takes seconds to import."""

    _argument_group_name = "training"


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


def make_parser(description: str, training: type = ExplainedArguments) -> HfArgumentParser:
    """The parser of all flags, with help for those that one needs and the names of the others.

    With `TrainingArguments` as `training` it reads all of the library's flags, too.
    """
    width = min(119, shutil.get_terminal_size().columns)
    parser = _Parser(
        [ModelArguments, DataArguments, training],
        usage=USAGE,
        description=description,
        formatter_class=lambda prog: _Formatter(prog, max_help_position=32, width=width),
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


def library_flags() -> list[str]:
    """Names of the fields of the library's `TrainingArguments`, read in its source, whose import takes seconds."""
    source = Path(importlib.util.find_spec(LIBRARY).origin).read_text(encoding="utf-8")
    classes = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
    [arguments] = [node for node in classes if node.name == "TrainingArguments"]
    names = [node.target.id for node in arguments.body if isinstance(node, ast.AnnAssign)]
    return [name for name in names if not name.startswith("_")]


def exit_with_help_if_asked(words: list[str], description: str) -> None:
    """Prints the help and ends the process with status 0, if the words of a command ask for it."""
    if "--help" in words or "-h" in words:
        make_parser(description).parse_args(["--help"])
