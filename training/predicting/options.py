"""The flags of `predict.py`, and the checks that need neither the rows nor the model.

This module imports neither torch nor the library's models, so `--help` prints at once.
"""

import os
import shutil
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from transformers.hf_argparser import HfArgumentParser

from lstmpool.training.errors import InputError, control_in, did_you_mean, one_line
from lstmpool.training.flags.help import Formatter, Parser


USAGE = "python -m lstmpool.predict MODEL [FILE ... | -] [--flag value ...]"
STDIN = "-"
ENGINES = ("torch", "onnx", "onnx_int8")
FORMATS = ("csv", "jsonl", "parquet")
MOST_SHARDS = 100_000
BOOLEANS = ("true", "false", "yes", "no", "1", "0")


class Shard(NamedTuple):
    """The share of the chunks that this process takes: every `count`-th, from chunk `index` on, counted from 1."""

    index: int
    count: int


@dataclass
class Options:
    """Which rows are predicted, and what is written."""

    output: str | None = field(
        default=None,
        metadata={
            "help": "File to write: .csv, .jsonl or .parquet. Several processes or shards write a folder of Parquet "
            "files. Unset: the standard output."
        },
    )
    format: str | None = field(
        default=None, metadata={"choices": FORMATS, "help": "Unset: as the ending of --output says, or csv."}
    )
    dataset_name: str | None = field(
        default=None,
        metadata={"help": "Instead of files: a data set on the Hub, or a folder of save_to_disk or of data files."},
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of the data set."})
    dataset_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of a data set on the Hub."}
    )
    split_name: str | None = field(
        default=None, metadata={"help": "Split of the data set. Unset: test, or the only one there is."}
    )
    text_column_names: str | None = field(
        default=None,
        metadata={
            "help": "Column of the text. Two, separated by a comma, are read as a pair; more are joined. Unset: as in "
            "training."
        },
    )
    text_column_delimiter: str | None = field(
        default=None,
        metadata={"help": "Join the text columns, even two, with this. Unset: as in training."},
    )
    id_column_name: str | None = field(
        default=None,
        metadata={"help": "Column that names the rows. Unset: as in training, or id, or the row's number from 0."},
    )
    top_k: int | None = field(
        default=None, metadata={"help": "Add the likeliest labels, so many, with the probability of each."}
    )
    scores: bool = field(default=False, metadata={"help": "Add a column with the probability of each label."})
    with_text: bool = field(default=False, metadata={"help": "Add the texts."})
    raw_csv: bool = field(
        default=False,
        metadata={
            "help": "Leave ids, texts and labels in a CSV as they are. Unset: an apostrophe keeps a spreadsheet from "
            "running those that begin like a formula."
        },
    )
    resume: bool = field(
        default=False,
        metadata={"help": "Go on where the same command was cut off. If it was not, begin."},
    )
    overwrite: bool = field(
        default=False,
        metadata={"help": "Replace what is at --output, once the new is whole. What was cut off begins anew."},
    )
    shard: str | None = field(
        default=None,
        metadata={
            "help": "Such as 3/16: take every sixteenth chunk of rows, from the third on, and write one Parquet file "
            "into the folder --output. With torchrun or accelerate launch, each process takes a share by itself."
        },
    )
    batch_size: int = field(default=256, metadata={"help": "Rows in a batch at most."})
    batch_tokens: int = field(default=8192, metadata={"help": "Tokens in a batch at most, padding included."})
    engine: str = field(
        default="torch",
        metadata={
            "choices": ENGINES,
            "help": "What computes. onnx and onnx_int8: ONNX Runtime, on the float or the first int8 graph of a "
            "folder that python -m lstmpool.export has written.",
        },
    )
    bf16: bool = field(default=False, metadata={"help": "Compute in bfloat16 mixed precision. Unset: in float32."})
    use_cpu: bool = field(default=False, metadata={"help": "Leave the GPU alone."})
    disable_tqdm: bool = field(default=False, metadata={"help": "Show no progress bar."})
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit of a model on the Hub."})
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Run the backbone's own code, if it comes with any."}
    )


@dataclass(frozen=True)
class Request:
    """What the command was asked for."""

    model: str
    files: list[str]  # empty for a data set; STDIN alone for the standard input
    options: Options
    format: str
    shard: Shard  # 1 of 1 if there is one process
    is_first: bool  # of several processes, the one that speaks

    @property
    def output(self) -> Path | None:
        """The file to write; None for the standard output."""
        if self.options.output is None:
            return None
        output = Path(self.options.output)
        return output / part_name(self.shard) if self.in_parts else output

    @property
    def in_parts(self) -> bool:
        """Whether the output is a file in a folder, a part of a table."""
        return _in_parts(self.options, self.shard)

    @property
    def reads_stdin(self) -> bool:
        """Whether the rows are the lines of the standard input."""
        return self.files == [STDIN]

    def settings(self) -> dict[str, Any]:
        """What decides on the bytes of the output beside the model and the rows."""
        names = ("top_k", "scores", "with_text", "raw_csv", "batch_size", "batch_tokens", "bf16")
        chosen = {name: value for name, value in asdict(self.options).items() if name in names}
        return chosen | {"format": self.format, "shard": f"{self.shard.index}/{self.shard.count}"}


def part_name(shard: Shard) -> str:
    """The name of a shard's file."""
    return f"part-{shard.index:05d}-of-{shard.count:05d}.parquet"


def make_parser(description: str) -> HfArgumentParser:
    """The parser of the command."""
    width = min(119, shutil.get_terminal_size().columns)
    parser = Parser(
        Options,
        usage=USAGE,
        description=description,
        formatter_class=partial(Formatter, max_help_position=32, width=width),
        allow_abbrev=False,
    )
    parser.add_argument("model", metavar="MODEL", help="Folder of a finished model, or its name on the Hub.")
    parser.add_argument(
        "files",
        metavar="FILE",
        nargs="*",
        help="Rows: .csv, .tsv, .json, .jsonl, .parquet, plain or .gz, or a folder of save_to_disk; - for lines of "
        "the standard input.",
    )
    return parser


def parse(words: list[str], description: str) -> Request:
    """What the words of a command ask for. If they ask for help, it is printed and the process ends.

    Raises:
        InputError: for unknown words, or flags that do not fit together.
    """
    parser = make_parser(description)
    if "--help" in words or "-h" in words:
        parser.parse_args(["--help"])
    found, others = parser.parse_known_intermixed_args(with_values(words, Options))
    if others:
        names = [action.option_strings[0] for action in parser._actions if action.option_strings]
        raise InputError(f"unknown flag {others[0]}.{did_you_mean(others[0], names)} See --help.")
    values = vars(found)
    model, files = values.pop("model"), values.pop("files")
    options = Options(**values)
    shard = _shard(options)
    _check(model, files, options, shard)
    return Request(model, files, options, _format(options, shard), shard, os.environ.get("RANK", "0") == "0")


def with_values(words: list[str], options: type) -> list[str]:
    """The words, in which a switch such as --scores takes no word for its value but one that says true or false.

    `options` is the dataclass whose fields are the flags.
    """
    switches = {f"--{entry.name}" for entry in fields(options) if isinstance(entry.default, bool)}
    spelled = []
    for word, following in zip(words, [*words[1:], ""], strict=True):
        alone = word in switches and following.lower() not in BOOLEANS
        spelled.append(f"{word}=True" if alone else word)
    return spelled


def _shard(options: Options) -> Shard:
    """The share of this process, of all processes of all shards."""
    first, of_all = 1, 1
    if options.shard is not None:
        index, _, count = options.shard.partition("/")
        if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count) <= MOST_SHARDS):
            raise InputError(f"--shard {options.shard}: expected a shard and their number, such as 3/16.")
        first, of_all = int(index), int(count)
    with one_line("expected numbers in WORLD_SIZE and RANK, which torchrun sets", ValueError, remedy="Unset both."):
        processes, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if not 0 <= rank < processes:
        raise InputError(f"expected a RANK below WORLD_SIZE, {processes}, found {rank}. Unset both, or use torchrun.")
    return Shard((first - 1) * processes + rank + 1, of_all * processes)


def _in_parts(options: Options, shard: Shard) -> bool:
    return options.shard is not None or shard.count > 1


def _check(model: str, files: list[str], options: Options, shard: Shard) -> None:
    """Raises InputError for flags that do not fit together, or values that can never be right."""
    values = [model, *files, *(value for value in asdict(options).values() if isinstance(value, str))]
    delimiter = options.text_column_delimiter
    for value in values:
        if control_in(value, allowed="\t\n\r" if value == delimiter else ""):
            raise InputError(f"expected words without control characters, found {value!r}.")
        if not value.strip() and value != delimiter:
            raise InputError("expected a value, found an empty one. Leave its flag out.")
    if bool(files) == bool(options.dataset_name):
        found = "both" if files else "neither"
        raise InputError(f"expected files of rows (or - for the standard input) or --dataset_name, found {found}.")
    if STDIN in files and len(files) > 1:
        raise InputError("expected either files or -, the standard input, found both. Write the lines to a file.")
    for name in ("dataset_config_name", "dataset_revision", "split_name"):
        if getattr(options, name) and not options.dataset_name:
            raise InputError(f"--{name} is about a data set; name one with --dataset_name.")
    for name in ("top_k", "batch_size", "batch_tokens"):
        value = getattr(options, name)
        if value is not None and not 1 <= value < 2**31:
            raise InputError(f"--{name} must be 1 or more, got {value}.")
    if STDIN in files and (options.text_column_names or options.id_column_name):
        raise InputError("the standard input has no columns, but one text a line. Leave their names out.")
    if options.output is None:
        _check_stdout(options, shard)
    elif options.output == STDIN or "://" in options.output or options.output.startswith("~"):
        raise InputError(f"--output {options.output}: expected a file. For the standard output, leave --output out.")
    if STDIN in files and options.resume:
        raise InputError("--resume reads the rows again, and the standard input has none twice. Write them to a file.")
    if STDIN in files and _in_parts(options, shard):
        raise InputError("several processes or shards each read all rows; write the lines to a file.")
    if options.raw_csv and _format(options, shard) != "csv":
        raise InputError("--raw_csv is about the format csv.")


def _check_stdout(options: Options, shard: Shard) -> None:
    if options.resume or options.overwrite:
        flag = "--resume" if options.resume else "--overwrite"
        raise InputError(f"{flag} is about a file; name it with --output.")
    if _in_parts(options, shard):
        raise InputError("several processes or shards write a file each; name their folder with --output.")


def _format(options: Options, shard: Shard) -> str:
    """The format that the flags ask for. Raises InputError if they contradict each other, or name none."""
    ending = Path(options.output or "").suffix.lower().removeprefix(".")
    if _in_parts(options, shard):
        if options.format not in (None, "parquet") or ending in ("csv", "jsonl"):
            raise InputError("several processes or shards write Parquet: name a folder with --output, without .csv.")
        return "parquet"
    if options.output is None:
        return options.format or "csv"
    if options.format is None and ending not in FORMATS:
        endings = ", ".join(f".{name}" for name in FORMATS)
        raise InputError(f"--output {options.output} must end in {endings}; or name a --format.")
    if ending in FORMATS and options.format not in (None, ending):
        raise InputError(f"--output {options.output} and --format {options.format} contradict each other. Name one.")
    return options.format or ending
