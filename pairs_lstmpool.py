"""Pairs of texts that the tokenizer has joined, taken apart again, so that the backbone reads each text by itself.

    [CLS] a [SEP] b [SEP] (B, T)  ->  [CLS] a [SEP] and [CLS] b [SEP], in one batch (2 B, T')
    both texts' vectors u and v, (B, L, H) each  ->  u, v, |u - v|, u * v side by side (B, L, 4 H)

So the tokenizer, `pipeline` and `Trainer` work as for any model. The comparison of two texts is that of InferSent
(Conneau et al. 2017, https://arxiv.org/abs/1705.02364); Sentence-BERT (Reimers & Gurevych 2019,
https://arxiv.org/abs/1908.10084) does likewise.

What stands around the texts is a template of token ids: a prefix, what is between them, and a suffix.

B batch, T tokens of a pair, T' of the longest text, L layers read, H backbone hidden size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from .families_lstmpool import stack_config
from .fields_lstmpool import no_model, shown


PARTS = ("prefix", "middle", "suffix")
_WORDS = ("yes", "no", "one of two")  # any would do: what stands around them is looked at
_JOINT = "Use pair_encoding='joint', which reads a pair as one text."


# ------------------------------------------------------------------------------------------------------- the template
def pair_template(tokenizer: PreTrainedTokenizerBase) -> dict[str, list[int]]:
    """The token ids that a tokenizer puts before, between and after two texts: "prefix", "middle" and "suffix".

    Raises:
        ValueError: if the tokenizer does not tell two texts apart, or puts other tokens around one text than around
            two. BERT's, for example, gives [CLS] a [SEP] b [SEP] and [CLS] a [SEP].
    """
    kind = type(tokenizer).__name__
    with no_model(f"the pairs of a {kind} cannot be taken apart. {_JOINT} The reason"):
        words = [_encode(tokenizer, word, add_special_tokens=False) for word in _WORDS]
        alone = [_encode(tokenizer, word) for word in _WORDS]
        places = range(len(_WORDS))
        pairs = {(i, k): _encode(tokenizer, _WORDS[i], _WORDS[k]) for i in places for k in places}
    start = next((at for at in range(len(alone[0])) if alone[0][at:][: len(words[0])] == words[0]), 0)
    prefix, suffix = alone[0][:start], alone[0][start + len(words[0]) :]
    middle = pairs[0, 0][start + len(words[0]) : len(pairs[0, 0]) - len(words[0]) - len(suffix)]
    fits = all(alone[i] == prefix + words[i] + suffix for i in places)
    fits = fits and all(pair == prefix + words[i] + middle + words[k] + suffix for (i, k), pair in pairs.items())
    if not (fits and middle and all(words)):
        raise ValueError(
            f"a tokenizer must put tokens between two texts, and the same ones before and after a text and a pair, "
            f"got {shown(alone[0])} for {_WORDS[0]!r} and {shown(pairs[0, 1])} for that and {_WORDS[1]!r} from a "
            f"{kind}. Its pairs cannot be taken apart. {_JOINT}"
        )
    return {"prefix": prefix, "middle": middle, "suffix": suffix}


def load_template(name_or_path: str, **hub: Any) -> dict[str, list[int]]:
    """The template of the tokenizer in a Hub repository or folder. `hub` are keywords of `HUB_KEYS`.

    Raises:
        OSError, ValueError: if there is no tokenizer, or it does not tell two texts apart.
    """
    what = f"pair_encoding='apart' needs the tokenizer of {name_or_path}, or a pair_template"
    with no_model(f"{what}, and it cannot be loaded"):
        tokenizer = AutoTokenizer.from_pretrained(name_or_path, **hub)
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # what the library makes where it finds no vocabulary
        raise ValueError(f"{what}, found one without words. Save the backbone's tokenizer into its folder.")
    return pair_template(tokenizer)


def check_template(template: Any, vocab_size: Any = None) -> dict[str, list[int]]:
    """A copy of the template. Raises ValueError unless it holds the three lists of ids, each below `vocab_size`."""
    form = isinstance(template, dict) and sorted(template) == sorted(PARTS)
    form = form and all(isinstance(ids, (list, tuple)) for ids in template.values())
    if form:
        most = vocab_size if isinstance(vocab_size, int) else float("inf")
        ids = [one for part in template.values() for one in part]
        form = all(isinstance(one, int) and not isinstance(one, bool) and 0 <= one < most for one in ids)
    if not form or not template["middle"]:
        raise ValueError(
            "pair_template must be a dict of token ids, {'prefix': [...], 'middle': [...], 'suffix': [...]}, of which "
            f"middle is not empty, for pair_encoding='apart'; got {shown(template)}. Use pair_template(tokenizer) of "
            "pairs_lstmpool.py, as from_backbone does where it is unset."
        )
    return {name: list(template[name]) for name in PARTS}


def _encode(tokenizer: PreTrainedTokenizerBase, *texts: str, **options: Any) -> list[int]:
    return [int(token) for token in tokenizer(*texts, **options)["input_ids"]]


# ---------------------------------------------------------------------------------------------------------- the texts
def take_apart(
    input_ids: Tensor, attention_mask: Tensor | None, template: dict[str, list[int]], padding_id: int
) -> tuple[Tensor, Tensor]:
    """Each text of the pairs `input_ids` (B, T) alone: ids and mask, (2 B, T'), the first texts before the second.

    `attention_mask` (B, T) is 0 where a token is padding, on either side. The first place where a row has the
    template's middle parts its texts. The results are padded on the right, with `padding_id`; T' is the length of the
    longest text or, in a graph, whose shapes must not depend on values, as long as one may be.

    Raises:
        ValueError: if a row is not a pair. In a graph nobody can look.
    """
    before, between, behind = (len(template[name]) for name in PARTS)
    batch_size, tokens = input_ids.shape
    kept = torch.ones_like(input_ids) if attention_mask is None else (attention_mask != 0).to(input_ids)  # (B, T)
    place = torch.arange(tokens, device=input_ids.device)
    order = kept * tokens - place  # no two are equal, so that any sort keeps the order: ONNX knows no stable one
    ids = input_ids.gather(1, order.argsort(dim=1, descending=True))  # without padding, at the left
    lengths = kept.sum(1, keepdim=True)  # (B, 1)

    parts = (place >= before) & (place <= lengths - between - behind)  # (B, T): the middle may start here
    for offset, token in enumerate(template["middle"]):
        parts = parts & (ids.roll(-offset, dims=1) == token)
    looks = _can_look(ids)
    if looks and not (found := parts.any(1)).all():
        raise ValueError(
            "pair_encoding='apart' expects two texts a row, found one in row "
            f"{found.int().argmin().item()} of {batch_size}. Give the second to the tokenizer as text_pair=, to a "
            "pipeline in {'text': ..., 'text_pair': ...}, or use a model with pair_encoding='joint'."
        )
    middle = parts.int().argmax(1, keepdim=True)  # (B, 1)
    starts = torch.cat([torch.full_like(middle, before), middle + between])  # (2 B, 1), of the texts in `ids`
    sizes = (torch.cat([middle, lengths - behind]) - starts).clamp(min=0)  # (2 B, 1)

    longest = int(sizes.max()) if looks else tokens - before - between - behind
    column = torch.arange(before + max(longest, 0) + behind, device=ids.device)  # (T',)
    past = column - before - sizes  # (2 B, T'): how far behind the text
    texts = ids.repeat(2, 1).gather(1, (starts + column - before).clamp(0, tokens - 1))
    around = ids.new_tensor([*template["prefix"], *template["suffix"], padding_id])
    outside = around[torch.where(column < before, column, before + past.clamp(0, behind))]
    inside = (column >= before) & (past < 0)
    return torch.where(inside, texts, outside), (past < behind).long()


def compare(layer_states: Tensor) -> Tensor:
    """(B, L, 4 H) from the layer states (2 B, L, H) of first texts u and second texts v: u, v, |u - v|, u * v."""
    first, second = layer_states.chunk(2)
    most = torch.finfo(first.dtype).max  # float16 ends at 65504, and a product may be larger
    product = (first * second).clamp(-most, most)
    return torch.cat([first, second, (first - second).abs(), product], dim=-1)


def padding_id(backbone_config: PretrainedConfig) -> int:
    """The token that a backbone takes for padding; 0 where it has none, and any would do."""
    text_config = stack_config(backbone_config)
    token = getattr(text_config, "pad_token_id", None)
    vocab_size = getattr(text_config, "vocab_size", None)
    known = isinstance(token, int) and token >= 0 and (not isinstance(vocab_size, int) or token < vocab_size)
    return token if known else 0


def _can_look(tensor: Any) -> bool:
    """Whether values can be looked at, which is not so while a graph is made."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    return isinstance(tensor, Tensor) and not tensor.is_meta
