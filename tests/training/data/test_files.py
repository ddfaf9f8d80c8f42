import gzip
import json

import pytest
from datasets import Dataset, DatasetDict

from lstmpool.training.data.files import read_table
from lstmpool.training.errors import InputError


ROWS = [{"text": 'a, "b"\nc', "label": "x"}, {"text": "None", "label": "NA"}]


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def saved(tmp_path, kind):
    table, path = Dataset.from_list(ROWS), tmp_path / f"rows{kind}"
    if kind == "":
        table.save_to_disk(path)
    elif kind.startswith(".csv"):
        content = b'text,label\n"a, ""b""\nc",x\nNone,NA\n\n'
        write(path, gzip.compress(content) if kind.endswith("gz") else b"\xef\xbb\xbf" + content)
    elif kind == ".parquet":
        table.to_parquet(path)
    else:
        text = json.dumps(ROWS) if kind == ".json" else "\n".join(map(json.dumps, ROWS)) + "\n"
        write(path, gzip.compress(text.encode()) if kind.endswith("gz") else text)
    return path


@pytest.mark.parametrize("kind", [".csv", ".csv.gz", ".json", ".jsonl", ".jsonl.gz", ".parquet", ""])
def test_every_kind_of_file_gives_the_same_rows(tmp_path, kind):
    assert read_table(saved(tmp_path, kind)).to_list() == ROWS


def test_json_lines_may_end_in_json(tmp_path):
    assert read_table(saved(tmp_path, ".jsonl").rename(tmp_path / "rows.json")).to_list() == ROWS


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "text", "must end in .csv"),
        ("a.csv", b"PAR1 and more", "expected .csv, found .parquet content"),
        ("a.csv", gzip.compress(b"text"), "expected .csv, found gzip content"),
        ("a.csv", '{"text": "a"}', "expected .csv, found .json content"),
        ("a.csv", "<!DOCTYPE html><html>", "expected .csv, found HTML content"),
        ("a.csv", "version https://git-lfs.github.com/spec/v1", "Git LFS pointer"),
        ("a.csv", "text,label\na,b\na,b,c\n", "line 3: expected 2 fields .*found 3"),
        ("a.csv", 'text,label\n"a,b\n', "not valid CSV"),
        ("a.csv", "text,text\na,b\n", "name each column once"),
        ("a.csv", "text,label\n", "holds no rows"),
        ("a.csv", "text,label\ncaf\xe9,x\n".encode("latin-1"), "UTF-8, found another encoding in line 2"),
        ("a.json", "text,label\na,b\n", "expected JSON, found in line 1"),
        ("a.jsonl", '{"text": "a"}\n{"text": \n', "expected JSON, found in line 2"),
        ("a.json", "[1, 2]", "one JSON object a row"),
        ("a.json", '[{"label": 1}, {"label": "x"}]', "column of mixed kinds"),
        ("a.parquet", "text,label\na,b\n", "expected .parquet, found plain text content"),
        ("a.csv.gz", "text,label\na,b\n", "expected gzip, found plain text content"),
        ("a.csv.gz", gzip.compress(b"text,label\na,b\n" * 99)[:-9], "cut off or broken"),
    ],
)
def test_a_file_that_is_not_what_its_ending_says(tmp_path, name, content, message):
    with pytest.raises(InputError, match=message) as error:
        read_table(write(tmp_path / name, content))
    assert "\n" not in str(error.value)
    assert name in str(error.value)


def test_a_missing_file_is_told_with_the_nearest_name(tmp_path):
    write(tmp_path / "train.csv", "text\na\n")
    with pytest.raises(InputError, match="found nothing at .*Did you mean 'train.csv'"):
        read_table(tmp_path / "trian.csv")


def test_folders(tmp_path):
    DatasetDict({"train": Dataset.from_list(ROWS), "test": Dataset.from_list(ROWS)}).save_to_disk(tmp_path / "both")
    with pytest.raises(InputError, match="several splits"):
        read_table(tmp_path / "both")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="none that Dataset.save_to_disk wrote"):
        read_table(tmp_path / "empty")
