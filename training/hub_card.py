"""The loading snippet of a published model card, pinned to the commit that it loads.

A commit cannot name itself, so the card in a repository names the one before it, which differs in the card alone.
"""

import re


MOVING = re.compile(r'revision="(?:main|[0-9a-f]{40})"')
NAME = re.compile(r'(model=|from_pretrained\()"[^"]*"')


def pin_card(card: str, repo_id: str, commit: str) -> str:
    """Puts the repository and the commit into each line that names a revision; adds a snippet if there is none."""
    lines = card.splitlines(keepends=True)
    if not any(MOVING.search(line) for line in lines):
        section = f"## Load this version\n\n```python\n{_snippet(repo_id, commit)}\n```\n"
        return f"{card.rstrip()}\n\n{section}"
    for i, line in enumerate(lines):
        if MOVING.search(line):
            lines[i] = NAME.sub(rf'\g<1>"{repo_id}"', MOVING.sub(f'revision="{commit}"', line))
    return "".join(lines)


def snippet_of(card: str, commit: str) -> str:
    """The first block of code in a pinned card that loads the commit."""
    blocks = re.findall(r"```python\n(.*?)\n```", card, re.DOTALL)
    return next((block for block in blocks if commit in block), "")


def _snippet(repo_id: str, commit: str) -> str:
    named = f'model="{repo_id}", revision="{commit}"'
    return (
        "from transformers import pipeline\n"
        f'classifier = pipeline("text-classification", {named}, trust_remote_code=True)\n'
        'print(classifier("Your text here."))'
    )
