import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from transformers import AutoTokenizer

from lstmpool.training.arguments import DataArguments
from lstmpool.training.data import read_splits
from lstmpool.training.errors import InputError

from .training_fixtures import save_backbone, sentences, write_csv


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return AutoTokenizer.from_pretrained(save_backbone(tmp_path_factory.mktemp("backbone")))


def read(tmp_path, train, test=None, problem_type=None, **options):
    files = {"train_file": str(write_csv(tmp_path / "train.csv", train))}
    if test is not None:
        files["test_file"] = str(write_csv(tmp_path / "test.csv", test))
    return read_splits(DataArguments(**files, **options), [f.removesuffix("_file") for f in files], problem_type)


def test_a_pair_is_encoded_as_a_pair(tmp_path, tokenizer):
    columns = {"sentence1": ["alpha beta", "one"], "sentence2": ["gamma", "two three"], "label": ["x", "y"]}
    split = read(tmp_path, columns)[0]["train"]
    row = split.tokenize(tokenizer, pad_to_max_length=False)[0]
    assert tokenizer.convert_ids_to_tokens(row["input_ids"]) == "[CLS] alpha beta [SEP] gamma [SEP]".split()
    assert row["token_type_ids"] == [0, 0, 0, 0, 1, 1]
    named = {"q": columns["sentence1"], "a": columns["sentence2"], "label": ["x", "y"]}
    assert read(tmp_path, named, text_column_names="q,a")[0]["train"] == split


def test_texts_are_cut_at_the_limit_and_padded_on_request_alone(tmp_path, tokenizer):
    columns = {"text": ["alpha " * 50, "one"], "label": ["x", "y"]}
    split = read(tmp_path, columns)[0]["train"]
    assert [len(ids) for ids in split.tokenize(tokenizer, False)["input_ids"]] == [32, 3]
    assert [len(ids) for ids in split.tokenize(tokenizer, True)["input_ids"]] == [32, 32]


def test_some_rows_are_chosen_at_random_and_always_the_same(tmp_path):
    columns = {"text": sentences(100), "label": [str(i // 50) for i in range(100)]}  # sorted by label
    chosen = [read(tmp_path, columns, max_train_samples=20)[0]["train"] for _ in range(2)]
    assert chosen[0] == chosen[1]
    assert len(chosen[0]) == 20 and set(chosen[0].labels) == {0, 1}
    assert read(tmp_path, columns, max_train_samples=20, shuffle_seed=1)[0]["train"] != chosen[0]
    assert len(read(tmp_path, columns, max_train_samples=1000)[0]["train"]) == 100
    with pytest.raises(InputError, match="--max_train_samples must be 1 or more, got 0"):
        read(tmp_path, columns, max_train_samples=0)


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
        ({"text": ["a"], "label": [""]}, {}, "test.csv, column 'label', row 1: the label is missing"),
        ({"sentence1": ["a"], "sentence2": ["b"], "label": ["x"]}, {}, "same text columns"),
        (GOOD, {"label_column_name": "text"}, "both text and label"),
        (GOOD, {"text_column_names": "text,label,text"}, "one column or two, got 3"),
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
        read_splits(DataArguments(train_file=str(path)), ["train"], None)


def test_a_saved_data_set_keeps_its_label_names(tmp_path):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["pos", "neg"])})
    table = Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    DatasetDict({"train": table, "validation": table}).save_to_disk(tmp_path / "saved")
    splits, labels = read_splits(DataArguments(dataset_folder=str(tmp_path / "saved")), ["train", "validation"], None)
    assert labels.names == ["pos", "neg"]
    assert splits["validation"].labels == [1, 0]
