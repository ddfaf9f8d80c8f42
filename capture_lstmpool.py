"""The layer states: one vector for each layer that is read, taken while a backbone runs that is cut to these layers.

    hidden (B, T, H) leaves a layer -> token pooling -> (B, H), kept, while (B, T, H) is let go
    the vectors of all layers read, stacked -> `layer_states` (B, L, H)

Inference therefore needs no more memory than the bare backbone. What leaves a layer is what enters the layer above, so
each layer has a hook that sees its input; the highest state is the backbone's own `last_hidden_state`, which comes
after the final norm where there is one. The hooks are set when the model is built and stay: a hook that is added to a
compiled module is never called. Where the layers are not known with certainty, the backbone returns all its hidden
states, and the same vectors are taken from them after the run.

B batch, T tokens, L layers read, H backbone hidden size.
"""

from __future__ import annotations

import threading
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .configuration_lstmpool import LstmPoolConfig
from .exits_lstmpool import AllLeft, Departures
from .families_lstmpool import Families, is_post_norm, stack_config
from .pooling_lstmpool import pool_tokens


_this_thread = threading.local()  # `taken`: the states of the run that goes on in this thread


def layer_lists(backbone: PreTrainedModel, count: int) -> list[str]:
    """Names, within `backbone`, of the module lists that may be its stack of `count` layers."""
    if backbone.config.model_type in Families.NOT_A_STACK:
        return []
    lists = {name: module for name, module in backbone.named_modules() if isinstance(module, nn.ModuleList)}
    return [name for name, layers in lists.items() if len(layers) == count]


def find_stack(backbone: PreTrainedModel, count: int) -> str | None:
    """Name, within `backbone`, of the list of its `count` layers, lowest first; None where that is not certain."""
    names = layer_lists(backbone, count)
    if len(names) != 1:
        return None
    # of a layer that stands in two places, a hook could not tell which of them it is called for
    stands_once = len(set(backbone.get_submodule(names[0]))) == count
    return names[0] if stands_once else None


def prepare_backbone(backbone: PreTrainedModel, config: LstmPoolConfig) -> tuple[PreTrainedModel, str | None]:
    """The part of a backbone that is read, without what nothing reads, and the name of its list of layers.

    The name is None where the list is not known with certainty; then all layers are kept.
    """
    backbone = _text_encoder(backbone, config)
    if isinstance(getattr(backbone, "pooler", None), nn.Module):
        backbone.pooler = nn.Identity()  # some families call it without asking whether it is there
    stack = find_stack(backbone, config.num_hidden_layers)
    if stack is not None and config.layers[-1] < config.num_hidden_layers:
        _cut(backbone, stack, config)
    return backbone, stack


def _text_encoder(backbone: PreTrainedModel, config: LstmPoolConfig) -> PreTrainedModel:
    """Of an encoder-decoder its encoder, of a model of texts and images its text model."""
    if config.backbone_config.is_encoder_decoder:
        backbone = backbone.get_encoder()
    text_family = stack_config(config.backbone_config).model_type
    if backbone.config.model_type == text_family:
        return backbone
    for module in backbone.modules():
        if isinstance(module, PreTrainedModel) and module.config.model_type == text_family:
            return module
    return backbone


def _cut(backbone: PreTrainedModel, stack: str, config: LstmPoolConfig) -> None:
    """Removes the layers above the highest that is read, and what belongs to them."""
    del backbone.get_submodule(stack)[config.layers[-1] :]
    if not is_post_norm(config.backbone_config):  # the final norm follows the top layer, which is gone
        norms = Families.FINAL_NORM_OF.get(config.backbone_config.model_type, Families.FINAL_NORMS)
        for owner in (backbone.get_submodule(stack.rpartition(".")[0]), backbone):
            for norm in norms:
                if isinstance(getattr(owner, norm, None), nn.Module):
                    setattr(owner, norm, nn.Identity())
    ties = getattr(backbone, "all_tied_weights_keys", None)
    if ties:  # those with a removed layer are void
        built = {name for name, _ in backbone.named_parameters(remove_duplicate=False)}
        backbone.all_tied_weights_keys = {one: other for one, other in ties.items() if {one, other} <= built}


def counts_positions(backbone: PreTrainedModel, config: LstmPoolConfig) -> bool:
    """Whether tokens are numbered from 0. RoBERTa and its kin number those that are not padding, from an offset."""
    if config.backbone_config.model_type in Families.OFFSET_POSITIONS:
        return False
    tables = [module for name, module in backbone.named_modules() if name.endswith("position_embeddings")]
    return all(getattr(table, "padding_idx", None) is None for table in tables)


class LayerCapture:
    """Runs a backbone, and takes the states of the layers that `config` names on the way.

    `stack` is the name of the backbone's list of layers, as `find_stack` gives it. No module is held: the backbone may
    be moved, compiled or wrapped later.
    """

    def __init__(self, backbone: PreTrainedModel, stack: str | None, config: LstmPoolConfig):
        self.config = config
        self.streams = stack is not None and config.backbone_config.model_type not in Families.NOT_HOOKED
        if self.streams:
            for layer, module in enumerate(backbone.get_submodule(stack)):
                module.register_forward_pre_hook(partial(_take_input, layer), with_kwargs=True)

    def run(
        self, backbone: nn.Module, inputs: dict[str, Any], kept: Tensor, departures: Departures | None = None
    ) -> tuple[Any, Tensor | None]:
        """The backbone's outputs for `inputs`, and the layer states (B, L, H).

        `kept` (B, T) is 0 where a token is padding. By `departures` rows leave on the way: then both are those of the
        rows that were read to the end, and None if no row was. Raises RuntimeError if the backbone did not call its
        layers.
        """
        if self.streams:
            try:
                outputs, states = self._run_hooked(backbone, inputs, kept, departures)
            except AllLeft:
                return None, None
        else:
            outputs, states = self._run_whole(backbone, inputs, kept)
        device = states[-1].device  # with a device_map the layers may lie on several
        return outputs, torch.stack([state.to(device) for state in states], dim=1)  # (B, L, H)

    def _run_hooked(
        self, backbone: nn.Module, inputs: dict[str, Any], kept: Tensor, departures: Departures | None
    ) -> tuple[Any, list[Tensor]]:
        """The states are taken by the hooks; only (B, H) of each layer stays."""
        layers = self.config.layers
        taken = _Taken(layers, self.config.token_readout, kept, departures)
        outer = getattr(_this_thread, "taken", None)  # of a model in one of whose layers this one runs
        _this_thread.taken = taken
        try:
            outputs = backbone(**inputs, return_dict=True)
        finally:
            _this_thread.taken = outer
        if len(taken.states) < len(layers) - 1 and not backbone.training:  # in training LayerDrop leaves layers out
            raise RuntimeError(f"{type(backbone).__name__} ran without calling the layers {layers} in order.")
        taken.add(layers[-1], outputs.last_hidden_state)
        return outputs, taken.states

    def _run_whole(self, backbone: nn.Module, inputs: dict[str, Any], kept: Tensor) -> tuple[Any, list[Tensor]]:
        """The states are taken after the run; (B, T, H) of every layer stays until then."""
        inputs["output_hidden_states"] = True
        outputs = backbone(**inputs, return_dict=True)
        how = self.config.token_readout
        return outputs, [pool_tokens(outputs.hidden_states[layer], kept, how) for layer in self.config.layers]


class _Taken:
    """The states that have been taken in one run, the lowest layer's first."""

    def __init__(self, layers: list[int], how: str, kept: Tensor, departures: Departures | None):
        self.layers = layers
        self.how = how
        self.kept = kept  # (B, T)
        self.departures = departures
        if departures is not None:
            departures.start(kept)
        self.with_gradients = torch.is_grad_enabled()
        self.states: list[Tensor] = []  # (B, H) each

    def add(self, layer: int, hidden: Tensor) -> None:
        """`hidden` (B, T, H) left `layer`. It also stands for the layers below that LayerDrop left out."""
        while len(self.states) < len(self.layers) and self.layers[len(self.states)] <= layer:
            self.states.append(self._pool(hidden))

    def _pool(self, hidden: Tensor) -> Tensor:
        if torch.compiler.is_compiling() or not self.with_gradients:
            return pool_tokens(hidden, self.kept, self.how)
        # Older versions run the hooks of a checkpointed layer inside the checkpoint. There gradients may be off, and
        # saved tensors are counted: the second run, in the backward pass, takes no states and must save as many.
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(_unchanged, _unchanged):
            return pool_tokens(hidden, self.kept, self.how)

    def enter(self, layer: int, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple | None:
        """`module`, the one above `layer`, is about to run. What it is called with instead, if rows have left."""
        self.add(layer, args[0] if args else kwargs["hidden_states"])
        if self.departures is None:
            return None
        instead = self.departures.enter(layer, self.states, module, args, kwargs)
        self.kept = self.departures.kept
        return instead


def _take_input(layer: int, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple | None:
    """Pre-hook of the module above `layer`: what enters it is what left `layer`."""
    taken = getattr(_this_thread, "taken", None)
    if taken is None:  # someone runs the bare backbone
        return None
    return taken.enter(layer, module, args, kwargs)


def _unchanged(tensor: Tensor) -> Tensor:
    return tensor
