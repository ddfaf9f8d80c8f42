from datasets import Dataset

from lstmpool.training.data.rows import Split
from lstmpool.training.data.summary import balance_words, data_lines, describe_data
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
