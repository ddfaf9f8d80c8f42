"""The fields of `LstmPoolConfig` that say what is read from a backbone: type, default, check and meaning of each.

Each field is written here once. The config takes its defaults, checks and docstring from this table, the training
command its flags, and the documentation its list of fields. The table imports neither torch nor transformers, so the
command prints its help at once.

To add a field, add it to `LstmPoolFields` and read it where it is used.
"""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, get_type_hints


SINGLE = "single_label_classification"
MULTI = "multi_label_classification"
REGRESSION = "regression"
PROBLEM_TYPES = (SINGLE, MULTI, REGRESSION)
TOKEN_POOLINGS = ("cls", "mean", "max", "last")
LAYER_POOLINGS = ("lstm", "gru", "attention", "weighted", "max", "concat", "last")
LSTM_READOUTS = ("last", "final", "mean")
APART = "apart"
PAIR_ENCODINGS = ("joint", APART)
UNSET = " Unset: "  # the text after it says how an unset field is resolved
# No model comes near these. The library makes lists of such lengths, which could fill the memory.
MOST_LAYERS, MOST_LABELS, MOST_UNITS = 10_000, 1_000_000, 1_000_000


def true_or_false(name: str, value: Any) -> None:
    """Raises ValueError if `value` is not a bool."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, got {shown(value)}.")


def positive_units(name: str, value: Any) -> None:
    """Raises ValueError if `value` is not an integer from 1 to `MOST_UNITS`."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST_UNITS:
        raise ValueError(
            f"{name} must be a positive integer (units per direction) of {MOST_UNITS} at most, got {shown(value)}."
        )


def probability(name: str, value: Any) -> None:
    """Raises ValueError if `value` is not a number of 0 or more and below 1."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise ValueError(f"{name} must be a probability in [0, 1), got {shown(value)}.")


def exit_confidence(name: str, value: Any) -> None:
    """Raises ValueError if `value` is not a number of 0 or more, nor None."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0):
        raise ValueError(
            f"{name} must be a confidence from 0 to 1, a larger number with which no text leaves early, or None for "
            f"no exits, got {shown(value)}."
        )


def check_exit_fields(config: Any) -> None:
    """Raises ValueError if `early_exit` or `exit_threshold` does not go with the other fields of this config."""
    if config.early_exit:
        check_exits(config)
    elif config.exit_threshold is not None:
        raise ValueError(
            f"exit_threshold={config.exit_threshold} needs early_exit=True, which gives a model exits. Leave it unset."
        )


def check_exits(config: Any) -> None:
    """Raises ValueError if a model with this config could not have exits."""
    if config.problem_type == REGRESSION:
        raise ValueError(
            "early_exit=True needs classes or several labels, of which a text can be sure, got problem_type="
            f"'{REGRESSION}'. Set early_exit=False."
        )
    if len(config.layers) < 2:
        raise ValueError(
            f"early_exit=True needs two layers or more that are read, got layers={config.layers}: below the highest "
            "there must be one to leave at. Read more layers, or set early_exit=False."
        )


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raises ValueError, which names the nearest choice, if `value` is none of `choices`."""
    if value not in choices:
        close = difflib.get_close_matches(str(value)[:100], choices, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {shown(value)}.{hint}")


def shown(value: Any, form: Callable[[Any], str] = repr, most: int = 200) -> str:
    """A value as an error shows it: of `most` characters, about, at most."""
    text = form(value)
    return text if len(text) <= most else f"{text[:most]} ..."


# They say enough by themselves: a file is not there, a package is missing.
CLEAR = (OSError, ImportError)


@contextmanager
def no_model(what: str, *clear: type[Exception]) -> Iterator[None]:
    """Turns what the library raises for a config that describes no model into a ValueError: one line, after `what`.

    A config.json of strangers may hold anything, so that the library may fail anywhere, with any exception. Those of
    `CLEAR` and `clear` stay as they are.
    """
    try:
        yield
    except (*CLEAR, *clear):
        raise
    except Exception as error:
        reason = shown(" ".join(str(error).split()), str, 600)
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__} "
        raise ValueError(f"{what}: {kind}{reason}".rstrip()) from error


def check_config_json(config: Any) -> None:
    """Checks what a config.json holds, before the library makes a config of it.

    Raises:
        ValueError: if it is not an object, counts more layers or labels than any model has, or names code on the Hub.
    """
    if not isinstance(config, dict):
        raise ValueError(f"config.json must hold an object, {{...}}, got {shown(config)}. Save the model again.")
    waiting = [config]
    while waiting:
        found = waiting.pop()
        for name, value in found.items() if isinstance(found, dict) else enumerate(found):
            if isinstance(value, (dict, list)) and name not in ("id2label", "label2id"):
                waiting.append(value)
            _check_entry(str(name), value)


def _check_entry(name: str, value: Any) -> None:
    """Checks one entry of a config.json or of a part of it."""
    if isinstance(value, float) and value != value:
        raise ValueError(f"config.json has {name}=NaN, with which no model gives a number. Correct config.json.")
    most = {"layer": MOST_LAYERS, "layers": MOST_LAYERS, "labels": MOST_LABELS}.get(name.rpartition("_")[2])
    if most and isinstance(value, (int, float)) and value > most:
        raise ValueError(f"config.json must have {name} of {most} at most, got {shown(value)}. Correct config.json.")
    # With transformers below 5.3 and 5.5, these two run code that was never trusted: CVE-2026-4372, CVE-2026-5241.
    if name.endswith(("_implementation", "_implementation_internal")):
        if not isinstance(value, (str, dict, type(None))) or "/" in str(value):
            raise ValueError(
                f"config.json must name an attention that the library has, got {name}={shown(value)}. Remove that "
                "entry; code on the Hub that you trust can be named when the model is loaded."
            )
    if name == "model_type" and value == "lightglue":
        raise ValueError("config.json has model_type='lightglue', which reads no texts. Choose another backbone.")


def _field(default: Any, help: str, **options: Any) -> Any:
    """A field whose meaning is `help`. Its flag on the command line takes the `options`, such as `choices`."""
    return field(default=default, metadata={"help": help} | options)


@dataclass
class LstmPoolFields:
    """What is read from a backbone: which layers, which vector of each, and what turns these vectors into one.

    A field with `choices` takes one of them. The type of a field names any other check. The text after `UNSET` says
    how an unset field (`None`) is resolved.
    """

    layers: list[int] | None = _field(  # the config checks it against the backbone's depth
        None,
        "Which layers are read, 1-based and ascending; 0 would be the embeddings, which have seen no context. "
        "Negative numbers count from the top: -2 -1 are the top two. Unset: all layers.",
    )
    token_pooling: str | None = _field(
        None,
        "How one layer's (B, T, H) becomes (B, H): cls is the first token that the mask keeps (for XLNet the last), "
        "mean and max run over all tokens that it keeps, last is the last of them. Causal backbones refuse cls. "
        "Unset: by family, last for causal backbones, mean for the encoder of an encoder-decoder, cls for the others; "
        "from_backbone and the command rather take what a sentence-transformers backbone states for itself.",
        choices=TOKEN_POOLINGS,
    )
    layer_pooling: str = _field(
        "lstm",
        "How the layers' (B, L, H) become (B, D): lstm and gru read them in order. The others serve as comparisons: "
        "attention (a learned query), weighted (one learned weight a layer), max (elementwise), concat (an MLP over "
        "all layers, with about the LSTM's parameter count), last (the highest layer alone).",
        choices=LAYER_POOLINGS,
    )
    layer_norm: Annotated[bool | None, true_or_false] = _field(
        None,
        "Whether each layer's vector passes a LayerNorm first; layers that do not end in a norm differ in scale by "
        "orders of magnitude. Unset: by family, off where every layer ends in a norm, on for the others.",
        nargs="?",
        const=True,
    )
    lstm_hidden_size: Annotated[int, positive_units] = _field(
        256,
        "Units of the LSTM or GRU per direction; a bidirectional net gives twice this. It also sets the size of "
        "concat.",
    )
    lstm_bidirectional: Annotated[bool, true_or_false] = _field(
        True, "Whether the LSTM or GRU reads the layers from the top down too."
    )
    lstm_readout: str = _field(
        "last",
        "What is read from the LSTM or GRU: last is the output at the highest layer, where the backward direction has "
        "read only that layer; final is the last state of each direction, when both have read every layer; mean is "
        "the mean of the outputs.",
        choices=LSTM_READOUTS,
    )
    pooler_dropout: Annotated[float, probability] = _field(
        0.1, "Probability of dropout between the layer pooling and the classifier."
    )
    linear_skip: Annotated[bool, true_or_false] = _field(
        False,
        "Whether a linear map of the layers' vectors is added to the logits: of all that are read, side by side, or, "
        "if layer_pooling is last, of the top one. No dropout comes before it. It starts at zero; the command starts "
        "it at a regularised linear model, unless it trains in one stage.",
    )
    pair_encoding: str | None = _field(
        None,
        "How the backbone reads a pair of texts: joint as one text, apart each by itself. Then a layer's vector is "
        "(B, 4 H): those of both texts, u and v, the absolute value of u - v, and u * v. Unset: joint; the training "
        "command reads pairs apart on a backbone that says that it was made for sentence vectors.",
        choices=PAIR_ENCODINGS,
    )
    standardize_layers: Annotated[bool | None, true_or_false] = _field(
        None,
        "Whether each feature of each layer's vector is centred and scaled first, by its mean and standard deviation "
        "over the training rows, before layer_norm and the pooling. Unset: off; the training command standardises "
        "the cls vectors of a frozen backbone.",
        nargs="?",
        const=True,
    )
    early_exit: Annotated[bool, true_or_false] = _field(
        False,
        "Whether each layer that is read, except for the highest, has a linear head of its own, by which a text may "
        "leave once its answer is clear. The command trains these exits after the model, which they leave as it is, "
        "and chooses exit_threshold on validation rows.",
    )
    exit_threshold: Annotated[float | None, exit_confidence] = _field(
        None,
        "The confidence with which a text leaves at an exit of early_exit: the lower, the faster. 0: all leave at the "
        "lowest layer; above 1: none leaves. Unset: every text is read to the end; the command chooses one with "
        "early_exit.",
    )


DEFAULTS = {entry.name: entry.default for entry in fields(LstmPoolFields)}


def check_fields(values: Any) -> None:
    """Checks every field. Raises ValueError if the attribute of `values` with its name has a wrong value."""
    hints = get_type_hints(LstmPoolFields, include_extras=True)
    for entry in fields(LstmPoolFields):
        value = getattr(values, entry.name)
        if "choices" in entry.metadata:
            check_choice(entry.name, value, entry.metadata["choices"])
        for check in getattr(hints[entry.name], "__metadata__", ()):
            check(entry.name, value)


def describe_fields() -> list[tuple[str, str, str, str]]:
    """Name, type, meaning and default of each field, in words. For a default of None, how it is resolved."""
    hints = get_type_hints(LstmPoolFields)
    described = []
    for entry in fields(LstmPoolFields):
        hint = hints[entry.name]
        kind = hint.__name__ if isinstance(hint, type) else str(hint).removesuffix(" | None")
        meaning, _, unset = entry.metadata["help"].partition(UNSET)
        default = unset.rstrip(".") if entry.default is None else f"`{entry.default}`"
        described.append((entry.name, kind, meaning, default))
    return described


def argument_lines() -> str:
    """The fields as lines of the config's docstring, in the form that transformers uses."""
    lines = []
    for name, kind, meaning, default in describe_fields():
        if DEFAULTS[name] is None:
            lines.append(f"        {name} (`{kind}`, *optional*):")
            text = f"{meaning}{UNSET}{default}."
        else:
            lines.append(f"        {name} (`{kind}`, *optional*, defaults to {default}):")
            text = meaning
        lines += textwrap.wrap(text, 119, initial_indent=" " * 12, subsequent_indent=" " * 12)
    return "\n".join(lines)
