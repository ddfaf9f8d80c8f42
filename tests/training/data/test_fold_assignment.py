from collections import Counter

import numpy as np
import pytest

from lstmpool.training.data.fold_assignment import assign_folds
from lstmpool.training.data.holdout import units_of
from lstmpool.training.data.rows import Split
from lstmpool.training.errors import InputError
from lstmpool.training.tasks.multi_label import MultiLabel
from lstmpool.training.tasks.regression import Regression
from lstmpool.training.tasks.single_label import SingleLabel


def split(labels, texts=None, groups=None):
    rows = list(range(len(labels)))
    return Split("train.csv", texts or [f"text {i}" for i in rows], None, list(labels), rows, groups)


def task(kind, outputs):
    return kind([f"name {i}" for i in range(outputs)])


def test_rows_that_share_a_text_or_a_group_are_one_unit_also_by_way_of_others():
    texts = ["a", "b", "c", "a", "d", "e", "e"]
    groups = ["x", "y", "z", "z", "y", "v", "w"]
    # "a" joins the groups x and z; y joins the rows 1 and 4; "e" joins v and w
    assert units_of(split([0] * 7, texts, groups)) == [0, 1, 0, 0, 1, 2, 2]
    assert units_of(split([0] * 7, texts)) == [0, 1, 2, 0, 3, 4, 4]
    assert units_of(split([0] * 7, groups=[3, 1, 2, 3, 1, 2, 2])) == [0, 1, 2, 0, 1, 2, 2]


def test_every_class_is_spread_evenly():
    labels = [0] * 60 + [1] * 30 + [2] * 10
    folds = assign_folds(split(labels), task(SingleLabel, 3), 5, seed=0)
    assert Counter(zip(folds.tolist(), labels, strict=True)) == {
        (fold, label): count for fold in range(1, 6) for label, count in ((0, 12), (1, 6), (2, 2))
    }


def test_the_folds_depend_on_the_seed_alone():
    rows = [
        (split([0, 1] * 20), task(SingleLabel, 2)),
        (split([[i % 2, i % 3 == 0] for i in range(40)]), task(MultiLabel, 2)),
    ]
    for rows_and_task in rows:
        first = assign_folds(*rows_and_task, 4, seed=1)
        assert (first == assign_folds(*rows_and_task, 4, seed=1)).all()
        assert (first != assign_folds(*rows_and_task, 4, seed=2)).any()


def test_every_label_of_several_is_spread_evenly_and_so_are_rows_without_any():
    labels = np.zeros((100, 4))
    labels[:20, 0] = labels[10:30, 1] = labels[40:50, 2] = 1  # the last has no row; 60 rows have no label
    folds = assign_folds(split(labels.tolist()), task(MultiLabel, 4), 5, seed=0)
    for fold in range(1, 6):
        held = labels[folds == fold]
        assert held.sum(0).tolist() == pytest.approx([4, 4, 2, 0], abs=1)
        assert (held.sum(1) == 0).sum() == pytest.approx(12, abs=1)


def test_a_single_label_that_rows_have_or_not_is_spread():
    folds = assign_folds(split([[1.0]] * 10 + [[0.0]] * 30), task(MultiLabel, 1), 5, seed=0)
    assert Counter(folds[:10].tolist()) == {fold: 2 for fold in range(1, 6)}


@pytest.mark.parametrize("targets", [1, 2])
def test_numbers_are_spread_over_their_range(targets):
    numbers = np.random.default_rng(0).permuted(np.tile(np.arange(100.0), (targets, 1)), axis=1).T  # (N, C)
    labels = numbers[:, 0].tolist() if targets == 1 else numbers.tolist()
    folds = assign_folds(split(labels), task(Regression, targets), 5, seed=0)
    for fold in range(1, 6):
        held = numbers[folds == fold]
        assert len(held) == pytest.approx(20, abs=1)
        for column in held.T:
            tenths = Counter((column // 10).astype(int).tolist())
            assert all(1 <= tenths[tenth] <= 3 for tenth in range(10))


@pytest.mark.parametrize(
    ("labels", "of"),
    [
        ([i % 3 for i in range(60)], task(SingleLabel, 3)),
        ([[i % 2, i % 5 == 0] for i in range(60)], task(MultiLabel, 2)),
        ([i * 0.1 for i in range(60)], task(Regression, 1)),
        ([[i * 0.1, -i % 7] for i in range(60)], task(Regression, 2)),
    ],
)
def test_no_group_and_no_text_is_in_two_folds(labels, of):
    texts, groups = [f"text {i % 50}" for i in range(60)], [f"group {i // 3}" for i in range(60)]
    folds = assign_folds(split(labels, texts, groups), of, 4, seed=0)
    assert set(folds) == {1, 2, 3, 4}
    for names in (texts, groups):
        assert max(len({fold for fold, n in zip(folds, names, strict=True) if n == name}) for name in names) == 1


def test_as_many_folds_as_rows():
    assert sorted(assign_folds(split([0.5, 1.5, 2.5]), task(Regression, 1), 3, seed=0)) == [1, 2, 3]
    assert sorted(assign_folds(split([[0.5, 1], [1.5, 2], [2, 3]]), task(Regression, 2), 3, seed=0)) == [1, 2, 3]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (split([0, 1, 0]), "--cv_folds 4 needs that many different texts in train.csv, found 3"),
        (split([0, 1] * 9, groups=["a", "b", "c"] * 6), "that many different groups .* found 3"),
        (split([0, 1] * 3, ["same"] * 6, list("abcdef")), r"found 1 \(of 6 groups; groups that share a text"),
        (split([0] * 9 + [1] * 3), "that many different texts of each class, found 3 of 'name 1'"),
        (split([0] * 9 + [1] * 8, groups=[*range(9), *([9, 10] * 4)]), "different groups of each class, found 2"),
    ],
)
def test_too_few_rows_are_refused(rows, message):
    with pytest.raises(InputError, match=message):
        assign_folds(rows, task(SingleLabel, 2), 4, seed=0)
