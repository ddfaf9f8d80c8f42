"""What a run was asked for, kept in its folder, so that the same command, given again, goes on where it stopped."""

import hashlib
import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lstmpool.training.arguments import DataArguments, ModelArguments
from lstmpool.training.data.rows import Split
from lstmpool.training.errors import InputError
from lstmpool.training.training_arguments import TrainingArguments


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
    """The settings of a run, a digest of the rows of each split, and the checkpoint that it was begun from, if any."""

    settings: dict[str, Any]
    rows: dict[str, str]
    finished: bool = False
    resumed_from: str = ""

    @classmethod
    def of(cls, settings: dict[str, Any], splits: dict[str, Split], resumed_from: str = "") -> "RunRecord":
        return cls(settings, {name: _digest(split) for name, split in splits.items()}, resumed_from=resumed_from)

    @classmethod
    def read(cls, folder: Path) -> "RunRecord | None":
        """The record in `folder`, or None where there is none that can be read."""
        try:
            return cls(**json.loads((folder / NAME).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def write(self, folder: Path) -> None:
        unfinished = folder / f".{NAME}.unfinished"
        unfinished.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        os.replace(unfinished, folder / NAME)

    def finish(self, folder: Path) -> None:
        """To be called when all else is written."""
        replace(self, finished=True).write(folder)

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


def _digest(split: Split) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for row in zip(split.inputs(), split.labels or [None] * len(split), strict=True):
        digest.update(repr(row).encode())
    return digest.hexdigest()
