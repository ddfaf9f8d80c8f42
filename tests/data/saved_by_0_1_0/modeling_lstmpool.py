"""An LSTM that reads a pretrained transformer's layers in order, for classification and regression.

    input_ids (B, T) -> backbone, layers 1..N -> one vector a layer, `layer_states` (B, L, H)
    -> layer pooling, a BiLSTM by default -> `pooler_output` (B, D) -> dropout -> classifier -> `logits` (B, C)

Each layer's vector is taken while the backbone runs and the (B, T, H) it came from is let go, so that in inference
memory does not grow with the layers read. B batch, T tokens, L layers read, H backbone hidden size, D pooled size, C
labels.
"""

from __future__ import annotations

import inspect
import threading
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import MODEL_MAPPING, AutoConfig, AutoModel, AutoModelForSequenceClassification, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling, SequenceClassifierOutput

from .configuration_lstmpool import HUB_KEYS, OWN_FIELDS, Families, LstmPoolConfig, is_post_norm, stack_config
from .pooling_lstmpool import POOLING_CLASSES, WeightedPooling, pool_tokens


@dataclass
class LstmPoolModelOutput(BaseModelOutputWithPooling):
    """The library's fields, of which `pooler_output` is (B, D), and `layer_states` (B, L, H)."""

    layer_states: torch.FloatTensor | None = None


@dataclass
class LstmPoolClassifierOutput(SequenceClassifierOutput):
    """The library's fields, and `layer_states` (B, L, H)."""

    layer_states: torch.FloatTensor | None = None


# -------------------------------------------------------------------------------------- one vector a layer, as it runs
_active = threading.local()  # a capture belongs to one forward of one thread


class _Capture:
    """The layer states of one forward, filled by the hooks while the backbone runs."""

    def __init__(self, layers: list[int], pool: partial[Tensor], top_token_alone: bool):
        self.layers, self.pool, self.grad = layers, pool, torch.is_grad_enabled()
        self.top_token_alone = top_token_alone
        self.states: list[Tensor] = []  # (B, H) each

    def record(self, layer: int, hidden: Tensor) -> None:
        """`hidden` (B, T, H) left `layer`, and stands for the layers below it that LayerDrop left out, too."""
        while len(self.states) < len(self.layers) and self.layers[len(self.states)] <= layer:
            if torch.compiler.is_compiling() or not self.grad:
                self.states.append(self.pool(hidden))
            else:
                # Older versions run a checkpointed layer's hooks inside the checkpoint: without gradients, or with the
                # saved tensors counted, which must come again on recomputation, when nothing is captured.
                with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
                    self.states.append(self.pool(hidden))


def _record_input(layer: int, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
    """Forward pre-hook of the module above `layer`: what enters it is what left `layer`."""
    if (capture := getattr(_active, "capture", None)) is not None:
        capture.record(layer, args[0] if args else kwargs["hidden_states"])


def _keep_what_is_read(module: nn.Module, args: tuple, output: Tensor | tuple) -> Tensor | tuple | None:
    """Forward hook in the top layer, where what follows acts on each token alone: (B, T, H) -> (B, 1, H)."""
    capture = getattr(_active, "capture", None)
    if capture is None or not capture.top_token_alone:
        return None
    if isinstance(output, tuple):
        return capture.pool(output[0])[:, None], *output[1:]
    return capture.pool(output)[:, None]


def _one_token_after(backbone: nn.Module, stack: str, config: LstmPoolConfig) -> str | None:
    """The part of the top layer after which, as far as its family goes, the token that is read is alone needed."""
    name = Families.ONE_TOKEN_AFTER.get(config.backbone_config.model_type)
    layers, owner = backbone.get_submodule(stack), backbone.get_submodule(stack.rpartition(".")[0])
    convolved = len(layers) == 1 and getattr(owner, "conv", None) is not None  # DeBERTa's follows the lowest layer
    return name if name is not None and hasattr(layers[-1], name) and not convolved else None


def _is_plain(module: nn.Module) -> bool:
    """Whether it does what the library's class does, once. Code of one's own may mix tokens, or want to see them all,
    and what is checkpointed runs again in the backward pass, when no capture says that one token is enough."""
    known, watching = ("transformers.", "torch.nn.", "torch.ao.nn.", "peft."), (__name__, "transformers.")
    kinds = (module._forward_pre_hooks, module._forward_hooks, module._backward_pre_hooks, module._backward_hooks)
    hooks = [hook for kind in kinds for hook in kind.values()]
    return (
        (isinstance(module, nn.Linear) or type(module).__module__.startswith(known))
        and ("forward" not in vars(module) or hasattr(module, "_hf_hook"))  # a device_map moves what goes in
        and all(str(getattr(hook, "func", hook).__module__).startswith(watching) for hook in hooks)
        and not (module.training and getattr(module, "gradient_checkpointing", False))
    )


# -------------------------------------------------------------------------------------------------------- the backbone
def _reduce(backbone: PreTrainedModel, config: LstmPoolConfig) -> tuple[PreTrainedModel, str | None]:
    """Takes from a backbone what nothing reads, and names its stack of layers (None where that is not certain)."""
    if config.backbone_config.is_encoder_decoder:
        backbone = backbone.get_encoder()
    family, text_family = config.backbone_config.model_type, stack_config(config.backbone_config).model_type
    if backbone.config.model_type != text_family:  # of a model of texts and images, the text model
        inner = (module for module in backbone.modules() if isinstance(module, PreTrainedModel))
        backbone = next((module for module in inner if module.config.model_type == text_family), backbone)
    if isinstance(getattr(backbone, "pooler", None), nn.Module):
        backbone.pooler = nn.Identity()  # some families call it without asking whether it is there
    total, top = config.num_hidden_layers, config.layers[-1]
    lists = {name: module for name, module in backbone.named_modules() if isinstance(module, nn.ModuleList)}
    stacks = [name for name in lists if len(lists[name]) == total]
    if len(stacks) != 1 or family in Families.NOT_A_STACK or len(set(lists[stacks[0]])) < total:  # a layer twice
        return backbone, None
    if top < total:
        del lists[stacks[0]][top:]
        norms = Families.FINAL_NORM_OF.get(family, Families.FINAL_NORMS)
        for owner in (backbone.get_submodule(stacks[0].rpartition(".")[0]), backbone):
            for norm in [] if is_post_norm(config.backbone_config) else norms:
                if isinstance(getattr(owner, norm, None), nn.Module):
                    setattr(owner, norm, nn.Identity())  # it belongs to a layer that is not there
        if ties := getattr(backbone, "all_tied_weights_keys", None):  # those with a layer that is not there are void
            built = {name for name, _ in backbone.named_parameters(remove_duplicate=False)}
            backbone.all_tied_weights_keys = {one: other for one, other in ties.items() if {one, other} <= built}
    return backbone, None if family in Families.NOT_HOOKED else stacks[0]


# ---------------------------------------------------------------------------------------------------------- the models
class LstmPoolPreTrainedModel(PreTrainedModel):
    """Loading, saving and initialisation, shared by the two models."""

    config_class = LstmPoolConfig
    base_model_prefix = "lstmpool"
    # the backbone decides for itself, and says no where it must
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True
    accepts_loss_kwargs = False  # or Trainer concludes from the **kwargs of `forward` that the loss is a sum

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.RNNBase):  # as torch does; the library knows the LSTM, but not the GRU
            for parameter in module.parameters():
                nn.init.uniform_(parameter, -(module.hidden_size**-0.5), module.hidden_size**-0.5)
        elif isinstance(module, WeightedPooling):
            nn.init.zeros_(module.layer_weights)
        else:
            super()._init_weights(module)

    @classmethod
    def from_backbone(cls, name_or_path: str, **kwargs) -> LstmPoolPreTrainedModel:
        """A model on the pretrained weights of a Hub repository or folder, with a new pooler (and classifier).

        Fields of [`LstmPoolConfig`], `num_labels`, `id2label`, `label2id` and `problem_type` go to the config, other
        keywords to the loading of the backbone (`revision`, `dtype`, `trust_remote_code`, `attn_implementation` ...).
        With `output_loading_info=True`, (model, report), where `missing_keys` include those of the new modules. Raises
        ValueError for a field that no model can be built from, or a checkpoint that is an LstmPool already.
        """
        fields = {name: kwargs.pop(name) for name in OWN_FIELDS if name in kwargs}
        report = kwargs.pop("output_loading_info", False)
        hub = {key: kwargs[key] for key in HUB_KEYS if key in kwargs}
        found = kwargs.get("config") or AutoConfig.from_pretrained(name_or_path, **hub)
        LstmPoolConfig(backbone_config=found, **fields)  # a wrong field is told before any weights are read
        if found.model_type == "funnel":  # with the class that the config above has chosen
            kwargs["config"] = found
        known = MODEL_MAPPING.get(type(found), None)
        if isinstance(known, type) and "add_pooling_layer" in inspect.signature(known.__init__).parameters:
            kwargs["add_pooling_layer"] = False  # the library then reports that the checkpoint has one
        backbone, info = AutoModel.from_pretrained(name_or_path, output_loading_info=True, **kwargs)

        model = cls(LstmPoolConfig(backbone_config=backbone.config, **fields), backbone=backbone).eval()
        for module in (model.base_model.pooler, getattr(model, "classifier", nn.Identity())):
            module.to(device=backbone.device, dtype=backbone.dtype)
        new = {key for key in model.state_dict() if ".backbone." not in f".{key}"}
        return (model, {**info, "missing_keys": new | set(info["missing_keys"])}) if report else model


class LstmPoolModel(LstmPoolPreTrainedModel):
    """A backbone whose layers are read in order and pooled into one vector a text. Weights are random: `from_backbone`
    gives pretrained ones. A `backbone` passed in is taken over, and what nothing reads is removed from it."""

    def __init__(self, config: LstmPoolConfig, backbone: PreTrainedModel | None = None):
        config.resolve()
        super().__init__(config)
        if backbone is None:
            backbone = AutoModel.from_config(config.backbone_config, dtype=torch.get_default_dtype())
        self.supports_gradient_checkpointing = backbone.supports_gradient_checkpointing
        self.backbone, self._stack = _reduce(backbone, config)
        self.pooler = POOLING_CLASSES[config.layer_pooling](config)

        self._streams = self._stack is not None
        layers = self.backbone.get_submodule(self._stack) if self._streams else ()
        for layer, module in enumerate(layers):  # now: a hook added to a compiled backbone is never called
            module.register_forward_pre_hook(partial(_record_input, layer), with_kwargs=True)
        part = _one_token_after(self.backbone, self._stack, config) if self._streams else None
        self._top_token_alone = part is not None
        if part is not None:
            getattr(layers[-1], part).register_forward_hook(_keep_what_is_read)
        self._accepted = frozenset(inspect.signature(self.backbone.forward).parameters)
        # RoBERTa and its kin number the tokens that are not padding themselves, from an offset
        tables = [m for name, m in self.backbone.named_modules() if name.endswith("position_embeddings")]
        offset = any(getattr(table, "padding_idx", None) is not None for table in tables)
        self._counts_positions = not offset and config.backbone_config.model_type not in Families.OFFSET_POSITIONS
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.backbone.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.backbone.set_input_embeddings(value)

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        layer_states: torch.FloatTensor | None = None,
        needs_last_hidden_state: bool = True,
        **kwargs,
    ) -> LstmPoolModelOutput | tuple:
        """Runs the backbone on `input_ids` (B, T) or `inputs_embeds` (B, T, H), and pools its layers; or pools
        `layer_states` (B, L, H) of an earlier run, and ignores the other inputs.

        `attention_mask` (B, T) is 0 where a token is padding, on either side; `position_ids` (B, T), unset, count from
        each row's first kept token; `token_type_ids` (B, T) are ignored by backbones that have none. Without
        `needs_last_hidden_state` that is None, and the top layer may leave out what is not read of it. `kwargs`:
        `output_hidden_states`, `output_attentions`, `return_dict`, and inputs of the backbone's own, such as `bbox`.

        Raises ValueError for inputs of the wrong shape, or none, and TypeError for one that the backbone has not.
        """
        wants_states, wants_attentions, return_dict = (
            self.config.pop_flag(kwargs, name) for name in ("output_hidden_states", "output_attentions", "return_dict")
        )
        fields = {}
        if layer_states is None:
            named = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
            named |= {"position_ids": position_ids, "inputs_embeds": inputs_embeds}
            inputs, kept = self._check_inputs(named, kwargs)
            inputs |= {"output_attentions": True} if wants_attentions else {}
            inputs |= {"output_hidden_states": True} if wants_states or not self._streams else {}
            alone = not (needs_last_hidden_state or wants_states or wants_attentions) and self._reads_one_token()
            outputs, layer_states = self._run_backbone(inputs, kept, alone)
            fields = {"attentions": outputs.get("attentions")}
            fields["last_hidden_state"] = outputs.last_hidden_state if needs_last_hidden_state else None
            fields["hidden_states"] = outputs.get("hidden_states") if wants_states else None
        layers, hidden, found = len(self.config.layers), self.config.hidden_size, tuple(layer_states.shape)
        if found[1:] != (layers, hidden):
            raise ValueError(f"layer_states must be (B, layers, hidden) = (B, {layers}, {hidden}), got {found}.")
        result = LstmPoolModelOutput(pooler_output=self.pooler(layer_states), layer_states=layer_states, **fields)
        return result if return_dict else result.to_tuple()

    def _check_inputs(self, named: dict[str, Tensor | None], others: dict[str, Any]) -> tuple[dict[str, Any], Tensor]:
        """What the backbone is called with, and which tokens are kept, (B, T)."""
        if unknown := others.keys() - self._accepted:
            takes = sorted(self._accepted - {"args", "kwargs"})
            raise TypeError(f"{sorted(unknown)} are no inputs of {type(self.backbone).__name__}, which takes {takes}.")
        if (named["input_ids"] is None) == (named["inputs_embeds"] is None):
            raise ValueError("Give one of input_ids (B, T), inputs_embeds (B, T, H) and layer_states (B, L, H).")
        tokens = named["inputs_embeds"] if named["input_ids"] is None else named["input_ids"]
        mask, shape = named["attention_mask"], tokens.shape[:2]  # (B, T)
        if len(shape) != 2 or (mask is not None and mask.shape != shape):
            got = f"{tuple(shape)} and {None if mask is None else tuple(mask.shape)}"
            raise ValueError(f"the tokens and attention_mask must have one shape, (B, T), got {got}.")
        kept = tokens.new_ones(shape) if mask is None else mask
        first = (kept != 0).int().argmax(1, keepdim=True)  # (B, 1)
        if mask is not None and named["position_ids"] is None and self._counts_positions:
            named["position_ids"] = (torch.arange(shape[1], device=first.device) - first).clamp(min=0)  # (B, T)
        inputs = {**named, **others, "use_cache": False}  # a decoder's cache serves generation
        if "global_attention_mask" in self._accepted - others.keys():  # Longformer's CLS sees the whole text
            inputs["global_attention_mask"] = F.one_hot(first[:, 0], shape[1])  # (B, T)
        return {key: value for key, value in inputs.items() if key in self._accepted and value is not None}, kept

    def _reads_one_token(self) -> bool:
        """Whether the top layer may run, after its attention, for the token alone that is read of it."""
        if not self._top_token_alone or self.config.token_readout != "first":
            return False
        try:
            owner = self.backbone.get_submodule(self._stack.rpartition(".")[0])
            top = self.backbone.get_submodule(self._stack)[-1]
        except AttributeError:  # the backbone was put into something else
            return False
        if getattr(top, "chunk_size_feed_forward", 0):  # which asks for whole chunks of tokens
            return False
        compiled = any(module._compiled_call_impl is not None for module in top.modules())  # past its hooks
        return not compiled and all(_is_plain(module) for module in (self.backbone, owner, *top.modules()))

    def _run_backbone(self, inputs: dict[str, Any], kept: Tensor, top_token_alone: bool) -> tuple[Any, Tensor]:
        """The backbone's outputs, and the layer states (B, L, H) taken on the way."""
        layers, pool = self.config.layers, partial(pool_tokens, attention_mask=kept, how=self.config.token_readout)
        capture = _Capture(layers, pool, top_token_alone)
        outer, _active.capture = getattr(_active, "capture", None), capture
        try:
            outputs = self.backbone(**inputs, return_dict=True)
        finally:
            _active.capture = outer
        if top_token_alone:
            if outputs.last_hidden_state.size(1) > 1:  # it was added to all tokens after all
                self._top_token_alone = False
                del outputs, capture  # what they hold is not held twice
                return self._run_backbone(inputs, kept, False)
            capture.pool = lambda hidden: hidden[:, 0]
        if self._streams:
            if len(capture.states) < len(layers) - 1 and not self.training:  # LayerDrop leaves layers out in training
                raise RuntimeError(f"{type(self.backbone).__name__} ran without calling the layers {layers} in order.")
            capture.record(layers[-1], outputs.last_hidden_state)
        states = capture.states if self._streams else [pool(outputs.hidden_states[layer]) for layer in layers]
        # (B, L, H); with a device_map the layers may lie on several devices
        return outputs, torch.stack([state.to(states[-1].device) for state in states], dim=1)


class LstmPoolForSequenceClassification(LstmPoolPreTrainedModel):
    """[`LstmPoolModel`] with dropout and a linear head, for one class a text, several labels, or numbers."""

    def __init__(self, config: LstmPoolConfig, backbone: PreTrainedModel | None = None):
        super().__init__(config)
        self.lstmpool = LstmPoolModel(config, backbone)
        self.supports_gradient_checkpointing = self.lstmpool.supports_gradient_checkpointing
        self.dropout = nn.Dropout(config.pooler_dropout)
        self.classifier = nn.Linear(self.lstmpool.pooler.output_size, config.num_labels)
        self.post_init()

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        layer_states: torch.FloatTensor | None = None,
        labels: Tensor | None = None,
        **kwargs,
    ) -> LstmPoolClassifierOutput | tuple:
        """Takes what [`LstmPoolModel`] takes, and `labels`; the loss is their mean over the batch, in float32.

        By `config.problem_type`: "single_label_classification" wants integers (B,), -100 where a row does not count;
        "multi_label_classification" zeros and ones (B, C); "regression" numbers (B, C), or (B,) if C is 1. Raises
        ValueError for others."""
        return_dict = self.config.pop_flag(kwargs, "return_dict")
        inputs = (input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, layer_states)
        outputs = self.lstmpool(*inputs, **kwargs, needs_last_hidden_state=False, return_dict=True)
        logits = self.classifier(self.dropout(outputs.pooler_output))  # (B, C)
        loss = None if labels is None else self._loss(logits, labels.to(logits.device))
        extras = {name: outputs.get(name) for name in ("hidden_states", "attentions", "layer_states")}
        result = LstmPoolClassifierOutput(loss=loss, logits=logits, **extras)
        return result if return_dict else result.to_tuple()

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        self._check_labels(labels, batch_size=len(logits), read_values=not torch.compiler.is_compiling())
        if self.config.problem_type == "single_label_classification":
            return F.cross_entropy(logits.float(), labels.long())
        loss = F.mse_loss if self.config.problem_type == "regression" else F.binary_cross_entropy_with_logits
        return loss(logits.float(), labels.view_as(logits).float())

    def _check_labels(self, labels: Tensor, batch_size: int, read_values: bool) -> None:
        """Raises ValueError for labels of another shape or kind, or (if `read_values`) another range, than the loss
        for `problem_type` and `num_labels` needs."""
        n, problem_type = self.config.num_labels, self.config.problem_type
        single = problem_type == "single_label_classification"
        shapes = [(batch_size,)] if single else [(batch_size, n), *([(batch_size,)] if n == 1 else [])]
        ok = tuple(labels.shape) in shapes and not (single and labels.is_floating_point())
        if ok and read_values:
            allowed = labels == labels  # a missing number, NaN, is not equal to itself
            if problem_type != "regression":
                allowed = (labels >= 0) & (labels <= (n - 1 if single else 1)) | (single & (labels == -100))
            ok = bool(allowed.all())
        if not ok:
            kind = {"regression": "numbers", "multi_label_classification": "zeros and ones"}
            raise ValueError(
                f"labels for problem_type={problem_type!r} must be {kind.get(problem_type, 'integers')} of shape "
                f"{shapes[0]}" + (f" in 0..{n - 1}" if single else "") + f", got {labels.dtype} of shape "
                f"{tuple(labels.shape)}: {labels.flatten()[:8].tolist()} ... Set problem_type to what the labels are, "
                f"and num_labels ({n}) to how many there are."
            )


AutoModel.register(LstmPoolConfig, LstmPoolModel, exist_ok=True)
AutoModelForSequenceClassification.register(LstmPoolConfig, LstmPoolForSequenceClassification, exist_ok=True)
LstmPoolModel.register_for_auto_class("AutoModel")
LstmPoolForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")
