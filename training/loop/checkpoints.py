"""How checkpoints are kept: which ones are whole, in which order one is saved, and which ones are removed.

A checkpoint counts only if it has a manifest of its files, their sizes and digests. It is written last, once all else
is on the disk, so that neither a kill nor a loss of power leaves half a checkpoint that counts.
"""

import json
import math
import shutil
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import rotate_checkpoints

from lstmpool.training.errors import InputError, one_line
from lstmpool.training.flags.training_arguments import TrainingArguments
from lstmpool.training.writing import changed_since, digests_of, saving, settle, sync, write_text


MANIFEST = "manifest.json"
PREFIX = "checkpoint-"  # Trainer's; the number of the step follows


@dataclass(frozen=True)
class Saved:
    """A checkpoint on disk. `damage` says what keeps it from being whole, and is empty if it is whole."""

    path: Path
    damage: str = ""


class Kept:
    """Keeps a run's newest checkpoint, its best one, and as many older ones as the limit allows.

    The library's own limit is not used. It removes older checkpoints before the new one has its manifest, and the last
    one before the run has written its folder. A kill in between would leave nothing to go on from.

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
        """Makes room for this step's checkpoint, which the run may have saved before it was resumed."""
        checkpoint = self.of_step(state)
        if not checkpoint.exists():
            return
        if damage(checkpoint, by_digest=False):
            shutil.rmtree(checkpoint)  # left by a save that was cut off
        else:
            (checkpoint / MANIFEST).unlink()  # the save replaces its files one by one

    def after_save(self, state: TrainerState) -> None:
        """Declares this step's checkpoint whole, and only then removes older ones.

        Raises:
            InputError: if the disk is full. Older checkpoints stay.
        """
        checkpoint = self.of_step(state)
        with saving(checkpoint, half_made=checkpoint):
            write_manifest(checkpoint)
        with saving(self.folder):
            rotate_checkpoints(str(self.folder), self.limit, state.best_model_checkpoint)

    def left_over(self, state: TrainerState, some_stay: bool) -> list[str]:
        """Names of the checkpoints that are of no use once the run is finished.

        Until all else is written they are: a run that is cut off goes on from the last one. If some stay beside the
        model, a limit of 1 leaves the best one alone. What has no manifest was not saved by the run.
        """
        if not some_stay:
            return [path.name for path in checkpoints_in(self.folder) if (path / MANIFEST).is_file()]
        best = state.best_model_checkpoint if self.ends_with_best else None
        last = self.of_step(state)
        return [last.name] if self.limit == 1 and best and Path(best).name != last.name else []

    def of_step(self, state: TrainerState) -> Path:
        """This step's checkpoint."""
        return self.folder / f"{PREFIX}{state.global_step}"


def step_of(checkpoint: Path) -> int:
    """The step after which a checkpoint was saved, as its name says."""
    return int(checkpoint.name.removeprefix(PREFIX))


def write_manifest(checkpoint: Path) -> None:
    """Lists the files of a checkpoint, once they are on the disk. All of them must be written before."""
    for left in checkpoint.glob(".*.unfinished"):
        left.unlink()  # by a kill
    settle(checkpoint)
    sync(checkpoint.parent)  # which holds the checkpoint's own name
    files = [path for path in sorted(checkpoint.rglob("*")) if path.is_file() and path.name != MANIFEST]
    names = [path.relative_to(checkpoint).as_posix() for path in files]
    sizes = {name: path.stat().st_size for name, path in zip(names, files, strict=True)}
    manifest = {"files": sizes, "digests": digests_of(checkpoint, names)}
    write_text(checkpoint / MANIFEST, json.dumps(manifest, indent=1) + "\n")


def remove_checkpoint(checkpoint: Path) -> None:
    """Removes a checkpoint. If it has a manifest, files that are not listed there stay: they are the user's."""
    try:
        listed = {*json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))["files"]}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        shutil.rmtree(checkpoint)  # a save that was cut off
        return
    paths = sorted(checkpoint.rglob("*"), reverse=True)  # what is in a folder comes before the folder
    for path in paths:
        if path.relative_to(checkpoint).as_posix() in listed - {MANIFEST}:
            path.unlink()
    (checkpoint / MANIFEST).unlink()  # until then, the rest is known for ours
    for path in (*paths, checkpoint):
        with suppress(OSError):  # it is none, or not empty
            path.rmdir()


def damage(checkpoint: Path, by_digest: bool = True) -> str:
    """Says what keeps a checkpoint from being whole; empty if it is whole.

    Args:
        checkpoint: its folder.
        by_digest: whether its files are read. If not, only their sizes are compared. Manifests of older releases have
            no digests.
    """
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
        sizes, digests = dict(manifest["files"]), dict(manifest.get("digests", {}))
    except FileNotFoundError:
        return f"it has no {MANIFEST}, which is written last: the save was cut off"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return f"its {MANIFEST} cannot be read"
    for name, expected in sizes.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != expected:
            return f"{name} has {path.stat().st_size} bytes, expected {expected}"
    return changed_since(checkpoint, digests) if by_digest else ""


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints in a folder, whole or not, the newest first."""
    paths = [path for path in folder.glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdecimal()]
    return sorted((path for path in paths if path.is_dir()), key=step_of, reverse=True)


def saved_in(folder: Path) -> tuple[Saved, ...]:
    """The checkpoints in a folder, the newest first, each with its damage.

    Files are read down to the newest whole one, from which a run may go on. Below it, only sizes are compared.
    """
    saved = []
    for path in checkpoints_in(folder):
        saved.append(Saved(path, damage(path, by_digest=newest_whole(saved) is None)))
    return tuple(saved)


def newest_whole(saved: Iterable[Saved]) -> Saved | None:
    """The first whole checkpoint of `saved`, which must begin with the newest. None if none is whole."""
    for each in saved:
        if not each.damage:
            return each
    return None


def read_state(checkpoint: Path) -> TrainerState:
    """Trainer's state in a checkpoint. Raises InputError if it cannot be read."""
    path = checkpoint / TRAINER_STATE_NAME
    remedy = f"Remove {checkpoint}: the same command then goes on from an older one. Or resume from another one."
    with one_line(f"{path} cannot be read", ValueError, TypeError, remedy=remedy):
        return TrainerState.load_from_json(str(path))


def find_best(checkpoint: Path, output: Path) -> Path | None:
    """The checkpoint that was the best one when `checkpoint` was saved, or None if there was none.

    It lies beside `checkpoint`, even if the folder has moved, or in the folder that the run was resumed from.

    Args:
        checkpoint: the one to resume from.
        output: the run's folder, for the message.

    Raises:
        InputError: if the best one is not whole. The run would then end with other weights than it says.
    """
    state = read_state(checkpoint)
    if not state.best_model_checkpoint:
        return None
    best = Path(state.best_model_checkpoint)
    beside = checkpoint.parent / best.name
    if beside.is_dir() or not best.is_dir():
        best = beside
    if wrong := damage(best):
        raise InputError(
            f"the best checkpoint, {best}, is not whole: {wrong}. Begin anew, in another --output_dir or once "
            f"{output} is removed; or keep the last weights, with --load_best_model_at_end False "
            f"--resume_from_checkpoint {checkpoint}."
        )
    return best


def wins_tie(state: TrainerState, value: float | None) -> bool:
    """Whether the evaluation that was just logged has the metric `value` of the best one so far, and a lower loss.

    Both losses are read from the log, which each checkpoint holds: a run that goes on decides as it would have without
    the stop. Of equal losses, the earlier one is kept. NaN never wins.
    """
    if value is None or value != state.best_metric or state.best_global_step is None:
        return False
    return _loss_at(state, state.global_step) < _loss_at(state, state.best_global_step)


def _loss_at(state: TrainerState, step: int) -> float:
    """The loss of the evaluation after `step`; infinity if it is NaN, or was not measured."""
    losses = [entry["eval_loss"] for entry in state.log_history if entry["step"] == step and "eval_loss" in entry]
    return losses[-1] if losses and not math.isnan(losses[-1]) else math.inf
