import contextlib
import json
import os
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
from transformers import AutoModel, AutoTokenizer

from lstmpool.training.errors import InputError
from lstmpool.training.loop.checkpoints import write_manifest
from lstmpool.training.output.folder import handover, json_writer, prepare_output, repair, tidy, write_output
from lstmpool.training.output.run_record import RunRecord
from lstmpool.training.output.start import Fresh, Replace, Resume, choose_start

from ...conftest import CODE, tiny_model
from ...damage import full_disk
from ...training_fixtures import save_backbone


def begin(folder, settings=None, resume=None, overwrite=False, with_code=True):
    """As a run does it; returns how it began."""
    settings = settings or {}
    start = choose_start(folder, settings, resume, overwrite)
    resumed_from = start.resumed_from if isinstance(start, Resume) else ""
    prepare_output(start.place(folder), start, RunRecord.of(settings, {}, resumed_from), with_code)
    return start


@pytest.fixture
def finished(tmp_path):
    """A folder with a finished run of an older release, a checkpoint, and a file of the user's."""
    folder = tmp_path / "out"
    tiny_model().save_pretrained(folder)
    RunRecord({}, {}, finished=True).write(folder)
    (folder / "checkpoint-5").mkdir()
    (folder / "checkpoint-5" / "trainer_state.json").write_text("{}")
    write_manifest(folder / "checkpoint-5")
    (folder / "vocab.txt").write_text("left by another tokenizer")
    for name in ("reliability.png", "test_predictions.parquet"):
        (folder / name).write_text("of an earlier run")
    (folder / "notes.txt").write_text("mine")
    return folder


def test_the_code_is_there_before_training(tmp_path):
    folder = tmp_path / "new" / "out"
    assert begin(folder) == Fresh()
    assert {path.name for path in folder.iterdir()} == {"run.json", *CODE}
    begin(folder)  # a run that was stopped before its first checkpoint can be started again


def test_a_run_is_not_overwritten_unasked(finished):
    before = sorted(path.name for path in finished.rglob("*"))
    with pytest.raises(InputError, match="holds a run already .*--resume_from_checkpoint last.*--overwrite"):
        choose_start(finished, {})
    assert sorted(path.name for path in finished.rglob("*")) == before


@pytest.mark.parametrize("kept", ["model.safetensors", "checkpoint-5"])
def test_parts_of_a_run_are_not_overwritten_unasked(finished, kept):
    (finished / "config.json").rename(finished / "checkpoint-5" / "config.json")
    if kept == "checkpoint-5":
        (finished / "model.safetensors").unlink()
    with pytest.raises(InputError, match="holds a run already"):
        choose_start(finished, {})


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["README.md", "vocab.txt", "metrics.json", "test_predictions.csv", "run.json"])
def test_a_file_of_the_users_is_not_taken_for_a_part_of_a_run(tmp_path, name, overwrite):
    (tmp_path / name).write_text("mine")  # as in a project's own folder
    with pytest.raises(InputError, match=f"holds {name}, which no run recorded there has written"):
        choose_start(tmp_path, {}, overwrite=overwrite)


def test_the_model_to_start_from_is_not_overwritten(finished, tmp_path):
    for start in (finished, finished / "checkpoint-5"):
        with pytest.raises(InputError, match="holds the model of --init_from. Choose another folder"):
            choose_start(finished, {}, overwrite=True, init_from=str(start))
    choose_start(tmp_path / "new", {}, init_from=str(finished))


def test_a_folder_without_training_gets_no_code(tmp_path):
    begin(tmp_path / "new", with_code=False)
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"run.json"}


def test_another_kind_of_model_is_never_overwritten(tmp_path):
    folder = save_backbone(tmp_path / "bert")
    with pytest.raises(InputError, match="another kind of model"):
        choose_start(folder, {}, overwrite=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="found a file"):
        choose_start(tmp_path / "file", {})
    with pytest.raises(InputError, match="cannot be written"):
        prepare_output(tmp_path / "file" / "out", Fresh(), RunRecord({}, {}), with_code=True)


def test_resuming_needs_a_checkpoint(finished, tmp_path):
    assert begin(finished, resume="last").checkpoint == finished / "checkpoint-5"
    assert (finished / "checkpoint-5").is_dir()
    with pytest.raises(InputError, match="holds no whole checkpoint"):
        choose_start(tmp_path / "new", {}, "last")
    with pytest.raises(InputError, match="must be a checkpoint-. folder, found none"):
        choose_start(finished, {}, str(tmp_path / "no"))


def test_nothing_is_moved_into_place_before_all_is_written(tmp_path):
    class Broken:
        init_kwargs = {}

        def save_pretrained(self, folder):
            raise OSError("disk full")

    folder = tmp_path / "out"
    begin(folder)
    with pytest.raises(InputError, match="out cannot be written: disk full"):
        write_output(folder, tiny_model(), Broken(), {"README.md": lambda path: path.write_text("card")})
    assert {path.name for path in folder.iterdir()} == {"run.json", *CODE}


@pytest.mark.parametrize("size", [8_000, 1_000])
def test_a_disk_that_is_full_at_the_end_leaves_no_half_model_and_the_next_write_is_whole(tmp_path, tokenizer, size):
    """First the weights do not fit, and then not even their config."""
    folder = tmp_path / "out"
    begin(folder)
    with full_disk(size), pytest.raises(InputError, match="out cannot be written: .* MB free. Make room"):
        write_output(folder, tiny_model(), tokenizer, {})
    assert {path.name for path in folder.iterdir()} == {"run.json", *CODE}
    write_output(folder, tiny_model(), tokenizer, {})
    AutoModel.from_pretrained(folder)


SAVED = {"README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", *CODE}


@pytest.mark.parametrize("moved", range(len(SAVED)))
@pytest.mark.parametrize("again", [False, True])
def test_a_kill_while_files_are_moved_leaves_no_half_of_a_model_that_loads(tmp_path, monkeypatch, moved, again):
    class Killed(BaseException):
        pass

    def replace(*paths):
        calls.append(paths)
        if len(calls) > moved:
            raise Killed
        of_library(*paths)

    tokenizer = AutoTokenizer.from_pretrained(save_backbone(tmp_path / "bert"))
    folder, files, calls, of_library = tmp_path / "out", {"README.md": lambda path: path.touch()}, [], os.replace
    folder.mkdir()
    if again:
        write_output(folder, tiny_model(), tokenizer, files)
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(os, "replace", replace)
        write_output(folder, tiny_model(), tokenizer, files)
    with pytest.raises(ValueError, match="Unrecognized model"):
        AutoModel.from_pretrained(folder)
    write_output(folder, tiny_model(), tokenizer, files)
    assert {path.name for path in folder.iterdir()} == SAVED
    AutoModel.from_pretrained(folder)


def test_the_tokenizer_does_not_say_how_it_was_loaded(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(save_backbone(tmp_path / "bert"), revision="main", local_files_only=True)
    write_output(tmp_path, tiny_model(), tokenizer, {})
    saved = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert not saved.keys() & {"is_local", "local_files_only", "trust_remote_code", "revision", "name_or_path"}


def test_metrics_are_valid_json(tmp_path):
    (tmp_path / ".unfinished").mkdir()
    (tmp_path / ".unfinished" / "half of a file").write_text("of a run that was cut off")
    record = {"results": {"pearson": float("nan"), "mse": 1.0}, "list": [1.0, float("inf")]}
    write_output(tmp_path, None, None, {"metrics.json": json_writer(record)})
    wanted = {"results": {"pearson": None, "mse": 1.0}, "list": [1.0, None]}
    assert json.loads((tmp_path / "metrics.json").read_text()) == wanted
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.json"}  # a model that was not changed is not saved
    assert not (tmp_path / ".unfinished").exists()


def test_a_run_that_was_cut_off_goes_on_with_the_same_settings_alone(finished, capsys):
    RunRecord({"learning_rate": 1e-3, "seed": 1}, {}).write(finished)
    for overwrite in (False, True):  # the command that was cut off may have had it
        settings = {"learning_rate": 1e-3, "seed": 1, "new in this version": 2}
        start = choose_start(finished, settings, overwrite=overwrite)
        assert start.checkpoint == finished / "checkpoint-5"
        assert "It goes on from" in capsys.readouterr().out
    with pytest.raises(InputError, match="learning_rate 0.001 there and 0.002 here.*--overwrite"):
        choose_start(finished, {"learning_rate": 2e-3, "seed": 1})
    assert isinstance(choose_start(finished, {"learning_rate": 2e-3, "seed": 1}, overwrite=True), Replace)

    (finished / "checkpoint-5" / "trainer_state.json").write_text("{ cut")
    assert isinstance(choose_start(finished, {"learning_rate": 1e-3, "seed": 1}), Replace)
    told = capsys.readouterr().out
    assert "checkpoint-5 is left out: trainer_state.json has 5 bytes, expected 2" in told and "begins anew" in told

    RunRecord({"learning_rate": 1e-3, "seed": 1}, {}).finish(finished)
    with pytest.raises(InputError, match="holds a run already"):
        choose_start(finished, {"learning_rate": 1e-3, "seed": 1})


def test_a_run_that_was_begun_from_a_checkpoint_goes_on_from_its_own_last_one(finished, tmp_path, monkeypatch):
    def begun(folder, resume):
        start = begin(folder, {"seed": 1}, resume)
        return str(start.checkpoint) if isinstance(start, Resume) else None

    monkeypatch.chdir(tmp_path)
    outside, again = tmp_path / "again", str(finished / "checkpoint-5")
    for start in ("out/checkpoint-5", again):  # cut off before it had saved
        assert begun(outside, start) == start
    for folder in (finished, outside):
        assert begun(folder, again) == again
        tiny_model().save_pretrained(folder / "checkpoint-9")
        write_manifest(folder / "checkpoint-9")
        for start in (again, None, "last", again):
            assert begun(folder, start) == str(folder / "checkpoint-9")
    shutil.rmtree(again)  # as it is by --save_total_limit 1
    assert begun(finished, again) == str(finished / "checkpoint-9")
    other = str(finished / "checkpoint-9")
    with pytest.raises(InputError, match=f"cut off .resume_from_checkpoint {again} there and {other} here.*overwrite"):
        begun(outside, other)
    shutil.rmtree(outside / "checkpoint-9")
    assert begun(outside, None) is None
    assert RunRecord.read(outside).resumed_from == ""


def test_later_checkpoints_are_replaced_when_told_to_and_what_is_the_users_stays(finished, tmp_path):
    for name in ("checkpoint-9", "checkpoint-best"):
        (finished / name).mkdir()
        (finished / name / "trainer_state.json").write_text("{}")
        write_manifest(finished / name)
    first = str(finished / "checkpoint-5")
    with pytest.raises(InputError, match="checkpoint-9 comes after it, and would be replaced.*--overwrite"):
        choose_start(finished, {}, first)
    begin(finished, resume=first, overwrite=True)
    assert {path.name for path in finished.glob("checkpoint-*")} == {"checkpoint-5", "checkpoint-best"}

    tiny_model().save_pretrained(tmp_path / "taken")
    RunRecord({}, {}, finished=True).write(tmp_path / "taken")
    with pytest.raises(InputError, match="holds a run already .config.json, .*Choose another folder, or replace it"):
        choose_start(tmp_path / "taken", {}, first)
    choose_start(tmp_path / "free", {}, first)
    RunRecord({}, {}).finish(finished)
    begin(finished, overwrite=True)
    handover(finished)
    assert {path.name for path in finished.glob("checkpoint-*")} == {"checkpoint-best"}


def of_a_run(folder, settings, **files):
    """The names of the files of a run that writes a model and `files`, and finishes."""
    begin(folder, settings)
    tokenizer = SimpleNamespace(init_kwargs={}, save_pretrained=lambda staging: (staging / "vocab.txt").touch())
    writers = {name: lambda path: path.write_text("new") for name in files.values()}
    write_output(folder, tiny_model(), tokenizer, writers)
    RunRecord(settings, {}).finish(folder)
    return RunRecord.read(folder).files


def test_the_record_lists_the_files_of_the_run(tmp_path):
    listed = of_a_run(tmp_path, {"seed": 1}, export="model.onnx")
    assert listed == sorted({path.name for path in tmp_path.iterdir()})
    assert {"run.json", "model.onnx", "vocab.txt", "model.safetensors", "config.json", *CODE} == set(listed)


def test_a_record_that_lists_files_of_other_folders_removes_none_of_them(tmp_path):
    outside = tmp_path / "outside.txt"
    outside.write_text("mine")
    folder = tmp_path / "out"
    folder.mkdir()
    names = ["../outside.txt", str(outside), "metrics.json", 3, ".", "..", ""]
    RunRecord({"seed": 1}, {}, finished=True, files=names).write(folder)
    (folder / "metrics.json").write_text("{}")
    begin(folder, {"seed": 2}, overwrite=True)
    handover(folder)
    assert outside.read_text() == "mine"
    assert {path.name for path in folder.iterdir()} == {"run.json", *CODE}


@pytest.mark.parametrize("moved", range(6))
def test_a_kill_while_files_are_moved_leaves_none_that_is_not_listed(tmp_path, monkeypatch, moved):
    class Killed(BaseException):
        pass

    def replace(source, target):
        if source.parent.name == ".unfinished":
            calls.append(source)
        if len(calls) > moved:
            raise Killed
        of_library(source, target)

    calls, of_library = [], os.replace
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(os, "replace", replace)
        of_a_run(tmp_path, {"seed": 1}, export="model.onnx", card="README.md", numbers="numbers.json")
    there = {path.name for path in tmp_path.iterdir()} - {".unfinished"}
    assert there <= set(RunRecord.read(tmp_path).files)
    begin(tmp_path, {"seed": 2}, overwrite=True)
    if (tmp_path / ".new_run").exists():
        handover(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} - {".unfinished"} == {"run.json", *CODE}


def test_a_run_that_goes_on_keeps_the_list(tmp_path):
    begin(tmp_path, {"seed": 1})
    write_output(tmp_path, None, None, {"model.onnx": lambda path: path.write_text("half of a run")})
    (tmp_path / "checkpoint-5").mkdir()
    write_manifest(tmp_path / "checkpoint-5")
    assert isinstance(begin(tmp_path, {"seed": 1}), Resume)
    assert RunRecord.read(tmp_path).files == sorted({"model.onnx", "run.json", *CODE})


def test_a_run_of_an_older_release_that_goes_on_is_given_a_list(finished):
    RunRecord({"seed": 1}, {}).write(finished)
    assert isinstance(begin(finished, {"seed": 1}), Resume)
    listed = set(RunRecord.read(finished).files)
    assert {"config.json", "model.safetensors", "reliability.png", "run.json"} < listed and "notes.txt" not in listed


def checkpoint_in(folder, step):
    """A whole checkpoint in the folder."""
    (folder / f"checkpoint-{step}").mkdir()
    for name in ("optimizer.pt", "trainer_state.json"):
        (folder / f"checkpoint-{step}" / name).write_text("{}")
    write_manifest(folder / f"checkpoint-{step}")


@pytest.mark.parametrize("calls", range(14))
def test_a_kill_while_checkpoints_are_removed_is_made_up_for_by_the_next_command(tmp_path, monkeypatch, calls):
    """The run counts as finished meanwhile, and what is the user's stays."""

    class Killed(BaseException):
        pass

    def dying(of_library):
        def call(*args, **kwargs):
            done.append(args)
            if len(done) > calls:
                raise Killed
            return of_library(*args, **kwargs)

        return call

    done = []
    (tmp_path / "outside").mkdir()
    folder = tmp_path / "out"
    of_a_run(folder, {"seed": 1})
    for step in (3, 5):
        checkpoint_in(folder, step)
    checkpoint_in(tmp_path / "outside", 7)
    (folder / "checkpoint-5" / "notes.txt").write_text("mine")
    (folder / "checkpoint-7").symlink_to(tmp_path / "outside" / "checkpoint-7")
    names = ["checkpoint-5", "checkpoint-3", "checkpoint-7", "../outside/checkpoint-7", "vocab.txt"]
    RunRecord({"seed": 1}, {}).finish(folder, names)
    with monkeypatch.context() as patched, contextlib.suppress(Killed):
        for name in ("unlink", "replace", "rmdir"):
            patched.setattr(os, name, dying(getattr(os, name)))
        tidy(folder)
    assert RunRecord.read(folder).finished and (folder / "model.safetensors").exists()
    repair(folder)
    assert RunRecord.read(folder).left_over == []
    left = {path.relative_to(folder).as_posix() for path in folder.glob("checkpoint-*/*")}
    assert {name for name in left if "checkpoint-7" not in name} == {"checkpoint-5/notes.txt"}
    assert not (folder / "checkpoint-3").exists() and (folder / "vocab.txt").exists()
    assert (tmp_path / "outside" / "checkpoint-7" / "optimizer.pt").exists()


def test_only_a_finished_run_has_checkpoints_to_spare(tmp_path):
    begin(tmp_path, {"seed": 1})
    checkpoint_in(tmp_path, 5)
    replace(RunRecord.read(tmp_path), left_over=["checkpoint-5"]).write(tmp_path)
    repair(tmp_path)
    assert (tmp_path / "checkpoint-5").is_dir()
