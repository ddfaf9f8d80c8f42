"""Writes what a run leaves in its output folder, with the model card, and says what is in it.

To leave another file, name it in `_files`.
"""

import time
from typing import Any

from lstmpool.training.data.summary import remarks
from lstmpool.training.evaluation.learned_head import ENTRY
from lstmpool.training.evaluation.results import no_label_given, nothing_learnt
from lstmpool.training.model.starts import loss_of_prior
from lstmpool.training.output import markdown
from lstmpool.training.output.artifacts import Writers, plots_of, predictions_of
from lstmpool.training.output.exits import ROW, exit_lines
from lstmpool.training.output.folder import handover, json_writer, text_writer, write_output
from lstmpool.training.output.layers import layer_lines
from lstmpool.training.output.model_card import CardContents, model_card
from lstmpool.training.output.terminal import (
    about_linear,
    by_class_lines,
    describe_best,
    loading_lines,
    rows_of,
    text_table,
)
from lstmpool.training.output.wrong_rows import errors_of, label_issues_line, label_issues_of, shown_errors
from lstmpool.training.runs.state import State


def write_files(state: State) -> None:
    """Fills the output folder, and prints the table of results and how to load the model."""
    table = _table(state)
    best = describe_best(state.trainer, state.job.task.titles)
    saves_model = _has_new_weights(state)
    warnings = _warnings(state)
    plots = plots_of(state.evaluation, state.trainer.state.log_history, state.exits, state.layer_report)
    files = _files(state, plots)
    if saves_model:
        files["README.md"] = text_writer(_card(state, table, best, list(plots), warnings))
    write_output(state.folder, state.model if saves_model else None, state.job.tokenizer, files)
    if state.start.within:
        handover(state.final)
    print("\n".join(["", *_numbers(state, table), best]))
    if state.args.show_errors:
        print("\n".join(shown_errors(state.answers, state.job.splits)))
    for line in [*_about_labels(state), *_about_exits(state), *_about_layers(state), *_about_linear(state)]:
        print(line)
    for warning in warnings:
        print(f"Warning: {warning}")
    print(f"Done in {time.monotonic() - state.began:.0f} s. {markdown.visible(str(state.shown))} holds", end=" ")
    if saves_model:
        lines = _loading_lines(state, str(state.shown))
        print("the model; these lines load it:\n\n" + "\n".join(lines))
    else:
        print(", ".join(sorted(files)) + ".")


def _has_new_weights(state: State) -> bool:
    """Whether the run has trained the model, folded something that it learnt into it, or given it exits."""
    folded = {"temperature", "folded_thresholds"} & state.evaluation.learned.keys()
    return state.args.do_train or bool(folded) or state.exits is not None


def _files(state: State, plots: Writers) -> Writers:
    """The files beside the model, except for the card."""
    args, evaluation = state.args, state.evaluation
    splits = state.job.splits
    files = {"metrics.json": json_writer(_metrics(state))}
    files |= plots
    files |= predictions_of(state.answers, splits, args)
    files |= errors_of(state.answers, splits, args)
    if state.label_issues is not None:
        files |= label_issues_of(state.label_issues, splits["train"], evaluation.task, args)
    files |= state.extras.files(evaluation)
    return files


def _numbers(state: State, table: list[list[str]]) -> list[str]:
    """The lines that say how good the answers are, also class by class; none if no row was measured."""
    evaluation = state.evaluation
    if not evaluation.results:
        return []
    lines = [text_table(table), ""]
    split = evaluation.judged_on
    if split in evaluation.by_class:
        lines += [*by_class_lines(evaluation.by_class[split], split, evaluation.results[split]), ""]
    return lines


def _about_linear(state: State) -> list[str]:
    task = state.job.task
    return about_linear(state.baselines, task.titles[task.headline])


def _about_labels(state: State) -> list[str]:
    return [label_issues_line(state.label_issues)] if state.label_issues is not None else []


def _about_exits(state: State) -> list[str]:
    return exit_lines(state.exits) if state.exits is not None else []


def _about_layers(state: State) -> list[str]:
    lines = layer_lines(state.layer_report) if state.layer_report is not None else []
    return [f"Layers: {line}" for line in lines]


def _table(state: State) -> list[list[str]]:
    """The table of results, with a head."""
    task, config = state.job.task, state.model.config
    name = f"{config.layer_pooling} over {len(config.layers)} layers"
    if state.exits is None and state.answers_early:  # a model of --init_from, which is only measured
        name = f"{name}, {ROW}"
    results = {name: state.evaluation.results}
    if state.exits is not None and state.exits.is_on:
        results[ROW] = state.answers.results
    results |= state.baselines.scores
    return rows_of(results, task.titles, task.headline, state.evaluation.intervals)


def _metrics(state: State) -> dict[str, Any]:
    """The contents of metrics.json."""
    metrics = {"problem_type": state.job.task.problem_type, "data": state.summary}
    metrics |= state.evaluation.record()
    if not state.thresholds.are_none:
        metrics[ENTRY] = state.thresholds.record()
    metrics["baselines"] = state.baselines.scores
    if state.exits is not None:
        metrics["early_exit"] = state.exits.record()
    if state.layer_report is not None:
        metrics["layer_report"] = state.layer_report.record()
    elif state.args.layer_report:  # there was nothing to tell
        metrics["layer_report"] = None
    if state.label_issues is not None:
        metrics["label_issues"] = state.label_issues.record()
    if state.pooling_choice:
        metrics["layer_pooling"] = state.pooling_choice
    starts = [entry["start"] for entry in state.trainer.state.log_history if entry.get("start")]
    if starts:
        metrics["stage_1_out_of_fold"] = dict(sorted(starts[0].items()))  # a checkpoint holds them in this order
    return metrics


def _warnings(state: State) -> list[str]:
    """What the results warn of, a line each."""
    lines = []
    if state.args.do_train:
        labels = state.job.splits["train"].labels
        lines = nothing_learnt(state.evaluation, labels, _losses(state, labels))
    return lines + no_label_given(state.evaluation, tuned=state.args.tune_thresholds)


def _losses(state: State, labels: Any) -> tuple[float, float] | None:
    """The last training loss and that of one answer for all rows, if they are of the same kind: the model's own."""
    logged = [entry["loss"] for entry in state.trainer.state.log_history if "loss" in entry]
    if not logged or state.trainer.compute_loss_func is not None:
        return None
    targets = labels if state.scale is None else state.scale.divide(labels)
    return logged[-1], loss_of_prior(targets, state.job.task)


def _caveats(state: State, warnings: list[str]) -> list[str]:
    """The warnings before and after training, in Markdown."""
    before = []
    if state.args.do_train:
        weighted = state.args.class_weights is not None
        before = remarks(state.job.splits, state.job.task, weighted, named=markdown.name)
    return before + warnings


def _card(state: State, table: list[list[str]], best: str, plots: list[str], warnings: list[str]) -> str:
    """The model card. `table`: of results; `best`: which checkpoint was kept; `plots`: names of files."""
    job = state.job
    name = state.shown.resolve().name
    run = CardContents(
        name=name,
        config=state.model.config,
        args=state.args,
        backbone=job.backbone,
        lora=job.model_args if job.model_args.peft else None,
        data=state.summary,
        max_seq_length=job.tokenizer.model_max_length,
        best=best,
        table=table,
        learned=state.evaluation.learned,
        plots=plots,
        snippet=_loading_lines(state, name, revision="main"),
        command=job.command,
        data_args=job.data_args,
        results=state.evaluation.results,
        caveats=_caveats(state, warnings),
        about_linear=" ".join(_about_linear(state)),
        pooling_choice=state.pooling_choice,
        contrastive_steps=state.contrastive_steps,
        by_class=state.evaluation.by_class.get(state.evaluation.judged_on),
        exits=state.exits,
        layers=state.layer_report,
    )
    return model_card(run)


def _loading_lines(state: State, model: str, revision: str | None = None) -> list[str]:
    job = state.job
    return loading_lines(model, job.reads_pairs, job.task.gives_several_answers, revision, job.is_adapter)
