"""Publishes a saved model on the Hub: checks the folder, pushes it, and loads what was pushed as a stranger would.

    python -m lstmpool.training.publish FOLDER OWNER/NAME
    python -m lstmpool.training.publish FOLDER --check
    python -m lstmpool.training.publish FOLDER OWNER/NAME --private --tag v1
    python -m lstmpool.training.publish FOLDER OWNER/NAME --onnx
    python -m lstmpool.training.publish FOLDER OWNER/NAME --space

Log in first with `hf auth login`, or set HF_TOKEN. Weights, config, code, tokenizer and model card go up in one
commit; a second one pins the snippet in the card to the first.

With --onnx, the graphs that python -m lstmpool.export has made of the folder go up as OWNER/NAME-onnx. They are
checked without torch, before and after. The other flags hold for both repositories.

With --space, a page to try the model on goes up as the Space OWNER/NAME-demo. It loads the commit that was pushed, and
is checked, before and after, to answer as the model does. --private and --tag hold for it, too.

A check runs the folder's code. If that is not the code of the installed release, it is shown and not run, unless you
add --trust_remote_code.

Exit status: 0 when all is well. 2 when nothing was published; each thing to mend has one line. 3 when a commit was
pushed, or may have been, that was not shown to be right, or whose export or page was not; the line names it.
"""

# The text above is the command's help. Here are its flags, which are read before `publishing`, as that needs torch.

import argparse
from dataclasses import dataclass, field

from transformers.hf_argparser import HfArgumentParser


@dataclass
class Options:
    """How a folder is published."""

    check: bool = field(default=False, metadata={"help": "Check the folder and push nothing."})
    trust_remote_code: bool = field(
        default=False,
        metadata={"help": "Run the folder's own code, though it is not that of the installed release. Read it first."},
    )
    private: bool = field(default=False, metadata={"help": "Make the repository, if it is new, a private one."})
    branch: str = field(default="main", metadata={"help": "Branch to push to; made if it is not there."})
    onnx: str | None = field(
        default=None,
        metadata={
            "nargs": "?",
            "const": "",
            "metavar": "FOLDER",
            "help": "Publish the graphs of python -m lstmpool.export, too, as OWNER/NAME-onnx. Write the flag last, "
            "or as --onnx=DIR. Without a value: FOLDER-onnx, where that command writes.",
        },
    )
    space: str | None = field(
        default=None,
        metadata={
            "nargs": "?",
            "const": "",
            "metavar": "OWNER/NAME",
            "help": "Publish a page to try the model on, too, as a Space. Write the flag last, or as "
            "--space=OWNER/NAME. Without a value: OWNER/NAME-demo, after the model's.",
        },
    )
    tag: str | None = field(default=None, metadata={"help": "Tag to give to what was pushed, for example v1."})


def make_parser() -> HfArgumentParser:
    """The parser of the command `python -m lstmpool.training.publish`."""
    parser = HfArgumentParser(
        Options,
        prog="python -m lstmpool.training.publish",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("folder", metavar="FOLDER", help="Folder of a saved model, with its tokenizer and README.md.")
    parser.add_argument("repo_id", metavar="OWNER/NAME", nargs="?", help="Repository; made if it is not there.")
    return parser
