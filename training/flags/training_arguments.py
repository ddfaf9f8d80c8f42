"""The library's training arguments and ours in one class; imported only where a command really runs."""

import importlib.util
from dataclasses import dataclass

import torch
import transformers

from lstmpool.training.flags.arguments import TrainingFields
from lstmpool.training.flags.defaults import FINE_TUNING


# The defaults of a fine-tune on this machine.
DEFAULTS = FINE_TUNING | {
    "dataloader_pin_memory": torch.cuda.is_available(),  # without a GPU, every epoch warns about it
    "report_to": ["tensorboard"] if importlib.util.find_spec("tensorboard") else ["none"],
}


@dataclass(repr=False)
class TrainingArguments(TrainingFields, transformers.TrainingArguments):
    """The library's training arguments, and those that this command adds."""

    _argument_group_name = "training"

    hub_private_repo: bool = False  # a field of the library's, here as a flag that needs no value
