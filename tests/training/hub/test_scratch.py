"""What a killed process leaves in the folder of temporary files, and what the next one does about it."""

import os
import signal
import subprocess
import sys
import time

import pytest

from lstmpool.training.hub.scratch import LOCK, OLD, PREFIX, YOUNG, scratch


HOLD = """
import sys, time
from lstmpool.training.hub.scratch import scratch
with scratch() as folder:
    (folder / "weights").write_text("large")
    print(folder.parent, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def made(path, seconds_ago):
    path.mkdir(exist_ok=True)
    os.utime(path, (time.time() - seconds_ago,) * 2)
    return path


def test_a_folder_is_empty_and_goes_at_the_end(place):
    with scratch() as folder:
        assert list(folder.iterdir()) == [] and place in folder.parents
        (folder / "a").mkdir()
    assert list(place.iterdir()) == []


def test_the_next_process_removes_what_a_killed_one_left_and_not_what_a_living_one_uses(place):
    environment = os.environ | {"TMPDIR": str(place)}
    command = [sys.executable, "-c", HOLD]
    owners = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        killed, living = [owner.stdout.readline().strip() for owner in owners]
        owners[0].send_signal(signal.SIGKILL)
        owners[0].wait()
        assert {str(path) for path in place.iterdir()} == {killed, living}
        os.utime(killed, (time.time() - YOUNG - 1,) * 2)
        os.utime(living, (time.time() - 2 * OLD,) * 2)
        with scratch():
            assert not os.path.exists(killed) and os.path.exists(os.path.join(living, "inside", "weights"))
    finally:
        for owner in owners:
            owner.kill()
            owner.wait()
            owner.stdout.close()


def test_only_folders_of_ours_are_removed_and_no_link_is_followed(place, tmp_path_factory):
    target = tmp_path_factory.mktemp("target")
    (target / LOCK).touch()
    (place / f"{PREFIX}link").symlink_to(target)
    (place / f"{PREFIX}mine").mkdir()
    (place / f"{PREFIX}mine" / "rows.csv").touch()
    names = ("lstmpool-data", f"{PREFIX}mine", f"{PREFIX}just-made")
    kept = [made(place / name, 0 if "just" in name else 2 * OLD) for name in names]
    (place / f"{PREFIX}without-a-lock" / "inside" / "hf").mkdir(parents=True)
    old = made(place / f"{PREFIX}without-a-lock", 2 * OLD)
    with scratch():
        assert not old.exists()
        assert all(path.exists() for path in kept) and (target / LOCK).exists()
        assert (place / f"{PREFIX}link").is_symlink()
