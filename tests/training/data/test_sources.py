"""Where rows come from. And damaged and odd data files, made by a script: each is read, or refused in one line."""

import gzip
import json
import random
import shutil

import pyarrow
import pyarrow.parquet
import pytest
from datasets import Dataset, DatasetDict

from lstmpool.training.data.rows import read_splits
from lstmpool.training.data.sources import named_splits, read_rows
from lstmpool.training.errors import InputError
from lstmpool.training.flags.arguments import DataArguments

from ...training_fixtures import count_outcomes, run_python, save_backbone, sentences, write_csv


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


TEXTS = sentences(12)
ROWS = [{"id": f"r{i}", "text": text, "label": "xyz"[i % 3]} for i, text in enumerate(TEXTS)]
HOSTILE = (
    *("", " ", "nan", "NA", "None", "null", "-", "\x00", "\x1b[31m", "a\nb", "a\tb", "\u202eabc", "\u200b", "\ufeff"),
    *("x\u200b", "e\u0301", "\u00e9", "\U0001f600", "1_1", "infinity", "\uff11\uff12", "1e5", "1e999", "0x10", "1,5"),
    *("1 000", "50%", "9" * 5000, "['x', 'y']", "['x' 'y']", "[x, y]", "[" * 5000, "x|y", "|", "x, y", "=1+1", "'"),
    *('"', "\\", "`x`", "<b>", "a" * 1_000_000, "%s", "{}", "\ud83d", "../../x", "\r"),
)
ODD = (None, True, 0, -1, 1.5, float("nan"), float("inf"), 10**30, [], [[]], [0, 1], [1, 0, 1], [1.5], ["x", None], {})
HEADERS = (
    *("", " ", ",", "text", "label", " text, label", "text,text", "text,label,", ",text,label", "TEXT,Label", "id,id"),
    *("text;label", "text\tlabel", "text|label", "sep=;\ntext;label", '"text', "te\x00xt,label", "text,la\x1bbel"),
    *("text,labels", "text,label,prediction", "id,text,prediction", "sentence1,sentence2,label", "\ufefftext,label"),
)


def as_bytes(kind, rows=ROWS):
    """The rows as a file of that kind."""
    if kind.endswith(".gz"):
        return gzip.compress(as_bytes(kind.removesuffix(".gz"), rows), mtime=0)
    if kind == "parquet":
        sink = pyarrow.BufferOutputStream()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
        return sink.getvalue().to_pybytes()
    if kind == "json":
        return json.dumps(rows).encode()
    if kind == "jsonl":
        return "\n".join(map(json.dumps, rows)).encode()
    between = "\t" if kind == "tsv" else ","
    lines = [between.join(rows[0]), *(between.join(map(quoted, row.values())) for row in rows)]
    return "\r\n".join(lines).encode("utf-8", "surrogatepass")


def quoted(cell):
    return '"' + str(cell).replace('"', '""') + '"'


def damaged(content, draw):
    """The content with one random fault."""
    at, length = draw.randrange(len(content) + 1), draw.randrange(1, 20)
    noise = draw.randbytes(length)
    faults = (
        content[:at],
        content[at:],
        content[:at] + noise + content[at + length :],
        content[:at] + noise + content[at:],
        content[:at] + content[at + length :],
        content[:at] + content[at : at + length] * 50 + content[at:],
        content[:at] + bytes([content[at % len(content)] ^ 1 << draw.randrange(8)]) + content[at + 1 :],
        content[:at] + draw.choice([b"\0", b'"', b"'", b",", b"\n", b"[", b"{", b"\xff", b"\\"]) + content[at:],
    )
    return draw.choice(faults)


def files():
    """Names and contents of the files, the same in each run."""
    draw = random.Random(0)
    for kind in ("csv", "tsv", "json", "jsonl", "parquet", "csv.gz", "jsonl.gz", "parquet.gz"):
        for number in range(25):
            yield f"damaged-{number}.{kind}", damaged(as_bytes(kind), draw)
        for name, rows in {"one-row": ROWS[:1], "one-class": ROWS[::3], "again": [*ROWS, ROWS[0]]}.items():
            yield f"{name}.{kind}", as_bytes(kind, rows)
        yield f"empty.{kind}", b""
    for encoding in ("utf-16", "utf-16-le", "utf-32", "latin-1", "cp500"):
        yield f"{encoding}.csv", as_bytes("csv", [{"text": "caf\u00e9", "label": "x"}]).decode().encode(encoding)
    for number, header in enumerate(HEADERS):
        yield f"header-{number}.csv", f"{header}\na,b\nc,d\n".encode()
    for number, cell in enumerate(HOSTILE):
        for column in ("text", "label", "id"):
            rows = [*ROWS, ROWS[0] | {column: cell}]
            yield f"hostile-{column}-{number}.csv", as_bytes("csv", rows)
            yield f"hostile-{column}-{number}.jsonl", as_bytes("jsonl", rows)
    for number, cell in enumerate(ODD):
        for column in ("text", "label", "id"):
            yield f"odd-{column}-{number}.json", as_bytes("json", [ROWS[0] | {column: cell}, *ROWS])
        yield f"odd-{number}.json", as_bytes("json", [{"text": text, "label": cell} for text in TEXTS])
        yield f"top-{number}.json", json.dumps(cell).encode()
    yield "deep.json", b"[" * 100_000
    yield "deep-label.json", b'[{"text": "a", "label": ' + b"[" * 900 + b"]" * 900 + b"}]"
    yield "digits.json", b'[{"text": "a", "label": ' + b"1" * 5000 + b"}]"
    yield "twice.json", b'[{"text": "a", "label": "x", "label": "y"}]'


def read(**where):
    args = DataArguments(**where)
    return read_splits(args, named_splits(args), None)


def saved_folders(folder):
    """Folders of save_to_disk, each with one damaged file."""
    Dataset.from_list(ROWS).save_to_disk(folder / "sound")
    draw = random.Random(1)
    states = [b"[]", b"null", b"{}", b"1", b'{"_data_files": 1}', b'{"_data_files": [{}]}', b"[" * 100_000]
    for name in ("state.json", "dataset_info.json", "data-00000-of-00001.arrow"):
        content = (folder / "sound" / name).read_bytes()
        faults = [damaged(content, draw) for _ in range(8)]
        for number, fault in enumerate([*faults, *(states if name.endswith("json") else [])]):
            broken = folder / f"{name}-{number}"
            shutil.copytree(folder / "sound", broken)
            (broken / name).write_bytes(fault)
            yield broken


@pytest.mark.filterwarnings("ignore")
def test_no_file_ends_in_a_traceback(tmp_path, capsys):
    cases = []
    for name, content in files():
        path = tmp_path / name
        path.write_bytes(content)
        cases.append((name, lambda path=path: read(train_file=str(path))))
    for folder in saved_folders(tmp_path):
        cases.append((folder.name, lambda folder=folder: read(train_file=str(folder))))
    for number, splits in enumerate(
        ["[]", "1", '{"splits": 1}', '{"splits": [1]}', '{"splits": ["train"]}', "[" * 9999]
    ):
        folder = tmp_path / f"splits-{number}"
        folder.mkdir()
        (folder / "dataset_dict.json").write_text(splits)
        cases.append((folder.name, lambda folder=folder: read(dataset_name=str(folder))))
    for name in ("a" * 5000 + ".csv", "a\0.csv", "a\nb.csv", "", ".", "/dev/zero", "missing.csv", "~"):
        cases.append((f"name {name[:9]!r}", lambda name=name: read(train_file=name)))
        cases.append((f"data set {name[:9]!r}", lambda name=name: read(dataset_name=name)))
    outcomes = count_outcomes("Data files", cases)
    with capsys.disabled():
        print(f"\n{capsys.readouterr().out.splitlines()[-1]}")
    assert len(cases) >= 300
    assert outcomes["traceback"] == 0, outcomes
    assert outcomes["accepted"] > 50 and outcomes["clear"] > 200


THROUGH_THE_COMMAND = {
    "damaged.csv.gz": as_bytes("csv.gz")[:40],
    "cut.parquet": as_bytes("parquet")[:-30],
    "deep.json": b"[" * 100_000,
    "emoji.jsonl": as_bytes("jsonl", [*ROWS, ROWS[0] | {"text": "\ud83d"}]),
    "control.csv": as_bytes("csv", [*ROWS, ROWS[0] | {"label": "a\x1bb"}]),
    "comma.csv": as_bytes("csv", [row | {"label": "1,5"} for row in ROWS]),
    "sound.tsv": as_bytes("tsv"),
    "space.csv": as_bytes("csv").replace(b"text,", b" text ,", 1),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", THROUGH_THE_COMMAND)
def test_the_command_says_it_in_one_line(tmp_path, name):
    (tmp_path / name).write_bytes(THROUGH_THE_COMMAND[name])
    save_backbone(tmp_path / "backbone")
    words = ["--backbone=backbone", f"--train_file={name}", "--output_dir=out", "--max_steps=1", "--validation_size=0"]
    done = run_python("-m", "lstmpool.train_trainer", *words, "--use_cpu", "--lstm_hidden_size=4", cwd=tmp_path)
    if name in ("sound.tsv", "space.csv"):
        assert done.returncode == 0, done.stderr
        return
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert name in line or "training row" in line
