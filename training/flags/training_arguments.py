"""The library's training arguments and ours in one class; imported only where a command really runs."""

import importlib.util
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

from lstmpool.training.errors import InputError
from lstmpool.training.flags.arguments import TrainingFields
from lstmpool.training.flags.defaults import FINE_TUNING, Limits


# The defaults of a fine-tune on this machine.
DEFAULTS = FINE_TUNING | {
    "dataloader_pin_memory": torch.cuda.is_available(),  # without a GPU, every epoch warns about it
    "report_to": ["tensorboard"] if importlib.util.find_spec("tensorboard") else ["none"],
}
CPU_INFO = Path("/proc/cpuinfo")
MULTIPLIES_BF16 = {"amx_bf16", "avx512_bf16"}  # what it calls processors with instructions for matrices of bfloat16
# Who names one of these has chosen a precision, or has a file that does.
OF_PRECISION = {"bf16", "fp16", "deepspeed", "fsdp", "fsdp_config"}


@dataclass(repr=False)
class TrainingArguments(TrainingFields, transformers.TrainingArguments):
    """The library's training arguments, and those that this command adds."""

    _argument_group_name = "training"

    hub_private_repo: bool = False  # a field of the library's, here as a flag that needs no value
    # no flags: these follow from those that were named
    limits: Limits = field(init=False, default=Limits())
    keeps_checkpoints: bool = field(init=False, default=True)  # once the run is finished
    named_head_rate: bool = field(init=False, default=False)


def build(values: Mapping[str, Any]) -> TrainingArguments:
    """The training arguments with these values.

    Raises:
        InputError: for a value that the library refuses. It names the flag.
    """

    def without(name: str) -> None:
        TrainingArguments(**{other: value for other, value in values.items() if other != name})

    try:
        return TrainingArguments(**values)
    except Exception as error:  # each field raises errors of its own kind
        raise refused(error, values, without) from None


def refused(error: Exception, values: Mapping[str, Any], without: Callable[[str], Any]) -> InputError:
    """The error for flags that the library has refused. It names those without which all would be well.

    Args:
        error: what the library said.
        values: the flags that may be the cause, and their values.
        without: repeats what failed, but with the default of the flag that it is given.
    """
    causes = [name for name in values if _passes(without, name)]
    named = ", ".join(f"--{name} {getattr(values[name], 'value', values[name])}" for name in causes)
    reason = str(error).strip().rstrip(".") or type(error).__name__
    return InputError(f"{named or 'these settings'} cannot be trained with: {reason}. Change it, or leave it out.")


def _passes(without: Callable[[str], Any], name: str) -> bool:
    try:
        without(name)
    except Exception:
        return False
    return True


def choose_precision(args: TrainingArguments, given: Mapping[str, Any], trains_backbone: bool) -> None:
    """Trains in bfloat16 mixed precision where that is faster, unless a flag in `given` says otherwise.

    A frozen backbone gains nothing from it: it runs once, in float32.
    """
    chosen = OF_PRECISION & given.keys() or "ACCELERATE_MIXED_PRECISION" in os.environ
    device = args.device.type
    if chosen or not (args.do_train and trains_backbone and multiplies_bf16(device)):
        return
    try:
        with torch.autocast(device, dtype=torch.bfloat16):
            weight = torch.ones(8, 8, device=device, requires_grad=True)
            (weight @ weight).float().sum().backward()
    except RuntimeError as error:
        print(f"Precision: float32, since bfloat16 fails here: {str(error).splitlines()[0]}")
        return
    args.bf16 = True
    args.mixed_precision = "bf16"


def multiplies_bf16(device: str) -> bool:
    """Whether this kind of device, "cuda" or "cpu", multiplies matrices of bfloat16 faster than of float32."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    try:
        words = CPU_INFO.read_text(encoding="utf-8").split() if device == "cpu" else []
    except OSError:  # of another system
        return False
    return bool(MULTIPLIES_BF16 & set(words))
