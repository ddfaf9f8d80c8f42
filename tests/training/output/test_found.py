import json
from pathlib import Path

import pytest

from lstmpool.training.code_files import CODE
from lstmpool.training.loop.checkpoints import Saved, write_manifest
from lstmpool.training.output.found import CODE_NAMES, Found, Named, files_of, look
from lstmpool.training.output.run_record import RunRecord


# The code files of the releases whose records have no list of files.
OLD_CODE = ("configuration_lstmpool.py", "modeling_lstmpool.py", "pooling_lstmpool.py")


def put(folder, *names, content="x"):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text(content)


def checkpoint(folder, step, whole=True):
    path = folder / f"checkpoint-{step}"
    put(path, "weights")
    write_manifest(path)
    if not whole:
        (path / "weights").unlink()
    return Saved(path, "" if whole else "weights is missing")


def test_where_there_is_nothing_or_a_file(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    for name in ("none", "empty"):
        assert look(tmp_path / name) == Found(tmp_path / name, tmp_path / name)
    assert look(tmp_path / "file") == Found(tmp_path / "file", tmp_path / "file", is_file=True)


def test_what_a_run_has_left(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = Path("out")
    put(out, "config.json", "notes.txt", "model-00001-of-00002.safetensors", "model.safetensors.index.json")
    put(out, "metrics.json", *CODE_NAMES)
    (out / "config.json").write_text('{"model_type": "lstmpool"}')
    saved = (checkpoint(out, 10, whole=False), checkpoint(out, 9))
    put(out / "checkpoint-best", "weights")  # the user's own
    record = RunRecord({"seed": 1}, {}, finished=True)
    for name in ("fold-2", "fold-1", "."):
        put(out / name)
        record.write(out / name)
    found = look(out)
    weights = ("model-00001-of-00002.safetensors", "model.safetensors.index.json")
    assert found.files == tuple(sorted(["config.json", "metrics.json", "run.json", *weights, *CODE_NAMES]))
    assert found == Found(
        out,
        tmp_path / "out",
        record=record,
        files=found.files,
        members=("fold-1", "fold-2"),
        checkpoints=saved,
    )


def test_ours_are_the_files_that_the_record_lists_and_that_are_there(tmp_path):
    put(tmp_path, "model.onnx", "README.md", "run.json", "other.safetensors", "model.safetensors", *OLD_CODE)
    lists = RunRecord({}, {}, files=["model.onnx", "gone.txt"])
    assert files_of(tmp_path, lists) == ["model.onnx", "run.json"]
    assert files_of(tmp_path, None) == []
    older = RunRecord({}, {})
    assert files_of(tmp_path, older) == [*OLD_CODE, "run.json"]  # no config says that the model is ours
    (tmp_path / "config.json").write_text('{"model_type": "lstmpool"}')
    assert files_of(tmp_path, older) == sorted(
        ["README.md", "config.json", "model.safetensors", *OLD_CODE, "run.json"]
    )
    lists.write(tmp_path)
    found = look(tmp_path)
    assert found.files == ("model.onnx", "run.json")
    assert found.foreign == ("README.md", "config.json", *OLD_CODE[:1], "model.safetensors", *OLD_CODE[1:])


OURS = {"settings": {"seed": 1}, "rows": {}, "files": []}


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        "[" * 100_000,
        json.dumps(OURS | {"settings": []}),
        json.dumps(OURS | {"rows": {"train": 3}}),
        json.dumps(OURS | {"rows": []}),
        json.dumps(OURS | {"files": "all"}),
        json.dumps(OURS | {"finished": "yes"}),
        json.dumps({"settings": {"lr": 1}, "metrics": {}}),
    ],
)
def test_a_record_that_does_not_read_as_ours_is_the_users(tmp_path, content):
    put(tmp_path, "run.json", content=content)
    put(tmp_path / "fold-1", "run.json", content=content)
    found = look(tmp_path)
    assert (found.record, found.members, found.all_of_run) == (None, (), ())
    assert (found.foreign, found.foreign_members) == (("run.json",), ("fold-1/run.json",))


@pytest.mark.parametrize("name", [*sorted(CODE_NAMES), "README.md", "vocab.txt", "metrics.json", ".unfinished"])
@pytest.mark.parametrize("kind", ["file", "folder", "link", "link that leads nowhere"])
@pytest.mark.parametrize("beside", ["nothing", "a finished run"])
def test_what_a_run_would_replace_is_the_users_whatever_it_is(tmp_path, name, kind, beside):
    out, target = tmp_path / "out", tmp_path / "target"
    put(out, "notes.txt")  # of a name that no run writes
    if beside == "a finished run":
        RunRecord({}, {}, finished=True, files=["run.json"]).write(out)
    if kind == "file":
        put(out, name)
    elif kind == "folder":
        (out / name).mkdir()
    else:
        (out / name).symlink_to(target)
        if kind == "link":
            target.write_text("mine")
    assert look(out).foreign == (name,)


def test_links_and_other_peoples_checkpoints_and_folds_are_the_users(tmp_path):
    out = tmp_path / "out"
    checkpoint(tmp_path, 8)
    RunRecord({}, {}, files=[]).write(tmp_path / "checkpoint-8")
    put(out)
    for name in ("checkpoint-8", "fold-2", ".new_run"):
        (out / name).symlink_to(tmp_path / "checkpoint-8")
    put(out / "checkpoint-9", "config.json", content='{"model_type": "bert"}')
    put(out / "checkpoint-10", "notes.txt")
    put(out / "checkpoint-11", *CODE_NAMES)  # a save that was cut off
    put(out / "fold-1", "notes.txt")  # which no run writes
    put(out / "fold-3", "config.json")
    RunRecord({}, {}, files=["run.json"]).write(out)
    found = look(out)
    assert [each.path.name for each in found.checkpoints] == ["checkpoint-11"] and found.members == ()
    assert found.foreign == (".new_run (a link)", "checkpoint-10", "checkpoint-8 (a link)", "checkpoint-9")
    assert found.foreign_members == ("fold-2 (a link)", "fold-3/config.json")


@pytest.mark.parametrize(
    "names",
    [
        (*CODE_NAMES, "config.json"),
        ("config.json",),
        ("README.md", "adapter_config.json", "adapter_model.safetensors"),
        ("README.md", ".tmpkqJCJF"),
        ("model.safetensors", "optimizer.pt", "rng_state_1.pth", "trainer_state.json", ".manifest.json.unfinished"),
        (),
    ],
)
def test_what_a_kill_leaves_of_a_save_is_the_runs(tmp_path, names):
    """The config may be empty: it was opened, and nothing was written yet."""
    (tmp_path / "checkpoint-8").mkdir()
    for name in names:
        (tmp_path / "checkpoint-8" / name).touch()
    RunRecord({}, {}, files=["run.json"]).write(tmp_path)
    found = look(tmp_path)
    assert [each.path.name for each in found.checkpoints] == ["checkpoint-8"]
    assert found.foreign == () and found.another_kind == ()
    (tmp_path / "checkpoint-8" / "notes.txt").touch()
    assert look(tmp_path).foreign == ("checkpoint-8",)


def test_the_new_run_is_found_in_its_folder_and_what_is_not_its_own_is_the_users(tmp_path):
    new = tmp_path / ".new_run"
    put(new, "README.md")
    assert look(tmp_path).new is None and look(tmp_path).foreign == (".new_run/README.md",)
    RunRecord({}, {}, files=["run.json"]).write(new)
    assert look(tmp_path).new == look(new)
    assert look(tmp_path).foreign == (".new_run/README.md",)


def test_the_unfinished_folder_of_a_run_that_was_cut_off_is_its_own(tmp_path):
    put(tmp_path / ".unfinished", "README.md")
    for finished in (True, False):
        RunRecord({}, {}, finished=finished, files=[]).write(tmp_path)
        assert look(tmp_path).foreign == ((".unfinished",) if finished else ())


def test_the_running_code_is_found(tmp_path):
    code = next(iter(CODE)).parent
    (tmp_path / "link").symlink_to(code)
    assert look(code).holds_code and look(tmp_path / "link").holds_code
    assert not look(code / "training").holds_code and not look(tmp_path).holds_code


@pytest.mark.parametrize(
    ("where", "content", "another"),
    [
        ("config.json", {"model_type": "lstmpool"}, False),
        ("config.json", {"model_type": "bert"}, True),
        ("config.json", [], True),
        ("config.json", None, True),  # no JSON
        ("checkpoint-5/config.json", {"model_type": "lstmpool"}, False),
        ("checkpoint-5/config.json", {"model_type": "bert"}, True),
        ("model.safetensors", None, True),  # of nobody knows what
        ("README.md", None, False),  # no model
    ],
)
def test_a_model_is_ours_if_its_config_says_so(tmp_path, where, content, another):
    path = tmp_path / where
    put(path.parent, path.name, content="{" if content is None else json.dumps(content))
    assert bool(look(tmp_path).another_kind) == another


def test_weights_alone_are_ours_beside_a_record(tmp_path):
    put(tmp_path, "model.safetensors")
    RunRecord({}, {}).write(tmp_path)
    assert not look(tmp_path).another_kind


def test_the_checkpoint_that_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("out", "in"):
        checkpoint(tmp_path / folder, 5)
        checkpoint(tmp_path / folder, 9, whole=False)
    (tmp_path / "link").symlink_to("out")

    def named(path):
        return look(tmp_path / "out", path).named

    def beside(folder):
        path = Path(folder)
        return (Saved(path / "checkpoint-9", "weights is missing"), Saved(path / "checkpoint-5"))

    for last in (None, "last", "Last", "true", "True"):
        assert named(last) is None
    assert named("in/checkpoint-5") == Named(
        Path("in/checkpoint-5"), tmp_path / "in" / "checkpoint-5", beside=beside("in")
    )
    assert named("in/checkpoint-9").damage == "weights is missing"
    for path in ("out/checkpoint-5", "link/checkpoint-5", str(tmp_path / "out" / "checkpoint-5")):
        assert named(path) == Named(
            Path(path), tmp_path / "out" / "checkpoint-5", in_output=True, beside=beside(Path(path).parent)
        )
    assert named("in/checkpoint-7") == Named(Path("in/checkpoint-7"), tmp_path / "in" / "checkpoint-7", exists=False)


@pytest.mark.parametrize("name", ["errors.csv", "validation_predictions.csv", "validation_predictions.parquet"])
def test_a_file_that_older_releases_did_not_write_is_the_users_beside_such_a_run(tmp_path, name):
    put(tmp_path, name, "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "lstmpool"}')
    RunRecord({}, {}, finished=True).write(tmp_path)
    assert look(tmp_path).foreign == (name,)  # told before a long run, which would replace it in the end
    RunRecord({}, {}, finished=True, files=[name, "config.json", "model.safetensors"]).write(tmp_path)
    assert look(tmp_path).foreign == ()
