from datasets import Dataset

from lstmpool.training.data.rows import Split
from lstmpool.training.data.summary import balance_words, data_lines, describe_data, remarks
from lstmpool.training.tasks.multi_label import MultiLabel
from lstmpool.training.tasks.regression import Regression
from lstmpool.training.tasks.single_label import SingleLabel


def rows(*lengths):
    return Dataset.from_dict({"attention_mask": [[1] * n + [0] for n in lengths]})


def split(texts, labels, pairs=None):
    return Split("file.csv", texts, pairs, labels, list(range(len(texts))))


def test_what_is_said_of_the_rows():
    splits = {"train": split(["a", "b", "c"], [0, 0, 1]), "test": split(["b", "d"], None)}
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
    splits = {"train": split(["a", "b"], [0, 1], ["x", "y"]), "test": split(["a", "b"], [0, 1], ["y", "y"])}
    of = dict.fromkeys(splits, rows(1, 1))
    assert describe_data(splits, of, dict.fromkeys(splits, 0.0), SingleLabel(["n", "y"]))["test"]["also_in_train"] == 1


def test_numbers_and_several_labels():
    of, cut = {"train": rows(1, 1)}, {"train": 0.0}
    numbers = describe_data({"train": split(["a", "b"], [1.0, 3.0])}, of, cut, Regression(["stars"]))
    assert numbers["train"]["labels"] == {"stars": {"mean": 2.0, "std": 1.0}}
    assert "stars 2 ± 1" in data_lines(numbers, 8)[0]
    many = MultiLabel([f"l{i}" for i in range(20)])
    labels = [[1.0] + [0.0] * 19, [1.0] * 20]
    numbers = describe_data({"train": split(["a", "b"], labels)}, of, cut, many)
    assert numbers["train"]["labels"] == {"l0": 2} | {f"l{i}": 1 for i in range(1, 20)}
    assert data_lines(numbers, 8)[0].endswith("l11 1 and 8 more.")
    assert balance_words({f"l{i}": 1 for i in range(12)}).endswith("l11 1.")


# ------------------------------------------------------------------------------------------------------------- remarks
def remarks_on(train, validation=(0, 1, 2), weighted=False, task=None, named=str):
    splits = {"train": split([""] * len(train), list(train))}
    if validation is not None:
        splits["validation"] = split([""] * len(validation), list(validation))
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
