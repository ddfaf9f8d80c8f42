"""The rules, see `rules`, whose facts are known late: the task, its metrics, and the depth of the model."""

from lstmpool.fields_lstmpool import MULTI, REGRESSION, SINGLE
from lstmpool.training.flags.conditions import (
    fitted_without_rows,
    frozen_and_fresh_layers,
    more_layers_than_there_are,
    unknown_metric,
)
from lstmpool.training.flags.rules import Rule


OTHER_TASK = "this task is {flags.task}. Leave it out."
WITH_TASK = (  # known once the labels are read
    Rule(
        lambda f: f.training["label_smoothing_factor"] > 0 and f.task != SINGLE,
        f"--label_smoothing_factor is for one label a text; {OTHER_TASK}",
    ),
    Rule(
        lambda f: f.training["class_weights"] is not None and f.task != SINGLE,
        f"--class_weights is for one label a text; for several, see --tune_thresholds; {OTHER_TASK}",
    ),
    Rule(
        lambda f: f.training["calibrate"] is not None and f.task == REGRESSION,
        f"--calibrate is for classification; {OTHER_TASK}",
    ),
    Rule(
        lambda f: f.model.early_exit and f.task == REGRESSION,
        "--early_exit is for classification: a text leaves when its answer is likely enough, and a number has no "
        f"probability; {OTHER_TASK}",
    ),
    Rule(
        lambda f: f.training["tune_thresholds"] and f.task != MULTI and (f.task, f.outputs) != (SINGLE, 2),
        "--tune_thresholds is for several labels a text, or for two classes; this task is {flags.task} "
        "(outputs: {flags.outputs}). Leave it out.",
    ),
    Rule(
        lambda f: f.training["regression_loss"] != "mse" and f.task != REGRESSION,
        f"--regression_loss is for a regression; {OTHER_TASK}",
    ),
    Rule(
        lambda f: f.training.get("find_label_issues") and f.task == REGRESSION,
        f"--find_label_issues goes by the probability of each label, and a number has none; {OTHER_TASK}",
    ),
    Rule(fitted_without_rows, "--{name} is fitted on validation rows, found none. Name them, or leave it out."),
    Rule(
        lambda f: not 0 <= f.training["label_smoothing_factor"] < 1,
        "--label_smoothing_factor must be 0 or more and below 1, got {flags.training[label_smoothing_factor]}.",
    ),
    Rule(
        lambda f: not 0 < f.training["layerwise_lr_decay"] <= 1,
        "--layerwise_lr_decay must be above 0 and at most 1, got {flags.training[layerwise_lr_decay]}.",
    ),
)
WITH_METRICS = (Rule(unknown_metric, "--metric_for_best_model must be one of {known}, got {name}."),)
WITH_LAYERS = (  # known once the model's config is read
    Rule(more_layers_than_there_are, "--{name} must lie in 0..{flags.layers}, the layers there are, got {value}."),
    Rule(frozen_and_fresh_layers, "--reinit_layers makes layers that must be trained. Freeze fewer layers."),
)
