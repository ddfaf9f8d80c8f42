import gzip
import json
import re
from pathlib import Path

import pandas
import pyarrow.parquet
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from lstmpool.training.data import files
from lstmpool.training.data.delimited import guard, unguard
from lstmpool.training.data.files import read_table
from lstmpool.training.data.streams import stream_table
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


def test_tsv_and_the_separators_of_spreadsheets(tmp_path, capsys):
    rows = [{"text": "a, b", "label": "x"}, {"text": "c; d\te|f", "label": "y"}]
    for name, between in {
        "a.tsv": "\t",
        "b.csv": ";",
        "c.csv": "\t",
        "d.csv": "|",
        "e.tsv": ",",
        "f.csv": ",",
    }.items():
        lines = [f"text{between}label", *(f'"{row["text"]}"{between}{row["label"]}' for row in rows)]
        assert read_table(write(tmp_path / name, "\r\n".join(lines))).to_list() == rows
    said = capsys.readouterr().out.splitlines()
    words = ["b.csv: its fields are separated by semicolons", "c.csv: .* tabs", "d.csv: .* bars", "e.tsv: .* commas"]
    assert len(said) == len(words)
    assert all(re.search(word, line) for word, line in zip(words, said, strict=True))
    assert read_table(write(tmp_path / "g.csv", "sep=;\r\ntext;a,b\r\nc;d\r\n")).to_list() == [
        {"text": "c", "a,b": "d"}
    ]
    assert read_table(write(tmp_path / "h.csv", "text\nfree; of any\n")).to_list() == [{"text": "free; of any"}]


def test_names_of_columns_lose_white_space_and_may_be_empty(tmp_path, capsys):
    wanted = [{"text": " a", "label": "x"}]
    assert read_table(write(tmp_path / "a.csv", " text, label\n a,x\n")).to_list() == wanted
    assert "a.csv: white space around the names of columns is left out, as in ' text'." in capsys.readouterr().out
    assert read_table(write(tmp_path / "b.csv", "\n,text,label,,\n0, a,x,,\n")).to_list() == wanted
    Dataset.from_list([{" text": " a", "label ": "x"}]).to_parquet(tmp_path / "c.parquet")
    assert read_table(tmp_path / "c.parquet").to_list() == wanted
    assert read_table(write(tmp_path / "d.json", '{" text": " a", "label": "x"}')).to_list() == wanted
    for content in ('text, label\na, "x, y"\n', '"text", "label"\n"a", "x, y"\n'):
        assert read_table(write(tmp_path / "q.csv", content)).to_list() == [{"text": "a", "label": "x, y"}]
    for name, content in {"e.csv": "text, text\na,b\n", "f.json": '{"text": 1, " text": 2}'}.items():
        with pytest.raises(InputError, match="name each column once, found 'text' twice"):
            read_table(write(tmp_path / name, content))


def test_columns_that_are_not_needed_are_not_read(tmp_path):
    odd = pyarrow.array([[("k", 1)], None], pyarrow.map_(pyarrow.string(), pyarrow.int64()))
    pyarrow.parquet.write_table(pyarrow.table({"odd": odd, "text": ["a", "b"]}), tmp_path / "a.parquet")
    write(tmp_path / "a.json", '[{"text": "a", "odd": 1}, {"text": "b", "odd": "\\ud83d"}]')
    for name in ("a.parquet", "a.json"):
        assert read_table(tmp_path / name, lambda names: ["text"]).to_list() == [{"text": "a"}, {"text": "b"}]


def test_parquet_keeps_declared_names_and_plain_categories(tmp_path):
    features = Features({"label": ClassLabel(names=["pos", "neg"]), "other": Value("int64")})
    Dataset.from_dict({"label": [1], "other": [2]}, features=features).to_parquet(tmp_path / "a.parquet")
    assert read_table(tmp_path / "a.parquet", lambda names: ["label"]).features["label"].names == ["pos", "neg"]
    pandas.DataFrame({"label": pandas.Categorical(["x", "y"])}).to_parquet(tmp_path / "b.parquet")
    assert read_table(tmp_path / "b.parquet").to_list() == [{"label": "x"}, {"label": "y"}]


def test_a_table_of_predictions_loses_its_guards_and_no_other_does(tmp_path):
    cells = "'=a,'-b,'@x,0.5\n"
    table = write(tmp_path / "test_predictions.csv", f"id,text,'=label,prediction\n{cells}")
    assert read_table(table).to_list() == [{"id": "=a", "text": "-b", "=label": "@x", "prediction": "0.5"}]
    several = write(tmp_path / "b.csv", f"id,text,label,prediction_tone\n{cells}")
    assert read_table(several).to_list()[0]["text"] == "-b"
    for header in ("id,text,label,score", "key,text,label,prediction"):
        assert read_table(write(tmp_path / "own.csv", f"{header}\n{cells}")).to_list()[0]["text"] == "'-b"


def test_what_swells_beyond_the_memory_is_refused(tmp_path, monkeypatch):
    bomb = write(tmp_path / "bomb.csv.gz", gzip.compress(b"text,label\n" + b"a" * 5_000_000))
    monkeypatch.setattr(files, "UNASKED", 1_000_000)
    with pytest.raises(InputError, match="bomb.csv.gz unpacks to more than 1 MB"):
        read_table(bomb)
    one = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 20_000, pyarrow.int32()), ["a" * 1000])
    pyarrow.parquet.write_table(pyarrow.table({"text": one}), tmp_path / "bomb.parquet")
    with pytest.raises(InputError, match="bomb.parquet unpacks to more than 1 MB"):
        read_table(tmp_path / "bomb.parquet")
    pyarrow.parquet.write_table(
        pyarrow.table({"text": pyarrow.nulls(2 * 10**6, pyarrow.int32())}), tmp_path / "c.parquet"
    )
    monkeypatch.setattr(files, "memory_left", lambda: 10**8)
    with pytest.raises(InputError, match="c.parquet unpacks to more than"):
        read_table(tmp_path / "c.parquet")
    monkeypatch.setattr(files, "memory_left", lambda: 300)
    with pytest.raises(InputError, match="has 0 MB, for which there is too little memory"):
        read_table(write(tmp_path / "plain.csv", "text\n" + "a\n" * 99))


def test_the_memory_left_is_that_of_machine_and_container(monkeypatch):
    said = {"/proc/meminfo": ["MemTotal:", "9000", "kB", "MemAvailable:", "1000", "kB"]}
    monkeypatch.setattr(files, "_words_of", lambda file: said.get(file, []))
    assert files.memory_left() == 1000 * 1024
    said |= {"/sys/fs/cgroup/memory.max": ["5000"], "/sys/fs/cgroup/memory.current": ["4000"]}
    assert files.memory_left() == 1000
    said["/sys/fs/cgroup/memory.max"] = ["max"]
    assert files.memory_left() == 1000 * 1024
    said.clear()
    assert files.memory_left() == files.MEMORY


def test_json_lines_may_end_in_json(tmp_path):
    assert read_table(saved(tmp_path, ".jsonl").rename(tmp_path / "rows.json")).to_list() == ROWS


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "text", "must end in .csv"),
        ("a.csv", b"PAR1 and more", "expected .csv, found .parquet content"),
        ("a.csv", gzip.compress(b"text", mtime=0), "expected .csv, found gzip content"),
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
        ("a.csv", "", "a.csv holds no rows"),
        ("a.csv.gz", gzip.compress(b"", mtime=0), "a.csv.gz holds no rows"),
        ("a.json", "[]", "a.json holds no rows"),
        ("a.csv", "text,label\na,b\n".encode("utf-16"), "found UTF-16"),
        ("a.csv", "text,label\na,b\n".encode("utf-16-le"), "found NUL characters in its header, as UTF-16 has"),
        ("a.csv", 'text,label\na,b\n"c\nd,e\nf,g\n', "line 3: .* A quote that is opened in that row is never closed"),
        ("a.csv", 'text,label\n"a "b" c",d\n', "line 2: .* Write a double quote inside a quoted text twice"),
        ("a.csv", "text;label\na;b;c\n", "line 2: expected 2 fields .*text;label.*found 3"),
        ("a.json", "[" * 100_000, "lists or objects lie too deep"),
        ("a.jsonl", '{"text": 1}\n{"text": ' + "[" * 100_000, "lists or objects lie too deep"),
        ("a.json", '[{"text": ' + "1" * 5000 + "}]", "Exceeds the limit .4300 digits."),
        ("a.json", '[{"text": ' + "1" * 50 + "}]", "column 'text', row 1: .* too large"),
        ("a.json", '[{"text": ' + "[" * 900 + "]" * 900 + "}]", "column 'text', row 1: .* recursion"),
        ("a.json", '[{"text": "a", "text": "b"}]', "the key 'text' is given twice"),
        (
            "a.jsonl",
            '{"text": "a"}\n{"text": null}\n{"text": "b\\ud83d"}',
            "column 'text', row 3: .* half of a character",
        ),
        ("a.jsonl", '{"text": "a"}\n{"text": "b"}\n{"text": 1}', "column 'text', row 3: .* mixed kinds"),
        ("a.csv.gz", gzip.compress(b"text,label\na,b\n" * 99, mtime=0)[:30] + b"\xff" * 30, "cut off or broken"),
        ("a.csv.gz", "text,label\na,b\n", "expected gzip, found plain text content"),
        ("a.csv.gz", gzip.compress(b"text,label\na,b\n" * 99, mtime=0)[:-9], "cut off or broken"),
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


def test_a_damaged_parquet_is_told(tmp_path):
    table = pyarrow.table({"text": ["alpha", "beta"]})
    pyarrow.parquet.write_table(table, tmp_path / "sound.parquet", compression="none", use_dictionary=False)
    content = (tmp_path / "sound.parquet").read_bytes()
    for broken in (content.replace(b"alpha", b"a\xffpha"), content[:-20], content[:20] + content[-20:]):
        with pytest.raises(InputError, match="broken.parquet cannot be read as Parquet"):
            read_table(write(tmp_path / "broken.parquet", broken))
    table = table.replace_schema_metadata({"huggingface": '{"info": null}'})
    pyarrow.parquet.write_table(table, tmp_path / "metadata.parquet")
    with pytest.raises(InputError, match="metadata.parquet cannot be read as Parquet"):
        read_table(tmp_path / "metadata.parquet")


@pytest.mark.parametrize("state", ["[]", "null", "{}", "1", '{"_data_files": [{}]}', "[" * 100_000])
def test_a_saved_folder_with_an_odd_state_is_told(tmp_path, state):
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "rows")
    write(tmp_path / "rows" / "state.json", state)
    with pytest.raises(InputError, match="rows is a folder, but none that Dataset.save_to_disk wrote"):
        read_table(tmp_path / "rows")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a\0.csv", "control characters"),
        ("a\n.csv", "control characters"),
        ("a" * 5000 + ".csv", "^File name too long: aaa"),
        ("/dev/zero", "must be a file, found a device or a pipe"),
    ],
)
def test_odd_names_of_files(name, message):
    with pytest.raises(InputError, match=message):
        read_table(Path(name))


def test_folders(tmp_path):
    DatasetDict({"train": Dataset.from_list(ROWS), "test": Dataset.from_list(ROWS)}).save_to_disk(tmp_path / "both")
    with pytest.raises(InputError, match="several splits"):
        read_table(tmp_path / "both")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="none that Dataset.save_to_disk wrote"):
        read_table(tmp_path / "empty")


# ------------------------------------------------------------------------------------------------------------ streams
STREAMED = [{"id": i, "text": f"line {i}, größer"} for i in range(2_500)]  # several tables, and more than one read
QUOTED = "id, text\n" + "".join(f'{row["id"]}, "{row["text"]}"\n' for row in STREAMED)
WRITERS = {
    "rows.csv": lambda path: path.write_text(QUOTED, encoding="utf-8"),
    "rows.tsv": lambda path: path.write_text("text\tid\n" + "a\t1\n" * 2_500),
    "rows.jsonl": lambda path: path.write_text("\n".join(map(json.dumps, STREAMED))),
    "rows.json": lambda path: path.write_text(json.dumps(STREAMED, indent=1)),
    "data.json": lambda path: path.write_text(json.dumps({"version": [1], "data": STREAMED, "more": "]"})),
    "one.json": lambda path: path.write_text(json.dumps(STREAMED[0], indent=1)),
    "rows.parquet": lambda path: pyarrow.parquet.write_table(pyarrow.Table.from_pylist(STREAMED), path),
    "folder": lambda path: Dataset.from_list(STREAMED).save_to_disk(path),
}


def text_and_id(names):
    return ["text", "id"]


@pytest.mark.parametrize("name", WRITERS)
def test_a_stream_gives_the_rows_that_the_whole_table_has(tmp_path, name):
    path = tmp_path / name
    WRITERS[name](path)
    paths = [path]
    if path.is_file():
        paths.append(tmp_path / f"{name}.gz")
        paths[1].write_bytes(gzip.compress(path.read_bytes()))
    for each in paths:
        tables = list(stream_table(each, text_and_id))
        assert max(map(len, tables)) <= 10_000
        assert pyarrow.concat_tables(tables).to_pylist() == read_table(each, text_and_id).to_list()


BROKEN = {
    "comma.json": '[{"text": "a"},\n{"text": "b",}]',
    "last.json": '[{"text": "a"},\n]',
    "more.json": '[{"text": "a"}] x',
    "twice.json": '{"text": "a", "text": "b"}',
    "number.json": "[1]",
    "none.json": "[]",
    "cut.jsonl": '{"text": "a"}\n{"text":\n',
    "kinds.jsonl": '{"text": "a"}\n{"text": 1}\n',
    "short.csv": "text,label\na\n",
    "empty.csv": "",
    "head.csv": "text\n",
    "quote.csv": 'text\n"a\n',
    "latin.csv": b"text\na\n\xff\n",
    "cut.csv.gz": gzip.compress(b"text\n" + b"abc\n" * 90_000)[:300],
    "not.parquet": b"PAR1 and nothing",
    "text.parquet": "text\na\n",
    "lfs.csv": "version https://git-lfs.github.com/spec/v1\n",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_stream_refuses_what_the_whole_table_refuses(tmp_path, name):
    content = BROKEN[name]
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    messages = []
    for read in (read_table, lambda path, wanted: list(stream_table(path, wanted))):
        with pytest.raises(InputError) as refused:
            read(path, lambda names: ["text"])
        messages.append(str(refused.value))
    assert messages[0] == messages[1]


def test_a_gzip_that_swells_is_refused_while_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("lstmpool.training.data.files.UNASKED", 1_000_000)
    (tmp_path / "bomb.csv.gz").write_bytes(gzip.compress(b"text\n" + b"a" * 50_000_000))
    with pytest.raises(InputError, match="bomb.csv.gz unpacks to more than"):
        list(stream_table(tmp_path / "bomb.csv.gz", lambda names: ["text"]))


# ---------------------------------------------------------------------------------------------- cells for spreadsheets
@pytest.mark.parametrize(
    "cell", ["=1+1", "+x", "-x", "@SUM(A1)", "\t=1", "\r=1", "-1 dog", "--1", "'=1", "'-1", "''@x"]
)
def test_a_formula_gets_an_apostrophe_that_is_taken_off_again(cell):
    assert guard(cell) == "'" + cell
    assert unguard(guard(cell)) == cell


@pytest.mark.parametrize("cell", ["", "dog", "-1", "+1.5", "-.5e-3", "1-1", "'tis", "a=b"])
def test_other_cells_stay(cell):
    assert guard(cell) == cell
    assert unguard(cell) == cell
