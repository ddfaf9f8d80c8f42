"""What a run was asked for, kept in its folder, so that the same command, given again, goes on where it stopped."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from lstmpool.training.data.rows import Split
from lstmpool.training.errors import InputError
from lstmpool.training.flags.arguments import DataArguments, ModelArguments
from lstmpool.training.flags.training_arguments import TrainingArguments
from lstmpool.training.writing import write_text


NAME = "run.json"
# Where a run is, how it reports and what it may use: none of these changes the weights that it ends with.
NO_MATTER = ("hub_", "log", "report_to", "run_name", "project", "trackio", "push_to_hub", "ddp_")
NO_MATTER_EITHER = {
    *("output_dir", "overwrite", "resume_from_checkpoint", "disable_tqdm", "preprocessing_num_workers"),
    *("dataloader_num_workers", "dataloader_pin_memory", "dataloader_prefetch_factor"),
    *("per_device_eval_batch_size", "eval_accumulation_steps"),  # for who was out of memory in an evaluation
    *("test_file", "test_split_name", "do_predict", "max_predict_samples"),
    *("save_total_limit", "local_rank", "predictions_format", "predictions_with_text", "debug"),
    *("hp_search", "hp_space"),  # what was found counts as the settings of the run, see `Search`
}


def settings_of(model: ModelArguments, data: DataArguments, training: TrainingArguments) -> dict[str, Any]:
    """The arguments that decide what a run comes to, as JSON has them."""
    settings = {**asdict(model), **asdict(data), **training.to_dict(), "processes": training.world_size}
    names = [name for name in settings if not name.startswith(NO_MATTER) and name not in NO_MATTER_EITHER]
    return json.loads(json.dumps({name: settings[name] for name in sorted(names)}, default=str))


@dataclass(frozen=True)
class RunRecord:
    """What a run was asked for, and how far it came.

    Args:
        settings: those that decide what it comes to.
        rows: a digest of the rows of each split.
        finished: whether all is written.
        resumed_from: the checkpoint that it was begun from, if any.
        files (`list[str]`, *optional*): names of the files that it has written into its folder, or was about to. None
            in the record of an older release, which does not say.
    """

    settings: dict[str, Any]
    rows: dict[str, str]
    finished: bool = False
    resumed_from: str = ""
    files: list[str] | None = None

    @classmethod
    def of(cls, settings: dict[str, Any], splits: dict[str, Split], resumed_from: str = "") -> "RunRecord":
        return cls(settings, {name: _digest(split) for name, split in splits.items()}, resumed_from=resumed_from)

    @classmethod
    def read(cls, folder: Path) -> "RunRecord | None":
        """The record in `folder`, or None where there is none that can be read. Keys that this release does not know
        are ignored, and those that an older one did not write have their defaults."""
        try:
            found = json.loads((folder / NAME).read_text(encoding="utf-8"))
            record = cls(**{of.name: found[of.name] for of in fields(cls) if of.name in found})
        except (OSError, ValueError, TypeError):
            return None
        return replace(record, files=_plain_names(record.files))

    def write(self, folder: Path) -> None:
        write_text(folder / NAME, json.dumps(asdict(self), indent=1) + "\n")

    def finish(self, folder: Path) -> None:
        """To be called when all else is written. The list of files stays as it is in `folder`."""
        earlier = RunRecord.read(folder)
        files = self.files if earlier is None else earlier.files
        replace(self, files=files, finished=True).write(folder)

    def differs(self, settings: dict[str, Any]) -> str:
        """The settings that are not those of the record, in words; nothing where they are the same."""
        common = sorted(self.settings.keys() & settings.keys())  # another version of the library may know other ones
        other = [name for name in common if self.settings[name] != settings[name]]
        return ", ".join(f"{name} {self.settings[name]} there and {settings[name]} here" for name in other[:3])

    def check_rows(self, folder: Path) -> None:
        """Raises InputError if the run that `folder` holds, and that is resumed, was given other rows."""
        earlier = RunRecord.read(folder)
        for name in ("train", "validation") if earlier is not None else ():
            if earlier.rows.get(name) != self.rows.get(name):
                raise InputError(
                    f"the {name} rows are not those that the run in {folder} was given. Resume with the same files, "
                    "or begin anew in another folder."
                )


def list_files(folder: Path, names: Iterable[str]) -> None:
    """Adds files to the list that the record in `folder` keeps. To be called before they are put there: a kill between
    the two leaves files that are listed and not there, and none that is there and not listed."""
    record = RunRecord.read(folder)
    if record is not None and record.files is not None:
        replace(record, files=sorted({*record.files, *names})).write(folder)


def _plain_names(names: Any) -> list[str] | None:
    """Without what would lead out of the folder, since files under these names are removed."""
    if not isinstance(names, list):
        return None
    return [name for name in names if isinstance(name, str) and name == Path(name).name]


def _digest(split: Split) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for row in zip(split.inputs(), split.labels or [None] * len(split), strict=True):
        digest.update(repr(row).encode())
    return digest.hexdigest()
