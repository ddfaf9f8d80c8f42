"""Damaged and odd data files, made by a script with a seed: each is read, or refused in one line."""

import gzip
import json
import random
import shutil

import pyarrow
import pyarrow.parquet
import pytest
from datasets import Dataset

from lstmpool.training.data.rows import read_splits
from lstmpool.training.data.sources import named_splits
from lstmpool.training.flags.arguments import DataArguments

from ...training_fixtures import count_outcomes, run_python, save_backbone, sentences


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
