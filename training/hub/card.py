"""Puts lines that load a published commit into its model card.

The lines are made from the model, like those that the command prints. A card may hold anything, such as a label that
looks like code. So a block in it counts as such lines only if it is exactly what a release of this project writes.

A commit cannot name itself, so the card in a repository names the commit before, which differs in the card alone.
"""

import re
from dataclasses import dataclass, replace

from lstmpool.training.output import markdown
from lstmpool.training.output.terminal import loading_lines


BLOCK = re.compile(r"^```python\n(.*?)\n```$", re.MULTILINE | re.DOTALL)
REVISION = re.compile(r'revision="(main|[0-9a-f]{40})"')
TITLE = re.compile(r"^# +(.*?) *$", re.MULTILINE)


@dataclass(frozen=True)
class Lines:
    """What the loading lines of a model depend on: see `loading_lines`."""

    many: bool
    max_length: int | None = None
    pair: bool = False

    def text(self, name: str, revision: str) -> str:
        """The lines that load a revision of a repository."""
        return "\n".join(loading_lines(name, self.pair, self.many, revision, max_length=self.max_length))


def pin_card(card: str, repo_id: str, commit: str, folder: str, lines: Lines) -> tuple[str, str]:
    """The card with lines that load the commit, and these lines.

    They take the place of the card's own loading lines, which name the repository, the `folder` or the card's title.
    If there are none, they follow at the end.
    """
    names = {repo_id, folder, *TITLE.findall(card)[:1]}
    for found in BLOCK.finditer(card):
        for pair in (False, True):
            own = replace(lines, pair=pair)
            if _is_ours(found[1], own, names):
                pinned = own.text(repo_id, commit)
                return f"{card[: found.start(1)]}{pinned}{card[found.end(1) :]}", pinned
    pinned = lines.text(repo_id, commit)
    block = markdown.code_block(pinned, "python")
    return f"{card.rstrip()}\n\n## Load this version\n\n{block}\n", pinned


def _is_ours(block: str, lines: Lines, names: set[str]) -> bool:
    """Whether a block of code is what this release, or one before it, writes for a model of one of these names."""
    revision = REVISION.search(block)
    if revision is None:
        return False
    shorter = replace(lines, max_length=None)
    for name in names:
        written = {lines.text(name, revision[1]), shorter.text(name, revision[1])}
        written |= {text.replace(", truncation=True", "") for text in written}  # of earlier releases
        named = f"model={markdown.python_text(name)}"
        written.add(  # the same, at the end of a card without lines of its own
            "from transformers import pipeline\n"
            f'classifier = pipeline("text-classification", {named}, {revision[0]}, trust_remote_code=True)\n'
            'print(classifier("Your text here."))'
        )
        if block in written:
            return True
    return False
