import pytest
from datasets import Dataset, DatasetDict

from lstmpool.training.data.sources import named_splits, read_rows
from lstmpool.training.errors import InputError
from lstmpool.training.flags.arguments import DataArguments

from ...training_fixtures import write_csv


@pytest.fixture
def folder(tmp_path):
    """A data set as it lies on the Hub: files named after their splits, here in a folder."""
    for split, n in (("train", 4), ("dev", 2), ("test", 3)):
        write_csv(tmp_path / "hub" / f"{split}.csv", {"text": [f"{split} {i}" for i in range(n)], "label": ["x"] * n})
    return str(tmp_path / "hub")


@pytest.fixture(autouse=True)
def made(tmp_path, monkeypatch):
    (tmp_path / "hub").mkdir()
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def test_files_are_splits():
    assert named_splits(DataArguments(train_file="a.csv", test_file="b.csv")) == {"train": "a.csv", "test": "b.csv"}


def test_a_data_set_of_the_hub_says_what_splits_it_has(folder):
    args = DataArguments(dataset_name=folder)
    places = named_splits(args)
    assert places == {"train": "train", "validation": "validation", "test": "test"}  # the library knows dev
    rows, source = read_rows(args, places["test"])
    assert list(rows["text"]) == ["test 0", "test 1", "test 2"]
    assert source.endswith("hub test")


def test_a_folder_of_files_is_read_like_the_files(tmp_path, monkeypatch):
    words = ["NA", "None", "null", "N/A", "nan", "01"]
    path = write_csv(tmp_path / "hub" / "train.csv", {" text": words, "label": words, "id": words})
    args = DataArguments(dataset_name=str(tmp_path / "hub"))
    monkeypatch.setattr("datasets.builder.DatasetBuilder.download_and_prepare", None)  # the library does not read it
    assert named_splits(args) == {"train": "train"}
    rows, _ = read_rows(args, "train")
    assert rows.to_list() == read_rows(DataArguments(train_file=str(path)), str(path))[0].to_list()
    assert rows["label"][:] == rows["text"][:] == rows["id"][:] == words
    assert read_rows(args, "train[:2]+train[-1:]")[0]["id"][:] == ["NA", "None", "01"]
    with pytest.raises(InputError, match="is no part of train"):
        read_rows(args, "train[:x]")


def test_several_files_are_one_split(tmp_path):
    for number, label in enumerate("xy"):
        (tmp_path / "hub" / f"train-0000{number}-of-00002.json").write_text(f'[{{"text": "a", "label": "{label}"}}]')
    args = DataArguments(dataset_name=str(tmp_path / "hub"))
    assert read_rows(args, named_splits(args)["train"])[0]["label"][:] == ["x", "y"]
    (tmp_path / "hub" / "train-00001-of-00002.json").write_text('[{"text": "a", "label": 1}]')
    with pytest.raises(InputError, match="train: its 2 files do not fit together"):
        read_rows(args, "train")


def test_files_that_the_own_reader_does_not_know_stay_with_the_library(tmp_path):
    (tmp_path / "hub" / "train.txt").write_text("one\ntwo\n")
    args = DataArguments(dataset_name=str(tmp_path / "hub"))
    assert read_rows(args, named_splits(args)["train"])[0]["text"][:] == ["one", "two"]


@pytest.mark.parametrize("written", ["[]", "1", '{"splits": "a"}', '{"splits": [1]}', "[" * 100_000])
def test_an_odd_list_of_splits_is_told(tmp_path, written):
    (tmp_path / "hub" / "dataset_dict.json").write_text(written)
    with pytest.raises(InputError, match="dataset_dict.json that cannot be read"):
        named_splits(DataArguments(dataset_name=str(tmp_path / "hub")))


@pytest.mark.parametrize("name", ["a" * 5000, "a\0b", "/" + "a" * 5000])
def test_odd_names_of_data_sets_are_told(name):
    with pytest.raises(InputError, match=r"File name too long|no folder|cannot be found|null"):
        named_splits(DataArguments(dataset_name=name))


def test_splits_may_be_named_and_cut(folder):
    args = DataArguments(dataset_name=folder, train_split_name="train[:50%]", validation_split_name="test")
    places = named_splits(args)
    assert places == {"train": "train[:50%]", "validation": "test"}
    assert len(read_rows(args, places["train"])[0]) == 2


def test_a_saved_data_set_is_one_too(tmp_path):
    tables = {name: Dataset.from_dict({"text": [f"of {name}"], "label": ["x"]}) for name in ("train", "held")}
    DatasetDict(tables).save_to_disk(tmp_path / "saved")
    args = DataArguments(dataset_name=str(tmp_path / "saved"), validation_split_name="held")
    assert named_splits(args) == {"train": "train", "validation": "held"}
    assert list(read_rows(args, "held")[0]["text"]) == ["of held"]


def test_configuration_and_revision_are_asked_for_wherever_a_data_set_is(monkeypatch):
    asked = []

    def note(*words, **options):
        asked.append((*words, options["revision"]))
        return ["train"]

    monkeypatch.setattr("lstmpool.training.data.sources.get_dataset_split_names", note)
    monkeypatch.setattr("lstmpool.training.data.sources.load_dataset", note)
    args = DataArguments(dataset_name="owner/name", dataset_config_name="mrpc", dataset_revision="abc")
    read_rows(args, named_splits(args)["train"])
    assert asked == [("owner/name", "mrpc", "abc")] * 2


def test_a_split_without_rows_is_refused(monkeypatch):
    monkeypatch.setattr("lstmpool.training.data.sources.load_dataset", lambda *words, **options: [])
    with pytest.raises(InputError, match="owner/name: its split train holds no rows"):
        read_rows(DataArguments(dataset_name="owner/name"), "train")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_file": "a.csv", "dataset_name": "x/y"}, "found both"),
        ({"train_split_name": "train"}, "--train_split_name belongs to --dataset_name"),
        ({"dataset_config_name": "mrpc", "train_file": "a.csv"}, "--dataset_config_name belongs to --dataset_name"),
        ({"dataset_name": "./missing"}, "not a folder, and cannot be a name on the Hub"),
        ({"dataset_name": "owner/missing"}, "--dataset_name owner/missing cannot be found or read"),
    ],
)
def test_what_does_not_fit_is_told_in_one_line(options, message):
    with pytest.raises(InputError, match=message) as error:
        named_splits(DataArguments(**options))
    assert "\n" not in str(error.value)


def test_a_split_that_is_not_there_is_told_with_the_nearest(folder):
    with pytest.raises(InputError, match="has train, validation, test. Did you mean 'validation'"):
        named_splits(DataArguments(dataset_name=folder, validation_split_name="validatoin"))


def test_a_single_saved_split_is_told_where_it_belongs(tmp_path):
    Dataset.from_dict({"text": ["a"]}).save_to_disk(tmp_path / "one")
    with pytest.raises(InputError, match="one split of a data set. Name it with --train_file"):
        named_splits(DataArguments(dataset_name=str(tmp_path / "one")))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "dataset_dict.json").write_text("{")
    with pytest.raises(InputError, match="dataset_dict.json that cannot be read"):
        named_splits(DataArguments(dataset_name=str(tmp_path / "broken")))


def test_a_part_of_a_split_is_not_read_twice(folder):
    with pytest.raises(InputError, match=r"is a part of train, all of which .* --train_split_name, such as train"):
        named_splits(DataArguments(dataset_name=folder, validation_split_name="train[90%:]"))
    args = DataArguments(dataset_name=folder, validation_split_name="train[50%:]", train_split_name="train[:50%]")
    assert named_splits(args)["validation"] == "train[50%:]"


def test_a_saved_data_set_has_whole_splits_alone(tmp_path):
    DatasetDict({"train": Dataset.from_dict({"text": ["a"]})}).save_to_disk(tmp_path / "saved")
    with pytest.raises(InputError, match="has only whole splits"):
        named_splits(DataArguments(dataset_name=str(tmp_path / "saved"), train_split_name="train[:50%]"))
