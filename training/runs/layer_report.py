"""With --layer_report, says which layers of the finished model matter; see `evaluation/layer_report`.

It reads the layer states of at most as many training rows as stage 1 does, and of some validation rows. The model
stays as it is, bit for bit.
"""

import time
from dataclasses import replace

import numpy as np
from transformers import PreTrainedModel

from lstmpool.training.errors import InputError
from lstmpool.training.evaluation.layer_report import MOST_JUDGED, LayerReport, report_on
from lstmpool.training.evaluation.linear import drawn
from lstmpool.training.model.exit_training import Rows
from lstmpool.training.runs.stages import (
    LEAST_ROWS,
    raise_in_all,
    read_states,
    rows_in_memory,
    states_in,
    states_of_rows,
)
from lstmpool.training.runs.state import State


def report_layers(state: State) -> LayerReport | None:
    """The report, in the process that tells of it. None, with a line that says why, where there is nothing to tell.

    Raises:
        InputError: in all processes, if the layer states cannot be read or written; see `read_states`.
    """
    began = time.monotonic()
    layers, total = list(state.model.config.layers), len(state.job.splits["train"])
    if len(layers) < 2:  # --layer_pooling auto may have chosen one
        print("No layer report: the model reads a single layer.", flush=True)
        return None
    if total < LEAST_ROWS:
        print(f"No layer report: it needs {LEAST_ROWS} training rows or more, found {total}.", flush=True)
        return None
    states, rows = read_states(state)
    train = Rows(states, np.asarray(state.job.splits["train"].labels)[rows])  # in their own units
    validation, chosen = _validation_rows(state)
    if not state.is_first_process:
        return None
    task = state.job.task
    answers = task.decide(state.evaluation.logits["validation"][chosen])
    report = report_on(task, layers, train, validation, answers, state.args.seed, str(state.args.device))
    return replace(report, seconds=time.monotonic() - began)


def _validation_rows(state: State) -> tuple[Rows, np.ndarray]:
    """Validation rows, and their numbers. Of many, some are drawn."""
    labels, tokens = state.evaluation.targets["validation"], state.tokens["validation"].dataset
    model: PreTrainedModel = state.model
    if hasattr(model, "get_base_model"):  # its adapters are not merged
        model = model.get_base_model()
    chosen = drawn(len(labels), rows_in_memory(model, MOST_JUDGED), state.args.seed)
    wrong = ""
    try:
        states = states_in(states_of_rows(state, model, tokens, chosen, "validation"), model)
    except InputError as error:
        wrong = str(error)
    raise_in_all(wrong)
    return Rows(states, labels[chosen]), chosen
