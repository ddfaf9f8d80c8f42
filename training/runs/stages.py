"""The first stage of a run: the model's linear path starts at a linear model of the frozen backbone's layers.

The backbone runs once over the training rows, or over `ROWS` of them, drawn by class. Its layer states lie in a
file meanwhile, whose name is a digest of all that it depends on: the folds of a cross-validation, the trials of a
search and a run that goes on share it. `forget_states` removes it when the command is done. The second stage trains
everything from there.

A run that is killed in the first stage repeats it, and gets the same weights.
"""

import time

import numpy as np
from datasets import Dataset
from transformers import DataCollatorWithPadding

from lstmpool.training.data.holdout import draw_by_class
from lstmpool.training.model.layer_cache import cached_states
from lstmpool.training.model.linear_start import ALL, ROWS, TOP, LinearStart, fit_start, summed_loss
from lstmpool.training.runs.state import State
from lstmpool.training.tasks.task import LossSettings, Task


MOST_BYTES = 5 * 10**8  # that their file may take


def start_head(state: State) -> None:
    """Puts a linear model of the training rows' layer states into the model, and says how good it is by itself.

    All processes do the same, with the same result. Only the first one runs the backbone; the others read its file.
    """
    began = time.monotonic()
    job, args = state.job, state.args
    labels = np.asarray(state.targets("train"))
    is_class = not (job.task.has_numbers or job.task.has_thresholds)
    strata = labels if is_class else None
    states, rows = _layer_states(state, strata)
    settings = LossSettings(args.class_weights, args.label_smoothing_factor, args.regression_loss)
    loss = job.task.loss(settings, job.splits["train"].labels) or summed_loss(job.task.problem_type)
    choices = (TOP,) if state.model.config.layer_pooling == "last" else (TOP, ALL)
    of_rows = None if strata is None else strata[rows]
    start = fit_start(states, labels[rows], len(job.task.names), loss, of_rows, args.seed, choices)
    start.put(state.model)
    state.read_all = len(rows) == len(labels)
    if state.read_all:
        state.top_states = states[:, -1].copy()
    state.start_scores = _scores(start, labels[rows], job.task)
    seconds = time.monotonic() - began
    print(describe_start(start, state.start_scores, job.task, len(rows), len(labels), seconds), flush=True)


def _layer_states(state: State, strata: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Layer states (M, L, S) of at most `ROWS` training rows, and the numbers of these rows, (M,)."""
    config = state.model.config
    shape = (-1, len(config.layers), config.state_size)
    most = max(1, min(ROWS, MOST_BYTES // (4 * shape[1] * shape[2])))
    total = len(state.inputs["train"])
    if state.caches_states:
        rows = draw_by_class(np.zeros(total, dtype=int) if strata is None else strata, most, state.args.seed)
        states = state.inputs["train"].select(rows)
    else:
        states, rows = _cached(state, strata, most)
    return np.asarray(states["layer_states"][:], dtype=np.float32).reshape(shape), rows


def _cached(state: State, strata: np.ndarray | None, most: int) -> tuple[Dataset, np.ndarray]:
    """The rows with their layer states, and their numbers. Folds draw from the same rows, so they share one file."""
    model, args, tokens = state.model, state.args, state.tokens["train"]
    total = len(tokens.dataset)  # with the rows of other folds
    own = np.arange(total) if tokens.chosen is None else np.asarray(tokens.chosen)
    of_class = np.zeros(total, dtype=int)
    if strata is not None:
        of_class[own] = strata + 1
    drawn = np.arange(total) if total <= most else draw_by_class(of_class, most, args.seed)
    with args.main_process_first():  # the others find the file
        states = cached_states(
            model.get_base_model() if state.job.model_args.peft else model,
            tokens.dataset.select(drawn),
            DataCollatorWithPadding(state.job.tokenizer),
            batch_size=args.per_device_eval_batch_size,
            folder=state.job.states_folder,
            title="train",
        )
    mine = np.flatnonzero(np.isin(drawn, own))
    return states.select(mine), np.searchsorted(own, drawn[mine])


def _scores(start: LinearStart, labels: np.ndarray, task: Task) -> dict[str, float]:
    """The metrics of the rows that were held out from the linear model in turn."""
    return task.score(task.decide(start.logits), labels[start.rows])


def describe_start(
    start: LinearStart, scores: dict[str, float], task: Task, rows: int, total: int, seconds: float
) -> str:
    """Says what the first stage did."""
    of = f"{rows:,} rows" if rows == total else f"{rows:,} of {total:,} rows"
    read = "the top layer's vectors" if start.layers == "top" else "all layers' vectors"
    how = f"{task.titles[task.headline]} {scores[task.headline]:.3f} on rows held out from it"
    return (
        f"Stage 1 of 2: a linear model of {read}, fitted to {of} in {seconds:.0f} s: {how}. Stage 2 goes on from it."
    )
