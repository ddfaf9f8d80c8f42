"""What all benchmarks share: results as rows of a CSV, and their tables on a page."""

import csv
import platform
from argparse import Action, ArgumentDefaultsHelpFormatter, ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path

from transformers import HfArgumentParser

from lstmpool.training.writing import writing


HERE = Path(__file__).parent
Row = dict[str, str]


class HelpFormatter(RawDescriptionHelpFormatter, ArgumentDefaultsHelpFormatter):
    """Keeps the lines of a command's description as they are, and shows the defaults of its flags."""

    def _get_help_string(self, action: Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


def parser_of(arguments: type, name: str, description: str | None) -> HfArgumentParser:
    """The parser of a benchmark's flags, which are the fields of the dataclass `arguments`."""
    return HfArgumentParser(arguments, prog=name, description=description, formatter_class=HelpFormatter)


def read_rows(path: Path) -> list[Row]:
    """The results so far; none if there is no file."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write_rows(path: Path, rows: list[Row]) -> None:
    """Writes the CSV atomically: a run that is cut off here leaves the old one."""
    with writing(path) as unfinished, unfinished.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def append_rows(path: Path, rows: Iterable[Row]) -> None:
    """Adds rows to the CSV, after those that it holds."""
    write_rows(path, [*read_rows(path), *rows])


def holds(rows: Iterable[Row], wanted: Row) -> bool:
    """Whether one of the rows has all the `wanted` columns, so that it need not be measured again."""
    return any(wanted.items() <= row.items() for row in rows)


def versions(*packages: str) -> str:
    """The versions of this project, torch, transformers and the given packages, in words."""
    return ", ".join(f"{package} {version(package)}" for package in ("lstmpool", "torch", "transformers", *packages))


def processor() -> str:
    """The kind of processor, without the machine's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    for line in lines:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def split_file(folder: Path, split: str) -> Path:
    """The CSV of a split in `folder`: the plain one if it exists, else the gzipped one."""
    plain = folder / f"{split}.csv"
    return plain if plain.is_file() else folder / f"{split}.csv.gz"


def markdown(head: list[str], lines: Iterable[list[str]], words: int = 1) -> str:
    """A Markdown table. The first `words` columns hold words; the others hold numbers, flush right."""
    rule = ["---" if i < words else "---:" for i in range(len(head))]
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, rule, *lines]) + "\n"


def marks(name: str) -> tuple[str, str]:
    """The two lines of a page between which the table `name` stands."""
    return f"<!-- {name}: made by --table -->\n", f"<!-- end of {name} -->\n"


def fill_page(page: Path, name: str, text: str) -> None:
    """Puts the table `text` between the page's marks of this name.

    Raises:
        ValueError: if the page lacks one of the marks.
    """
    first, last = marks(name)
    before, found, rest = page.read_text(encoding="utf-8").partition(first)
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
    """Prints the table of the results in `output`, draws their picture and puts both on the page SPEED.md beside it.

    The table says on which device, and with which versions, the results were made.

    Args:
        parser: ends the command with its message if there are no results.
        output: the CSV.
        name: of the marks on the page.
        table: makes the table from the rows.
        picture: draws the picture of the rows into a file.
    """
    rows = read_rows(output)
    if not rows:
        parser.error(f"expected results in {output}, found none. Make some without --table.")
    made = sorted({" with ".join(filter(None, (row.get("device"), row["versions"]))) for row in rows})
    text = f"{table(rows).strip()}\n\nMade on {'; '.join(made)}.\n"
    print(text)
    if picture:
        picture(rows, output.with_suffix(".png"))
        text += f"\n![{name}]({output.stem}.png)\n"
    page = output.with_name("SPEED.md")
    if page.is_file():
        fill_page(page, name, text)
