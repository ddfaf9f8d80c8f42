"""The float graph: the model as torch traces it, in one ONNX file, and the check that it answers as the model does.

    input_ids, attention_mask and, where the tokenizer makes them, token_type_ids (B, T) -> logits (B, C)

What training has learnt of thresholds and temperature is in the weights, and so it is in the graph. torch's older
exporter traces one run. It serves far more families than the newer one, and writes one file. But a family may have
taken a decision in that run, for good: so other batches than the traced one are compared before the file counts.

B batch, T tokens, C labels.
"""

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lstmpool.families_lstmpool import stack_config
from lstmpool.fields_lstmpool import APART
from lstmpool.training.errors import InputError, one_line
from lstmpool.training.output.found import SEED, Members
from lstmpool.training.predicting.engine import INPUTS, OnnxModel
from lstmpool.training.predicting.model import Predictor


OPSET = 17  # the first with a LayerNormalization of its own; all clients of today read it
TOLERANCE = 1e-4  # of the largest logit, or of 1: a regression may give numbers of any size
MOST_BYTES = 2e9  # a file of protobuf, which ONNX is, holds no more
LONGEST = 512  # tokens of a probe: attention to longer ones takes long, and shows nothing new
TEXTS = (
    "It works.",
    "The parcel arrived two days late, but the shop has paid the postage back; will you order there again?",
    "",
    "one two three four five six seven eight nine ten " * 120,  # longer than any probe may be: it is cut
)
# Families that fail in the library's own files, by the reason. Others are tried, and refused with what is then said.
FAILING = {
    "it chooses among its experts by an operation that the exporter lacks": "axk1 axk2 deepseek_v3 gpt_oss "
    "hunyuan_v1_moe jamba minimax mistral4 mixtral phimoe qwen2_moe qwen3_moe",
    "its attention is laid out for the length of one text": "big_bird bigbird_pegasus jetmoe longformer zamba zamba2",
    "it pools tokens by an operation that the exporter lacks": "canine funnel",
    "its linear attention solves equations, for which the exporter has nothing": "qwen3_5 qwen3_5_text qwen3_next",
    "it computes with complex numbers, for which the exporter has nothing": "deepseek_v2 fnet",
}
NOT_EXPORTED = {family: reason for reason, families in FAILING.items() for family in families.split()}

Batch = dict[str, torch.Tensor]  # a tokenizer's columns, (B, T) each


class _LogitsAlone(nn.Module):
    """The model with the inputs `names` in this order, and the logits (B, C) for its only output."""

    def __init__(self, model: PreTrainedModel, names: list[str]):
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        named = dict(zip(self.names, inputs, strict=True))
        return self.model(**named, return_dict=True).logits.float()


def model_to_export(predictor: Predictor) -> PreTrainedModel:
    """The one model that `predictor` has, ready to be traced.

    Raises:
        InputError: before any work, for several models, and for one that no file of ONNX can hold.
    """
    title = predictor.title
    if len(predictor.models) > 1:
        first = next(Members.within(Path(title)).names(), "fold-1")
        kind = "seeds" if first.startswith(SEED) else "folds"
        raise InputError(
            f"{title} is an ensemble of {len(predictor.models)} {kind}, and a graph holds one model. Export one of "
            f"its folders, such as {Path(title, first)}."
        )
    model = predictor.models[0].float()
    family = stack_config(model.config.backbone_config).model_type
    if reason := NOT_EXPORTED.get(family):
        raise InputError(f"{title} cannot be exported: {reason} (its backbone is a {family}). Use it with torch.")
    size = sum(weight.numel() * 4 for weight in model.parameters())
    if size >= MOST_BYTES:
        raise InputError(
            f"{title} cannot be exported: its float32 weights take {size / 1e9:.1f} GB, and a file of ONNX holds at "
            f"most {MOST_BYTES / 1e9:g} GB. Use it with torch."
        )
    for module in model.modules():
        if callable(getattr(module, "get_delta_weight", None)):  # a layer of an adapter
            module.merge()
    if getattr(model.config, "exit_threshold", None) is not None:
        model.config.exit_threshold = None
        print("Exits: the graph reads every text to the highest layer, as the model does without its exit_threshold.")
    return model.eval()  # not only the wrapper: the exporter puts back the mode of what it is given


# ---------------------------------------------------------------------------------------------------------- the graph
def write_graph(model: PreTrainedModel, batch: Batch, path: Path, title: str) -> None:
    """Traces `model`, which messages call `title`, on `batch`, and writes the graph to `path`.

    Raises:
        InputError: for a backbone that the exporter cannot trace.
    """
    names = list(batch)
    axes = {name: {0: "batch", 1: "tokens"} for name in names} | {"logits": {0: "batch"}}
    wrapper = _LogitsAlone(model, names).eval()  # or the exporter puts the whole model back into training
    family = getattr(model.config, "backbone_config", model.config).model_type
    what = f"{title} cannot be exported (its backbone is a {family})"
    # errors of any kind, from any file of the library
    with _quiet(), one_line(what, Exception, remedy="Use it with torch."), _step_by_step(model):
        torch.onnx.export(
            wrapper,
            tuple(batch.values()),
            str(path),
            input_names=names,
            output_names=["logits"],
            dynamic_axes=axes,
            opset_version=OPSET,
            dynamo=False,
        )


@contextmanager
def _step_by_step(model: PreTrainedModel) -> Iterator[None]:
    """Within this block, attention is computed in single steps, not by torch's one function.

    A graph of that function has more nodes, for texts that are nothing but padding, and takes up to 7 % longer.
    """
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the exporter's warnings from the terminal, and the graphs that its C++ prints where it fails."""
    sys.stdout.flush()
    kept = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    logging.disable(logging.WARNING)
    try:
        os.dup2(nowhere, 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)
        logging.disable(logging.NOTSET)


# ---------------------------------------------------------------------------------------------------------- the check
def probes(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, pairs: bool) -> list[Batch]:
    """Batches to compare: each text alone, short, empty and cut; and several, padded right and padded left.

    `pairs`: a text stands beside another one. The first batch is the one to trace: several texts, padded on the right.
    """
    alone = [([row], "right") for row in range(len(TEXTS))]
    together = [([0, 1], "right"), ([0, 1, 2, 3], "right"), ([0, 1, 2], "left")]
    batches = [_columns(tokenizer, rows, pairs, side) for rows, side in together + alone]
    if model.config.pair_encoding == APART:
        batches = [batch for batch in batches if _are_pairs(model, batch)]
    return [batch for batch in batches if batch["input_ids"].shape[1] > 0]  # some tokenizers make nothing of ""


def _columns(tokenizer: PreTrainedTokenizerBase, rows: list[int], pairs: bool, side: str) -> Batch:
    """The columns of some of `TEXTS`, or pairs of each and the one before it, padded on one `side`."""
    made = tokenizer(
        [TEXTS[row] for row in rows],
        [TEXTS[row - 1] for row in rows] if pairs else None,
        padding=len(rows) > 1,
        padding_side=side,
        truncation=True,
        max_length=min(tokenizer.model_max_length, LONGEST),
        return_tensors="pt",
    )
    return {name: made[name].long() for name in INPUTS if name in made}


def _are_pairs(model: PreTrainedModel, batch: Batch) -> bool:
    """Whether a model that reads pairs apart finds two texts in each row: cutting may have taken one away."""
    try:
        logits_of(model, batch)
    except ValueError:
        return False
    return True


def logits_of(model: Any, batch: Batch) -> np.ndarray:
    """The logits (B, C) of a model or a graph."""
    with torch.inference_mode():
        return model(**batch).logits.float().numpy()


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference of logits (B, C), as a share of the largest one that is expected, or of 1."""
    return float(np.abs(found - expected).max() / max(1.0, np.abs(expected).max()))


def check_graph(graph: OnnxModel, batches: list[Batch], expected: list[np.ndarray], title: str) -> float:
    """The largest `relative` difference of the graph's logits from those `expected` of each batch, (B, C).

    Raises:
        InputError: if it is above `TOLERANCE`, or the graph cannot be run on a batch.
    """
    worst = 0.0
    for batch, logits in zip(batches, expected, strict=True):
        shape = "x".join(map(str, batch["input_ids"].shape))
        with one_line(f"{title} cannot be exported: its graph fails on a batch of {shape} tokens", Exception):
            found = logits_of(graph, batch)
        difference = relative(found, logits)
        if not difference <= TOLERANCE:  # NaN is none
            raise InputError(
                f"{title} cannot be exported: on a batch of {shape} tokens its graph's logits differ by "
                f"{difference:.2g} from torch's, expected at most {TOLERANCE:g}. Use it with torch."
            )
        worst = max(worst, difference)
    return worst
