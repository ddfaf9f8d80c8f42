"""What is known of backbone families, and what a backbone tells: layers, norms, causality, quantisation, pooling."""

from __future__ import annotations

import json
import operator
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING, PretrainedConfig
from transformers.utils import cached_file

from .fields_lstmpool import MOST_LAYERS, shown


QUANTISE_LATER = (
    "A model of quantised parts could be saved, but not used. Train from the weights in full precision, save, then "
    "quantise the finished folder: from_pretrained(folder, quantization_config=...)."
)
# Token poolings by the names that sentence-transformers has, or had, for them. It knows others, too.
STATED_POOLINGS = {
    "cls": "cls",
    "cls_token": "cls",
    "mean": "mean",
    "mean_tokens": "mean",
    "max": "max",
    "max_tokens": "max",
    "lasttoken": "last",
}


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
    # Rows may leave a batch between their layers, with columns of padding, and nothing changes for the others.
    EARLY_EXIT = frozenset(
        "arcee axk1 axk2 bart bert biogpt camembert cohere_compass_text ctrl data2vec-text deberta deberta-v2 "
        "deepseek_v2 deepseek_v3 diffllama distilbert electra ernie esm esmc eurobert exaone4 falcon gemma "
        "gemma2 gemma3 gemma3_text glm glm4 gpt_neox gpt_oss gte helium hunyuan_v1_dense hunyuan_v1_moe ibert "
        "jetmoe jina_embeddings_v3 layoutlm layoutlmv3 llama markuplm mbart megatron-bert minicpm3 ministral "
        "ministral3 mistral mistral4 mixtral mobilebert modernbert modernbert-decoder modernvbert mpnet mt5 "
        "mvp nemotron nomic_bert olmo olmo2 olmo3 opt persimmon phi phi3 phimoe plbart qwen2 qwen2_moe qwen3 "
        "qwen3_moe rembert roberta roberta-prelayernorm roc_bert roformer seed_oss smollm3 stablelm "
        "starcoder2 t5 t5gemma t5gemma2 tapas ultrabert ultravbert xlm-roberta xlm-roberta-xl xmod".split()
    )
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


def stated_token_pooling(
    name_or_path: str, backbone_config: PretrainedConfig, subfolder: str = "", **hub: Any
) -> tuple[str, str] | None:
    """The token pooling that a sentence-transformers backbone was trained with, and the file that says so.

    `hub` are the keywords by which its config was read. The result is None unless exactly one pooling is stated that
    a model on this backbone can have. Missing or broken files state nothing, and raise nothing.
    """
    for root, folder, backbone_path in _homes_of_modules(name_or_path, subfolder):
        pooling_path = _pooling_path(_read_json(root, folder, "modules.json", hub), backbone_path)
        if pooling_path is None:
            continue
        place = PurePosixPath(folder, pooling_path)
        pooling = _stated_mode(_read_json(root, str(place), "config.json", hub))
        if pooling is None or (pooling == "cls" and is_causal(backbone_config)):
            return None
        return pooling, f"{pooling_path}/config.json"
    return None


def _homes_of_modules(name_or_path: str, subfolder: str) -> Iterator[tuple[str, str, str]]:
    """Where modules.json may lie, as (repository or folder, subfolder in it), and the backbone's path from there.

    It lies beside the backbone or, as old versions of the library saved, in the folder above.
    """
    parts = PurePosixPath(subfolder or "").parts
    yield name_or_path, "/".join(parts), ""
    if parts:
        yield name_or_path, "/".join(parts[:-1]), parts[-1]
    elif os.path.isdir(name_or_path):
        above, name = os.path.split(os.path.abspath(name_or_path))
        yield above, "", name


def _pooling_path(modules: Any, backbone_path: str) -> str | None:
    """The folder of the one pooling module in a modules.json, if its first module is the backbone."""
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        return None
    paths = [module.get("path") for module in modules]
    if not paths or not all(isinstance(path, str) for path in paths):
        return None
    kinds = [str(module.get("type")).rpartition(".")[2] for module in modules]  # the names of their classes
    if PurePosixPath(paths[0]) != PurePosixPath(backbone_path) or kinds.count("Pooling") != 1:
        return None
    path = PurePosixPath(paths[kinds.index("Pooling")])
    # strangers wrote it: it must stay in the folder, on Windows too
    if path.is_absolute() or ".." in path.parts or any(sign in str(path) for sign in "\\:"):
        return None
    return str(path)


def _stated_mode(config: Any) -> str | None:
    """The pooling that a Pooling module's config.json names, in `pooling_mode` or, formerly, by one flag a mode."""
    if not isinstance(config, dict):
        return None
    modes = config.get("pooling_mode")
    if modes is None:
        prefix = "pooling_mode_"
        modes = [name.removeprefix(prefix) for name in config if name.startswith(prefix) and config[name] is True]
    if isinstance(modes, list) and len(modes) == 1:
        modes = modes[0]
    return STATED_POOLINGS.get(modes) if isinstance(modes, str) else None


def _read_json(root: str, folder: str, name: str, hub: dict[str, Any]) -> Any:
    """What a JSON file of a folder or Hub repository holds. None if it cannot be read, or reached."""
    where = {key: value for key, value in hub.items() if key != "trust_remote_code"}
    try:
        path = cached_file(root, name, subfolder=folder, **where)
        return json.loads(Path(path).read_text(encoding="utf-8")) if path else None
    except (OSError, ValueError, RecursionError):
        return None
