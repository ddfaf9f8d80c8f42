"""A search of settings before the training proper: each trial is a run of its own, judged on the validation rows.

The study is an SQLite file, which a kill at any moment leaves whole, and the runs of the trials lie beside it, in a
folder under `STUDIES` whose name is a digest of all that the trials depend on; what a user asks for again is found
again. A trial that was cut off is marked as failed, and its settings are tried again, in its folder, where its run
goes on from its checkpoint. The next settings follow from the seed and the trials that are done, so a search that was
cut off tries the same as one that was not. Test rows are never looked at.

Reference: TPE, the tree-structured Parzen estimator (Bergstra et al., Algorithms for Hyper-Parameter Optimization,
2011), as in optuna; the first ten trials are random, but for the very first, which has the settings of the command.
"""

import gc
import hashlib
import json
import math
import shutil
import time
from contextlib import AbstractContextManager, redirect_stdout
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pandas
import torch
from filelock import FileLock, Timeout
from huggingface_hub.constants import HF_HOME

from lstmpool.training.errors import Diverged, InputError
from lstmpool.training.evaluation.results import Evaluation
from lstmpool.training.flags.training_arguments import TrainingArguments
from lstmpool.training.loop.trainer_arguments import changed
from lstmpool.training.output.artifacts import Writers
from lstmpool.training.output.run_record import RunRecord
from lstmpool.training.output.start import Resume, Start, choose_start
from lstmpool.training.output.tables import write_table
from lstmpool.training.runs.fit import fit
from lstmpool.training.runs.job import Job, Tokens
from lstmpool.training.runs.search_space import OF_MODEL, Space, Values


STUDIES = Path(HF_HOME) / "lstmpool_studies"  # not in the layer cache, which may be deleted
KEPT = {"metrics.json", "run.json", "runs"}  # of a trial; the rest is as large as the model
TABLE = "hp_search.csv"
DIVERGED, NO_MEMORY = "diverged", "run out of memory"  # how a trial may end without a number
REMEDIES = {
    DIVERGED: "Lower the rates: --hp_space "
    '\'{"learning_rate": [1e-6, 2e-5, "log"], "head_learning_rate": [1e-5, 1e-3, "log"]}\'',
    NO_MEMORY: "Lower --per_device_train_batch_size, here or in --hp_space.",
}


def unsearched(settings: dict[str, Any], space: Space) -> dict[str, Any]:
    """The settings that are known before the search."""
    return {name: value for name, value in settings.items() if name not in space}


@dataclass(frozen=True)
class Search:
    """The trials of one study."""

    job: Job
    args: TrainingArguments
    space: Space
    tokens: dict[str, Tokens]

    def run(self) -> tuple[Job, TrainingArguments]:
        """Runs the trials that are left of `args.hp_search`; returns what the training proper is to do, with the best.

        Raises:
            InputError: if another process runs the same search, no trial came to a number, or the run in the output
                folder that would go on was begun with other settings.
            Interrupted: after a signal, as in `fit`.
        """
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with self._lock():
            study = optuna.create_study(
                storage=f"sqlite:///{self.folder / 'study.db'}",
                study_name=self.folder.name,
                direction="maximize" if self.job.best.greater_is_better else "minimize",
                load_if_exists=True,
            )
            self._repeat_cut_off(study)
            done = self._done(study)
            print(f"Search: {len(done)} of {self.args.hp_search} trials are done, in {self.folder}.", flush=True)
            if not study.trials and (start := self._given()):
                study.enqueue_trial(start)
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
        return job, changed(args, hp_search=len(done))  # for the card; there may have been more than asked for now

    def table(self, evaluation: Evaluation) -> Writers:
        """What writes the table of trials, by its file's name."""
        return {TABLE: partial(shutil.copyfile, self.folder / TABLE)}

    @cached_property
    def folder(self) -> Path:
        """Of the study: the same for the same settings, space, weights to start from, and training and validation
        rows."""
        job = _without_test(self.job)
        record = RunRecord.of(job.settings, job.splits)
        said = [sorted(record.settings.items()), record.rows, sorted(self.space.items()), job.backbone.identity()]
        return STUDIES / hashlib.blake2b(repr(said).encode(), digest_size=8).hexdigest()

    def _lock(self) -> AbstractContextManager:
        """Held, since of two processes one would take the other's running trial for one that was cut off. It ends with
        the process, however that ends."""
        lock = FileLock(self.folder / "lock", timeout=0)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            return lock.acquire()
        except Timeout:
            raise InputError(f"another process runs this search, in {self.folder}. Wait for it to end.") from None
        except OSError as error:
            raise InputError(f"the study in {self.folder} cannot be written or read: {error}") from None

    def _given(self) -> dict[str, Any]:
        """The settings of the command itself, if they are in the space."""
        holders = {name: self.job.model_args if name in OF_MODEL else self.args for name in self.space}
        given = {name: getattr(holder, name) for name, holder in holders.items()}
        return given if all(given[name] in values for name, values in self.space.items()) else {}

    def _done(self, study: Any) -> list[Any]:
        """The trials that count: those with a number and those that ended without one. Their weights are removed."""
        from optuna.trial import TrialState

        done = study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED))
        for trial in done:
            self._clear(self._folder_of(trial))
        return done

    def _repeat_cut_off(self, study: Any) -> None:
        """Queues the settings of each trial that was cut off, in its folder, and then marks that trial as failed.

        A kill between these two steps loses nothing: the next start finds the settings in the queue.

        optuna's `RetryHeartbeatStaleTrialCallback` would need a thread that writes to the study during training and a
        wait at the next start; it takes the two steps in the other order, and forgets a trial that Ctrl-C ended.
        """
        from optuna.trial import TrialState

        queued = {self._folder_of(trial) for trial in study.get_trials(states=(TrialState.WAITING,))}
        for trial in study.get_trials(states=(TrialState.RUNNING,)):
            folder = self._folder_of(trial)
            values = trial.system_attrs.get("fixed_params", {}) | trial.params
            all_drawn = len(values) == len(self.space)  # if not, nothing was run with them
            if all_drawn and folder not in queued:
                study.enqueue_trial(values, user_attrs={"folder": folder.name})
            study.tell(trial.number, state=TrialState.FAIL)

    def _try_one(self, study: Any, number: int) -> None:
        """Runs the next trial and tells the study how it ended.

        A trial without a number is marked as pruned, which the sampler takes for worse than every number. With
        `study.optimize(catch=...)` it would count as failed, and the sampler would not learn to avoid its settings.
        """
        from optuna.trial import TrialState

        began = time.monotonic()
        trial = study.ask()
        values = {name: _suggest(trial, name, of) for name, of in self.space.items()}
        print(f"trial {number} of {self.args.hp_search}: {_words(values)}", end=" ", flush=True)
        value, end = self._value(self._folder_of(trial), values)
        trial.set_user_attr("seconds", round(time.monotonic() - began, 1))
        if math.isfinite(value):
            study.tell(trial, value)
            metric = self.job.best.metric
            print(f"-> validation {self.job.task.titles.get(metric, metric)} {value:.4f}", flush=True)
        else:
            trial.set_user_attr("end", end)
            study.tell(trial, state=TrialState.PRUNED)
            print(f"-> {end}", flush=True)

    def _value(self, folder: Path, values: dict[str, Any]) -> tuple[float, str]:
        """What the run with these values comes to, which is read from its folder if it was finished; or NaN, and how
        it has ended."""
        job, args = self._with(values)
        job = _without_test(job)
        args = changed(
            args,
            output_dir=str(folder),
            hp_search=None,
            do_predict=False,
            overwrite=False,
            baselines=False,
            calibrate=None,
            tune_thresholds=False,
        )
        tokens = {name: self.tokens[name] for name in job.splits}
        if not (record := RunRecord.read(folder)) or not record.finished or record.differs(job.settings):
            folder.mkdir(exist_ok=True)
            try:
                with open(f"{folder}.log", "a") as log, redirect_stdout(log):
                    fit(job, args, choose_start(folder, job.settings), tokens)
            except Diverged:
                return math.nan, DIVERGED
            except torch.OutOfMemoryError:
                return math.nan, NO_MEMORY
            finally:
                gc.collect()  # the model and its trainer refer to each other, and would stay on the device
        results = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["results"]["validation"]
        value = results[job.best.metric]
        return (math.nan, DIVERGED) if value is None else (value, "")

    def _with(self, values: dict[str, Any]) -> tuple[Job, TrainingArguments]:
        """The run with these values, for which they count as its settings."""
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
        for path in folder.iterdir() if folder.is_dir() else ():
            if path.name not in KEPT:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _say(self, study: Any, best: dict[str, Any]) -> None:
        """Prints the best, and keeps the table of all trials that count, the best first."""
        metric, titles = self.job.best.metric, self.job.task.titles
        rows = [
            {"trial": t.number, metric: t.value, **t.params, "seconds": t.user_attrs.get("seconds"), "end": _end(t)}
            for t in self._done(study)
        ]
        table = pandas.DataFrame(rows).sort_values(
            metric, ascending=not self.job.best.greater_is_better, kind="stable"
        )
        write_table(table, self.folder / TABLE)
        print(
            f"\n{table.to_string(index=False, na_rep='-')}\n\n"
            f"Best of {len(rows)}: {_words(best)}, validation {titles.get(metric, metric)} {study.best_value:.4f}, "
            "somewhat too good, as the best of several always is. As flags, for a run without the search:\n"
            f"{' '.join(f'--{name} {value!r}' for name, value in best.items())}\n",
            flush=True,
        )


def check_goes_on(start: Start, args: TrainingArguments, settings: dict[str, Any]) -> None:
    """Raises InputError if the run that would go on was begun with what was the best before more trials."""
    earlier = RunRecord.read(Path(args.output_dir)) if isinstance(start, Resume) else None
    if earlier is not None and (differs := earlier.differs(settings)):
        raise InputError(
            f"--output_dir {args.output_dir} holds a run that was cut off, with what was the best before more trials "
            f"({differs}). Choose another folder, or remove that one."
        )


def _without_test(job: Job) -> Job:
    """Without the test rows and all that is set about them, on which a trial must not depend."""
    of_test = ("test_", "do_predict", "max_predict_samples")
    settings = {name: value for name, value in job.settings.items() if not name.startswith(of_test)}
    return replace(job, splits={name: of for name, of in job.splits.items() if name != "test"}, settings=settings)


def _suggest(trial: Any, name: str, of: Values) -> float | int:
    if of.choices:
        return of.kind(trial.suggest_categorical(name, of.choices))
    suggest = trial.suggest_int if of.kind is int else trial.suggest_float
    return of.kind(suggest(name, of.low, of.high, log=of.log))


def _end(trial: Any) -> str:
    """How it has ended, if without a number."""
    return trial.user_attrs.get("end", DIVERGED) if trial.value is None else ""


def _words(values: dict[str, Any]) -> str:
    numbers = {name: f"{value:.0f}" if value == int(value) else f"{value:.3g}" for name, value in values.items()}
    return ", ".join(f"{name} {number}" for name, number in numbers.items())
