"""Runs of the command on rows whose labels follow from their texts."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from lstmpool.modeling_lstmpool import LstmPoolForSequenceClassification
from lstmpool.train_trainer import main

from ..training_fixtures import save_backbone, sentences, write_csv


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A backbone, and rows whose labels follow from their texts, so that there is something to learn."""
    folder = tmp_path_factory.mktemp("work")
    save_backbone(folder / "backbone")
    for split, n, start in (("train", 96, 0), ("validation", 32, 100), ("test", 24, 200)):
        texts = [" ".join([text] * (1 + i % 4)) for i, text in enumerate(sentences(n + start)[start:])]
        animals = ["cat" in text or "dog" in text or "bird" in text for text in texts]
        columns = {
            "text": texts,
            "label": ["animal" if a else "other" for a in animals],
            "labels": [" ".join(name for name in ("one", "blue", "sun") if name in text) for text in texts],
            "price": [f"{20_000 + 7_000 * a + 1_000 * (i % 4) + 0.5}" for i, a in enumerate(animals)],
            "weight": [f"{0.002 * a + 0.001 * (i % 4) + 0.0001}" for i, a in enumerate(animals)],
            "cents": [f"{64 * (20_000 + 7_000 * a + 1_000 * (i % 4) + 0.5)}" for i, a in enumerate(animals)],
            "key": [f"{split}-{i}" for i in range(n)],
        }
        write_csv(folder / f"{split}.csv", columns)
    return folder


FILES = ["--train_file=train.csv", "--validation_file=validation.csv", "--test_file=test.csv", "--id_column_name=key"]


def run(work, monkeypatch, output, *words, backbone=True, files=FILES):
    monkeypatch.chdir(work)
    start = ["--backbone=backbone", "--lstm_hidden_size=4"] if backbone else []
    settings = ["--use_cpu", "--disable_tqdm=True", "--report_to=none", "--num_train_epochs=2", "--learning_rate=1e-3"]
    assert main([*start, *settings, *files, f"--output_dir={output}", *words]) == 0
    return work / output, json.loads((work / output / "metrics.json").read_text())


def loaded_logits(folder, texts):
    """(N, C), text by text, as anybody gets them who loads the folder."""
    model = LstmPoolForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        return np.concatenate([model(**tokenizer(text, return_tensors="pt")).logits.numpy() for text in texts])
