"""Baselines to compare the result with: the most frequent answer, and a linear model on the frozen backbone.

The linear model is what one would use in place of training. It reads the backbone as it was before training, and the
two texts of a pair apart: the vector of both together says little of how alike they are.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import DataCollatorWithPadding, PreTrainedModel, PreTrainedTokenizerBase
from transformers.data.data_collator import DataCollator

from lstmpool.fields_lstmpool import APART
from lstmpool.training.data.order import by_length, lengths_of
from lstmpool.training.data.rows import Split
from lstmpool.training.evaluation.differences import paired_interval
from lstmpool.training.evaluation.linear import ROWS, drawn, fit_linear, linear_features, rows_fitted
from lstmpool.training.evaluation.results import Evaluation
from lstmpool.training.loop.measuring import same_random_numbers
from lstmpool.training.tasks.metrics import LOWER_IS_BETTER
from lstmpool.training.tasks.task import SCORED, Task


Scores = dict[str, dict[str, float]]  # metrics by split
TELLING = 6  # rows: if so many all speak for one model, chance does not explain it (a sign test at 5 %)


class Vectors(NamedTuple):
    """The frozen backbone's vectors of a split, or of the rows that were drawn from it."""

    rows: np.ndarray  # their numbers, (M,)
    u: np.ndarray  # (M, H)
    v: np.ndarray | None = None  # of the second texts of pairs, (M, H)


class Lead(NamedTuple):
    """By how much a linear model is better than the trained one, on the rows of `split`."""

    split: str
    linear: float  # headline metrics
    trained: float
    is_clear: bool  # whether the 95 % interval of the difference over rows leaves 0 out


@dataclass(frozen=True)
class Baselines:
    """How good the baselines are."""

    scores: dict[str, Scores] = field(default_factory=dict)  # by title
    lead: Lead | None = None  # None: the linear model is not better, or there is none
    drawn: str = ""  # says of which rows the linear model saw only some


# ------------------------------------------------------------------------------------------------------------- vectors
@torch.no_grad()
def text_vectors(
    model: PreTrainedModel,
    rows: Dataset,
    collator: DataCollator,
    batch_size: int,
    title: str = "texts",
    quiet: bool = False,
) -> np.ndarray:
    """The top layer's vector of each row, in the rows' order, (N, S), from the backbone as it is now.

    Args:
        model: runs in eval mode, on the device where it is. No random number is drawn.
        rows: the tokenizer's columns, or cached `layer_states`. A text without tokens gets a vector of zeros.
        collator: makes a batch of such rows.
        batch_size: rows in a batch.
        title: names the rows in the progress bar.
        quiet: whether there is no progress bar.
    """
    base = model.eval().base_model
    device = next(model.parameters()).device
    ordered, order = by_length(rows)
    readable = len(rows) if "layer_states" in rows.column_names else int(np.count_nonzero(lengths_of(rows)))
    found = []
    with same_random_numbers():
        starts = range(0, readable, batch_size)
        for start in tqdm(starts, desc=f"vectors of {title}", leave=False, disable=quiet):
            batch = collator([ordered[i] for i in range(start, min(start + batch_size, readable))])
            batch = {name: value.to(device) for name, value in batch.items()}
            states = batch["layer_states"] if "layer_states" in batch else base(**batch).layer_states  # (B, L, H)
            found.append(states[:, -1].float().cpu().numpy())
    vectors = np.zeros((len(rows), model.config.state_size), dtype=np.float32)
    if found:
        vectors[order[:readable]] = np.concatenate(found)
    return vectors


def of_length_1(vectors: np.ndarray) -> np.ndarray:
    """Vectors (N, H) as directions. Those of zeros stay."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def vectors_of(top: np.ndarray, rows: np.ndarray, are_pairs: bool) -> Vectors:
    """The vectors of the `rows` whose top layer states are `top`, (M, H) or, of pairs read apart, (M, 4 H)."""
    if not are_pairs:
        return Vectors(rows, of_length_1(top))
    u, v = np.split(top, 4, axis=1)[:2]
    return Vectors(rows, of_length_1(u), of_length_1(v))


def split_vectors(
    model: PreTrainedModel,
    split: Split,
    inputs: Dataset,
    collator: DataCollator,
    tokenizer: PreTrainedTokenizerBase,
    batch_size: int,
    seed: int,
    title: str,
    quiet: bool = False,
) -> Vectors:
    """The vectors of at most `ROWS` rows of `split`. The two texts of a pair are read apart.

    Args:
        inputs: the split's rows as Trainer reads them, and the `collator` for these.
        tokenizer: encodes each text of a pair, and cuts it where it cuts the pair.
        seed: draws the rows.

    For the others, see `text_vectors`.
    """
    rows = drawn(len(split), ROWS, seed)
    if split.pairs is None or model.config.pair_encoding == APART:
        inputs = inputs if len(rows) == len(inputs) else inputs.select(rows)
        inputs = inputs.remove_columns("labels") if "labels" in inputs.column_names else inputs
        top = text_vectors(model, inputs, collator, batch_size, title, quiet)
        return vectors_of(top, rows, split.pairs is not None)
    some = split.take(rows.tolist())
    padding = DataCollatorWithPadding(tokenizer)
    u, v = (
        text_vectors(model, of_texts.tokenize(tokenizer)[0], padding, batch_size, title, quiet)
        for of_texts in (replace(some, texts=texts, pairs=None) for texts in (some.texts, some.pairs))
    )
    return Vectors(rows, of_length_1(u), of_length_1(v))


def why_no_linear_model(task: Task, flags: Mapping[str, Any]) -> str:
    """Says why no linear model is fitted in a run with these flags; empty if one is."""
    if len(task.names) > SCORED:
        return f"it is for up to {SCORED} outputs, found {len(task.names)}"
    if flags["reinit_layers"]:
        return "--reinit_layers has replaced layers that it would read"
    if flags["fsdp"] or flags["deepspeed"]:
        return "the model is spread over processes"
    return ""


# -------------------------------------------------------------------------------------------------------------- scores
def fit_baselines(
    vectors: dict[str, Vectors],
    labels: dict[str, np.ndarray],
    evaluation: Evaluation,
    seed: int,
    held_out: bool,
) -> Baselines:
    """Fits the baselines, scores them on validation and test, and compares the linear model with the trained one.

    The linear model is fitted to the training rows; for test rows also to the validation rows, if these were held out
    from the training file: those who do not train the backbone need no rows to choose an epoch by.

    Args:
        vectors: by split; empty for no linear model.
        labels: of all rows of the splits that have labels, (N,) or (N, C).
        evaluation: of the trained model.
        seed: see `fit_linear`.
        held_out: whether the validation rows are some of the training file's.
    """
    task = evaluation.task
    if len(task.names) > SCORED:  # tables of answers would fill the memory
        return Baselines()
    judged = [split for split in ("validation", "test") if split in labels]
    simplest = task.simplest_model().fit(np.zeros((len(labels["train"]), 1)), labels["train"])
    constant = {split: simplest.predict(np.zeros((len(labels[split]), 1))) for split in judged}
    scores = {task.simplest_title: {split: task.score(answers, labels[split]) for split, answers in constant.items()}}
    compared = [split for split in judged if split in vectors]
    if not compared:
        return Baselines(scores if judged else {})
    of_linear: Scores = {}
    lead = None
    for split in compared:  # test comes last, and decides where there is one
        rows = vectors[split].rows
        sources = _sources(vectors, split, held_out)
        answers = _linear_answers(vectors, labels, split, sources, task, seed)
        of_linear[split] = task.score(answers, labels[split][rows])
        lead = _lead(split, answers, evaluation.compared(split)[rows], labels[split][rows], task)
    scores = {task.linear_title: of_linear} | scores
    return Baselines(scores, lead, _drawn(vectors, labels, task, compared[-1], sources))


def _sources(vectors: dict[str, Vectors], split: str, held_out: bool) -> list[str]:
    """The splits whose rows the linear model that predicts `split` is fitted to."""
    names = ["train", "validation"] if held_out else ["train"]
    return [name for name in names if name in vectors and name != split]


def _features(vectors: Vectors) -> np.ndarray:
    return linear_features(vectors.u, vectors.v)


def _linear_answers(
    vectors: dict[str, Vectors], labels: dict[str, np.ndarray], split: str, sources: list[str], task: Task, seed: int
) -> np.ndarray:
    """The answers of a linear model of the splits `sources` for the rows of `split` that have vectors."""
    features = np.concatenate([_features(vectors[name]) for name in sources])
    fitted = fit_linear(features, np.concatenate([labels[name][vectors[name].rows] for name in sources]), task, seed)
    return fitted.predict(_features(vectors[split]))


def _lead(split: str, linear: np.ndarray, trained: np.ndarray, labels: np.ndarray, task: Task) -> Lead | None:
    """How the answers of the two models compare on the same rows. None if the linear model's are not better."""
    metric = task.headline
    of_linear, of_trained = task.score(linear, labels)[metric], task.score(trained, labels)[metric]
    is_better = of_linear < of_trained if metric in LOWER_IS_BETTER else of_linear > of_trained
    if not is_better:
        return None
    interval = paired_interval(task, linear, trained, labels)
    if interval is None:
        return Lead(split, of_linear, of_trained, len(labels) >= TELLING)
    return Lead(split, of_linear, of_trained, not interval[0] <= 0 <= interval[1])


def _drawn(
    vectors: dict[str, Vectors], labels: dict[str, np.ndarray], task: Task, split: str, sources: list[str]
) -> str:
    """Says how many rows the linear model that predicts `split` has seen of how many; empty if all."""
    there = sum(len(labels[name]) for name in sources)
    read = sum(len(vectors[name].rows) for name in sources)
    features = vectors[split].u.shape[1] * (1 if vectors[split].v is None else 4)
    fitted = rows_fitted(read, features, task)
    scored, of = len(vectors[split].rows), len(labels[split])
    said = []
    if fitted < there:
        said.append(f"fitted to {fitted:,} of {there:,} rows")
    if scored < of:
        said.append(f"scored on {scored:,} of {of:,} {split} rows")
    return f"The linear model was {' and '.join(said)}, drawn at random." if said else ""
