"""What one run has so far (`State`), and what the command adds to it (`Extras`)."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedModel, TrainerCallback
from transformers.data.data_collator import DataCollator

from lstmpool.training.data.order import Tokens
from lstmpool.training.evaluation.baselines import Baselines, Vectors
from lstmpool.training.evaluation.exit_results import ExitResults
from lstmpool.training.evaluation.label_issues import LabelIssues
from lstmpool.training.evaluation.layer_report import LayerReport
from lstmpool.training.evaluation.learned_head import HeadThresholds
from lstmpool.training.evaluation.results import Evaluation
from lstmpool.training.flags.training_arguments import TrainingArguments
from lstmpool.training.loop.trainer import LstmPoolTrainer
from lstmpool.training.model.target_scale import TargetScale
from lstmpool.training.output.artifacts import Writers
from lstmpool.training.output.run_record import RunRecord
from lstmpool.training.output.start import Resume, Start
from lstmpool.training.runs.job import Job


def no_files(evaluation: Evaluation) -> Writers:
    """Adds no files."""
    return {}


def do_not_publish() -> None:
    """Publishes nothing."""


@dataclass(frozen=True)
class Extras:
    """What a run does besides, for the command that asked for it."""

    callbacks: list[TrainerCallback] = field(default_factory=list)
    files: Callable[[Evaluation], Writers] = no_files  # more files for the finished folder
    publish: Callable[[], None] = do_not_publish  # called before the run counts as finished
    shown: Path | None = None  # where the folder will lie in the end, if it is another place than the run's own


@dataclass
class State:
    """What a run has so far. Each step fills the part under its name, and later steps read it."""

    job: Job
    args: TrainingArguments
    start: Start
    extras: Extras
    tokens: dict[str, Tokens]
    began: float = field(default_factory=time.monotonic)

    # read
    summary: dict[str, dict[str, Any]] = field(init=False)  # see `describe_data`
    contrastive_steps: int = 0  # in which the backbone learns first which texts share a label, see `contrast`

    # load
    pooling_choice: dict[str, Any] | None = None  # what was tried for --layer_pooling auto, see `pooling_choice`
    model: PreTrainedModel = field(init=False)
    is_fresh: bool = field(init=False)  # whether the classifier is new
    record: RunRecord = field(init=False)
    scale: TargetScale | None = field(init=False)  # of regression targets
    inputs: dict[str, Dataset] = field(init=False)  # what Trainer reads: tokens or layer states, and labels
    collator: DataCollator = field(init=False)

    # train
    trainer: LstmPoolTrainer = field(init=False)
    top_states: np.ndarray | None = None  # (N, S) of the training rows, if stage 1 has read them all
    frozen_vectors: dict[str, Vectors] | None = None  # before training, for the linear baseline

    label_issues: LabelIssues | None = None  # of a run with --find_label_issues, in the process that tells of them

    # measure
    evaluation: Evaluation = field(init=False)
    baselines: Baselines = field(init=False)
    thresholds: HeadThresholds = field(init=False)  # that are in the head, of this run and those before
    layer_report: LayerReport | None = None  # of a run with --layer_report, see `report_layers`
    exits: ExitResults | None = None  # of a run with --early_exit, see `fit_exits`

    @property
    def folder(self) -> Path:
        """Where the run works: the output folder, or `NEW_RUN` in it."""
        return Path(self.args.output_dir)

    @property
    def final(self) -> Path:
        """Where the run leaves its files: the output folder."""
        return self.folder.parent if self.start.within else self.folder

    @property
    def shown(self) -> Path:
        """The output folder, as the user is told and the card names it."""
        return self.extras.shown or self.final

    @property
    def resumed(self) -> Path | None:
        """The checkpoint that training goes on from."""
        return self.start.checkpoint if isinstance(self.start, Resume) else None

    @property
    def answers_early(self) -> bool:
        """Whether the model has exits that are on: its own, if it is only measured, or those that were fitted.

        One that is not loaded yet, since its pooling is still to be chosen, is new and has none.
        """
        return hasattr(self, "model") and self.model.config.exit_threshold is not None

    @property
    def answers(self) -> Evaluation:
        """What the saved model answers: with its exits where they are on."""
        return self.exits.answers if self.exits is not None and self.exits.is_on else self.evaluation

    @property
    def caches_states(self) -> bool:
        """Whether Trainer reads the frozen backbone's layer states in place of tokens."""
        return self.job.model_args.freeze_backbone and self.args.layer_cache != "no" and not self.answers_early

    @property
    def has_two_stages(self) -> bool:
        """Whether a new model starts at a linear model of the frozen layers, see `start_head`."""
        return self.args.do_train and self.job.why_one_stage == ""

    @property
    def standardizes_layers(self) -> bool:
        """Whether the mean and scale of the layers are to be taken from the training rows now, see `standardization`.

        A run that goes on has them in its checkpoint, and a finished model that is trained further keeps its own.
        """
        begins = self.args.do_train and not self.job.model_args.init_from and self.resumed is None
        return begins and self.model.config.standardize_layers

    @property
    def begins_with_stage_1(self) -> bool:
        """Whether stage 1 is to be done now. A run that goes on has its start in the checkpoint."""
        return self.has_two_stages and self.is_fresh and self.resumed is None

    def targets(self, split: str) -> Any:
        """The labels of a split as the model is trained on them; None if it has none."""
        labels = self.job.splits[split].labels
        if labels is None or self.scale is None:
            return labels
        return self.scale.divide(labels)

    @property
    def is_first_process(self) -> bool:
        """Whether this process writes the folder."""
        return self.args.process_index == 0

    @property
    def labelled(self) -> list[str]:
        """The splits that have labels."""
        return [name for name, split in self.job.splits.items() if split.labels is not None]
