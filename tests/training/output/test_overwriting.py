"""A run that replaces another one: the old one stays until the new one is whole, and what is the user's stays."""

import contextlib
import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import AutoModel

from lstmpool.training.errors import InputError
from lstmpool.training.loop.checkpoints import Saved, damage, write_manifest
from lstmpool.training.output.folder import handover, prepare_output, repair, write_output
from lstmpool.training.output.found import Found
from lstmpool.training.output.run_record import RunRecord
from lstmpool.training.output.start import (
    Fresh,
    GoOn,
    Refuse,
    Replace,
    Resume,
    StartFlags,
    Wanted,
    choose_start,
    decide,
)

from ...conftest import CODE, tiny_model
from .test_folder import begin, of_a_run
from .test_start import CUT_OFF, FINISHED, LAST, MODEL, NINE, OUT, OVERWRITE, RESOLVED, TAKEN, cut_off, found


NEW = OUT / ".new_run"
FOLDS = {"seed": 1, "cv_folds": 2}


def new(files=(), steps=(), seed=2, named=None):
    """A run that was to replace the folder's run, and was cut off."""
    record = RunRecord({"seed": seed}, {})
    checkpoints = tuple(Saved(NEW / f"checkpoint-{step}") for step in steps)
    return Found(NEW, RESOLVED / ".new_run", record=record, files=files, checkpoints=checkpoints, named=named)


# As in test_start.py.
TABLE = {
    "a new run, cut off": (
        2,
        found(MODEL, (NINE,), record=FINISHED, new=new(steps=(7,))),
        StartFlags(),
        Resume(
            NEW / "checkpoint-7",
            within=".new_run",
            said=("out/.new_run holds this run, which was cut off. It goes on from out/.new_run/checkpoint-7.",),
        ),
    ),
    "a new run, cut off before it had saved, and --overwrite": (
        2,
        found(MODEL, (NINE,), record=FINISHED, new=new(("config.json", "run.json"))),
        OVERWRITE,
        Replace(
            within=".new_run",
            removed=("config.json", "run.json"),
            said=("out/.new_run holds this run, which was cut off. It begins anew.",),
        ),
    ),
    "a new run with other settings, cut off": (
        3,
        found(MODEL, record=FINISHED, new=new(("run.json",), (7,))),
        StartFlags(),
        Refuse(
            "--output_dir out/.new_run holds a run with other settings, which was cut off (seed 2 there and 3 here). "
            "Go on with its command, or with these settings and --resume_from_checkpoint last; choose another folder, "
            "or replace it with --overwrite."
        ),
    ),
    "a new run with other settings, cut off, and --overwrite": (
        3,
        found(MODEL, record=FINISHED, new=new(("run.json",), (7,))),
        OVERWRITE,
        Replace(within=".new_run", removed=("checkpoint-7", "run.json")),
    ),
    "a new run with other settings, cut off at once": (
        3,
        found(MODEL, record=FINISHED, new=new(("run.json",))),
        StartFlags(),
        Refuse(f"{TAKEN}or replace it with --overwrite."),
    ),
    "a new run with other settings, cut off, and 'last'": (
        3,
        found(MODEL, (NINE,), record=FINISHED, new=new(("run.json",), (7,))),
        LAST,
        Resume(NEW / "checkpoint-7", within=".new_run"),
    ),
    "a run that was cut off, and a new one": (
        1,
        found((), (NINE,), record=cut_off(), new=new(steps=(7,))),
        StartFlags(),
        Resume(NINE.path, said=(f"{CUT_OFF} It goes on from out/checkpoint-9.",)),
    ),
    "the same run, cut off without a checkpoint once its model was there": (
        1,
        found(MODEL, record=cut_off()),
        StartFlags(),
        Replace(within=".new_run", said=(f"{CUT_OFF} It begins anew.",)),
    ),
}


@pytest.mark.parametrize("case", TABLE)
def test_how_a_run_begins_beside_another_one(case):
    seed, what_was_found, flags, expected = TABLE[case]
    assert decide(what_was_found, Wanted({"seed": seed}), flags) == expected


def test_folds_go_on_by_themselves_and_keep_what_is_the_users():
    wanted = Wanted(FOLDS)
    running = found(("run.json",), record=cut_off(cv_folds=2), members=("fold-1",))
    said = "holds this cross-validation, which was cut off. It goes on."
    assert decide(running, wanted, StartFlags()) == GoOn(said=(f"out {said}",))
    beside = found(MODEL, record=FINISHED, new=replace(new(), record=cut_off(cv_folds=2)))
    assert decide(beside, wanted, OVERWRITE) == GoOn(within=".new_run", said=(f"out/.new_run {said}",))
    of_user = decide(replace(running, foreign_members=("fold-2 (a link)",)), wanted, OVERWRITE)
    assert of_user.message.startswith("--output_dir out holds fold-2 (a link), which no run")
    fold = Wanted(FOLDS | {"fold": 1})  # a fold's own run is one run
    assert isinstance(decide(replace(running, record=cut_off(cv_folds=2, fold=1)), fold, StartFlags()), Replace)


ALL = {"README.md", "config.json", "model.safetensors", "vocab.txt", "run.json", *CODE}


def replace_run(folder, settings, weights="new"):
    """A whole run with --overwrite, in place of training; its checkpoint names its own place as the best one's."""
    start = begin(folder, settings, overwrite=True)
    place = start.place(folder)
    save_checkpoint(place / "checkpoint-5", best=place / "checkpoint-5")
    write_output(place, tiny_model(), TOKENIZER, {"README.md": lambda path: path.write_text(weights)})
    handover(folder)
    RunRecord(settings, {}).finish(folder)


def save_checkpoint(path, best):
    tiny_model().save_pretrained(path)
    (path / "trainer_state.json").write_text(json.dumps({"best_model_checkpoint": str(best)}))
    write_manifest(path)


TOKENIZER = SimpleNamespace(init_kwargs={}, save_pretrained=lambda staging: (staging / "vocab.txt").touch())


@pytest.mark.parametrize("lists", [True, False])  # its files in its record, or not, as older ones
def test_overwriting_replaces_the_run_once_the_new_one_is_whole_and_nothing_else(tmp_path, lists):
    finished = tmp_path / "out"
    save_checkpoint(finished / "checkpoint-9", best=finished / "checkpoint-9")
    tiny_model().save_pretrained(finished)
    for name in ("vocab.txt", "reliability.png", "notes.txt"):
        (finished / name).write_text("old")
    files = sorted(path.name for path in finished.iterdir() if path.is_file() and path.name != "notes.txt")
    RunRecord({"seed": 1}, {}, finished=True, files=files if lists else None).write(finished)
    before = contents(finished)
    start = begin(finished, {"seed": 2}, overwrite=True)
    assert start == Replace(within=".new_run")
    assert contents(finished, without=".new_run") == before
    assert {path.name for path in (finished / ".new_run").iterdir()} == {"run.json", *CODE}
    replace_run(finished, {"seed": 2})
    assert {path.name for path in finished.iterdir()} == ALL | {"checkpoint-5", "notes.txt"}
    assert (finished / "README.md").read_text() == "new"
    record = RunRecord.read(finished)
    assert set(record.digests) == ALL - {"run.json", "README.md"}
    assert replace(record, digests={}) == RunRecord({"seed": 2}, {}, finished=True, files=sorted(ALL))
    state = json.loads((finished / "checkpoint-5" / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == str(finished / "checkpoint-5")
    assert not damage(finished / "checkpoint-5")


def contents(folder, without=None):
    """What the files in a folder hold, by their paths."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    found = {path.relative_to(folder): path.read_bytes() for path in paths}
    return {path: content for path, content in found.items() if path.parts[0] != without}


class Killed(BaseException):
    """Stands for a kill: nobody can catch it."""


def die_after(monkeypatch, calls, error=Killed):
    """Has the process die before it changes a file or a folder for the next time, or end with another error."""
    done = []

    def dying(of_library):
        def call(*args, **kwargs):
            done.append(args)
            if len(done) > calls:
                raise error
            return of_library(*args, **kwargs)

        return call

    for name in ("unlink", "replace", "rmdir"):
        monkeypatch.setattr(os, name, dying(getattr(os, name)))


@pytest.mark.parametrize("calls", range(45))
def test_a_kill_in_the_handover_is_repaired_and_leaves_no_mixture_that_loads(tmp_path, monkeypatch, calls):
    folder = tmp_path / "out"
    begin(folder, {"seed": 1})
    save_checkpoint(folder / "checkpoint-5", best=folder / "checkpoint-5")
    files = {"model.onnx": lambda path: path.write_text("old"), "README.md": lambda path: path.write_text("old")}
    write_output(folder, tiny_model(), TOKENIZER, files)
    RunRecord({"seed": 1}, {}).finish(folder)
    old = contents(folder)
    place = begin(folder, {"seed": 2}, overwrite=True).place(folder)
    save_checkpoint(place / "checkpoint-5", best=place / "checkpoint-5")
    new_model = tiny_model(num_labels=2)  # its config does not fit the old weights
    write_output(place, new_model, TOKENIZER, {"README.md": lambda path: path.write_text("new")})
    new = {name: content for name, content in contents(place).items() if "checkpoint-5" not in name.parts}
    with monkeypatch.context() as patched, contextlib.suppress(Killed):
        die_after(patched, calls)
        handover(folder)
    record = RunRecord.read(place)
    if record is not None and not record.handover:  # it had not begun yet
        assert calls < 2
        assert contents(folder, without=".new_run") == old
        return
    if (folder / "config.json").exists():
        whole = [each for each in (old, new) if each[Path("config.json")] == (folder / "config.json").read_bytes()][0]
        for name in whole:
            if "checkpoint-5" not in name.parts and name != Path("run.json"):
                assert (folder / name).read_bytes() == whole[name]
    else:
        with pytest.raises((ValueError, OSError), match="config.json|Unrecognized model"):
            AutoModel.from_pretrained(folder)
    repair(folder)
    found = contents(folder)
    del found[Path("run.json")], new[Path("run.json")]
    state = json.loads(found[Path("checkpoint-5", "trainer_state.json")])
    assert state["best_model_checkpoint"] == str(folder / "checkpoint-5") and not damage(folder / "checkpoint-5")
    assert {name: content for name, content in found.items() if "checkpoint-5" not in name.parts} == new
    assert RunRecord.read(folder).settings == {"seed": 2} and not (folder / ".new_run").exists()
    assert isinstance(choose_start(folder, {"seed": 2}, overwrite=True), Resume)  # it has not been published yet
    repair(folder)  # nothing is left to do


@pytest.mark.parametrize("calls", range(0, 30, 2))
def test_a_kill_in_the_handover_leaves_files_of_an_older_release_known_for_ours(tmp_path, monkeypatch, calls):
    folder = tmp_path / "out"
    tiny_model().save_pretrained(folder)
    (folder / "vocab.txt").write_text("old")
    RunRecord({"seed": 1}, {}, finished=True).write(folder)  # without a list
    place = begin(folder, {"seed": 2}, overwrite=True).place(folder)
    write_output(place, tiny_model(), TOKENIZER, {"README.md": lambda path: path.write_text("new")})
    with monkeypatch.context() as patched, contextlib.suppress(Killed):
        die_after(patched, calls)
        handover(folder)
    repair(folder)
    handed_over = RunRecord.read(folder).settings == {"seed": 2}
    assert handed_over or calls < 2  # a kill may come before it has begun
    assert (folder / ".new_run").exists() != handed_over


@pytest.mark.parametrize("calls", range(2, 20, 3))
def test_a_disk_that_fails_in_the_handover_is_one_line_and_the_next_start_ends_it(tmp_path, monkeypatch, calls):
    folder = tmp_path / "out"
    begin(folder, {"seed": 1})
    write_output(folder, tiny_model(), TOKENIZER, {})
    RunRecord({"seed": 1}, {}).finish(folder)
    place = begin(folder, {"seed": 2}, overwrite=True).place(folder)
    save_checkpoint(place / "checkpoint-5", best=place / "checkpoint-5")
    write_output(place, tiny_model(), TOKENIZER, {})
    with monkeypatch.context() as patched, pytest.raises(InputError, match="cannot be written: No space left"):
        die_after(patched, calls, error=OSError("No space left"))
        handover(folder)
    repair(folder)
    assert RunRecord.read(folder).settings == {"seed": 2} and not (folder / ".new_run").exists()


def test_a_handover_moves_the_folds_and_keeps_the_users_files_in_them(tmp_path):
    for settings in ({"cv_folds": 3}, {"cv_folds": 2}):
        place = begin(tmp_path, settings, overwrite=True, with_code=False).place(tmp_path)
        for fold in range(1, settings["cv_folds"] + 1):
            begin(place / f"fold-{fold}", settings | {"fold": fold})
            best = place / f"fold-{fold}" / "checkpoint-5"
            save_checkpoint(best, best)
            write_output(place / f"fold-{fold}", tiny_model(), TOKENIZER, {})
            RunRecord(settings, {}).finish(place / f"fold-{fold}")
            (place / f"fold-{fold}" / "runs").mkdir()
            (place / f"fold-{fold}" / "runs" / f"events-{settings['cv_folds']}").touch()
        write_output(place, None, None, {"metrics.json": lambda path: path.touch()})
        if place != tmp_path:
            handover(tmp_path)
        RunRecord(settings, {}).finish(tmp_path)
        (tmp_path / "fold-1" / "notes.txt").write_text("mine")
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.json", "run.json", "fold-1", "fold-2", "fold-3"}
    assert {path.name for path in (tmp_path / "fold-1" / "runs").iterdir()} == {"events-2", "events-3"}
    assert {path.name for path in (tmp_path / "fold-3").iterdir()} == {"runs"}
    assert (tmp_path / "fold-1" / "notes.txt").read_text() == "mine"
    assert RunRecord.read(tmp_path / "fold-2").settings == {"cv_folds": 2}
    state = json.loads((tmp_path / "fold-1" / "checkpoint-5" / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == str(tmp_path / "fold-1" / "checkpoint-5")


def test_nothing_is_removed_through_a_link(tmp_path):
    """Also if what a run has left was moved away and linked from where it was."""
    folder, away = tmp_path / "out", tmp_path / "away"
    replace_run(folder, {"seed": 1}) if begin(folder, {"seed": 1}).within else of_a_run(folder, {"seed": 1})
    away.mkdir()
    (folder / "model.safetensors").rename(away / "model.safetensors")
    (folder / "model.safetensors").symlink_to(away / "model.safetensors")
    for name in ("checkpoint-8", "fold-2"):
        tiny_model().save_pretrained(away / name)
        write_manifest(away / name)
        RunRecord({}, {}, files=["config.json"]).write(away / name)
    before = contents(away)
    replace_run(folder, {"seed": 2})
    assert contents(away) == before and not (folder / "model.safetensors").is_symlink()
    for name in ("checkpoint-8", "fold-2"):
        (folder / name).symlink_to(away / name)
        with pytest.raises(InputError, match=f"holds {name} .a link., which no run recorded"):
            choose_start(folder, {"seed": 3, "cv_folds": 2}, overwrite=True)
        prepare_output(folder, Replace(removed=(name,)), RunRecord({}, {}), with_code=False)
        assert contents(away) == before


def test_the_code_is_not_written_through_a_link(tmp_path):
    (tmp_path / "mine.py").write_text("mine")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "modeling_lstmpool.py").symlink_to(tmp_path / "mine.py")
    prepare_output(tmp_path / "out", Fresh(), RunRecord({}, {}), with_code=True)
    assert (tmp_path / "mine.py").read_text() == "mine"


def test_a_checkpoint_that_the_user_has_put_there_during_the_run_is_kept(tmp_path):
    of_a_run(tmp_path, {"seed": 1})
    place = begin(tmp_path, {"seed": 2}, overwrite=True).place(tmp_path)
    save_checkpoint(place / "checkpoint-5", best=place / "checkpoint-5")
    (tmp_path / "checkpoint-5").mkdir()
    (tmp_path / "checkpoint-5" / "notes.txt").write_text("mine")
    before = contents(tmp_path)
    with pytest.raises(InputError, match="holds checkpoint-5, which the run has not written"):
        handover(tmp_path)
    assert contents(tmp_path) == before


def test_a_file_that_the_user_has_put_into_a_checkpoint_is_kept(tmp_path):
    checkpoint = tmp_path / "checkpoint-9"
    of_a_run(tmp_path, {"seed": 1})
    save_checkpoint(checkpoint, best=checkpoint)
    (checkpoint / "notes.txt").write_text("mine")
    begin(tmp_path, {"seed": 2}, overwrite=True)
    replace_run(tmp_path, {"seed": 2})
    assert [path.name for path in checkpoint.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_a_run_that_was_cut_off_was_about_to_move_goes_with_it(tmp_path, overwrite):
    """Else it would be taken for the user's, once the record of the run is gone."""
    if overwrite:
        of_a_run(tmp_path, {"seed": 1})
    for seed in (2, 3):
        start = begin(tmp_path, {"seed": seed}, overwrite=overwrite)
        (start.place(tmp_path) / ".unfinished").mkdir()


@pytest.mark.parametrize("name", ["README.md", "model.safetensors", "vocab.txt"])
@pytest.mark.parametrize("replaces", [False, True])
def test_a_file_that_the_user_has_put_there_during_the_run_is_kept(tmp_path, name, replaces):
    if replaces:
        begin(tmp_path, {"seed": 1})
        write_output(tmp_path, None, None, {"metrics.json": lambda path: path.touch()})
    place = begin(tmp_path, {"seed": 2}, overwrite=True).place(tmp_path)
    (tmp_path / name).write_text("mine")
    before = contents(tmp_path, without=".new_run")
    with pytest.raises(InputError, match=f"holds {name}, which the run has not written"):
        write_output(place, tiny_model(), TOKENIZER, {"README.md": lambda path: path.write_text("card")})
        handover(tmp_path)
    after = contents(tmp_path, without=".new_run" if replaces else ".unfinished")
    assert after == before
    (tmp_path / name).unlink()
    write_output(place, tiny_model(), TOKENIZER, {"README.md": lambda path: path.write_text("card")})
    if replaces:
        handover(tmp_path)
    assert RunRecord.read(tmp_path).settings == {"seed": 2} and (tmp_path / name).exists()


def test_weights_of_other_models_stay_beside_those_of_the_run(tmp_path):
    of_a_run(tmp_path, {"seed": 1})
    (tmp_path / "extra.safetensors").write_text("mine")
    replace_run(tmp_path, {"seed": 2})
    write_output(tmp_path, tiny_model(), TOKENIZER, {})
    assert (tmp_path / "extra.safetensors").read_text() == "mine"
