"""The output folder: it gets the record and the code before training, and all else at the end.

Files to be published are written under a temporary name and moved into place, config.json last. So a run that is cut
off leaves no half model that loads. Checkpoints keep the optimizer; the folder's top level holds nothing pickled.
"""

import json
import math
import shutil
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import ADAPTER_CONFIG_NAME

from lstmpool.configuration_lstmpool import OWN_FIELDS, LstmPoolConfig
from lstmpool.training.code_files import CODE
from lstmpool.training.errors import InputError
from lstmpool.training.output.found import files_of, weights_in
from lstmpool.training.output.run_record import NAME as RECORD
from lstmpool.training.output.run_record import RunRecord, list_files
from lstmpool.training.output.start import Start
from lstmpool.training.writing import Writer, move, saving, settle


STAGING = ".unfinished"
CONFIGS = (ADAPTER_CONFIG_NAME, "config.json")  # without these, nothing takes a folder for a model


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


def check_writable(folder: Path) -> None:
    """Tries to write where the output folder is, or will be, and leaves nothing there.

    Raises:
        InputError: if nothing can be written.
    """
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryDirectory(prefix=".lstmpool-", dir=nearest):
            pass
    except OSError as error:
        raise InputError(f"--output_dir {folder} cannot be written: {error}") from None


def prepare_output(folder: Path, start: Start, record: RunRecord, with_code: bool) -> None:
    """Removes what the run replaces, and writes its `record`, and the model's code if `with_code` is set.

    The code is written before training: uploads during training must find it in the folder.

    Raises:
        InputError: if the folder cannot be written.
    """
    code = CODE if with_code else []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in start.removed:
            _remove(folder / name)
        earlier = RunRecord.read(folder)  # only a run that goes on still has one
        written = files_of(folder, earlier) if earlier is not None else []
        names = {RECORD, *written, *(path.name for path in code)}
        replace(record, files=sorted(names)).write(folder)
        for path in code:
            shutil.copyfile(path, folder / path.name)
    except OSError as error:
        raise InputError(f"--output_dir {folder} cannot be written: {error}") from None


def write_output(
    folder: Path, model: PreTrainedModel | None, tokenizer: PreTrainedTokenizerBase, files: dict[str, Writer]
) -> None:
    """Writes the model, with its config, code and tokenizer, and `files`.

    All files are listed in the folder's record, if it has one. Nothing is moved into place before all is written. A
    kill between the moves may leave some files without others, but then no config, so the folder does not load.

    Args:
        folder: where to write.
        model: the model; None saves neither it nor the tokenizer.
        tokenizer: the model's.
        files: by file name, the function that writes it.

    Raises:
        InputError: if the disk is full. What was in the folder stays.
    """
    staging = folder / STAGING
    shutil.rmtree(staging, ignore_errors=True)
    with saving(folder, half_made=staging):
        staging.mkdir(parents=True)
        if model is not None:
            model.save_pretrained(staging)
            _forget_source(tokenizer)
            tokenizer.save_pretrained(staging)
        for name, write in files.items():
            write(staging / name)
        settle(staging)
    list_files(folder, (path.name for path in staging.iterdir()))
    if model is not None:
        for name in CONFIGS:
            (folder / name).unlink(missing_ok=True)
        for path in weights_in(folder):  # an adapter and a whole model of an earlier save would be loaded together
            if not (staging / path.name).exists():
                path.unlink()
    configs_last = sorted(staging.iterdir(), key=lambda path: (path.name in CONFIGS, path.name))
    with saving(folder):
        for path in configs_last:
            move(path, folder / path.name)
        staging.rmdir()


def text_writer(text: str) -> Writer:
    """Writes `text` as UTF-8."""
    return partial(Path.write_text, data=text, encoding="utf-8")


def json_writer(value: dict[str, Any]) -> Writer:
    """Writes `value` as JSON. NaN and infinity become null."""
    return text_writer(json.dumps(_without_nan(value), indent=2, allow_nan=False) + "\n")


def _forget_source(tokenizer: PreTrainedTokenizerBase) -> None:
    """Removes how the tokenizer was loaded. The library would save it, but it is not true of the published folder."""
    for key in ("is_local", "local_files_only", "trust_remote_code", "revision", "name_or_path"):
        tokenizer.init_kwargs.pop(key, None)


def _remove(path: Path) -> None:
    """Removes a file or a folder. A folder's record goes last: without it, a fold's folder is not known for one."""
    if not path.is_dir():
        path.unlink(missing_ok=True)
        return
    record = path / RECORD
    for inner in set(path.iterdir()) - {record}:
        if inner.is_dir() and not inner.is_symlink():
            shutil.rmtree(inner)
        else:
            inner.unlink()
    record.unlink(missing_ok=True)
    path.rmdir()


def _without_nan(value: Any) -> Any:
    """`value` with None for NaN and infinity, which JSON does not know."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
