"""The rooms of `training/` are entered from above only."""

import ast
from pathlib import Path

import pytest

from ..training_fixtures import ROOT


TRAINING = ROOT / "training"
ROOMS = ("flags", "tasks", "data", "model", "loop", "evaluation", "output", "hub", "runs")  # the lowest first
BELOW_ALL = ("errors.py", "writing.py", "spreadsheet.py", "code_files.py")


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
    below = set(ROOMS[: ROOMS.index(room)]) - {"hub"}  # beside `runs`, and not below it
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
