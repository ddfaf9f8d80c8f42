"""What is known of backbone families, and what a config tells: layers, norms, causality, quantised weights."""

from __future__ import annotations

import operator
from typing import Any

from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING, PretrainedConfig

from .fields_lstmpool import MOST_LAYERS, shown


QUANTISE_LATER = (
    "A model of quantised parts could be saved, but not used. Train from the weights in full precision, save, then "
    "quantise the finished folder: from_pretrained(folder, quantization_config=...)."
)


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


def stack_config(backbone_config: PretrainedConfig) -> PretrainedConfig:
    """The part of a backbone's config that describes the layers to read, which are those of its text encoder."""
    encoder = getattr(backbone_config, "encoder", None)
    if backbone_config.is_encoder_decoder and isinstance(encoder, PretrainedConfig):
        backbone_config = encoder  # `get_text_config` would give the decoder's
    text_config = backbone_config.get_text_config()
    if not isinstance(text_config, PretrainedConfig):
        raise ValueError(f"backbone_config must hold the config of a text model, got {shown(text_config)} for it.")
    return text_config


def count_layers(backbone_config: PretrainedConfig) -> int:
    """Number of layers that can be read from a backbone. Of an encoder-decoder, only the encoder's count.

    Raises:
        ValueError: if the config does not say how many layers there are, or names more than any backbone has.
    """
    text_config = stack_config(backbone_config)
    count = _named_layers(text_config)
    if not isinstance(count, int) or not 0 < count <= MOST_LAYERS:
        raise ValueError(
            f"backbone_config must say how many layers the backbone has, 1 to {MOST_LAYERS}, got {shown(count)} in a "
            f"{type(text_config).__name__}. Choose a backbone that is a stack of layers."
        )
    return count


def _named_layers(text_config: PretrainedConfig) -> int | None:
    """The number of layers that a text model's config names, whether or not that can be."""
    if text_config.model_type == "funnel":
        return sum(map(operator.mul, text_config.block_sizes, text_config.block_repeats))
    if text_config.model_type == "canine":  # two layers come before those over blocks, two after
        return text_config.num_hidden_layers + 4
    names = ("encoder_layers", "num_hidden_layers") if text_config.is_encoder_decoder else ("num_hidden_layers",)
    for name in names:
        count = getattr(text_config, name, None)
        if isinstance(count, int) and count > 0:
            return count * getattr(text_config, "inner_group_num", 1)  # ALBERT's groups may hold several layers
    return count


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


def default_token_pooling(backbone_config: PretrainedConfig) -> str:
    """The token pooling of a family, where none is set."""
    if is_causal(backbone_config):
        return "last"
    return "mean" if backbone_config.is_encoder_decoder else "cls"


def resolve_layers(layers: Any, n: int) -> list[int]:
    """The layers that are read of `n`, as positive numbers. Raises ValueError unless they are there, and in order."""
    if layers is None:
        return list(range(1, n + 1))
    try:
        if isinstance(layers, (str, bytes, dict, set)) or any(isinstance(layer, bool) for layer in layers):
            raise TypeError
        given = [operator.index(layer) for layer in layers]
    except TypeError:
        raise ValueError(f"layers must be a list of integers such as [2, 4, 6], got {shown(layers)}.") from None
    bad = [layer for layer in given if layer == 0 or abs(layer) > n]
    if bad or not given:
        raise ValueError(
            f"layers must lie in 1..{n} (or -{n}..-1, counted from the top), got {shown(bad) if given else 'none'}; "
            f"this backbone has {n} layers, and 0, its embeddings, cannot be read."
        )
    resolved = [layer if layer > 0 else n + 1 + layer for layer in given]
    if any(low >= high for low, high in zip(resolved, resolved[1:], strict=False)):
        raise ValueError(
            f"layers must be ascending and without repeats, got {shown(given)}, which is {shown(resolved)} from the "
            f"bottom up. Use {shown(sorted(set(resolved)))}."
        )
    return resolved


def quantisation_of(config: PretrainedConfig, loading: dict[str, Any] | None = None) -> str:
    """The method by which weights are quantised, as their `config` or keywords for `loading` say; empty if none is."""
    loading = loading or {}
    if loading.get("load_in_4bit") or loading.get("load_in_8bit"):
        return "bitsandbytes"
    found = [loading.get("quantization_config")]
    for part in (config, *(getattr(config, name, None) for name in config.sub_configs)):
        found += [getattr(part, name, None) for name in ("quantization_config", "compression_config")]
    for settings in filter(None, found):
        named = settings if isinstance(settings, dict) else vars(settings)
        method = named.get("quant_method", "some")
        return str(getattr(method, "value", method))
    return ""
