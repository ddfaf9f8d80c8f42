"""The flags of `export.py`, and the checks that need neither the model nor its libraries."""

import shutil
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

from transformers.hf_argparser import HfArgumentParser

from lstmpool.training.errors import InputError, control_in, did_you_mean
from lstmpool.training.flags.help import Formatter, Parser
from lstmpool.training.predicting.options import with_values


USAGE = "python -m lstmpool.export MODEL [--flag value ...]"
NONE = "none"
MOST = 100.0  # points that a metric can lose


class Variant(NamedTuple):
    """A quantised file: its name, the type of its weights, and who reads it."""

    file: str
    weights: str
    for_whom: str


# By the last part of the names that transformers.js and sentence-transformers look for. Files whose weights have one
# type are the same bytes.
VARIANTS = {
    "quantized": Variant("model_quantized.onnx", "QInt8", "transformers.js with dtype q8, and any processor"),
    "qint8_avx512_vnni": Variant("model_qint8_avx512_vnni.onnx", "QInt8", "x86 with AVX512-VNNI"),
    "qint8_arm64": Variant("model_qint8_arm64.onnx", "QInt8", "ARM"),
    "quint8_avx2": Variant("model_quint8_avx2.onnx", "QUInt8", "x86 without VNNI"),
}


@dataclass
class Options:
    """What is exported, and where it is written."""

    output: str | None = field(
        default=None, metadata={"help": "Folder to write. Unset: MODEL-onnx, beside the folder of the model."}
    )
    quantize: str = field(
        default="quantized,qint8_avx512_vnni",
        metadata={
            "help": f"The int8 files to write besides the float one, separated by commas: {', '.join(VARIANTS)}; or "
            f"{NONE}. They are named after what looks for them."
        },
    )
    test_file: str | None = field(
        default=None,
        metadata={
            "help": "Rows with labels, in the columns of training. Each file answers them, and the metric and the "
            "share of answers that are those of the model go into the card. Unset: the validation rows of the model's "
            "run, where their file is as it was; else none of that is measured."
        },
    )
    max_loss: float = field(
        default=1.0,
        metadata={
            "help": "An int8 file whose metric on these rows is lower than the model's by more points than this is "
            f"not kept; {MOST:g} keeps any. Of a regression, percent of the metric."
        },
    )
    handler: bool = field(
        default=False,
        metadata={
            "help": "Write handler.py, too, which answers requests of an Inference Endpoint as the pipeline for text "
            "classification does."
        },
    )
    overwrite: bool = field(
        default=False, metadata={"help": "Replace an exported folder at --output, once the new one is whole."}
    )
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit of a model on the Hub."})
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Run the backbone's own code, if it comes with any."}
    )


class Request(NamedTuple):
    """What the command was asked for."""

    model: str
    output: Path
    variants: list[str]  # names in `VARIANTS`
    options: Options


def parse(words: list[str], description: str) -> Request:
    """What the words of a command ask for. If they ask for help, it is printed and the process ends.

    Raises:
        InputError: for unknown words, or a value that can never be right.
    """
    parser = _make_parser(description)
    if "--help" in words or "-h" in words:
        parser.parse_args(["--help"])
    found, others = parser.parse_known_intermixed_args(with_values(words, Options))
    if others:
        names = [action.option_strings[0] for action in parser._actions if action.option_strings]
        raise InputError(f"unknown flag {others[0]}.{did_you_mean(others[0], names)} See --help.")
    values = vars(found)
    model = values.pop("model")
    options = Options(**values)
    for word in [model, *(value for value in asdict(options).values() if isinstance(value, str))]:
        if control_in(word) or not word.strip():
            raise InputError(f"expected words without control characters, found {word!r}.")
    if not 0 <= options.max_loss <= MOST:
        raise InputError(f"--max_loss must lie in 0..{MOST:g} points, got {options.max_loss:g}.")
    return Request(model, _output(model, options.output), _variants(options.quantize), options)


def _make_parser(description: str) -> HfArgumentParser:
    parser = Parser(
        Options,
        usage=USAGE,
        description=description,
        formatter_class=partial(Formatter, max_help_position=32, width=min(119, shutil.get_terminal_size().columns)),
        allow_abbrev=False,
    )
    parser.add_argument("model", metavar="MODEL", help="Folder of a finished model, or its name on the Hub.")
    return parser


def _variants(named: str) -> list[str]:
    """The names of the variants, once each. Raises InputError for one that is not known."""
    names = list(dict.fromkeys(name.strip() for name in named.split(",")))
    if names == [NONE]:
        return []
    for name in names:
        if name not in VARIANTS:
            known = ", ".join([*VARIANTS, NONE])
            raise InputError(
                f"--quantize {named}: expected some of {known}, found {name!r}.{did_you_mean(name, VARIANTS)}"
            )
    return names


def _output(model: str, named: str | None) -> Path:
    """The folder to write."""
    from lstmpool.training.output.found import EXPORTED, export_of  # brings torch, which --help does not need

    if named is None:
        folder = Path(model)
        return export_of(folder) if folder.is_dir() else Path(f"{folder.name}{EXPORTED}")  # of the Hub: here
    if "://" in named or named.startswith("~"):
        raise InputError(f"--output {named}: expected a folder on this machine.")
    return Path(named)
