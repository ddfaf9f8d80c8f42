"""The plots and tables that a finished run leaves beside its model: each file's name, and the function that writes it.

To leave another file, add the function here and name the file in `runs/finish.py`.
"""

from functools import partial
from typing import Any

import numpy as np

from lstmpool.training.data.rows import Split
from lstmpool.training.evaluation.exit_results import ExitResults
from lstmpool.training.evaluation.layer_report import LayerReport
from lstmpool.training.evaluation.results import Evaluation
from lstmpool.training.flags.arguments import TrainingFields
from lstmpool.training.output.plots import (
    DRAWN,
    confusion_matrix,
    depth_curve,
    learning_curve,
    predicted_against_true,
    reliability,
    which_layers_matter,
)
from lstmpool.training.output.tables import prediction_table, write_table
from lstmpool.training.tasks.task import Task
from lstmpool.training.writing import Writer


CLAIMS = 2_000_000  # about as many as the reliability plot counts; with many labels, each row makes thousands
Writers = dict[str, Writer]  # by the file's name


def _confusion_matrix(task: Task, logits: np.ndarray, labels: np.ndarray) -> Writer:
    return partial(confusion_matrix, labels, task.decide(logits), task.names)


def _predicted_against_true(task: Task, logits: np.ndarray, labels: np.ndarray) -> Writer:
    return partial(predicted_against_true, labels.reshape(len(labels), -1), logits, task.names)


PICTURES = {  # by the names in `Task.pictures`
    "confusion_matrix": _confusion_matrix,
    "predicted_against_true": _predicted_against_true,
}


def plots_of(
    evaluation: Evaluation,
    log_history: list[dict[str, Any]],
    exits: ExitResults | None = None,
    layers: LayerReport | None = None,
) -> Writers:
    """The plots of the test rows, or of validation if those have no labels; and the learning curve, if it trained.

    They show the whole model, and one of them its `exits`, if it has any. Another one shows which `layers` matter, if
    that was asked for.
    """
    task = evaluation.task
    title = task.titles[task.headline]
    plots: Writers = {}
    if log_history:
        plots["learning_curve.png"] = partial(learning_curve, log_history, metric=task.headline, title=title)
    split = next((name for name in ("test", "validation") if name in evaluation.results), None)
    if split is None:
        return plots
    logits, labels = evaluation.logits[split], evaluation.targets[split]
    for name in task.pictures:
        if name != "confusion_matrix" or len(task.names) <= DRAWN:
            plots[f"{name}.png"] = PICTURES[name](task, logits, labels)
    if "temperature" in evaluation.learned:
        plots["reliability.png"] = _reliability(evaluation, logits, labels)
    if exits is not None:
        plots["exits.png"] = partial(depth_curve, exits, split, title=title)
    if layers is not None:
        plots["layer_report.png"] = partial(which_layers_matter, layers, title=title)
    return plots


def _reliability(evaluation: Evaluation, logits: np.ndarray, labels: np.ndarray) -> Writer:
    """Shows what the temperature did. Thresholds came later, so they are taken out of the logits again."""
    task, learned = evaluation.task, evaluation.learned
    some = slice(None, None, 1 + logits.size // CLAIMS)
    logits, labels = logits[some], labels[some]
    after = logits + np.array(learned.get("folded_thresholds", 0.0))
    curves = {
        "before": task.confidences(after * learned["temperature"], labels),
        "after": task.confidences(after, labels),
    }
    return partial(reliability, curves)


def predictions_of(evaluation: Evaluation, splits: dict[str, Split], args: TrainingFields) -> Writers:
    """The tables of predictions for validation and test rows, in the form that `args` say.

    The true labels come last, where the rows have any: `python -m lstmpool.compare` reads them.
    """
    tables: Writers = {}
    for split in ("validation", "test"):
        if split in splits and split in evaluation.logits:
            logits, rows = evaluation.logits[split], splits[split]
            table = prediction_table(evaluation.task, logits, rows, args.predictions_with_text)
            if split in evaluation.targets:
                table = table.assign(**evaluation.task.label_columns(evaluation.targets[split]))
            tables[f"{split}_predictions.{args.predictions_format}"] = partial(write_table, table, raw=args.raw_csv)
    return tables
