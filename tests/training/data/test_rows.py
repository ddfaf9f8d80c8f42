import tracemalloc

import numpy as np
import pandas
import pyarrow
import pyarrow.parquet
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from transformers import AutoTokenizer, ByT5Tokenizer

from lstmpool.training.data.holdout import hold_out
from lstmpool.training.data.order import by_length
from lstmpool.training.data.rows import read_splits, token_counts
from lstmpool.training.data.sources import named_splits
from lstmpool.training.data.summary import describe_data
from lstmpool.training.errors import InputError
from lstmpool.training.flags.arguments import DataArguments
from lstmpool.training.tasks.columns import Cells, distinct

from ...conftest import tiny_config
from ...training_fixtures import save_backbone, sentences, write_csv


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return AutoTokenizer.from_pretrained(save_backbone(tmp_path_factory.mktemp("backbone")))


def read(tmp_path, train, test=None, problem_type=None, **options):
    files = {"train_file": str(write_csv(tmp_path / "train.csv", train))}
    if test is not None:
        files["test_file"] = str(write_csv(tmp_path / "test.csv", test))
    args = DataArguments(**files, **options)
    return read_splits(args, named_splits(args), problem_type)


def test_a_pair_is_encoded_as_a_pair(tmp_path, tokenizer):
    columns = {"sentence1": ["alpha beta", "one"], "sentence2": ["gamma", "two three"], "label": ["x", "y"]}
    split = read(tmp_path, columns)[0]["train"]
    row = split.tokenize(tokenizer)[0][0]
    assert tokenizer.convert_ids_to_tokens(row["input_ids"]) == "[CLS] alpha beta [SEP] gamma [SEP]".split()
    assert row["token_type_ids"] == [0, 0, 0, 0, 1, 1]
    named = {"q": columns["sentence1"], "a": columns["sentence2"], "label": ["x", "y"]}
    assert read(tmp_path, named, text_column_names="q,a")[0]["train"] == split


def test_texts_are_cut_at_the_limit_and_padded_on_request_alone(tmp_path, tokenizer):
    # with [CLS] and [SEP] the second text is just as long as a text may be, and nothing of it is cut
    columns = {"text": ["alpha " * 50, "beta " * 30, "one", "two"], "label": ["x", "y", "x", "y"]}
    split = read(tmp_path, columns)[0]["train"]
    rows, cut = split.tokenize(tokenizer)
    assert [len(ids) for ids in rows["input_ids"]] == [32, 32, 3, 3]
    assert cut == 1 / 4
    rows, cut = split.tokenize(tokenizer, pad_to_max_length=True, workers=2)
    assert [len(ids) for ids in rows["input_ids"]] == [32, 32, 32, 32]
    assert (cut, split.labels) == (1 / 4, [0, 1, 0, 1])


def test_a_tokenizer_that_does_not_say_what_it_cut(tmp_path):
    columns = {"text": ["a", "a long text"], "label": ["x", "y"]}
    rows, cut = read(tmp_path, columns)[0]["train"].tokenize(ByT5Tokenizer(model_max_length=8))
    assert [len(ids) for ids in rows["input_ids"]] == [2, 8] and cut == 1 / 2


def test_some_rows_are_chosen_at_random_and_always_the_same(tmp_path):
    columns = {"text": sentences(100), "label": [str(i // 50) for i in range(100)]}  # sorted by label
    chosen = [read(tmp_path, columns, max_train_samples=20)[0]["train"] for _ in range(2)]
    assert chosen[0] == chosen[1]
    assert len(chosen[0]) == 20 and set(chosen[0].labels) == {0, 1}
    assert chosen[0].ids == sorted(chosen[0].ids)
    assert read(tmp_path, columns, max_train_samples=20, shuffle_seed=1)[0]["train"] != chosen[0]
    assert len(read(tmp_path, columns, max_train_samples=1000)[0]["train"]) == 100


def test_each_split_has_a_limit_of_its_own(tmp_path):
    path = str(write_csv(tmp_path / "rows.csv", {"text": sentences(9), "label": ["x", "y", "z"] * 3}))
    limits = {"max_train_samples": 9, "max_eval_samples": 5, "max_predict_samples": 4}
    args = DataArguments(train_file=path, validation_file=path, test_file=path, **limits)
    splits, _ = read_splits(args, named_splits(args), None)
    assert {name: len(split) for name, split in splits.items()} == {"train": 9, "validation": 5, "test": 4}


GOOD = {"text": ["alpha", "beta"], "label": ["x", "y"]}


@pytest.mark.parametrize(
    ("test", "options", "message"),
    [
        (
            {"txt": ["a"], "label": ["x"]},
            {},
            r"test.csv: expected a column 'text', found txt, label. Did you mean 'txt'",
        ),
        ({"text": ["a"], "lable": ["x"]}, {}, "test.csv: expected a column 'label', .* Did you mean 'lable'"),
        ({"text": ["a", " "], "label": ["x", "y"]}, {}, "test.csv, column 'text', row 2: the text is empty"),
        ({"text": ["a"], "label": ["z"]}, {}, "test.csv, column 'label', row 1: label 'z' does not occur in training"),
        ({"text": ["a", "b"], "label": ["", "x"]}, {}, "test.csv, column 'label', row 1: the label is missing"),
        ({"sentence1": ["a"], "sentence2": ["b"], "label": ["x"]}, {}, "same text columns"),
        (GOOD, {"label_column_name": "text"}, "both text and label"),
        (GOOD, {"id_column_name": "key"}, "train.csv: expected a column 'key', .* with --id_column_name"),
    ],
)
def test_wrong_rows_are_told_with_their_place(tmp_path, test, options, message):
    with pytest.raises(InputError, match=message):
        read(tmp_path, GOOD, test, **options)


def test_a_missing_target_is_told_with_its_row(tmp_path):
    train = {"text": ["a", "b", "c"], "a": ["1.5", "nan", "2"], "b": ["1", "2", "3"]}
    with pytest.raises(InputError, match="train.csv, column 'a', row 2: expected a number, found nothing"):
        read(tmp_path, train, label_column_name="a,b")


def test_a_text_that_is_none_is_told_with_its_row(tmp_path):
    path = tmp_path / "train.parquet"
    Dataset.from_dict({"text": ["a", None], "label": ["x", "y"]}).to_parquet(path)
    with pytest.raises(InputError, match="train.parquet, column 'text', row 2: expected a text, found nothing"):
        read_splits(DataArguments(train_file=str(path)), {"train": str(path)}, None)


def test_a_saved_data_set_keeps_its_label_names(tmp_path):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["pos", "neg"])})
    table = Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    DatasetDict({"train": table, "validation": table}).save_to_disk(tmp_path / "saved")
    args = DataArguments(dataset_name=str(tmp_path / "saved"))
    splits, labels = read_splits(args, named_splits(args), None)
    assert labels.names == ["pos", "neg"]
    assert splits["validation"].labels == [1, 0]


def test_a_number_beyond_the_declared_labels_is_told(tmp_path):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["pos", "neg"])})
    declared = Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features).data.schema.metadata
    table = pyarrow.table({"text": ["a", "b"], "label": [1, 5]}).replace_schema_metadata(declared)
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    args = DataArguments(train_file=str(tmp_path / "rows.parquet"))
    with pytest.raises(InputError, match="rows.parquet, column 'label', .* declared: .*5"):
        read_splits(args, named_splits(args), None)


def test_lists_of_declared_labels_keep_their_names(tmp_path):
    features = Features({"text": Value("string"), "labels": List(ClassLabel(names=["joy", "anger"]))})
    Dataset.from_dict({"text": ["a", "b"], "labels": [[1], [0, 1]]}, features=features).save_to_disk(tmp_path / "rows")
    args = DataArguments(train_file=str(tmp_path / "rows"))
    splits, labels = read_splits(args, named_splits(args), None)
    assert (labels.names, splits["train"].labels) == (["joy", "anger"], [[0.0, 1.0], [1.0, 1.0]])


def test_more_than_two_columns_are_joined_and_two_on_request(tmp_path):
    columns = {"a": ["x", "y"], "b": ["1", "2"], "c": ["u", "v"], "label": ["p", "q"]}

    def texts(**options):
        split = read(tmp_path, columns, **options)[0]["train"]
        return split.texts, split.pairs

    assert texts(text_column_names="a,b") == (["x", "y"], ["1", "2"])
    assert texts(text_column_names="c,a,b") == (["u x 1", "v y 2"], None)
    assert texts(text_column_names="c,a,b", text_column_delimiter=" | ") == (["u | x | 1", "v | y | 2"], None)
    assert texts(text_column_names="a,b", text_column_delimiter="") == (["x1", "y2"], None)


@pytest.mark.parametrize("pair", [("premise", "hypothesis"), ("question1", "question2"), ("question", "sentence")])
def test_columns_are_known_by_their_usual_names(tmp_path, pair):
    split = read(tmp_path, {"label": ["p", "q"], **dict.fromkeys(pair, ["x", "y"])})[0]["train"]
    assert split.pairs == ["x", "y"]
    assert read(tmp_path, {"label": ["p", "q"], "sentence": ["x", "y"]})[0]["train"].pairs is None


def test_test_rows_may_lack_labels(tmp_path):
    for test in ({"text": ["a", "b"]}, {"text": ["a", "b"], "label": ["", ""]}):
        split = read(tmp_path, GOOD, test)[0]["test"]
        assert (split.texts, split.labels) == (["a", "b"], None)
    with pytest.raises(InputError, match="row 2: the label is missing"):
        read(tmp_path, GOOD, {"text": ["a", "b"], "label": ["x", ""]})


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"text": ["a", "b"], "label": ["", ""]}, "row 1: the label is missing"),
        ({"text": ["a", "b"]}, "expected a column 'label', found text"),
    ],
)
def test_other_rows_may_not(tmp_path, rows, message):
    with pytest.raises(InputError, match=message):
        read(tmp_path, rows)
    good, bad = write_csv(tmp_path / "good.csv", GOOD), write_csv(tmp_path / "bad.csv", rows)
    args = DataArguments(train_file=str(good), validation_file=str(bad))
    with pytest.raises(InputError, match=f"bad.csv.*{message}"):
        read_splits(args, named_splits(args), None)


def test_a_column_may_be_called_labels(tmp_path):
    assert read(tmp_path, {"text": ["a", "b"], "labels": ["x y", "y"]})[1].names == ["x", "y"]


def test_rows_are_named_by_their_ids_or_numbers(tmp_path):
    def ids(columns, **options):
        return read(tmp_path, {**GOOD, **columns}, **options)[0]["train"].ids

    assert ids({}) == [0, 1]
    assert ids({"id": ["p", "q"]}) == ["p", "q"]
    assert ids({"id": ["p", "q"], "key": ["r", "s"]}, id_column_name="key") == ["r", "s"]


def test_chosen_rows_keep_their_ids(tmp_path):
    columns = {"text": sentences(50), "label": ["x", "y"] * 25, "id": [f"row {i}" for i in range(50)]}
    split = read(tmp_path, columns, max_train_samples=10)[0]["train"]
    assert [split.texts[i] for i in range(10)] == [sentences(50)[int(name.split()[1])] for name in split.ids]


def test_labels_that_a_hub_data_set_does_not_give_are_minus_one(tmp_path):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["neg", "pos"])})
    tables = {"train": [0, 1], "test": [-1, -1]}
    tables = {k: Dataset.from_dict({"text": ["a", "b"], "label": v}, features=features) for k, v in tables.items()}
    DatasetDict(tables).save_to_disk(tmp_path / "saved")
    args = DataArguments(dataset_name=str(tmp_path / "saved"))
    assert read_splits(args, named_splits(args), None)[0]["test"].labels is None


def finished(*names, problem_type="single_label_classification"):
    return tiny_config(num_labels=len(names), id2label=dict(enumerate(names)), problem_type=problem_type)


def test_a_finished_model_keeps_its_labels_if_they_fit(tmp_path):
    args = DataArguments(train_file=str(write_csv(tmp_path / "train.csv", {"text": ["a", "b"], "label": ["x", "z"]})))

    def names(*known):
        splits, labels = read_splits(args, named_splits(args), None, finished(*known))
        return labels.names, splits["train"].labels

    assert names("z", "y", "x") == (["z", "y", "x"], [2, 0])
    assert names("z", "y", "w") == (["x", "z"], [0, 1])
    multi = finished("x", "z", problem_type="multi_label_classification")
    splits, labels = read_splits(args, named_splits(args), None, multi)  # of the rows alone one would say: one label
    assert (labels.problem_type, splits["train"].labels) == (multi.problem_type, [[1.0, 0.0], [0.0, 1.0]])
    assert labels.evidence == "--init_from says so"


def test_rows_are_evaluated_by_the_labels_of_a_finished_model(tmp_path):
    args = DataArguments(test_file=str(write_csv(tmp_path / "test.csv", {"text": ["a", "b"], "label": ["x", "z"]})))
    splits, labels = read_splits(args, named_splits(args), None, finished("z", "y", "x"))
    assert (splits["test"].labels, labels.names) == ([2, 0], ["z", "y", "x"])
    with pytest.raises(InputError, match="label 'x' does not occur"):
        read_splits(args, named_splits(args), None, finished("p", "q"))
    multi = finished("z", "y", "x", problem_type="multi_label_classification")
    assert read_splits(args, named_splits(args), None, multi)[0]["test"].labels == [[0, 0, 1], [1, 0, 0]]


def test_columns_of_a_finished_model_keep_their_places(tmp_path):
    rows = {"text": ["a", "b"], "tone": ["1.5", "2"], "grammar": ["3", "4"]}
    path = str(write_csv(tmp_path / "rows.csv", rows))
    model = finished("grammar", "tone", problem_type="regression")
    for files in ({"train_file": path}, {"test_file": path}):
        args = DataArguments(**files, label_column_name="tone,grammar")
        splits, labels = read_splits(args, named_splits(args), None, model)
        assert labels.names == ["grammar", "tone"]
        assert next(iter(splits.values())).labels == [[3.0, 1.5], [4.0, 2.0]]
    args = DataArguments(train_file=path, label_column_name="tone")
    assert read_splits(args, named_splits(args), None, finished("stars", problem_type="regression"))[1].names == [
        "stars"
    ]


def test_hidden_numbers_of_a_hub_data_set_are_minus_one_too(tmp_path):
    tables = {"train": [0.5, 1.5], "test": [-1.0, -1.0]}
    tables = {k: Dataset.from_dict({"text": ["a", "b"], "label": v}) for k, v in tables.items()}
    DatasetDict(tables).save_to_disk(tmp_path / "saved")
    args = DataArguments(dataset_name=str(tmp_path / "saved"))
    assert read_splits(args, named_splits(args), None)[0]["test"].labels is None


def test_a_tokenizer_without_a_mask(tmp_path, tokenizer):
    columns = {"text": ["alpha beta", "one"], "label": ["x", "y"]}
    tokenizer.model_input_names = ["input_ids", "token_type_ids"]  # as FNet's
    rows, cut = read(tmp_path, columns)[0]["train"].tokenize(tokenizer)
    assert token_counts(rows[:]) == [4, 3] and cut == 0
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]


def test_a_message_that_names_a_row_says_which_is_the_first(tmp_path):
    with pytest.raises(
        InputError, match="train.csv: column 'label', training row 2: .* Row 1 is the first row of data"
    ):
        read(tmp_path, {"text": ["a", "b"], "label": ["x", ""]})
    with pytest.raises(InputError, match=r"row 2: the text is empty. .* Row 1 is the first row of data\.$"):
        read(tmp_path, {"text": ["a", ""], "label": ["x", "y"]})
    with pytest.raises(InputError, match="Did you mean 'LABEL'") as error:
        read(tmp_path, {"text": ["a", "b"], "LABEL": ["x", "y"]})
    assert "Row 1" not in str(error.value)


def test_control_characters_in_ids_and_names_of_columns_are_refused_and_in_texts_stay(tmp_path):
    good = {"text": ["a\x1bb\x00c", "d\ne"], "label": ["x", "y"]}
    assert read(tmp_path, good | {"not\nneeded": [1, 2]})[0]["train"].texts == good["text"]
    with pytest.raises(InputError, match="train.csv, column 'id', row 2: the id .* holds control characters"):
        read(tmp_path, good | {"id": ["a", "b\nc"]})
    with pytest.raises(InputError, match="train.csv: the name of column .* holds control characters"):
        read(tmp_path, {"text": ["a", "b"], "la\x1bbel": ["1", "2"]}, label_column_name="la\x1bbel")


def test_lists_written_as_text_are_lists_in_every_split(tmp_path):
    train = {"text": ["a", "b", "c"], "label": ["['joy', 'love']", "[]", "['anger']"]}
    splits, task = read(tmp_path, train, {"text": ["a", "b"], "label": ["['love']", ""]})
    assert task.names == ["anger", "joy", "love"]
    assert splits["train"].labels == [[0, 1, 1], [0, 0, 0], [1, 0, 0]]
    assert splits["test"].labels == [[0, 0, 1], [0, 0, 0]]


def test_only_the_columns_that_are_needed_are_read(tmp_path):
    odd = pyarrow.array([[("k", 1)], None], pyarrow.map_(pyarrow.string(), pyarrow.int64()))
    columns = {"odd": odd, "q": ["a", "b"], "label": ["x", "y"], "key": [7, 8], "who": ["ann", "bob"]}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "train.parquet")
    names = {"text_column_names": "q", "id_column_name": "key", "group_column": "who"}
    args = DataArguments(train_file=str(tmp_path / "train.parquet"), **names)
    split = read_splits(args, named_splits(args), None)[0]["train"]
    assert (split.texts, split.labels, split.ids, split.groups) == (["a", "b"], [0, 1], [7, 8], ["ann", "bob"])


def test_groups_are_read_of_training_rows_alone(tmp_path):
    columns = {"text": ["a", "b", "c"], "label": ["x", "y", "x"]}
    splits, _ = read(tmp_path, {**columns, "writer": ["ann", "bob", "ann"]}, columns, group_column="writer")
    assert splits["train"].groups == ["ann", "bob", "ann"] and splits["test"].groups is None
    assert splits["train"].take([2, 1]).groups == ["ann", "bob"]
    with pytest.raises(InputError, match="expected a column 'writr', found .* Did you mean 'writer'.*--group_column"):
        read(tmp_path, {**columns, "writer": ["ann", "bob", "ann"]}, group_column="writr")
    with pytest.raises(
        InputError, match="column 'writer', row 2: expected the name or number of a group, found nothi"
    ):
        read(tmp_path, {**columns, "writer": ["ann", "", "ann"]}, group_column="writer")


def test_a_group_that_is_no_number_is_told(tmp_path):
    table = pandas.DataFrame({"text": ["a", "b"], "label": ["x", "y"], "writer": [1.0, float("nan")]})
    pyarrow.parquet.write_table(pyarrow.table(table.to_dict("list")), tmp_path / "train.parquet")
    args = DataArguments(train_file=str(tmp_path / "train.parquet"), group_column="writer")
    with pytest.raises(InputError, match="row 2: expected the name or number of a group, found nan"):
        read_splits(args, named_splits(args), None)


def test_rows_are_no_python_objects_all_at_once(tmp_path, tokenizer):
    """20,000 rows: as Python lists, they take over 10 MB from the reading to the tokens."""
    texts = [f"alpha beta gamma {i} delta" for i in range(20_000)]
    path = write_csv(tmp_path / "rows.csv", {"text": texts, "label": ["abcd"[i % 4] for i in range(20_000)]})
    args = DataArguments(train_file=str(path))
    tracemalloc.start()
    try:
        splits, task = read_splits(args, named_splits(args), None)
        train, held = hold_out(splits["train"], task, 0.1, seed=0)
        tokens = {"train": train.tokenize(tokenizer), "validation": held.tokenize(tokenizer)}
        rows = {name: of_split[0] for name, of_split in tokens.items()}
        describe_data({"train": train, "validation": held}, rows, dict.fromkeys(rows, 0.0), task)
        by_length(rows["validation"])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 5e6, f"{peak / 1e6:.1f} MB"
    assert train.texts[0] == texts[train.ids[0]] and rows["train"][0]["attention_mask"] == [1] * 7
    assert not rows["train"].cache_files  # the file of tokens has no name, so nothing is left after a kill


def test_cells_read_like_a_list():
    cells = Cells(["b", None, "a", "b"])
    assert cells == ["b", None, "a", "b"] and cells != ["b", None, "a"] and cells[-1] == "b" and len(cells) == 4
    assert cells[[3, 2]] == ["b", "a"] and cells[1:3] == [None, "a"] and cells.count("b") == 2
    assert cells.distinct[:3] == (["b", None, "a"], [1, 2, 3], [2, 1, 1])
    assert cells.distinct.places.tolist() == [0, 1, 2, 0]
    lists = Cells([[1, 2], [3, 4], [1, 2]])
    assert np.asarray(lists).tolist() == [[1, 2], [3, 4], [1, 2]] and lists.distinct.counts == [2, 1]
    assert distinct([1, 1.0, True, 1])[:3] == ([1, 1.0, True], [1, 2, 3], [2, 1, 1])
    assert np.asarray(Cells([0.5, 1.5])).tolist() == [0.5, 1.5] and pyarrow.array(Cells([1])).to_pylist() == [1]
