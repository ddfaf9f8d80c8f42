"""Configuration of an LSTM (or a rival pooling) that reads a transformer's layers in order.

`LstmPoolConfig` holds the backbone's config, which stays the only source of truth on the backbone. Beside it are a few
fields that say what is read: which layers, which vector of each layer, and what turns these vectors into one. Making
the config checks every field and resolves unset ones from the backbone's family, so a saved config says what the model
does.
"""

from __future__ import annotations

import difflib
import re
import shutil
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoConfig, PretrainedConfig
from transformers.utils import logging

from .families_lstmpool import (
    Families,
    count_layers,
    default_token_pooling,
    is_causal,
    is_post_norm,
    resolve_layers,
    stack_config,
)
from .fields_lstmpool import (
    APART,
    DEFAULTS,
    MULTI,
    PROBLEM_TYPES,
    REGRESSION,
    SINGLE,
    argument_lines,
    check_choice,
    check_config_json,
    check_exit_fields,
    check_fields,
    no_model,
    shown,
)
from .pairs_lstmpool import check_template


logger = logging.get_logger(__name__)


OWN_FIELDS = (  # of this config, not of the backbone's
    *DEFAULTS,
    "pair_template",
    "num_labels",
    "id2label",
    "label2id",
    "problem_type",
)
HUB_KEYS = (
    "cache_dir",
    "force_download",
    "local_files_only",
    "revision",
    "subfolder",
    "token",
    "trust_remote_code",
)
_OF_BACKBONE = (  # fields of a backbone's config: as keywords of this config they are mistakes
    "backbone",
    "hidden_size",
    "num_attention_heads",
    "num_hidden_layers",
    "vocab_size",
)
_NOT_FIELDS = ("attribute_map", "sub_configs")  # the library keeps them on the class
_AUTO_MAP = {
    # The library keys the code of a folder by the file that is named here and those that it imports. This one imports
    # all: two folders of one name whose code differs anywhere do not share it.
    "AutoConfig": "modeling_lstmpool.LstmPoolConfig",
    "AutoModel": "modeling_lstmpool.LstmPoolModel",
    "AutoModelForSequenceClassification": "modeling_lstmpool.LstmPoolForSequenceClassification",
}
# What `sentence_transformers.CrossEncoder` applies to the logits. Unset, it squashes a single number into (0, 1).
_ACTIVATIONS = {
    SINGLE: "torch.nn.modules.linear.Identity",
    MULTI: "torch.nn.modules.activation.Sigmoid",
    REGRESSION: "torch.nn.modules.linear.Identity",
}
# Release 0.1.0 lacks these fields. They are saved where they say something else than what it did.
_LATER = {
    "linear_skip": False,
    "pair_encoding": "joint",
    "pair_template": None,
    "standardize_layers": False,
    "early_exit": False,
    "exit_threshold": None,
}
_HOLES = {"CVE-2026-4372": (5, 3), "CVE-2026-5241": (5, 5)}  # of transformers, and the version that mends each


def warn_of_holes() -> None:
    """Warns, once a process, of an installed transformers in which a config.json runs code that nobody trusted."""
    installed = tuple(map(int, re.findall(r"\d+", transformers.__version__)[:2]))
    if holes := [name for name, mended in _HOLES.items() if installed < mended]:
        logger.warning_once(
            f"transformers {transformers.__version__} has known holes ({', '.join(holes)}): a config.json can run "
            "code even without trust_remote_code. Use pip install 'transformers>=5.5', or load only what you trust."
        )


def read_config(name_or_path: str, **hub: Any) -> PretrainedConfig:
    """The config of a Hub repository or folder, as `AutoConfig` reads it. `hub` are keywords of `HUB_KEYS`.

    Raises:
        OSError: if there is no config.json, or it is not JSON.
        ValueError: if it does not describe a model, or is code that is not trusted.
    """
    warn_of_holes()
    where = {key: value for key, value in hub.items() if key != "trust_remote_code"}
    with no_model(f"the config.json of {name_or_path} must be an object that describes a model"):
        check_config_json(PretrainedConfig.get_config_dict(name_or_path, **where)[0])
        return AutoConfig.from_pretrained(name_or_path, **hub)


class LstmPoolConfig(PretrainedConfig):
    __doc__ = f"""Configuration of [`LstmPoolModel`] and [`LstmPoolForSequenceClassification`].

    Args:
        backbone_config (`PretrainedConfig` or `dict`, *optional*, defaults to a `BertConfig()`):
            Config of the backbone, of any family that `AutoModel` knows. A dict must name its `model_type`.
{argument_lines()}
        pair_template (`dict`, *optional*):
            The token ids around two texts, as `pair_template(tokenizer)` of `pairs_lstmpool.py` gives them. Only
            `pair_encoding="apart"` needs it.
        kwargs (*optional*):
            What every config takes: `num_labels`, `id2label`, `problem_type` and so on. An unset `problem_type`
            becomes `"regression"` for one label and `"single_label_classification"` for more, and is always saved.

    `layers` may be any sequence of integers, such as `range(2, 13, 2)` for every other layer of 12; it is stored as a
    list of positive numbers. Unset fields are resolved when the config is made, and saved.

    Raises:
        ValueError: if a field has a value that no model can be built from.
    """

    model_type = "lstmpool"
    sub_configs = {"backbone_config": AutoConfig}
    keys_to_ignore_at_inference = ["layer_states", "hidden_states", "attentions", "exit_layers"]

    def __init__(self, backbone_config: PretrainedConfig | dict[str, Any] | None = None, *fields: Any, **kwargs: Any):
        kwargs |= zip(DEFAULTS, fields, strict=False)
        # The fields are set before `super().__init__`, which already asks for the sub-config. It gives a dict under
        # this key a meaning of its own, so the dict becomes a config here.
        for name, default in DEFAULTS.items():
            setattr(self, name, kwargs.pop(name, default))
        self.pair_template = kwargs.pop("pair_template", None)
        problem_type = kwargs.pop("problem_type", None)  # the library would judge it before all labels are known
        kwargs.pop("model_type", None)  # the class says it
        _refuse_misplaced(kwargs)
        self.backbone_config = _as_config(backbone_config)
        # If these were unset, `super().__init__` would take the implementations that the backbone was loaded with.
        for name in ("attn_implementation", "experts_implementation"):
            if kept := getattr(self.backbone_config, f"_{name}", None):
                kwargs.setdefault(name, {"backbone_config": kept})
        # A model loaded from the Hub names its repository here; saved again it must name its own files.
        kwargs["auto_map"] = dict(_AUTO_MAP)
        super().__init__(**kwargs)
        self.problem_type = problem_type
        self.resolve()

    def resolve(self) -> None:
        """Checks every field and fills unset ones (`None`) from the backbone's family.

        `__init__` calls this, and so does the model, because attributes may be assigned in between.

        Raises:
            ValueError: if a value is wrong. It names the field, the value expected, the value found and the remedy.
        """
        with no_model("backbone_config does not describe a model", ValueError):
            causal = is_causal(self.backbone_config)
            layers = count_layers(self.backbone_config)
            _check_of_library(self.backbone_config)
        _check_of_library(self)
        if self.token_pooling is None:
            self.token_pooling = default_token_pooling(self.backbone_config)
        if self.pair_encoding is None:
            self.pair_encoding = "joint"
        if self.standardize_layers is None:
            self.standardize_layers = False
        if self.layer_norm is None:
            self.layer_norm = not is_post_norm(self.backbone_config)
        if self.problem_type is None:
            self.problem_type = REGRESSION if self.num_labels == 1 else SINGLE
        self.layers = resolve_layers(self.layers, layers)

        check_fields(self)
        check_choice("problem_type", self.problem_type, PROBLEM_TYPES)
        if self.pair_template is not None or self.pair_encoding == APART:
            self.pair_template = check_template(self.pair_template, getattr(self, "vocab_size", None))
        check_exit_fields(self)
        if causal and self.token_pooling == "cls":
            raise ValueError(
                f"token_pooling='cls' cannot be used with {self.backbone_config.model_type}: it is causal, so its "
                "first token has seen nothing but itself. Use 'last' (its default) or 'mean'."
            )
        if self.dtype is not None and getattr(self.dtype, "is_floating_point", None) is not True:
            raise ValueError(f"dtype must be a floating type such as 'float32', got {shown(self.dtype)}.")
        self._check_labels()

    def _check_labels(self) -> None:
        """Checks the labels' names and, for classes, how many there are."""
        count = self.num_labels
        if not count or sorted(self.id2label) != list(range(count)):
            raise ValueError(f"id2label must name the labels 0, 1, 2 ..., got {shown(self.id2label)}.")
        if not isinstance(self.label2id, (dict, type(None))) or not all(
            isinstance(name, (str, int, float)) for name in self.id2label.values()
        ):
            raise ValueError(
                f"id2label and label2id must hold the labels' names, got {shown(self.id2label)} and "
                f"{shown(self.label2id)}."
            )
        if self.problem_type == SINGLE and count == 1:
            logger.warning_once(
                f"problem_type='{SINGLE}' with num_labels=1 always gives that one class. "
                "Set problem_type='regression' for a single number."
            )

    def pop_flag(self, kwargs: dict[str, Any], name: str) -> bool:
        """Takes a flag such as `return_dict` out of `kwargs`. If it is missing or None, this config's value counts."""
        flag = kwargs.pop(name, None)
        return getattr(self, name) if flag is None else flag

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs):
        with no_model(f"the config.json of {pretrained_model_name_or_path} must be an object that describes a model"):
            return super().get_config_dict(pretrained_model_name_or_path, **kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        check_config_json(config_dict)
        # The library would set keyword overrides one by one on the finished config, where no check sees them together.
        ours = {name: kwargs.pop(name) for name in OWN_FIELDS if name in kwargs}
        with no_model("this config does not describe a model", ValueError):
            if "id2label" not in ours and ours.get("num_labels") not in (None, len(config_dict.get("id2label") or ())):
                config_dict = {key: value for key, value in config_dict.items() if key not in ("id2label", "label2id")}
            return super().from_dict(config_dict | ours, **kwargs)

    def save_pretrained(self, save_directory: str, *args, **kwargs) -> None:
        """Saves the config as the library does.

        Raises:
            ValueError: if the backbone's code comes from its own repository, since the folder could not carry it.
        """
        module = type(self.backbone_config).__module__
        if module.startswith("transformers_modules."):
            raise ValueError(
                f"the backbone's code, {module}, comes from its own repository, and a folder saved now would not load "
                "elsewhere. Put that code into a module that calls AutoConfig.register and AutoModel.register, import "
                "it here and wherever the model is loaded, and load the backbone without trust_remote_code."
            )
        super().save_pretrained(save_directory, *args, **kwargs)
        for path in Path(__file__).parent.glob("*_lstmpool.py"):  # the library copies only what this file imports
            shutil.copyfile(path, Path(save_directory) / path.name)

    def to_diff_dict(self) -> dict[str, Any]:
        # The library would leave out values that equal its own defaults, even if the backbone's class has others.
        backbone = self.backbone_config.to_dict()
        backbone.pop("_name_or_path", None)  # it may be a path of this machine
        backbone.pop("transformers_version", None)  # the top of the config says it
        saved = super().to_diff_dict()
        saved["backbone_config"] = backbone
        saved = {name: value for name, value in saved.items() if name not in _LATER or value != _LATER[name]}
        saved["auto_map"] = dict(_AUTO_MAP)  # into which the library writes the file of this class
        activation = {"activation_fn": _ACTIVATIONS[self.problem_type]}
        saved["sentence_transformers"] = saved.get("sentence_transformers", {}) | activation
        return saved

    @property
    def token_readout(self) -> str:
        """`token_pooling`, but for `"cls"` the place of that token: the `"first"` or `"last"` that the mask keeps."""
        if self.token_pooling != "cls":
            return self.token_pooling
        return "last" if self.backbone_config.model_type in Families.CLS_AT_THE_END else "first"

    def get_text_config(self, *args, **kwargs) -> PretrainedConfig:
        """The backbone's text config, where the library looks for the vocabulary and the depth."""
        return self.backbone_config.get_text_config(*args, **kwargs)

    @property
    def hidden_size(self) -> int:
        """H: the backbone's hidden size."""
        return stack_config(self.backbone_config).hidden_size

    @property
    def state_size(self) -> int:
        """S: the width of a layer's vector, H, or 4 H where pairs are read apart."""
        return self.hidden_size * (4 if self.pair_encoding == APART else 1)

    @property
    def num_attention_heads(self) -> int:
        """Attention heads of the backbone."""
        return stack_config(self.backbone_config).num_attention_heads

    @property
    def num_hidden_layers(self) -> int:
        """Layers of the backbone, whether they are read or not."""
        return count_layers(self.backbone_config)

    @property
    def vocab_size(self) -> int:
        """Vocabulary of the backbone, in tokens."""
        return stack_config(self.backbone_config).vocab_size

    @vocab_size.setter
    def vocab_size(self, size: int) -> None:
        stack_config(self.backbone_config).vocab_size = size

    def __eq__(self, other: object) -> bool:
        # the library would compare only its own fields
        return isinstance(other, LstmPoolConfig) and self._identity() == other._identity()

    __hash__ = None

    def _identity(self) -> dict[str, Any]:
        return {key: value for key, value in self.to_diff_dict().items() if key != "transformers_version"}


def _as_config(backbone_config: PretrainedConfig | dict[str, Any] | None) -> PretrainedConfig:
    if backbone_config is None:
        backbone_config = {"model_type": "bert"}
    if isinstance(backbone_config, PretrainedConfig):
        config = backbone_config
    elif isinstance(backbone_config, dict):
        fields = dict(backbone_config)
        family = fields.pop("model_type", None)
        if family is None:
            raise ValueError(
                "backbone_config, given as a dict, must name the backbone's family under 'model_type', got only "
                f"{sorted(fields)}. Add for example model_type='bert', or pass the config object."
            )
        try:
            with no_model("backbone_config does not describe a model", ValueError):
                config = AutoConfig.for_model(family, **fields)
        except ValueError as error:
            if f"Unrecognized model identifier: {family}" not in str(error):
                raise
            raise ValueError(
                f"backbone_config has model_type={family!r}, which this version of transformers does not know. "
                "Upgrade transformers, or register the family with AutoConfig.register."
            ) from None
    else:
        raise ValueError(
            f"backbone_config must be a config or a dict, got {shown(backbone_config)}. Use "
            "AutoConfig.from_pretrained(name) for it, or from_backbone(name) of the model to load weights too."
        )
    if config.model_type == LstmPoolConfig.model_type:
        raise ValueError(
            "backbone_config is itself an LstmPoolConfig. Pass the config of a plain backbone; from_pretrained loads "
            "a saved LstmPool model."
        )
    if reason := Families.LEFT_OUT.get(config.model_type):
        raise ValueError(f"the layers of a {config.model_type} cannot be read: {reason}. Choose another backbone.")
    if config.model_type == "funnel":  # two classes have this config; this one has no decoder
        config.architectures = ["FunnelBaseModel"]
    return config


def _check_of_library(config: PretrainedConfig) -> None:
    """Checks what the library itself does not, and would stumble over while a text is read."""
    asked = getattr(config, "output_hidden_states", None)
    if not all(isinstance(index, (int, type(None))) for index in (asked if isinstance(asked, list) else [asked])):
        raise ValueError(f"output_hidden_states must be True, False or a list of indices, got {shown(asked)}.")
    for name, least in {"num_attention_heads": 1, "chunk_size_feed_forward": 0}.items():
        value = vars(config).get(name)  # as it was written: a config may refuse to name one number for all layers
        if not isinstance(value, (int, list, tuple, type(None))) or (isinstance(value, int) and value < least):
            raise ValueError(f"{name} must be {least} or more, got {shown(value)}.")


def _refuse_misplaced(kwargs: dict[str, Any]) -> None:
    """Refuses keywords that are surely mistakes: the config would keep them, as any that it does not know."""
    for key in kwargs:
        if key in _NOT_FIELDS or key.startswith("__") or callable(getattr(LstmPoolConfig, key, None)):
            raise ValueError(f"{key[:100]} is the name of a method or of a part of the class, not a field. Remove it.")
        if key in _OF_BACKBONE:
            raise ValueError(
                f"{key} is not a field of LstmPoolConfig. Pass it in backbone_config, or load pretrained weights with "
                "from_backbone(name) of the model."
            )
        close = difflib.get_close_matches(key[:100], ("backbone_config", *DEFAULTS), n=1, cutoff=0.85)
        if close:
            raise ValueError(f"{key} is not a field of LstmPoolConfig. Did you mean {close[0]}?")


if not __name__.startswith("transformers_modules."):  # a Hub folder's code must not replace the installed one
    AutoConfig.register(LstmPoolConfig.model_type, LstmPoolConfig, exist_ok=True)
LstmPoolConfig.register_for_auto_class()
