"""Pins the loading snippet of a published model card to the commit that it loads.

A commit cannot name itself, so the card in a repository names the commit before, which differs in the card alone.
"""

import re


MOVING = re.compile(r'revision="(?:main|[0-9a-f]{40})"')
NAME = re.compile(r'(model=|from_pretrained\()"([^"]*)"')
TITLE = re.compile(r"^# +(.*?) *$", re.MULTILINE)


def pin_card(card: str, repo_id: str, commit: str, folder: str) -> str:
    """Puts the repository and the commit into each line that loads this model by a revision.

    Such a line names the repository, the `folder` or the card's title. A line with another name loads another model,
    such as the backbone, and stays. If no line loads this model, a snippet is added.
    """
    own = {repo_id, folder, *TITLE.findall(card)[:1]}
    lines = card.splitlines(keepends=True)
    pinned = False
    for i, line in enumerate(lines):
        names = {name for _, name in NAME.findall(line)}
        if MOVING.search(line) and names and names <= own:
            lines[i] = NAME.sub(rf'\g<1>"{repo_id}"', MOVING.sub(f'revision="{commit}"', line))
            pinned = True
    if pinned:
        return "".join(lines)
    return f"{card.rstrip()}\n\n## Load this version\n\n```python\n{_snippet(repo_id, commit)}\n```\n"


def snippet_of(card: str, repo_id: str, commit: str) -> str:
    """The first block of code in a pinned card that loads the commit; if there is none, lines that load it."""
    blocks = re.findall(r"```python\n(.*?)\n```", card, re.DOTALL)
    return next((block for block in blocks if commit in block), _snippet(repo_id, commit))


def _snippet(repo_id: str, commit: str) -> str:
    named = f'model="{repo_id}", revision="{commit}"'
    return (
        "from transformers import pipeline\n"
        f'classifier = pipeline("text-classification", {named}, trust_remote_code=True)\n'
        'print(classifier("Your text here."))'
    )
