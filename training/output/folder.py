"""The output folder: given the record and the code before training, filled at the end.

What is published is written under a temporary name and moved into place, config.json last, so that a run cut off in
the middle leaves no half of a model that loads. Checkpoints keep the optimizer; the folder's top level never holds
anything pickled.
"""

import json
import math
import os
import shutil
from dataclasses import replace
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
from lstmpool.training.writing import Writer


STAGING = ".unfinished"
CONFIGS = (ADAPTER_CONFIG_NAME, "config.json")  # by which a folder is known for that of a model


def check_resumed(checkpoint: str, config: LstmPoolConfig, adapter: dict[str, Any] | None = None) -> None:
    """Raises InputError if a checkpoint is of another model, or of other labels, than the one that is resumed.

    `adapter`: what peft's config of the model holds, where it has adapters.
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
    found, expected = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}, adapter or {}
    for name in ("peft_type", "r", "lora_alpha", "target_modules"):
        if found.get(name) != expected.get(name):
            raise InputError(
                f"--resume_from_checkpoint {checkpoint} must have the same adapters: expected {name} "
                f"{expected.get(name)}, found {found.get(name)}. Resume with the command that made it."
            )


def prepare_output(folder: Path, start: Start, record: RunRecord, with_code: bool) -> None:
    """Removes what the run replaces, and puts its `record` into the folder; `with_code`, the model's code, too.

    The code comes before the training because whatever uploads the folder meanwhile must find it there.

    Raises:
        InputError: if the folder cannot be written.
    """
    code = CODE if with_code else []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in start.removed:
            _remove(folder / name)
        earlier = RunRecord.read(folder)  # of a run that goes on
        written = files_of(folder, earlier) if earlier is not None else []
        replace(record, files=sorted({RECORD, *written, *(path.name for path in code)})).write(folder)
        for path in code:
            shutil.copyfile(path, folder / path.name)
    except OSError as error:
        raise InputError(f"--output_dir {folder} cannot be written: {error}") from None


def write_output(
    folder: Path, model: PreTrainedModel | None, tokenizer: PreTrainedTokenizerBase, files: dict[str, Writer]
) -> None:
    """The model (None: it is not saved) with its config, code and tokenizer, and `files`.

    `files` are what writes each, by their names. All are listed in the folder's record, if it has one. Nothing is
    moved into place before all is written. A kill between the moves may leave some files without the others, but no
    config then, so that the folder does not load.
    """
    staging = folder / STAGING
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    if model is not None:
        model.save_pretrained(staging)
        _forget_source(tokenizer)
        tokenizer.save_pretrained(staging)
    for name, write in files.items():
        write(staging / name)
    list_files(folder, (path.name for path in staging.iterdir()))
    if model is not None:
        for name in CONFIGS:  # without these nobody takes what lies here for a model
            (folder / name).unlink(missing_ok=True)
        for path in weights_in(folder):  # an adapter and a whole model of an earlier save would be loaded together
            if not (staging / path.name).exists():
                path.unlink()
    for path in sorted(staging.iterdir(), key=lambda path: (path.name in CONFIGS, path.name)):
        os.replace(path, folder / path.name)
    staging.rmdir()


def json_writer(value: dict[str, Any]) -> Writer:
    """Writes `value` as JSON, what is undefined in it as null."""
    text = json.dumps(_without_nan(value), indent=2, allow_nan=False)
    return lambda path: path.write_text(text + "\n", encoding="utf-8")


def _forget_source(tokenizer: PreTrainedTokenizerBase) -> None:
    """The library saves how the tokenizer was loaded, too, which is not true of the published folder."""
    for key in ("is_local", "local_files_only", "trust_remote_code", "revision", "name_or_path"):
        tokenizer.init_kwargs.pop(key, None)


def _remove(path: Path) -> None:
    """A file or a folder; of a fold the record last, without which it would not be known for one."""
    if not path.is_dir():
        path.unlink(missing_ok=True)
        return
    record = path / RECORD
    for inner in set(path.iterdir()) - {record}:
        shutil.rmtree(inner) if inner.is_dir() and not inner.is_symlink() else inner.unlink()
    record.unlink(missing_ok=True)
    path.rmdir()


def _without_nan(value: Any) -> Any:
    """JSON knows no NaN: what is undefined becomes null."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
