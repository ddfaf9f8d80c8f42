"""One run at a time in an output folder."""

import os
import re
import signal
import time

import pytest

from lstmpool.training.errors import InputError
from lstmpool.training.output.found import Found, look
from lstmpool.training.output.lock import HOLDER, LOCK, locked

from ...training_fixtures import ROOT, run_python


def hold(folder):
    """Forks a process that holds the folder until it is killed. Returns its id once it does."""
    ready, told = os.pipe()
    process = os.fork()
    if not process:
        try:
            with locked(folder):
                os.write(told, b"x")
                time.sleep(60)
        finally:
            os._exit(1)
    assert os.read(ready, 1) == b"x"
    os.close(ready)
    os.close(told)
    return process


def kill(process):
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)


def test_a_second_run_is_told_who_has_the_folder_and_a_kill_lets_it_go(tmp_path):
    folder = tmp_path / "out"
    process = hold(folder)
    try:
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        assert set(before) == {LOCK, HOLDER}
        said = rf"is in use by another run, process {process} on \S+, since [-\d]+ [:\d]+\S+\. Wait for its end, or"
        with pytest.raises(InputError, match=said), locked(folder):
            pass
        with pytest.raises(InputError, match=said), locked(folder / "fold-1"):  # which the other run may be writing
            pass
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    finally:
        kill(process)
    assert look(folder) == Found(folder, folder)  # what the killed run has left counts as nothing
    with locked(folder):
        assert re.search(rf'"process": {os.getpid()},', (folder / HOLDER).read_text())
    assert not list(folder.iterdir())


def test_a_cross_validation_waits_for_a_run_in_the_folder_of_a_fold(tmp_path):
    process = hold(tmp_path / "fold-2")
    try:
        with pytest.raises(InputError, match=f"is in use by another run, process {process} on"), locked(tmp_path):
            pass
        assert [path.name for path in tmp_path.iterdir()] == ["fold-2"]
    finally:
        kill(process)
    with locked(tmp_path):
        pass


def test_nothing_is_left_of_the_lock_nor_of_a_folder_that_stays_empty(tmp_path):
    with locked(tmp_path / "new" / "out"):
        assert (tmp_path / "new" / "out" / LOCK).exists()
    assert not list(tmp_path.iterdir())
    with pytest.raises(KeyError), locked(tmp_path / "out"):
        (tmp_path / "out" / "run.json").touch()
        raise KeyError
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["run.json"]


def test_inside_of_a_folder_that_this_process_holds_there_is_no_second_lock(tmp_path):
    for inner in (tmp_path, tmp_path / "fold-1"):
        with locked(tmp_path):
            with locked(inner):
                pass
            assert {path.name for path in tmp_path.iterdir()} == {LOCK, HOLDER}
    (tmp_path / "link").symlink_to(tmp_path)
    with locked(tmp_path), locked(tmp_path / "link"):
        pass


def test_a_fork_such_as_a_worker_of_a_data_loader_does_not_keep_the_lock_of_a_killed_run(tmp_path):
    ready, told = os.pipe()
    process = os.fork()
    if not process:
        with locked(tmp_path / "out"):
            worker = os.fork()
            if worker:
                os.write(told, worker.to_bytes(4, "big"))
            time.sleep(60)
            os._exit(1)
    worker = int.from_bytes(os.read(ready, 4), "big")
    kill(process)
    with locked(tmp_path / "out"):
        pass
    os.kill(worker, signal.SIGKILL)


def test_a_file_or_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("mine")
    with locked(tmp_path / "file"):  # the run refuses it
        pass
    with pytest.raises(InputError, match="--output_dir .*file/out cannot be written: "), locked(tmp_path / "file/out"):
        pass
    (tmp_path / LOCK).symlink_to(tmp_path / "file")
    with pytest.raises(InputError, match="cannot be written: "), locked(tmp_path):
        pass
    assert (tmp_path / "file").read_text() == "mine"
    (tmp_path / "out" / HOLDER).mkdir(parents=True)
    with pytest.raises(InputError, match="cannot be written: "), locked(tmp_path / "out"):
        pass


def test_the_command_says_who_has_the_folder_in_one_line_and_changes_nothing(tmp_path):
    process = hold(tmp_path / "out")
    before = sorted(path.name for path in (tmp_path / "out").iterdir())
    (tmp_path / "rows.csv").write_text("text,label\na,b\n")
    words = ["--backbone=none", "--train_file=rows.csv", "--output_dir=out", "--overwrite", "--use_cpu"]
    done = run_python(str(ROOT / "train_trainer.py"), *words, cwd=tmp_path)
    kill(process)
    assert done.returncode == 2 and done.stdout == ""
    line = f"error: --output_dir out is in use by another run, process {process} on "
    assert done.stderr.startswith(line) and done.stderr.count("\n") == 1
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == before
