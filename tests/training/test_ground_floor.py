"""What stands below all rooms: errors of one line, files whole or absent, precision.

The rooms of `training/` are entered from above only.
"""

import ast
import errno
import os
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lstmpool.training import writing as module
from lstmpool.training.command_line import parse_arguments
from lstmpool.training.errors import LONGEST, InputError, one_line, tokenizing
from lstmpool.training.output.terminal import describe_length
from lstmpool.training.writing import changed_since, digests_of, move, saving, settle, sync, write_text, writing

from ..damage import full_disk
from ..training_fixtures import ROOT


def test_an_error_of_the_outside_becomes_one_line():
    with (
        pytest.raises(InputError, match=r"^x\.csv cannot be read: no room\. Free some\.$"),
        one_line("x.csv cannot be read", remedy="Free some."),
    ):
        raise OSError("no\nroom.")


def test_a_bug_stays_a_bug():
    with pytest.raises(ValueError, match="bug"), one_line("x"):
        raise ValueError("bug")
    with pytest.raises(InputError, match=r"^x: odd\.$"), one_line("x", ValueError):
        raise ValueError("odd")


def test_a_message_is_short_and_keeps_its_end():
    message = str(InputError("begin " + "x" * 20_000_000 + " remedy"))
    assert len(message) <= LONGEST + 20
    assert message.startswith("begin")
    assert message.endswith("remedy")


def test_control_characters_do_not_reach_the_terminal():
    assert str(InputError("a\x1b[31mb\u200bc\ud83d")) == "a\\x1b[31mb\\u200bc\\ud83d"


def test_a_file_takes_its_place_once_it_is_whole(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("of before")
    with writing(path) as unfinished:
        unfinished.write_text("new")
        assert unfinished == tmp_path / ".table.csv.unfinished"
        assert path.read_text() == "of before"
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["table.csv"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_writing_that_fails_leaves_what_was_there(tmp_path, error):
    path = tmp_path / "table.csv"
    path.write_text("of before")
    with pytest.raises(error), writing(path) as unfinished:
        unfinished.write_text("half")
        raise error
    assert path.read_text() == "of before"
    assert os.listdir(tmp_path) == ["table.csv"]


def test_what_a_kill_has_left_is_removed_before_the_file_is_written(tmp_path):
    (tmp_path / ".table.csv.unfinished").write_text("half of an earlier one")
    with writing(tmp_path / "table.csv") as unfinished:
        assert not unfinished.exists()
        unfinished.write_text("new")
    assert os.listdir(tmp_path) == ["table.csv"]


def test_text_is_written_as_utf_8(tmp_path):
    write_text(tmp_path / "run.json", "größer\n")
    assert (tmp_path / "run.json").read_bytes() == "größer\n".encode()
    assert os.listdir(tmp_path) == ["run.json"]


def save_weights(folder):
    save_file({"weight": torch.zeros(9_000)}, folder / "model.safetensors")


def save_optimizer(folder):
    torch.save({"weight": torch.zeros(9_000)}, folder / "optimizer.pt")


def save_tokenizer(folder):
    from tokenizers import Tokenizer, models

    words = {f"word{i}": i for i in range(2_000)}
    Tokenizer(models.WordLevel(words, unk_token="word0")).save(str(folder / "tokenizer.json"))


def save_table(folder):
    (folder / "table.csv").write_text("x" * 40_000)


@pytest.mark.parametrize("write", [save_weights, save_optimizer, save_tokenizer, save_table])
def test_a_full_disk_is_one_line_whoever_writes(tmp_path, write):
    half = tmp_path / "half"
    half.mkdir()
    message = "half cannot be written: .*The disk has [0-9.,]* MB free. Make room, and then give"
    with full_disk(10_000), pytest.raises(InputError, match=message), saving(half, half_made=half):
        write(half)
    assert not half.exists()
    half.mkdir()
    write(half)  # there is room again


def test_what_is_no_error_of_the_disk_is_left_as_it_is(tmp_path):
    for error in (RuntimeError("tensors share memory"), ValueError("no such label"), InputError("told already")):
        with pytest.raises(type(error), match=f"^{error}$"), saving(tmp_path, half_made=tmp_path):
            raise error
        assert tmp_path.exists()


def test_a_move_survives_a_loss_of_power(tmp_path, monkeypatch):
    """The content is on the disk before the new name is there, and the new name after that."""
    steps = []
    monkeypatch.setattr(module, "sync", lambda path: steps.append(f"sync {path.name}"))
    monkeypatch.setattr(os, "replace", lambda source, target: steps.append(f"move to {target.name}"))
    move(tmp_path / "new", tmp_path / "name")
    assert steps == ["sync new", "move to name", f"sync {tmp_path.name}"]


@pytest.mark.parametrize(("number", "raises"), [(errno.EINVAL, False), (errno.EIO, True)])
def test_a_drive_that_cannot_sync_folders_serves_but_a_broken_one_does_not(tmp_path, monkeypatch, number, raises):
    def fail(descriptor):
        raise OSError(number, "of the drive")

    monkeypatch.setattr(os, "fsync", fail)
    if not raises:
        sync(tmp_path)
        return
    with pytest.raises(OSError, match="of the drive"):
        sync(tmp_path)


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o002, 0o664)])
def test_files_have_the_modes_of_the_umask_and_are_on_the_disk(tmp_path, monkeypatch, umask, mode):
    before = os.umask(umask)
    try:
        (tmp_path / "inner").mkdir()
        save_weights(tmp_path / "inner")  # which gives 0600
        synced = []
        monkeypatch.setattr(module, "sync", lambda path: synced.append(path.name))
        settle(tmp_path)
        assert os.umask(umask) == umask  # read, and not changed
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "inner" / "model.safetensors").stat().st_mode) == mode
    assert sorted(synced) == sorted(["model.safetensors", "inner", tmp_path.name])


def test_digests_tell_what_has_changed(tmp_path, monkeypatch):
    for name in ("one", "two", "three"):
        (tmp_path / name).write_bytes(b"12345678")
    digests = digests_of(tmp_path, ["one", "two", "three"])
    assert len(set(digests.values())) == 1 and changed_since(tmp_path, digests) == ""
    with monkeypatch.context() as patched:
        patched.setattr(module.hashlib, "blake2b", None)  # no file is read twice in a process
        assert changed_since(tmp_path, digests) == ""
    for content in (b"12345679", bytes(8), b"1234567", b""):
        (tmp_path / "two").unlink()
        (tmp_path / "two").write_bytes(content)
        os.utime(tmp_path / "two", ns=(0, len(content)))
        assert changed_since(tmp_path, digests).startswith("two is not what was written")
    (tmp_path / "one").unlink()
    assert changed_since(tmp_path, digests) == "one is missing"


# ----------------------------------------------------------------------------------------------------------- precision
def parse(*words):
    return parse_arguments(list(words), description="")[2]


@pytest.fixture
def native(monkeypatch, tmp_path):
    """A processor with instructions for matrices of bfloat16."""
    monkeypatch.setattr("lstmpool.training.flags.training_arguments.CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    (tmp_path / "cpuinfo").write_text("flags\t\t: fpu avx512f amx_bf16 amx_tile\n")


@pytest.mark.parametrize(
    ("words", "precision"),
    [
        ([], "bf16"),
        (["--use_cpu"], "bf16"),
        (["--bf16", "False"], "no"),
        (["--fp16", "False"], "no"),
        (["--freeze_backbone"], "no"),
        (["--do_train", "False", "--do_eval"], "no"),
    ],
)
def test_bf16_is_the_default_where_it_is_faster_and_the_user_has_said_nothing(native, words, precision):
    files = ["--train_file=t.csv", "--validation_file=v.csv", "--output_dir=out"]
    args = parse(*files, "--init_from=m", *words)
    assert (args.bf16, args.mixed_precision) == (precision == "bf16", precision)
    assert ("in bfloat16 where that is safe (--bf16 False: " in describe_length(args, rows=300)) == args.bf16


def test_bf16_is_off_where_it_is_slow_unknown_or_fails(native, monkeypatch, tmp_path, capsys):
    words = ["--backbone=b", "--train_file=t.csv", "--output_dir=out"]
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")  # by accelerate launch
    assert not parse(*words).bf16
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION")

    def refuse(*args, **options):
        raise RuntimeError("no such kernel\nand more")

    with monkeypatch.context() as patched:
        patched.setattr("torch.autocast", refuse)
        assert not parse(*words).bf16
    assert "Precision: float32, since bfloat16 fails here: no such kernel\n" in capsys.readouterr().out
    (tmp_path / "cpuinfo").write_text("flags\t\t: fpu avx512f\n")
    assert not parse(*words).bf16
    (tmp_path / "cpuinfo").unlink()
    assert not parse(*words).bf16
    assert capsys.readouterr().out == ""


# --------------------------------------------------------------------------------------------------------------- rooms
TRAINING = ROOT / "training"
ROOMS = (
    "flags",
    "tasks",
    "data",
    "model",
    "loop",
    "evaluation",
    "output",
    "hub",
    "predicting",
    "exporting",
    "runs",
)  # the lowest first
BESIDE = {"hub", "predicting", "exporting"}  # one another and `runs`, and not below them
ABOVE = {"exporting": {"predicting"}}  # but for these: what is exported is found, and tried, as what predicts is
BELOW_ALL = ("errors.py", "writing.py", "printing.py", "code_files.py")


def rooms_entered(path: Path) -> set[str]:
    """The rooms that a module imports from."""
    entered = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lstmpool.training"):
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            entered |= {name.split(".")[2] for name in names if name.count(".") > 1}
    return entered & set(ROOMS)


def test_every_room_has_its_place():
    assert {path.parent.name for path in TRAINING.glob("*/*.py")} == set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_from_itself_and_from_below(room):
    below = set(ROOMS[: ROOMS.index(room)]) - BESIDE | ABOVE.get(room, set())
    for path in (TRAINING / room).glob("*.py"):
        above = rooms_entered(path) - below - {room}
        assert not above, f"{room}/{path.name} imports from {sorted(above)}"


@pytest.mark.parametrize("name", BELOW_ALL)
def test_what_every_room_uses_enters_none(name):
    assert not rooms_entered(TRAINING / name)


def test_old_paths_that_cards_name_still_serve():
    from lstmpool.training.adapters import load_adapter
    from lstmpool.training.hub_folder import prepare_output_dir

    assert load_adapter.__module__ == "lstmpool.training.model.adapters"
    assert prepare_output_dir.__module__ == "lstmpool.training.hub.folder"


def test_a_word_without_an_id_is_the_users_and_any_other_error_a_bug():
    with pytest.raises(InputError, match=r"^rows\.csv: the tokenizer cannot read them: no id\. Give it an unk_token"):
        with tokenizing("rows.csv"):
            raise Exception("no id")
    with pytest.raises(ValueError, match="^a bug$"), tokenizing("rows.csv"):
        raise ValueError("a bug")
