import json
import math
import os

import pytest
from transformers import TrainerState

from lstmpool.training import writing
from lstmpool.training.errors import InputError
from lstmpool.training.loop import checkpoints
from lstmpool.training.loop.checkpoints import (
    Kept,
    Saved,
    damage,
    find_best,
    newest_whole,
    remove_checkpoint,
    saved_in,
    wins_tie,
    write_manifest,
)

from ...damage import KINDS, damage_file, full_disk


@pytest.fixture
def folder(tmp_path):
    """Whole checkpoints after steps 9 and 10, and one of step 12 whose save was cut off."""
    for step in (9, 10, 12):
        checkpoint = tmp_path / f"checkpoint-{step}"
        (checkpoint / "shards").mkdir(parents=True)
        (checkpoint / "optimizer.pt").write_bytes(b"12345")
        (checkpoint / "shards" / "weights").write_bytes(b"123")
        if step < 12:
            write_manifest(checkpoint)
    (tmp_path / "checkpoint-best").mkdir()  # the user's own
    return tmp_path


def test_a_checkpoint_counts_if_its_manifest_does(folder):
    assert damage(folder / "checkpoint-10") == ""
    assert "the save was cut off" in damage(folder / "checkpoint-12")
    saved = saved_in(folder)
    assert [each.path.name for each in saved] == ["checkpoint-12", "checkpoint-10", "checkpoint-9"]
    assert saved[0].damage.startswith("it has no manifest.json") and saved[1].damage == ""
    assert newest_whole(saved) == Saved(folder / "checkpoint-10")  # not 9, which is later in the alphabet
    assert newest_whole(saved[:1]) is None


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("optimizer.pt", b"123", "optimizer.pt has 3 bytes, expected 5"),
        ("shards/weights", None, "shards/weights is missing"),
        ("manifest.json", b'{"files": {"optimizer.pt"', "its manifest.json cannot be read"),
        ("manifest.json", b"[]", "its manifest.json cannot be read"),
    ],
)
def test_a_damaged_checkpoint_does_not_count(folder, name, content, words):
    path = folder / "checkpoint-10" / name
    os.remove(path) if content is None else path.write_bytes(content)
    assert damage(folder / "checkpoint-10") == words
    assert newest_whole(saved_in(folder)) == Saved(folder / "checkpoint-9")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["optimizer.pt", "shards/weights"])
def test_a_checkpoint_whose_bytes_have_changed_is_named_and_passed_over(folder, kind, name):
    damage_file(folder / "checkpoint-10" / name, kind)
    wrong = "bytes, expected" if kind == "cut" else "is not what was written"
    assert damage(folder / "checkpoint-10").startswith(name) and wrong in damage(folder / "checkpoint-10")
    assert newest_whole(saved_in(folder)) == Saved(folder / "checkpoint-9")


def test_the_manifest_of_an_older_release_has_sizes_alone(folder):
    manifest = {"files": {"optimizer.pt": 5, "shards/weights": 3}}
    (folder / "checkpoint-10" / "manifest.json").write_text(json.dumps(manifest))
    assert damage(folder / "checkpoint-10") == ""
    manifest["files"]["optimizer.pt"] = 6
    (folder / "checkpoint-10" / "manifest.json").write_text(json.dumps(manifest))
    assert damage(folder / "checkpoint-10") == "optimizer.pt has 5 bytes, expected 6"


def test_only_checkpoints_that_a_run_may_go_on_from_are_read(folder, monkeypatch):
    read = []
    monkeypatch.setattr(checkpoints, "changed_since", lambda path, digests: read.append(path.name) or "")
    saved_in(folder)
    assert read == ["checkpoint-10"]


def test_the_manifest_comes_last_when_all_else_is_on_the_disk(folder, monkeypatch):
    steps = []
    monkeypatch.setattr(writing, "sync", lambda path: steps.append(path.name))
    monkeypatch.setattr(checkpoints, "sync", lambda path: steps.append(path.name))
    write_manifest(folder / "checkpoint-12")
    *before, manifest, last = steps
    assert sorted(before) == sorted(["optimizer.pt", "weights", "shards", "checkpoint-12", folder.name])
    assert (manifest, last) == (".manifest.json.unfinished", "checkpoint-12")


def state_of(step, best=None):
    return TrainerState(global_step=step, best_model_checkpoint=best and str(best))


def save(kept, state):
    """As the Trainer does it."""
    kept.before_save(state)
    checkpoint = kept.folder / f"checkpoint-{state.global_step}"
    checkpoint.mkdir(exist_ok=True)
    (checkpoint / "optimizer.pt").write_bytes(b"new")
    kept.after_save(state)


def steps_in(folder):
    return sorted(int(path.name[11:]) for path in folder.glob("checkpoint-*[0-9]"))


@pytest.mark.parametrize(
    ("limit", "best", "left"),
    [(None, 2, [2, 4, 6, 8]), (3, 6, [4, 6, 8]), (2, 2, [2, 8]), (1, 2, [2, 8]), (1, 8, [8]), (1, None, [8])],
)
def test_the_newest_and_the_best_are_kept_and_older_ones_up_to_the_limit(tmp_path, limit, best, left):
    kept = Kept(tmp_path, limit, ends_with_best=True)
    for step in (2, 4, 6, 8):
        save(kept, state_of(step, best and tmp_path / f"checkpoint-{best}"))
    assert steps_in(tmp_path) == left


def test_older_ones_are_removed_once_the_new_one_is_whole(tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def kill(*args):
        raise Killed

    kept = Kept(tmp_path, 1, ends_with_best=True)
    save(kept, state_of(2))
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(os, "replace", kill)  # before the manifest has its name
        save(kept, state_of(4))
    assert steps_in(tmp_path) == [2, 4] and newest_whole(saved_in(tmp_path)).path.name == "checkpoint-2"
    save(kept, state_of(4))
    assert steps_in(tmp_path) == [4] and damage(tmp_path / "checkpoint-4") == ""


def test_a_disk_that_is_full_at_the_manifest_leaves_the_older_checkpoint(tmp_path):
    kept = Kept(tmp_path, 1, ends_with_best=False)
    save(kept, state_of(2))
    with full_disk(20), pytest.raises(InputError, match="checkpoint-4 cannot be written: .*File too large"):
        save(kept, state_of(4))
    assert steps_in(tmp_path) == [2] and newest_whole(saved_in(tmp_path)).path.name == "checkpoint-2"
    save(kept, state_of(4))
    assert steps_in(tmp_path) == [4]


@pytest.mark.parametrize("whole", [True, False])
def test_a_checkpoint_that_is_saved_again_is_not_whole_meanwhile(tmp_path, whole):
    kept = Kept(tmp_path, None, ends_with_best=True)
    save(kept, state_of(2))
    checkpoint = tmp_path / "checkpoint-2"
    if not whole:
        (checkpoint / "optimizer.pt").write_bytes(b"cut off")
    kept.before_save(state_of(2))
    assert not (checkpoint / "manifest.json").exists()
    assert checkpoint.exists() == whole  # what a cut-off save has left is removed


@pytest.mark.parametrize(
    ("limit", "ends_with_best", "best", "left"),
    [
        (1, True, 2, [2]),
        (1, True, 4, [2, 4]),  # the last one is the best
        (1, True, None, [2, 4]),
        (1, False, 2, [2, 4]),  # the weights in the end are those of the last one
        (2, True, 2, [2, 4]),
        (None, True, 2, [2, 4]),
    ],
)
def test_a_limit_of_one_leaves_the_best_alone_in_the_end(tmp_path, limit, ends_with_best, best, left):
    kept, state = Kept(tmp_path, limit, ends_with_best), state_of(4, best and tmp_path / f"checkpoint-{best}")
    for step in (2, 4):
        (tmp_path / f"checkpoint-{step}").mkdir()
    for name in kept.left_over(state, some_stay=True):
        remove_checkpoint(tmp_path / name)
    assert steps_in(tmp_path) == left


@pytest.mark.parametrize("limit", [None, 1, 2])
def test_none_stays_beside_the_finished_model_unless_the_user_asked_for_some(folder, limit):
    kept = Kept(folder, limit, ends_with_best=True)
    left_over = kept.left_over(state_of(12, folder / "checkpoint-9"), some_stay=False)
    assert left_over == ["checkpoint-10", "checkpoint-9"]  # 12, which has no manifest, may be the user's


def write_state(checkpoint, best):
    (checkpoint / "trainer_state.json").write_text(json.dumps({"best_model_checkpoint": best}))
    write_manifest(checkpoint)


def test_the_best_checkpoint_lies_beside_the_last_or_where_the_run_was_resumed_from(folder, tmp_path):
    last, other = folder / "checkpoint-10", tmp_path / "other"
    write_state(last, None)
    assert find_best(last, folder) is None
    write_state(last, "moved/since/checkpoint-9")
    assert find_best(last, folder) == folder / "checkpoint-9"
    (other / "checkpoint-15").mkdir(parents=True)
    write_state(other / "checkpoint-15", str(folder / "checkpoint-9"))
    assert find_best(other / "checkpoint-15", other) == folder / "checkpoint-9"


def test_a_best_checkpoint_that_is_not_whole_is_named_with_what_can_be_done(folder):
    last = folder / "checkpoint-10"
    for best, wrong in (("checkpoint-12", "it has no manifest"), ("checkpoint-9", "optimizer.pt is missing")):
        (folder / best / "optimizer.pt").unlink()
        write_state(last, str(folder / best))
        remedy = f"once {folder} is removed.*--load_best_model_at_end False --resume_from_checkpoint {last}."
        with pytest.raises(InputError, match=f"the best checkpoint, {folder / best}, is not whole: {wrong}.*{remedy}"):
            find_best(last, folder)


@pytest.mark.parametrize("content", ["\0" * 40, '{"best_model_checkpoint": ', "[]"])
def test_a_state_that_cannot_be_read_is_one_line(folder, content):
    """As in a checkpoint of an older release, whose manifest has no digests."""
    (folder / "checkpoint-10" / "trainer_state.json").write_text(content)
    with pytest.raises(InputError, match="trainer_state.json cannot be read: .*Remove .*: the same command"):
        find_best(folder / "checkpoint-10", folder)


NAN = math.nan


@pytest.mark.parametrize(
    ("value", "best_loss", "loss", "wins"),
    [
        (0.0, 0.7, 0.6, True),
        (0.0, 0.6, 0.6, False),  # the earlier one stays
        (0.0, 0.6, 0.7, False),
        (0.1, 0.7, 0.6, False),  # no tie
        (0.0, NAN, 0.6, True),
        (0.0, 0.7, NAN, False),
        (0.0, NAN, NAN, False),
        (0.0, None, 0.6, True),
        (NAN, 0.7, 0.6, False),
        (None, 0.7, 0.6, False),
    ],
)
def test_of_two_evaluations_with_the_same_metric_the_one_with_the_lower_loss_wins(value, best_loss, loss, wins):
    log = [{"step": 8, "loss": 0.1}, {"step": 8, "eval_loss": best_loss}, {"step": 16, "eval_loss": loss}]
    log[1] = {name: number for name, number in log[1].items() if number is not None}
    state = TrainerState(global_step=16, best_global_step=8, best_metric=0.0, log_history=log)
    assert wins_tie(state, value) is wins


def test_nothing_wins_a_tie_before_there_is_a_best_one():
    log = [{"step": 16, "eval_loss": 0.5}]
    assert not wins_tie(TrainerState(global_step=16, log_history=log), 0.0)
    assert not wins_tie(TrainerState(global_step=16, best_metric=0.0, log_history=log), 0.0)  # nothing was saved
