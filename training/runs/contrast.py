"""The first step of a run with few rows: the backbone learns which texts share a label, before any head is fitted.

Each step draws a batch of texts, equally many of each of its labels. The vectors of two texts, as the top layer gives
them, should have a cosine of 1 if their labels agree, and of 0 if they differ. That is the loss of SetFit (Tunstall et
al., https://arxiv.org/abs/2209.11055), here over all pairs of a batch. A hundred rows make thousands of pairs, so
there is more to learn from than the rows' own labels.

A run that is killed here repeats it, and gets the same weights. Several processes all do the same.
"""

import time
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel, get_linear_schedule_with_warmup

from lstmpool.fields_lstmpool import SINGLE
from lstmpool.training.flags.defaults import FEW_ROWS, steps_for
from lstmpool.training.flags.training_arguments import TrainingArguments
from lstmpool.training.loop.divergence import check_weights
from lstmpool.training.loop.trainer_arguments import batch_of
from lstmpool.training.model.trainable_parts import learning_rates
from lstmpool.training.runs.state import State


BATCH = 16  # texts
ROWS_A_CLASS = 8  # on average at least: with fewer, classes would be pushed apart by one or two texts
WARMUP = 0.1  # of the steps
# With fewer, three epochs of stage 2 gave better scores than 100 steps: see benchmarks/FIRST_RUN.md.
FEWEST_TO_GO_ON = 200


def contrastive_steps(state: State, tokens: float) -> int:
    """The number of steps: as the user says, or half of the least that a run has, where they are known to help.

    That is where the rows are few, each is one text with one label, and the run's length is left to the command. They
    depend on arguments and rows alone, so that a run which goes on has the same. `tokens`: of the median row.
    """
    job, args = state.job, state.args
    one_label_a_text = job.task.problem_type == SINGLE and not job.reads_pairs
    trains_all = not job.model_args.freeze_backbone and not job.model_args.peft
    if not (state.has_two_stages and one_label_a_text and trains_all):
        return 0
    if args.contrastive_steps is not None:
        return args.contrastive_steps
    rows = len(job.splits["train"])
    if not ROWS_A_CLASS * len(job.task.names) <= rows < FEW_ROWS:
        return 0
    return steps_for(tokens, batch_of(args), args.limits.least_steps) // 2


def steps_after(least_steps: int, rows: int) -> int:
    """The least number of steps of stage 2, if texts were compared: the other half, or none if `rows` are very few."""
    return least_steps // 2 if rows >= FEWEST_TO_GO_ON else 0


def compare_texts(state: State) -> None:
    """Trains the backbone for `state.contrastive_steps`, and says so.

    Raises:
        Diverged: if a weight is then NaN or infinite.
    """
    began = time.monotonic()
    model, args, rows, steps = state.model, state.args, state.inputs["train"], state.contrastive_steps
    labels = np.asarray(rows["labels"])
    generator = np.random.default_rng(args.seed)
    groups = _trained(model, args)
    parameters = [parameter for group in groups for parameter in group["params"]]
    optimizer = torch.optim.AdamW(groups, weight_decay=args.weight_decay, fused=True)
    schedule = get_linear_schedule_with_warmup(optimizer, int(WARMUP * steps), steps)
    base = model.base_model.train()
    for _ in tqdm(range(steps), desc="comparing texts", leave=False, disable=args.disable_tqdm):
        drawn = draw_batch(labels, BATCH, generator)
        batch = state.collator([rows[int(row)] for row in drawn]).to(args.device)
        of_batch = batch.pop("labels")
        with torch.autocast(args.device.type, torch.bfloat16, enabled=args.bf16):
            vectors = base(**batch).layer_states[:, -1]  # (B, S)
        pair_loss(vectors.float(), of_batch).backward()
        if args.max_grad_norm > 0:
            torch.nn.utils.clip_grad_norm_(parameters, args.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    check_weights(model, step=0)
    print(f"Texts compared: {steps} steps of the backbone alone, in {time.monotonic() - began:.0f} s.", flush=True)


def _trained(model: PreTrainedModel, args: TrainingArguments) -> list[dict[str, Any]]:
    """The backbone's parameters that are trained, each with its learning rate, as an optimizer takes them."""
    rates = learning_rates(model, args)
    groups = []
    for name, parameter in model.named_parameters():
        if name in rates and ".backbone." in name:
            groups.append({"params": [parameter], "lr": rates[name]})
    return groups


def pair_loss(vectors: Tensor, labels: Tensor) -> Tensor:
    """How far the cosines of pairs are from 1, for equal labels, and from 0, for different ones.

    Both are mean squares, and their mean is returned, so that it does not matter which pairs there are more of.

    Args:
        vectors: (B, S).
        labels: (B,) of whole numbers.
    """
    directions = F.normalize(vectors, dim=-1)
    first, second = torch.triu_indices(len(labels), len(labels), offset=1, device=labels.device)
    cosines = (directions[first] * directions[second]).sum(-1)  # of each pair once
    agree = labels[first] == labels[second]
    kinds = [(1 - cosines[agree]).square(), cosines[~agree].square()]
    return torch.stack([errors.mean() if len(errors) else errors.sum() for errors in kinds]).mean()


def draw_batch(labels: np.ndarray, size: int, generator: np.random.Generator) -> np.ndarray:
    """The numbers of at most `size` rows: equally many of each label drawn, two or more.

    A label with fewer rows than that gives some of them several times. `labels`: (N,) of whole numbers.
    """
    names = generator.permutation(np.unique(labels))[: size // 2]
    each = size // len(names)
    drawn = []
    for name in names:
        rows = np.flatnonzero(labels == name)
        drawn.append(generator.choice(rows, each, replace=len(rows) < each))
    return np.concatenate(drawn)
