"""Rows to look at: `errors.csv` has those that were predicted wrongly, `label_issues.csv` those that look mislabelled.

They hold texts, which may be private: they are never in the model card, and never published.
"""

from functools import partial
from typing import Any

import numpy as np
import pandas

from lstmpool.training.data.rows import Split
from lstmpool.training.errors import counted
from lstmpool.training.evaluation.label_issues import LabelIssues
from lstmpool.training.evaluation.results import Evaluation
from lstmpool.training.flags.arguments import TrainingFields
from lstmpool.training.output.markdown import short
from lstmpool.training.output.tables import text_columns, write_table
from lstmpool.training.tasks.task import Task
from lstmpool.training.writing import Writer


NAME = "errors.csv"
LABEL_ISSUES = "label_issues.csv"
MOST_NUMBERS = 100  # rows of a regression, in which hardly any number is met
SHOWN = 10  # rows in the terminal
LONGEST = 100  # characters of a text there, of an id and of an answer


def wrong_rows(evaluation: Evaluation, splits: dict[str, Split]) -> pandas.DataFrame | None:
    """A row for each wrong answer in those of `splits` that have labels; None if none of them has.

    The columns are `split`, `id`, `text`, for pairs `text_pair`, `truth`, `prediction` and `confidence`: what the
    model gave its answer or, with several labels a text, the surest of its wrong decisions, for a label or against it.
    The surest rows come first.

    A regression has the `MOST_NUMBERS` rows with the largest errors instead. `error` is the mean over the targets of
    the absolute error, in standard deviations of the split's own targets.
    """
    task = evaluation.task
    tables = []
    for split, rows in splits.items():
        if split in evaluation.targets:
            tables.append(_of_split(task, split, rows, evaluation.logits[split], evaluation.targets[split]))
    if not tables:
        return None
    tables = [table for table in tables if len(table)] or tables[:1]  # an empty one would spoil the types of columns
    table = pandas.concat(tables).sort_values(_measure(task), ascending=False, kind="stable", ignore_index=True)
    return table.head(MOST_NUMBERS) if task.has_numbers else table


def _of_split(task: Task, split: str, rows: Split, logits: np.ndarray, labels: np.ndarray) -> pandas.DataFrame:
    """The wrong rows of one split, in their order. `logits` (N, C), `labels` (N,) or (N, C)."""
    mistakes = task.surest_mistakes(logits, labels)  # (N,)
    wrong = np.flatnonzero(mistakes)
    rows = rows.take(wrong)
    columns: dict[str, Any] = {"split": [split] * len(wrong), "id": list(rows.ids), **text_columns(rows)}
    for title, table in (("truth", labels[wrong]), ("prediction", task.decide(logits[wrong]))):
        columns |= {name.replace("label", title, 1): values for name, values in task.label_columns(table).items()}
    columns[_measure(task)] = mistakes[wrong]
    return pandas.DataFrame(columns)


def _measure(task: Task) -> str:
    return "error" if task.has_numbers else "confidence"


def errors_of(evaluation: Evaluation, splits: dict[str, Split], args: TrainingFields) -> dict[str, Writer]:
    """The file `errors.csv`: its name, and what writes it. There is none if no row has a label."""
    table = wrong_rows(evaluation, splits)
    return {} if table is None else {NAME: partial(write_table, table, raw=args.raw_csv)}


def shown_errors(evaluation: Evaluation, splits: dict[str, Split]) -> list[str]:
    """The first lines of the table, as `--show_errors` prints them. Nothing in them acts on a terminal."""
    table = wrong_rows(evaluation, splits)
    if table is None:
        return ["No validation or test row has a label, so there are no errors to show."]
    if not len(table):
        return ["No row was predicted wrongly."]
    task = evaluation.task
    first = table.head(SHOWN)
    title = "Largest errors" if task.has_numbers else "Predicted wrongly, surest first"
    lines = [f"{title} ({len(first)} of {len(table)} in {NAME}):"]
    for row in first.to_dict("records"):
        lines.append(f"  {_line(row, _measure(task))}")
    return lines


def _line(row: dict[str, Any], measure: str) -> str:
    """One row of the table as a line."""
    place = f"{row['split']} {short(row['id'], LONGEST)}"
    answers = short("; ".join(_answers(row)), LONGEST)
    texts = " | ".join(f'"{short(row[name], LONGEST)}"' for name in ("text", "text_pair") if name in row)
    return f"{place}: {answers} ({measure} {row[measure]:.3f}): {texts}"


def _answers(row: dict[str, Any]) -> list[str]:
    """What was predicted, and what is true: once, or for each target by its name."""
    if "truth" in row:
        return [f"predicted {_answer(row['prediction'])}, true {_answer(row['truth'])}"]
    said = []
    for column in row:
        if column.startswith("truth_"):
            target = column.removeprefix("truth_")
            said.append(f"{target} predicted {_answer(row[f'prediction_{target}'])}, true {_answer(row[column])}")
    return said


def _answer(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value) or "no label"


# ------------------------------------------------------------------------------------ rows that look mislabelled
def label_issues_of(issues: LabelIssues, train: Split, task: Task, args: TrainingFields) -> dict[str, Writer]:
    """The file `label_issues.csv`: its name, and what writes it.

    The columns are `id`, `text`, for pairs `text_pair`, `label`, `suggested` and `quality`, see `LabelIssues`.
    """
    rows = train.take(issues.rows)
    columns: dict[str, Any] = {"id": list(rows.ids), **text_columns(rows), **task.label_columns(rows.labels)}
    for name, values in task.label_columns(issues.suggested).items():
        columns[name.replace("label", "suggested", 1)] = values
    table = pandas.DataFrame(columns).assign(quality=issues.quality)
    return {LABEL_ISSUES: partial(write_table, table, raw=args.raw_csv)}


def label_issues_line(issues: LabelIssues) -> str:
    """Says how many of how many rows look mislabelled, and by which model."""
    if not issues.judged:
        rows = counted(issues.total, "training row")
        return f"Labels: none of {rows} could be judged: each label is in no other row that its model was fitted to."
    judged = counted(issues.judged, "training row")
    if issues.judged < issues.total:
        judged += f" that could be judged, of {issues.total:,},"
    verb = "looks" if len(issues.rows) == 1 else "look"
    told = "lists them, the least likely label first" if len(issues.rows) else "is empty"
    return (
        f"Labels: {len(issues.rows):,} of {judged} {verb} mislabelled, by {issues.model}, which was fitted without "
        f"the row. {LABEL_ISSUES} {told}."
    )
