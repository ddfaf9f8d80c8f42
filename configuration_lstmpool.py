"""Configuration of an LSTM (or a rival pooling) that reads a transformer's layers in order.

`LstmPoolConfig` holds the backbone's config, which stays the only source of truth on the backbone. Beside it are a few
fields that say what is read: which layers, which vector of each layer, and what turns these vectors into one. Making
the config checks every field and resolves unset ones from the backbone's family, so a saved config says what the model
does.
"""

from __future__ import annotations

import difflib
import operator
from typing import Any

from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING, AutoConfig, PretrainedConfig

from .fields_lstmpool import DEFAULTS, PROBLEM_TYPES, REGRESSION, SINGLE, argument_lines, check_choice, check_fields


class Families:
    """Facts about backbone families, named by `model_type`, that a config does not tell. The tests verify them."""

    # Their layers end in a LayerNorm, so all have one scale, and the vectors need no norm of their own.
    POST_NORM = frozenset(
        "albert bart bert big_bird camembert canine convbert data2vec-text deberta deberta-v2 distilbert electra "
        "ernie flaubert fnet funnel gte ibert jina_embeddings_v3 layoutlm layoutlmv3 lilt longformer luke markuplm "
        "mpnet mra mvp nomic_bert nystromformer openai-gpt plbart rembert roberta roc_bert roformer squeezebert tapas "
        "xlm xlm-roberta xlnet xmod yoso".split()
    )
    # Bidirectional, though the library lists them only as causal language models. Their CLS ends a text.
    CLS_AT_THE_END = frozenset({"xlnet"})
    # Causal, though the library does not list them as causal language models.
    DECODERS = frozenset({"mistral4"})
    # Their layers are not one list that is called from bottom to top.
    NOT_A_STACK = frozenset({"albert", "canine", "funnel"})
    # Their layers are called in a way that skips hooks, or on hidden states of another shape.
    NOT_HOOKED = frozenset({"squeezebert", "xlnet"})
    # They number their tokens from 2, and an explicit `position_ids` would have to do the same.
    OFFSET_POSITIONS = frozenset({"mra", "nystromformer", "yoso"})
    # Names of the norm after the top layer of a pre-norm family, and the families that use another name.
    FINAL_NORMS = [
        "norm",
        "norm_f",
        "final_norm",
        "final_layer_norm",
        "final_layernorm",
        "emb_layer_norm_after",
        "layer_norm",
        "layernorm",
        "LayerNorm",
        "ln_f",
        "ln",
    ]
    FINAL_NORM_OF = {"bigbird_pegasus": ["layernorm_embedding"]}
    LEFT_OUT = {
        "layoutlmv2": "it needs detectron2, and an image with every text",
        "perceiver": "its bare model reads features, not input_ids",
        "reformer": "they run without gradients, so that nothing could be trained on them",
    }


OWN_FIELDS = (  # of this config, not of the backbone's
    *DEFAULTS,
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
_AUTO_MAP = {
    "AutoConfig": "configuration_lstmpool.LstmPoolConfig",
    "AutoModel": "modeling_lstmpool.LstmPoolModel",
    "AutoModelForSequenceClassification": "modeling_lstmpool.LstmPoolForSequenceClassification",
}


def stack_config(backbone_config: PretrainedConfig) -> PretrainedConfig:
    """The part of a backbone's config that describes the layers to read, which are those of its text encoder."""
    encoder = getattr(backbone_config, "encoder", None)
    if backbone_config.is_encoder_decoder and isinstance(encoder, PretrainedConfig):
        backbone_config = encoder  # `get_text_config` would give the decoder's
    return backbone_config.get_text_config()


def count_layers(backbone_config: PretrainedConfig) -> int:
    """Number of layers that can be read from a backbone. Of an encoder-decoder, only the encoder's count.

    Raises:
        ValueError: if the config does not say how many layers there are.
    """
    text_config = stack_config(backbone_config)
    if text_config.model_type == "funnel":
        return sum(map(operator.mul, text_config.block_sizes, text_config.block_repeats))
    if text_config.model_type == "canine":  # two layers come before those over blocks, two after
        return text_config.num_hidden_layers + 4
    names = ("encoder_layers", "num_hidden_layers") if text_config.is_encoder_decoder else ("num_hidden_layers",)
    for name in names:
        count = getattr(text_config, name, None)
        if isinstance(count, int) and count > 0:
            return count * getattr(text_config, "inner_group_num", 1)  # ALBERT's groups may hold several layers
    raise ValueError(
        f"backbone_config must say how many layers the backbone has, got a {type(text_config).__name__} without a "
        f"positive {names[0]}. Choose a backbone that is a stack of layers."
    )


def is_post_norm(backbone_config: PretrainedConfig) -> bool:
    """Whether every layer of this backbone ends in a norm."""
    return backbone_config.model_type in Families.POST_NORM and not getattr(backbone_config, "pre_norm", False)


def is_causal(backbone_config: PretrainedConfig) -> bool:
    """Whether a token of this backbone sees only itself and the tokens before it."""
    if backbone_config.is_encoder_decoder or backbone_config.model_type in Families.CLS_AT_THE_END:
        return False  # only the encoder of an encoder-decoder is read
    text_config = stack_config(backbone_config)
    if getattr(text_config, "is_causal", None) is False:  # the library's switch that makes a decoder an encoder
        return False
    if getattr(text_config, "use_bidirectional_attention", None) is True and text_config.model_type != "gemma2":
        return False  # Gemma's switch, which Gemma 2 has but does not read
    if any(getattr(text_config, name, False) for name in ("is_decoder", "causal")):
        return True
    known = type(backbone_config) in MODEL_FOR_CAUSAL_LM_MAPPING or backbone_config.model_type in Families.DECODERS
    return known and type(backbone_config) not in MODEL_FOR_MASKED_LM_MAPPING


class LstmPoolConfig(PretrainedConfig):
    __doc__ = f"""Configuration of [`LstmPoolModel`] and [`LstmPoolForSequenceClassification`].

    Args:
        backbone_config (`PretrainedConfig` or `dict`, *optional*, defaults to a `BertConfig()`):
            Config of the backbone, of any family that `AutoModel` knows. A dict must name its `model_type`.
{argument_lines()}
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
    keys_to_ignore_at_inference = ["layer_states", "hidden_states", "attentions"]

    def __init__(self, backbone_config: PretrainedConfig | dict[str, Any] | None = None, *fields: Any, **kwargs: Any):
        kwargs |= zip(DEFAULTS, fields, strict=False)
        # The fields are set before `super().__init__`, which already asks for the sub-config. It gives a dict under
        # this key a meaning of its own, so the dict becomes a config here.
        for name, default in DEFAULTS.items():
            setattr(self, name, kwargs.pop(name, default))
        _refuse_misplaced(kwargs)
        self.backbone_config = _as_config(backbone_config)
        # If these were unset, `super().__init__` would take the implementations that the backbone was loaded with.
        for name in ("attn_implementation", "experts_implementation"):
            if kept := getattr(self.backbone_config, f"_{name}", None):
                kwargs.setdefault(name, {"backbone_config": kept})
        # A model loaded from the Hub names its repository here; saved again it must name its own files.
        kwargs["auto_map"] = dict(_AUTO_MAP)
        super().__init__(**kwargs)
        self.resolve()

    def resolve(self) -> None:
        """Checks every field and fills unset ones (`None`) from the backbone's family.

        `__init__` calls this, and so does the model, because attributes may be assigned in between.

        Raises:
            ValueError: if a value is wrong. It names the field, the value expected, the value found and the remedy.
        """
        causal = is_causal(self.backbone_config)
        if self.token_pooling is None:
            self.token_pooling = _default_token_pooling(self.backbone_config)
        if self.layer_norm is None:
            self.layer_norm = not is_post_norm(self.backbone_config)
        if self.problem_type is None:
            self.problem_type = REGRESSION if self.num_labels == 1 else SINGLE
        self.layers = _resolve_layers(self.layers, count_layers(self.backbone_config))

        check_fields(self)
        check_choice("problem_type", self.problem_type, PROBLEM_TYPES)
        if causal and self.token_pooling == "cls":
            raise ValueError(
                f"token_pooling='cls' cannot be used with {self.backbone_config.model_type}: it is causal, so its "
                "first token has seen nothing but itself. Use 'last' (its default) or 'mean'."
            )
        if self.problem_type == SINGLE and self.num_labels < 2:
            raise ValueError(
                f"problem_type='{SINGLE}' needs num_labels of 2 or more, got {self.num_labels}. "
                "Set problem_type='regression' for a single number."
            )

    def pop_flag(self, kwargs: dict[str, Any], name: str) -> bool:
        """Takes a flag such as `return_dict` out of `kwargs`. If it is missing or None, this config's value counts."""
        flag = kwargs.pop(name, None)
        return getattr(self, name) if flag is None else flag

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        # The library would set keyword overrides on the finished config, where no check sees them.
        ours = {name: kwargs.pop(name) for name in DEFAULTS if name in kwargs}
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

    def to_diff_dict(self) -> dict[str, Any]:
        # The library would leave out values that equal its own defaults, even if the backbone's class has others.
        backbone = self.backbone_config.to_dict()
        backbone.pop("_name_or_path", None)  # it may be a path of this machine
        backbone.pop("transformers_version", None)  # the top of the config says it
        saved = super().to_diff_dict()
        saved["backbone_config"] = backbone
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
            f"backbone_config must be a config or a dict, got {backbone_config!r}. Use "
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


def _default_token_pooling(backbone_config: PretrainedConfig) -> str:
    if is_causal(backbone_config):
        return "last"
    return "mean" if backbone_config.is_encoder_decoder else "cls"


def _resolve_layers(layers: Any, n: int) -> list[int]:
    if layers is None:
        return list(range(1, n + 1))
    try:
        if isinstance(layers, (str, bytes, dict, set)) or any(isinstance(layer, bool) for layer in layers):
            raise TypeError
        given = [operator.index(layer) for layer in layers]
    except TypeError:
        raise ValueError(f"layers must be a list of integers such as [2, 4, 6], got {layers!r}.") from None
    bad = [layer for layer in given if layer == 0 or abs(layer) > n]
    if bad or not given:
        raise ValueError(
            f"layers must lie in 1..{n} (or -{n}..-1, counted from the top), got {bad if given else 'none'}; this "
            f"backbone has {n} layers, and 0, its embeddings, cannot be read."
        )
    resolved = [layer if layer > 0 else n + 1 + layer for layer in given]
    if any(low >= high for low, high in zip(resolved, resolved[1:], strict=False)):
        raise ValueError(
            f"layers must be ascending and without repeats, got {given}, which is {resolved} from the bottom up. "
            f"Use {sorted(set(resolved))}."
        )
    return resolved


def _refuse_misplaced(kwargs: dict[str, Any]) -> None:
    """Refuses keywords that are surely mistakes: the config would keep them, as any that it does not know."""
    for key in kwargs:
        if key in _OF_BACKBONE:
            raise ValueError(
                f"{key} is not a field of LstmPoolConfig. Pass it in backbone_config, or load pretrained weights with "
                "from_backbone(name) of the model."
            )
        close = difflib.get_close_matches(key, ("backbone_config", *DEFAULTS), n=1, cutoff=0.85)
        if close:
            raise ValueError(f"{key} is not a field of LstmPoolConfig. Did you mean {close[0]}?")


if not __name__.startswith("transformers_modules."):  # a Hub folder's code must not replace the installed one
    AutoConfig.register(LstmPoolConfig.model_type, LstmPoolConfig, exist_ok=True)
LstmPoolConfig.register_for_auto_class()
