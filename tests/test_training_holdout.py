from collections import Counter

import numpy as np
import pytest

from lstmpool.training.data import Split
from lstmpool.training.errors import InputError
from lstmpool.training.holdout import hold_out
from lstmpool.training.labels import MULTI, REGRESSION, SINGLE


def split(labels, texts=None):
    texts = texts or [f"text {i}" for i in range(len(labels))]
    return Split("train.csv", texts, None, list(labels), list(range(len(labels))))


def test_every_class_gives_its_share():
    labels = [0] * 700 + [1] * 200 + [2] * 100
    train, held = hold_out(split(labels), SINGLE, 0.1, seed=0)
    assert len(train) + len(held) == 1000 and not set(train.ids) & set(held.ids)
    counts = Counter(held.labels)
    assert [counts[i] for i in range(3)] == pytest.approx([70, 20, 10], abs=1)
    assert all(labels[i] == label for i, label in zip(held.ids, held.labels, strict=True))
    assert held.source == "10% of train.csv" and train.source == "train.csv"


def test_the_rows_depend_on_the_seed_alone():
    labels = [0, 1] * 100
    assert hold_out(split(labels), SINGLE, 0.2, seed=1) == hold_out(split(labels), SINGLE, 0.2, seed=1)
    assert hold_out(split(labels), SINGLE, 0.2, seed=1)[1].ids != hold_out(split(labels), SINGLE, 0.2, seed=2)[1].ids


def test_no_text_is_on_both_sides():
    texts = [f"text {i % 40}" for i in range(200)]
    train, held = hold_out(split([i % 2 for i in range(200)], texts), SINGLE, 0.25, seed=0)
    assert held.texts and not set(train.texts) & set(held.texts)


def test_a_class_of_one_text_stays_in_training():
    for seed in range(20):
        _, held = hold_out(split([0] * 20 + [1]), SINGLE, 0.5, seed)
        assert 1 not in held.labels


def test_a_rare_label_is_spread_by_itself():
    labels = [[1.0, float(i % 10 == 0)] for i in range(200)]
    held = np.array(hold_out(split(labels), MULTI, 0.1, seed=0)[1].labels)
    assert held[:, 1].sum() == pytest.approx(2, abs=1) and len(held) == pytest.approx(20, abs=1)


@pytest.mark.parametrize("targets", [1, 2])
def test_numbers_are_spread_over_their_range(targets):
    values = np.random.default_rng(0).normal(size=(500, targets)) ** 3
    train, held = hold_out(split((values if targets > 1 else values[:, 0]).tolist()), REGRESSION, 0.1, seed=0)
    level = (values / values.std(0)).mean(1)
    bounds = np.quantile(level, np.linspace(0, 1, 11))
    assert np.histogram(level[held.ids], bounds)[0] == pytest.approx(np.full(10, 5), abs=1)


@pytest.mark.parametrize("share", [0.01, 1.5])
def test_too_few_rows(share):
    with pytest.raises(InputError, match="--validation_size"):
        hold_out(split([0, 1] * 5), SINGLE, share, seed=0)
