"""What is recorded of a run, and that one runs at a time in an output folder."""

import json
import os
import re
import signal
import time
from dataclasses import replace

import pytest

from lstmpool.training.data.rows import Split
from lstmpool.training.errors import InputError
from lstmpool.training.flags.arguments import DataArguments, ModelArguments
from lstmpool.training.flags.training_arguments import TrainingArguments
from lstmpool.training.output.found import Found, look
from lstmpool.training.output.lock import HOLDER, LOCK, locked
from lstmpool.training.output.run_record import RunRecord, list_files, reopen_if_damaged, settings_of

from ...damage import KINDS, damage_file, full_disk
from ...training_fixtures import ROOT, run_python


def settings(folder, model=None, **training):
    args = TrainingArguments(**{"output_dir": str(folder), "use_cpu": True, "report_to": [], **training})
    return settings_of(ModelArguments(backbone="b", **(model or {})), DataArguments(train_file="t.csv"), args)


def test_settings_that_decide_what_a_run_comes_to(tmp_path):
    ours = settings(tmp_path)
    assert ours == settings(tmp_path / "elsewhere", overwrite=True, disable_tqdm=True, logging_steps=3, run_name="r")
    assert ours == settings(tmp_path, per_device_eval_batch_size=1, do_predict=True)
    assert ours == settings(tmp_path, baselines=False)  # earlier releases recorded the default of then
    record = RunRecord(ours, {})
    assert record.differs(settings(tmp_path)) == ""
    for other in (
        settings(tmp_path, seed=3),
        settings(tmp_path, head_learning_rate=3e-4),
        settings(tmp_path, model={"layers": [1]}),
        settings(tmp_path, save_strategy="no"),
        settings(tmp_path, lr_scheduler_type="cosine"),
    ):
        assert record.differs(other)
    assert record.differs(settings(tmp_path, seed=3)) == "seed 42 there and 3 here"


def test_a_record_comes_back_as_it_was_and_one_that_cannot_be_read_is_none(tmp_path):
    split = Split("t.csv", ["a", "b"], None, [0, 1], [0, 1])
    record = RunRecord.of(settings(tmp_path), {"train": split}, "out/checkpoint-5")
    record.write(tmp_path)
    assert RunRecord.read(tmp_path) == record and not record.finished
    record.finish(tmp_path)
    assert RunRecord.read(tmp_path) == replace(record, finished=True)
    for text in ("", "[]", '{"settings": {}}', "{"):
        (tmp_path / "run.json").write_text(text)
        assert RunRecord.read(tmp_path) is None


def test_records_of_older_and_of_newer_releases_are_read(tmp_path):
    older = {"settings": {"seed": 1}, "rows": {}}
    (tmp_path / "run.json").write_text(json.dumps(older))
    assert RunRecord.read(tmp_path) == RunRecord({"seed": 1}, {}, finished=False, resumed_from="", files=None)
    newer = {**older, "finished": True, "files": ["a", "b"], "locked_by": 7}
    (tmp_path / "run.json").write_text(json.dumps(newer))
    assert RunRecord.read(tmp_path) == RunRecord({"seed": 1}, {}, finished=True, files=["a", "b"])


def test_files_that_are_listed_stay_listed_when_the_run_is_finished(tmp_path):
    record = RunRecord({}, {}, files=["run.json"])
    record.write(tmp_path)
    list_files(tmp_path, ["model.onnx", "run.json"])
    assert RunRecord.read(tmp_path) == replace(record, files=["model.onnx", "run.json"])
    record.finish(tmp_path)
    assert RunRecord.read(tmp_path) == replace(record, files=["model.onnx", "run.json"], finished=True)


def test_nothing_is_listed_in_a_record_without_a_list_or_in_a_folder_without_a_record(tmp_path):
    list_files(tmp_path, ["model.onnx"])
    assert list(tmp_path.iterdir()) == []
    RunRecord({}, {}).write(tmp_path)
    list_files(tmp_path, ["model.onnx"])
    assert RunRecord.read(tmp_path).files is None  # else it would seem that the run has written nothing else


@pytest.mark.parametrize(
    "other",
    [
        {"texts": ["a", "c"]},
        {"labels": [1, 1]},
        {"pairs": ["x", "y"]},
        {"texts": ["b", "a"], "labels": [1, 0]},  # their order decides, too
        {"texts": ["a"], "labels": [0]},
    ],
)
def test_a_run_is_not_resumed_with_other_rows(tmp_path, other):
    split = Split("t.csv", ["a", "b"], None, [0, 1], [0, 1])
    splits = {"train": split, "validation": split, "test": split}
    RunRecord.of({}, splits).write(tmp_path)
    RunRecord.of({}, {**splits, "train": replace(split, source="renamed.csv")}).check_rows(tmp_path)
    RunRecord.of({}, {**splits, "test": replace(split, **other)}).check_rows(tmp_path)  # which no weight depends on
    for name in ("train", "validation"):
        with pytest.raises(InputError, match=f"the {name} rows are not those"):
            RunRecord.of({}, {**splits, name: replace(split, **other)}).check_rows(tmp_path)


@pytest.mark.parametrize("kind", [*KINDS, None])
def test_a_finished_run_whose_files_have_changed_counts_as_cut_off(tmp_path, capsys, kind):
    names = ["logits.npz", "model.safetensors", "run.json", "README.md", "never_written.csv"]
    for name in names[:2]:
        (tmp_path / name).write_bytes(b"12345678")
    (tmp_path / "README.md").write_text("card")
    record = RunRecord({"seed": 1}, {}, files=names)
    record.write(tmp_path)
    record.finish(tmp_path)
    assert set(RunRecord.read(tmp_path).digests) == {"logits.npz", "model.safetensors"}
    (tmp_path / "README.md").write_text("as the user has edited it")
    reopen_if_damaged(tmp_path)
    assert RunRecord.read(tmp_path).finished and capsys.readouterr().out == ""
    path = tmp_path / "model.safetensors"
    path.unlink() if kind is None else damage_file(path, kind)
    reopen_if_damaged(tmp_path, names=["logits.npz"])
    assert RunRecord.read(tmp_path).finished
    reopen_if_damaged(tmp_path)
    assert f"{tmp_path} is not whole: model.safetensors is " in capsys.readouterr().out
    assert RunRecord.read(tmp_path) == record


def test_a_record_that_cannot_be_written_is_one_line_and_the_one_before_stays(tmp_path):
    record = RunRecord({"seed": 1}, {}, files=[])
    record.write(tmp_path)
    with full_disk(10), pytest.raises(InputError, match="run.json cannot be written: .*File too large"):
        record.finish(tmp_path)
    assert RunRecord.read(tmp_path) == record


# ------------------------------------------------------------------------------------------------------------ the lock
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


@pytest.mark.parametrize("name", ["fold-2", "seed-2"])
def test_a_command_waits_for_a_run_in_the_folder_of_a_fold_or_seed(tmp_path, name):
    process = hold(tmp_path / name)
    try:
        with pytest.raises(InputError, match=f"is in use by another run, process {process} on"), locked(tmp_path):
            pass
        assert [path.name for path in tmp_path.iterdir()] == [name]
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
