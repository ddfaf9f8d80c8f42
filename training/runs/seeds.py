"""The same run with several seeds: how far results differ by chance in training, and all models together.

Each seed has a folder of its own, with what a run with that `--seed` leaves. Only training differs: how new weights
are drawn, the order of rows, dropout. Rows, and those held out, are the same. The command's own numbers are the mean
and spread over seeds, and what the models give together: the mean of their probabilities, or numbers.

A finished seed is not run again, as with folds, so more seeds can be added. S seeds, N rows, C labels.
"""

import json
import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas
from scipy import stats

from lstmpool.training.errors import InputError, one_line
from lstmpool.training.evaluation.results import Evaluation, judged_split
from lstmpool.training.flags.training_arguments import TrainingArguments
from lstmpool.training.loop.trainer_arguments import changed
from lstmpool.training.output.artifacts import Writers, predictions_of
from lstmpool.training.output.folder import handover, json_writer, write_output
from lstmpool.training.output.found import SEED, Members, files_of
from lstmpool.training.output.run_record import RunRecord
from lstmpool.training.output.start import Start
from lstmpool.training.output.terminal import by_class_lines, rows_of, text_table
from lstmpool.training.output.wrong_rows import errors_of, shown_errors
from lstmpool.training.runs.folds import Member, args_of_member, prepare, run_member
from lstmpool.training.runs.job import Job
from lstmpool.training.tasks.intervals import LEVEL
from lstmpool.training.tasks.task import Task


Results = dict[str, dict[str, float]]  # metrics by split
METRICS = "metrics.json"
TOGETHER = "mean of predictions"
REPORTS = {"find_label_issues": "label_issues", "layer_report": "layer_report"}  # flags, and their entries of METRICS


@dataclass(frozen=True)
class Spread:
    """How the results of S seeds, two or more, differ. All but `count` is by split and metric; NaN is undefined.

    Args:
        count: of the seeds.
        mean: over seeds.
        sd: standard deviation, of a sample: the sum of squares is divided by S - 1.
        low: the least value.
        high: the greatest one.
    """

    count: int
    mean: Results
    sd: Results
    low: Results
    high: Results

    @classmethod
    def of(cls, by_seed: dict[int, Results]) -> "Spread":
        """That of results by seed, which all have the same splits and metrics."""
        mean, sd, low, high = {}, {}, {}, {}
        for split in next(iter(by_seed.values())):
            table = pandas.DataFrame([results[split] for results in by_seed.values()], dtype=float)
            mean[split] = table.mean(skipna=False).to_dict()
            sd[split] = table.std(skipna=False).to_dict()
            low[split] = table.min(skipna=False).to_dict()
            high[split] = table.max(skipna=False).to_dict()
        return cls(len(by_seed), mean, sd, low, high)

    def interval(self, split: str, metric: str) -> tuple[float, float]:
        """Where the mean over all seeds there are lies, by Student's t with S - 1 degrees of freedom."""
        half = self._quantile * self.sd[split][metric] / math.sqrt(self.count)
        return self.mean[split][metric] - half, self.mean[split][metric] + half

    def telling(self, split: str, metric: str, runs: int) -> float:
        """By how much the means over `runs` seeds of two models must differ to be more than the spread of seeds.

        The other model is taken to vary as much as this one. One run of each is `runs` = 1.
        """
        return self._quantile * self.sd[split][metric] * math.sqrt(2 / runs)

    @property
    def _quantile(self) -> float:
        return float(stats.t.ppf((1 + LEVEL) / 2, self.count - 1))


def repeat_with_seeds(job: Job, args: TrainingArguments, start: Start) -> Evaluation:
    """Runs the seeds that are not finished, and writes the results of all seeds to `args.output_dir`.

    Args:
        job: the rows, the task and the model.
        args: the parsed arguments, which stay as they are.
        start: how it begins in the output folder: `GoOn` if this very command was cut off, or had fewer seeds.

    Returns:
        What the models give together.

    Raises:
        InputError: before any training, if no row would tell seeds apart, the folder holds something else, or a
            report is wanted that finished seeds lack.
        Interrupted: after a signal, as in `fit`.
    """
    _check_measured(job)
    final = Path(args.output_dir)
    args = changed(args, output_dir=str(start.place(final)))
    record = RunRecord.of(job.settings, job.splits)
    members = {seed: _member_of(job, args, seed) for seed in Members.of(job.settings).numbers}
    _check_reports(args, members.values())
    prepare(args, start, record, members.values(), "the run with several seeds")
    tokens = job.encode()  # once for all seeds
    for member in members.values():
        run_member(member, tokens, final)
    evaluation = _evaluate(job, list(members.values()))
    _write(job, args, evaluation, {seed: _results_of(member) for seed, member in members.items()})
    if start.within:
        handover(final)
    record.finish(final)
    first, *_, last = (member.folder.name for member in members.values())
    print(
        f"{final} holds these numbers (metrics.json). Its folders {first} to {last} hold a model each, and "
        f"python -m lstmpool.predict {final} takes the mean of their predictions."
    )
    return evaluation


def _check_measured(job: Job) -> None:
    """Raises InputError if no result would differ between seeds."""
    if not any(split.labels is not None for name, split in job.splits.items() if name != "train"):
        raise InputError(
            "--seeds measures each seed on validation or test rows with labels, found none. Name a --validation_file "
            "or a --test_file, or hold some of the training rows out: --validation_size 0.1."
        )


def _check_reports(args: TrainingArguments, members: Collection[Member]) -> None:
    """Raises InputError if finished seeds, which are not run again, were run without a report that is wanted now."""
    for flag, entry in REPORTS.items():
        lacking = [str(member.folder) for member in members if getattr(args, flag) and _lacks(member, entry)]
        if lacking:
            raise InputError(
                f"--{flag} is part of each seed's run, and these are finished without it: {', '.join(lacking)}. Leave "
                "it out, or remove these folders and give the same command again: it repeats their runs."
            )


def _lacks(member: Member, entry: str) -> bool:
    """Whether the run is finished, and its metrics have no such entry. One that cannot be read will be run again."""
    if not member.is_finished:
        return False
    try:
        return entry not in json.loads((member.folder / METRICS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False


def _member_of(job: Job, args: TrainingArguments, seed: int) -> Member:
    """The run with a seed: what its folder records is what a run with that `--seed` alone does."""
    own = replace(job, settings=job.settings | {"seed": seed, "seeds": None})
    title = f"Seed {seed}, {seed - args.seed + 1} of {args.seeds}"
    return Member(title, own, args_of_member(args, f"{SEED}{seed}", seed=seed, seeds=None))


def _evaluate(job: Job, members: list[Member]) -> Evaluation:
    """Measures what the models give together."""
    of_members = [member.logits() for member in members]  # (N, C) by split
    logits = {split: job.task.mean_logits(np.stack([of[split] for of in of_members])) for split in of_members[0]}
    labels = {split: job.splits[split].labels for split in logits}
    targets = {split: np.asarray(found) for split, found in labels.items() if found is not None}
    return Evaluation.of(job.task, logits, targets, learned={})


def _results_of(member: Member) -> Results:
    """The metrics of a finished run, by split. What was undefined is NaN."""
    path = member.folder / METRICS
    remedy = f"Remove {member.folder}, and give the same command again: it repeats this run."
    with one_line(f"{path} cannot be read", ValueError, KeyError, remedy=remedy):
        found = json.loads(path.read_text(encoding="utf-8"))["results"]
    results = {}
    for split, of_split in found.items():
        results[split] = {metric: math.nan if value is None else value for metric, value in of_split.items()}
    return results


# ----------------------------------------------------------------------------------------------- what the folder holds
def _write(job: Job, args: TrainingArguments, evaluation: Evaluation, by_seed: dict[int, Results]) -> None:
    """Fills the folder, and prints the table of results."""
    spread = Spread.of(by_seed)
    files = {METRICS: json_writer(_metrics(evaluation, by_seed, spread))}
    files |= predictions_of(evaluation, job.splits, args)
    files |= errors_of(evaluation, job.splits, args)
    folder = Path(args.output_dir)
    write_output(folder, None, job.tokenizer, files)
    _remove_other_tables(folder, files)
    print(f"\n{text_table(table_of(job.task, by_seed, spread, evaluation))}\n")
    split = judged_split(spread.mean)
    if split in evaluation.by_class:
        lines = by_class_lines(evaluation.by_class[split], f"{split}, {TOGETHER}", evaluation.results[split])
        print("\n".join(lines) + "\n")
    if args.show_errors:
        print("\n".join(shown_errors(evaluation, job.splits)))
    print(about_spread(spread, split, job.task))


def _metrics(evaluation: Evaluation, by_seed: dict[int, Results], spread: Spread) -> dict[str, Any]:
    """The contents of metrics.json. Its `results`, by split, are those of all models together."""
    recorded = evaluation.record()
    headline = evaluation.task.headline
    of_mean = {}
    for split in spread.mean:
        low, high = spread.interval(split, headline)
        of_mean[split] = {"metric": headline, "low": low, "high": high}
        of_mean[split]["telling_difference_of_means"] = spread.telling(split, headline, spread.count)
        of_mean[split]["telling_difference_of_runs"] = spread.telling(split, headline, 1)
    return {
        "problem_type": evaluation.task.problem_type,
        "seeds": list(by_seed),
        "by_seed": {str(seed): results for seed, results in by_seed.items()},
        "mean": spread.mean,
        "sd": spread.sd,
        "lowest": spread.low,
        "highest": spread.high,
        "interval_of_mean": of_mean,
        "results": recorded["results"],
        "intervals": recorded["intervals"],
        "by_class": recorded["by_class"],
    }


def _remove_other_tables(folder: Path, files: Writers) -> None:
    """Removes the predictions of fewer seeds that were written in another format: no command should read these."""
    for name in files_of(folder, RunRecord.read(folder)):
        if Path(name).stem.endswith("_predictions") and name not in files:
            (folder / name).unlink()


def table_of(task: Task, by_seed: dict[int, Results], spread: Spread, together: Evaluation) -> list[list[str]]:
    """A table with a head: for each split, a row for each seed, those of the spread, and that of all models."""
    shown = {f"seed {seed}": results for seed, results in by_seed.items()}
    shown |= {"mean over seeds": spread.mean, "sd over seeds": spread.sd}
    shown |= {"lowest": spread.low, "highest": spread.high}
    head, *_ = rows_of(shown, task.titles, task.headline, {})
    rows = [head]
    for split in spread.mean:
        of_split = {name: {split: results[split]} for name, results in shown.items()}
        rows += rows_of(of_split, task.titles, task.headline, {})[1:]
        of_all = {TOGETHER: {split: together.results[split]}}
        rows += rows_of(of_all, task.titles, task.headline, together.intervals)[1:]
    return rows


def about_spread(spread: Spread, split: str, task: Task) -> str:
    """Says which difference between two models is more than the spread of seeds, by the headline metric of a split."""
    metric, title = task.headline, task.titles[task.headline]
    if math.isnan(spread.sd[split][metric]):
        return f"{title} on {split} is undefined with a seed, so its spread is not known."
    if spread.sd[split][metric] == 0:
        return f"{title} on {split} is the same with every seed, so these rows do not show the spread of seeds."
    means, runs = spread.telling(split, metric, spread.count), spread.telling(split, metric, 1)
    return (
        f"To be more than the spread of seeds, a difference in {title} on {split} must exceed {means:.3f} between two "
        f"means over {spread.count} seeds, or {runs:.3f} between two single runs ({LEVEL:.0%}, Student's t, if the "
        "other model varies as much)."
    )
