"""A small model with rows to predict, and the command on them."""

import os
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from lstmpool.modeling_lstmpool import LstmPoolForSequenceClassification
from lstmpool.predict import main
from lstmpool.training.predicting import rows as rows_module
from lstmpool.training.predicting.model import Predictor

from ...training_fixtures import save_backbone, sentences, write_csv


from_backbone = LstmPoolForSequenceClassification.from_backbone
TEXTS = [" ".join([text] * (1 + i % 5)) for i, text in enumerate(sentences(23))]  # of several lengths
NAMES = ["late", "=lost", "other"]


def save_model(backbone: Path, folder: Path, seed: int = 0, **config) -> Path:
    torch.manual_seed(seed)
    config = {"id2label": dict(enumerate(NAMES)), "lstm_hidden_size": 4} | config
    model = from_backbone(str(backbone), **config)
    torch.nn.init.normal_(model.classifier.weight, std=30.0)  # logits that differ from text to text
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(backbone).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    save_backbone(folder / "backbone")
    save_model(folder / "backbone", folder / "model")
    write_csv(folder / "new.csv", {"text": TEXTS, "id": [f"row {i}" for i in range(len(TEXTS))]})
    return folder


@pytest.fixture
def work(made, tmp_path, monkeypatch):
    """A folder of its own, with chunks of 4 rows: 23 rows are 6 chunks."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(rows_module, "ROWS", 4)
    for name in ("model", "new.csv", "backbone"):
        os.symlink(made / name, tmp_path / name)
    return tmp_path


def predict(*words: str) -> int:
    return main(["model", *words, "--use_cpu", "--disable_tqdm"])


def whole(name: str) -> bytes:
    """What a run that nothing stops writes."""
    assert predict("new.csv", "--output", name) == 0
    content = Path(name).read_bytes()
    Path(name).unlink()
    return content


@pytest.fixture
def computed(monkeypatch):
    """The numbers of the chunks that the model has run on. A signal comes in the third one, if `stop` is set."""
    seen, original = [], Predictor.logits

    def logits(self, chunk, *sizes):
        seen.append(chunk.first // 4)
        if len(seen) == 3 and seen.stop:
            os.kill(os.getpid(), seen.stop)
        return original(self, chunk, *sizes)

    class Seen(list):
        stop = 0

    seen = Seen()
    monkeypatch.setattr(Predictor, "logits", logits)
    return seen
