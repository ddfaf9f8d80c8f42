"""The first stage of a run: the model's linear path starts at a linear model of the frozen backbone's layers.

The backbone runs once over the training rows, or over `ROWS` of them, drawn by class. Its layer states lie in a
file meanwhile, whose name is a digest of all that it depends on: the folds of a cross-validation, the trials of a
search and a run that goes on share it. `forget_states` removes it when the command is done. The second stage trains
everything from there; the start counts as its checkpoint 0, which a run that goes on does not repeat.

A run that is killed in the first stage repeats it, and gets the same weights.

`standardize_layers` takes mean and scale from the same states. The model keeps them in its buffers, so a run that goes
on has them from its checkpoint.
"""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from datasets import Dataset
from transformers import DataCollatorWithPadding, PreTrainedModel

from lstmpool.training.data.holdout import draw_by_class
from lstmpool.training.data.order import Tokens
from lstmpool.training.errors import InputError, as_line
from lstmpool.training.flags.arguments import ModelArguments
from lstmpool.training.flags.defaults import Limits
from lstmpool.training.flags.training_arguments import TrainingArguments
from lstmpool.training.loop.trainer import StartCounts
from lstmpool.training.loop.trainer_arguments import changed
from lstmpool.training.model.layer_cache import cached_states
from lstmpool.training.model.linear_start import ALL, ROWS, TOP, LinearStart, Loss, fit_start, summed_loss
from lstmpool.training.model.trainable_parts import trained_pooler
from lstmpool.training.output.found import NEW_RUN, is_last
from lstmpool.training.output.run_record import RunRecord
from lstmpool.training.runs.state import State
from lstmpool.training.tasks.task import LossSettings, Task


LEAST_ROWS = 2  # of which one can be held out
# Of a linear model of compared texts, times its features. It still errs a little, which stage 2 learns from: at a loss
# of zero, steps would follow nothing but rounding.
STRENGTH_OF_COMPARED = 0.25
MOST_BYTES = 5 * 10**8  # that their file may take
LARGEST_STATE = 1e15  # the squares of many such numbers still have a sum in float32


def start_head(state: State) -> None:
    """Puts a linear model of the training rows' layer states into the model, and says how good it is by itself.

    It then counts as checkpoint 0 of the training. All processes do the same, with the same result. Only the first one
    runs the backbone; the others read its file. If that cannot be written, or there is a single row, the run has one
    stage, and says so.
    """
    began = time.monotonic()
    job = state.job
    targets = np.asarray(state.targets("train"))
    total = len(targets)
    if total < LEAST_ROWS:
        print(f"One stage: a linear model needs {LEAST_ROWS} rows or more, found {total}.", flush=True)
        return
    try:
        states, rows = read_states(state)
    except InputError as error:
        print(f"One stage: {as_line(str(error))}", flush=True)
        return
    choices, strengths = _choices(state, states)
    strata = _strata(state)
    of_rows = None if strata is None else strata[rows]
    start = fit_start(
        states, targets[rows], len(job.task.names), loss_of(state), of_rows, state.args.seed, choices, strengths
    )
    start.put(state.model)
    read_all = len(rows) == total
    scores = {}
    if not state.contrastive_steps:  # a backbone that has seen all labels would flatter scores and baseline
        scores = _scores(state, start, rows)
        state.top_states = states[:, -1].copy() if read_all else None
    state.trainer.add_callback(StartCounts(state.trainer, scores, may_be_kept=read_all))
    print(describe_start(start, scores, job.task, len(rows), total, time.monotonic() - began), flush=True)


def _choices(state: State, states: np.ndarray) -> tuple[tuple[str, ...], np.ndarray | None]:
    """Which layers the linear model may read, and how strongly it may be regularised; None: as it is by default.

    After texts were compared there is one choice of each: the backbone has seen the labels of all rows, so those that
    are held out cannot choose. `states`: (M, L, S).
    """
    choices = (TOP,) if state.model.config.layer_pooling == "last" else (TOP, ALL)
    if not state.contrastive_steps:
        return choices, None
    layers = choices[-1]
    width = states[0].size if layers == ALL else states.shape[2]
    return (layers,), np.array([STRENGTH_OF_COMPARED / width])


def loss_of(state: State) -> Loss:
    """The loss of the run, summed over rows."""
    job, args = state.job, state.args
    settings = LossSettings(args.class_weights, args.label_smoothing_factor, args.regression_loss)
    return job.task.loss(settings, job.splits["train"].labels) or summed_loss(job.task.problem_type)


def _strata(state: State) -> np.ndarray | None:
    """The class of each training row, (N,); None if it has not one class."""
    task = state.job.task
    return None if task.has_numbers or task.has_thresholds else np.asarray(state.targets("train"))


def read_states(state: State) -> tuple[np.ndarray, np.ndarray]:
    """Layer states (M, L, S) of at most `ROWS` training rows, and the numbers of these rows, (M,), in order.

    They are those of the backbone as it is now.

    Raises:
        InputError: in all processes, if one of them cannot read or write the states' file, or they are no numbers.
    """
    strata = _strata(state)
    most = rows_in_memory(state.model, ROWS)
    wrong = ""
    try:
        if state.caches_states:
            total = len(state.inputs["train"])
            rows = draw_by_class(np.zeros(total, dtype=int) if strata is None else strata, most, state.args.seed)
            found = state.inputs["train"].select(rows)
        else:
            has_adapters = hasattr(state.model, "get_base_model")  # or they are merged by now
            found, rows = draw_states(state, state.model.get_base_model() if has_adapters else state.model, most)
        states = states_in(found, state.model)
    except InputError as error:
        wrong = str(error)
    raise_in_all(wrong)
    return states, rows


def raise_in_all(wrong: str) -> None:
    """Raises InputError in all processes if something is `wrong` in one of them. All must call this, or none."""
    wrong = next((each for each in gather_object([wrong]) if each), "")
    if wrong:
        raise InputError(wrong)


def states_in(found: Dataset, model: PreTrainedModel) -> np.ndarray:
    """The layer states (N, L, S) that `found` holds. Raises InputError if one of them can be no input of a head."""
    config = model.config
    states = np.asarray(found["layer_states"][:], dtype=np.float32).reshape(-1, len(config.layers), config.state_size)
    fit = np.isfinite(states) & (np.abs(states) < LARGEST_STATE)
    rows = int((~fit.all((1, 2))).sum())
    if rows:
        raise InputError(
            f"expected layer states that are numbers below {LARGEST_STATE:.0e}, found NaN, infinity or larger ones "
            f"in {rows:,} of {len(states):,} rows. The backbone's weights are damaged, or have diverged. Name another."
        )
    return states


def draw_states(state: State, model: PreTrainedModel, most: int) -> tuple[Dataset, np.ndarray]:
    """At most `most` training rows with their layer states, drawn by class, and their numbers, in order.

    All folds draw from the same rows, and share one file. Raises InputError as `cached_states` does.
    """
    tokens = state.tokens["train"]
    total = len(tokens.dataset)  # with the rows of the other folds
    own = _own_rows(tokens)
    drawn = draw_by_class(_classes(state, total), most, state.args.seed)
    states = states_of_rows(state, model, tokens.dataset, drawn, "train")
    mine = np.flatnonzero(np.isin(drawn, own))
    return states.select(mine), np.searchsorted(own, drawn[mine])


def states_of_rows(state: State, model: PreTrainedModel, tokens: Dataset, rows: np.ndarray, title: str) -> Dataset:
    """The `rows` of `tokens` with the layer states that `model` gives. Raises InputError as `cached_states` does."""
    args = state.args
    place: dict[str, Any] = {"folder": state.job.states_folder}
    if state.caches_states and len(rows) == len(tokens):  # the run itself will read such a file, which it keeps
        place = {"dtype": args.layer_cache}
    with args.main_process_first():  # the others find the file
        return cached_states(
            model,
            tokens.select(rows),
            DataCollatorWithPadding(state.job.tokenizer),
            batch_size=args.per_device_eval_batch_size,
            title=title,
            quiet=args.disable_tqdm,
            **place,
        ).rows


def rows_in_memory(model: PreTrainedModel, wanted: int) -> int:
    """How many of the `wanted` rows may be read: their layer states should take `MOST_BYTES` at most."""
    return max(1, min(wanted, MOST_BYTES // (4 * len(model.config.layers) * model.config.state_size)))


def _classes(state: State, total: int) -> np.ndarray:
    """A class for each of the `total` rows that lie with the training rows, those of all folds; zeros for other tasks.

    It is the same in every fold.
    """
    classes = np.zeros(total, dtype=int)
    task, tokens = state.job.task, state.tokens
    if task.has_numbers or task.has_thresholds:
        return classes
    for name in ("train", "validation"):  # which, of a fold, are parts of one dataset
        if name in tokens and tokens[name].dataset is tokens["train"].dataset:
            classes[_own_rows(tokens[name])] = state.job.splits[name].labels
    return classes


def _own_rows(tokens: Tokens) -> np.ndarray:
    return np.arange(len(tokens.dataset)) if tokens.chosen is None else np.asarray(tokens.chosen)


def _scores(state: State, start: LinearStart, rows: np.ndarray) -> dict[str, float]:
    """The metrics of those of `rows` that were held out from the linear model in turn, in the targets' own units."""
    task = state.job.task
    logits = start.logits if state.scale is None else start.logits * state.scale.scale
    labels = np.asarray(state.job.splits["train"].labels)[rows]
    return task.score(task.decide(logits), labels[start.rows])


def as_begun(
    model_args: ModelArguments, args: TrainingArguments, settings: dict[str, Any]
) -> tuple[ModelArguments, TrainingArguments, dict[str, Any]]:
    """The arguments and settings of a run that goes on: if an older release began it, the defaults are as they were.

    Such a run has one stage. Its record does not name what that release did not know.
    """
    named = args.resume_from_checkpoint
    folders = [Path(args.output_dir), Path(args.output_dir, NEW_RUN)]
    if named and not is_last(named):
        folders = [Path(named).parent]
    for folder in folders:
        record = RunRecord.read(folder)
        if record is None or record.finished or "stages" in record.settings or args.seeds:  # which it did not have
            continue
        known = {name: value for name, value in settings.items() if name in record.settings}
        changes: dict[str, Any] = {"limits": Limits()}
        if known.get("bf16") and not record.settings["bf16"]:  # which newer releases choose by themselves
            known["bf16"] = False
            changes |= {"bf16": False, "mixed_precision": "no"}
        if named or not record.differs(known):
            return replace(model_args, original_defaults=True), changed(args, **changes), known
    return model_args, args, settings


def describe_start(
    start: LinearStart, scores: dict[str, float], task: Task, rows: int, total: int, seconds: float
) -> str:
    """Says what the first stage did."""
    of = f"{rows:,} rows" if rows == total else f"{rows:,} of {total:,} rows"
    read = "the top layer's vectors" if start.layers == TOP else "all layers' vectors"
    how = f": {task.titles[task.headline]} {scores[task.headline]:.3f} on rows held out from it" if scores else ""
    return f"Stage 1 of 2: a linear model of {read}, fitted to {of} in {seconds:.0f} s{how}. Stage 2 goes on from it."


def standardize_layers(state: State) -> None:
    """Fits the model's `LayerStandardization` to the training rows, or to those that stage 1 reads, and says so.

    It is fitted to the backbone as it is then. All processes compute the same.

    Raises:
        InputError: if the layer states cannot be read, or are no finite numbers; see `read_states`.
    """
    standardization = trained_pooler(state.model).standardization
    try:
        states, rows = read_states(state)
    except InputError as error:
        raise InputError(
            f"--standardize_layers needs layer states: {error} Or train without: --standardize_layers False."
        ) from None
    standardization.fit(torch.from_numpy(states))
    total = len(state.inputs["train"])
    of = f"{total:,} rows" if len(rows) == total else f"{len(rows):,} of {total:,} rows"
    print(f"Layers standardised: mean and scale of each feature from the layer states of {of}.", flush=True)
