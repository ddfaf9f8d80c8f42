"""Searches settings before the final training. Each trial is a run of its own, judged on the validation rows.

The study is an SQLite file, which a kill at any moment leaves whole. The trials' runs lie beside it, in a folder under
`STUDIES` whose name is a digest of all that they depend on. So a search that is asked for again finds its study.

A trial that was cut off is marked as failed, and its settings are tried again in its folder, where its run goes on
from its checkpoint. The next settings depend on the seed and the finished trials alone. So a search that was cut off
tries the same settings as one that was not. It never looks at test rows.

Reference: TPE, the tree-structured Parzen estimator (Bergstra et al., Algorithms for Hyper-Parameter Optimization,
2011), as in optuna. The first trial has the command's own settings, and the next nine have random ones.
"""

import gc
import hashlib
import json
import math
import shutil
import sqlite3
import time
from contextlib import AbstractContextManager, closing, redirect_stdout
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pandas
import torch
from filelock import FileLock, Timeout
from huggingface_hub.constants import HF_HOME

from lstmpool.training.data.order import Tokens
from lstmpool.training.errors import Diverged, InputError
from lstmpool.training.evaluation.results import Evaluation
from lstmpool.training.flags.training_arguments import TrainingArguments
from lstmpool.training.loop.trainer_arguments import changed
from lstmpool.training.output.artifacts import Writers
from lstmpool.training.output.run_record import RunRecord, reopen_if_damaged
from lstmpool.training.output.start import Resume, Start, choose_start
from lstmpool.training.output.tables import write_table
from lstmpool.training.runs.fit import fit
from lstmpool.training.runs.job import Job
from lstmpool.training.runs.search_space import OF_MODEL, Space, Values
from lstmpool.training.writing import saving


STUDIES = Path(HF_HOME) / "lstmpool_studies"  # not in the layer cache, which may be deleted
METRICS = "metrics.json"
KEPT = {METRICS, "run.json", "runs"}  # in a trial's folder; the rest is as large as the model
TABLE = "hp_search.csv"
DIVERGED = "diverged"  # how a trial may end without a number
NO_MEMORY = "run out of memory"
REMEDIES = {
    DIVERGED: "Lower the rates: --hp_space "
    '\'{"learning_rate": [1e-6, 2e-5, "log"], "head_learning_rate": [1e-5, 1e-3, "log"]}\'',
    NO_MEMORY: "Lower --per_device_train_batch_size, here or in --hp_space.",
}


def unsearched(settings: dict[str, Any], space: Space) -> dict[str, Any]:
    """The settings that the search leaves as they are."""
    return {name: value for name, value in settings.items() if name not in space}


@dataclass
class Search:
    """The trials of one study.

    Args:
        job: the rows, the task and the model, with the command's own settings.
        args: the parsed arguments, which stay as they are.
        space: what each searched setting may be.
        tokens: the tokens of each split of `job`.
    """

    job: Job
    args: TrainingArguments
    space: Space
    tokens: dict[str, Tokens]

    def run(self) -> tuple[Job, TrainingArguments]:
        """Runs the trials that are left of `args.hp_search`. Returns job and arguments with the best settings.

        Raises:
            InputError: if another process runs the same search, the study is damaged, or no trial ended with a number.
            Interrupted: after a signal, as in `fit`.
        """
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with self._lock():
            check_database(self.folder / "study.db")
            study = optuna.create_study(
                storage=f"sqlite:///{self.folder / 'study.db'}",
                study_name=self.folder.name,
                direction="maximize" if self.job.best.greater_is_better else "minimize",
                load_if_exists=True,
            )
            self._repeat_cut_off(study)
            done = self._done(study)
            print(f"Search: {len(done)} of {self.args.hp_search} trials are done, in {self.folder}.", flush=True)
            given = self._given()
            if given and not study.trials:
                study.enqueue_trial(given)
            while len(done) < self.args.hp_search:
                study.sampler = optuna.samplers.TPESampler(seed=self.args.seed + len(done))
                self._try_one(study, len(done) + 1)
                done = self._done(study)
            if all(trial.value is None for trial in done):
                ends = sorted({_end(trial) for trial in done})
                raise InputError(
                    f"all {len(done)} trials have {' or '.join(ends)}. {' '.join(REMEDIES[end] for end in ends)}"
                )
            best = {name: self.space[name].kind(value) for name, value in study.best_params.items()}
            self._say(study, best)
        job, args = self._with(best)
        return job, changed(args, hp_search=len(done))  # for the card; earlier commands may have asked for more trials

    def table(self, evaluation: Evaluation) -> Writers:
        """The table of trials as a file for the finished folder: its name, and the function that writes it."""
        return {TABLE: partial(shutil.copyfile, self.folder / TABLE)}

    @cached_property
    def folder(self) -> Path:
        """The study's folder. Its name depends on the settings, the space, the weights to start from, and the training
        and validation rows."""
        job = _without_test(self.job)
        record = RunRecord.of(job.settings, job.splits)
        inputs = [sorted(record.settings.items()), record.rows, sorted(self.space.items()), job.backbone.identity()]
        return STUDIES / hashlib.blake2b(repr(inputs).encode(), digest_size=8).hexdigest()

    def _lock(self) -> AbstractContextManager:
        """Keeps other processes out: they would take the running trial for one that was cut off.

        The lock ends with the process, however that ends.
        """
        lock = FileLock(self.folder / "lock", timeout=0)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            return lock.acquire()
        except Timeout:
            raise InputError(f"another process runs this search, in {self.folder}. Wait for it to end.") from None
        except OSError as error:
            raise InputError(f"the study in {self.folder} cannot be written or read: {error}") from None

    def _given(self) -> dict[str, Any]:
        """The command's own settings, or nothing if one of them is not in the space."""
        holders = {name: self.job.model_args if name in OF_MODEL else self.args for name in self.space}
        given = {name: getattr(holder, name) for name, holder in holders.items()}
        all_in_space = all(given[name] in values for name, values in self.space.items())
        return given if all_in_space else {}

    def _done(self, study: Any) -> list[Any]:
        """The finished trials, with a number or without one. Removes their weights."""
        from optuna.trial import TrialState

        done = study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED))
        for trial in done:
            self._clear(self._folder_of(trial))
        return done

    def _repeat_cut_off(self, study: Any) -> None:
        """Queues the settings of each trial that was cut off, in its folder, and then marks that trial as failed.

        A kill between these two steps loses nothing: the next start finds the settings in the queue.

        optuna's `RetryHeartbeatStaleTrialCallback` is not used. It needs a thread that writes to the study during
        training, and a wait at the next start. It takes the two steps in the other order, and forgets a trial that
        Ctrl-C ended.
        """
        from optuna.trial import TrialState

        queued = {self._folder_of(trial) for trial in study.get_trials(states=(TrialState.WAITING,))}
        for trial in study.get_trials(states=(TrialState.RUNNING,)):
            folder = self._folder_of(trial)
            values = trial.system_attrs.get("fixed_params", {}) | trial.params
            all_drawn = len(values) == len(self.space)  # if not, the trial never ran
            if all_drawn and folder not in queued:
                study.enqueue_trial(values, user_attrs={"folder": folder.name})
            study.tell(trial.number, state=TrialState.FAIL)

    def _try_one(self, study: Any, number: int) -> None:
        """Runs the next trial and tells the study how it ended.

        A trial without a number is marked as pruned, which to the sampler is worse than every number. With
        `study.optimize(catch=...)` it would count as failed, and the sampler would not learn to avoid its settings.
        """
        from optuna.trial import TrialState

        began = time.monotonic()
        with saving(self.folder):
            trial = study.ask()
            values = {name: _suggest(trial, name, allowed) for name, allowed in self.space.items()}
        print(f"trial {number} of {self.args.hp_search}: {_words(values)}", end=" ", flush=True)
        value, end = self._value(self._folder_of(trial), values)
        has_number = math.isfinite(value)
        with saving(self.folder):
            trial.set_user_attr("seconds", round(time.monotonic() - began, 1))
            if not has_number:
                trial.set_user_attr("end", end)
            study.tell(trial, value if has_number else None, state=None if has_number else TrialState.PRUNED)
        if has_number:
            metric = self.job.best.metric
            print(f"-> validation {self.job.task.titles.get(metric, metric)} {value:.4f}", flush=True)
        else:
            print(f"-> {end}", flush=True)

    def _value(self, folder: Path, values: dict[str, Any]) -> tuple[float, str]:
        """Runs the trial, unless its run is finished. Returns its number, or NaN and how it ended."""
        job, args = self._with(values)
        job = _without_test(job)
        job = replace(job, model_args=replace(job.model_args, early_exit=False))
        args = changed(
            args,
            output_dir=str(folder),
            hp_search=None,
            do_predict=False,
            overwrite=False,
            baselines=False,
            show_errors=False,
            layer_report=False,
            find_label_issues=False,
            calibrate=None,
            tune_thresholds=False,
        )
        tokens = {name: self.tokens[name] for name in job.splits}
        reopen_if_damaged(folder, names=[METRICS])
        record = RunRecord.read(folder)
        if record is None or not record.finished or record.differs(job.settings):
            folder.mkdir(exist_ok=True)
            try:
                with saving(folder), open(f"{folder}.log", "a", encoding="utf-8") as log, redirect_stdout(log):
                    fit(job, args, choose_start(folder, job.settings), tokens)
            except Diverged:
                return math.nan, DIVERGED
            except torch.OutOfMemoryError:
                return math.nan, NO_MEMORY
            finally:
                gc.collect()  # model and trainer refer to each other, and would stay on the device
        results = json.loads((folder / METRICS).read_text(encoding="utf-8"))["results"]["validation"]
        value = results[job.best.metric]
        return (math.nan, DIVERGED) if value is None else (value, "")

    def _with(self, values: dict[str, Any]) -> tuple[Job, TrainingArguments]:
        """Job and arguments with these values, which count as settings of the run."""
        of_model = {name: value for name, value in values.items() if name in OF_MODEL}
        of_training = {name: value for name, value in values.items() if name not in OF_MODEL}
        job = replace(
            self.job,
            model_args=replace(self.job.model_args, **of_model),
            fields=self.job.fields | of_model,
            settings=self.job.settings | values,
        )
        return job, changed(self.args, **of_training)

    def _folder_of(self, trial: Any) -> Path:
        return self.folder / trial.user_attrs.get("folder", f"trial-{trial.number}")

    def _clear(self, folder: Path) -> None:
        """Removes everything but `KEPT` from a trial's folder."""
        if not folder.is_dir():
            return
        for path in folder.iterdir():
            if path.name in KEPT:
                continue
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    def _say(self, study: Any, best: dict[str, Any]) -> None:
        """Prints the best settings, and writes the table of the finished trials, the best first."""
        metric, titles = self.job.best.metric, self.job.task.titles
        rows = [self._row(trial) for trial in self._done(study)]
        lower_is_better = not self.job.best.greater_is_better
        table = pandas.DataFrame(rows).sort_values(metric, ascending=lower_is_better, kind="stable")
        with saving(self.folder / TABLE):
            write_table(table, self.folder / TABLE)
        print(
            f"\n{table.to_string(index=False, na_rep='-')}\n\n"
            f"Best of {len(rows)}: {_words(best)}, validation {titles.get(metric, metric)} {study.best_value:.4f}, "
            "somewhat too good, as the best of several always is. As flags, for a run without the search:\n"
            f"{' '.join(f'--{name} {value!r}' for name, value in best.items())}\n",
            flush=True,
        )

    def _row(self, trial: Any) -> dict[str, Any]:
        """A trial's row of the table."""
        row = {"trial": trial.number, self.job.best.metric: trial.value}
        row |= trial.params
        row |= {"seconds": trial.user_attrs.get("seconds"), "end": _end(trial)}
        return row


def check_database(path: Path) -> None:
    """Raises InputError if an SQLite file is damaged. It may be missing."""
    if not path.exists():
        return
    try:
        with closing(sqlite3.connect(path)) as database:
            ((found, *_), *_) = database.execute("PRAGMA integrity_check")
    except sqlite3.DatabaseError as error:
        found = error
    if str(found) != "ok":
        raise InputError(
            f"the study {path} is damaged: {found}. Remove it, and give the same command again: the search begins "
            "anew, but does not repeat runs that are finished."
        )


def check_goes_on(start: Start, args: TrainingArguments, settings: dict[str, Any]) -> None:
    """Raises InputError if the run that would go on has other settings: the best ones before more trials."""
    earlier = RunRecord.read(start.place(args.output_dir)) if isinstance(start, Resume) else None
    if earlier is None:
        return
    differs = earlier.differs(settings)
    if differs:
        raise InputError(
            f"--output_dir {args.output_dir} holds a run that was cut off, with what was the best before more trials "
            f"({differs}). Choose another folder, or remove that one."
        )


def _without_test(job: Job) -> Job:
    """The job without test rows and their settings: a trial must not depend on them."""
    about_test = ("test_", "do_predict", "max_predict_samples")
    settings = {name: value for name, value in job.settings.items() if not name.startswith(about_test)}
    splits = {name: split for name, split in job.splits.items() if name != "test"}
    return replace(job, splits=splits, settings=settings)


def _suggest(trial: Any, name: str, allowed: Values) -> float | int:
    """The trial's value of a setting."""
    if allowed.choices:
        return allowed.kind(trial.suggest_categorical(name, allowed.choices))
    suggest = trial.suggest_int if allowed.kind is int else trial.suggest_float
    return allowed.kind(suggest(name, allowed.low, allowed.high, log=allowed.log))


def _end(trial: Any) -> str:
    """How a trial without a number ended; empty if it has one."""
    return trial.user_attrs.get("end", DIVERGED) if trial.value is None else ""


def _words(values: dict[str, Any]) -> str:
    """The values in a line, rounded."""
    numbers = {name: f"{value:.0f}" if value == int(value) else f"{value:.3g}" for name, value in values.items()}
    return ", ".join(f"{name} {number}" for name, number in numbers.items())
