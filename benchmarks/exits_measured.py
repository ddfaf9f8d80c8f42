"""Measures exits beside what one would do instead: scores, layers and times of trained models, side by side.

All models read the same tokens. Times are those of the processor for a forward, without the tokenizer. Within a round
every contender predicts each batch once, in an order that is drawn anew for each batch. So what else the machine does
hits all of them alike.

N rows, B batch, T tokens, L layers read, S width of a layer's vector, C labels.
"""

import multiprocessing
import random
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from lstmpool.benchmarks.exits_scores import Compared, add_controls
from lstmpool.benchmarks.exits_tables import BOUNDED, EXITS, FULL, STOCK, UNTIMED
from lstmpool.benchmarks.grid import peak_bytes
from lstmpool.benchmarks.results import Row
from lstmpool.benchmarks.rounds import ratio
from lstmpool.modeling_lstmpool import LstmPoolForSequenceClassification
from lstmpool.training.data.rows import Split
from lstmpool.training.model.backbone import quiet_loading
from lstmpool.training.predicting.model import Finished
from lstmpool.training.tasks.task import Task


BATCH = 32
ALONE = 150  # rows that are timed one by one
NEVER = 2.0  # a threshold that no confidence reaches
COST_TOKENS = (16, 64, 256)
COST_BATCHES = (1, 32)
COST_TOKENS_IN_ALL = 100_000  # of the rounds of a cell
# Of the CSV. Some are empty for some contenders.
COLUMNS = (
    "validation test gain_validation gain_test low high layers agreement test_rows chosen depth "
    "ms_1 faster_1 faster_low_1 faster_high_1 ms_32 faster_32 faster_low_32 faster_high_32"
).split()

Batch = dict[str, Tensor]


# ------------------------------------------------------------------------------------------------- a set and a seed
def measure(
    folders: dict[str, Path], splits: dict[str, Split], task: Task, drop: float, rounds: int
) -> dict[str, Row]:
    """The columns of each contender's line in the CSV, by its name.

    Args:
        folders: of the trained contenders, which are of `TIMED`.
        splits: train, validation and test.
        task: of all of them.
        drop: points of the headline metric that exits may lose on validation.
        rounds: of the times.
    """
    torch.set_num_threads(1)
    models, tokenizer = load(folders)
    tokens = {split: rows.tokenize(tokenizer)[0] for split, rows in splits.items()}
    compared = Compared(task, {split: np.array(rows.labels) for split, rows in splits.items()})
    for who, model in models.items():
        for split in ("validation", "test"):
            compared.add(who, split, *given(model, tokens[split], tokenizer))
    times = measured_times(models, tokens["test"], tokenizer, rounds)
    states = {split: layer_states(models[FULL], rows, tokenizer) for split, rows in tokens.items()}
    chosen = {who: _told(models[who].config.exit_threshold) for who in (EXITS, BOUNDED) if who in models}
    chosen |= add_controls(compared, models[FULL].config, states, drop)
    rows = {who: dict.fromkeys(COLUMNS, "") for who in (*models, *UNTIMED)}
    for who, row in rows.items():
        row |= compared.row(who) | times.get(who, {}) | {"chosen": chosen.get(who, "")}
    for who, model in models.items():
        rows[who]["depth"] = str(depth_of(model))
    return rows


def _told(threshold: float | None) -> str:
    return "" if threshold is None else str(threshold)


def load(folders: dict[str, Path]) -> tuple[dict[str, PreTrainedModel], Any]:
    """The models, and the tokenizer of the full one, which all of them read. A folder is loaded once."""
    loaded, models = {}, {}
    for who, folder in folders.items():
        if who == STOCK:
            models[who] = AutoModelForSequenceClassification.from_pretrained(folder).eval()
            continue
        if folder not in loaded:
            loaded[folder] = Finished.find(str(folder)).load(use_cpu=True, bf16=False)
        models[who] = loaded[folder].models[0]
    return models, loaded[folders[FULL]].tokenizer


def batches(tokens: Dataset, tokenizer: Any, order: np.ndarray, size: int) -> list[Batch]:
    """The rows in this `order`, so many at a time, each batch padded to its longest row."""
    parts = [order[start : start + size] for start in range(0, len(order), size)]
    return [dict(tokenizer.pad(tokens[part], return_tensors="pt")) for part in parts]


def random_order(rows: int) -> np.ndarray:
    """The rows in a random order, the same each time."""
    return np.random.default_rng(0).permutation(rows)


@torch.inference_mode()
def given(model: PreTrainedModel, tokens: Dataset, tokenizer: Any) -> tuple[np.ndarray, np.ndarray]:
    """The logits (N, C) of the rows, and to which layer each was read (N,), in the order of the rows."""
    order = random_order(len(tokens))
    logits, layers = [], []
    for batch in batches(tokens, tokenizer, order, BATCH):
        found = model(**batch)
        left = found.get("exit_layers")
        logits.append(found.logits)
        layers.append(torch.full(found.logits.shape[:1], depth_of(model)) if left is None else left)
    back = np.argsort(order)
    return torch.cat(logits).double().numpy()[back], torch.cat(layers).numpy()[back]


def depth_of(model: PreTrainedModel) -> int:
    """The number of the highest layer that is read."""
    layers = getattr(model.config, "layers", None)
    return model.config.num_hidden_layers if layers is None else layers[-1]


@torch.no_grad()
def layer_states(model: PreTrainedModel, tokens: Dataset, tokenizer: Any) -> Tensor:
    """The layer states (N, L, S) of the rows, in their order."""
    order = np.arange(len(tokens))
    return torch.cat([model(**batch).layer_states for batch in batches(tokens, tokenizer, order, BATCH)])


# -------------------------------------------------------------------------------------------------------------- times
def measured_times(models: dict[str, PreTrainedModel], tokens: Dataset, tokenizer: Any, rounds: int) -> dict[str, Row]:
    """Each model's time for a row in ms, and how many times faster than the full one it is, alone and in batches."""
    found: dict[str, Row] = {who: {} for who in models}
    for size, most in ((1, ALONE), (BATCH, len(tokens))):
        order = random_order(len(tokens))[:most]
        times = cpu_seconds(models, batches(tokens, tokenizer, order, size), rounds)
        for who, of_who in times.items():
            faster, low, high = ratio(times[FULL], of_who)
            found[who] |= {
                f"ms_{size}": f"{1000 * np.median(of_who) / len(order):.3f}",
                f"faster_{size}": f"{faster:.4f}",
                f"faster_low_{size}": f"{low:.4f}",
                f"faster_high_{size}": f"{high:.4f}",
            }
    return found


@torch.inference_mode()
def cpu_seconds(steps: dict[str, Callable[..., Any]], inputs: list[Batch], rounds: int) -> dict[str, list[float]]:
    """The processor's seconds of each step for all `inputs`, a number a round.

    Each input goes through all steps before the next one does, in an order that is drawn anew.
    """
    order = list(steps)
    draw = random.Random(0)
    for name in order:
        steps[name](**inputs[0])  # makes what is made once
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        of_round = dict.fromkeys(order, 0.0)
        for batch in inputs:
            draw.shuffle(order)
            for name in order:
                started = time.process_time()
                steps[name](**batch)
                of_round[name] += time.process_time() - started
        for name, taken in of_round.items():
            seconds[name].append(taken)
    return seconds


# ---------------------------------------------------------------------------------------------- exits never taken
def cost(folder: str, batch: int, tokens: int, rounds: int) -> Row:
    """What exits cost that no row takes, over the same model without: time, and memory in a process of its own."""
    torch.set_num_threads(1)
    steps, inputs = never_taken(folder, batch, tokens)
    many = max(rounds, min(200, COST_TOKENS_IN_ALL // (batch * tokens)))
    times = cpu_seconds(steps, [inputs], many)
    middle, low, high = ratio(times["never taken"], times["without"])
    peaks = {}
    for name in steps:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            peaks[name] = process.submit(peak_of, folder, batch, tokens, name).result()
    return {
        "time": f"{middle:.4f}",
        "low": f"{low:.4f}",
        "high": f"{high:.4f}",
        "rounds": str(many),
        "bytes": str(peaks["never taken"]),
        "bytes_without": str(peaks["without"]),
    }


def never_taken(folder: str, batch: int, tokens: int) -> tuple[dict[str, Callable[..., Any]], Batch]:
    """A model on the backbone in `folder` with exits, called with them and without, and its inputs (B, T)."""
    torch.manual_seed(0)
    with quiet_loading():
        model = LstmPoolForSequenceClassification.from_backbone(folder, num_labels=2)
    model.add_exits()  # switched off
    ids = torch.randint(5, model.config.backbone_config.vocab_size, (batch, tokens))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return {"without": model, "never taken": partial(model, exit_threshold=NEVER)}, inputs


@torch.inference_mode()
def peak_of(folder: str, batch: int, tokens: int, name: str) -> int:
    """Peak bytes of one forward, above the model and its inputs."""
    torch.set_num_threads(1)
    steps, inputs = never_taken(folder, batch, tokens)
    steps[name](**inputs)
    return peak_bytes(lambda: steps[name](**inputs))
