"""An LSTM that reads a pretrained transformer's layers in order, for classification and regression.

    input_ids (B, T) -> backbone, layers 1..N -> one vector a layer, `layer_states` (B, L, S)
    -> layer pooling, a BiLSTM by default -> `pooler_output` (B, D) -> dropout -> classifier -> `logits` (B, C)
    with `linear_skip`, a linear map of `layer_states` is added to the `logits`

Each layer's vector is taken while the backbone runs and the (B, T, H) it came from is let go, so that in inference
memory does not grow with the layers read. B batch, T tokens, L layers read, H backbone hidden size, S width of a
layer's vector (H, or 4 H for pairs that are read apart), D pooled size, C labels.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    MODEL_MAPPING,
    AutoModel,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling, SequenceClassifierOutput

from .capture_lstmpool import LayerCapture, counts_positions, prepare_backbone
from .configuration_lstmpool import HUB_KEYS, OWN_FIELDS, LstmPoolConfig, read_config
from .exits_lstmpool import Departures, LayerExits, departures_of
from .families_lstmpool import QUANTISE_LATER, quantisation_of, stated_token_pooling
from .fields_lstmpool import APART, check_exits, no_model
from .loss_lstmpool import loss_of
from .pairs_lstmpool import compare, load_template, padding_id, take_apart
from .pooling_lstmpool import POOLING_CLASSES, LayerStandardization, LinearSkip, WeightedPooling


@dataclass
class LstmPoolModelOutput(BaseModelOutputWithPooling):
    """The library's fields, of which `pooler_output` is (B, D), and `layer_states` (B, L, S)."""

    layer_states: torch.FloatTensor | None = None


@dataclass
class LstmPoolClassifierOutput(SequenceClassifierOutput):
    """The library's fields, `layer_states` (B, L, S), which are None where texts may leave early, and `exit_layers`
    (B,), the layers to which the texts were then read."""

    layer_states: torch.FloatTensor | None = None
    exit_layers: torch.LongTensor | None = None


# ---------------------------------------------------------------------------------------------------------- the models
class LstmPoolPreTrainedModel(PreTrainedModel):
    """Loading, saving and initialisation, shared by the two models."""

    config_class = LstmPoolConfig
    base_model_prefix = "lstmpool"
    # the backbone decides for itself, and says no where it must
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    accepts_loss_kwargs = False  # or Trainer concludes from the **kwargs of `forward` that the loss is a sum

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.RNNBase):  # as torch does; the library knows the LSTM, but not the GRU
            bound = module.hidden_size**-0.5
            for parameter in module.parameters():
                nn.init.uniform_(parameter, -bound, bound)
        elif isinstance(module, WeightedPooling):
            nn.init.zeros_(module.layer_weights)
        elif isinstance(module, LayerStandardization):
            nn.init.zeros_(module.mean)
            nn.init.ones_(module.scale)
        elif isinstance(module, LinearSkip):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.mean)
            nn.init.ones_(module.scale)
        else:
            super()._init_weights(module)

    @classmethod
    def from_backbone(cls, name_or_path: str, **kwargs) -> LstmPoolPreTrainedModel:
        """A model on the pretrained weights of a Hub repository or folder, with a new pooler (and classifier).

        Fields of [`LstmPoolConfig`], `num_labels`, `id2label`, `label2id` and `problem_type` go to the config. Unset,
        `token_pooling` is what a sentence-transformers model states for itself; with `pair_encoding="apart"`, an unset
        `pair_template` is made of the tokenizer in the same place. Other keywords go to the loading of the backbone
        (`revision`, `dtype`, `trust_remote_code`, `attn_implementation` ...). With `output_loading_info=True` it
        returns (model, report), and the report's `missing_keys` include those of the new modules. Raises ValueError
        for a field that no model can be built from, a checkpoint that is an LstmPool already, or quantised weights.
        """
        fields = {name: kwargs.pop(name) for name in OWN_FIELDS if name in kwargs}
        report = kwargs.pop("output_loading_info", False)
        hub = {key: kwargs[key] for key in HUB_KEYS if key in kwargs}
        found = kwargs.get("config") or read_config(name_or_path, **hub)
        if method := quantisation_of(found, kwargs):
            raise ValueError(f"the backbone must be in full precision, got {method} quantisation. {QUANTISE_LATER}")
        if fields.get("pair_encoding") == APART and fields.get("pair_template") is None:
            fields["pair_template"] = load_template(name_or_path, **hub)
        LstmPoolConfig(backbone_config=found, **fields)  # a wrong field is refused before any weights are read
        if fields.get("token_pooling") is None and (stated := stated_token_pooling(name_or_path, found, **hub)):
            fields["token_pooling"] = stated[0]
        if found.model_type == "funnel":  # with the class that the config above has chosen
            kwargs["config"] = found
        known = MODEL_MAPPING.get(type(found), None)
        if isinstance(known, type) and "add_pooling_layer" in inspect.signature(known.__init__).parameters:
            kwargs["add_pooling_layer"] = False  # the library then reports that the checkpoint has one
        with no_model(f"no {found.model_type} can be built from {name_or_path}", ValueError, RuntimeError, TypeError):
            backbone, info = AutoModel.from_pretrained(name_or_path, output_loading_info=True, **kwargs)

        model = cls(LstmPoolConfig(backbone_config=backbone.config, **fields), backbone=backbone).eval()
        new = [getattr(model, name, None) for name in ("classifier", "linear_skip", "exits")]
        for module in (model.base_model.pooler, *new):
            if module is not None:
                module.to(device=backbone.device, dtype=backbone.dtype)
        if not report:
            return model
        info["missing_keys"] = set(info["missing_keys"])
        info["missing_keys"] |= {key for key in model.state_dict() if ".backbone." not in f".{key}"}
        return model, info


class LstmPoolModel(LstmPoolPreTrainedModel):
    """A backbone whose layers are read in order and pooled into one vector a text.

    Weights are random: `from_backbone` gives pretrained ones. A `backbone` passed in is taken over, and what nothing
    reads is removed from it. `layer_stack` is the name of its list of layers, or None.
    """

    _keys_to_ignore_on_load_unexpected = [r"^(classifier|linear_skip|exits)\."]  # of the classifier on top

    def __init__(self, config: LstmPoolConfig, backbone: PreTrainedModel | None = None):
        config.resolve()
        super().__init__(config)
        if backbone is None:
            family = config.backbone_config.model_type
            with no_model(f"no {family} can be built from backbone_config", ValueError, torch.OutOfMemoryError):
                backbone = AutoModel.from_config(config.backbone_config, dtype=torch.get_default_dtype())
        self.supports_gradient_checkpointing = backbone.supports_gradient_checkpointing
        self.backbone, self.layer_stack = prepare_backbone(backbone, config)
        self.capture = LayerCapture(self.backbone, self.layer_stack, config)
        self.pooler = POOLING_CLASSES[config.layer_pooling](config)
        self._accepted = frozenset(inspect.signature(self.backbone.forward).parameters)
        if "input_ids" not in self._accepted or not isinstance(self.backbone, PreTrainedModel):
            kind = type(self.backbone).__name__
            raise ValueError(f"backbone_config must describe a model that reads texts (input_ids), got {kind}.")
        self._counts_positions = counts_positions(self.backbone, config)
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
        departures: Departures | None = None,
        **kwargs,
    ) -> LstmPoolModelOutput | tuple:
        """Runs the backbone on `input_ids` (B, T) or `inputs_embeds` (B, T, H), and pools its layers.

        Given `layer_states` (B, L, S) of an earlier run, it pools those and ignores the other inputs. `attention_mask`
        (B, T) is 0 where a token is padding, on either side. `position_ids` (B, T), unset, count from each row's first
        kept token. `token_type_ids` (B, T) are ignored by backbones that have none. `kwargs`: `output_hidden_states`
        (True, or the indices of those to return; the others are None), `output_attentions`, `return_dict`, and inputs
        of the backbone's own, such as `bbox`.

        With `pair_encoding="apart"`, a row is a pair of texts as the tokenizer joins them, and the backbone reads each
        text by itself: `last_hidden_state`, `hidden_states` and `attentions` have 2 B rows, the first texts and then
        the second. Inputs that cannot be parted are then refused.

        `departures` are the exits of a classifier on top: rows that leave by them are missing from the outputs, which
        are all None if every row has left.

        Raises ValueError for inputs of the wrong shape, or none, and TypeError for one that the backbone lacks.
        """
        wants_states = self.config.pop_flag(kwargs, "output_hidden_states")
        wants_attentions = self.config.pop_flag(kwargs, "output_attentions")
        return_dict = self.config.pop_flag(kwargs, "return_dict")
        fields = {}
        if layer_states is None:
            named = {
                "input_ids": input_ids,
                "attention_mask": attention_mask,
                "token_type_ids": token_type_ids,
                "position_ids": position_ids,
                "inputs_embeds": inputs_embeds,
            }
            self._check_shapes(named, kwargs)
            apart = self.config.pair_encoding == APART
            inputs, kept = self._backbone_inputs(self._apart(named, kwargs) if apart else named, kwargs)
            if wants_states:
                inputs["output_hidden_states"] = True
            if wants_attentions:
                inputs["output_attentions"] = True
            outputs, layer_states = self.capture.run(self.backbone, inputs, kept, departures)  # (B, L, H)
            if outputs is None:
                return LstmPoolModelOutput()
            if apart:  # so far they were (2 B, L, H)
                layer_states = compare(layer_states)
            fields["last_hidden_state"] = outputs.last_hidden_state  # (B, T, H)
            fields["hidden_states"] = _asked_for(outputs.get("hidden_states"), wants_states)
            fields["attentions"] = outputs.get("attentions")
        expected = (len(self.config.layers), self.config.state_size)
        if layer_states.shape[1:] != expected:
            raise ValueError(
                f"layer_states must be (B, layers, width) = (B, {expected[0]}, {expected[1]}), "
                f"got {tuple(layer_states.shape)}."
            )
        pooled = self.pooler(layer_states)  # (B, D)
        result = LstmPoolModelOutput(pooler_output=pooled, layer_states=layer_states, **fields)
        return result if return_dict else result.to_tuple()

    def _check_shapes(self, named: dict[str, Tensor | None], others: dict[str, Any]) -> None:
        """Refuses inputs that the backbone lacks, that contradict each other, or whose shapes do."""
        unknown = others.keys() - self._accepted
        if unknown:
            takes = sorted(self._accepted - {"args", "kwargs"})
            raise TypeError(f"{sorted(unknown)} are no inputs of {type(self.backbone).__name__}, which takes {takes}.")
        if (named["input_ids"] is None) == (named["inputs_embeds"] is None):
            raise ValueError("Give one of input_ids (B, T), inputs_embeds (B, T, H) and layer_states (B, L, H).")
        tokens = named["inputs_embeds"] if named["input_ids"] is None else named["input_ids"]
        mask = named["attention_mask"]  # (B, T)
        shape = tokens.shape[:2]
        if len(shape) != 2 or (mask is not None and mask.shape != shape):
            got = f"{tuple(shape)} and {None if mask is None else tuple(mask.shape)}"
            raise ValueError(f"the tokens and attention_mask must have one shape, (B, T), got {got}.")

    def _apart(self, named: dict[str, Tensor | None], others: dict[str, Any]) -> dict[str, Tensor | None]:
        """The inputs (B, T) of pairs as those of single texts, (2 B, T')."""
        whole = [name for name in ("inputs_embeds", "position_ids") if named[name] is not None]
        whole += [name for name, value in others.items() if isinstance(value, Tensor)]
        if whole:
            raise ValueError(
                f"pair_encoding='apart' takes input_ids, attention_mask and token_type_ids of a pair, got {whole}, "
                "which cannot be parted. Leave it out, or use a model with pair_encoding='joint'."
            )
        token = padding_id(self.config.backbone_config)
        ids, mask = take_apart(named["input_ids"], named["attention_mask"], self.config.pair_template, token)
        types = None if named["token_type_ids"] is None else torch.zeros_like(ids)
        return named | {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}

    def _backbone_inputs(
        self, named: dict[str, Tensor | None], others: dict[str, Any]
    ) -> tuple[dict[str, Any], Tensor]:
        """What the backbone is called with, and which tokens are kept, (B, T)."""
        tokens = named["inputs_embeds"] if named["input_ids"] is None else named["input_ids"]
        mask = named["attention_mask"]  # (B, T)
        shape = tokens.shape[:2]
        if shape[1] == 0:  # texts of which a tokenizer makes nothing: one token of padding stands for each
            named = {name: _one_of_padding(values) for name, values in named.items()}
            others = {name: _one_of_padding(values) for name, values in others.items()}
            return self._backbone_inputs(named | {"attention_mask": tokens.new_zeros(shape[0], 1).long()}, others)
        kept = tokens.new_ones(shape) if mask is None else mask
        first = (kept != 0).int().argmax(1, keepdim=True)  # (B, 1)
        if mask is not None and named["position_ids"] is None and self._counts_positions:
            named["position_ids"] = (torch.arange(shape[1], device=first.device) - first).clamp(min=0)  # (B, T)
        inputs = named | others | {"use_cache": False}  # a decoder's cache serves generation
        if "global_attention_mask" in self._accepted - others.keys():  # Longformer's CLS sees the whole text
            inputs["global_attention_mask"] = F.one_hot(first[:, 0], shape[1])  # (B, T)
        return {key: value for key, value in inputs.items() if key in self._accepted and value is not None}, kept


def _one_of_padding(values: Any) -> Any:
    """(B, 1, ...) of zeros in place of a tensor of no tokens, (B, 0, ...). Lists without items make one of floats."""
    if not isinstance(values, Tensor) or values.dim() < 2 or values.size(1):
        return values
    zeros = values.new_zeros(values.size(0), 1, *values.shape[2:])
    return zeros if values.dim() > 2 else zeros.long()


def _asked_for(states: tuple[Tensor, ...] | None, asked: bool | int | list[int] | None) -> tuple | None:
    """Of hidden states, (B, T, H) each, those with the indices `asked`, and None in the place of the others.

    It reads indices as the library's models do: -1 is the last, and one that is out of range asks for nothing.
    """
    if not asked or states is None:
        return None
    if isinstance(asked, bool):
        return states
    places = range(len(states))
    indices = [asked] if isinstance(asked, int) else asked
    kept = {places[index] for index in indices if -len(states) <= index < len(states)}
    return tuple(state if place in kept else None for place, state in enumerate(states))


class LstmPoolForSequenceClassification(LstmPoolPreTrainedModel):
    """[`LstmPoolModel`] with dropout and a linear head, for one class a text, several labels, or numbers."""

    def __init__(self, config: LstmPoolConfig, backbone: PreTrainedModel | None = None):
        super().__init__(config)
        self.lstmpool = LstmPoolModel(config, backbone)
        self.supports_gradient_checkpointing = self.lstmpool.supports_gradient_checkpointing
        self.dropout = nn.Dropout(config.pooler_dropout)
        self.classifier = nn.Linear(self.lstmpool.pooler.output_size, config.num_labels)
        self.linear_skip = LinearSkip(config) if config.linear_skip else None
        self.exits = LayerExits(config) if config.early_exit else None
        self.post_init()

    def add_exits(self) -> LayerExits:
        """Gives the model new exits, in place of any that it has, and switches them off: `exit_threshold` is None.

        Raises ValueError for a regression, and if fewer than two layers are read.
        """
        check_exits(self.config)
        self.config.early_exit, self.config.exit_threshold = True, None
        self.exits = LayerExits(self.config).to(self.classifier.weight.device, self.classifier.weight.dtype)
        return self.exits

    def remove_exits(self) -> None:
        """Takes the exits away."""
        self.config.early_exit, self.config.exit_threshold = False, None
        self.exits = None

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        layer_states: torch.FloatTensor | None = None,
        labels: Tensor | None = None,
        exit_threshold: float | None = None,
        **kwargs,
    ) -> LstmPoolClassifierOutput | tuple:
        """Takes what [`LstmPoolModel`] takes, and `labels`; the loss is their mean over the batch, in float32.

        `config.problem_type` says what `labels` are: "single_label_classification" wants integers (B,), with -100 for
        a row that does not count; "multi_label_classification" wants zeros and ones (B, C); "regression" wants numbers
        (B, C), or (B,) if C is 1. Raises ValueError for others.

        `exit_threshold` is the confidence with which a row leaves at one of `exits`; None: that of the config, and if
        that is None, too, all rows are read to the end. `exit_layers` (B,) are then the layers that the rows left at.
        Raises ValueError if it is set and there are no exits.
        """
        return_dict = self.config.pop_flag(kwargs, "return_dict")
        threshold = self.config.exit_threshold if exit_threshold is None else exit_threshold
        departures = None
        if threshold is not None and layer_states is None:
            departures = departures_of(self, threshold, input_ids if inputs_embeds is None else inputs_embeds, kwargs)
        outputs = self.lstmpool(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            layer_states=layer_states,
            departures=departures,
            return_dict=True,
            **kwargs,
        )
        logits = None if outputs.pooler_output is None else self._head(outputs)  # (B, C), or (B', C) of those left
        exit_layers = None
        if departures is not None:
            logits, exit_layers = departures.merged(logits)
        elif threshold is not None:
            exit_layers = torch.full_like(logits[:, 0], self.config.layers[-1], dtype=torch.long)
        result = LstmPoolClassifierOutput(
            loss=None if labels is None else loss_of(logits, labels.to(logits.device), self.config),
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            layer_states=outputs.layer_states if departures is None else None,
            exit_layers=exit_layers,
        )
        return result if return_dict else result.to_tuple()

    def _head(self, outputs: LstmPoolModelOutput) -> Tensor:
        """The logits (B, C) of rows that were read to the end."""
        logits = self.classifier(self.dropout(outputs.pooler_output))
        if self.linear_skip is None:
            return logits
        return logits + self.linear_skip(outputs.layer_states).to(logits.device)


AutoModel.register(LstmPoolConfig, LstmPoolModel, exist_ok=True)
AutoModelForSequenceClassification.register(LstmPoolConfig, LstmPoolForSequenceClassification, exist_ok=True)
LstmPoolModel.register_for_auto_class("AutoModel")
LstmPoolForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")
