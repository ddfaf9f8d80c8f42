"""Reads what lies in the output folder before a run. `start.decide` reads only this value, never the disk."""

import json
from dataclasses import dataclass
from pathlib import Path

from transformers.utils import ADAPTER_CONFIG_NAME

from lstmpool.training.code_files import CODE
from lstmpool.training.loop.checkpoints import Saved, damage, saved_in
from lstmpool.training.output.run_record import NAME as RECORD
from lstmpool.training.output.run_record import RunRecord


CODE_NAMES = {path.name for path in CODE}
# Files that older releases, whose record has no list of files, may have written beside weights. Do not add new files:
# the record lists them.
OF_OLDER_RELEASES = {RECORD, "README.md", "config.json", ADAPTER_CONFIG_NAME} | set(
    "configuration_lstmpool.py modeling_lstmpool.py pooling_lstmpool.py "
    "metrics.json logits.npz test_predictions.csv test_predictions.parquet oof.parquet hp_search.csv "
    "learning_curve.png confusion_matrix.png predicted_against_true.png reliability.png "
    "added_tokens.json chat_template.jinja merges.txt sentencepiece.bpe.model special_tokens_map.json spiece.model "
    "spm.model tokenizer.json tokenizer.model tokenizer_config.json training_args.bin vocab.json vocab.txt".split()
)


@dataclass(frozen=True)
class Named:
    """The folder that `--resume_from_checkpoint` names.

    Args:
        path: as it was typed.
        resolved: its absolute path.
        exists: whether it is a folder.
        damage: what keeps it from being whole; empty if it is whole.
        in_output: whether it lies in the output folder itself.
        beside: the checkpoints in its parent folder, itself included, the newest first.
    """

    path: Path
    resolved: Path
    exists: bool = True
    damage: str = ""
    in_output: bool = False
    beside: tuple[Saved, ...] = ()


@dataclass(frozen=True)
class Found:
    """What lies in an output folder.

    Args:
        folder: as it was typed.
        resolved: its absolute path.
        is_file: whether it is a file and not a folder.
        record: the record of the folder's run, if there is one.
        files: sorted names of the files that a run may have written, now or in an older release.
        ours: those of `files` that this folder's run has written, by its record's list; all if it has no list.
        folds: names of the folders of a cross-validation's folds.
        checkpoints: those in the folder, the newest first.
        another_kind: whether the folder holds weights, a config or checkpoints of another kind of model.
        named: the folder that `--resume_from_checkpoint` names, unless it says "last".
    """

    folder: Path
    resolved: Path
    is_file: bool = False
    record: RunRecord | None = None
    files: tuple[str, ...] = ()
    ours: tuple[str, ...] = ()
    folds: tuple[str, ...] = ()
    checkpoints: tuple[Saved, ...] = ()
    another_kind: bool = False
    named: Named | None = None


def look(folder: Path, resume_from_checkpoint: str | None = None) -> Found:
    """Reads what `Found` holds, and changes nothing."""
    resolved = folder.resolve()
    if folder.exists() and not folder.is_dir():
        return Found(folder, resolved, is_file=True)
    record = RunRecord.read(folder)
    checkpoints = saved_in(folder)
    weights = weights_in(folder)
    config = folder / "config.json"
    ours = files_of(folder, record)
    return Found(
        folder,
        resolved,
        record=record,
        files=tuple(sorted({*ours, *files_of(folder, None)})),
        ours=tuple(ours),
        folds=tuple(_folds(folder)),
        checkpoints=checkpoints,
        another_kind=bool(weights or checkpoints or config.is_file()) and not _is_ours(folder, record),
        named=_named(folder, resume_from_checkpoint),
    )


def is_last(named: str) -> bool:
    """Whether `--resume_from_checkpoint` asks for the newest checkpoint, and names no path."""
    return named.lower() in ("last", "true")


def files_of(folder: Path, record: RunRecord | None) -> list[str]:
    """Sorted names of the files in `folder` that its run has written.

    Without a record, or with one of an older release that has no list, these are the files that any run may write.
    """
    if record is not None and record.files is not None:
        names = {RECORD, *record.files}
    else:
        names = OF_OLDER_RELEASES | {path.name for path in weights_in(folder)}
    return sorted(name for name in names if (folder / name).is_file())


def weights_in(folder: Path) -> list[Path]:
    """The weights in a folder: of a model in one file or several, or of an adapter."""
    return [*folder.glob("*.safetensors"), *folder.glob("*.safetensors.index.json")]


def _folds(folder: Path) -> list[str]:
    """The folders of a cross-validation's folds. Each is a run with a record of its own."""
    return sorted(path.parent.name for path in folder.glob(f"fold-*/{RECORD}"))


def _is_ours(folder: Path, record: RunRecord | None) -> bool:
    """Whether the folder's model, or a model in its checkpoints, is an LstmPool model; without one, whether there is
    a record."""
    for config in [folder / "config.json", *folder.glob("checkpoint-*/config.json")]:
        if config.is_file():
            try:
                return json.loads(config.read_text(encoding="utf-8")).get("model_type") == "lstmpool"
            except (ValueError, AttributeError):
                return False
    return record is not None


def _named(folder: Path, named: str | None) -> Named | None:
    """The folder that `--resume_from_checkpoint` names, or None if it names none."""
    if not named or is_last(named):
        return None
    path = Path(named)
    if not path.is_dir():
        return Named(path, path.resolve(), exists=False)
    return Named(
        path,
        path.resolve(),
        damage=damage(path),
        in_output=path.parent.resolve() == folder.resolve(),
        beside=saved_in(path.parent),
    )
