"""Puts finished runs beside each other: what differs in their settings, their numbers, and whether that is clear.

    python -m lstmpool.compare outputs/a outputs/b
    python -m lstmpool.compare outputs/* --against outputs/plain --output comparison.md

Each FOLDER is one that train_trainer.py has written, a cross-validation's too. The first run is the one that the
others are compared with, unless --against names another.

Three tables are printed. The first has the settings that differ. The second has each run's metrics on the test rows,
or on others if no run has test rows; the time of the command that finished it, and the size of its weights. The third
has the difference of each metric on the same rows, this run's minus the other's, with a 95% interval over rows.

Rows are the same if all texts and labels are, or else if their ids and true labels are. Runs with other labels or
another task, and runs with too few rows in common, are refused.

Wrong input ends the command with status 2 and one line that says what was expected, what was found and what to do.
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from transformers.hf_argparser import HfArgumentParser

from lstmpool.training.errors import InputError, control_in, did_you_mean, one_line
from lstmpool.training.flags.help import Formatter, Parser
from lstmpool.training.printing import printing


USAGE = "python -m lstmpool.compare FOLDER FOLDER ... [--flag value ...]"
ENDINGS = (".md", ".csv", ".json")
SPLITS = {"test": "test", "validation": "validation", "oof": "out of fold"}  # as the flag and the tables call them


@dataclass
class Options:
    """What is compared, and where it is written."""

    against: str | None = field(
        default=None, metadata={"help": "Folder, or its name, that the others are compared with. Unset: the first."}
    )
    split: str | None = field(
        default=None,
        metadata={
            "choices": tuple(SPLITS),
            "help": "Rows to compare on: test, validation, or oof, the training rows of a cross-validation. Unset: "
            "test or, if no run has that, validation or oof.",
        },
    )
    output: str | None = field(
        default=None, metadata={"help": "File to write, besides what is printed: .md, .csv or .json."}
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace what is at --output, once the new is whole."})


@dataclass(frozen=True)
class Request:
    """What the command was asked for."""

    folders: list[Path]
    options: Options

    @property
    def output(self) -> Path | None:
        """The file to write; None for the terminal alone."""
        return None if self.options.output is None else Path(self.options.output)

    @property
    def split(self) -> str | None:
        """The split, as the folders name it; None if no flag names one."""
        return None if self.options.split is None else SPLITS[self.options.split]


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    with printing():
        try:
            run(parse(sys.argv[1:] if argv is None else argv))
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("\nstopped.", file=sys.stderr)
            return 130
    return 0


def run(request: Request) -> None:
    """Compares, prints the tables, and writes the file if one was asked for. Raises InputError."""
    import datasets

    from lstmpool.training.output.comparison import Comparison

    datasets.disable_progress_bars()
    comparison = Comparison.of(request.folders, request.options.against, request.split)
    print(comparison.text(), flush=True)
    if request.output is not None:
        with one_line(f"--output {request.output} cannot be written", remedy="Name another place, or make room."):
            comparison.write(request.output)


def parse(words: list[str]) -> Request:
    """What the words of the command ask for. If they ask for help, it is printed and the process ends.

    Raises:
        InputError: for unknown words, or a file that may not be written.
    """
    parser = _make_parser()
    if "--help" in words or "-h" in words:
        parser.parse_args(["--help"])
    found, others = parser.parse_known_intermixed_args(words)
    if others:
        names = [action.option_strings[0] for action in parser._actions if action.option_strings]
        raise InputError(f"unknown flag {others[0]}.{did_you_mean(others[0], names)} See --help.")
    values = vars(found)
    folders = values.pop("folders")
    for word in [*folders, *(value for value in values.values() if isinstance(value, str))]:
        if control_in(word) or not word.strip():
            raise InputError(f"expected words without control characters, found {word!r}.")
    request = Request([Path(folder) for folder in folders], Options(**values))
    with one_line(f"--output {request.options.output} cannot be written"):
        _check_output(request)
    return request


def _make_parser() -> HfArgumentParser:
    parser = Parser(
        Options,
        usage=USAGE,
        description=__doc__,
        formatter_class=partial(Formatter, max_help_position=32, width=min(119, shutil.get_terminal_size().columns)),
        allow_abbrev=False,
    )
    parser.add_argument("folders", metavar="FOLDER", nargs="*", help="Folders of finished runs, two or more.")
    return parser


def _check_output(request: Request) -> None:
    """Raises InputError for a place that may not be written."""
    path = request.output
    if path is None:
        if request.options.overwrite:
            raise InputError("--overwrite is about a file; name it with --output.")
        return
    if path.suffix.lower() not in ENDINGS:
        raise InputError(f"--output {path} must end in {', '.join(ENDINGS)}.")
    if path.is_dir():
        raise InputError(f"--output {path} is a folder. Name a file in it.")
    if path.exists() and not path.is_file():
        raise InputError(f"--output {path} is a device or a pipe. Name a file.")
    if path.exists() and not request.options.overwrite:
        raise InputError(f"--output {path} exists already. Choose another name, or add --overwrite.")
    if any(path.resolve().is_relative_to(folder.resolve()) for folder in request.folders):
        raise InputError(f"--output {path} lies in the folder of a run, which stays as it is. Name another place.")
    if not path.parent.is_dir():
        raise InputError(f"--output {path} cannot be written: there is no folder {path.parent}. Make it first.")


if __name__ == "__main__":
    sys.exit(main())
