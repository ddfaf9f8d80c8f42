"""Cross-validation: a run for each fold, in a folder of its own, and what the models of all folds say together.

Every training row is predicted by the model that was trained without it (`oof.parquet`); test rows, if there are any,
by all of them, whose probabilities, or numbers, are averaged. A fold that is finished is not run again, so that the
same command goes on where it was cut off. All folds share one set of tokens and, with a frozen backbone, one cache.
"""

import gc
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas

from lstmpool.training.data.fold_assignment import assign_folds
from lstmpool.training.errors import InputError
from lstmpool.training.evaluation.results import Evaluation
from lstmpool.training.flags.training_arguments import TrainingArguments
from lstmpool.training.loop.trainer_arguments import changed
from lstmpool.training.output.artifacts import Writers, predictions_of
from lstmpool.training.output.folder import json_writer, prepare_output, write_output
from lstmpool.training.output.run_record import RunRecord
from lstmpool.training.output.start import Start, choose_start
from lstmpool.training.output.tables import prediction_table, write_table
from lstmpool.training.output.terminal import rows_of, text_table
from lstmpool.training.runs.fit import Extras, fit
from lstmpool.training.runs.job import Job, Tokens


LOGITS = "logits.npz"  # of a fold: what its model says of the rows that it was trained without, and of the test rows
ALL = "out of fold"


def choose_start_of_folds(args: TrainingArguments, settings: dict, init_from: str | None = None) -> Start | None:
    """What `choose_start` is for one run; None where this very cross-validation was cut off, and goes on.

    Raises:
        InputError: if the folder is taken.
    """
    if _goes_on(Path(args.output_dir), settings):
        print(f"{args.output_dir} holds this cross-validation, which was cut off. It goes on.")
        return None
    return choose_start(args.output_dir, settings, args.resume_from_checkpoint, args.overwrite, init_from)


def cross_validate(job: Job, args: TrainingArguments, start: Start | None) -> Evaluation:
    """Runs the folds that are not finished in `args.output_dir`, and writes there what all come to.

    Args:
        start: of `choose_start_of_folds`.

    Raises:
        InputError: before any training, if there are too few rows for the folds, or the folder holds those of others.
        Interrupted: after a signal, as in `fit`.
    """
    folder, record = Path(args.output_dir), RunRecord.of(job.settings, job.splits)
    assigned = assign_folds(job.splits["train"], job.task, job.data_args.cv_folds, job.data_args.shuffle_seed)
    jobs = {fold: _job_of(job, assigned, fold) for fold in range(1, job.data_args.cv_folds + 1)}
    for fold, of_fold in jobs.items():
        if RunRecord.read(folder / f"fold-{fold}") is None:  # now, and not when the folds before it are trained
            _start_of_fold(of_fold, _args_of(args, fold))
    if start is None:
        _check_rows(folder, record, jobs)
    else:
        prepare_output(
            folder, start, record, with_code=False
        )  # the models, and so the code, are in the folds' folders

    all_tokens = job.encode()  # once for all folds
    for fold, of_fold in jobs.items():
        rows = f"{len(of_fold.splits['train'])} rows train, {len(of_fold.splits['validation'])} are held out"
        if _is_finished(folder / f"fold-{fold}"):
            print(f"\nFold {fold} of {len(jobs)}, {rows}: finished before.", flush=True)
            continue
        print(f"\nFold {fold} of {len(jobs)}, {rows}:", flush=True)
        own = _args_of(args, fold)
        tokens = _tokens_of(all_tokens, assigned, fold)
        fit(of_fold, own, _start_of_fold(of_fold, own), tokens, Extras(files=_logits_writer))
        gc.collect()  # the model and its trainer refer to each other, and would stay on the device beside the next one

    evaluation = _evaluate(job, folder, assigned)
    _write(job, args, evaluation, assigned)
    record.finish(folder)
    print(
        f"{folder} holds the predictions of every row by the model that was trained without it (oof.parquet), and "
        f"these numbers (metrics.json); fold-1 to fold-{len(jobs)} in it hold a model each."
    )
    return evaluation


def _args_of(args: TrainingArguments, fold: int) -> TrainingArguments:
    """Of the run of a fold. It replaces what has no record, which a kill may leave, but never a fold of ours."""
    folder = Path(args.output_dir, f"fold-{fold}")
    return changed(args, output_dir=str(folder), overwrite=args.overwrite and RunRecord.read(folder) is None)


def _start_of_fold(job: Job, args: TrainingArguments) -> Start:
    return choose_start(args.output_dir, job.settings, None, args.overwrite)


def _goes_on(folder: Path, settings: dict) -> bool:
    earlier = RunRecord.read(folder)
    return earlier is not None and not earlier.finished and not earlier.differs(settings)


def _is_finished(folder: Path) -> bool:
    record = RunRecord.read(folder)
    return record is not None and record.finished


def _check_rows(folder: Path, record: RunRecord, jobs: dict[int, Job]) -> None:
    """Refuses to go on with other rows, or other groups of them: the folds would not be the same."""
    wanted = {folder: record}
    for fold, job in jobs.items():
        if _is_finished(folder / f"fold-{fold}"):
            wanted[folder / f"fold-{fold}"] = RunRecord.of(job.settings, job.splits)
    for place, expected in wanted.items():
        if RunRecord.read(place).rows != expected.rows:
            raise InputError(
                f"the rows are not those that the cross-validation in {folder} was begun with (see {place}). Give the "
                "same files, or begin anew in another folder."
            )


def _job_of(job: Job, assigned: np.ndarray, fold: int) -> Job:
    """What the run of this fold is to do; its tokens are another matter, since they cost time."""
    train = job.splits["train"]
    splits = {
        "train": train.take(np.flatnonzero(assigned != fold).tolist()),
        "validation": train.take(np.flatnonzero(assigned == fold).tolist(), source=f"fold {fold} of {train.source}"),
        **{name: split for name, split in job.splits.items() if name != "train"},
    }
    return replace(job, splits=splits, settings={**job.settings, "fold": fold})


def _tokens_of(tokens: dict[str, Tokens], assigned: np.ndarray, fold: int) -> dict[str, Tokens]:
    """The tokens of a fold's run, which are some of those of all rows."""
    of_fold = dict(tokens)
    of_fold["train"] = replace(tokens["train"], chosen=np.flatnonzero(assigned != fold).tolist())
    of_fold["validation"] = replace(tokens["train"], chosen=np.flatnonzero(assigned == fold).tolist())
    return of_fold


def _logits_writer(evaluation: Evaluation) -> Writers:
    logits = {name: values for name, values in evaluation.logits.items() if name != "train"}
    return {LOGITS: lambda path: np.savez(path, **logits)}


def _evaluate(job: Job, folder: Path, assigned: np.ndarray) -> Evaluation:
    """Of each fold's rows, of all rows, and of the test rows."""
    task, train = job.task, job.splits["train"]
    labels = np.array(train.labels)
    out_of_fold = np.empty((len(train), len(task.names)))
    logits, targets, of_test = {}, {}, []
    for fold in range(1, job.data_args.cv_folds + 1):
        held = assigned == fold
        with np.load(folder / f"fold-{fold}" / LOGITS) as saved:
            out_of_fold[held] = saved["validation"]
            if "test" in saved:
                of_test.append(saved["test"])
        logits[f"fold {fold}"], targets[f"fold {fold}"] = out_of_fold[held], labels[held]
    logits[ALL], targets[ALL] = out_of_fold, labels
    if of_test:
        logits["test"] = task.mean_logits(np.stack(of_test))
        if job.splits["test"].labels is not None:
            targets["test"] = np.array(job.splits["test"].labels)
    return Evaluation.of(task, logits, targets, learned={})


def _write(job: Job, args: TrainingArguments, evaluation: Evaluation, assigned: np.ndarray) -> None:
    """Fills the folder, and prints the table of results."""
    results = evaluation.results
    names = [f"fold {fold}" for fold in range(1, job.data_args.cv_folds + 1)]
    by_fold = pandas.DataFrame([results[name] for name in names])
    mean = by_fold.mean(skipna=False).to_dict()
    deviation = by_fold.std(skipna=False).to_dict()  # of a sample: n - 1
    recorded = evaluation.record()
    numbers = {
        "problem_type": job.task.problem_type,
        "cv_folds": len(names),
        "mean": mean,
        "sd": deviation,
        "results": recorded["results"],
        "intervals": recorded["intervals"],
    }
    table = _oof_table(job, args, evaluation.logits[ALL], assigned)
    files = {"metrics.json": json_writer(numbers), "oof.parquet": partial(write_table, table)}
    files |= predictions_of(evaluation, job.splits.get("test"), args.predictions_format, args.predictions_with_text)
    write_output(Path(args.output_dir), None, job.tokenizer, files)

    shown = {name: {"validation": results[name]} for name in names}
    shown["mean over folds"] = {"validation": mean}
    shown["sd over folds"] = {"validation": deviation}
    titles, headline = job.task.titles, job.task.headline
    rows = rows_of(shown, titles, headline, {})
    for name, what in ((ALL, "all rows at once"), ("test", "mean of the folds' predictions")):
        if name in results:
            rows += rows_of({what: {name: results[name]}}, titles, headline, evaluation.intervals)[1:]
    print(f"\n{text_table(rows)}\n")
    if args.load_best_model_at_end:
        print(
            "Each fold's epoch was chosen on the rows that it was then measured on, so all but test are somewhat too "
            "good. --load_best_model_at_end False keeps the last epoch instead."
        )


def _oof_table(job: Job, args: TrainingArguments, logits: np.ndarray, assigned: np.ndarray) -> pandas.DataFrame:
    """A row for each training row, in their order: what `prediction_table` gives, the fold and the label."""
    train = job.splits["train"]
    table = prediction_table(job.task, logits, train, args.predictions_with_text)
    return table.assign(fold=assigned, **job.task.label_columns(train.labels))
