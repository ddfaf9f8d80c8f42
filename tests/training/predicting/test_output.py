"""Where predictions go: what was cut off goes on, nothing else is replaced, and shards are parts of one table."""

import io
import os
import signal
from pathlib import Path

import pyarrow.dataset
import pyarrow.parquet
import pytest
from filelock import FileLock

from lstmpool.training.predicting.model import Finished
from lstmpool.training.predicting.options import Shard, parse
from lstmpool.training.predicting.output import ToFile
from lstmpool.training.predicting.rows import Survey

from ...training_fixtures import write_csv
from .conftest import TEXTS, predict, save_model, whole


# ------------------------------------------------------------------------------------------------- stop and go on
@pytest.mark.parametrize("name", ["out.csv", "out.jsonl", "out.parquet"])
@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_what_was_stopped_goes_on_and_ends_as_if_it_had_not_been(work, computed, capsys, name, signum, status):
    expected = whole(name)
    computed.clear()
    computed.stop = signum
    assert predict("new.csv", "--output", name) == status
    assert "stopped after 3 chunks. The same command with --resume goes on from there." in capsys.readouterr().err
    assert not Path(name).exists()
    Path(f"{name}.part", f".000003.{name[4:]}.unfinished").write_bytes(b"half of a")  # as a kill in a write leaves
    computed.stop = 0
    assert predict("new.csv", "--output", name) == 2
    assert (
        f"{name}.part holds 3 chunks of predictions that were cut off. Go on with --resume" in capsys.readouterr().err
    )
    assert predict("new.csv", "--output", name, "--resume") == 0
    assert computed == [0, 1, 2, 3, 4, 5]
    assert Path(name).read_bytes() == expected
    assert not Path(f"{name}.part").exists()


@pytest.fixture
def stopped(work, computed):
    computed.stop = signal.SIGTERM
    assert predict("new.csv", "--output", "out.csv") == 143
    computed.stop = 0
    return work


def test_other_rows_settings_or_weights_do_not_go_on(stopped, made, computed, capsys):
    words = ("--output", "out.csv", "--resume")
    assert predict("new.csv", *words, "--scores") == 2
    assert "out.csv.part was begun with other scores (False there, True here). Give" in capsys.readouterr().err
    write_csv(stopped / "other.csv", {"text": TEXTS, "id": ["x"] * len(TEXTS)})
    assert predict("other.csv", *words) == 2
    assert "begun with other rows." in capsys.readouterr().err
    os.unlink("model")
    save_model(made / "backbone", stopped / "model", seed=1)
    assert predict("new.csv", *words) == 2
    assert "begun with other model." in capsys.readouterr().err
    assert predict("new.csv", *words, "--overwrite") == 2
    assert predict("new.csv", "--output", "out.csv", "--overwrite") == 0
    assert len(Path("out.csv").read_text().splitlines()) == 24


def test_a_file_that_is_there_is_replaced_only_with_overwrite_and_stays_until_then(work, computed, capsys):
    Path("out.csv").write_text("mine")
    assert predict("new.csv", "--output", "out.csv") == 2
    assert (
        "error: --output out.csv exists already. Choose another name, or add --overwrite." in capsys.readouterr().err
    )
    computed.stop = signal.SIGTERM
    assert predict("new.csv", "--output", "out.csv", "--overwrite") == 143
    assert Path("out.csv").read_text() == "mine"
    assert predict("new.csv", "--output", "out.csv", "--overwrite", "--resume") == 0
    assert computed == [0, 1, 2, 3, 4, 5]
    assert Path("out.csv").read_text().startswith("id,prediction,confidence\nrow 0,")
    content = Path("new.csv").read_bytes()
    assert predict("new.csv", "--output", "new.csv", "--overwrite") == 2
    assert "is one of the files to read" in capsys.readouterr().err
    assert Path("new.csv").read_bytes() == content


class Killed(BaseException):
    """What a kill is to a test: nothing handles it."""


@pytest.mark.parametrize("name", ["out.csv", "out.jsonl", "out.parquet"])
@pytest.mark.parametrize("left", [0, 1, 3])
def test_a_kill_while_the_pieces_are_removed_leaves_a_file_that_is_finished(work, monkeypatch, capsys, name, left):
    def removed_in_part(self):
        for piece in self._pieces()[left:]:
            piece.unlink()
        raise Killed

    expected = whole(name)
    with monkeypatch.context() as patch:
        patch.setattr(ToFile, "_remove_pieces", lambda self: None if not self.done else removed_in_part(self))
        with pytest.raises(Killed):
            predict("new.csv", "--output", name)
    assert predict("new.csv", "--output", name, "--resume", "--scores") == 2
    assert f"{name} holds other predictions." in capsys.readouterr().err
    assert predict("new.csv", "--output", name, "--resume") == 0
    assert f"{name} is finished already." in capsys.readouterr().err
    assert Path(name).read_bytes() == expected
    assert not Path(f"{name}.part").exists()


def test_what_the_standard_input_gave_can_only_begin_anew(work, computed, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"red dog\n" * 12)))
    computed.stop = signal.SIGTERM
    assert predict("-", "--output", "out.csv") == 143
    assert "stopped after 3 chunks. Begin anew with --overwrite: the standard" in capsys.readouterr().err
    assert predict("-", "--output", "out.csv") == 2
    assert "3 chunks of predictions that were cut off. Begin anew with --overwrite." in capsys.readouterr().err


@pytest.mark.parametrize("rows", [TEXTS[:9], [*TEXTS, "red"]])
def test_rows_that_change_after_their_check_are_told(work, monkeypatch, capsys, rows):
    write_csv(Path("changing.csv"), {"text": TEXTS})
    load = Finished.load

    def change(self, *words):
        write_csv(Path("changing.csv"), {"text": rows})
        return load(self, *words)

    monkeypatch.setattr(Finished, "load", change)
    assert predict("changing.csv", "--output", "out.csv") == 2
    assert "error: the rows are others than when they were checked." in capsys.readouterr().err
    assert not Path("out.csv").exists()


def test_what_is_no_file_is_not_replaced(work, capsys):
    os.mkfifo("pipe.csv")
    assert predict("new.csv", "--output", "pipe.csv", "--overwrite") == 2
    assert "--output pipe.csv is a device or a pipe. Leave --output out" in capsys.readouterr().err
    assert Path("pipe.csv").is_fifo()


def test_a_file_of_the_data_set_is_not_replaced(work, capsys):
    Path("data").mkdir()
    content = write_csv(Path("data/test.csv"), {"text": TEXTS}).read_bytes()
    assert predict("--dataset_name", "data", "--output", "data/test.csv", "--overwrite") == 2
    assert "data/test.csv is one of the files to read" in capsys.readouterr().err
    assert Path("data/test.csv").read_bytes() == content


def test_a_file_that_another_process_writes_is_left_alone(work, capsys):
    Path("out.csv.part").mkdir()
    with FileLock(Path("out.csv.part/.lock")):
        assert predict("new.csv", "--output", "out.csv") == 2
    assert "another process writes out.csv already" in capsys.readouterr().err


# -------------------------------------------------------------------------------------------------------------- shards
def test_shards_are_parts_of_one_table_that_is_read_at_any_time(work, computed, capsys):
    assert predict("new.csv", "--output", "out", "--shard=1/3") == 0
    assert predict("new.csv", "--output", "out", "--shard=3/3") == 0
    computed.clear()
    computed.stop = signal.SIGTERM
    assert predict("new.csv", "--output", "out", "--shard=2/3") == 143
    computed.stop = 0
    table = pyarrow.dataset.dataset("out").to_table()  # the part that was cut off is no part of it
    names = {f"row {i}" for i in range(23)}
    assert len(table) == len(set(table["id"].to_pylist())) < 23
    for shard in ("1/3", "2/3"):  # the one that is finished stays
        assert predict("new.csv", "--output", "out", f"--shard={shard}", "--resume") == 0
    assert "out/part-00001-of-00003.parquet is finished already." in capsys.readouterr().err
    table = pyarrow.dataset.dataset("out").to_table()
    assert set(table["id"].to_pylist()) == names and len(table) == 23
    assert sorted(os.listdir("out")) == [f"part-0000{i}-of-00003.parquet" for i in (1, 2, 3)]
    assert predict("new.csv", "--output", "out", "--shard=1/2") == 2
    assert "holds part-00001-of-00003.parquet, of another number of shards" in capsys.readouterr().err


def test_processes_of_a_launcher_share_the_rows(work, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert parse(["m", "f.csv", "--output=out"], "").shard == Shard(2, 2)
    assert parse(["m", "f.csv", "--output=out", "--shard=3/16"], "").shard == Shard(6, 32)
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        assert predict("new.csv", "--output", "out") == 0
    assert sorted(pyarrow.dataset.dataset("out").to_table()["id"].to_pylist()) == sorted(f"row {i}" for i in range(23))


def test_the_bar_counts_the_rows_of_its_own_shard():
    survey = Survey([4, 3, 2, 1], "", pyarrow.int64(), has_pairs=False)
    assert [survey.of_shard(Shard(i, 3)) for i in (1, 2, 3)] == [[4, 1], [3], [2]]


def test_a_shard_without_rows_is_an_empty_part(work):
    write_csv(work / "two.csv", {"text": TEXTS[:2]})
    for shard in (1, 2, 3):
        assert predict("two.csv", "--output", "out", f"--shard={shard}/3") == 0
    table = pyarrow.dataset.dataset("out").to_table()
    assert sorted(table["id"].to_pylist()) == [0, 1]
    assert len(pyarrow.parquet.read_table("out/part-00003-of-00003.parquet")) == 0


def test_a_shard_of_one_is_a_part_of_the_folder_too(work):
    assert predict("new.csv", "--output", "out", "--shard=1/1") == 0
    assert os.listdir("out") == ["part-00001-of-00001.parquet"]


@pytest.mark.parametrize("place", [{"RANK": "x"}, {"RANK": "1"}, {"WORLD_SIZE": "2", "RANK": "-1"}])
def test_variables_of_no_launcher_are_refused(work, monkeypatch, capsys, place):
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    assert predict("new.csv", "--output", "out") == 2
    assert "Unset both" in capsys.readouterr().err
