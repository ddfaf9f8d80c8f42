"""What the command says while it runs and when it is done."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from transformers import PreTrainedModel, Trainer

from lstmpool.training.errors import as_line, counted
from lstmpool.training.evaluation.baselines import Baselines
from lstmpool.training.evaluation.by_class import CONFUSED, FEW, SHOWN, ByClass
from lstmpool.training.flags.training_arguments import TrainingArguments
from lstmpool.training.loop.trainer_arguments import budget_of
from lstmpool.training.output.markdown import python_text, short, visible
from lstmpool.training.tasks.task import Task


LONGEST = 40  # characters of a class's name in a table
Results = dict[str, dict[str, dict[str, float]]]  # metrics by model and split


def describe_task(task: Task) -> str:
    """Says what will be learnt, by which evidence, and which names may be meant to be one."""
    more = " ..." if len(task.names) > 12 else ""
    names = ", ".join(task.names[:12]) + more
    named = task.evidence.startswith("--")  # by the user, or by a finished model
    other = "" if named else "; --problem_type sets another"
    lines = [f"Task: {task.problem_type}, because {task.evidence}{other}.", f"Outputs: {len(task.names)}, {names}."]
    lines += [f"Warning: {warning}" for warning in task.warnings]
    return "\n".join(as_line(line) for line in lines)


def describe_model(model: PreTrainedModel, title: str) -> str:
    """Says how much of the model is pretrained and how much is new."""
    sizes = {name: p.numel() for name, p in model.named_parameters() if ".original_module." not in name}
    adapters = sum(size for name, size in sizes.items() if ".lora_" in name)
    pretrained = sum(size for name, size in sizes.items() if ".backbone." in name) - adapters
    new = sum(sizes.values()) - pretrained - adapters
    line = (
        f"Model: {visible(title)} ({pretrained / 1e6:.1f} million parameters), layers {model.config.layers}, "
        f"{model.config.token_pooling} vectors; new: {model.config.layer_pooling} and classifier "
        f"({new / 1e6:.1f} million)"
    )
    if not adapters:
        return f"{line}."
    trained = f"{adapters + new:,} of {sum(sizes.values()):,} parameters"
    return f"{line}; adapters: {adapters:,} parameters. Trained: {trained}."


def choice_rows(choice: dict[str, Any], titles: dict[str, str]) -> list[list[str]]:
    """A table with a head: each pooling that was tried, the best first, and its score. See `choose_pooling`."""
    rows = [["layer pooling", titles.get(choice["metric"], choice["metric"])]]
    for of in choice["tried"]:
        name = of["layer_pooling"]  # others than `last` read all layers that may be read
        rows.append([f"last on layer {of['layers'][-1]}" if name == "last" else name, _number(of["score"])])
    return rows


def chosen_on(choice: dict[str, Any]) -> str:
    """The rows that chose a pooling, see `choose_pooling`."""
    if choice["on"] == "validation":
        return counted(choice["rows"], "validation row")
    return f"{counted(choice['rows'], 'training row')}, held out in turn"


def describe_choice(choice: dict[str, Any], titles: dict[str, str], seconds: float) -> str:
    """Says which pooling was chosen, and by how much it won. `choice`: see `choose_pooling`."""
    (_, title), (best, score), *others = choice_rows(choice, titles)
    taken = choice["head_learning_rate"]
    rate = "" if taken is None else f" Its best rate, {taken:g}, is taken; --head_learning_rate sets another one."
    following = ", ".join(f"{name} {value}" for name, value in others[:2])
    return (
        f"Layer pooling: {best}, {score} {title} on {chosen_on(choice)}; next {following} ({1 + len(others)} tried on "
        f"the frozen backbone, {seconds:.0f} s).{rate}"
    )


def describe_length(args: TrainingArguments, rows: int) -> str:
    """Says how many steps will be trained, and what sets another number."""
    length, usual = budget_of(args, rows), TrainingArguments.num_train_epochs
    steps, epochs = counted(length.steps, "step"), counted(length.epochs, "epoch", ".3g")
    line = f"Training: {steps} on {counted(rows, 'row')}, {epochs}"
    if args.bf16:
        line += ", in bfloat16 where that is safe (--bf16 False: in float32)"
    if not args.limits.least_steps or length.epochs == usual:
        return f"{line}."
    few = f"since {usual:g} are fewer than {args.limits.least_steps} steps"
    return f"{line}, {few}; --num_train_epochs sets another number."


def describe_best(trainer: Trainer, titles: dict[str, str]) -> str:
    """Says which checkpoint was kept, and why."""
    state, args = trainer.state, trainer.args
    if not args.do_train:
        return "The model of --init_from was evaluated, not trained."
    if not args.load_best_model_at_end or state.best_model_checkpoint is None:  # None: the metric was always NaN
        return f"The model after the last step, {state.global_step}, was kept."
    metric = args.metric_for_best_model
    title = titles.get(metric, metric)
    epoch = state.best_global_step * state.epoch / state.global_step
    kept = f"validation {title} {state.best_metric:.3f}"
    has_start = any("start" in entry for entry in state.log_history)
    values = {entry["step"]: entry[f"eval_{metric}"] for entry in state.log_history if f"eval_{metric}" in entry}
    start = values.pop(0, None) if has_start else None  # it counts only if it was evaluated
    if start is None:
        return f"Epoch {epoch:.3g} was kept: {kept}."
    if state.best_global_step:
        return f"Stage 2 was kept, at epoch {epoch:.3g}: {kept}, {_number(start)} after stage 1."
    later = [value for value in values.values() if not math.isnan(value)]
    best = (max if args.greater_is_better else min)(later, default=math.nan)
    return f"Stage 1 was kept: {kept}; training everything from there gave {_number(best)} at best."


def about_linear(baselines: Baselines, title: str) -> list[str]:
    """What there is to say of the linear model beyond its numbers: a line or two, or none.

    The warning, if it is better than the trained model, stands last. `title`: of the headline metric.
    """
    lines = [baselines.drawn] if baselines.drawn else []
    lead = baselines.lead
    if lead is not None:
        doubt = "" if lead.is_clear else ", but not clearly,"
        lines.append(
            f"Warning: a linear model on the backbone's vectors is better than this model{doubt} on {lead.split}: "
            f"{title} {_number(lead.linear)} beside {_number(lead.trained)}. Train on more rows or for more steps, "
            "or use the linear model."
        )
    return lines


def rows_of(
    results: Results, titles: dict[str, str], headline: str, intervals: dict[str, tuple[float, float]]
) -> list[list[str]]:
    """A table with a head: a row for each split and model, a column for each metric in `titles`.

    `intervals`, by split, are those of the first model's `headline` metric, and follow its number.
    """
    first = next(iter(results))
    splits = list(dict.fromkeys(split for by_split in results.values() for split in by_split))
    rows = [["split", "model", *titles.values()]]
    for split in splits:
        for model, by_split in results.items():
            cells = {key: _number(by_split[split][key]) for key in titles if split in by_split}
            if model == first and split in intervals:
                cells[headline] += " [{:.3f}, {:.3f}]".format(*intervals[split])
            if cells:
                rows.append([split, model, *cells.values()])
    return rows


def class_title(of: ByClass, split: str) -> str:
    """What the table of `class_rows` shows."""
    if len(of.names) <= SHOWN:
        return f"By class, on {split}"
    return f"By class, on {split}: {len(of.shown)} of {len(of.names)} classes, those with the lowest F1"


def class_rows(of: ByClass, named: Callable[[str], str]) -> list[list[str]]:
    """A table with a head: a row for each class that is shown. `named` says how its name is written."""
    columns = {"precision": of.precision, "recall": of.recall, "F1": of.f1}
    if of.average_precision is not None:
        columns["average precision"] = of.average_precision
    rows = [["class", *columns, "rows"]]
    for i in of.shown:
        numbers = [_number(column[i]) for column in columns.values()]
        rows.append([named(of.names[i]), *numbers, str(of.support[i])])
    return rows


def confused_rows(of: ByClass, named: Callable[[str], str]) -> list[list[str]]:
    """A table with a head: the pairs of classes that are confused most often, or nothing if there are none.

    There is none either for `FEW` classes. "of" says how many rows have the true class. `named` says how a name is
    written.
    """
    if len(of.names) <= FEW or not of.confused:
        return []
    rows = [["true", "predicted", "rows", "of"]]
    for true, predicted, count in of.confused[:CONFUSED]:
        rows.append([named(of.names[true]), named(of.names[predicted]), str(count), str(of.support[true])])
    return rows


def about_classes(of: ByClass, split: str, results: dict[str, float]) -> str:
    """What there is to say beyond the table of classes: a sentence or two, or nothing. `results`: of the split."""
    said = []
    if of.without_rows:
        said.append(f"Classes without a row in {split}, which are left out here: {of.without_rows}.")
    if "roc_auc" in results:
        said.append(f"ROC AUC: {_number(results['roc_auc'])}.")
    return " ".join(said)


def by_class_lines(of: ByClass, split: str, results: dict[str, float]) -> list[str]:
    """The classes and the most confused pairs of a split, for the terminal. `results`: the split's metrics."""
    named = partial(short, longest=LONGEST)
    lines = [f"{class_title(of, split)}:", "", *aligned(class_rows(of, named), words=1)]
    about = about_classes(of, split, results)
    if about:
        lines += ["", about]
    confused = confused_rows(of, named)
    if confused:
        lines += ["", f"Most often confused, on {split}:", "", *aligned(confused, words=2)]
    return lines


def text_table(rows: list[list[str]]) -> str:
    """The `rows` as lines, the first as a head. Each split is named once."""
    is_same = [i > 0 and row[0] == rows[i - 1][0] for i, row in enumerate(rows)]
    shown = [["" if same else row[0], *row[1:]] for same, row in zip(is_same, rows, strict=True)]
    lines: list[str] = []
    for same, line in zip(is_same, aligned(shown, words=2), strict=True):
        if lines and not same:
            lines.append("")
        lines.append(line)
    return "\n".join(lines)


def aligned(rows: list[list[str]], words: int) -> list[str]:
    """The `rows` as lines. The first `words` columns are flush left, the others, which are numbers, flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        texts = [cell.ljust(width) for cell, width in zip(row[:words], widths, strict=False)]
        numbers = [cell.rjust(width) for cell, width in zip(row[words:], widths[words:], strict=True)]
        lines.append("  ".join(texts + numbers).rstrip())
    return lines


def loading_lines(
    model: str,
    pair: bool,
    many: bool,
    revision: str | None = None,
    adapter: bool = False,
    max_length: int | None = None,
) -> list[str]:
    """The lines of Python that load the result and use it. They give the answers of the table of predictions.

    They show no row of the data: a card is published, and rows may be private. `pipeline` cuts no text unless it is
    told to, whatever the tokenizer's files say.

    Args:
        model: a folder, or a name on the Hub.
        pair: whether the model reads pairs of texts.
        many: whether a text has several answers.
        revision: of the name on the Hub. Whoever runs code that comes with a model should say which revision.
        adapter: whether the model is an adapter, which brings no code.
        max_length: tokens after which a text is cut. Unset: what the tokenizer's own files say.
    """
    text = '"Your text here."' if not pair else '{"text": "Your text here.", "text_pair": "And the other one."}'
    named = python_text(model)
    options = ", top_k=None, truncation=True" if many else ", truncation=True"
    options += f", max_length={max_length}" if max_length else ""
    pinned = f", revision={python_text(revision)}" if revision else ""
    if adapter:
        return [
            "from transformers import AutoTokenizer, pipeline",
            "from lstmpool.training.model.adapters import load_adapter",
            f"name = {named}",
            "model, tokenizer = load_adapter(name), AutoTokenizer.from_pretrained(name)",
            f'classifier = pipeline("text-classification", model=model, tokenizer=tokenizer{options})',
            f"print(classifier({text}))",
        ]
    return [
        "from transformers import pipeline",
        f'classifier = pipeline("text-classification", model={named}, trust_remote_code=True{pinned}{options})',
        f"print(classifier({text}))",
    ]


def _number(value: float) -> str:
    return "undefined" if math.isnan(value) else f"{value:.3f}"
