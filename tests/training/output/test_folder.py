import json
import os
import shutil

import pytest
from transformers import AutoModel, AutoTokenizer

from lstmpool.training.arguments import TrainingArguments
from lstmpool.training.errors import InputError
from lstmpool.training.loop.checkpoints import write_manifest
from lstmpool.training.output.folder import check_output, json_writer, prepare_output, write_output
from lstmpool.training.output.run_record import RunRecord

from ...conftest import CODE, tiny_model
from ...training_fixtures import save_backbone


def arguments(folder, **options):
    return TrainingArguments(output_dir=str(folder), use_cpu=True, report_to=[], **{"do_train": True, **options})


@pytest.fixture
def finished(tmp_path):
    """A folder with a finished run, a checkpoint, and a file of the user's."""
    folder = tmp_path / "out"
    tiny_model().save_pretrained(folder)
    (folder / "checkpoint-5").mkdir()
    (folder / "checkpoint-5" / "trainer_state.json").write_text("{}")
    write_manifest(folder / "checkpoint-5")
    (folder / "vocab.txt").write_text("left by another tokenizer")
    for name in ("reliability.png", "test_predictions.parquet"):
        (folder / name).write_text("of an earlier run")
    (folder / "notes.txt").write_text("mine")
    return folder


def test_the_code_is_there_before_training(tmp_path):
    args = arguments(tmp_path / "new" / "out")
    check_output(args, {})
    prepare_output(args, RunRecord({}, {}))
    assert {path.name for path in (tmp_path / "new" / "out").iterdir()} == {"run.json", *CODE}
    check_output(args, {})  # a run that was stopped before its first checkpoint can be started again


def test_a_run_is_not_overwritten_unasked(finished):
    before = sorted(path.name for path in finished.rglob("*"))
    with pytest.raises(InputError, match="holds a run already .*--resume_from_checkpoint last.*--overwrite"):
        check_output(arguments(finished), {})
    assert sorted(path.name for path in finished.rglob("*")) == before


@pytest.mark.parametrize("kept", ["model.safetensors", "checkpoint-5"])
def test_parts_of_a_run_are_not_overwritten_unasked(finished, kept):
    (finished / "config.json").rename(finished / "checkpoint-5" / "config.json")
    if kept == "checkpoint-5":
        (finished / "model.safetensors").unlink()
    with pytest.raises(InputError, match="holds a run already"):
        check_output(arguments(finished), {})


def test_the_table_of_an_earlier_evaluation_is_not_overwritten_unasked(tmp_path):
    (tmp_path / "test_predictions.csv").write_text("id")
    with pytest.raises(InputError, match="holds a run already .test_predictions.csv."):
        check_output(arguments(tmp_path), {})
    check_output(arguments(tmp_path, overwrite=True), {})


def test_a_file_of_the_users_is_not_taken_for_a_part_of_a_run(tmp_path):
    (tmp_path / "README.md").write_text("mine")  # as in a project's own folder
    with pytest.raises(InputError, match="holds .*README.md"):
        check_output(arguments(tmp_path), {})
    assert (tmp_path / "README.md").read_text() == "mine"


def test_the_model_to_start_from_is_not_overwritten(finished, tmp_path):
    for start in (finished, finished / "checkpoint-5"):
        with pytest.raises(InputError, match="holds the model of --init_from. Choose another folder"):
            check_output(arguments(finished, overwrite=True), {}, str(start))
    check_output(arguments(tmp_path / "new"), {}, str(finished))


def test_a_folder_without_training_gets_no_code(tmp_path):
    prepare_output(arguments(tmp_path / "new", do_train=False), RunRecord({}, {}))
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"run.json"}


def test_overwriting_removes_the_run_and_nothing_else(finished):
    args = arguments(finished, overwrite=True)
    check_output(args, {})
    prepare_output(args, RunRecord({}, {}))
    assert {path.name for path in finished.iterdir()} == CODE | {"run.json", "notes.txt"}


@pytest.mark.parametrize("top", [True, False])  # a finished run, or one that was cut off
@pytest.mark.parametrize("removed", [*range(12), 99])
def test_an_overwrite_that_was_killed_while_it_removes_the_run_is_done_again(finished, monkeypatch, removed, top):
    class Killed(BaseException):
        pass

    def unlink(*args, **kwargs):
        calls.append(args)
        if len(calls) > removed:
            raise Killed
        of_library(*args, **kwargs)

    RunRecord({"seed": 1}, {}, finished=top).write(finished)
    tiny_model().save_pretrained(finished / "checkpoint-5")
    for name in ("config.json", "model.safetensors") if not top else ():
        (finished / name).unlink()
    args, of_library, calls = arguments(finished, overwrite=True), os.unlink, []
    monkeypatch.setattr(os, "unlink", unlink)
    check_output(args, {"seed": 2})
    files = sum(path.is_file() for path in finished.rglob("*")) - 1  # not the user's
    try:
        prepare_output(args, RunRecord({"seed": 2}, {}))
    except Killed:
        assert removed < files
    monkeypatch.undo()
    check_output(args, {"seed": 2})
    prepare_output(args, RunRecord({"seed": 2}, {}))
    assert {path.name for path in finished.iterdir()} == CODE | {"run.json", "notes.txt"}


def test_another_kind_of_model_is_never_overwritten(tmp_path):
    folder = save_backbone(tmp_path / "bert")
    with pytest.raises(InputError, match="another kind of model"):
        check_output(arguments(folder, overwrite=True), {})
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="found a file"):
        check_output(arguments(tmp_path / "file"), {})
    with pytest.raises(InputError, match="cannot be written"):
        prepare_output(arguments(tmp_path / "file" / "out"), RunRecord({}, {}))


def test_resuming_needs_a_checkpoint(finished, tmp_path):
    args = arguments(finished, resume_from_checkpoint="last")
    check_output(args, {})
    prepare_output(args, RunRecord({}, {}))
    assert args.resume_from_checkpoint == str(finished / "checkpoint-5")
    assert (finished / "checkpoint-5").is_dir()
    with pytest.raises(InputError, match="holds no whole checkpoint"):
        check_output(arguments(tmp_path / "new", resume_from_checkpoint="last"), {})
    with pytest.raises(InputError, match="must be a checkpoint-. folder, found none"):
        check_output(arguments(finished, resume_from_checkpoint=str(tmp_path / "no")), {})


def test_nothing_is_moved_into_place_before_all_is_written(tmp_path):
    class Broken:
        init_kwargs = {}

        def save_pretrained(self, folder):
            raise OSError("disk full")

    folder = tmp_path / "out"
    prepare_output(arguments(folder), RunRecord({}, {}))
    with pytest.raises(OSError, match="disk full"):
        write_output(folder, tiny_model(), Broken(), {"README.md": lambda path: path.write_text("card")})
    assert {path.name for path in folder.iterdir() if not path.name.startswith(".")} == {"run.json", *CODE}


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
        args = arguments(finished, overwrite=overwrite)
        check_output(args, {"learning_rate": 1e-3, "seed": 1, "new in this version": 2})
        assert args.resume_from_checkpoint == str(finished / "checkpoint-5")
        assert "It goes on from" in capsys.readouterr().out
    with pytest.raises(InputError, match="learning_rate 0.001 there and 0.002 here.*--overwrite"):
        check_output(arguments(finished), {"learning_rate": 2e-3, "seed": 1})
    args = arguments(finished, overwrite=True)
    check_output(args, {"learning_rate": 2e-3, "seed": 1})
    assert args.resume_from_checkpoint is None

    (finished / "checkpoint-5" / "trainer_state.json").write_text("{ cut")
    args = arguments(finished)
    check_output(args, {"learning_rate": 1e-3, "seed": 1})
    assert args.resume_from_checkpoint is None
    told = capsys.readouterr().out
    assert "checkpoint-5 is left out: trainer_state.json has 5 bytes, expected 2" in told and "begins anew" in told

    RunRecord({"learning_rate": 1e-3, "seed": 1}, {}).finish(finished)
    with pytest.raises(InputError, match="holds a run already"):
        check_output(arguments(finished), {"learning_rate": 1e-3, "seed": 1})


def test_a_run_that_was_begun_from_a_checkpoint_goes_on_from_its_own_last_one(finished, tmp_path, monkeypatch):
    def begun(folder, start, **settings):
        args = arguments(folder, resume_from_checkpoint=start, **settings)
        check_output(args, {"seed": 1})
        prepare_output(args, RunRecord.of({"seed": 1}, {}, args.resumed_from))
        return args.resume_from_checkpoint

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
    from_the_first = {"resume_from_checkpoint": str(finished / "checkpoint-5")}
    with pytest.raises(InputError, match="checkpoint-9 comes after it, and would be replaced.*--overwrite"):
        check_output(arguments(finished, **from_the_first), {})
    args = arguments(finished, **from_the_first, overwrite=True)
    check_output(args, {})
    prepare_output(args, RunRecord({}, {}))
    assert {path.name for path in finished.glob("checkpoint-*")} == {"checkpoint-5", "checkpoint-best"}

    tiny_model().save_pretrained(tmp_path / "taken")
    with pytest.raises(InputError, match="holds a run already .config.json, .*Choose another folder, or replace it"):
        check_output(arguments(tmp_path / "taken", **from_the_first), {})
    check_output(arguments(tmp_path / "free", **from_the_first), {})
    prepare_output(arguments(finished, overwrite=True), RunRecord({}, {}))
    assert {path.name for path in finished.glob("checkpoint-*")} == {"checkpoint-best"}
