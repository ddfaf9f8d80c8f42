"""`--layer_pooling auto`: every pooling is tried on layer states of the frozen backbone, and rows held out choose.

The backbone runs once over some training rows, and over validation rows if there are any. On these states, a pooling
and its classifier are trained in seconds, at several rates. Candidates are each pooling of all layers that are read,
and `last` on each of the highest four: if one of these wins, the layers above it are not built.

Validation rows choose, by the metric of the run. With fewer than `LEAST_HELD` of them, and in each fold of a
cross-validation, whose rows must not choose the model that predicts them, training rows are held out in turn. The same
seed gives the same choice. A run that goes on keeps it, since it is in the log that lies in each checkpoint.

The learning rate that was the best for the winner is the run's head learning rate, too, if the run is what was tried:
a head on a frozen backbone, without a linear path, and no flag names the rate. A mixture of layers at an LSTM's rate
would learn little.

States (N, L, S): N rows, L layers read, S width of a layer's vector.
"""

import copy
import math
import time
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate.utils import gather_object
from sklearn.model_selection import StratifiedGroupKFold
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel, TrainerCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from lstmpool.configuration_lstmpool import LstmPoolConfig
from lstmpool.pooling_lstmpool import POOLING_CLASSES
from lstmpool.training.data.holdout import draw_by_class, units_of
from lstmpool.training.errors import InputError
from lstmpool.training.loop.trainer_arguments import changed
from lstmpool.training.model.backbone import quiet_loading
from lstmpool.training.model.head_training import Head, predict_head, train_epochs
from lstmpool.training.model.linear_start import Loss, label_tensor
from lstmpool.training.model.starts import set_prior
from lstmpool.training.model.target_scale import TargetScale
from lstmpool.training.model.token_limits import TokenLimits
from lstmpool.training.output.terminal import describe_choice
from lstmpool.training.runs.stages import (
    draw_states,
    loss_of,
    raise_in_all,
    rows_in_memory,
    states_in,
    states_of_rows,
)
from lstmpool.training.runs.state import State
from lstmpool.training.tasks.task import BestBy, Task


LAST = "last"
SIMPLEST_FIRST = (LAST, "max", "weighted", "attention", "concat", "gru", "lstm")  # of equal ones, the first wins
HIGHEST = 4  # layers that are tried alone
RATES = (1e-3, 4e-3, 1.6e-2)  # as in the study, where mixtures of layers wanted higher rates than nets
RATES_OF_NETS = (5e-4, 2e-3)  # fewer: a trial of an LSTM takes twenty times as long as one of a mixture
NETS = ("concat", "gru", "lstm")
BATCH = 32
STEPS = 250  # of a trial, at most: so that its cost does not grow with the rows
STEPS_IN_FOLDS = 120  # where it is trained several times
EVALUATIONS = 8  # of a trial; many short epochs are not all evaluated
PATIENCE = 2  # evaluations without a better one, after which it stops
TRAIN_ROWS, HELD_ROWS = 2000, 1000  # that are read, at most, to train on and to choose by
LEAST_HELD = 200  # validation rows; with fewer, luck would choose
FOLDS = 3  # without validation rows; of more than `FEW` rows, one of the folds is held out and no other
FEW = 1000
NAME = "layer_pooling"  # of the entry in the log and in metrics.json


class Candidate(NamedTuple):
    """A pooling, and the layers that it reads, lowest first."""

    pooling: str
    layers: tuple[int, ...]


class Result(NamedTuple):
    """How good a candidate was on the rows held out: by the run's metric, and by the loss it was trained with."""

    score: float
    loss: float
    rate: float  # the learning rate


@dataclass(frozen=True)
class Rows:
    """Rows with their layer states, and who holds out whom.

    Args:
        states: (N, L, S).
        targets: as a model is trained on them, (N,) or (N, C).
        labels: the same in their own units.
        parts: the numbers of the rows to train on, and of those that are then predicted; the latter differ.
    """

    states: Tensor
    targets: Tensor
    labels: np.ndarray
    parts: list[tuple[np.ndarray, np.ndarray]]

    @property
    def held(self) -> np.ndarray:
        """The numbers of the rows that are predicted."""
        return np.concatenate([held for _, held in self.parts])


@dataclass(frozen=True)
class Judge:
    """Says how good logits are.

    Args:
        task: what the labels mean.
        best: the metric.
        loss: summed over rows.
        scale: of the targets, (C,); 1 where they are as the labels are.
        balanced: whether the loss lets every class count the same.
    """

    task: Task
    best: BestBy
    loss: Loss
    scale: np.ndarray
    balanced: bool = False

    def result(self, logits: np.ndarray, rows: Rows, rate: float) -> Result:
        """Of `logits` (M, C) for the rows that were held out."""
        if not np.isfinite(logits).all():
            return Result(math.nan, math.inf, rate)
        targets = rows.targets[rows.held]
        loss = float(self.loss(torch.as_tensor(logits, dtype=torch.float32), targets.cpu()) / targets.numel())
        if self.best.metric == "loss":
            return Result(loss, loss, rate)
        scores = self.task.score(self.task.decide(logits * self.scale), rows.labels[rows.held])
        return Result(scores[self.best.metric], loss, rate)

    def order(self, result: Result) -> tuple[float, float]:
        """The larger, the better. Of equal scores, that with the lower loss is better; what is no number is worst."""
        score = result.score if self.best.greater_is_better else -result.score
        return (-math.inf if math.isnan(score) else score, -result.loss)


def choose_pooling(state: State) -> None:
    """Gives `state.job` the fields of the best candidate, for its model, and notes in `state` what was tried.

    The winner's rate, if the run is to take it, goes into `state.args`.
    A run that goes on takes up what was chosen when it began.

    Raises:
        InputError: if the layer states cannot be kept, or there are too few rows to choose by.
    """
    began = time.monotonic()
    choice = _noted(state.resumed)
    is_new = choice is None
    if is_new:
        choice = gather_object([_choose(state)])[0]  # on a GPU, the others may have found another one
    state.pooling_choice = choice
    fields = {"layer_pooling": choice["chosen"], "layers": choice["layers"]}
    state.job = replace(state.job, fields=state.job.fields | fields)
    if choice["head_learning_rate"] is not None:
        state.args = changed(state.args, head_learning_rate=choice["head_learning_rate"])
    if is_new:
        print(describe_choice(choice, state.job.task.titles, time.monotonic() - began), flush=True)


def _is_what_is_tried(state: State) -> bool:
    """Whether the run trains a head on a frozen backbone, without a linear path, as a trial does."""
    return state.job.model_args.freeze_backbone and not state.job.fields["linear_skip"]


def _choose(state: State) -> dict[str, Any]:
    """What was tried, the best first, for the log, metrics.json and the card."""
    job, args = state.job, state.args
    with quiet_loading():
        model, _ = job.backbone.load_model(job.fields | {"linear_skip": False})
    job.check_tokens(state.tokens, TokenLimits.of(model))
    model.to(args.device)
    scale = None
    if job.task.has_numbers and args.standardize_targets:
        scale = TargetScale(job.splits["train"].labels)
    rows = _read(state, model, scale)
    units = np.ones(1) if scale is None else scale.scale
    judge = Judge(job.task, job.best, loss_of(state), units, balanced=args.class_weights is not None)
    candidates = candidates_for(model.config.layers, least=job.model_args.freeze_layers)
    quiet = args.disable_tqdm or not state.is_first_process
    named = args.head_learning_rate if _is_what_is_tried(state) and args.named_head_rate else None
    tried = try_all(candidates, model, rows, judge, args.seed, quiet, named)
    return _record(tried, rows, state)


# ------------------------------------------------------------------------------------------------------------ choosing
def candidates_for(layers: list[int], least: int = 0) -> list[Candidate]:
    """What is tried, the simplest first. `layers`: that may be read; `least`: the lowest that may be the only one."""
    single = [layer for layer in layers[-HIGHEST:] if layer >= least]
    alone = [Candidate(LAST, (layer,)) for layer in single or layers[-1:]]
    return alone + [Candidate(pooling, tuple(layers)) for pooling in SIMPLEST_FIRST if pooling != LAST]


def try_all(
    candidates: list[Candidate],
    model: PreTrainedModel,
    rows: Rows,
    judge: Judge,
    seed: int,
    quiet: bool,
    named_rate: float | None = None,
) -> list[tuple[Candidate, Result]]:
    """The candidates with their results, the best first. Of equal ones, the first of `candidates` comes first.

    Each is tried at several rates, or at the `named_rate` alone.
    """
    tried = []
    for candidate in tqdm(candidates, desc="layer poolings", leave=False, disable=quiet):
        rates = RATES_OF_NETS if candidate.pooling in NETS else RATES
        if named_rate is not None:
            rates = (named_rate,)
        results = [try_one(candidate, model, rows, judge, seed, rate) for rate in rates]
        tried.append((candidate, max(results, key=judge.order)))
    return sorted(tried, key=lambda pair: judge.order(pair[1]), reverse=True)  # which keeps the order of equal ones


def try_one(candidate: Candidate, model: PreTrainedModel, rows: Rows, judge: Judge, seed: int, rate: float) -> Result:
    """Trains the candidate once for each part of the rows, and returns its result after the best epoch."""
    config = _config_of(candidate, model)
    states = rows.states[:, [model.config.layers.index(layer) for layer in candidate.layers]]
    batches = min(math.ceil(len(train) / BATCH) for train, _ in rows.parts)
    epochs = math.ceil((STEPS if len(rows.parts) == 1 else STEPS_IN_FOLDS) / batches)
    heads, runs = [], []
    for train, _ in rows.parts:
        head = _new_head(config, model, seed)
        if config.standardize_layers:
            head.pooler.standardization.fit(states[train])
        set_prior(head.classifier, rows.targets[train].cpu().numpy(), judge.task, judge.balanced)
        heads.append(head)
        runs.append(train_epochs(head, states[train], rows.targets[train], judge.loss, rate, epochs, BATCH, seed))
    every = math.ceil(epochs / EVALUATIONS)
    best, since = Result(math.nan, math.inf, rate), 0
    for epoch, *_ in zip(*runs, strict=True):  # the heads are trained side by side, since they are judged together
        if epoch % every and epoch < epochs:
            continue
        parts = zip(heads, rows.parts, strict=True)
        logits = np.concatenate([predict_head(head, states[held]) for head, (_, held) in parts])
        result = judge.result(logits, rows, rate)
        since += 1
        if judge.order(result) > judge.order(best):
            best, since = result, 0
        if since == PATIENCE:
            break
    return best


def _config_of(candidate: Candidate, model: PreTrainedModel) -> LstmPoolConfig:
    """The config of `model`, but with the pooling and the layers of `candidate`."""
    config = copy.deepcopy(model.config)
    config.layer_pooling, config.layers = candidate.pooling, list(candidate.layers)
    config.resolve()
    return config


def _new_head(config: LstmPoolConfig, model: PreTrainedModel, seed: int) -> Head:
    """A head for `config`, with the weights that `model` gives new layers."""
    torch.manual_seed(seed)
    pooler = POOLING_CLASSES[config.layer_pooling](config)
    head = Head(pooler, nn.Linear(pooler.output_size, config.num_labels), config.pooler_dropout)
    return head.apply(model._init_weights).to(model.device)


def _record(tried: list[tuple[Candidate, Result]], rows: Rows, state: State) -> dict[str, Any]:
    """What `tried`, the best first, and the first one's fields and rate are called in the log and in metrics.json."""
    best, found = tried[0]
    takes_rate = _is_what_is_tried(state) and not state.args.named_head_rate
    # names in alphabetical order, in which a checkpoint gives them back: metrics.json is the same to the last byte
    return {
        "chosen": best.pooling,
        "head_learning_rate": found.rate if takes_rate else None,
        "layers": list(best.layers),
        "metric": state.job.best.metric,
        "on": "validation" if _has_validation(state) else "train",
        "rows": len(rows.held),
        "tried": [
            {"layer_pooling": of.pooling, "layers": list(of.layers), "learning_rate": found.rate, "score": found.score}
            for of, found in tried
        ],
    }


class NotesChoice(TrainerCallback):
    """Notes a choice in the log, which checkpoints keep. A run that goes on must not have this callback."""

    def __init__(self, choice: dict[str, Any]):
        self.choice = choice

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Adds an entry to the log."""
        state.log_history.append({"epoch": 0, "step": 0, NAME: self.choice})


def _noted(checkpoint: Path | None) -> dict[str, Any] | None:
    """The choice that a checkpoint's log holds, if there is one. A checkpoint of another program may lack a log."""
    try:
        log = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME)).log_history if checkpoint else []
    except (OSError, ValueError, TypeError):
        return None
    return next((entry[NAME] for entry in log if NAME in entry), None)


# ---------------------------------------------------------------------------------------------------------------- rows
def _read(state: State, model: PreTrainedModel, scale: TargetScale | None) -> Rows:
    """The rows to choose by. Raises InputError, in all processes, if one of them cannot read or keep their states."""
    wrong = ""
    try:
        rows = _read_here(state, model, scale)
    except InputError as error:
        wrong = f"--layer_pooling auto: {error} Or name a pooling, such as --layer_pooling lstm."
    raise_in_all(wrong)
    return rows


def _read_here(state: State, model: PreTrainedModel, scale: TargetScale | None) -> Rows:
    train = state.job.splits["train"]
    found, drawn = draw_states(state, model, rows_in_memory(model, TRAIN_ROWS))
    states, labels = [torch.from_numpy(states_in(found, model))], [np.asarray(train.labels)[drawn]]
    if _has_validation(state):
        of_held = np.asarray(state.job.splits["validation"].labels)
        held = draw_by_class(of_held, rows_in_memory(model, HELD_ROWS), state.args.seed)
        tokens = state.tokens["validation"]
        found = states_of_rows(state, model, tokens.choose(tokens.dataset), held, "validation")
        states.append(torch.from_numpy(states_in(found, model)))
        labels.append(of_held[held])
        parts = [(np.arange(len(drawn)), len(drawn) + np.arange(len(held)))]
    else:
        few = train.take(drawn)
        parts = folds_of(np.asarray(units_of(few)), np.asarray(state.job.task.strata(few.labels)), state.args.seed)
    own = np.concatenate(labels)
    targets = own if scale is None else np.asarray(scale.divide(own))
    device = model.device
    return Rows(torch.cat(states).to(device), label_tensor(targets).to(device), own, parts)


def folds_of(units: np.ndarray, strata: np.ndarray, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """The parts of a cross-validation: `FOLDS` of them, or one where there are more than `FEW` rows.

    Args:
        units: by row; rows of one unit are on one side.
        strata: by row; a part has its share of each, as far as that goes.
        seed: of the folds.

    Raises:
        InputError: if there are fewer units than folds.
    """
    count = len(np.unique(units))
    if count < FOLDS:
        raise InputError(
            f"without {LEAST_HELD} validation rows it needs {FOLDS} different texts to train on, found {count}."
        )
    _, strata = np.unique(strata, return_inverse=True)
    if np.bincount(strata).max() < FOLDS:  # no stratum can be in each
        strata = np.zeros_like(strata)
    splitter = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about strata with fewer rows than folds
        parts = [part for part in splitter.split(strata, strata, units) if len(part[0]) and len(part[1])]
    return parts if len(units) <= FEW else parts[:1]


def _has_validation(state: State) -> bool:
    """Whether there are validation rows enough to choose by. In a fold, they are the ones that it predicts."""
    split = state.job.splits.get("validation")
    if split is None or split.labels is None or state.job.data_args.cv_folds:
        return False
    return len(split) >= LEAST_HELD
