"""Cross-validation: a run for each fold, in a folder of its own, and what the models of all folds say together.

Every training row is predicted by the model that was trained without it (`oof.parquet`); test rows, if there are any,
by all of them, whose probabilities, or numbers, are averaged. A fold that is finished is not run again, so that the
same command goes on where it was cut off. All folds share one set of tokens and, with a frozen backbone, one cache.
"""

import copy
import gc
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas
from scipy.special import log_expit, log_softmax, logsumexp

from lstmpool.training.data.fold_assignment import assign_folds
from lstmpool.training.errors import InputError
from lstmpool.training.evaluation.predictions import prediction_table, write_table
from lstmpool.training.evaluation.results import Evaluation
from lstmpool.training.output.folder import Writer, check_output, json_writer, prepare_output, write_output
from lstmpool.training.output.run_record import RunRecord
from lstmpool.training.output.terminal import rows_of, text_table
from lstmpool.training.runs.fit import fit
from lstmpool.training.runs.job import Job
from lstmpool.training.tasks.labels import MULTI, REGRESSION, SINGLE, Labels
from lstmpool.training.training_arguments import TrainingArguments


LOGITS = "logits.npz"  # of a fold: what its model says of the rows that it was trained without, and of the test rows
ALL = "out of fold"


def check_folds_output(args: TrainingArguments, settings: dict[str, Any], init_from: str | None = None) -> None:
    """What `check_output` is for one run. Raises InputError if the folder is taken."""
    if _goes_on(Path(args.output_dir), settings):
        print(f"{args.output_dir} holds this cross-validation, which was cut off. It goes on.")
    else:
        check_output(args, settings, init_from)


def cross_validate(job: Job, args: TrainingArguments) -> Evaluation:
    """Runs the folds that are not finished in `args.output_dir`, and writes there what all come to.

    Raises:
        InputError: before any training, if there are too few rows for the folds, or the folder holds those of others.
        Interrupted: after a signal, as in `fit`.
    """
    folder, record = Path(args.output_dir), RunRecord.of(job.settings, job.splits)
    train, folds = job.splits["train"], job.data_args.cv_folds
    assigned = assign_folds(train, job.labels, folds, job.data_args.shuffle_seed)
    jobs = {fold: _job_of(job, assigned, fold) for fold in range(1, folds + 1)}
    of_folds = {fold: _args_of(args, folder / f"fold-{fold}") for fold in jobs}
    for fold, own in of_folds.items():
        if RunRecord.read(Path(own.output_dir)) is None:  # now, and not when the folds before it are trained
            check_output(own, jobs[fold].settings)
    if _goes_on(folder, job.settings):
        _check_rows(folder, record, jobs)
    else:
        without_model = copy.copy(args)
        without_model.do_train = False  # the models, and so the code, are in the folders of the folds
        prepare_output(without_model, record)

    for fold, of_fold in jobs.items():
        rows = f"{len(of_fold.splits['train'])} rows train, {len(of_fold.splits['validation'])} are held out"
        if _is_finished(folder / f"fold-{fold}"):
            print(f"\nFold {fold} of {folds}, {rows}: finished before.", flush=True)
            continue
        print(f"\nFold {fold} of {folds}, {rows}:", flush=True)
        own = of_folds[fold]
        check_output(own, of_fold.settings)
        fit(replace(of_fold, tokens=_tokens_of(job, assigned, fold)), own, also=_logits_writer)
        gc.collect()  # the model and its trainer refer to each other, and would stay on the device beside the next one

    evaluation = _evaluate(job, folder, assigned)
    _write(job, args, evaluation, assigned)
    record.finish(folder)
    print(
        f"{folder} holds the predictions of every row by the model that was trained without it (oof.parquet), and "
        f"these numbers (metrics.json); fold-1 to fold-{folds} in it hold a model each."
    )
    return evaluation


def mean_logits(logits: np.ndarray, problem_type: str) -> np.ndarray:
    """The logits (N, C) of the mean probabilities that `logits` (K, N, C) come to; in a regression, their mean."""
    if problem_type == REGRESSION:
        return logits.mean(0)

    def log_mean(log_probabilities: np.ndarray) -> np.ndarray:
        return logsumexp(log_probabilities, axis=0) - np.log(len(log_probabilities))

    if problem_type == SINGLE:
        return log_mean(log_softmax(logits, axis=-1))
    return log_mean(log_expit(logits)) - log_mean(log_expit(-logits))


def _args_of(args: TrainingArguments, folder: Path) -> TrainingArguments:
    """Of the run of a fold. It replaces what has no record, which a kill may leave, but never a fold of ours."""
    own = copy.copy(args)
    own.output_dir, own.overwrite = str(folder), args.overwrite and RunRecord.read(folder) is None
    return own


def _goes_on(folder: Path, settings: dict[str, Any]) -> bool:
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


def _tokens_of(job: Job, assigned: np.ndarray, fold: int) -> dict[str, Any]:
    tokens = job.encode()  # all rows, once
    return {
        **tokens,
        "train": replace(tokens["train"], chosen=np.flatnonzero(assigned != fold).tolist()),
        "validation": replace(tokens["train"], chosen=np.flatnonzero(assigned == fold).tolist()),
    }


def _logits_writer(evaluation: Evaluation) -> dict[str, Writer]:
    logits = {name: values for name, values in evaluation.logits.items() if name != "train"}
    return {LOGITS: lambda path: np.savez(path, **logits)}


def _evaluate(job: Job, folder: Path, assigned: np.ndarray) -> Evaluation:
    """Of each fold's rows, of all rows, and of the test rows."""
    labels, targets = job.labels, {ALL: np.array(job.splits["train"].labels)}
    out_of_fold, of_test, logits = np.empty((len(assigned), len(labels.names))), [], {}
    for fold in range(1, job.data_args.cv_folds + 1):
        with np.load(folder / f"fold-{fold}" / LOGITS) as saved:
            logits[f"fold {fold}"] = out_of_fold[assigned == fold] = saved["validation"]
            of_test += [saved["test"]] if "test" in saved else []
        targets[f"fold {fold}"] = targets[ALL][assigned == fold]
    logits[ALL] = out_of_fold
    if of_test:
        logits["test"] = mean_logits(np.stack(of_test), labels.problem_type)
        if job.splits["test"].labels is not None:
            targets["test"] = np.array(job.splits["test"].labels)
    return Evaluation(job.metrics, labels, logits, targets, learned={})


def _write(job: Job, args: TrainingArguments, evaluation: Evaluation, assigned: np.ndarray) -> None:
    """Fills the folder, and prints the table of results."""
    metrics, results, folds = job.metrics, evaluation.results, job.data_args.cv_folds
    names = [f"fold {fold}" for fold in range(1, folds + 1)]
    by_fold = pandas.DataFrame([results[name] for name in names])
    mean, sd = by_fold.mean(skipna=False).to_dict(), by_fold.std(skipna=False).to_dict()  # of a sample, n - 1
    numbers = {"problem_type": job.labels.problem_type, "cv_folds": folds, "mean": mean, "sd": sd}
    recorded = evaluation.record()
    numbers |= {"results": recorded["results"], "intervals": recorded["intervals"]}
    table = _oof_table(job, args, evaluation.logits[ALL], assigned)
    files = {"metrics.json": json_writer(numbers), "oof.parquet": partial(write_table, table)}
    files |= evaluation.predictions(job.splits.get("test"), args)
    write_output(Path(args.output_dir), None, job.tokenizer, files)

    shown = {name: {"validation": results[name]} for name in names}
    shown |= {"mean over folds": {"validation": mean}, "sd over folds": {"validation": sd}}
    rows = rows_of(shown, metrics.titles, metrics.headline, {})
    for name, what in ((ALL, "all rows at once"), ("test", "mean of the folds' predictions")):
        if name in results:
            rows += rows_of({what: {name: results[name]}}, metrics.titles, metrics.headline, evaluation.intervals)[1:]
    print(f"\n{text_table(rows)}\n")
    if args.load_best_model_at_end:
        print(
            "Each fold's epoch was chosen on the rows that it was then measured on, so all but test are somewhat too "
            "good. --load_best_model_at_end False keeps the last epoch instead."
        )


def _oof_table(job: Job, args: TrainingArguments, logits: np.ndarray, assigned: np.ndarray) -> pandas.DataFrame:
    """A row for each training row, in their order: what `prediction_table` gives, the fold and the label."""
    train, labels = job.splits["train"], job.labels
    texts = {"text": train.texts} | ({"text_pair": train.pairs} if train.pairs else {})
    shown = texts if args.predictions_with_text else None
    table = prediction_table(logits, train.ids, labels.names, labels.problem_type, shown)
    return table.assign(fold=assigned, **_label_columns(labels, train.labels))


def _label_columns(labels: Labels, targets: list[Any]) -> dict[str, Any]:
    if labels.problem_type == SINGLE:
        return {"label": [labels.names[target] for target in targets]}
    table = np.array(targets, dtype=float).reshape(len(targets), -1)  # (N, C)
    if labels.problem_type == MULTI:
        return {"label": ["|".join(np.array(labels.names)[row > 0]) for row in table]}
    several = len(labels.names) > 1
    return {f"label_{name}" if several else "label": table[:, i] for i, name in enumerate(labels.names)}
