"""The other half of a pair: the folder that `export.py` has made of a model, checked and pushed as OWNER/NAME-onnx.

It goes up only if it was made from the very weights beside it, and if its float graph answers as they do. Afterwards
the pushed commit answers again, in a process without torch.
"""

import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard
from transformers import AutoTokenizer

from lstmpool.modeling_lstmpool import LstmPoolForSequenceClassification
from lstmpool.training.errors import InputError, one_line
from lstmpool.training.hub import clean_load
from lstmpool.training.hub.clean_load import LoadError, largest_difference, probe_batches, probe_logits, run_alone
from lstmpool.training.hub.folder import (
    HEADER,
    PUBLISHED_EXPORT,
    PUBLISHED_GRAPHS,
    UnfitFolder,
    check_card,
    check_pickles,
    copy_files,
    read_json,
)
from lstmpool.training.hub.options import Options
from lstmpool.training.hub.repository import Hub, PushError
from lstmpool.training.hub.scratch import scratch
from lstmpool.training.output import markdown
from lstmpool.training.output.found import EXPORT_RECORD, FLOAT, GRAPHS, read_export
from lstmpool.training.output.markdown import visible
from lstmpool.training.writing import changed_since, digests_of


PROGRAM = Path(__file__).with_name("clean_export.py")
TOLERANCE = 1e-4  # of the largest logit, or of 1: that of an export from torch
SAME = 1e-5  # of one graph in two processes on one machine
INSTALL = 'Install it: pip install -c constraints.txt -e ".[onnx]"'
COMPARED = ("model*.safetensors", "tokenizer.json")  # of the model: the files of which the export must have been made
CARD_HEADER = HEADER | {"library_name": "transformers.js"}


class ExportHub(Hub):
    """A repository of graphs."""

    kind = "an ONNX export of an lstmpool model"
    mark = EXPORT_RECORD
    published = PUBLISHED_EXPORT | {f"{GRAPHS}/{name}" for name in PUBLISHED_GRAPHS}

    @staticmethod
    def is_of_kind(marked: dict[str, Any]) -> bool:
        """Whether a record with this content is that of an export."""
        return "made_from" in marked


@dataclass(frozen=True)
class Export:
    """An exported folder that passed.

    Args:
        name: of the folder.
        folder: a copy of what will be published.
        card: its README.
        asked: the probes, and the graphs that answer them, as `clean_export` takes them.
        answers: the `logits` by graph and the `labels` that the copy gives, and the pushed commit must give.
        left_out: files that are not published.
    """

    name: str
    folder: Path
    card: str
    asked: dict[str, Any]
    answers: dict[str, Any]
    left_out: list[str]

    def describe(self) -> str:
        """Says what will be published."""
        lines = [f"Fit to be published beside it: {', '.join(self.files)}."]
        if self.left_out:
            lines.append(f"Left out: {', '.join(map(visible, self.left_out))}.")
        return "\n".join(lines)

    @property
    def files(self) -> list[str]:
        """The names on the Hub."""
        return sorted(path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file())


# ---------------------------------------------------------------------------------------------------------- the check
@contextmanager
def checked_export(folder: Path, model: Path) -> Iterator[Export]:
    """Copies what is published of an exported folder, and checks the copy.

    Args:
        folder: what `export.py` has written.
        model: a checked copy of the model that it must have been made from.

    Raises:
        InputError: if the folder must not be published.
    """
    with one_line("--onnx runs the graphs, for which ONNX Runtime is missing", ImportError, remedy=INSTALL):
        import onnxruntime  # noqa: F401
    if read_export(folder) is None:
        raise InputError(
            f"--onnx expects a folder that python -m lstmpool.export has written, found no {EXPORT_RECORD} in "
            f"{folder}. Export the model first. The flag is written last, or as --onnx=FOLDER."
        )
    if (folder / GRAPHS).is_symlink() or not (folder / GRAPHS).is_dir():
        raise InputError(f"{folder / GRAPHS} must be a folder of graphs, and no link. {_again(folder)}")
    with scratch() as place:
        copy = place / "export"
        (copy / GRAPHS).mkdir(parents=True)
        left_out = [name for name in copy_files(folder, copy, PUBLISHED_EXPORT) if name != f"{GRAPHS}/"]
        left_out += [f"{GRAPHS}/{name}" for name in copy_files(folder / GRAPHS, copy / GRAPHS, PUBLISHED_GRAPHS)]
        record = read_export(copy) or {}
        with one_line(
            f"{folder / EXPORT_RECORD} cannot be read", KeyError, TypeError, AttributeError, remedy=_again(folder)
        ):
            problems = _check_record(folder, copy, record, model)
        problems += check_pickles(copy) + check_pickles(copy / GRAPHS) + check_card(copy, CARD_HEADER)
        if problems:
            raise UnfitFolder(problems)
        asked, answers = _answers(folder, copy, record, model)
        card = (copy / "README.md").read_text(encoding="utf-8")
        yield Export(folder.resolve().name, copy, card, asked, answers, left_out)


def _again(folder: Path) -> str:
    return f"Export the model again: python -m lstmpool.export MODEL --output {folder} --overwrite"


def _check_record(folder: Path, copy: Path, record: dict[str, Any], model: Path) -> list[str]:
    """What speaks against the export, by its record: other weights, other labels, or files that have changed since."""
    names = sorted({path.name for pattern in COMPARED for path in model.glob(pattern)})
    made_from = {Path(name).name: digest for name, digest in record["made_from"].items()}
    compared = {name: digest for name, digest in made_from.items() if any(map(Path(name).match, COMPARED))}
    if compared != digests_of(model, names):
        sources = ", ".join(sorted({str(Path(name).parent) for name in record["made_from"]}))
        found = (
            "other weights or another tokenizer" if compared else f"no folder, but {', '.join(record['made_from'])}"
        )
        source = f" ({sources})" if compared else ""
        return [f"{folder} was not made from this model: its record names {found}{source}. {_again(folder)}"]
    wrong = []
    if changed := changed_since(folder, record["digests"]):  # the configs' copies may have lost paths
        wrong.append(f"{folder}: {changed}. {_again(folder)}")
    known = {f"{GRAPHS}/{file['name']}" for file in record["files"]}
    present = {f"{GRAPHS}/{path.name}" for path in (copy / GRAPHS).iterdir()}
    if known != present or f"{GRAPHS}/{FLOAT}" not in known:
        wrong.append(f"{folder} holds other graphs than its record names. {_again(folder)}")
    config, theirs = (read_json(place / "config.json") or {} for place in (copy, model))
    labels = list(theirs["id2label"].values())
    if not labels == record["labels"] == list((config.get("id2label") or {}).values()):
        wrong.append(f"{folder} names other labels than the model. {_again(folder)}")
    if not theirs["problem_type"] == record["problem_type"] == config.get("problem_type"):
        wrong.append(f"{folder} is for another problem_type than the model. {_again(folder)}")
    return wrong


def _answers(folder: Path, copy: Path, record: dict[str, Any], model: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `clean_export` is asked, and what it answers to it. Raises UnfitFolder if it is not what torch answers."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    network = LstmPoolForSequenceClassification.from_pretrained(model).float().eval()
    network.config.exit_threshold = None  # the graphs read every text to the highest layer
    pairs = bool(record.get("reads_pairs"))
    expected = probe_logits(network, tokenizer, pairs)
    asked = {
        "batches": [_rows(batch, pairs) for batch in probe_batches(tokenizer)],
        "tokens": min(tokenizer.model_max_length, clean_load.TOKENS),
        "files": [f"{GRAPHS}/{file['name']}" for file in record["files"]],
    }
    try:
        answers = run_alone(PROGRAM, _words(str(copy), "", asked), copy.parent, from_hub=False)
        difference = largest_difference(expected, answers["logits"][f"{GRAPHS}/{FLOAT}"])
        if difference > TOLERANCE:
            raise LoadError(f"its float graph's logits differ by {difference:.2g} (of the largest) from the model's.")
        _compare(answers, answers)  # NaN is not even itself
    except LoadError as error:
        reason = f"without torch, {folder} does not answer as the model does: {error}"
        raise UnfitFolder([f"{reason} {_again(folder)}"]) from None
    return asked, answers


def _rows(batch: list[str], pairs: bool) -> list[Any]:
    """The texts of a batch, or pairs of each and another one, as `probe_logits` makes them."""
    return list(zip(batch, batch[::-1], strict=True)) if pairs else batch


def _words(source: str, revision: str, asked: dict[str, Any]) -> list[str]:
    return [source, revision, str(torch.get_num_threads()), json.dumps(asked)]


def _compare(expected: dict[str, Any], found: dict[str, Any]) -> None:
    """Raises LoadError unless both are the same answers."""
    if found["labels"] != expected["labels"]:
        raise LoadError(f"its labels are {', '.join(found['labels'])}.")
    for file, logits in expected["logits"].items():
        difference = largest_difference(logits, found["logits"][file])
        if difference > SAME:
            raise LoadError(f"the logits of {file} differ by {difference:.2g} (of the largest) from the folder's.")


# ----------------------------------------------------------------------------------------------------------- the push
@dataclass(frozen=True)
class Pair:
    """A checked export, and the repository that it goes to."""

    export: Export
    hub: ExportHub

    def open(self, model: Hub, options: Options) -> None:
        """Finds or makes the repository, before anything is pushed to that of the `model`.

        Beside a private model there is none but a private one. Raises InputError as `Hub.open` does.
        """
        self.hub.so_far = model.so_far
        self.hub.check_card(self._card(model, "0" * 40, None))
        self.hub.open(options.private or model.private, options.tag)

    def push(self, model: Hub, commit: str) -> str:
        """Pushes the export of the model's `commit`, has it answer there, and pins its card. Returns its own commit.

        Raises:
            PushError: if that fails. It names the model's commit, too, which is on the Hub by then.
        """
        self.hub.so_far = f"Nothing was pushed to {self.hub.repo_id}."
        files = {name: self.export.folder / name for name in self.export.files}
        files["README.md"].write_text(self._card(model, commit, None), encoding="utf-8")
        try:
            mine = self.hub.push(files, "Upload ONNX export")
            self._check(mine)
            self.hub.push_card(self._card(model, commit, mine), mine)
        except (InputError, PushError) as error:
            raise PushError(
                f"{model.repo_id} has the new commit {commit}, which is right, but its card is not pinned, and its "
                f"export is not right: {error}"
            ) from None
        return mine

    def _check(self, commit: str) -> None:
        """Has the pushed commit answer the probes. Raises PushError unless its answers are the folder's."""
        token = self.hub.token if self.hub.private else None
        words = _words(self.hub.repo_id, commit, self.export.asked)
        try:
            _compare(self.export.answers, run_alone(PROGRAM, words, self.export.folder.parent, True, token))
        except LoadError as error:
            raise PushError(
                f"{self.hub.repo_id} has the new commit {commit}, which does not answer as it should: {error}"
            ) from None

    def told(self, model: Hub, commit: str) -> str:
        """What the command says of a pushed commit."""
        return f"{self.hub.repo_id} at commit {commit} gives the same logits without torch:\n\n{self.snippet(commit)}"

    def link(self, card: str) -> str:
        """The model's card, with a line that leads to the export."""
        line = f"[{self.hub.repo_id}]({self.hub.address}) has ONNX graphs of this model, which run without its code."
        return card if line in card else f"{card.rstrip()}\n\n## Without torch\n\n{line}\n"

    def snippet(self, commit: str | None) -> str:
        """The line that downloads a commit, or the branch, into the folder that the card's snippets name."""
        revision = commit or self.hub.branch
        return f"hf download {self.hub.repo_id} --revision {revision} --local-dir {shlex.quote(self.export.name)}"

    def _card(self, model: Hub, of: str, commit: str | None) -> str:
        """The export's card: of which commit of the model it is, and how to download this `commit` of it."""
        card = ModelCard(self.export.card)
        card.data.base_model = model.repo_id
        parts = [
            str(card).rstrip(),
            "## On the Hub",
            f"Made from [{model.repo_id}]({model.address}) at commit `{of}`. The snippets find the folder after",
            markdown.code_block(self.snippet(commit), "bash"),
        ]
        return "\n\n".join(parts) + "\n"
