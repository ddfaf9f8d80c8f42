"""Cross-validation: a run for each fold, in a folder of its own, and the predictions of all folds' models together.

Each training row is predicted by the model that was trained without it (`oof.parquet`). Test rows, if there are any,
are predicted by all models, and their probabilities, or numbers, are averaged. A finished fold is not run again, so
the same command goes on where it was cut off. All folds share their tokens and, with a frozen backbone, one cache.
"""

import gc
from dataclasses import replace
from functools import partial
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import pandas

from lstmpool.training.data.fold_assignment import assign_folds
from lstmpool.training.errors import InputError, one_line
from lstmpool.training.evaluation.label_issues import find_issues
from lstmpool.training.evaluation.results import Evaluation
from lstmpool.training.flags.training_arguments import TrainingArguments
from lstmpool.training.loop.trainer_arguments import changed
from lstmpool.training.output.artifacts import Writers, predictions_of
from lstmpool.training.output.folder import handover, json_writer, prepare_output, repair, write_output
from lstmpool.training.output.run_record import RunRecord, reopen_if_damaged
from lstmpool.training.output.start import GoOn, Start, choose_start
from lstmpool.training.output.tables import prediction_table, write_table
from lstmpool.training.output.terminal import by_class_lines, rows_of, text_table
from lstmpool.training.output.wrong_rows import errors_of, label_issues_line, label_issues_of, shown_errors
from lstmpool.training.runs.fit import Extras, fit
from lstmpool.training.runs.job import Job, Tokens


LOGITS = "logits.npz"  # in a fold's folder: its model's logits of the rows that it was not trained on
ALL = "out of fold"


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
    jobs = {fold: _job_of(job, assigned, fold) for fold in range(1, job.data_args.cv_folds + 1)}
    _prepare(args, start, record, jobs)
    _train(job, args, jobs, assigned, final)
    evaluation = _evaluate(job, folder, assigned)
    _write(job, args, evaluation, assigned)
    if start.within:
        handover(final)
    record.finish(final)
    print(
        f"{final} holds the predictions for every row by the model that was trained without it (oof.parquet), and "
        f"these numbers (metrics.json). Its folders fold-1 to fold-{len(jobs)} hold a model each."
    )
    return evaluation


def _prepare(args: TrainingArguments, start: Start, record: RunRecord, jobs: dict[int, Job]) -> None:
    """Checks all folds before one is trained, and prepares the folder. A damaged fold counts as cut off afterwards."""
    folder = Path(args.output_dir)
    if isinstance(start, GoOn) and args.process_index == 0:
        for fold in jobs:
            repair(folder / f"fold-{fold}")
    for fold, job in jobs.items():
        if RunRecord.read(folder / f"fold-{fold}") is None:
            _start_of_fold(job, _args_of(args, fold))  # called for its errors
    if not isinstance(start, GoOn):
        prepare_output(folder, start, record, with_code=False)  # the code lies with the models, in the folds' folders
        return
    if args.process_index == 0:
        for fold in jobs:
            reopen_if_damaged(folder / f"fold-{fold}")
    args.distributed_state.wait_for_everyone()
    _check_rows(folder, record, jobs)


def _train(job: Job, args: TrainingArguments, jobs: dict[int, Job], assigned: np.ndarray, final: Path) -> None:
    """Runs the folds that are not finished. Their folders will lie in `final`."""
    all_tokens = job.encode()  # once for all folds
    for fold, job_of_fold in jobs.items():
        splits = job_of_fold.splits
        rows = f"{len(splits['train'])} rows train, {len(splits['validation'])} are held out"
        before = _is_finished(Path(args.output_dir, f"fold-{fold}"))
        print(f"\nFold {fold} of {len(jobs)}, {rows}:{' finished before.' if before else ''}", flush=True)
        if before:
            continue
        own = _args_of(args, fold)
        tokens = _tokens_of(all_tokens, assigned, fold)
        extras = Extras(files=_logits_writer, shown=final / f"fold-{fold}")
        fit(job_of_fold, own, _start_of_fold(job_of_fold, own), tokens, extras)
        gc.collect()  # model and trainer refer to each other, and would stay on the device beside the next model


def _args_of(args: TrainingArguments, fold: int) -> TrainingArguments:
    """The arguments of a fold's run. It replaces nothing, and its errors are shown with those of all folds."""
    place = str(Path(args.output_dir, f"fold-{fold}"))
    return changed(args, output_dir=place, overwrite=False, show_errors=False, find_label_issues=False)


def _start_of_fold(job: Job, args: TrainingArguments) -> Start:
    return choose_start(args.output_dir, job.settings)


def _is_finished(folder: Path) -> bool:
    record = RunRecord.read(folder)
    return record is not None and record.finished


def _check_rows(folder: Path, record: RunRecord, jobs: dict[int, Job]) -> None:
    """Raises InputError if the rows or their groups are others than before: the folds would not be the same."""
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


def _logits_writer(evaluation: Evaluation) -> Writers:
    """The file of a fold from which `_evaluate` reads."""
    logits = {name: values for name, values in evaluation.logits.items() if name != "train"}
    return {LOGITS: partial(np.savez, **logits)}


def _evaluate(job: Job, folder: Path, assigned: np.ndarray) -> Evaluation:
    """Measures each fold's rows, all rows at once, and the test rows."""
    task, train = job.task, job.splits["train"]
    labels = np.array(train.labels)
    out_of_fold = np.empty((len(train), len(task.names)))
    logits: dict[str, np.ndarray] = {}
    targets: dict[str, np.ndarray] = {}
    test_logits = []  # (N, C) for each fold
    for fold in range(1, job.data_args.cv_folds + 1):
        held = assigned == fold
        path = folder / f"fold-{fold}" / LOGITS
        remedy = f"Remove {path.parent}, and give the same command again: it repeats this fold."
        unreadable = one_line(f"{path} cannot be read", ValueError, KeyError, BadZipFile, remedy=remedy)
        with unreadable, np.load(path) as saved:
            out_of_fold[held] = saved["validation"]
            if "test" in saved:
                test_logits.append(saved["test"])
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
    results = evaluation.results
    names = [f"fold {fold}" for fold in range(1, job.data_args.cv_folds + 1)]
    by_fold = pandas.DataFrame([results[name] for name in names])
    mean = by_fold.mean(skipna=False).to_dict()
    deviation = by_fold.std(skipna=False).to_dict()  # of a sample: divided by n - 1
    recorded = evaluation.record()
    numbers = {
        "problem_type": job.task.problem_type,
        "cv_folds": len(names),
        "mean": mean,
        "sd": deviation,
        "results": recorded["results"],
        "intervals": recorded["intervals"],
        "by_class": {name: of for name, of in recorded["by_class"].items() if name not in names},
    }
    issues = None
    if args.find_label_issues:
        issues = find_issues(job.task, evaluation.logits[ALL], evaluation.targets[ALL], assigned)
        numbers["label_issues"] = issues.record()
    table = _oof_table(job, args, evaluation.logits[ALL], assigned)
    files = {"metrics.json": json_writer(numbers), "oof.parquet": partial(write_table, table)}
    splits = {ALL: job.splits["train"]} | job.splits
    files |= predictions_of(evaluation, splits, args)
    files |= errors_of(evaluation, splits, args)
    if issues is not None:
        files |= label_issues_of(issues, job.splits["train"], job.task, args)
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
    if ALL in evaluation.by_class:
        lines = by_class_lines(evaluation.by_class[ALL], "all rows, out of fold", results[ALL])
        print("\n".join(lines) + "\n")
    if issues is not None:
        print(label_issues_line(issues))
    if args.show_errors:
        print("\n".join(shown_errors(evaluation, splits)))
    if args.load_best_model_at_end:
        print(
            "Each fold's epoch was chosen on the rows that the fold was then measured on. So all numbers but those of "
            "test are somewhat too good. --load_best_model_at_end False keeps the last epoch instead."
        )


def _oof_table(job: Job, args: TrainingArguments, logits: np.ndarray, assigned: np.ndarray) -> pandas.DataFrame:
    """The columns of `prediction_table` for the training rows, with the fold and the true label of each."""
    train = job.splits["train"]
    table = prediction_table(job.task, logits, train, args.predictions_with_text)
    return table.assign(fold=assigned, **job.task.label_columns(train.labels))
