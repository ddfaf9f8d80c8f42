"""The benchmark of exits: its rows, that it goes on, scores, layers and times by hand, and what its tables say."""

import csv
import gzip
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer

from lstmpool.benchmarks import exits, exits_measured, exits_scores
from lstmpool.benchmarks.exits import Place, draw, main, splits_of
from lstmpool.benchmarks.exits_measured import COLUMNS, cpu_seconds, given, never_taken, peak_of
from lstmpool.benchmarks.exits_scores import Compared, add_control, add_patience, first_of, in_a_row
from lstmpool.benchmarks.exits_tables import (
    BOUNDED,
    CUT,
    EXITS,
    FULL,
    HALF,
    MEAN,
    PATIENCE,
    STOCK,
    TIMED,
    UNTIMED,
)
from lstmpool.benchmarks.results import read_rows
from lstmpool.modeling_lstmpool import LstmPoolForSequenceClassification
from lstmpool.training.errors import InputError
from lstmpool.training.output.run_record import RunRecord
from lstmpool.training.tasks.multi_label import MultiLabel
from lstmpool.training.tasks.single_label import SingleLabel

from ..conftest import tiny_config
from ..training_fixtures import save_backbone, sentences, task_of, write_csv


def rows_of(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


# --------------------------------------------------------------------------------------------------------------- rows
@pytest.fixture
def data(tmp_path):
    """A set `one` of single texts, some of which stand in several splits, and a gzipped set of pairs, `two`."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    texts = {"test": ["a b", "c"], "validation": ["A  b", "d", "e"], "train": ["c", "D", *map(str, range(8)), "e"]}
    for split, of_split in texts.items():
        write_csv(tmp_path / "one" / f"{split}.csv", {"text": of_split, "label": ["x"] * len(of_split)})
        pairs = {"sentence1": of_split, "sentence2": of_split[::-1], "label": ["y"] * len(of_split), "id": of_split}
        path = write_csv(tmp_path / "two" / f"{split}.csv", pairs)
        path.with_suffix(".csv.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    return tmp_path


def test_a_text_is_drawn_for_one_split_only(data, tmp_path):
    draw(data, "one", 1, tmp_path / "rows")
    found = {split: rows_of(tmp_path / "rows" / f"{split}.csv") for split in ("train", "validation", "test")}
    assert found["test"] == [["text", "label"], ["a b", "x"], ["c", "x"]]
    assert found["validation"] == [["text", "label"], ["d", "x"], ["e", "x"]]
    assert found["train"] == [["text", "label"], *([str(i), "x"] for i in range(8))]
    draw(data, "two", 1, tmp_path / "pairs")
    assert rows_of(tmp_path / "pairs" / "test.csv")[:2] == [["sentence1", "sentence2", "label"], ["a b", "c", "y"]]
    with pytest.raises(InputError, match="expected train.csv or train.csv.gz in .*three"):
        draw(data, "three", 1, tmp_path / "rows")


def test_a_seed_draws_its_own_rows_and_the_same_ones_each_time(data, tmp_path, monkeypatch):
    monkeypatch.setattr(exits, "MOST", {"train": 5, "validation": 1, "test": 1000})
    found = []
    for seed in (1, 1, 2):
        draw(data, "one", seed, tmp_path / "rows")
        found.append([(tmp_path / "rows" / f"{split}.csv").read_bytes() for split in exits.MOST])
    assert found[0] == found[1] and found[0][0] != found[2][0] and found[0][2] == found[2][2]
    # the draw that random.Random("one train 1") gives of the eight rows that are left
    assert found[0][0] == b"text,label\n" + b"".join(b"%d,x\n" % i for i in DRAWN)


DRAWN = random.Random("one train 1").sample(range(8), 5)


# --------------------------------------------------------------------------------------------------------------- runs
@pytest.fixture
def place(tmp_path):
    """A place with rows, and whatever is trained there."""
    found = Place(tmp_path / "runs", "one", 1, "folder/b")
    found.rows.mkdir(parents=True)
    for split in exits.MOST:
        write_csv(found.rows / f"{split}.csv", {"text": sentences(4), "label": ["x", "y"] * 2})
    return found


def stand_in(place, trained, status=0, alone=(0.5, 0.896, 0.9, 0.95, 0.99)):
    """What takes the place of `metered`: a training that leaves what the benchmark reads of it."""

    def metered(words, folder):
        output = Path(words[-1] if "-c" in words else words[words.index("--output_dir") + 1])
        trained.append([output.name, *words])
        (folder / "log").write_text("the last line")
        if status:
            return {"status": status}
        output.mkdir()
        (output / "config.json").write_text(json.dumps({"layers": [1, 2, 3, 4, 5, 6]}))
        if "-c" not in words:
            RunRecord.of({}, splits_of(place.rows)[0]).write(output)
            record = json.loads((output / "run.json").read_text())
            (output / "run.json").write_text(json.dumps(record | {"finished": True}))
        curve = {"layer_alone": list(alone), "whole_model": 0.9}
        found = {"early_exit": {"layers": [1, 2, 3, 4, 5, 6], "splits": {"validation": curve}}}
        (output / "metrics.json").write_text(json.dumps(found))
        return {"status": 0}

    return metered


def test_each_contender_has_its_command(place, monkeypatch):
    trained = []
    monkeypatch.setattr(exits, "metered", stand_in(place, trained))
    folders = place.all_folders()
    names = [name for name, *_ in trained]
    assert names == ["one-1", "one-1-exits", "one-1-bounded", "one-1-layers2", "one-1-layers3", "one-1-stock"]
    assert {who: folder.name for who, folder in folders.items()} == dict(
        zip((FULL, EXITS, BOUNDED, CUT, HALF, STOCK), names, strict=True)
    )
    words = {name: " ".join(of) for name, *of in trained}
    files = " ".join(f"--{split}_file {place.rows / split}.csv" for split in ("train", "validation", "test"))
    full = f"-m lstmpool.train_trainer --backbone folder/b {files} --output_dir {place.runs}/one-1"
    assert words["one-1"].endswith(f"{full} --disable_tqdm True --seed 1")
    early = f"--init_from {place.runs}/one-1 --early_exit True --early_exit_max_drop 0.5 --early_exit_rule"
    assert f"{early} point {files}" in words["one-1-exits"] and f"{early} bounded" in words["one-1-bounded"]
    assert words["one-1-layers2"].endswith("--seed 1 --layers 1 2")  # 0.896 is within 0.5 points of 0.9
    assert words["one-1-layers3"].endswith("--seed 1 --layers 1 2 3")
    assert words["one-1-stock"].endswith(f"{place.rows} folder/b 1 {place.runs}/one-1-stock")
    assert place.all_folders() == folders and len(trained) == 6  # all are finished
    assert place.all_folders([HALF]) == {who: folders[who] for who in (FULL, EXITS, HALF)}


@pytest.mark.parametrize(
    ("alone", "cut"), [((0.1, 0.2, 0.3, 0.4, 0.5), "one-1"), ((0.1, 0.2, 0.9, 0.9, 0.9), "one-1-layers3")]
)
def test_a_cut_that_another_contender_has_is_not_trained_twice(place, monkeypatch, alone, cut):
    trained = []
    monkeypatch.setattr(exits, "metered", stand_in(place, trained, alone=alone))
    assert place.all_folders()[CUT].name == cut
    assert sorted(name for name, *_ in trained) == sorted({name for name, *_ in trained}) and len(trained) == 5


def test_a_folder_of_other_rows_is_refused(place, monkeypatch):
    monkeypatch.setattr(exits, "metered", stand_in(place, []))
    place.train(FULL)
    write_csv(place.rows / "test.csv", {"text": sentences(4), "label": ["y", "x"] * 2})
    with pytest.raises(InputError, match="found other rows of test in .*one-1. Delete it"):
        place.train(FULL)


def test_a_measured_set_is_not_measured_again(data, monkeypatch, capsys):
    seen = []
    found = {who: dict.fromkeys(COLUMNS, "1") for who in (*TIMED, *UNTIMED)}

    def all_folders(self, contenders):
        seen.append((self.seed, self.name))
        if self.name == "two":
            raise InputError("it failed")
        return {}

    monkeypatch.setattr(Place, "all_folders", all_folders)
    monkeypatch.setattr(exits, "splits_of", lambda folder: ({}, task_of(SingleLabel)))
    monkeypatch.setattr(exits_measured, "measure", lambda *args: found)
    words = ["--data", str(data), "--runs", str(data / "runs"), "--output", str(data / "r.csv"), "--seeds", "1", "2"]
    assert main([*words, "--sets", "one", "two", "--code", "x"]) == 1
    assert seen == [(1, "one"), (1, "two"), (2, "one"), (2, "two")] and "it failed" in capsys.readouterr().err
    assert len(read_rows(data / "r.csv")) == 2 * len(found)
    assert main([*words, "--sets", "one", "--code", "x"]) == 0 and len(seen) == 4
    assert main([*words, "--sets", "one", "--code", "y"]) == 0 and len(seen) == 6
    with pytest.raises(SystemExit):
        main(["--data", str(data)])
    assert "expected --data, the folder of the sets, and --runs" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------------- scores
def logits_for(answers, sure=4.0):
    """Logits (N, 3) for these answers."""
    return sure * np.eye(3)[np.array(answers)]


def compared(full, labels):
    found = Compared(task_of(SingleLabel), {"train": np.array(labels), **dict.fromkeys(BOTH, np.array(labels))})
    for split in BOTH:
        found.add(FULL, split, logits_for(full), np.full(len(full), 3))
    return found


BOTH = ("validation", "test")


def test_a_contender_beside_the_full_model():
    found = compared([0, 1, 2, 0], [0, 1, 1, 1])
    for split, answers in (("validation", [0, 1, 1, 0]), ("test", [1, 1, 2, 0])):
        found.add("other", split, logits_for(answers), np.array([1, 1, 3, 2]))
    row = found.row("other")
    assert (row["validation"], row["test"]) == ("75.000", "25.000")
    assert (row["gain_validation"], row["gain_test"]) == ("25.000", "-25.000")
    assert (row["layers"], row["agreement"], row["test_rows"]) == ("1.750", "0.7500", "4")
    # one of four rows is lost: in most draws it is there up to three times
    assert (float(row["low"]), float(row["high"])) == (-75, 0)
    assert {found.row(FULL)[name] for name in ("gain_test", "low", "high")} == {"0.000"}


def test_several_labels_agree_if_all_of_them_do():
    labels = np.array([[1, 0, 1], [0, 1, 0]])
    found = Compared(task_of(MultiLabel), dict.fromkeys(BOTH, labels))
    for split in BOTH:
        found.add(FULL, split, np.where(labels, 1.0, -1.0), np.full(2, 3))
        found.add("other", split, np.array([[1.0, -1, -1], [-1, 1, -1]]), np.full(2, 1))
    row = found.row("other")  # 2 hits, of 3 true and 2 found labels
    assert (row["test"], row["gain_test"], row["agreement"]) == ("80.000", "-20.000", "0.5000")


def test_answers_in_a_row():
    assert in_a_row(np.array([[5, 5, 2, 2, 2], [1, 2, 3, 3, 1]])).tolist() == [[1, 2, 1, 2, 3], [1, 1, 1, 2, 1]]
    several = np.array([[[1, 0], [1, 0], [1, 1]]])  # a row's answers at three exits, of two labels each
    assert in_a_row(several).tolist() == [[1, 2, 1]]
    assert first_of(np.array([[False, True, True], [False, False, False]])).tolist() == [1, 3]


def test_patience_is_the_smallest_that_loses_little_enough():
    """Of four rows, patience 2 loses one: 25 points and a margin of 25. Patience 1 loses two: 50 points and 35.4."""
    by_exit = [logits_for(answers) for answers in ([1, 0, 2, 0], [0, 1, 2, 2], [0, 1, 2, 2])]
    logits = dict.fromkeys(BOTH, np.stack(by_exit, axis=1))
    for drop, patience, layers in ((49.0, "3", [4, 4, 3, 4]), (50.0, "2", [3, 3, 2, 3]), (85.4, "1", [1, 1, 1, 1])):
        found = compared([0, 1, 2, 0], [0, 1, 2, 0])
        assert add_patience(found, logits, drop) == patience
        assert found.layers[PATIENCE, "test"].tolist() == layers


def test_a_control_leaves_where_it_is_sure_enough():
    """Exits that are right where they are sure, and wrong on one row of 40 where they are less so.

    That is 2.5 points, and a margin of 2.5.
    """
    n = 40
    labels = np.arange(n) % 3
    wrong = (labels + (np.arange(n) == 7)) % 3
    sure = np.where(np.arange(n) == 7, 1.0, 5.0 + np.arange(n) / n)[:, None]
    at_exits = np.stack([sure * np.eye(3)[wrong], sure * np.eye(3)[labels]], axis=1)  # the second one errs nowhere
    for drop, first in ((4.9, n - 1), (5.0, n)):
        found = compared(labels, labels)
        assert 0 < float(add_control(found, MEAN, dict.fromkeys(BOTH, at_exits), drop)) < 1
        assert (found.layers[MEAN, "test"] == 1).sum() == first
        assert found.points("test", found.logits[MEAN, "test"]) == (100 if first < n else 97.5)


def test_the_heads_of_the_controls_learn_what_their_layers_show():
    """The label stands in the lowest layer alone: its own head and the LSTM see it, and so does the mean of both."""
    generator = torch.Generator().manual_seed(0)
    labels = np.arange(90) % 3
    states = torch.randn(90, 3, 16, generator=generator)
    states[:, 0, :3] += 8 * torch.eye(3)[labels]
    config = tiny_config(layers=[1, 2, 3], num_labels=3)
    by_split = dict.fromkeys(("train", *BOTH), states)
    own = exits_scores.exits_of_linear(by_split, dict.fromkeys(by_split, labels), config)["test"]
    read = exits_scores.exits_of_lstm(by_split, labels, task_of(SingleLabel))["test"]
    assert own.shape == read.shape == (90, 2, 3)
    assert (own[:, 0].argmax(-1) == labels).all() and (own[:, 1].argmax(-1) == labels).mean() < 0.9
    assert ((read.argmax(-1) == labels[:, None]).mean(0) > 0.9).all()
    means = exits_scores.so_far(torch.tensor([[[2.0], [4.0], [9.0]]]))
    assert means.flatten().tolist() == [2.0, 3.0, 5.0]


# ----------------------------------------------------------------------------------------------------- models, times
def test_logits_and_layers_stand_in_the_order_of_the_rows(tmp_path):
    torch.manual_seed(0)
    model = LstmPoolForSequenceClassification.from_backbone(str(save_backbone(tmp_path)), num_labels=3)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    texts = [" ".join(sentences(n % 3 + 1)) for n in range(40)]
    rows = Dataset.from_dict(dict(tokenizer(texts)))
    model.add_exits()
    alone = [given(model, rows.select([i]), tokenizer)[0] for i in range(40)]
    logits, layers = given(model, rows, tokenizer)
    np.testing.assert_allclose(logits, np.concatenate(alone), atol=1e-5)
    assert layers.tolist() == [2] * 40
    states = exits_measured.layer_states(model, rows, tokenizer)
    model.config.exit_threshold = 0.0
    left, layers = given(model, rows, tokenizer)
    assert layers.tolist() == [1] * 40
    np.testing.assert_allclose(left, model.exits(states)[:, 0].detach(), atol=1e-5)


def test_each_input_goes_through_all_before_the_next_one_does(monkeypatch):
    now, calls = [0.0], []
    monkeypatch.setattr(exits_measured.time, "process_time", lambda: now[0])

    def step(name, seconds):
        def call(number):
            calls.append((name, number))
            now[0] += seconds * number

        return call

    times = cpu_seconds({"a": step("a", 1), "b": step("b", 10)}, [{"number": 1}, {"number": 2}], rounds=3)
    assert times == {"a": [3, 3, 3], "b": [30, 30, 30]}
    assert calls[:2] == [("a", 1), ("b", 1)]  # to warm up, which does not count
    rest = calls[2:]
    assert [number for _, number in rest] == [1, 1, 2, 2] * 3
    assert all({name for name, _ in rest[i : i + 2]} == {"a", "b"} for i in range(0, 12, 2))


def test_the_cost_is_of_exits_that_no_row_takes(tmp_path):
    steps, inputs = never_taken(str(save_backbone(tmp_path)), 3, 8)
    with torch.inference_mode():
        whole, watched = steps["without"](**inputs), steps["never taken"](**inputs)
    assert whole.get("exit_layers") is None and watched.exit_layers.tolist() == [2, 2, 2]
    assert torch.equal(whole.logits, watched.logits)
    peaks = [peak_of(str(tmp_path), 3, 8, name) for name in steps]
    assert 0 < peaks[0] <= peaks[1] * 1.1


# --------------------------------------------------------------------------------------------------- the whole command
@pytest.mark.slow
def test_the_contenders_run_on_small_data(tmp_path, monkeypatch):
    words = sentences(96)
    for name, label in (("one", "label"), ("several", "labels")):
        (tmp_path / name).mkdir()
        for split, part in (("train", slice(0, 48)), ("validation", slice(48, 80)), ("test", slice(80, 96))):
            texts = [f"{text} {i}" for i, text in enumerate(words)][part]
            cells = ["x" if "cat" in text or "dog" in text else "y" for text in texts]
            write_csv(
                tmp_path / name / f"{split}.csv",
                {"text": texts, label: [*cells[:-1], "x y"] if label == "labels" else cells},
            )
    save_backbone(tmp_path / "backbone")
    output = tmp_path / "exits.csv"
    flags = ["--data", str(tmp_path), "--runs", str(tmp_path / "runs"), "--output", str(output), "--seeds", "1"]
    flags += ["--backbone", str(tmp_path / "backbone"), "--rounds", "1", "--code", "c", "--sets", "one", "several"]
    assert main(flags) == 0
    rows = read_rows(output)
    assert [row["contender"] for row in rows] == [*TIMED, *UNTIMED] * 2
    assert {row["metric"] for row in rows} == {"accuracy", "f1_micro"}
    assert all(float(row["faster_32"]) > 0.1 for row in rows if row["contender"] in TIMED)
    monkeypatch.setattr(exits_measured, "COST_TOKENS", (8,))
    monkeypatch.setattr(exits_measured, "COST_TOKENS_IN_ALL", 80)
    assert main([*flags, "--cost"]) == 0 and len(read_rows(tmp_path / "exits_cost.csv")) == 2
    assert main([*flags, "--table"]) == 0
