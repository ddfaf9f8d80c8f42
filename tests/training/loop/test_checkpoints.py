import json
import os

import pytest

from lstmpool.training.errors import InputError
from lstmpool.training.loop.checkpoints import damage, find_best, find_checkpoint, newest_whole, write_manifest


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


def test_a_checkpoint_counts_if_its_manifest_does(folder, capsys):
    assert damage(folder / "checkpoint-10") == ""
    assert "the save was cut off" in damage(folder / "checkpoint-12")
    assert newest_whole(folder) == folder / "checkpoint-10"  # not 9, which is later in the alphabet
    assert capsys.readouterr().out.startswith(f"{folder / 'checkpoint-12'} is left out: it has no manifest.json")
    assert find_checkpoint(folder, "last") == folder / "checkpoint-10"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("optimizer.pt", b"123", "optimizer.pt has 3 bytes, expected 5"),
        ("shards/weights", None, "shards/weights is missing"),
        ("manifest.json", b'{"files": {"optimizer.pt"', "manifest.json cannot be read"),
        ("manifest.json", b"[]", "manifest.json cannot be read"),
    ],
)
def test_a_damaged_checkpoint_is_named_with_the_newest_whole_one(folder, name, content, words):
    path = folder / "checkpoint-10" / name
    os.remove(path) if content is None else path.write_bytes(content)
    whole = folder / "checkpoint-9"
    assert newest_whole(folder) == whole
    with pytest.raises(InputError, match=f"{words}.*newest whole one is {whole}: --resume_from_checkpoint {whole}"):
        find_checkpoint(folder, str(folder / "checkpoint-10"))


def test_where_none_is_whole(folder, tmp_path):
    for step in (9, 10):
        os.remove(folder / f"checkpoint-{step}" / "optimizer.pt")
    with pytest.raises(InputError, match="holds no whole checkpoint"):
        find_checkpoint(folder, "last")
    with pytest.raises(InputError, match="optimizer.pt is missing. There is no whole one"):
        find_checkpoint(folder, str(folder / "checkpoint-9"))


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
