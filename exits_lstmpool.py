"""Exits by depth: linear heads on lower layers, by which a text leaves once its answer is clear.

    the vectors of layer k, (B, S) -> standardised -> head k -> `logits` (B, C) -> `confidence` (B,)
    a row whose confidence reaches the threshold takes these logits, and the layers above do not read it

The exits are trained after the model, which stays as it is and answers for the rows that reach its highest layer.
DeeBERT (Xin et al. 2020, https://arxiv.org/abs/2004.12993) has such exits for one text at a time. Here rows leave a
batch: each layer gets the rows that are left, and the columns of tokens that one of them needs.

B batch, T tokens, L layers read, S width of a layer's vector, C labels.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import logging

from .configuration_lstmpool import LstmPoolConfig
from .families_lstmpool import Families
from .fields_lstmpool import APART, MULTI, exit_confidence
from .pairs_lstmpool import compare
from .pooling_lstmpool import LayerStandardization


logger = logging.get_logger(__name__)

# What the layers take beside numbers and None, by the names of their parameters: a letter for each axis, B rows,
# T tokens, and a dot for what has neither. An axis of size 1 serves all.
_AXES = {
    "hidden_states": ["BT."],
    "x": ["BT."],
    "attention_mask": ["BT", "B.TT"],
    "attn_mask": ["BT", "B.TT"],
    "sliding_window_mask": ["B.TT"],
    "position_ids": ["BT"],
    "cache_position": ["T"],
    "position_embeddings": ["BT."],
    "position_embeddings_global": ["BT."],
    "position_embeddings_local": ["BT."],
    "position_bias": ["B.TT"],
    "relative_pos": ["BTT"],
    "rel_embeddings": [".."],
    "sinusoidal_pos": ["B.T."],
    "rel_pos": ["B.TT"],
    "rel_2d_pos": ["B.TT"],
    "lang_ids": ["B"],
}
_OUTPUTS = ("hidden_states", "x")  # of the layer below: a new tensor for each layer


def confidence(logits: Tensor, problem_type: str) -> Tensor:
    """How sure `logits` (..., C) are, from 0 to 1, (...): the probability of the likeliest class or, of several
    labels, that of the decision which is the least sure."""
    if problem_type == MULTI:
        return logits.float().abs().sigmoid().amin(-1)
    return logits.float().softmax(-1).amax(-1)


class LayerExits(nn.Module):
    """A linear head on the standardised vector of each layer that is read, except for the highest."""

    def __init__(self, config: LstmPoolConfig):
        super().__init__()
        self.standardization = LayerStandardization(config)
        below = config.layers[:-1]
        self.heads = nn.ModuleList([nn.Linear(config.state_size, config.num_labels) for _ in below])

    def forward(self, layer_states: Tensor) -> Tensor:
        """The logits (B, L - 1, C) of every exit for `layer_states` (B, L, S)."""
        states = self.standardization(layer_states)
        return torch.stack([head(states[:, index]) for index, head in enumerate(self.heads)], dim=1)

    def at(self, index: int, vectors: Tensor) -> Tensor:
        """The logits (B, C) of the exit number `index`, the lowest's being 0, for its layer's `vectors` (B, S)."""
        mean, scale = self.standardization.mean[index], self.standardization.scale[index]
        standardised = ((vectors.to(mean.device) - mean) / scale).to(vectors.dtype)
        return self.heads[index](standardised)


# ----------------------------------------------------------------------------------------------- rows that leave a run
class AllLeft(Exception):  # noqa: N818  it is no error
    """No row is left to read: this ends the backbone's run."""


@dataclass
class _Part:
    """What stays of a batch of `size` (rows, tokens): these `rows`, (B',), and the columns from `first` to `stop`."""

    size: tuple[int, int]
    rows: Tensor
    first: int
    stop: int

    @classmethod
    def all_of(cls, kept: Tensor) -> _Part:
        return cls(tuple(kept.shape), torch.arange(kept.size(0), device=kept.device), 0, kept.size(1))

    def then(self, part: _Part) -> _Part:
        """What stays of this part, seen from what this is a part of."""
        return _Part(self.size, self.rows[part.rows], self.first + part.first, self.first + part.stop)

    def cut(self, tensor: Tensor, axis: int, letter: str) -> Tensor:
        """What stays of one axis of `tensor`, of rows ("B") or tokens ("T")."""
        if letter == "T" and self.stop - self.first < self.size[1]:
            return tensor.narrow(axis, self.first, self.stop - self.first)
        if letter == "B" and len(self.rows) < self.size[0]:
            return tensor.index_select(axis, self.rows.to(tensor.device))
        return tensor


class _Batch:
    """The rows that the layers still read, and the columns of tokens that one of them needs.

    It cuts what a layer is given to these.
    """

    def __init__(self, kept: Tensor):
        self.kept = kept  # (rows of the backbone, T), 0 where a token is padding
        self._whole = _Part.all_of(kept)  # what stays of what the run began with
        self._step = self._whole  # what stays of what left the layer below
        self._cut_before: dict[int, tuple[Tensor, Tensor]] = {}  # by its identity, a tensor and what stays of it

    def keep(self, rows: Tensor) -> None:
        """Only these `rows` are read from now on."""
        size, kept = tuple(self.kept.shape), self.kept[rows]
        columns = (kept != 0).any(0).nonzero()[:, 0]
        first, stop = (int(columns[0]), int(columns[-1]) + 1) if len(columns) else (0, kept.size(1))
        self._step = _Part(size, rows, first, stop)
        self._whole = self._whole.then(self._step)
        self.kept = kept[:, first:stop]
        self._cut_before.clear()

    def unknown(self, given: dict[str, Any]) -> list[str]:
        """The names of what a layer is `given` of which it is not known which axes are rows and tokens."""
        return [name for name, value in given.items() if not self._known(name, value)]

    def cut(self, given: dict[str, Any]) -> dict[str, Any]:
        """What stays of what a layer is `given`, by name. What the layer then gives is cut already."""
        parts = {name: self._part(name, value) for name, value in given.items()}
        self._step = _Part.all_of(self.kept)
        return parts

    def _known(self, name: str, value: Any) -> bool:
        """Whether it is known which axes of what a layer is given under `name` are rows and tokens."""
        if isinstance(value, (tuple, list)):
            return all(self._known(name, one) for one in value)
        if not isinstance(value, Tensor):
            return value is None or isinstance(value, (bool, int, float, str))
        axes = _axes(name, value)
        return axes is not None and all(
            letter == "." or size == 1 or self._origin(letter, size)
            for letter, size in zip(axes, value.shape, strict=True)
        )

    def _origin(self, letter: str, size: int) -> _Part | None:
        """What an axis of rows or tokens is part of, by its size: of what the run began with, or of what left the
        layer below. Where both have this size, they are the same."""
        of = "BT".index(letter)
        return next((part for part in (self._whole, self._step) if part.size[of] == size), None)

    def _part(self, name: str, value: Any) -> Any:
        """What stays of what a layer is given under `name`."""
        if isinstance(value, (tuple, list)):
            return type(value)(self._part(name, one) for one in value)
        if not isinstance(value, Tensor):
            return value
        if id(value) in self._cut_before:  # most layers are given the same masks
            return self._cut_before[id(value)][1]
        part = value
        for axis, letter in enumerate(_axes(name, value)):
            if letter != "." and value.size(axis) != 1:
                part = self._origin(letter, value.size(axis)).cut(part, axis, letter)
        if part is not value and name not in _OUTPUTS:
            self._cut_before[id(value)] = value, part
        return part


class Departures:
    """The exits of one run of the backbone: which rows are still read, and the answers of those that have left.

    `threshold` is the confidence with which a row leaves. Pairs that are read apart are 2 B rows of the backbone; the
    texts of a pair, i and i + B, leave together.
    """

    def __init__(self, exits: LayerExits, config: LstmPoolConfig, threshold: float):
        self.exits = exits
        self.threshold = threshold
        self.layers, self.highest = config.layers[:-1], config.layers[-1]
        self.problem_type = config.problem_type
        self.apart = config.pair_encoding == APART
        self.answers: list[tuple[Tensor, int, Tensor]] = []  # rows (b,), the layer that they left at, logits (b, C)
        self._off = False

    @property
    def kept(self) -> Tensor:
        """Of the rows that are still read, 0 where a token is padding, (rows of the backbone, T)."""
        return self._batch.kept

    def start(self, kept: Tensor) -> None:
        """The run begins: `kept` (rows of the backbone, T) is 0 where a token is padding."""
        self._batch = _Batch(kept)
        texts = len(kept) // 2 if self.apart else len(kept)
        self.rows = torch.arange(texts, device=kept.device)  # (B',), those that are still read

    def enter(
        self, layer: int, states: list[Tensor], module: nn.Module, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[tuple, dict[str, Any]] | None:
        """Has rows leave at `layer`, whose state is the last of `states`, (rows, H) each, before `module` runs.

        Returns what `module` is called with then, or None if that is what it would be called with anyway. The states
        of rows that leave are removed. Raises AllLeft if no row stays.
        """
        if self._off:
            return None
        found = self._sure(layer, states[-1]) if layer in self.layers else None
        if found is None and not self.answers:
            return None
        given = dict(zip(_parameters(type(module)), args, strict=False)) | kwargs
        if not self.answers and (unknown := self._batch.unknown(given)):
            self._off = True
            _say_once(f"the layers of {type(module).__name__} take {unknown}, of which nothing is known")
            return None
        if found is not None:
            self._leave(layer, states, *found)
        given = self._batch.cut(given)
        return tuple(given.values())[: len(args)], {name: given[name] for name in kwargs}

    def merged(self, logits: Tensor | None) -> tuple[Tensor, Tensor]:
        """All rows' logits (B, C) and the layers (B,) that they left at, from the `logits` (B', C) of those that were
        read to the end, if any."""
        if not self.answers:
            return logits, torch.full((len(logits),), self.highest, device=logits.device)
        answers = list(self.answers)
        if logits is not None:
            answers.append((self.rows, self.highest, logits))
        device = answers[-1][-1].device
        rows = torch.cat([rows.to(device) for rows, _, _ in answers])
        layers = torch.cat([torch.full_like(rows, layer, device=device) for rows, layer, _ in answers])
        order = rows.argsort()
        return torch.cat([logits.to(device) for _, _, logits in answers])[order], layers[order]

    def _sure(self, layer: int, vectors: Tensor) -> tuple[Tensor, Tensor] | None:
        """Which rows (B',) are sure at `layer`, and all rows' logits (B', C) there; None if no row is."""
        if self.apart:
            vectors = compare(vectors[:, None])[:, 0]  # (B', 4 H)
        logits = self.exits.at(self.layers.index(layer), vectors)
        sure = confidence(logits, self.problem_type) >= self.threshold  # NaN is not
        return (sure, logits) if sure.any() else None

    def _leave(self, layer: int, states: list[Tensor], sure: Tensor, logits: Tensor) -> None:
        """Takes the `logits` of rows that are `sure`, and keeps the others."""
        self.answers.append((self.rows[sure.to(self.rows.device)], layer, logits[sure]))
        stay = (~sure).nonzero()[:, 0].to(self.rows.device)
        if not len(stay):
            raise AllLeft
        self.rows = self.rows[stay]
        if self.apart:
            stay = torch.cat([stay, stay + len(sure)])
        states[:] = [state.index_select(0, stay.to(state.device)) for state in states]
        self._batch.keep(stay)


@lru_cache
def _parameters(layer: type[nn.Module]) -> list[str]:
    """The names of what the layers of a class take, in order."""
    return list(inspect.signature(layer.forward).parameters)[1:]  # without self


def _axes(name: str, value: Tensor) -> str | None:
    """A letter for each axis of a layer's input, as in `_AXES`; None if the input is not known there."""
    return next((axes for axes in _AXES.get(name, ()) if len(axes) == value.dim()), None)


# ------------------------------------------------------------------------------------------------- when none may leave
def departures_of(
    model: PreTrainedModel, threshold: float, tokens: Tensor | None, others: dict[str, Any]
) -> Departures | None:
    """What has rows leave a run of an LstmPoolForSequenceClassification; None, and it says why, if none may leave.

    `threshold` is the confidence asked for, `tokens` are the run's `input_ids` or `inputs_embeds`, `others` its other
    inputs. Raises ValueError if the model has no exits, or no confidence is like `threshold`.
    """
    exit_confidence("exit_threshold", threshold)
    if model.exits is None:
        raise ValueError(
            f"exit_threshold={threshold} needs a model with exits, and this one has none. Add them with "
            "the training command's --early_exit, or leave exit_threshold at None."
        )
    reason = _why_none_leaves(model, tokens, others)
    if reason is None:
        return Departures(model.exits, model.config, threshold)
    _say_once(reason)
    return None


def _why_none_leaves(model: PreTrainedModel, tokens: Tensor | None, others: dict[str, Any]) -> str | None:
    """Why all rows must be read to the end; None if they may leave."""
    base, config = model.lstmpool, model.config
    backbone = base.backbone
    if model.training or backbone.training:
        return "the model is in training mode"
    asked = [config.pop_flag(dict(others), name) for name in ("output_hidden_states", "output_attentions")]
    if any(asked) or backbone.config.output_hidden_states or backbone.config.output_attentions:
        return "hidden states or attentions are asked for"
    family = config.backbone_config.model_type
    if family not in Families.EARLY_EXIT or not base.capture.streams:
        return f"rows cannot leave a backbone of the family {family}"
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or _is_compiled(base):
        return "the model is compiled, traced or exported"
    if tokens is not None and tokens.is_meta:
        return "the tokens are on the meta device"
    attention = backbone.config._attn_implementation
    if attention not in ("eager", "sdpa"):
        return f"the attention is {attention}"
    if getattr(backbone.config, "chunk_size_feed_forward", 0):
        return "the backbone reads the tokens in chunks (chunk_size_feed_forward)"
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        if torch.distributed.get_world_size() > 1:
            return "several processes run the model together"
    return None


def _is_compiled(base: PreTrainedModel) -> bool:
    """Whether the base model, the backbone, its layers or what lies between has been compiled: there hooks are part of
    a graph."""
    modules, module = [base, base.backbone], base.backbone
    for name in base.layer_stack.split("."):
        module = getattr(module, name)
        modules.append(module)
    modules += list(module)
    return any("_orig_mod" in one._modules or one._compiled_call_impl is not None for one in modules)


@torch.compiler.assume_constant_result  # or it would break a graph that is to be one
def _say_once(reason: str) -> None:
    """Says why every text is read to the end though `exit_threshold` is set."""
    logger.warning_once(f"exit_threshold is set, but every text is read to the end: {reason}.")
