"""Records in the output folder what a run was asked for, so that the same command can go on where it stopped."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from lstmpool.training.data.rows import Split
from lstmpool.training.errors import InputError
from lstmpool.training.flags.arguments import DataArguments, ModelArguments
from lstmpool.training.flags.training_arguments import TrainingArguments
from lstmpool.training.loop.checkpoints import PREFIX as CHECKPOINT
from lstmpool.training.writing import changed_since, digests_of, saving, sync, write_text


NAME = "run.json"
MAY_CHANGE = (NAME, "README.md")  # after the run: the record itself, and a card that the user has edited
REMOVES, MOVES = "removes the old run", "moves the new run"
# Arguments by which a run's weights do not change: where the run is, how it reports and which resources it may use.
NO_MATTER = ("hub_", "log", "report_to", "run_name", "project", "trackio", "push_to_hub", "ddp_")
NO_MATTER_EITHER = {
    *("output_dir", "overwrite", "resume_from_checkpoint", "disable_tqdm", "preprocessing_num_workers"),
    *("dataloader_num_workers", "dataloader_pin_memory", "dataloader_prefetch_factor"),
    *("per_device_eval_batch_size", "eval_accumulation_steps"),  # so a run can go on after it ran out of memory here
    *("test_file", "test_split_name", "do_predict", "max_predict_samples"),
    *("save_total_limit", "local_rank", "predictions_format", "predictions_with_text", "raw_csv", "debug"),
    *("show_errors", "layer_report", "find_label_issues"),
    "baselines",  # which were off by default in earlier releases
    *("hp_search", "hp_space"),  # the values that were found count instead, see `Search`
}


def settings_of(model: ModelArguments, data: DataArguments, training: TrainingArguments) -> dict[str, Any]:
    """The arguments that decide how a run ends, as values that JSON knows."""
    settings = asdict(model) | asdict(data) | training.to_dict()
    settings["processes"] = training.world_size
    settings |= training.limits._asdict()
    names = [name for name in settings if not name.startswith(NO_MATTER) and name not in NO_MATTER_EITHER]
    return json.loads(json.dumps({name: settings[name] for name in sorted(names)}, default=str))


@dataclass(frozen=True)
class RunRecord:
    """What a run was asked for, and how far it came.

    Args:
        settings: the arguments that decide how it ends, see `settings_of`.
        rows: a digest of the rows of each split.
        finished: whether all is written.
        resumed_from: the checkpoint that the run began from; empty if there was none.
        files (`list[str]`, *optional*): names of the files that the run has written into its folder, or was about to
            write. None in the records of older releases.
        digests: of the files in the list, once all are written. Empty in the records of older releases.
        handover: of a run that is whole and takes the place of another one (see `handover`): the step that is being
            done, `REMOVES` or `MOVES`. Empty before.
        left_over: names of the checkpoints that a finished run is about to remove (see `tidy`). Empty afterwards.
        seconds: how long the command took that finished the run. 0 in the records of older releases.
        kept: which model was kept, as the command said (see `describe_best`). Empty in those records.
    """

    settings: dict[str, Any]
    rows: dict[str, str]
    finished: bool = False
    resumed_from: str = ""
    files: list[str] | None = None
    digests: dict[str, str] = field(default_factory=dict)
    handover: str = ""
    left_over: list[str] = field(default_factory=list)
    seconds: float = 0.0
    kept: str = ""

    @classmethod
    def of(cls, settings: dict[str, Any], splits: dict[str, Split], resumed_from: str = "") -> "RunRecord":
        """The record of a run that begins."""
        return cls(settings, {name: _digest(split) for name, split in splits.items()}, resumed_from=resumed_from)

    @classmethod
    def read(cls, folder: Path) -> "RunRecord | None":
        """The record in `folder`, or None if there is none or it does not read as one: it is then somebody else's.

        Unknown keys are ignored. Keys that an older release did not write have their defaults.
        """
        try:
            found = json.loads((folder / NAME).read_text(encoding="utf-8"))
            record = cls(**{field.name: found[field.name] for field in fields(cls) if field.name in found})
        except (OSError, ValueError, TypeError, RecursionError):
            return None
        if not record._is_sound():
            return None
        digests = record.digests if isinstance(record.digests, dict) else {}
        left_over = [name for name in _plain_names(record.left_over) or [] if name.startswith(CHECKPOINT)]
        return replace(record, files=_plain_names(record.files), digests=digests, left_over=left_over)

    def _is_sound(self) -> bool:
        """Whether each value is of its kind."""
        settings_and_rows = isinstance(self.settings, dict) and isinstance(self.rows, dict)
        if not settings_and_rows or not all(isinstance(digest, str) for digest in self.rows.values()):
            return False
        texts = all(isinstance(text, str) for text in (self.resumed_from, self.handover, self.kept))
        return (
            texts
            and isinstance(self.seconds, int | float)
            and isinstance(self.finished, bool)
            and isinstance(self.files, list | None)
        )

    def write(self, folder: Path) -> None:
        """Writes the record into `folder`. Raises InputError if the disk is full."""
        with saving(folder / NAME):
            write_text(folder / NAME, json.dumps(asdict(self), indent=1) + "\n")

    def finish(self, folder: Path, left_over: Iterable[str] = ()) -> None:
        """Marks the run in `folder` as finished; call it when all else is written. The list of files stays.

        `left_over`: names of the checkpoints that `tidy` then removes.
        """
        earlier = RunRecord.read(folder)
        files = self.files if earlier is None else earlier.files
        names = [name for name in files or [] if name not in MAY_CHANGE and (folder / name).is_file()]
        with saving(folder):
            for name in names:
                sync(folder / name)
        digests = digests_of(folder, names)
        replace(self, files=files, digests=digests, finished=True, left_over=list(left_over)).write(folder)

    def differs(self, settings: dict[str, Any]) -> str:
        """Says which settings differ from the record's, up to three of them; empty if none does."""
        there = {"seeds": None} | self.settings  # which earlier releases did not know
        common = sorted(there.keys() & settings.keys())  # another version of the library may have others
        other = [name for name in common if there[name] != settings[name]]
        return ", ".join(f"{name} {there[name]} there and {settings[name]} here" for name in other[:3])

    def check_rows(self, folder: Path) -> None:
        """Raises InputError if the run in `folder`, which is to be resumed, was given other rows."""
        earlier = RunRecord.read(folder)
        if earlier is None:
            return
        for name in ("train", "validation"):
            if earlier.rows.get(name) != self.rows.get(name):
                raise InputError(
                    f"the {name} rows are not those that the run in {folder} was given. Resume with the same files, "
                    "or begin anew in another folder."
                )


def reopen_if_damaged(folder: Path, names: Iterable[str] | None = None) -> None:
    """Looks whether the files of a finished run are what the run wrote.

    If one is not, it says so, and marks the run as cut off: it then goes on from its last checkpoint, or begins anew,
    and writes its files again.

    Args:
        folder: of the run.
        names (*optional*): the files that matter. None checks all that the run wrote.
    """
    record = RunRecord.read(folder)
    if record is None or not record.finished:
        return
    checked = record.digests.keys() if names is None else record.digests.keys() & set(names)
    wrong = changed_since(folder, {name: record.digests[name] for name in checked})
    if wrong:
        print(f"{folder} is not whole: {wrong}. Its run goes on from its last checkpoint, if it kept one.", flush=True)
        replace(record, finished=False, digests={}).write(folder)


def list_files(folder: Path, names: Iterable[str]) -> None:
    """Adds files to the list in the record of `folder`.

    Call it before the files are put there: a kill in between may leave a listed file missing, but none unlisted.
    """
    record = RunRecord.read(folder)
    if record is not None and record.files is not None:
        replace(record, files=sorted({*record.files, *names})).write(folder)


def _plain_names(names: Any) -> list[str] | None:
    """`names` without those that lead out of the folder, since files under these names may be removed."""
    if not isinstance(names, list):
        return None
    inside = [name for name in names if isinstance(name, str) and name == Path(name).name]
    return [name for name in inside if name not in ("", "..")]


def _digest(split: Split) -> str:
    """A digest of the texts and labels, in their order."""
    digest = hashlib.blake2b(digest_size=16)
    for row in zip(split.inputs(), split.labels or [None] * len(split), strict=True):
        digest.update(repr(row).encode())
    return digest.hexdigest()
