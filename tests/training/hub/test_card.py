"""The header of a model card that this project wrote, judged by the Hub's validator."""

from pathlib import Path

import pytest

from ..output.test_model_card import ON_HUB, RESULTS, SETS, card


pytestmark = pytest.mark.hub

VALIDATE = """
from huggingface_hub import ModelCard
for path in PATHS:
    card = ModelCard.load(path)
    try:
        card.validate()
        print("valid", len(card.data.eval_results or []))
    except ValueError as error:
        print("refused", error)
"""


def test_the_hub_takes_the_header(clients, tmp_path):
    texts = [
        card(tmp_path, data=SETS, rows=ON_HUB, results=RESULTS)[0],
        card(tmp_path, on_hub=False)[0],
    ]
    paths = [str(tmp_path / f"{number}.md") for number in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        Path(path).write_text(text)
    assert clients.python(VALIDATE.replace("PATHS", repr(paths))).stdout.splitlines() == ["valid 2", "valid 0"]
