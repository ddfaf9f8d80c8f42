"""What is told of the layers that matter, in the terminal and in the card: see `evaluation/layer_report`."""

from lstmpool.training.errors import counted
from lstmpool.training.evaluation.layer_report import LEAST_JUDGED, TOLERANCE, LayerReport, LayerSet


def layer_lines(report: LayerReport) -> list[str]:
    """A line each: how few of the lowest layers would do, which layers can go together, and what all that took.

    From few validation rows it says that they name no layers, and what they say of one that goes.
    """
    shallow, fewest = report.shallow, report.fewest
    lines = []
    if not report.is_enough:
        lines.append(_too_few(report))
    if shallow is not None:
        lines.append(
            f"A linear model of {_layers(shallow.layers)} {_beside_all(report, shallow)} {_time(report, shallow)}"
        )
    if fewest is not None and fewest != shallow:
        left_out = [layer for layer in report.layers if layer not in fewest.layers]
        lines.append(
            f"A linear model without {_layers(left_out)} {_beside_all(report, fewest)} {_time(report, fewest)}"
        )
    names_layers = shallow is not None or fewest is not None
    if not names_layers:
        (left_out,) = set(report.layers) - set(report.path[0].layers)
        lines.append(
            f"A linear model without layer {left_out}, which training rows miss the least, "
            f"{_beside_all(report, report.path[0])}"
        )
    cost = f"All this was fitted to {counted(report.rows, 'training row')}, in {report.seconds:.0f} s"
    hint = "; train with --layers to see how good such a model is" if names_layers else ""
    return [*lines, f"{cost}{hint}."]


def _too_few(report: LayerReport) -> str:
    """Says that so few validation rows cannot name layers, and why."""
    rows = counted(report.validation_rows, "validation row")
    why = (
        f"one of them counts {100 / report.validation_rows:.1f} points, and at most {100 * TOLERANCE:.1f} may be lost"
    )
    if report.task.has_numbers:
        why = "the interval over them is too wide"
    return f"{rows} cannot say that a layer can go: {why}. So none is named; it takes {LEAST_JUDGED} or more."


def _beside_all(report: LayerReport, of: LayerSet) -> str:
    """What a linear model has beside that of all layers, and what the interval allows."""
    title, rows = report.task.titles[report.task.headline], counted(report.validation_rows, "validation row")
    own, whole = measured(report, of.score), measured(report, report.whole)
    return f"has {title} {own} on {rows}, that of all {len(report.layers)} {whole}. {_verdict(report, of)}."


def _verdict(report: LayerReport, of: LayerSet) -> str:
    """What the interval allows to say of a loss."""
    shown = "A loss shows" if report.loses(of) else "No loss shows"
    if of.interval is None:
        return "Every row gives the same difference"
    low, high = (measured(report, bound) for bound in of.interval)
    most = report.most_lost(of)
    allowed = f"a loss of up to {measured(report, most)}" if most > 0 else "no loss"
    verdict = f"{shown}; the 95% interval of the difference, {low} to {high}, allows {allowed}"
    if report.loses(of) or report.will_do(of):
        return verdict
    return f"{verdict}, and on these rows it is more than {measured(report, report.tolerance)}"


def _time(report: LayerReport, of: LayerSet) -> str:
    """How much time a model of these layers would save."""
    highest, top = of.layers[-1], report.layers[-1]
    saves = f"would save about {1 - highest / top:.0%} of the time"
    if highest == top:
        saves = f"would save no time, since the layers below {top} still run"
    return f"`--layers {' '.join(map(str, of.layers))}` {saves}."


def _layers(layers: list[int]) -> str:
    """Such as "layer 3", "layers 1 to 4" or "layers 2, 5, 6"."""
    if len(layers) == 1:
        return f"layer {layers[0]}"
    in_a_row = len(layers) > 2 and layers == list(range(layers[0], layers[-1] + 1))
    return f"layers {layers[0]} to {layers[-1]}" if in_a_row else f"layers {', '.join(map(str, layers))}"


def layer_rows(report: LayerReport) -> list[list[str]]:
    """A table with a head: for each layer, linear models of the layers up to it, of it alone, and without it.

    Behind the score of the first two and for the third stands the difference to all layers with its interval.
    """
    title = report.task.titles[report.task.headline]
    rows = [["layer", f"{title}, up to it", "difference to all", f"{title}, it alone", "difference without it"]]
    for layer, *found in zip(report.layers, report.up_to, report.alone, report.without, strict=True):
        up_to, alone, without = found
        cells = [measured(report, up_to.score), _difference(report, up_to), measured(report, alone.score)]
        rows.append([str(layer), *cells, _difference(report, without)])
    return rows


def _difference(report: LayerReport, of: LayerSet) -> str:
    said = measured(report, report.difference(of))
    if of.interval is None:
        return said
    low, high = (measured(report, bound) for bound in of.interval)
    return f"{said} [{low}, {high}]"


def measured(report: LayerReport, value: float) -> str:
    """A score or a difference. Errors may be of any size."""
    return f"{value:.4g}" if report.task.has_numbers else f"{round(value, 3) + 0.0:.3f}"  # never -0.000
