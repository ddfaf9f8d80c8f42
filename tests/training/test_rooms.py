"""The rooms of `training/` are entered from above only."""

import ast
import re
from pathlib import Path

import pytest

from ..training_fixtures import ROOT


ROOMS = ("tasks", "data", "model", "loop", "evaluation", "output", "hub", "runs")  # the lowest first
ENTRIES = {"publish.py"}  # what people start, which leads into a room


def rooms_entered(path: Path) -> set[str]:
    """The rooms that a module imports from; "" is the ground floor."""
    modules = [node.module or "" for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
    return {
        found[1] or "" for module in modules if (found := re.fullmatch(r"lstmpool\.training(?:\.(\w+))?\.\w+", module))
    }


def test_every_room_has_its_place():
    assert {path.parent.name for path in (ROOT / "training").glob("*/__init__.py")} == set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_from_itself_and_from_below(room):
    allowed = {"", *ROOMS[: ROOMS.index(room) + 1]} - {"hub" if room == "runs" else None}
    for path in (ROOT / "training" / room).glob("*.py"):
        entered = {
            name for name in rooms_entered(path) if name in ROOMS or not (ROOT / f"training/{name}.py").exists()
        }
        assert entered <= allowed, f"{path.name} of {room} imports from {sorted(entered - allowed)}"
