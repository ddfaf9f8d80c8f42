"""Checkpoints that are whole: one counts only if its manifest, written last, lists its files and their sizes."""

import json
import os
from pathlib import Path

from lstmpool.training.errors import InputError


MANIFEST = "manifest.json"


def write_manifest(checkpoint: Path) -> None:
    """To be called when all files of the checkpoint are written. Its own name appears in one move."""
    files = (path for path in sorted(checkpoint.rglob("*")) if path.is_file() and path.name != MANIFEST)
    sizes = {path.relative_to(checkpoint).as_posix(): path.stat().st_size for path in files}
    unfinished = checkpoint / f".{MANIFEST}.unfinished"
    unfinished.write_text(json.dumps({"files": sizes}, indent=1) + "\n", encoding="utf-8")
    os.replace(unfinished, checkpoint / MANIFEST)


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


def newest_whole(folder: Path) -> Path | None:
    """The newest whole checkpoint in a folder; those after it, which are not, are named in print."""
    for checkpoint in checkpoints_in(folder):
        wrong = damage(checkpoint)
        if not wrong:
            return checkpoint
        print(f"{checkpoint} is left out: {wrong}.")
    return None


def is_last(named: str) -> bool:
    """Whether `--resume_from_checkpoint` names no path, but the newest checkpoint."""
    return named.lower() in ("last", "true")


def find_checkpoint(folder: Path, named: str) -> Path:
    """The checkpoint that `--resume_from_checkpoint` names: a path, or "last" for the newest whole one in `folder`.

    Raises:
        InputError: if it is none, or not whole; the newest one that is, and how to resume from it, are named.
    """
    flag = "--resume_from_checkpoint"
    if is_last(named):
        if (newest := newest_whole(folder)) is not None:
            return newest
        raise InputError(f"{flag} {named}: {folder} holds no whole checkpoint-* folder. Leave it out.")
    checkpoint = Path(named)
    if not checkpoint.is_dir():
        raise InputError(f"{flag} {named} must be a checkpoint-* folder, found none.")
    if wrong := damage(checkpoint):
        newest = newest_whole(checkpoint.parent)
        remedy = f"The newest whole one is {newest}: {flag} {newest}" if newest else "There is no whole one beside it."
        raise InputError(f"{flag} {named} is not whole: {wrong}. {remedy}")
    return checkpoint


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
