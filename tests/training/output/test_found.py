import json
from pathlib import Path

import pytest

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
    (out / "README.md").mkdir()  # no file
    saved = (checkpoint(out, 10, whole=False), checkpoint(out, 9))
    put(out / "checkpoint-best", "weights")  # the user's own
    put(out / "fold-2", "run.json")
    put(out / "fold-1", "run.json")
    put(out / "fold-3", "config.json")  # no record: not known for ours
    record = RunRecord({"seed": 1}, {}, finished=True)
    record.write(out)
    found = look(out)
    weights = ("model-00001-of-00002.safetensors", "model.safetensors.index.json")
    assert found.files == tuple(sorted(["config.json", "metrics.json", "run.json", *weights, *OLD_CODE]))
    assert found == Found(
        out,
        tmp_path / "out",
        record=record,
        files=found.files,
        ours=found.files,
        folds=("fold-1", "fold-2"),
        checkpoints=saved,
    )


def test_ours_are_the_files_that_the_record_lists_and_that_are_there(tmp_path):
    put(tmp_path, "model.onnx", "README.md", "run.json", "other.safetensors")
    lists = RunRecord({}, {}, files=["model.onnx", "gone.txt"])
    assert files_of(tmp_path, lists) == ["model.onnx", "run.json"]
    assert files_of(tmp_path, RunRecord({}, {})) == ["README.md", "other.safetensors", "run.json"]
    assert files_of(tmp_path, None) == ["README.md", "other.safetensors", "run.json"]
    lists.write(tmp_path)
    found = look(tmp_path)
    assert found.ours == ("model.onnx", "run.json")
    assert found.files == ("README.md", "model.onnx", "other.safetensors", "run.json")  # the run would replace these


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
    assert look(tmp_path).another_kind == another


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
