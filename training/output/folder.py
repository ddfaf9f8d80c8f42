"""The output folder: it gets the record and the code before training, and all else at the end.

Files to be published are written under a temporary name and moved into place, config.json last. So a run that is cut
off leaves no half model that loads. Checkpoints keep the optimizer; the folder's top level holds nothing pickled.

A run that replaces another one works in a folder inside of it, `NEW_RUN`. `handover` then puts it in the other's
place. Nothing is removed but what the records of our runs list, and nothing through a link.
"""

import contextlib
import json
import math
import os
import shutil
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils import ADAPTER_CONFIG_NAME

from lstmpool.configuration_lstmpool import OWN_FIELDS, LstmPoolConfig
from lstmpool.training.code_files import CODE
from lstmpool.training.errors import InputError
from lstmpool.training.loop.checkpoints import MANIFEST, checkpoints_in, damage, remove_checkpoint, write_manifest
from lstmpool.training.loop.checkpoints import PREFIX as CHECKPOINT
from lstmpool.training.output.found import CONFIGS, MEMBERS, NEW_RUN, STAGING, WEIGHTS, all_of_run, files_of
from lstmpool.training.output.run_record import MOVES, REMOVES, RunRecord, list_files
from lstmpool.training.output.run_record import NAME as RECORD
from lstmpool.training.output.start import Start
from lstmpool.training.writing import Writer, move, saving, settle, write_text, writing


def check_resumed(checkpoint: str, config: LstmPoolConfig, adapter: dict[str, Any] | None = None) -> None:
    """Raises InputError if a checkpoint holds another model, or other labels, than the run that resumes from it.

    `config` is the run's model config; `adapter` is peft's, as a dict, where the model has adapters.
    """
    try:
        saved = LstmPoolConfig.from_pretrained(checkpoint)
    except (OSError, ValueError) as error:
        raise InputError(f"--resume_from_checkpoint {checkpoint} has no config to read: {error}") from None
    for name in OWN_FIELDS:
        if getattr(saved, name) != getattr(config, name):
            raise InputError(
                f"--resume_from_checkpoint {checkpoint} must be of the same model: expected {name} "
                f"{getattr(config, name)}, found {getattr(saved, name)}. Resume with the command that made it."
            )
    path = Path(checkpoint, ADAPTER_CONFIG_NAME)
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    expected = adapter or {}
    for name in ("peft_type", "r", "lora_alpha", "target_modules"):
        if found.get(name) != expected.get(name):
            raise InputError(
                f"--resume_from_checkpoint {checkpoint} must have the same adapters: expected {name} "
                f"{expected.get(name)}, found {found.get(name)}. Resume with the command that made it."
            )


def prepare_output(folder: Path, start: Start, record: RunRecord, with_code: bool) -> None:
    """Removes what the run replaces, and writes its `record`, and the model's code if `with_code` is set.

    The code is written before training: uploads during training must find it in the folder.

    Raises:
        InputError: if the folder cannot be written.
    """
    code = CODE if with_code else []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_staging(folder)
        for name in start.removed:
            _remove(folder / name)
        earlier = RunRecord.read(folder)  # only a run that goes on still has one
        written = files_of(folder, earlier) if earlier is not None else []
        names = {RECORD, *written, *(path.name for path in code)}
        replace(record, files=sorted(names)).write(folder)
        for path in code:
            with writing(folder / path.name) as unfinished:
                shutil.copyfile(path, unfinished)
    except OSError as error:
        raise InputError(f"--output_dir {folder} cannot be written: {error}") from None


def write_output(
    folder: Path, model: PreTrainedModel | None, tokenizer: PreTrainedTokenizerBase, files: dict[str, Writer]
) -> None:
    """Writes the model, with its config, code and tokenizer, and `files`.

    All files are listed in the folder's record, if it has one. Nothing is moved into place before all is written. A
    kill between the moves may leave some files without others, but then no config, so the folder does not load.
    Weights of an earlier save go if the record lists them.

    Args:
        folder: where to write.
        model: the model; None saves neither it nor the tokenizer.
        tokenizer: the model's.
        files: by file name, the function that writes it.

    Raises:
        InputError: if the disk is full, or a file that the record does not list lies in the way. Nothing is moved
            then.
    """
    staging = folder / STAGING
    record = RunRecord.read(folder)
    listed = files_of(folder, record)
    _stage(staging, model, tokenizer, files)
    if record is not None:
        _check_free(folder, (path.name for path in staging.iterdir()), listed)
    list_files(folder, (path.name for path in staging.iterdir()))
    if model is not None:
        for name in CONFIGS:
            (folder / name).unlink(missing_ok=True)
        for name in listed:  # an adapter and a whole model of an earlier save would be loaded together
            if WEIGHTS.fullmatch(name) and not (staging / name).exists():
                (folder / name).unlink()
    with saving(folder):
        for path in sorted(staging.iterdir(), key=_configs_last):
            move(path, folder / path.name)
        staging.rmdir()


def _stage(
    staging: Path, model: PreTrainedModel | None, tokenizer: PreTrainedTokenizerBase, files: dict[str, Writer]
) -> None:
    """Writes what `write_output` moves into place. It is on the disk afterwards."""
    shutil.rmtree(staging, ignore_errors=True)
    with saving(staging.parent, half_made=staging):
        staging.mkdir(parents=True)
        if model is not None:
            model.save_pretrained(staging)
            forget_source(tokenizer)
            tokenizer.save_pretrained(staging)
        for name, write in files.items():
            write(staging / name)
        settle(staging)


def handover(folder: Path) -> None:
    """Puts the whole run in `NEW_RUN` in the place of the folder's run, which is removed.

    First, what the old run has left is removed, its config before its other files. Then what the new run has left is
    moved, its config after its other files, and its record last. So the folder loads as the old model, as the new
    one, or not at all. The new run's record says which of the two steps is being done, for `repair`.

    Raises:
        InputError: if a file that is not the old run's lies in the way of the new one's: nothing is changed then. Or
            if the disk is full, or broken.
    """
    with saving(folder):
        _hand_over(folder / NEW_RUN, folder)


def _hand_over(new: Path, folder: Path) -> None:
    """Does `handover`. A step that was done before, up to a kill or an error, is left out."""
    record = RunRecord.read(new)
    if record.handover != MOVES:
        _check_way(new, folder)
        replace(record, handover=REMOVES).write(new)
        members = [path for kind in MEMBERS for path in new.glob(f"{kind}*")]
        for run in (new, *members):
            for checkpoint in checkpoints_in(run):
                _correct_best(checkpoint)
        _remove_run(folder)
        replace(record, handover=MOVES).write(new)
    _move_all(new, folder)


def tidy(folder: Path) -> None:
    """Removes the checkpoints that a finished run has left over. Files of the user's in them stay."""
    record = RunRecord.read(folder)
    if record is None or not record.finished or not record.left_over:
        return
    with saving(folder):
        for name in record.left_over:
            checkpoint = folder / name
            if checkpoint.is_symlink():
                continue
            if (checkpoint / MANIFEST).is_file():
                remove_checkpoint(checkpoint)
            _remove_empty(checkpoint)  # if a kill came before that was done
        replace(record, left_over=[]).write(folder)


def repair(folder: Path) -> None:
    """Does what a kill has kept a whole run from: ends its `handover`, and says so, or does `tidy`."""
    tidy(folder)
    new = folder / NEW_RUN
    if new.is_symlink() or not new.is_dir():
        return
    record = RunRecord.read(new)
    if record is None:
        _remove_empty(new)  # a kill came after the last move
    elif record.handover:
        print(f"{folder} holds a whole run in {NEW_RUN}. It takes its place now, which a kill had kept it from.")
        handover(folder)


def text_writer(text: str) -> Writer:
    """Writes `text` as UTF-8."""
    return partial(Path.write_text, data=text, encoding="utf-8")


def json_writer(value: dict[str, Any]) -> Writer:
    """Writes `value` as JSON. NaN and infinity become null."""
    return text_writer(json.dumps(_without_nan(value), indent=2, allow_nan=False) + "\n")


def forget_source(tokenizer: PreTrainedTokenizerBase) -> None:
    """Removes how the tokenizer was loaded. The library would save it, but it is not true of the published folder."""
    for key in ("is_local", "local_files_only", "trust_remote_code", "revision", "name_or_path"):
        tokenizer.init_kwargs.pop(key, None)


def _configs_last(path: Path) -> tuple[bool, bool, str]:
    """Sorts paths in the order in which they are moved into a run's folder."""
    return path.name == RECORD, path.name in CONFIGS, path.name


def _check_free(folder: Path, names: Iterable[str], ours: Iterable[str]) -> None:
    """Raises InputError if one of `names` is there and is not `ours`."""
    foreign = sorted(name for name in set(names) - set(ours) if os.path.lexists(folder / name))
    if foreign:
        raise InputError(
            f"{folder} holds {', '.join(foreign[:5])}, which the run has not written, and would replace. Move that "
            "away; the same command then goes on."
        )


def _check_way(new: Path, folder: Path) -> None:
    """Raises InputError if `folder` holds what its run has not written, and what is in `new` would replace."""
    replacing = []
    for path in new.iterdir():
        if path.name.startswith(CHECKPOINT) or not _fills(path, folder / path.name):
            replacing.append(path.name)
        elif path.name.startswith(MEMBERS):
            _check_way(path, folder / path.name)
    _check_free(folder, replacing, all_of_run(folder))


def _fills(path: Path, place: Path) -> bool:
    """Whether `path` and `place` are folders. What is in the one is then moved into the other."""
    return path.is_dir() and place.is_dir() and not place.is_symlink()


def _move_all(source: Path, target: Path) -> None:
    """Moves what is in `source` into `target`, where it replaces nothing."""
    for path in sorted(source.iterdir(), key=_configs_last):
        place = target / path.name
        if not os.path.lexists(place):
            move(path, place)
        elif _fills(path, place):
            _move_all(path, place)
    _remove_empty(source)


def _correct_best(checkpoint: Path) -> None:
    """Has a checkpoint in `NEW_RUN` name the best one by the place where it will lie."""
    manifest = checkpoint / MANIFEST
    path = checkpoint / TRAINER_STATE_NAME
    if not path.is_file() or (manifest.exists() and damage(checkpoint)):
        return
    state = json.loads(path.read_text(encoding="utf-8"))
    parts = Path(state.get("best_model_checkpoint") or "").parts
    if NEW_RUN in parts:
        state["best_model_checkpoint"] = str(Path(*(part for part in parts if part != NEW_RUN)))
        manifest.unlink(missing_ok=True)
        write_text(path, json.dumps(state, indent=2) + "\n")
    if not manifest.exists():  # this run has removed it, here or before it was killed
        write_manifest(checkpoint)


def _remove_run(folder: Path) -> None:
    """Removes what the folder's run has left. What its record does not list stays."""
    record = RunRecord.read(folder)
    if record is not None and record.files is None:  # after a kill, the config no longer says which files are ours
        replace(record, files=files_of(folder, record)).write(folder)
    _remove_staging(folder)
    for name in all_of_run(folder):
        _remove(folder / name)


def _remove_staging(folder: Path) -> None:
    """Removes what a run that was cut off was about to move into place. Only its record says that this is its own."""
    record = RunRecord.read(folder)
    if record is not None and not record.finished and not (folder / STAGING).is_symlink():
        shutil.rmtree(folder / STAGING, ignore_errors=True)


def _remove(path: Path) -> None:
    """Removes a file, a checkpoint or the run of a fold or seed. A link is removed, and never what it leads to."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
    elif path.name.startswith(MEMBERS):
        _remove_run(path)
        _remove_empty(path)
    else:
        remove_checkpoint(path)


def _remove_empty(folder: Path) -> None:
    """Removes a folder unless something lies in it."""
    with contextlib.suppress(OSError):
        folder.rmdir()


def _without_nan(value: Any) -> Any:
    """`value` with None for NaN and infinity, which JSON does not know."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
