"""What the benchmarks share: results as rows of a CSV, and tables of them on a page."""

import csv
import os
import platform
from argparse import Action, ArgumentDefaultsHelpFormatter, ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path

from transformers import HfArgumentParser


HERE = Path(__file__).parent
Row = dict[str, str]


class HelpFormatter(RawDescriptionHelpFormatter, ArgumentDefaultsHelpFormatter):
    """Leaves the lines of a command's description as they are, and gives the defaults of its flags."""

    def _get_help_string(self, action: Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


def parser_of(arguments: type, name: str, description: str | None) -> HfArgumentParser:
    """The parser of a benchmark's flags, which are the fields of a dataclass."""
    return HfArgumentParser(arguments, prog=name, description=description, formatter_class=HelpFormatter)


def read_rows(path: Path) -> list[Row]:
    """The results so far; none if there is no file."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write_rows(path: Path, rows: list[Row]) -> None:
    """Puts the file in place as a whole: a run that is cut off here leaves the old one."""
    new = path.with_name(path.name + ".new")
    with new.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(new, path)


def append_rows(path: Path, rows: Iterable[Row]) -> None:
    """The same, with these after those that are there."""
    write_rows(path, [*read_rows(path), *rows])


def holds(rows: Iterable[Row], wanted: Row) -> bool:
    """Whether a row has all that is wanted: what is there is not measured again."""
    return any(wanted.items() <= row.items() for row in rows)


def versions(*packages: str) -> str:
    return ", ".join(f"{package} {version(package)}" for package in ("lstmpool", "torch", "transformers", *packages))


def processor() -> str:
    """What kind of processor it is, without the machine's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine()
    )


def split_file(folder: Path, split: str) -> Path:
    """The rows of a split, plain or gzipped."""
    plain = folder / f"{split}.csv"
    return plain if plain.is_file() else folder / f"{split}.csv.gz"


def markdown(head: list[str], lines: Iterable[list[str]], words: int = 1) -> str:
    """A table whose first columns, `words` of them, are words; the others are numbers, flush right."""
    rule = ["---" if i < words else "---:" for i in range(len(head))]
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, rule, *lines]) + "\n"


def marks(name: str) -> tuple[str, str]:
    """Between which lines of a page the table of this name stands."""
    return f"<!-- {name}: made by --table -->\n", f"<!-- end of {name} -->\n"


def fill_page(page: Path, name: str, text: str) -> None:
    """Puts the table between the page's marks.

    Raises:
        ValueError: if the page has no such marks.
    """
    old, (first, last) = page.read_text(encoding="utf-8"), marks(name)
    before, found, rest = old.partition(first)
    _, ended, after = rest.partition(last)
    if not (found and ended):
        raise ValueError(
            f"{page.name} must hold the lines {first.strip()} and {last.strip()}; one is missing. Add it."
        )
    page.write_text(f"{before}{first}\n{text.strip()}\n\n{last}{after}", encoding="utf-8")


def show(
    parser: ArgumentParser,
    output: Path,
    name: str,
    table: Callable[[list[Row]], str],
    picture: Callable[[list[Row], Path], None] | None = None,
) -> None:
    """Prints the table of the results in `output`, with where they were made, draws the picture beside them, and puts
    both on the page there.

    Without results, the command ends with a message of the parser.
    """
    if not (rows := read_rows(output)):
        parser.error(f"expected results in {output}, found none. Make some without --table.")
    made = sorted({" with ".join(filter(None, (row.get("device"), row["versions"]))) for row in rows})
    print(text := f"{table(rows).strip()}\n\nMade on {'; '.join(made)}.\n")
    if picture:
        picture(rows, output.with_suffix(".png"))
        text += f"\n![{name}]({output.stem}.png)\n"
    if (page := output.with_name("SPEED.md")).is_file():
        fill_page(page, name, text)
