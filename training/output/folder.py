"""The output folder: checked before anything is loaded, given the code before training, filled at the end.

What is published is written under a temporary name and moved into place, config.json last, so that a run cut off in
the middle leaves no half of a model that loads. Checkpoints keep the optimizer; the folder's top level never holds
anything pickled.
"""

import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import ADAPTER_CONFIG_NAME

from lstmpool.configuration_lstmpool import OWN_FIELDS, LstmPoolConfig
from lstmpool.training.arguments import TrainingArguments
from lstmpool.training.code_files import CODE
from lstmpool.training.errors import InputError
from lstmpool.training.loop.checkpoints import checkpoints_in, damage, find_checkpoint, is_last, newest_whole
from lstmpool.training.output.run_record import NAME as RECORD
from lstmpool.training.output.run_record import RunRecord


Writer = Callable[[Path], Any]
STAGING = ".unfinished"
CONFIGS = (ADAPTER_CONFIG_NAME, "config.json")  # by which a folder is known for that of a model
# What a finished run leaves beside its checkpoints; --overwrite removes these and nothing else.
TABLES = {"test_predictions.csv", "test_predictions.parquet", "oof.parquet", "hp_search.csv"}
RESULTS = {RECORD, "metrics.json", "logits.npz", *TABLES}
PLOTS = {"learning_curve.png", "confusion_matrix.png", "predicted_against_true.png", "reliability.png"}
WRITTEN = {"README.md", "config.json", ADAPTER_CONFIG_NAME, *RESULTS, *PLOTS, *(path.name for path in CODE)} | set(
    "added_tokens.json chat_template.jinja merges.txt sentencepiece.bpe.model special_tokens_map.json spiece.model "
    "spm.model tokenizer.json tokenizer.model tokenizer_config.json training_args.bin vocab.json vocab.txt".split()
)


def check_output(args: TrainingArguments, settings: dict[str, Any], init_from: str | None = None) -> None:
    """Refuses an output folder that holds another run, and turns `resume_from_checkpoint` into a folder: unset, or the
    one that the same run was begun with, it is the newest whole checkpoint of a run with the same `settings` that was
    cut off.

    Raises:
        InputError: if the folder is taken, or that of the model to start from, or has no checkpoint to resume from.
    """
    folder = Path(args.output_dir)
    if init_from and folder.resolve() in (Path(init_from).resolve(), *Path(init_from).resolve().parents):
        raise InputError(f"--output_dir {folder} holds the model of --init_from. Choose another folder.")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--output_dir {folder} must be a folder, found a file.")
    earlier, named = RunRecord.read(folder), args.resume_from_checkpoint
    cut_off = earlier is not None and not earlier.finished
    path = str(Path(named).resolve()) if named and not is_last(named) else ""
    if cut_off and not earlier.differs(settings) and path in ("", earlier.resumed_from):
        newest = newest_whole(folder) or (named and find_checkpoint(folder, named))
        args.resume_from_checkpoint = newest and str(newest)
        args.resumed_from = earlier.resumed_from if newest else ""  # so that the command that named it goes on, too
        print(
            f"{folder} holds this run, which was cut off. It {f'goes on from {newest}' if newest else 'begins anew'}."
        )
        return
    args.resumed_from = path
    if named:
        checkpoint = find_checkpoint(folder, named)
        args.resume_from_checkpoint = str(checkpoint)
        if checkpoint.parent.resolve() == folder.resolve():
            later = [path for path in _later(checkpoint, folder) if not damage(path)]
            if later and not args.overwrite:
                raise InputError(
                    f"--resume_from_checkpoint {checkpoint}: {later[0].name} comes after it, and would be replaced. "
                    "Add --overwrite, or resume in another --output_dir."
                )
            return
    left = {path.name for path in _written(folder) if path not in _folds(folder)}
    held = sorted(left - {RECORD, *(path.name for path in CODE)})  # which a run that was stopped at once leaves behind
    held += [path.name for path in _folds(folder)]
    if left - WRITTEN | left & {"config.json"} and not _is_ours(folder):
        raise InputError(f"--output_dir {folder} holds another kind of model ({held[0]}). Choose another folder.")
    if held and not args.overwrite:
        saved = checkpoints_in(folder)
        if cut_off:
            start = f"resume_from_checkpoint {earlier.resumed_from or None} there and {named} here"
            raise InputError(
                f"--output_dir {folder} holds a run with other settings, which was cut off "
                f"({earlier.differs(settings) or start}). Go on with its command"
                f"{', or with these settings and --resume_from_checkpoint last' if saved else ''}; choose another "
                "folder, or replace it with --overwrite."
            )
        go_on = "continue that run with --resume_from_checkpoint last, " if saved else ""
        raise InputError(
            f"--output_dir {folder} holds a run already ({', '.join(held[:3])}). Choose another folder, {go_on}or "
            "replace it with --overwrite."
        )


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


def prepare_output(args: TrainingArguments, record: RunRecord) -> None:
    """Empties the folder of the run that is replaced, and puts the code of the model that will be trained into it, and
    the `record` of the run.

    The code comes first because whatever uploads the folder during training must find it there.
    """
    folder = Path(args.output_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        resumed = args.resume_from_checkpoint and Path(args.resume_from_checkpoint)
        if resumed and resumed.parent.resolve() == folder.resolve():
            gone = _later(resumed, folder)  # of another course that the run took, or not whole
        else:
            gone = _written(folder)
        for path in gone:
            _remove(path)
        record.write(folder)
        for path in CODE if args.do_train else ():
            shutil.copyfile(path, folder / path.name)
    except OSError as error:
        raise InputError(f"--output_dir {folder} cannot be written: {error}") from None


def write_output(
    folder: Path, model: PreTrainedModel | None, tokenizer: PreTrainedTokenizerBase, files: dict[str, Writer]
) -> None:
    """The model (None: it is not saved) with its config, code and tokenizer, and `files`.

    `files` are what writes each, by their names. Nothing is moved into place before all is written. A kill between the
    moves may leave some files without the others, but no config then, so that the folder does not load.
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
    if model is not None:
        for name in CONFIGS:  # without these nobody takes what lies here for a model
            (folder / name).unlink(missing_ok=True)
        for path in _weights(folder):  # an adapter and a whole model of an earlier save would be loaded together
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


def _later(checkpoint: Path, folder: Path) -> list[Path]:
    """The checkpoints of later steps, the newest first."""
    newest_first = checkpoints_in(folder)
    names = [path.name for path in newest_first]
    return newest_first[: names.index(checkpoint.name)] if checkpoint.name in names else []


def _written(folder: Path) -> list[Path]:
    """What a run has left in the folder, its record last: if it is removed in this order, a kill on the way leaves a
    folder that is known for ours."""
    files = {folder / name for name in WRITTEN if (folder / name).is_file()} | set(_weights(folder))
    files = sorted(files, key=lambda path: (path.name == RECORD, path))
    return [*_folds(folder), *checkpoints_in(folder), *files]


def _remove(path: Path) -> None:
    """A file or a folder; of a fold the record last, without which it would not be known for one."""
    if not path.is_dir():
        path.unlink()
        return
    record = path / RECORD
    for inner in set(path.iterdir()) - {record}:
        shutil.rmtree(inner) if inner.is_dir() and not inner.is_symlink() else inner.unlink()
    record.unlink(missing_ok=True)
    path.rmdir()


def _weights(folder: Path) -> list[Path]:
    """Of a model in one file or several, or of an adapter."""
    names = ("*.safetensors", "*.safetensors.index.json", ADAPTER_CONFIG_NAME)
    return [path for name in names for path in folder.glob(name)]


def _folds(folder: Path) -> list[Path]:
    """The folders of a cross-validation's folds, each of which is a run."""
    return [path.parent for path in folder.glob(f"fold-*/{RECORD}")]


def _is_ours(folder: Path) -> bool:
    """Whether the folder's model is an LstmPool model, or there are only checkpoints or a record of one."""
    for config in [folder / "config.json", *folder.glob("checkpoint-*/config.json")]:
        if config.is_file():
            try:
                return json.loads(config.read_text(encoding="utf-8")).get("model_type") == "lstmpool"
            except (ValueError, AttributeError):
                return False
    return RunRecord.read(folder) is not None


def _without_nan(value: Any) -> Any:
    """JSON knows no NaN: what is undefined becomes null."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
