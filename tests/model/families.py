"""Every family with a sequence-classification head: a tiny random config of it, and what it is excused from, and why.

`SIZES` says how large any attribute of that name becomes, `SPECIAL` what a family needs besides; both go through
the family's own config class. `EXEMPT` names the checks (test_families.py) that a family cannot pass, with the reason
in the backbone: a check that fails without one fails the test, and so does a reason that is not needed. The tables are
those of the newest version of transformers; of older ones they hold what the families of the default run need.

Below them: a tiny model on any family, texts for it, and what is run and compared in the checks.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import CONFIG_MAPPING, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

from lstmpool.configuration_lstmpool import LstmPoolConfig
from lstmpool.modeling_lstmpool import LstmPoolForSequenceClassification

from ..conftest import since


TOLERANCE = 1e-4
FAMILIES = tuple(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES)

# One of each kind, for the default run.
FAST = {
    "bert": "post-norm encoder",
    "roberta-prelayernorm": "pre-norm encoder",
    "modernbert": "pre-norm encoder with alternating local attention",
    "llama": "decoder",
    "mixtral": "decoder with experts",
    "gpt2": "decoder with absolute positions",
    "t5": "encoder-decoder, relative positions",
    "bart": "encoder-decoder, post-norm",
    "deberta-v2": "relative positions",
    "xlnet": "relative positions, CLS at the end",
    "convbert": "convolutional",
    "longformer": "long attention",
    "zamba2": "state-space hybrid",
    "albert": "shared layers",
}

H, LAYERS, HEADS, VOCAB, POSITIONS = 32, 4, 4, 99, 64
FIRST_TEXT_ID = 20  # the ids below are special tokens

_GROUPS = [
    (VOCAB, "vocab_size"),
    (H, "hidden_size d_model n_embd dim emb_dim embedding_size word_embed_proj_dim pooler_hidden_size"),
    (LAYERS, "num_hidden_layers n_layer n_layers num_layers encoder_layers"),
    (
        2,
        "decoder_layers num_decoder_layers num_key_value_heads num_experts_per_tok linear_num_key_heads n_mamba_heads",
    ),
    (HEADS, "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads rotary_dim"),
    (4, "linear_num_value_heads num_experts num_local_experts n_routed_experts mamba_d_state mamba_dt_rank"),
    (H // HEADS, "head_dim d_head d_kv qk_rope_head_dim qk_nope_head_dim v_head_dim"),
    (H // HEADS, "linear_key_head_dim linear_value_head_dim"),
    (40, "intermediate_size ffn_dim encoder_ffn_dim decoder_ffn_dim d_ff d_inner hidden_dim dff ffn_hidden_size"),
    (40, "feed_forward_size"),
    (20, "moe_intermediate_size shared_expert_intermediate_size"),
    (16, "q_lora_rank kv_lora_rank"),
    (POSITIONS, "max_position_embeddings n_positions max_seq_len max_2d_position_embeddings"),
    (6, "sliding_window"),
    (1, "n_group topk_group first_k_dense_replace"),
]
SIZES = {name: size for size, names in _GROUPS for name in names.split()}

_VISION = {"hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 1, "num_attention_heads": 2}
_VISION |= {"image_size": 16, "patch_size": 4}
_ALL_HEADS = {"num_key_value_heads": HEADS}
_MIXED_LAYERS = {"layer_types": ["sliding_attention", "full_attention"] * 2}
_SMALL_DECODER = {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]}
SPECIAL: dict[str, dict[str, Any]] = {
    "albert": {"embedding_size": 16},
    "axk1": _ALL_HEADS,
    "axk2": _ALL_HEADS | {"index_topk": 8, "index_head_dim": 16, "index_n_heads": 2, "gated_norm_rank": 4},
    "big_bird": {"block_size": 2, "num_random_blocks": 1},
    "bigbird_pegasus": {"block_size": 2, "num_random_blocks": 1},
    "canine": {"local_transformer_stride": 8, "num_hash_buckets": 50},
    "cohere_compass_text": _MIXED_LAYERS
    | {"rope_parameters": {"sliding_attention": {"rope_type": "default", "rope_theta": 1e4}, "full_attention": None}},
    "deberta": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "norm_rel_ebd": "layer_norm"},
    "deepseek_v2": _ALL_HEADS | {"num_experts_per_tok": 2},
    "deepseek_v3": _ALL_HEADS,
    "electra": {"embedding_size": 16},
    "esm": {"vocab_size": VOCAB, "mask_token_id": 4, "pad_token_id": 1, "token_dropout": True},
    "esmc": _ALL_HEADS,
    "exaone4": {"sliding_window_pattern": 2},
    "funnel": {"block_sizes": [2, 2, 1], "num_decoder_layers": 1},
    "gemma2": _MIXED_LAYERS,
    "gemma3": {"vision_config": _VISION, "text_config": _MIXED_LAYERS},
    "gemma3_text": _MIXED_LAYERS,
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "window_size": 5},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
    "jetmoe": {"kv_channels": 8},
    "layoutlmv2": {"has_spatial_attention_bias": True, "coordinate_size": 6, "shape_size": 4},
    "layoutlmv3": {"coordinate_size": 6, "shape_size": 4, "input_size": 16, "patch_size": 8},
    "lilt": {"hidden_size": 48, "num_attention_heads": 4},
    "longformer": {"attention_window": 4},
    "luke": {"entity_vocab_size": 20, "entity_emb_size": 8},
    "markuplm": {"max_xpath_tag_unit_embeddings": 220, "max_xpath_subs_unit_embeddings": 20, "max_depth": 3}
    | {"tag_pad_id": 16, "subs_pad_id": 11, "xpath_unit_hidden_size": 4},
    "minicpm3": _ALL_HEADS | {"head_dim": 8},
    "minimax": {"layer_types": ["full_attention", "linear_attention"] * 2, "block_size": 4},
    "mistral4": _ALL_HEADS
    | {
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "llama_4_scaling_beta": 0.1}
        | {"original_max_position_embeddings": POSITIONS, "partial_rotary_factor": 0.5},
    },
    # as long as the stack, the lists of experts that older versions have could not be told from it
    "mixtral": {"num_local_experts": LAYERS - 1},
    "mobilebert": {"embedding_size": 16, "true_hidden_size": 16, "intra_bottleneck_size": 16}
    | {"num_feedforward_networks": 2},
    "modernbert": {"local_attention": 6, "global_attn_every_n_layers": 2},
    "modernbert-decoder": {"local_attention": 6, "global_attn_every_n_layers": 2},
    "modernvbert": {"vision_config": _VISION},
    "mvp": {"prompt_length": 4, "prompt_mid_dim": 8},
    "nemotron": _ALL_HEADS,
    "nystromformer": {"num_landmarks": 8, "segment_means_seq_len": 8, "conv_kernel_size": 3},
    "perceiver": {"num_latents": 6, "d_latents": 16, "num_self_attends_per_block": 4}
    | {"num_self_attention_heads": 2, "num_cross_attention_heads": 2},
    "phi3": {"original_max_position_embeddings": POSITIONS},
    "qwen3_5": {"vision_config": {"hidden_size": 16, "intermediate_size": 20, "depth": 1, "num_heads": 2}}
    | {"text_config": {"layer_types": ["linear_attention", "full_attention"] * 2}},
    "qwen3_5_text": {"layer_types": ["linear_attention", "full_attention"] * 2},
    "qwen3_next": {"layer_types": ["linear_attention", "full_attention"] * 2},
    "reformer": {"axial_pos_shape": [8, 8], "axial_pos_embds_dim": [16, 16], "attn_layers": ["local", "lsh"] * 2}
    | {"attention_head_size": 8, "local_attn_chunk_length": 4, "lsh_attn_chunk_length": 4, "num_buckets": 2}
    | {"is_decoder": False, "hash_seed": 0},
    "rembert": {"input_embedding_size": 16, "output_embedding_size": 20},
    "roc_bert": {"pronunciation_vocab_size": 20, "shape_vocab_size": 20}
    | {"pronunciation_embed_dim": 8, "shape_embed_dim": 8},
    "roformer": {"embedding_size": 16},
    "t5gemma": {"encoder": _MIXED_LAYERS, "decoder": _SMALL_DECODER | {"hidden_size": 24}},
    "t5gemma2": {"encoder": {"vision_config": _VISION, "text_config": _MIXED_LAYERS}, "decoder": _SMALL_DECODER},
    "ultravbert": {"vision_config": _VISION},
    "xmod": {"default_language": "en_XX"},
    # "mamba" is the older name, and good in every version, of what the newest calls "linear_attention"
    "zamba": {"layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"]}
    | {"use_mamba_kernels": False, "attention_hidden_size": 64, "attention_head_dim": 16},
    "zamba2": {"layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"]}
    | {"use_mamba_kernels": False, "chunk_size": 4, "adapter_rank": 4},
}


def _overrides(defaults: dict[str, Any], special: dict[str, Any]) -> dict[str, Any]:
    small = {}
    for name, value in defaults.items():
        if isinstance(value, dict) and (name in ("encoder", "decoder") or name.endswith("_config")):
            kept = {"model_type": value["model_type"]} if value.get("model_type") else {}
            small[name] = kept | _overrides(value, special.get(name, {}))
        elif name in SIZES and (value is not None or name == "head_dim"):
            small[name] = SIZES[name]
        elif type(value) is int and name.endswith(("_id", "_index")) and value >= FIRST_TEXT_ID:
            small[name] = 5
    return small | {name: value for name, value in special.items() if name not in small or name in SIZES}


def tiny_backbone_config(family: str, **overrides) -> PretrainedConfig:
    """A config of the family with 4 layers or so, H = 32, without dropout."""
    config_class = CONFIG_MAPPING[family]
    config = config_class(**_overrides(config_class().to_dict(), SPECIAL.get(family, {}) | overrides))
    return config


# Texts of these families are this long (13 tokens elsewhere): shorter ones would get full attention.
TOKENS = {"big_bird": 23, "bigbird_pegasus": 23, "longformer": 21}

# No model is built on these: a config of theirs is refused.
LEFT_OUT = {
    "layoutlmv2": "needs detectron2, and an image with every text",
    "perceiver": "its bare model reads features, not input_ids, and a config of it names no layers",
    "reformer": "its reversible layers run without gradients: what is read between them cannot be trained on",
}

# Parameters (patterns) that a backbone leaves without a gradient on plain text, in the whole model and when cut.
UNUSED: dict[str, dict[str, str]] = {
    "axk2": {r"\.indexer\.": "the choice of tokens to attend to has no gradient"},
    "esm": {r"contact_head": "predicts contacts from attentions, on request"},
    "layoutlmv3": {
        r"backbone\.(LayerNorm|cls_token|norm|patch_embed|pos_embed)": "for images",
        r"rel_pos(_[xy])?_bias": "the backbone reads these tables under no_grad",
    },
    "lilt": {r"layer\.3\..*layout_": "the layout stream of the highest layer is read by nothing"},
    "luke": {r"e2e_query|e2w_query|w2e_query": "for entities", r"entity_embeddings": "for entities"},
    "markuplm": {r"xpath_unitseq2_embeddings": "built, and not called by the backbone"},
    "mra": {r"self\.(query|key|value)": "read by a CUDA kernel alone; without it attention is zero"},
    "xlnet": {r"r_s_bias|seg_embed": "for segments", r"mask_emb": "for the second stream of pretraining"},
}
UNUSED_WHEN_CUT: dict[str, dict[str, str]] = {
    "lilt": {r"layer\.[012]\..*layout_": "the layout stream of the highest layer is read by nothing"},
    "zamba2": {r"adapter_list\.1": "adapters of the layers above lie in the block that all layers share"},
}

_FIRST_COLUMN = "numbers the tokens from the first column, and takes no position_ids"
_CONVOLUTION = "its convolution reads the padding"
_BLOCKS = "which blocks a token attends to depends on the padded length"
_POOLED = "its strides mix the end of a text with padding"


def _padding(both: str = "", left: str = "") -> dict[str, str]:
    return {"right": both, "left": both} if both else {"left": left}


EXEMPT: dict[str, dict[str, str]] = {
    "albert": {"cut": "one group of weights serves every layer"},
    "bart": _padding(left=_FIRST_COLUMN),
    "big_bird": _padding(_BLOCKS),
    "bigbird_pegasus": _padding(_BLOCKS),
    "canine": _padding(_POOLED) | {"cut": "each layer of characters needs those of blocks below it"},
    "convbert": _padding(_CONVOLUTION),
    "flaubert": {"cut": "its layers lie in four lists side by side"},
    "fnet": _padding("its Fourier transform mixes all positions, and takes no mask"),
    "funnel": _padding(_POOLED) | {"cut": "its layers lie in blocks of different lengths"},
    "mbart": _padding(left=_FIRST_COLUMN),
    "mobilebert": _padding("its embeddings join each token's with its neighbours', padding included"),
    "mra": _padding(left="numbers the tokens from 2, from the first column")
    | {"vector": "its attention is a CUDA kernel; without it the backbone attends to nothing"},
    "mvp": _padding(left=_FIRST_COLUMN),
    "nystromformer": _padding(_CONVOLUTION),
    "plbart": _padding(left=_FIRST_COLUMN),
    "xlm": {"cut": "its layers lie in four lists side by side"},
    "yoso": _padding("ignores the mask: its layers take a mask of another form than its model passes"),
}
for _reason, _families in {
    "its layers have no hooks": "albert canine flaubert funnel squeezebert xlm xlnet",
    "gives what leaves its layers the shape of the batch that entered": "gpt2 gpt-sw3 gpt_bigcode gpt_neo gptj "
    "openai-gpt",
    "what it makes of a text depends on the columns of padding": "convbert fnet nystromformer yoso",
    "its layers read blocks of tokens": "big_bird bigbird_pegasus longformer",
    "its attention is a CUDA kernel, which was not tried": "mra",
    "its layers take a bias of heads, and not of rows": "bloom mpt",
    "its layers read two streams": "lilt luke zamba zamba2",
    "its layers carry a state from token to token, and a family like it fails with an older version": "jamba minimax "
    "qwen3_5 qwen3_5_text qwen3_next",
    "its layers make masks of their own in older versions": "doge umt5",
}.items():
    for _family in _families.split():
        EXEMPT[_family] = EXEMPT.get(_family, {}) | {"exits": _reason}
# Rows leave these early with every version that is supported; the others were tried with the newest.
EXITS_EVERYWHERE = "bert deberta-v2 distilbert electra modernbert mpnet roberta".split()
_BEFORE_NORM = {"states": "its last hidden state is taken before the final norm, and its last_hidden_state after it"}
if not since("5.1"):  # seen in 5.0.0 and 4.57.6
    EXEMPT["modernbert"] = _BEFORE_NORM
if not since("5.0"):
    EXEMPT["roberta-prelayernorm"] = _BEFORE_NORM


# --------------------------------------------------------------------------------------------------------------- runs
def tiny_config(family, **fields):
    fields = {"lstm_hidden_size": 5, "num_labels": 3, "pooler_dropout": 0.0} | fields
    return LstmPoolConfig(backbone_config=tiny_backbone_config(family), **fields)


def spread(module, norms=True):
    """Weights of trained size: at initialisation layers add next to nothing, and would hide mistakes."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad:  # tables of sines
                continue
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() > 1 and not name.endswith(("A_log", "dt_bias")):
                parameter.copy_(noise / parameter.shape[-1] ** 0.5)
            elif norms:
                parameter.add_(noise * 0.1)
    return module


def tiny_model(family, **fields):
    torch.manual_seed(0)
    return spread(LstmPoolForSequenceClassification(tiny_config(family, **fields))).eval()


def texts(family):
    """Three texts of different lengths, as rows of ids."""
    generator, tokens = torch.Generator().manual_seed(0), TOKENS.get(family, 13)
    ids = torch.randint(FIRST_TEXT_ID, VOCAB - 1, (3, tokens), generator=generator)
    return [ids[0], ids[1, : tokens - 4], ids[2, : tokens - 7]]


def batch(rows, pad_id=0, left=False, tokens=None):
    tokens = tokens or max(map(len, rows))
    ids, mask = torch.full((len(rows), tokens), pad_id), torch.zeros(len(rows), tokens, dtype=torch.long)
    for index, row in enumerate(rows):
        place = slice(tokens - len(row), tokens) if left else slice(0, len(row))
        ids[index, place], mask[index, place] = row, 1
    return {"input_ids": ids, "attention_mask": mask}


def pad_id(model):
    found = getattr(model.config.get_text_config(), "pad_token_id", None)
    return 0 if found is None else found


def run(model, inputs, train=False, **kwargs):
    torch.manual_seed(1)
    with torch.no_grad():
        return model.train(train)(**inputs, **kwargs)


def apart(found, wanted):
    """Largest difference, against the size of what is compared."""
    assert found.shape == wanted.shape, f"{tuple(found.shape)} and {tuple(wanted.shape)}"
    assert found.isfinite().all() and wanted.isfinite().all(), "not finite"
    return ((found - wanted).abs().max() / wanted.abs().max().clamp(min=1)).item()


def assert_close(what, found, wanted, tolerance=TOLERANCE):
    assert (difference := apart(found, wanted)) <= tolerance, f"{what} differs by {difference:.1g}"


def leave_at(model, inputs, layers):
    """Gives `model` exits by which row i leaves at `layers[i]`, with a confidence of 1, and at no layer below it.

    The head of each layer solves for logits of 20, 0 and 0 there, and of zeros, a confidence of 1/3, in other rows.
    """
    exits, states = model.add_exits(), run(model, inputs).layer_states
    for index, head in enumerate(exits.heads):
        wanted = torch.zeros(len(layers), 3)
        wanted[:, index % 3] = 20.0 * (torch.tensor(layers) == model.config.layers[index])
        with torch.no_grad():
            head.bias.zero_()
            head.weight.copy_((torch.linalg.pinv(states[:, index].double()) @ wanted.double()).T)
    return exits


def rows_per_layer(model):
    """A list to which each layer of the stack adds the shape (rows, tokens) of what it reads."""
    shapes = []

    def add(module, args, kwargs):
        hidden = args[0] if args else kwargs["hidden_states"]
        shapes.append(tuple(hidden.shape[:2]))

    for module in model.lstmpool.backbone.get_submodule(model.lstmpool.layer_stack):
        module.register_forward_pre_hook(add, with_kwargs=True)
    return shapes
