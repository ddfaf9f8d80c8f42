"""What a command asks for, read and checked before any weights are: what its runs, such as folds, have in common."""

from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from lstmpool.training.data.holdout import hold_out
from lstmpool.training.data.rows import Split, read_splits
from lstmpool.training.flags.arguments import DataArguments, ModelArguments
from lstmpool.training.flags.conditions import Flags
from lstmpool.training.flags.rules import WITH_TASK, check
from lstmpool.training.flags.training_arguments import TrainingArguments
from lstmpool.training.model.backbone import Backbone
from lstmpool.training.model.trainable_parts import check_layers
from lstmpool.training.tasks.task import BestBy, Task


@dataclass(frozen=True)
class Tokens:
    """The tokenizer's columns of a split, and the share of its rows that were cut."""

    rows: Dataset
    cut: float
    chosen: list[int] | None = None  # the rows that are meant, where the others are those of other folds

    def with_labels(self, labels: list[Any] | None) -> Dataset:
        """All rows, with `labels` in those that are meant."""
        if labels is None:
            return self.rows
        if self.chosen is not None:
            spread = [labels[0]] * len(self.rows)
            for row, label in zip(self.chosen, labels, strict=True):
                spread[row] = label
            labels = spread
        return self.rows.add_column("labels", labels)

    def choose(self, rows: Dataset) -> Dataset:
        """Of `rows`, one for each of all, those that are meant."""
        return rows if self.chosen is None else rows.select(self.chosen)


@dataclass(frozen=True)
class Job:
    """The rows, the task that they set, and the model that is wanted for it."""

    model_args: ModelArguments
    data_args: DataArguments
    backbone: Backbone
    fields: dict[str, Any]  # of LstmPoolConfig
    splits: dict[str, Split]
    task: Task
    best: BestBy
    tokenizer: PreTrainedTokenizerBase
    settings: dict[str, Any]  # see `settings_of`
    command: list[str]  # what was typed, for the model card

    @property
    def is_adapter(self) -> bool:
        """Whether what is saved is an adapter, and no whole model."""
        return self.model_args.peft is not None and not self.model_args.merge

    @property
    def reads_pairs(self) -> bool:
        """Whether a row is a pair of texts."""
        return next(iter(self.splits.values())).pairs is not None

    def encode(self) -> dict[str, Tokens]:
        """The rows of each split as tokens."""
        padded, workers = self.data_args.pad_to_max_length, self.data_args.preprocessing_num_workers
        return {name: Tokens(*split.tokenize(self.tokenizer, padded, workers)) for name, split in self.splits.items()}


def read_job(
    model_args: ModelArguments,
    data_args: DataArguments,
    args: TrainingArguments,
    places: dict[str, str],
    settings: dict[str, Any],
    command: list[str],
) -> Job:
    """Reads the rows, which are at `places`, and settles the task.

    Raises:
        InputError: for whatever in the rows, the flags or the backbone's config does not fit.
    """
    backbone = Backbone.find(model_args)
    config = backbone.load_config()
    wanted = {"train": args.do_train, "validation": args.do_eval, "test": args.do_predict}
    places = {name: place for name, place in places.items() if wanted[name]}
    finished = config if model_args.init_from else None
    splits, task = read_splits(data_args, places, model_args.problem_type, finished)
    if args.do_eval and "validation" not in splits and not data_args.cv_folds:
        splits = _with_validation(splits, task, data_args)
    check(WITH_TASK, Flags(model_args, data_args, training=vars(args), task=task.problem_type))
    best = task.best_by(args.metric_for_best_model)
    fields = {**model_args.config_fields(), **task.config_fields}
    check_layers(model_args, backbone.check_fields(config, fields))
    tokenizer = backbone.load_tokenizer(data_args.max_seq_length)
    return Job(model_args, data_args, backbone, fields, splits, task, best, tokenizer, settings, command)


def _with_validation(splits: dict[str, Split], task: Task, args: DataArguments) -> dict[str, Split]:
    share, seed, limit = args.validation_size, args.shuffle_seed, args.max_eval_samples
    train, held = hold_out(splits["train"], task, share, seed, limit)
    print(f"No validation rows: {len(held)} of the training rows, stratified, are held out as such.")
    others = {name: split for name, split in splits.items() if name != "train"}
    return {"train": train, "validation": held, **others}
