"""Reads what lies in the output folder before a run. `start.decide` reads only this value, never the disk."""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from transformers.utils import ADAPTER_CONFIG_NAME

from lstmpool.training.code_files import CODE
from lstmpool.training.loop.checkpoints import MANIFEST, Saved, checkpoints_in, damage, saved_in
from lstmpool.training.loop.checkpoints import PREFIX as CHECKPOINT
from lstmpool.training.output.run_record import NAME as RECORD
from lstmpool.training.output.run_record import RunRecord


FOLD, SEED = "fold-", "seed-"  # what the folders of runs are called that one command makes
MEMBERS = (FOLD, SEED)
NUMBERED = re.compile(r"(fold-|seed-)(0|[1-9]\d*)(?!\d)", re.ASCII)
MOST_MEMBERS = 2**32  # a record that says more is damaged
CODE_NAMES = {path.name for path in CODE}
NEW_RUN = ".new_run"  # in the output folder: where a run works that will replace the one that is there
STAGING = ".unfinished"  # in a run's folder: what it is about to move into place
CONFIGS = (ADAPTER_CONFIG_NAME, "config.json")  # without these, nothing takes a folder for a model
# Files that older releases, whose record has no list of files, may have written beside weights. Do not add new files:
# the record lists them.
OF_OLDER_RELEASES = {RECORD, "README.md", *CONFIGS} | set(
    "configuration_lstmpool.py modeling_lstmpool.py pooling_lstmpool.py "
    "metrics.json logits.npz test_predictions.csv test_predictions.parquet oof.parquet hp_search.csv "
    "learning_curve.png confusion_matrix.png predicted_against_true.png reliability.png "
    "added_tokens.json chat_template.jinja merges.txt sentencepiece.bpe.model special_tokens_map.json spiece.model "
    "spm.model tokenizer.json tokenizer.model tokenizer_config.json training_args.bin vocab.json vocab.txt".split()
)
SINCE = {"errors.csv", "validation_predictions.csv", "validation_predictions.parquet"}
# Files that a run may write. A file of another name is looked for when the run is about to write it.
WRITTEN = OF_OLDER_RELEASES | CODE_NAMES | SINCE
WEIGHTS = re.compile(r"(adapter_)?model(-\d+-of-\d+)?\.safetensors(\.index\.json)?")
# Files of a checkpoint besides. Weights and the manifest are first written under other names.
OF_TRAINER = re.compile(
    r"(optimizer|scheduler|scaler)\.pt|rng_state(_\d+)?\.pth|trainer_state\.json|\.tmp\w+|\..*\.unfinished"
)
# The folder that `export.py` makes of a model.
EXPORTED = "-onnx"  # ends its name
EXPORT_RECORD = "export.json"  # what it is made from, and its files
GRAPHS = "onnx"  # the folder of graphs in it, in which clients look for them
FLOAT = "model.onnx"
HANDLER = "handler.py"  # in which an Inference Endpoint looks for code
REQUIREMENTS = "requirements.txt"  # and for packages to install


class Members(NamedTuple):
    """The runs that one command makes, each in a folder of its own: the folds, or the seeds.

    Args:
        kind: `FOLD` or `SEED`, with which the names of the folders begin; empty for a command of a single run.
        numbers: that follow in these names.
    """

    kind: str = ""
    numbers: range = range(0)

    @classmethod
    def of(cls, settings: dict[str, Any]) -> "Members":
        """Those of a command with these settings, see `settings_of`. The run of a fold is itself a single one."""
        folds, seeds, seed = (settings.get(name) for name in ("cv_folds", "seeds", "seed"))
        if folds and "fold" not in settings:
            return cls(FOLD, range(1, 1 + folds) if _is_count(folds) else range(0))
        if seeds:
            return cls(SEED, range(seed, seed + seeds) if _is_count(seeds) and _is_count(seed) else range(0))
        return cls()

    @classmethod
    def within(cls, folder: Path) -> "Members":
        """Those of the command that has written the folder; none if no record says so."""
        record = RunRecord.read(folder)
        return cls() if record is None else cls.of(record.settings)

    def add_to(self, settings: dict[str, Any]) -> bool:
        """Whether these are seeds, and more of them than `settings` ask for."""
        fewer = Members.of(settings)
        return self.kind == fewer.kind == SEED and len(self.numbers) > len(fewer.numbers)

    def names(self) -> Iterator[str]:
        """The names of the folders."""
        return (f"{self.kind}{number}" for number in self.numbers)

    def would_use(self, name: str) -> bool:
        """Whether `name` begins with the name of such a folder. A fold may have any number.

        Runs by hand are often called seed-1 and so on, and lie in one folder: those of other seeds stay.
        """
        match = NUMBERED.match(name)
        return match is not None and match[1] == self.kind and (self.kind == FOLD or int(match[2]) in self.numbers)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and 0 <= value < MOST_MEMBERS


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
        holds_code: whether the code that is running lies in it.
        record: the record of the folder's run, if there is one.
        files: sorted names of the files that the folder's run has written, see `files_of`.
        members: names of the folders of folds or seeds, each with a record of its own.
        checkpoints: those in the folder, the newest first.
        foreign: what no run of ours has written, and a run would replace. It belongs to the user.
        foreign_members: the same, of what folds or seeds would replace.
        another_kind: names of the weights, config or checkpoints of another kind of model, if there is one.
        new: the run that was to replace the folder's run, and was cut off; None if there is none.
        named: the folder that `--resume_from_checkpoint` names, unless it says "last".
    """

    folder: Path
    resolved: Path
    is_file: bool = False
    holds_code: bool = False
    record: RunRecord | None = None
    files: tuple[str, ...] = ()
    members: tuple[str, ...] = ()
    checkpoints: tuple[Saved, ...] = ()
    foreign: tuple[str, ...] = ()
    foreign_members: tuple[str, ...] = ()
    another_kind: tuple[str, ...] = ()
    new: "Found | None" = None
    named: Named | None = None

    @property
    def all_of_run(self) -> tuple[str, ...]:
        """Names of all that the folder's run has left, in the order in which it is removed."""
        return _in_order(self.members, [each.path for each in self.checkpoints], self.files)


def look(folder: Path, resume_from_checkpoint: str | None = None) -> Found:
    """Reads what `Found` holds, and changes nothing."""
    resolved = folder.resolve()
    if folder.exists() and not folder.is_dir():
        return Found(folder, resolved, is_file=True)
    record = RunRecord.read(folder)
    members, foreign_members = _members(folder, record)
    new = folder / NEW_RUN
    return Found(
        folder,
        resolved,
        holds_code=any(resolved in (path.parent.resolve(), path.resolve().parent) for path in CODE),
        record=record,
        files=tuple(files_of(folder, record)),
        members=tuple(members),
        checkpoints=tuple(each for each in saved_in(folder) if _is_our_checkpoint(each.path, record)),
        foreign=tuple(_foreign(folder, record)),
        foreign_members=tuple(foreign_members),
        another_kind=tuple(_another_kind(folder, record)),
        new=look(new, resume_from_checkpoint) if RunRecord.read(new) is not None else None,
        named=_named(folder, resume_from_checkpoint),
    )


def is_last(named: str) -> bool:
    """Whether `--resume_from_checkpoint` asks for the newest checkpoint, and names no path."""
    return named.lower() in ("last", "true")


def files_of(folder: Path, record: RunRecord | None) -> list[str]:
    """Sorted names of the files in `folder` that its run has written.

    A record of an older release has no list. Beside it, these are the names that such a release wrote, if a config
    says that the model is ours. Without a record there are none.
    """
    if record is None:
        return []
    if record.files is not None:
        names = {RECORD, *record.files}
    elif "lstmpool" in _model_types(folder, "config.json", f"{CHECKPOINT}*/config.json", f"{FOLD}*/config.json"):
        names = WRITTEN - SINCE | {path.name for path in folder.iterdir() if WEIGHTS.fullmatch(path.name)}
    else:
        names = {RECORD, *CODE_NAMES}  # the first that a run writes
    return sorted(name for name in names if (folder / name).is_file())


def all_of_run(folder: Path) -> tuple[str, ...]:
    """`Found.all_of_run`, without a look at what the checkpoints hold."""
    record = RunRecord.read(folder)
    checkpoints = [path for path in checkpoints_in(folder) if _is_our_checkpoint(path, record)]
    return _in_order(_members(folder, record)[0], checkpoints, files_of(folder, record))


def _in_order(members: Iterable[str], checkpoints: Iterable[Path], files: Iterable[str]) -> tuple[str, ...]:
    """Names in the order in which they are removed.

    The config is the first file: without it, the folder does not load. The record is last: until then, the folder is
    known for ours.
    """
    sorted_files = sorted(files, key=lambda name: (name == RECORD, name not in CONFIGS, name))
    return (*members, *(path.name for path in checkpoints), *sorted_files)


def _foreign(folder: Path, record: RunRecord | None) -> list[str]:
    """Names of what a run would replace in `folder`, and no run recorded there has written."""
    if not folder.is_dir():
        return []
    ours = files_of(folder, record)
    if record is not None and not record.finished and not (folder / STAGING).is_symlink():
        ours.append(STAGING)
    foreign = []
    for path in sorted(folder.iterdir()):
        written = path.name in WRITTEN | {STAGING} or WEIGHTS.fullmatch(path.name)
        if written and path.name not in ours:
            foreign.append(path.name)
        elif _numbered(path, CHECKPOINT) and not _is_our_checkpoint(path, record):
            foreign.append(_told(path))
        elif path.name == NEW_RUN:
            foreign += _foreign_inside(path)
    return foreign


def _members(folder: Path, record: RunRecord | None) -> tuple[list[str], list[str]]:
    """The folders of folds or seeds, and what other folds or seeds would replace of the user's.

    A fold is ours by its own record. A seed is ours only if the folder's record says so: else it is a run by hand.
    """
    ours = Members() if record is None else Members.of(record.settings)
    members, foreign = [], []
    for path in sorted(path for kind in MEMBERS for path in folder.glob(f"{kind}*") if _numbered(path, kind)):
        if path.name.startswith(SEED) and not ours.would_use(path.name):
            foreign.append(_told(path))
            continue
        if not path.is_symlink() and RunRecord.read(path) is not None:
            members.append(path.name)
        foreign += _foreign_inside(path)
    return members, foreign


def _foreign_inside(path: Path) -> list[str]:
    """What a run that works in the folder `path` would replace; `path` itself if it is a link or a file."""
    if path.is_symlink() or not path.is_dir():
        return [_told(path)]
    return [f"{path.name}/{name}" for name in _foreign(path, RunRecord.read(path))]


def _told(path: Path) -> str:
    return f"{path.name} (a link)" if path.is_symlink() else path.name


def _numbered(path: Path, prefix: str) -> bool:
    return path.name.startswith(prefix) and path.name.removeprefix(prefix).isdecimal()


def _is_our_checkpoint(path: Path, record: RunRecord | None) -> bool:
    """Whether the run with this record, or an older one of ours, has saved the checkpoint, or begun to.

    It is never a link: its target is the user's. A kill in a save may leave any part of it, and half a config.
    """
    if path.is_symlink() or not path.is_dir():
        return False
    model_type = _model_type(path / "config.json")
    if model_type:
        return model_type == "lstmpool"
    if (path / MANIFEST).is_file():
        return True
    names = [inner.name for inner in path.iterdir()]
    if record is not None and not record.finished:
        return all(name in WRITTEN or WEIGHTS.fullmatch(name) or OF_TRAINER.fullmatch(name) for name in names)
    return set(names) <= CODE_NAMES  # these are saved before the config


def _another_kind(folder: Path, record: RunRecord | None) -> list[str]:
    """Names of the weights, the config and the checkpoints, if the model is of another or an unknown kind."""
    if not folder.is_dir():
        return []
    found = _model_types(folder, "config.json", f"{CHECKPOINT}*/config.json")
    types = [each for each in found if each]  # a kill may have left an empty config
    if types[0] == "lstmpool" if types else record is not None:
        return []
    of_model = ("config.json", "*.safetensors", "*.safetensors.index.json")
    named = [path.name for pattern in of_model for path in sorted(folder.glob(pattern))]
    return named + [path.parent.name for path in sorted(folder.glob(f"{CHECKPOINT}*/config.json"))]


def _model_types(folder: Path, *patterns: str) -> list[str]:
    """What the configs under these names say on the kind of model, in this order."""
    types = [_model_type(path) for pattern in patterns for path in sorted(folder.glob(pattern))]
    return [each for each in types if each is not None]


def _model_type(config: Path) -> str | None:
    """What a config says on the kind of model; None if there is no file, empty if it cannot be read."""
    if not config.is_file():
        return None
    try:
        return str(json.loads(config.read_text(encoding="utf-8")).get("model_type"))
    except (OSError, ValueError, AttributeError, RecursionError):
        return ""


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


# --------------------------------------------------------------------------------------------------------- an export
def export_of(folder: Path) -> Path:
    """Where `export.py` writes its folder, unless told otherwise: beside that of the model."""
    beside = folder.resolve().parent if folder.name in ("", "..") else folder.parent
    return beside / f"{folder.resolve().name}{EXPORTED}"


def read_export(folder: Path) -> dict[str, Any] | None:
    """The record in `folder`, or None if there is none: the folder is then no export."""
    try:
        found = json.loads((folder / EXPORT_RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and isinstance(found.get("files"), list) else None
