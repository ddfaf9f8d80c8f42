"""Draws the plots of a finished run, each a PNG: how it learnt, and where it is right and wrong.

They use matplotlib without pyplot, so they need no display and change no global state.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lstmpool.training.evaluation.by_class import FEW
from lstmpool.training.evaluation.calibration import BINS
from lstmpool.training.evaluation.exit_results import ExitResults, Tried
from lstmpool.training.evaluation.layer_report import LayerReport, LayerSet
from lstmpool.training.output.markdown import short


# Everyone can tell these apart, with any kind of colour vision.
BLUE = "#0072b2"
ORANGE = "#d55e00"
GREY = "#999999"
NAMED = 100  # classes: up to so many, a confusion matrix names each on its axes, and shows counts
NARROW = 40  # classes: with more, the cells are narrow
LONGEST = 24  # characters of a name
AS_IT_IS = {"parse_math": False, "usetex": False}  # a name with $ or \\ is not a formula
DRAWN = 1000  # classes: with more, a confusion matrix takes all the memory and has less than a pixel for each
GAP = 0.1  # between the thresholds that are named on a curve, as a share of its width
PANELS = 30  # targets that are drawn; with more, the picture would be larger than can be drawn


def learning_curve(log_history: list[dict[str, Any]], path: Path, metric: str, title: str) -> None:
    """Draws both losses, and the validation metric `metric` under `title`, over epochs, from Trainer's log."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    losses, headline = figure.subplots(1, 2)
    for axes, key, label, color in (
        (losses, "loss", "training", BLUE),
        (losses, "eval_loss", "validation", ORANGE),
        (headline, f"eval_{metric}", "validation", ORANGE),
    ):
        points = [(entry["epoch"], entry[key]) for entry in log_history if key in entry]
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", markersize=3.5, color=color, label=label)
            axes.legend()
    for axes, name in ((losses, "loss"), (headline, title)):
        axes.set(title=name[0].upper() + name[1:], xlabel="epoch", ylabel=name)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    _save(figure, path)


def confusion_matrix(labels: np.ndarray, predictions: np.ndarray, names: list[str], path: Path) -> None:
    """Draws true classes (N,) as rows, predicted ones (N,) as columns. Colours show shares of a row.

    Cells show counts. Of more than `FEW` classes, those of 0 stay empty; of more than `NARROW`, those that are right.
    """
    total = len(names)
    counts = np.zeros((total, total), dtype=int)
    np.add.at(counts, (labels, predictions), 1)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = float(np.clip(2.5 + 0.28 * total, 4.5, 14))
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.8)
    for row, column in _counted(counts):
        color = "white" if shares[row, column] > 0.55 else "black"
        size = 9 if total <= FEW else 7 if total <= NARROW else 5
        axes.text(column, row, counts[row, column], ha="center", va="center", color=color, fontsize=size)
    step = 1 if total <= NAMED else int(np.ceil(total / NAMED))
    ticks = np.arange(0, total, step)
    shown = [short(names[i], LONGEST) for i in ticks]
    size = 9 if total <= FEW else 7 if total <= 2 * NARROW else 6
    turn = 90 if total > 4 or max(map(len, shown)) > 10 else 0
    axes.set_xticks(ticks, shown, rotation=turn, fontsize=size, **AS_IT_IS)
    axes.set_yticks(ticks, shown, fontsize=size, **AS_IT_IS)
    axes.set(title=f"Confusion matrix of {len(labels)} texts", xlabel="predicted", ylabel="true")
    _save(figure, path)


def _counted(counts: np.ndarray) -> Iterable[tuple[int, int]]:
    """The row and column of each cell of a confusion matrix that shows its count."""
    total = len(counts)
    if total <= FEW:
        return np.ndindex(total, total)
    if total > NAMED:
        return []
    right = np.eye(total, dtype=bool) & (total > NARROW)
    return np.argwhere((counts > 0) & ~right)


def predicted_against_true(targets: np.ndarray, predictions: np.ndarray, names: list[str], path: Path) -> None:
    """Draws true and predicted numbers, both (N, C), in a panel for each target. On the line they are equal.

    Of many targets, the first are drawn.
    """
    names = names[:PANELS]
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(3.6 * columns + 0.4, 3.6 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel in panels[len(names) :]:
        panel.set_visible(False)
    for panel, name, true, predicted in zip(panels, names, targets.T, predictions.T, strict=False):
        low, high = min(true.min(), predicted.min()), max(true.max(), predicted.max())
        panel.plot([low, high], [low, high], color=GREY, linewidth=1, label="equal")
        panel.scatter(true, predicted, s=8, alpha=0.35, color=BLUE, linewidths=0, label="a text")
        panel.set_title(short(name, LONGEST), **AS_IT_IS)
        panel.set(xlabel="true", ylabel="predicted")
        panel.grid(alpha=0.3)
    panels[0].legend(loc="upper left", fontsize=8)
    _save(figure, path)


def reliability(curves: dict[str, tuple[np.ndarray, np.ndarray]], path: Path) -> None:
    """Draws how often a claim is right against how sure the model was of it, and below how many claims a bin has.

    Args:
        curves: by name, the confidence of each claim (M,) and whether it was right (M,).
        path: the file to write.
    """
    figure = Figure(figsize=(5, 5.6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    upper.plot([0, 1], [0, 1], color=GREY, linewidth=1, label="perfectly calibrated")
    edges, width = np.linspace(0, 1, BINS + 1), 1 / BINS
    for i, ((name, (confidence, correct)), color) in enumerate(zip(curves.items(), (ORANGE, BLUE), strict=False)):
        bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
        count = np.bincount(bins, minlength=BINS)
        filled = count > 0
        claimed = np.bincount(bins, confidence, BINS)[filled] / count[filled]
        found = np.bincount(bins, correct, BINS)[filled] / count[filled]
        upper.plot(claimed, found, marker="o", markersize=4, color=color, label=name)
        bar = width / len(curves)
        lower.bar(edges[:-1] + i * bar, count / len(confidence), bar * 0.95, align="edge", color=color, label=name)
    upper.set(title="Reliability", ylabel="share that is true", ylim=(-0.02, 1.02))
    upper.legend()
    upper.grid(alpha=0.3)
    lower.set(xlabel="probability given", ylabel="share of claims", xlim=(0, 1))
    lower.grid(alpha=0.3)
    _save(figure, path)


def depth_curve(exits: ExitResults, split: str, path: Path, title: str) -> None:
    """Draws the metric `title` over the layers that run as the threshold moves, and where the rows are answered.

    They are those of `split`, which has labels.
    """
    figure = Figure(figsize=(9.6, 4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[3, 2])
    curve = sorted(exits.curve[split], key=lambda tried: tried.mean_layers)
    *alone, whole = exits.alone[split]
    left.axhline(whole, color=GREY, linewidth=1, label="the whole model")
    left.plot(exits.layers[:-1], alone, "s", color=ORANGE, markersize=5, label="one layer for all texts")
    left.plot([tried.mean_layers for tried in curve], [tried.score for tried in curve], color=BLUE, label="with exits")
    for tried in _spread(curve):
        left.plot(tried.mean_layers, tried.score, ".", color=BLUE)
        place = (tried.mean_layers, tried.score)
        left.annotate(f"{tried.threshold:.4g}", place, (3, -10), textcoords="offset points", fontsize=7)
    if exits.is_on:
        score = exits.answers.results[split][exits.answers.task.headline]
        label = f"threshold {exits.threshold:.6g}"
        left.plot(exits.mean_layers(split), score, "*", color=BLUE, markersize=14, label=label)
    left.set(title=f"On {split}", xlabel="layers that run, mean over texts", ylabel=title)
    left.legend(loc="lower right", fontsize=8)
    left.grid(alpha=0.3)
    right.bar([str(layer) for layer in exits.layers], exits.shares(split), color=BLUE)
    off = "" if exits.is_on else " (exits are off)"
    right.set(title=f"Where texts are answered{off}", xlabel="layer", ylabel="share of texts", axisbelow=True)
    right.grid(alpha=0.3, axis="y")
    _save(figure, path)


def _spread(curve: list[Tried]) -> list[Tried]:
    """Of a curve, lowest first, some points that lie at least a `GAP` of its width apart."""
    width = curve[-1].mean_layers - curve[0].mean_layers
    kept = curve[:1]
    for tried in curve[1:]:
        if tried.mean_layers - kept[-1].mean_layers > GAP * width:
            kept.append(tried)
    return kept


def which_layers_matter(report: LayerReport, path: Path, title: str) -> None:
    """Draws the metric `title` of linear models over depth, and the difference that leaving out each layer makes."""
    places = np.arange(len(report.layers))
    figure = Figure(figsize=(max(9.6, 2 + 0.55 * len(places)), 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    low, high = _bounds(report.up_to)
    left.axhline(report.model_score, color="black", linewidth=1, linestyle=":", label="the trained model")
    left.axhline(report.whole, color=GREY, linewidth=1, label="all layers")
    left.fill_between(places, report.whole + low, report.whole + high, color=BLUE, alpha=0.2, linewidth=0)
    left.plot(places, [of.score for of in report.up_to], "o-", color=BLUE, markersize=5, label="layers up to this one")
    left.plot(places, [of.score for of in report.alone], "s--", color=ORANGE, markersize=5, label="this layer alone")
    left.set(title="Linear models of some layers", ylabel=title)
    left.legend(loc="best", fontsize=9)
    low, high = _bounds(report.without)
    differences = np.array([report.difference(of) for of in report.without])
    around = np.clip([differences - low, high - differences], 0, None)
    loses = np.array([report.loses(of) for of in report.without])
    right.axhline(0, color="black", linewidth=1)
    for chosen, color, hatch, label in ((~loses, BLUE, None, "no loss shows"), (loses, ORANGE, "//", "a loss shows")):
        if chosen.any():
            right.bar(places[chosen], differences[chosen], color=color, hatch=hatch, edgecolor="white", label=label)
    right.errorbar(places, differences, around, fmt="none", ecolor="black", capsize=3, linewidth=1)
    right.set(title="Without one layer", ylabel=f"difference of {title} to all layers")
    right.legend(loc="best", fontsize=9)
    for axes in (left, right):
        axes.set_xticks(places, report.layers)
        axes.set(xlabel="layer", axisbelow=True)
        axes.grid(alpha=0.3)
    figure.supxlabel(
        f"{report.validation_rows:,} validation rows; band and whiskers: 95% intervals of the difference to all",
        fontsize=9,
    )
    _save(figure, path)


def _bounds(sets: list[LayerSet]) -> np.ndarray:
    """The bounds of the intervals of the differences, (2, L): 0 where there is none."""
    return np.array([of.interval or (0.0, 0.0) for of in sets]).T


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=100, metadata={"Software": None})
