"""Which rows are held out, and what is said of the rows."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from datasets import Dataset

from lstmpool.training.data.holdout import assign_folds, draw_by_class, hold_out, units_of
from lstmpool.training.data.rows import Split
from lstmpool.training.data.summary import balance_words, data_lines, describe_data, remarks
from lstmpool.training.errors import InputError
from lstmpool.training.tasks.multi_label import MultiLabel
from lstmpool.training.tasks.regression import Regression
from lstmpool.training.tasks.single_label import SingleLabel

from ...training_fixtures import task_of


def split(labels, texts=None):
    texts = texts or [f"text {i}" for i in range(len(labels))]
    return Split("train.csv", texts, None, list(labels), list(range(len(labels))))


def test_every_class_gives_its_share():
    labels = [0] * 700 + [1] * 200 + [2] * 100
    train, held = hold_out(split(labels), task_of(SingleLabel), 0.1, seed=0)
    assert len(train) + len(held) == 1000 and not set(train.ids) & set(held.ids)
    counts = Counter(held.labels)
    assert [counts[i] for i in range(3)] == pytest.approx([70, 20, 10], abs=1)
    assert all(labels[i] == label for i, label in zip(held.ids, held.labels, strict=True))
    assert held.source == "10% of train.csv" and train.source == "train.csv"


def test_the_rows_depend_on_the_seed_alone():
    labels = [0, 1] * 100
    assert hold_out(split(labels), task_of(SingleLabel), 0.2, seed=1) == hold_out(
        split(labels), task_of(SingleLabel), 0.2, seed=1
    )
    assert (
        hold_out(split(labels), task_of(SingleLabel), 0.2, seed=1)[1].ids
        != hold_out(split(labels), task_of(SingleLabel), 0.2, seed=2)[1].ids
    )


def test_no_text_is_on_both_sides():
    texts = [f"text {i % 40}" for i in range(200)]
    train, held = hold_out(split([i % 2 for i in range(200)], texts), task_of(SingleLabel), 0.25, seed=0)
    assert held.texts and not set(train.texts) & set(held.texts)


def test_a_class_of_one_text_stays_in_training():
    for before in range(4):  # wherever in the order of the strata it lies
        _, held = hold_out(split([0] * before + [1] + [2] * 20), task_of(SingleLabel), 0.5, seed=0)
        assert 1 not in held.labels


def test_every_class_of_two_texts_is_in_validation_where_there_is_room():
    for seed in range(20):
        labels = [0] * 90 + [1] * 2 + [2] * 2 + [3] * 1 + [4] * 5
        train, held = hold_out(split(labels), task_of(SingleLabel, 5), 0.1, seed)
        assert len(held) == 10 and Counter(held.labels) == {0: 7, 1: 1, 2: 1, 4: 1}
        assert set(train.labels) == {0, 1, 2, 3, 4}


def test_more_classes_than_validation_rows_change_nothing():
    for seed in range(5):
        train, held = hold_out(split([i // 2 for i in range(40)]), task_of(SingleLabel, 20), 0.1, seed)
        assert len(held) == 4 and len(set(held.labels)) == 4 and set(train.labels) == set(range(20))


def test_thousands_of_classes_are_held_out_in_seconds():
    labels = [0] * 20_000 + [1 + i // 2 for i in range(8_000)]
    _, held = hold_out(split(labels), task_of(SingleLabel), 0.2, seed=0)
    assert len(held) == 5600 and len(set(held.labels)) == 4001


def test_a_rare_label_is_spread_by_itself():
    labels = [[1.0, float(i % 10 == 0)] for i in range(200)]
    held = np.array(hold_out(split(labels), task_of(MultiLabel, outputs=2), 0.1, seed=0)[1].labels)
    assert held[:, 1].sum() == pytest.approx(2, abs=1) and len(held) == pytest.approx(20, abs=1)


def test_rows_are_spread_by_their_rarest_label_or_by_having_none():
    kinds = [[1.0, 1.0, 0.0], [1.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    labels = [kinds[min(i % 8, 3)] for i in range(160)]  # 20, 20, 20 and 100 rows
    for seed in range(10):
        held = Counter(map(tuple, hold_out(split(labels), task_of(MultiLabel), 0.2, seed)[1].labels))
        assert [held[tuple(kind)] for kind in kinds] == pytest.approx([4, 4, 4, 20], abs=1)


def test_pairs_are_the_same_only_with_both_texts():
    rows = Split("train.csv", ["one question"] * 20, [f"answer {i}" for i in range(20)], [0, 1] * 10, list(range(20)))
    train, held = hold_out(rows, task_of(SingleLabel), 0.2, seed=0)
    assert len(held) == 4 and not set(train.pairs) & set(held.pairs)


@pytest.mark.parametrize("targets", [1, 2])
def test_numbers_are_spread_over_their_range(targets):
    values = np.random.default_rng(0).normal(size=(500, targets)) ** 3 * [1, 100][:targets]
    labels = (values if targets > 1 else values[:, 0]).tolist()
    _, held = hold_out(split(labels), task_of(Regression, outputs=targets), 0.1, seed=0)
    level = (values / values.std(0)).mean(1)
    bounds = np.quantile(level, np.linspace(0, 1, 11))
    assert np.histogram(level[held.ids], bounds)[0] == pytest.approx(np.full(10, 5), abs=1)


def test_a_limit_leaves_the_other_rows_to_training():
    train, held = hold_out(split([0, 1] * 500), task_of(SingleLabel), 0.1, seed=0, limit=20)
    assert (len(train), len(held)) == (980, 20)
    assert len(hold_out(split([0, 1] * 500), task_of(SingleLabel), 0.1, seed=0, limit=1000)[1]) == 100


@pytest.mark.parametrize("share", [0.01, 0.99, 1.5])
def test_too_few_rows(share):
    with pytest.raises(InputError, match="--validation_size"):
        hold_out(split([0, 1] * 5), task_of(SingleLabel), share, seed=0)


def test_no_group_is_on_both_sides():
    groups = [f"group {i % 40}" for i in range(200)]
    rows = replace(split([i % 2 for i in range(200)]), groups=groups)
    train, held = hold_out(rows, task_of(SingleLabel), 0.25, seed=0)
    assert held.groups and not set(train.groups) & set(held.groups)
    assert held.groups == [groups[i] for i in held.ids]


@pytest.mark.parametrize(
    ("rows_of", "most", "drawn_of"),
    [
        ([600, 300, 100], 100, [60, 30, 10]),
        ([900, 96, 4], 100, [87, 9, 4]),  # the 4 all stay; 96 places for 996 rows, of which 86.7 and 9.3
        ([1000, 20, 20], 50, [40, 5, 5]),  # in proportion, each of 20 would have 1
        ([10, 10, 10], 9, [5, 5, 5]),  # each keeps 5, though these are more than 9
        ([3, 2], 5, [3, 2]),
        ([3, 0, 4], 5, [3, 0, 4]),  # a class without rows
    ],
)
def test_rows_are_drawn_by_class(rows_of, most, drawn_of):
    codes = np.random.default_rng(0).permutation(np.repeat(np.arange(len(rows_of)), rows_of))
    rows = draw_by_class(codes, most, seed=1)
    assert rows.tolist() == sorted(set(rows.tolist()))
    assert np.bincount(codes[rows], minlength=len(rows_of)).tolist() == drawn_of
    assert rows.tolist() == draw_by_class(codes, most, seed=1).tolist()
    if sum(drawn_of) < len(codes):
        assert rows.tolist() != draw_by_class(codes, most, seed=2).tolist()


@pytest.mark.parametrize("labels", [np.arange(300) / 7, np.eye(300, 3, dtype=np.uint8)])
def test_rows_without_a_class_are_drawn_at_random(labels):
    rows = draw_by_class(labels, 20, seed=0)
    assert len(set(rows.tolist())) == 20 and (np.diff(rows) > 0).all() and rows.max() < 300
    assert draw_by_class(labels, 300, seed=0).tolist() == list(range(300))


# --------------------------------------------------------------------------------------------------------------- folds
def rows_with(labels, texts=None, groups=None):
    rows = list(range(len(labels)))
    return Split("train.csv", texts or [f"text {i}" for i in rows], None, list(labels), rows, groups)


def task(kind, outputs):
    return kind([f"name {i}" for i in range(outputs)])


def test_rows_that_share_a_text_or_a_group_are_one_unit_also_by_way_of_others():
    texts = ["a", "b", "c", "a", "d", "e", "e"]
    groups = ["x", "y", "z", "z", "y", "v", "w"]
    # "a" joins the groups x and z; y joins the rows 1 and 4; "e" joins v and w
    assert units_of(rows_with([0] * 7, texts, groups)) == [0, 1, 0, 0, 1, 2, 2]
    assert units_of(rows_with([0] * 7, texts)) == [0, 1, 2, 0, 3, 4, 4]
    assert units_of(rows_with([0] * 7, groups=[3, 1, 2, 3, 1, 2, 2])) == [0, 1, 2, 0, 1, 2, 2]


def test_every_class_is_spread_evenly():
    labels = [0] * 60 + [1] * 30 + [2] * 10
    folds = assign_folds(rows_with(labels), task(SingleLabel, 3), 5, seed=0)
    assert Counter(zip(folds.tolist(), labels, strict=True)) == {
        (fold, label): count for fold in range(1, 6) for label, count in ((0, 12), (1, 6), (2, 2))
    }


def test_the_folds_depend_on_the_seed_alone():
    rows = [
        (rows_with([0, 1] * 20), task(SingleLabel, 2)),
        (rows_with([[i % 2, i % 3 == 0] for i in range(40)]), task(MultiLabel, 2)),
    ]
    for rows_and_task in rows:
        first = assign_folds(*rows_and_task, 4, seed=1)
        assert (first == assign_folds(*rows_and_task, 4, seed=1)).all()
        assert (first != assign_folds(*rows_and_task, 4, seed=2)).any()


def test_every_label_of_several_is_spread_evenly_and_so_are_rows_without_any():
    labels = np.zeros((100, 4))
    labels[:20, 0] = labels[10:30, 1] = labels[40:50, 2] = 1  # the last has no row; 60 rows have no label
    folds = assign_folds(rows_with(labels.tolist()), task(MultiLabel, 4), 5, seed=0)
    for fold in range(1, 6):
        held = labels[folds == fold]
        assert held.sum(0).tolist() == pytest.approx([4, 4, 2, 0], abs=1)
        assert (held.sum(1) == 0).sum() == pytest.approx(12, abs=1)


def test_a_single_label_that_rows_have_or_not_is_spread():
    folds = assign_folds(rows_with([[1.0]] * 10 + [[0.0]] * 30), task(MultiLabel, 1), 5, seed=0)
    assert Counter(folds[:10].tolist()) == {fold: 2 for fold in range(1, 6)}


@pytest.mark.parametrize("targets", [1, 2])
def test_the_folds_of_numbers_spread_over_their_range(targets):
    numbers = np.random.default_rng(0).permuted(np.tile(np.arange(100.0), (targets, 1)), axis=1).T  # (N, C)
    labels = numbers[:, 0].tolist() if targets == 1 else numbers.tolist()
    folds = assign_folds(rows_with(labels), task(Regression, targets), 5, seed=0)
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
    folds = assign_folds(rows_with(labels, texts, groups), of, 4, seed=0)
    assert set(folds) == {1, 2, 3, 4}
    for names in (texts, groups):
        assert max(len({fold for fold, n in zip(folds, names, strict=True) if n == name}) for name in names) == 1


def test_as_many_folds_as_rows():
    assert sorted(assign_folds(rows_with([0.5, 1.5, 2.5]), task(Regression, 1), 3, seed=0)) == [1, 2, 3]
    assert sorted(assign_folds(rows_with([[0.5, 1], [1.5, 2], [2, 3]]), task(Regression, 2), 3, seed=0)) == [1, 2, 3]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (rows_with([0, 1, 0]), "--cv_folds 4 needs that many different texts in train.csv, found 3"),
        (rows_with([0, 1] * 9, groups=["a", "b", "c"] * 6), "that many different groups .* found 3"),
        (rows_with([0, 1] * 3, ["same"] * 6, list("abcdef")), r"found 1 \(of 6 groups; groups that share a text"),
        (rows_with([0] * 9 + [1] * 3), "that many different texts of each class, found 3 of 'name 1'"),
        (rows_with([0] * 9 + [1] * 8, groups=[*range(9), *([9, 10] * 4)]), "different groups of each class, found 2"),
    ],
)
def test_too_few_rows_are_refused(rows, message):
    with pytest.raises(InputError, match=message):
        assign_folds(rows, task(SingleLabel, 2), 4, seed=0)


def rows(*lengths):
    return Dataset.from_dict({"attention_mask": [[1] * n + [0] for n in lengths]})


def rows_of_file(texts, labels, pairs=None):
    return Split("file.csv", texts, pairs, labels, list(range(len(texts))))


def test_what_is_said_of_the_rows():
    splits = {"train": rows_of_file(["a", "b", "c"], [0, 0, 1]), "test": rows_of_file(["b", "d"], None)}
    labels = SingleLabel(["no", "yes"])
    numbers = describe_data(splits, {"train": rows(2, 4, 8), "test": rows(3, 3)}, {"train": 0.25, "test": 0.0}, labels)
    assert numbers["train"] == {
        "source": "file.csv",
        "rows": 3,
        "texts_a_row": 1,
        "labels": {"no": 2, "yes": 1},
        "tokens": {"median": 4.0, "longest": 8},
        "truncated": 0.25,
    }
    assert numbers["test"]["labels"] is None and numbers["test"]["also_in_train"] == 1
    train, test = data_lines(numbers, 8)
    assert train == "  train: 3 rows, 4 tokens a text (longest 8, 25.0% cut at 8). no 2, yes 1."
    assert test == "  test: 2 rows, 3 tokens a text (longest 3); 1 also in train. No labels."
    again = {"train": splits["train"], "validation": splits["train"]}
    numbers = describe_data(again, dict.fromkeys(again, rows(1)), dict.fromkeys(again, 0.0), labels)
    assert numbers["validation"]["also_in_train"] == 3 and "also_in_train" not in numbers["train"]


def test_a_pair_is_the_same_only_with_both_its_texts():
    splits = {
        "train": rows_of_file(["a", "b"], [0, 1], ["x", "y"]),
        "test": rows_of_file(["a", "b"], [0, 1], ["y", "y"]),
    }
    of = dict.fromkeys(splits, rows(1, 1))
    assert describe_data(splits, of, dict.fromkeys(splits, 0.0), SingleLabel(["n", "y"]))["test"]["also_in_train"] == 1


def test_numbers_and_several_labels():
    of, cut = {"train": rows(1, 1)}, {"train": 0.0}
    numbers = describe_data({"train": rows_of_file(["a", "b"], [1.0, 3.0])}, of, cut, Regression(["stars"]))
    assert numbers["train"]["labels"] == {"stars": {"mean": 2.0, "std": 1.0}}
    assert "stars 2 ± 1" in data_lines(numbers, 8)[0]
    many = MultiLabel([f"l{i}" for i in range(20)])
    labels = [[1.0] + [0.0] * 19, [1.0] * 20]
    numbers = describe_data({"train": rows_of_file(["a", "b"], labels)}, of, cut, many)
    assert numbers["train"]["labels"] == {"l0": 2} | {f"l{i}": 1 for i in range(1, 20)}
    assert data_lines(numbers, 8)[0].endswith("l11 1 and 8 more.")
    assert balance_words({f"l{i}": 1 for i in range(12)}).endswith("l11 1.")


# ------------------------------------------------------------------------------------------------------------- remarks
def remarks_on(train, validation=(0, 1, 2), weighted=False, task=None, named=str):
    splits = {"train": rows_of_file([""] * len(train), list(train))}
    if validation is not None:
        splits["validation"] = rows_of_file([""] * len(validation), list(validation))
    return remarks(splits, task or SingleLabel(["a", "b", "c"]), weighted, named)


def test_classes_of_very_different_size_name_the_flag_that_helps():
    line = (
        "the classes are uneven, a 99 and c 9 training rows. --class_weights balanced lets each class count the same."
    )
    assert remarks_on([0] * 99 + [1] * 20 + [2] * 9) == [line]
    assert remarks_on([0] * 99 + [1] * 20 + [2] * 9, weighted=True) == []
    assert remarks_on([0] * 99 + [1] * 20 + [2] * 10) == []  # less than ten times
    assert remarks_on([0] * 12 + [1] * 8 + [2] * 4)[0].startswith("the classes are uneven, a 12 and c 4")  # few rows
    assert remarks_on([0] * 12 + [1] * 8 + [2] * 5) == []
    assert not any("uneven" in line for line in remarks_on([0, 0, 1, 2]))


def test_classes_with_under_five_rows_are_named_up_to_five_of_them():
    (line,) = remarks_on([0] * 5 + [1] * 4 + [2] * 3)
    assert line == (
        "fewer than 5 training rows have c (3), b (4), which is too few to learn from. Add rows, or join labels."
    )
    assert "have b (4), which" in remarks_on([0] * 5 + [1] * 4, validation=None, weighted=True)[0]
    many = MultiLabel([f"l{i}" for i in range(9)])
    table = [[1.0] * (i + 1) + [0.0] * (8 - i) for i in range(9)]  # label l0 has 9 rows, l8 has 1
    (line,) = remarks_on(table, validation=table, task=many)
    assert line.startswith("fewer than 5 training rows have l8 (1), l7 (2), l6 (3), l5 (4), which")
    (line,) = remarks_on(table[2:6] + table[8:], validation=table, task=many)
    assert "have l6 (1), l7 (1), l8 (1), l5 (2), l4 (3) and 1 more, which" in line
    (line,) = remarks_on([0] * 5 + [1] * 5 + [2], named=lambda name: f"<{name}>", weighted=True)
    assert "<c> (1)" in line


def test_a_class_that_validation_lacks_is_named():
    (line,) = remarks_on([0] * 9 + [1] * 6 + [2] * 5, validation=[0, 0, 1])
    assert line.startswith("validation has no row of c (5), with the rows of each in training: ")
    assert remarks_on([0] * 9 + [1] * 6, validation=[0, 1]) == []  # nor does training have it
    assert remarks_on([0] * 9 + [1] * 6, validation=None) == []
    many = MultiLabel([f"l{i}" for i in range(20)])
    *_, line = remarks_on([[1.0] * 20] * 3, validation=[[1.0] + [0.0] * 19], task=many)
    assert "no row of l1 (3), l2 (3)" in line and "l12 (3) and 7 more, with" in line


def test_a_target_that_is_the_same_in_every_row_is_named():
    task = Regression(["x", "y"])
    (line,) = remarks_on([[0.1, 1.0], [0.1, 2.0], [0.1, 3.0]], validation=[[0.0, 0.0]], task=task)
    assert line == "every training row has x 0.1, from which nothing can be learnt."
    assert remarks_on([[0.1, 1.0], [0.2, 2.0]], validation=[[0.0, 0.0]], task=task) == []
