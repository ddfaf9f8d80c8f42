"""What recipes/demo/README.md promises of the demo's data."""

import re
from collections import Counter

import pytest

from lstmpool.training.data.files import read_table

from ..training_fixtures import ROOT


DEMO = ROOT / "recipes" / "demo"
ROWS = {split: read_table(DEMO / f"{split}.csv").to_list() for split in ("train", "validation", "test")}


def words(text):
    return set(re.findall(r"[a-z']+", text.lower()))


def test_eight_intents_of_forty_sentences_and_more():
    totals = Counter(row["label"] for rows in ROWS.values() for row in rows)
    assert len(totals) == 8
    assert min(totals.values()) >= 40
    for split, each in (("train", 32), ("validation", 16), ("test", 20)):
        assert Counter(row["label"] for row in ROWS[split]) == dict.fromkeys(totals, each)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_no_held_out_sentence_shares_more_than_half_its_words_with_one_of_training(split):
    by_label = {}
    for row in ROWS["train"]:
        by_label.setdefault(row["label"], []).append(words(row["text"]))
    for row in ROWS[split]:
        own = words(row["text"])
        assert max(len(own & other) for other in by_label[row["label"]]) / len(own) <= 0.5, row["text"]


def test_no_two_sentences_are_equal():
    texts = [re.sub(r"[^a-z0-9]", "", row["text"].lower()) for rows in ROWS.values() for row in rows]
    assert len(set(texts)) == len(texts)


def test_sentences_are_as_the_card_says():
    texts = [row["text"] for rows in ROWS.values() for row in rows]
    assert all(text.isascii() and 4 <= len(text.split()) <= 28 for text in texts)
    labels = sorted({row["label"] for rows in ROWS.values() for row in rows})
    card = (DEMO / "README.md").read_text()
    assert all(f"`{label}`" in card for label in labels)
