"""Cross-validation: a run for each fold, in a folder of its own, and the predictions of all folds' models together.

Each training row is predicted by the model that was trained without it (`oof.parquet`). Test rows, if there are any,
are predicted by all models, and their probabilities, or numbers, are averaged. A finished fold is not run again, so
the same command goes on where it was cut off. All folds share their tokens and, with a frozen backbone, one cache.

`seeds` makes several runs in the same way, with `Member`, `prepare` and `run_member`.
"""

import gc
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import pandas

from lstmpool.training.data.holdout import assign_folds
from lstmpool.training.data.order import Tokens
from lstmpool.training.errors import InputError, one_line
from lstmpool.training.evaluation.label_issues import find_issues
from lstmpool.training.evaluation.results import Evaluation
from lstmpool.training.flags.training_arguments import TrainingArguments
from lstmpool.training.loop.trainer_arguments import changed
from lstmpool.training.output.artifacts import Writers, predictions_of
from lstmpool.training.output.folder import handover, json_writer, prepare_output, repair, write_output
from lstmpool.training.output.found import FOLD
from lstmpool.training.output.run_record import RunRecord, reopen_if_damaged
from lstmpool.training.output.start import GoOn, Start, choose_start
from lstmpool.training.output.tables import prediction_table, write_table
from lstmpool.training.output.terminal import by_class_lines, rows_of, text_table
from lstmpool.training.output.wrong_rows import errors_of, label_issues_line, label_issues_of, shown_errors
from lstmpool.training.runs.fit import Extras, fit
from lstmpool.training.runs.job import Job


LOGITS = "logits.npz"  # in the folder of a fold or seed: its model's logits of the rows that it was not trained on
ALL = "out of fold"


@dataclass(frozen=True)
class Member:
    """One of the runs that a command makes: that of a fold, or of a seed.

    Args:
        title: what is printed before it.
        job: its rows and settings.
        args: its arguments, with a folder of its own.
    """

    title: str
    job: Job
    args: TrainingArguments

    @property
    def folder(self) -> Path:
        """Where it works."""
        return Path(self.args.output_dir)

    @property
    def is_finished(self) -> bool:
        """Whether its folder is whole."""
        record = RunRecord.read(self.folder)
        return record is not None and record.finished

    def start(self) -> Start:
        """How it begins. Raises InputError if it cannot."""
        return choose_start(self.folder, self.job.settings)

    def logits(self) -> dict[str, np.ndarray]:
        """What its finished model gave, (N, C) by split. Raises InputError if the file is damaged."""
        path = self.folder / LOGITS
        remedy = f"Remove {self.folder}, and give the same command again: it repeats this run."
        unreadable = one_line(f"{path} cannot be read", ValueError, KeyError, BadZipFile, remedy=remedy)
        with unreadable, np.load(path) as saved:
            return {split: saved[split] for split in self.job.splits if split != "train"}


def args_of_member(args: TrainingArguments, name: str, **others: Any) -> TrainingArguments:
    """The arguments of the run in the folder `name`. It replaces nothing; its errors are shown with those of all."""
    return changed(args, output_dir=str(Path(args.output_dir, name)), overwrite=False, show_errors=False, **others)


# ----------------------------------------------------------------------------------------------- of folds and of seeds
def prepare(args: TrainingArguments, start: Start, record: RunRecord, members: Collection[Member], what: str) -> None:
    """Checks all runs before one is begun, and prepares the folder. A damaged run counts as cut off afterwards.

    Args:
        args: with the folder where all of them work.
        start: how the command begins in it.
        record: of the command.
        members: its runs.
        what: they are, for a message.

    Raises:
        InputError: if one of them cannot begin, or their rows are others than before.
    """
    folder = Path(args.output_dir)
    if isinstance(start, GoOn) and args.process_index == 0:
        for member in members:
            repair(member.folder)
    for member in members:
        if RunRecord.read(member.folder) is None:
            member.start()  # called for its errors
    if not isinstance(start, GoOn):
        prepare_output(folder, start, record, with_code=False)  # the code lies with the models, in their folders
        return
    if args.process_index == 0:
        for member in members:
            reopen_if_damaged(member.folder)
    args.distributed_state.wait_for_everyone()
    _check_rows(folder, record, members, what)
    earlier = RunRecord.read(folder)
    if earlier.differs(record.settings):  # seeds are added
        replace(earlier, settings=record.settings, finished=False, digests={}).write(folder)


def run_member(member: Member, tokens: dict[str, Tokens], final: Path) -> None:
    """Does a run, unless it is finished. `final`: the folder in which its own will lie in the end."""
    before = member.is_finished
    print(f"\n{member.title}:{' finished before.' if before else ''}", flush=True)
    if before:
        return
    extras = Extras(files=_logits_writer, shown=final / member.folder.name)
    fit(member.job, member.args, member.start(), tokens, extras)
    gc.collect()  # model and trainer refer to each other, and would stay on the device beside the next model


def _check_rows(folder: Path, record: RunRecord, members: Collection[Member], what: str) -> None:
    """Raises InputError if the rows or their groups are others than before: the runs would not belong together."""
    wanted = {folder: record}
    for member in members:
        if member.is_finished:
            wanted[member.folder] = RunRecord.of(member.job.settings, member.job.splits)
    for place, expected in wanted.items():
        if RunRecord.read(place).rows != expected.rows:
            raise InputError(
                f"the rows are not those that {what} in {folder} was begun with (see {place}). Give the same files, "
                "or begin anew in another folder."
            )


def _logits_writer(evaluation: Evaluation) -> Writers:
    """The file that `Member.logits` reads."""
    logits = {name: values for name, values in evaluation.logits.items() if name != "train"}
    return {LOGITS: partial(np.savez, **logits)}


# ------------------------------------------------------------------------------------------------------------ of folds
def cross_validate(job: Job, args: TrainingArguments, start: Start) -> Evaluation:
    """Runs the folds that are not finished, and writes the results of all folds to `args.output_dir`.

    Args:
        job: the rows, the task and the model.
        args: the parsed arguments, which stay as they are.
        start: how it begins in the output folder: `GoOn` if this very cross-validation was cut off.

    Raises:
        InputError: before any training, if there are too few rows for the folds, or the folder holds other folds.
        Interrupted: after a signal, as in `fit`.
    """
    final = Path(args.output_dir)
    folder = start.place(final)
    args = changed(args, output_dir=str(folder))
    record = RunRecord.of(job.settings, job.splits)
    assigned = assign_folds(job.splits["train"], job.task, job.data_args.cv_folds, job.data_args.shuffle_seed)
    members = {fold: _member_of(job, args, assigned, fold) for fold in range(1, job.data_args.cv_folds + 1)}
    prepare(args, start, record, members.values(), "the cross-validation")
    all_tokens = job.encode()  # once for all folds
    for fold, member in members.items():
        run_member(member, _tokens_of(all_tokens, assigned, fold), final)
    evaluation = _evaluate(job, members, assigned)
    _write(job, args, evaluation, assigned)
    if start.within:
        handover(final)
    record.finish(final)
    print(
        f"{final} holds the predictions for every row by the model that was trained without it (oof.parquet), and "
        f"these numbers (metrics.json). Its folders fold-1 to fold-{len(members)} hold a model each."
    )
    return evaluation


def _member_of(job: Job, args: TrainingArguments, assigned: np.ndarray, fold: int) -> Member:
    """The run of a fold."""
    own = _job_of(job, assigned, fold)
    rows = f"{len(own.splits['train'])} rows train, {len(own.splits['validation'])} are held out"
    return Member(
        f"Fold {fold} of {job.data_args.cv_folds}, {rows}",
        own,
        args_of_member(args, f"{FOLD}{fold}", find_label_issues=False),
    )


def _job_of(job: Job, assigned: np.ndarray, fold: int) -> Job:
    """The job of a fold's run. `_tokens_of` gives its tokens, which are made only once training begins."""
    train = job.splits["train"]
    splits = {
        "train": train.take(_rows_outside(fold, assigned)),
        "validation": train.take(_rows_in(fold, assigned), source=f"fold {fold} of {train.source}"),
    }
    splits |= {name: split for name, split in job.splits.items() if name != "train"}
    return replace(job, splits=splits, settings=job.settings | {"fold": fold})


def _tokens_of(tokens: dict[str, Tokens], assigned: np.ndarray, fold: int) -> dict[str, Tokens]:
    """The tokens of a fold's run, chosen from those of all rows."""
    chosen = dict(tokens)
    chosen["train"] = replace(tokens["train"], chosen=_rows_outside(fold, assigned))
    chosen["validation"] = replace(tokens["train"], chosen=_rows_in(fold, assigned))
    return chosen


def _rows_in(fold: int, assigned: np.ndarray) -> list[int]:
    return np.flatnonzero(assigned == fold).tolist()


def _rows_outside(fold: int, assigned: np.ndarray) -> list[int]:
    return np.flatnonzero(assigned != fold).tolist()


def _evaluate(job: Job, members: dict[int, Member], assigned: np.ndarray) -> Evaluation:
    """Measures each fold's rows, all rows at once, and the test rows."""
    task, train = job.task, job.splits["train"]
    labels = np.array(train.labels)
    out_of_fold = np.empty((len(train), len(task.names)))
    logits: dict[str, np.ndarray] = {}
    targets: dict[str, np.ndarray] = {}
    test_logits = []  # (N, C) for each fold
    for fold, member in members.items():
        held = assigned == fold
        of_fold = member.logits()
        out_of_fold[held] = of_fold["validation"]
        if "test" in of_fold:
            test_logits.append(of_fold["test"])
        logits[f"fold {fold}"] = out_of_fold[held]
        targets[f"fold {fold}"] = labels[held]
    logits[ALL] = out_of_fold
    targets[ALL] = labels
    if test_logits:
        logits["test"] = task.mean_logits(np.stack(test_logits))
        if job.splits["test"].labels is not None:
            targets["test"] = np.array(job.splits["test"].labels)
    return Evaluation.of(task, logits, targets, learned={})


def _write(job: Job, args: TrainingArguments, evaluation: Evaluation, assigned: np.ndarray) -> None:
    """Fills the folder, and prints the table of results."""
    names = [f"fold {fold}" for fold in range(1, job.data_args.cv_folds + 1)]
    by_fold = pandas.DataFrame([evaluation.results[name] for name in names])
    spread = {
        "mean": by_fold.mean(skipna=False).to_dict(),
        "sd": by_fold.std(skipna=False).to_dict(),  # of a sample: divided by n - 1
    }
    metrics = _metrics(evaluation, names, spread)
    issues = None
    if args.find_label_issues:
        issues = find_issues(job.task, evaluation.logits[ALL], evaluation.targets[ALL], assigned)
        metrics["label_issues"] = issues.record()
    table = _oof_table(job, args, evaluation.logits[ALL], assigned)
    files = {"metrics.json": json_writer(metrics), "oof.parquet": partial(write_table, table)}
    splits = {ALL: job.splits["train"]} | job.splits
    files |= predictions_of(evaluation, splits, args)
    files |= errors_of(evaluation, splits, args)
    if issues is not None:
        files |= label_issues_of(issues, job.splits["train"], job.task, args)
    write_output(Path(args.output_dir), None, job.tokenizer, files)

    _show(evaluation, names, spread)
    if issues is not None:
        print(label_issues_line(issues))
    if args.show_errors:
        print("\n".join(shown_errors(evaluation, splits)))
    if args.load_best_model_at_end:
        print(
            "Each fold's epoch was chosen on the rows that the fold was then measured on. So all numbers but those of "
            "test are somewhat too good. --load_best_model_at_end False keeps the last epoch instead."
        )


def _metrics(evaluation: Evaluation, names: list[str], spread: dict[str, dict[str, float]]) -> dict[str, Any]:
    """The contents of metrics.json: of the folds with these `names`, whose `spread` is the mean and the sd."""
    recorded = evaluation.record()
    return {
        "problem_type": evaluation.task.problem_type,
        "cv_folds": len(names),
        **spread,
        "results": recorded["results"],
        "intervals": recorded["intervals"],
        "by_class": {name: of for name, of in recorded["by_class"].items() if name not in names},
    }


def _show(evaluation: Evaluation, names: list[str], spread: dict[str, dict[str, float]]) -> None:
    """Prints the results of the folds, of all rows at once, and by class."""
    results = evaluation.results
    shown = {name: {"validation": results[name]} for name in names}
    shown["mean over folds"] = {"validation": spread["mean"]}
    shown["sd over folds"] = {"validation": spread["sd"]}
    titles, headline = evaluation.task.titles, evaluation.task.headline
    rows = rows_of(shown, titles, headline, {})
    for name, what in ((ALL, "all rows at once"), ("test", "mean of the folds' predictions")):
        if name in results:
            rows += rows_of({what: {name: results[name]}}, titles, headline, evaluation.intervals)[1:]
    print(f"\n{text_table(rows)}\n")
    if ALL in evaluation.by_class:
        lines = by_class_lines(evaluation.by_class[ALL], "all rows, out of fold", results[ALL])
        print("\n".join(lines) + "\n")


def _oof_table(job: Job, args: TrainingArguments, logits: np.ndarray, assigned: np.ndarray) -> pandas.DataFrame:
    """The columns of `prediction_table` for the training rows, with the fold and the true label of each."""
    train = job.splits["train"]
    table = prediction_table(job.task, logits, train, args.predictions_with_text)
    return table.assign(fold=assigned, **job.task.label_columns(train.labels))
