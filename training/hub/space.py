"""The page to try a model on: the files of `recipes/space`, checked and pushed as a Space that loads one commit.

Before the push, the page reads probe texts with the very files that will be published, and must answer as the model
does. Afterwards the pushed page does so again, with the pushed model.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import SpaceCard

from lstmpool.fields_lstmpool import APART
from lstmpool.training.errors import InputError, one_line
from lstmpool.training.hub.clean_load import PROBES, LoadError, largest_difference, run_alone
from lstmpool.training.hub.folder import UnfitFolder, read_json
from lstmpool.training.hub.options import Options
from lstmpool.training.hub.repository import Hub, PushError
from lstmpool.training.hub.scratch import scratch


RECIPE = Path(__file__).parents[2] / "recipes" / "space"
PROGRAM = Path(__file__).with_name("clean_page.py")
ENDING = "-demo"  # of its name, unless another is given
NEEDED = "requirements.txt"  # with the versions that the checks ran with, less what names a build, such as +cpu
RUN_WITH = ("torch", "transformers")
FILES = ("README.md", "app.py", NEEDED)
RECORD = "space.json"  # which model it loads, and which commit
SAME = 1e-5  # of the largest logit, of one model in two processes
PROBED = PROBES[:3]  # those that no tokenizer cuts for the check's sake


class SpaceHub(Hub):
    """A repository of a page."""

    kind = "the page of an lstmpool model"
    mark = RECORD
    published = {*FILES, RECORD}
    repo_type = "space"
    card_type = SpaceCard
    space_sdk = "gradio"

    @staticmethod
    def is_of_kind(marked: dict[str, Any]) -> bool:
        """Whether a record with this content is that of a page."""
        return {"model", "revision"} <= marked.keys()


@dataclass(frozen=True)
class Page:
    """The page of a checked model, and the Space that it goes to.

    Args:
        folder: where its files are written.
        asked: the texts that it reads, for each of which it gives the `logits` of the model, and its `labels`.
        hub: None if nothing is pushed.
    """

    folder: Path
    asked: list[list[str]]
    logits: list[list[float]]
    labels: list[str]
    hub: SpaceHub | None

    def open(self, model: Hub, options: Options) -> None:
        """Finds or makes the Space, before anything is pushed to the repository of the `model`.

        Beside a private model there is none but a private one. Raises InputError as `Hub.open` does.
        """
        self.hub.so_far = model.so_far
        self.hub.check_card(_card(model, "0" * 40))
        self.hub.open(options.private or model.private, options.tag)

    def push(self, model: Hub, commit: str) -> str:
        """Pushes the page of the model's `commit`, and has it answer there. Returns its own commit.

        Raises:
            PushError: if that fails. It names the model's commit, too, which is on the Hub by then.
        """
        self.hub.so_far = f"Nothing was pushed to {self.hub.repo_id}."
        self.write(model.repo_id, commit)
        (self.folder / "README.md").write_text(_card(model, commit), encoding="utf-8")
        try:
            mine = self.hub.push({name: self.folder / name for name in self.hub.published}, "Upload page")
            token = self.hub.token if self.hub.private else None
            try:
                self.check(self.hub.repo_id, mine, token)
            except LoadError as error:
                raise PushError(
                    f"{self.hub.repo_id} has the new commit {mine}, which does not answer as it should: {error}"
                ) from None
        except (InputError, PushError) as error:
            raise PushError(
                f"{model.repo_id} has the new commit {commit}, which is right, but its card is not pinned, and its "
                f"page is not right: {error}"
            ) from None
        return mine

    def told(self, model: Hub, commit: str) -> str:
        """What the command says of a pushed commit."""
        line = f"{self.hub.repo_id} at commit {commit} is its page, which gives the same logits: {self.hub.address}"
        if model.private:
            line += "\nThe model is private: give the Space a secret HF_TOKEN, a token that may read that model alone."
        return line

    def link(self, card: str) -> str:
        """The model's card, with a line that leads to the page."""
        line = f"[{self.hub.repo_id}]({self.hub.address}) is a page to try this model on."
        return card if line in card else f"{card.rstrip()}\n\n## Try it\n\n{line}\n"

    def write(self, model: str, revision: str | None) -> None:
        """Writes the files of the page that loads this model: a folder, or a commit of a repository."""
        record = {"model": model, "revision": revision}
        with one_line("the files of the page cannot be copied", remedy="Install lstmpool again."):
            for name in FILES:
                shutil.copyfile(RECIPE / name, self.folder / name)
            needed = [f"{name}=={version(name).split('+')[0]}" for name in RUN_WITH]
            (self.folder / NEEDED).write_text("\n".join(needed) + "\n", encoding="utf-8")
            (self.folder / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")

    def check(self, source: str, revision: str = "", token: str | None = None) -> None:
        """Has the page in a folder, or a commit of a Space, read the probes. Raises LoadError for other answers."""
        words = [source, revision, str(torch.get_num_threads()), json.dumps(self.asked)]
        found = run_alone(PROGRAM, words, self.folder.parent, bool(revision), token)
        if found["labels"] != self.labels:
            raise LoadError(f"its labels are {', '.join(found['labels'])}.")
        difference = largest_difference(self.logits, found["logits"])
        if difference > SAME:
            raise LoadError(f"its logits differ by {difference:.2g} (of the largest) from the model's.")


@contextmanager
def checked_page(model: Path, logits: list[list[float]], hub: SpaceHub | None) -> Iterator[Page]:
    """Makes the page of a model, and has it answer.

    Args:
        model: a checked copy of it.
        logits: those of `probe_logits`.
        hub: where it is to go.

    Raises:
        InputError: if the page does not answer as the model does.
    """
    config = read_json(model / "config.json") or {}
    is_apart = config.get("pair_encoding") == APART
    asked = [[text, text] if is_apart else [text] for text in PROBED]
    with scratch() as place:
        folder = place / "page"
        folder.mkdir()
        page = Page(folder, asked, logits[: len(asked)], list(config["id2label"].values()), hub)
        page.write(str(model), None)
        try:
            page.check(str(folder))
        except LoadError as error:
            raise UnfitFolder([f"the page of --space does not answer as the model does: {error}"]) from None
        yield page


def _card(model: Hub, commit: str) -> str:
    """The Space's card: what runs it, and which commit of which model it loads."""
    card = SpaceCard((RECIPE / "README.md").read_text(encoding="utf-8"))
    card.data.title = f"Try {model.repo_id.split('/')[1]}"
    card.data.models = [model.repo_id]
    return f"{str(card).rstrip()}\n\nIt loads [{model.repo_id}]({model.address}) at commit `{commit}`.\n"
