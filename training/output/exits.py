"""What is told of a model's exits, in the terminal and in the card."""

from lstmpool.training.errors import counted
from lstmpool.training.evaluation.exit_results import ExitResults


ROW = "with exits"  # what the table of results calls the model that answers with them


def exit_lines(exits: ExitResults) -> list[str]:
    """A line each: what the exits are, what they save, and what the depth curve suggests."""
    layers = exits.layers
    fitted = (
        f"Exits: linear heads on layers {', '.join(map(str, layers[:-1]))}, fitted to "
        f"{counted(exits.rows, 'training row')}"
    )
    if exits.fitted_to_validation:
        seen = counted(exits.validation_rows, "validation row")
        fitted += f" and {seen}, of which each is judged by exits that have not seen it,"
    fitted += f" in {exits.seconds:.0f} s"
    if not exits.is_on:
        return [f"{fitted}. They are off: {exits.why_off}.", *_hint(exits)]
    return [f"{fitted}. {threshold_words(exits)}", saving_words(exits), *_hint(exits)]


def threshold_words(exits: ExitResults) -> str:
    """How sure an exit must be, and what says so."""
    how = "as --exit_threshold says"
    if exits.settings.rule is not None:
        how = (
            f"chosen on {counted(exits.validation_rows, 'validation row')} by the rule {exits.settings.rule}, for a "
            f"drop of {exits.settings.max_drop:g} points at most"
        )
    return f"A text leaves with a confidence of {exits.threshold:.6g} or more, {how}."


def saving_words(exits: ExitResults) -> str:
    """How many layers run, and how much faster that was found to be."""
    split = "test" if "test" in exits.places else "validation"
    words = f"On {split}, {exits.mean_layers(split):.2f} of {exits.layers[-1]} layers run for a text on average"
    if exits.gains:
        times = " and ".join(f"{gain:.2f} with batches of {size}" for size, gain in exits.gains.items())
        words += f"; times as fast as without exits, on this machine: {times}"
    return f"{words}."


def _hint(exits: ExitResults) -> list[str]:
    """The line on the lowest layer that by itself is nearly as good as the whole model; none if there is none."""
    shallower = exits.shallower
    if shallower is None:
        return []
    lowest, highest = shallower[-1], exits.layers[-1]
    return [
        f"Layer {lowest} alone is within {exits.settings.max_drop:g} points of the whole model on validation. With "
        f"--layers {' '.join(map(str, shallower))}, a model would save about {1 - lowest / highest:.0%} of the time "
        "for every text; train one to see how good it is."
    ]


def depth_rows(exits: ExitResults, title: str) -> list[list[str]]:
    """A table with a head: for each layer its own metric, under `title`, and the share of texts that leave there."""
    splits = [split for split in ("validation", "test") if split in exits.places]
    rows = [["layer", *(f"{title}, {split}" for split in splits), *(f"answered there, {split}" for split in splits)]]
    for place, layer in enumerate(exits.layers):
        scores = [f"{exits.alone[split][place]:.3f}" if split in exits.alone else "" for split in splits]
        shares = [f"{exits.shares(split)[place]:.1%}" for split in splits]
        name = str(layer) if layer != exits.layers[-1] else f"{layer}, the whole model"
        rows.append([name, *scores, *shares])
    return rows
