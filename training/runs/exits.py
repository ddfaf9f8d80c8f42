"""The last step of a run with --early_exit: exits below the highest layer, fitted to the finished model.

`fit_exits` goes from heads to their temperatures, to one threshold for all, and to what that gives. The heads read the
layer states of training rows, at most as many as stage 1 does. Where there is room they read validation rows, too, to
which the backbone has not been fitted. Temperatures and threshold follow from validation rows, each of which is judged
by heads that were fitted without it. The model itself stays as it is, bit for bit. A run that is killed here repeats
the step, with the same result.

N rows, E exits, L layers read, S width of a layer's vector, C outputs.
"""

import time
from collections.abc import Iterator

import numpy as np
from datasets import Dataset
from transformers import DataCollatorWithPadding, PreTrainedModel

from lstmpool.exits_lstmpool import LayerExits
from lstmpool.training.errors import InputError
from lstmpool.training.evaluation.calibration import fit_temperature, fold_temperature, fold_thresholds
from lstmpool.training.evaluation.exit_results import (
    ExitResults,
    ExitSettings,
    Tried,
    are_right,
    curve_of,
    headline_of,
    scores_alone,
)
from lstmpool.training.evaluation.exit_rules import choose_bounded, choose_point, margin, mixed, places_of
from lstmpool.training.evaluation.learned_head import Arrays
from lstmpool.training.evaluation.results import Evaluation
from lstmpool.training.flags.arguments import BOUNDED
from lstmpool.training.flags.training_arguments import TrainingArguments
from lstmpool.training.loop.time_gain import time_gains
from lstmpool.training.model.exit_training import AT_A_TIME, Rows, confidences_of, fit_heads, logits_of_exits
from lstmpool.training.model.linear_start import ROWS
from lstmpool.training.runs.stages import raise_in_all, read_states, rows_in_memory, states_in, states_of_rows
from lstmpool.training.runs.state import State


def check_backbone(model: PreTrainedModel) -> None:
    """Raises InputError if texts cannot leave the backbone of `model` early. Call it before training."""
    if not model.base_model.capture.streams:
        raise InputError(
            "--early_exit needs a backbone whose layers lie in one list of their own, and found none in this one: no "
            "text could leave between them. Leave it out."
        )


def drop_exits(model: PreTrainedModel, args: TrainingArguments, wanted: bool) -> None:
    """Takes away exits that the model of --init_from has and that would not fit it in the end, and says so.

    Whatever changes the model or its head makes them stale. A model that is only measured answers with them.
    `wanted`: whether --early_exit will fit new ones.
    """
    config = model.config
    if not config.early_exit:
        return
    if wanted:
        print("Exits: those of the model make way for new ones.", flush=True)
        model.remove_exits()
    elif args.do_train or args.calibrate or args.tune_thresholds:
        print("Exits: those of the model are removed, since it changes; --early_exit fits new ones.", flush=True)
        model.remove_exits()
    elif config.exit_threshold is not None and not _may_leave(args):
        config.exit_threshold = None  # or the numbers of the whole model would be called those with exits
        print(
            "Exits: those of the model are off here, where several processes run it or it is compiled: every text is "
            "read to the end. To measure it with its exits, use one process.",
            flush=True,
        )
    elif config.exit_threshold is not None:
        print(f"Exits: texts leave early, with a confidence of {config.exit_threshold:.6g} or more.", flush=True)


def _may_leave(args: TrainingArguments) -> bool:
    """Whether texts may leave a model that this run measures, see `_why_none_leaves` of the model."""
    return args.world_size == 1 and not args.torch_compile


def fit_exits(state: State) -> ExitResults | None:
    """Gives the model exits, measures them, and switches them on where a threshold was found.

    All processes must call this. The first one fits the exits, and writes the model later; the others get None.

    Raises:
        InputError: if the layer states cannot be read or written; see `read_states`.
    """
    began = time.monotonic()
    train, states = _training_rows(state), _states(state)
    if not state.is_first_process:
        return None
    task, evaluation, settings = state.job.task, state.evaluation, _settings(state)
    exits = state.model.add_exits()
    to_both = _reads_both(state, settings, len(train.labels))
    validation = _validation_rows(state, states["validation"])
    held_out = fit_heads(exits, train, validation, task.problem_type, to_both)
    of_exits = {"validation": held_out} if to_both else {}  # (N, E, C) each
    for name in evaluation.logits:
        if name not in of_exits:
            of_exits[name] = logits_of_exits(exits, _blocks(state, states[name]))
    thresholds = _folded_thresholds(state)
    temperatures = _fold(state, exits, of_exits, thresholds)
    seconds = time.monotonic() - began
    confidences = {name: confidences_of(logits, task.problem_type) for name, logits in of_exits.items()}  # (N, E)
    threshold = _threshold(state, settings, confidences["validation"], of_exits["validation"])
    state.model.config.exit_threshold = threshold
    places = {name: places_of(of_split, threshold) for name, of_split in confidences.items()}
    answers = {name: mixed(of_exits[name], logits, places[name]) for name, logits in evaluation.logits.items()}
    return ExitResults(
        settings,
        layers=list(state.model.config.layers),
        rows=len(train.labels),
        fitted_to_validation=to_both,
        seconds=seconds,
        temperatures=temperatures,
        folded_thresholds=thresholds.tolist(),
        threshold=threshold,
        places=places,
        alone=_alone(state, of_exits),
        curve=_curve(state, of_exits, confidences),
        answers=Evaluation.of(task, answers, evaluation.targets, evaluation.learned),
        validation_rows=len(evaluation.targets["validation"]),
        gains=_gains(state),
    )


def _settings(state: State) -> ExitSettings:
    """What was asked for. A threshold that is named leaves nothing to a rule."""
    named = state.job.model_args.exit_threshold is not None
    return ExitSettings(None if named else state.args.early_exit_rule, state.args.early_exit_max_drop)


# ----------------------------------------------------------------------------------------- the rows that they read
def _training_rows(state: State) -> Rows:
    """The training rows, or as many of them as stage 1 would read."""
    states, rows = read_states(state)
    return Rows(states, np.asarray(state.targets("train"))[rows])


def _reads_both(state: State, settings: ExitSettings, rows: int) -> bool:
    """Whether the exits are fitted to validation rows as well, beside so many training `rows`.

    The promise of the rule `bounded` is for exits that have not seen the rows that it looks at.
    """
    most = rows_in_memory(state.model, ROWS)
    return settings.rule != BOUNDED and rows + len(state.evaluation.targets["validation"]) <= most


def _states(state: State) -> dict[str, Dataset]:
    """The rows of each split that is measured, with their layer states. All processes must call this.

    Raises InputError in all of them if one cannot read or write the states' files.
    """
    found, wrong = {}, ""
    for name in sorted(state.evaluation.logits):
        tokens = state.tokens[name].dataset
        try:
            found[name] = states_of_rows(state, state.model, tokens, np.arange(len(tokens)), name)
        except InputError as error:
            wrong = wrong or str(error)
    raise_in_all(wrong)
    return found


def _validation_rows(state: State, states: Dataset) -> Rows:
    """The validation rows with their `states`, or as many of them, evenly spread, as may be in memory."""
    labels = state.evaluation.targets["validation"]
    most = rows_in_memory(state.model, ROWS)
    chosen = np.arange(len(labels))[:: -(-len(labels) // most)]
    return Rows(states_in(states.select(chosen), state.model), labels[chosen])


def _blocks(state: State, found: Dataset) -> Iterator[np.ndarray]:
    """The layer states of some rows at a time, (M, L, S)."""
    for start in range(0, len(found), AT_A_TIME):
        yield states_in(found.select(range(start, min(start + AT_A_TIME, len(found)))), state.model)


# ------------------------------------------------------------------------------------------ what validation teaches
def _folded_thresholds(state: State) -> np.ndarray:
    """What has been taken from the head's logits, (C,), by this run and by those before."""
    evaluation = state.evaluation
    return state.thresholds.left(state.job.task, evaluation.logits["validation"], evaluation.targets["validation"])


def _fold(state: State, exits: LayerExits, of_exits: Arrays, thresholds: np.ndarray) -> list[float]:
    """Folds a temperature into each exit, and the `thresholds` (C,) that the head has. Returns the temperatures.

    `of_exits` (N, E, C), by split, become what the exits give then.
    """
    labels = state.evaluation.targets["validation"]
    temperatures = []
    for place, head in enumerate(exits.heads):
        temperature = fit_temperature(state.job.task, of_exits["validation"][:, place].astype(float), labels)
        fold_temperature(head, temperature)
        fold_thresholds(head, thresholds)
        for logits in of_exits.values():
            logits[:, place] /= temperature
            logits[:, place] -= thresholds.astype(logits.dtype)
        temperatures.append(temperature)
    return temperatures


def _threshold(state: State, settings: ExitSettings, confidences: np.ndarray, of_exits: np.ndarray) -> float | None:
    """The threshold that is named, or chosen on validation rows; None if no row would leave early by it.

    `confidences` (N, E) and logits `of_exits` (N, E, C) are those of validation rows.
    """
    if settings.rule is None:
        return state.job.model_args.exit_threshold
    choose = _bounded if settings.rule == BOUNDED else _point
    found = choose(state, settings.drop, confidences, of_exits)
    leaves = found is not None and bool((confidences >= found).any())
    return found if leaves else None


def _point(state: State, drop: float, confidences: np.ndarray, of_exits: np.ndarray) -> float | None:
    """What the rule `point` chooses. Of classes and labels, the headline metric is the better the higher it is."""
    task = state.job.task
    logits, labels = state.evaluation.logits["validation"], state.evaluation.targets["validation"]
    right = are_right(task, logits, labels)

    def score(places: np.ndarray) -> float:
        answers = mixed(of_exits, logits, places)
        return headline_of(task, answers, labels) - margin(right, are_right(task, answers, labels))

    return choose_point(confidences, score, least=headline_of(task, logits, labels) - drop)


def _bounded(state: State, drop: float, confidences: np.ndarray, of_exits: np.ndarray) -> float | None:
    """What the rule `bounded` chooses."""
    task = state.job.task
    logits, labels = state.evaluation.logits["validation"], state.evaluation.targets["validation"]
    right = [are_right(task, of_exits[:, place], labels) for place in range(of_exits.shape[1])]  # (N,) each
    lost = are_right(task, logits, labels)[:, None] & ~np.column_stack(right)  # (N, E)
    return choose_bounded(confidences, lost, drop)


# ----------------------------------------------------------------------------------------------- what the exits give
def _alone(state: State, of_exits: Arrays) -> dict[str, list[float]]:
    """By labelled split, the headline metric of each exit by itself, then of the model."""
    evaluation = state.evaluation
    return {
        name: scores_alone(state.job.task, of_exits[name], evaluation.logits[name], labels)
        for name, labels in evaluation.targets.items()
    }


def _curve(state: State, of_exits: Arrays, confidences: Arrays) -> dict[str, list[Tried]]:
    """By labelled split, what other thresholds would give."""
    evaluation, layers = state.evaluation, list(state.model.config.layers)
    return {
        name: curve_of(state.job.task, confidences[name], of_exits[name], evaluation.logits[name], labels, layers)
        for name, labels in evaluation.targets.items()
    }


def _gains(state: State) -> dict[int, float]:
    """How many times as fast the exits make test rows, or validation rows; empty where they are not taken."""
    if not state.answers_early or not _may_leave(state.args):
        return {}
    split = "test" if "test" in state.tokens else "validation"
    collator = DataCollatorWithPadding(state.job.tokenizer)
    return time_gains(state.model, state.tokens[split].dataset, collator)
