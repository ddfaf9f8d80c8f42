"""How checkpoints are kept: which are whole, in which order one is saved, and which are removed.

A checkpoint counts only if its manifest, written last, lists its files and their sizes.
"""

import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from transformers import TrainerState
from transformers.trainer_utils import rotate_checkpoints

from lstmpool.training.errors import InputError
from lstmpool.training.flags.training_arguments import TrainingArguments
from lstmpool.training.writing import write_text


MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Saved:
    """A checkpoint on disk, and what keeps it from being whole; `damage` is empty where it is."""

    path: Path
    damage: str = ""


class Kept:
    """Keeps a run's newest checkpoint, its best one, and as many older ones as the limit allows.

    The library's own limit does not serve: it removes older checkpoints before the new one has its manifest, and the
    last one before the run has written its folder. A kill then would leave nothing to go on from.

    Args:
        folder: of the run.
        limit (`int`, *optional*): how many checkpoints are kept, the best one included. None keeps all.
        ends_with_best: whether the run ends with the weights of its best checkpoint.
    """

    def __init__(self, folder: Path, limit: int | None, ends_with_best: bool):
        self.folder = folder
        self.limit = limit
        self.ends_with_best = ends_with_best

    @classmethod
    def of(cls, args: TrainingArguments) -> "Kept":
        """As the training arguments say."""
        return cls(Path(args.output_dir), args.save_total_limit, args.load_best_model_at_end)

    def before_save(self, state: TrainerState) -> None:
        """Makes room for the checkpoint of this step, which another course of the run may have saved before."""
        checkpoint = self._of(state)
        if not checkpoint.exists():
            return
        if damage(checkpoint):
            shutil.rmtree(checkpoint)  # a save that was cut off has left it
        else:
            (checkpoint / MANIFEST).unlink()  # its files are replaced one by one

    def after_save(self, state: TrainerState) -> None:
        """Declares the checkpoint of this step whole; only then removes older ones."""
        write_manifest(self._of(state))
        rotate_checkpoints(str(self.folder), self.limit, state.best_model_checkpoint)

    def finish(self, state: TrainerState) -> None:
        """With a limit of 1, removes the last checkpoint, so that the best one alone is left. To be called when all
        else is written: until then, a run that is cut off goes on from the last one."""
        best = state.best_model_checkpoint if self.ends_with_best else None
        last = self._of(state)
        if self.limit == 1 and best and Path(best).name != last.name:
            shutil.rmtree(last, ignore_errors=True)

    def _of(self, state: TrainerState) -> Path:
        return self.folder / f"checkpoint-{state.global_step}"


def write_manifest(checkpoint: Path) -> None:
    """Lists the files of a checkpoint, which must all be written."""
    files = (path for path in sorted(checkpoint.rglob("*")) if path.is_file() and path.name != MANIFEST)
    sizes = {path.relative_to(checkpoint).as_posix(): path.stat().st_size for path in files}
    write_text(checkpoint / MANIFEST, json.dumps({"files": sizes}, indent=1) + "\n")


def damage(checkpoint: Path) -> str:
    """What keeps a checkpoint from being whole, in words; nothing where it is."""
    try:
        sizes = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))["files"]
    except FileNotFoundError:
        return f"it has no {MANIFEST}, which is written last: the save was cut off"
    except (OSError, ValueError, KeyError, TypeError):
        return f"its {MANIFEST} cannot be read"
    for name, expected in sizes.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != expected:
            return f"{name} has {path.stat().st_size} bytes, expected {expected}"
    return ""


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints in a folder, whole or not, the newest first."""
    found = [path for path in folder.glob("checkpoint-*") if path.is_dir() and path.name[11:].isdecimal()]
    return sorted(found, key=lambda path: int(path.name[11:]), reverse=True)


def saved_in(folder: Path) -> tuple[Saved, ...]:
    """The checkpoints in a folder, the newest first, each with what is wrong with it."""
    return tuple(Saved(path, damage(path)) for path in checkpoints_in(folder))


def newest_whole(saved: Iterable[Saved]) -> Saved | None:
    """The first whole one of these, which are given from the newest to the oldest. None if there is none."""
    for each in saved:
        if not each.damage:
            return each
    return None


def find_best(checkpoint: Path, output: Path) -> Path | None:
    """The checkpoint that was the best one when `checkpoint` was saved: beside it, wherever the folder was then, or in
    the folder that the run was resumed from. None if there was none. `output` is the run's folder.

    Raises:
        InputError: if it is not whole. Without it, the weights in the end would not be those that are said to be kept.
    """
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    if not state.get("best_model_checkpoint"):
        return None
    best = Path(state["best_model_checkpoint"])
    if (beside := checkpoint.parent / best.name).is_dir() or not best.is_dir():
        best = beside
    if wrong := damage(best):
        raise InputError(
            f"the best checkpoint, {best}, is not whole: {wrong}. Begin anew, in another --output_dir or once "
            f"{output} is removed; or keep the last weights, with --load_best_model_at_end False "
            f"--resume_from_checkpoint {checkpoint}."
        )
    return best
