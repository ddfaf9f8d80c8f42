"""Compares the answers of exits, and of exits by other rules and with other heads, with those of the full model.

Exits by patience leave once so many layers in a row have given the same answer (Zhou et al. 2020,
https://arxiv.org/abs/2006.04152). The controls are heads on the layer states of the full model, all fitted to the
training rows alone: linear ones on a layer's own vector or on the mean of the layers
so far, both as the command fits them, and an LSTM over the layers with a linear head for each. All are chosen on
validation rows, under the same allowed drop; the controls by the command's rule `point`, each exit calibrated first.
Patience goes by the heads of the first kind: those of `exits` have seen the validation rows, which could not choose.

N rows, B batch, L layers read, S width of a layer's vector, C labels.
"""

import numpy as np
import torch
from torch import Tensor, nn

from lstmpool.benchmarks.exits_tables import CONTROLS, FULL, LSTM, MEAN, OWN, PATIENCE
from lstmpool.benchmarks.results import Row
from lstmpool.configuration_lstmpool import LstmPoolConfig
from lstmpool.exits_lstmpool import LayerExits
from lstmpool.pooling_lstmpool import mean_and_scale
from lstmpool.training.evaluation.calibration import fit_temperature
from lstmpool.training.evaluation.exit_results import are_right
from lstmpool.training.evaluation.exit_rules import choose_point, margin, mixed, places_of
from lstmpool.training.model.exit_training import Rows, confidences_of, fit_heads, logits_of_exits
from lstmpool.training.model.linear_start import label_tensor, summed_loss
from lstmpool.training.tasks.intervals import bootstrap
from lstmpool.training.tasks.task import Task


UNITS = 256  # of the LSTM
EPOCHS = 15  # of its training
Logits = dict[str, np.ndarray]  # of exits below the highest layer, (N, L - 1, C) by split
BATCH = 64  # rows of a step of its training


class Compared:
    """What each contender gives for the rows of each split, beside the full model.

    Args:
        task: of all.
        labels: of the rows, by split.
    """

    def __init__(self, task: Task, labels: dict[str, np.ndarray]):
        self.task = task
        self.labels = labels
        self.logits: dict[tuple[str, str], np.ndarray] = {}  # (N, C) by contender and split
        self.layers: dict[tuple[str, str], np.ndarray] = {}  # (N,), to which layer each row was read

    def add(self, who: str, split: str, logits: np.ndarray, layers: np.ndarray) -> None:
        self.logits[who, split], self.layers[who, split] = logits, layers

    def left(self, split: str, logits: Logits, places: np.ndarray) -> np.ndarray:
        """The logits (N, C) of rows that leave at these `places` (N,), by exits with these `logits` or at the end."""
        return mixed(logits[split], self.logits[FULL, split], places)

    def enter(self, who: str, logits: Logits, places: dict[str, np.ndarray]) -> None:
        """Adds rows that leave at these `places`, by split."""
        for split, of_split in places.items():
            self.add(who, split, self.left(split, logits, of_split), of_split + 1)

    def points(self, split: str, logits: np.ndarray) -> float:
        """The headline metric in hundredths. Higher is better in the tasks that are compared here."""
        return 100 * float(self.task.headline_of(*self._by_row(split, logits)))

    def row(self, who: str) -> Row:
        """The columns of a contender that do not depend on its time."""
        scores = {split: self.points(split, self.logits[who, split]) for split in ("validation", "test")}
        full = {split: self.points(split, self.logits[FULL, split]) for split in scores}
        low, high = self.interval(who)
        answers, of_full = (self.task.decide(self.logits[each, "test"]) for each in (who, FULL))
        same = answers == of_full
        return {
            "validation": f"{scores['validation']:.3f}",
            "test": f"{scores['test']:.3f}",
            "gain_validation": f"{scores['validation'] - full['validation']:.3f}",
            "gain_test": f"{scores['test'] - full['test']:.3f}",
            "low": f"{low:.3f}",
            "high": f"{high:.3f}",
            "layers": f"{self.layers[who, 'test'].mean():.3f}",
            "agreement": f"{(same.all(-1) if same.ndim > 1 else same).mean():.4f}",
            "test_rows": str(len(answers)),
        }

    def interval(self, who: str) -> tuple[float, float]:
        """The 95 % interval of the gain over the full model in points, over test rows drawn for both."""
        own, full = (self._by_row("test", self.logits[each, "test"]) for each in (who, FULL))

        def difference(*by_row: np.ndarray, axis: int = -1) -> np.ndarray:
            first, second = by_row[: len(own)], by_row[len(own) :]
            return 100 * (self.task.headline_of(*first, axis=axis) - self.task.headline_of(*second, axis=axis))

        return bootstrap(difference, *own, *full) or (float(difference(*own, *full)),) * 2

    def careful_points(self, split: str, logits: np.ndarray) -> float:
        """The points of these `logits` (N, C), less one standard error of their change from `FULL`."""
        whole, found = (are_right(self.task, of, self.labels[split]) for of in (self.logits[FULL, split], logits))
        return self.points(split, logits) - 100 * margin(whole, found)

    def _by_row(self, split: str, logits: np.ndarray) -> tuple[np.ndarray, ...]:
        return self.task.by_row(self.task.decide(logits), self.labels[split])


# ------------------------------------------------------------------------------------- exits of other rules and kinds
def add_patience(compared: Compared, logits: Logits, drop: float) -> str:
    """Enters exits with these `logits` by patience, and returns the one chosen: how many layers in a row must agree.

    `drop` is the points that validation rows may lose.
    """
    runs = {}
    for split, of_exits in logits.items():
        answers = [compared.task.decide(of_exits[:, place]) for place in range(of_exits.shape[1])]
        runs[split] = in_a_row(np.stack(answers, axis=1))
    least = compared.points("validation", compared.logits[FULL, "validation"]) - drop
    patience = 0
    found = -np.inf
    while found < least - 1e-9:  # ends where no exit is reached, which loses nothing
        patience += 1
        places = {split: first_of(of_split >= patience) for split, of_split in runs.items()}
        found = compared.careful_points("validation", compared.left("validation", logits, places["validation"]))
    compared.enter(PATIENCE, logits, places)
    return str(patience)


def in_a_row(answers: np.ndarray) -> np.ndarray:
    """How many exits in a row, up to each, give the same of the `answers` (N, L - 1), or (N, L - 1, C): (N, L - 1)."""
    answers = answers.reshape(*answers.shape[:2], -1)
    same = (answers[:, 1:] == answers[:, :-1]).all(-1)  # (N, L - 2)
    runs = np.ones(answers.shape[:2], dtype=int)
    for place in range(1, answers.shape[1]):
        runs[:, place] = np.where(same[:, place - 1], runs[:, place - 1] + 1, 1)
    return runs


def first_of(leaves: np.ndarray) -> np.ndarray:
    """The first exit by which each row leaves, (N,), of those that let it, (N, L - 1); L - 1 if none does."""
    return np.where(leaves.any(1), leaves.argmax(1), leaves.shape[1])


def add_controls(compared: Compared, config: LstmPoolConfig, states: dict[str, Tensor], drop: float) -> dict[str, str]:
    """Fits exits of each kind of `CONTROLS` to the training rows, enters them, and returns the threshold of each, and
    the patience.

    `config` is that of the full model, and `states` are its layer states (N, L, S) by split.
    """
    own = exits_of_linear(states, compared.labels, config)
    means = {split: so_far(of_split) for split, of_split in states.items()}
    logits = {
        OWN: own,
        MEAN: exits_of_linear(means, compared.labels, config),
        LSTM: exits_of_lstm(states, compared.labels["train"], compared.task),
    }
    found = {kind: add_control(compared, kind, logits[kind], drop) for kind in CONTROLS}
    return found | {PATIENCE: add_patience(compared, own, drop)}


def so_far(states: Tensor) -> Tensor:
    """The mean of each layer's state and those below, (N, L, S) like the states."""
    return states.cumsum(1) / torch.arange(1, states.shape[1] + 1)[:, None]


def add_control(compared: Compared, kind: str, logits: Logits, drop: float) -> str:
    """Enters exits by the rule `point`: calibrated, and under one threshold. Returns that, or nothing if it is off."""
    labels = compared.labels["validation"]
    of_exits = logits["validation"].swapaxes(0, 1)  # (L - 1, N, C)
    temperatures = np.array([fit_temperature(compared.task, of_exit, labels) for of_exit in of_exits])
    calibrated = {split: of_split / temperatures[:, None] for split, of_split in logits.items()}
    sure = {split: confidences_of(of_split, compared.task.problem_type) for split, of_split in calibrated.items()}

    def score(places: np.ndarray) -> float:
        return compared.careful_points("validation", compared.left("validation", calibrated, places))

    least = compared.points("validation", compared.logits[FULL, "validation"]) - drop
    threshold = choose_point(sure["validation"], score, least)
    compared.enter(kind, calibrated, {split: places_of(of_split, threshold) for split, of_split in sure.items()})
    return "" if threshold is None else f"{threshold:.6g}"


def exits_of_linear(states: dict[str, Tensor], labels: dict[str, np.ndarray], config: LstmPoolConfig) -> Logits:
    """What linear heads on the layers (N, L, S) give, fitted as the command's are, to the training rows."""
    exits = LayerExits(config)
    train, validation = (Rows(states[split].numpy(), labels[split]) for split in ("train", "validation"))
    fit_heads(exits, train, validation, config.problem_type, to_both=False)
    found = {split: logits_of_exits(exits, iter([states[split].numpy()])) for split in ("validation", "test")}
    return {split: logits.astype(np.float64) for split, logits in found.items()}


class LstmExits(nn.Module):
    """An LSTM that reads standardised layers from the lowest up, with a linear head for each but the highest."""

    def __init__(self, layers: int, width: int, labels: int):
        super().__init__()
        self.lstm = nn.LSTM(width, UNITS, batch_first=True)
        self.heads = nn.ModuleList([nn.Linear(UNITS, labels) for _ in range(layers - 1)])

    def forward(self, states: Tensor) -> Tensor:
        """The logits (B, L - 1, C) for standardised layer states (B, L, S)."""
        read, _ = self.lstm(states)  # (B, L, UNITS)
        return torch.stack([head(read[:, place]) for place, head in enumerate(self.heads)], dim=1)


def exits_of_lstm(states: dict[str, Tensor], labels: np.ndarray, task: Task) -> Logits:
    """What an LSTM with heads over the layers (N, L, S), standardised, gives. It is trained on the sum of all exits'
    losses."""
    torch.manual_seed(0)
    mean, scale = mean_and_scale(states["train"])
    states = {split: (of_split - mean) / scale for split, of_split in states.items()}
    model = LstmExits(*states["train"].shape[1:], len(task.names))
    loss, targets = summed_loss(task.problem_type), label_tensor(labels)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    steps = EPOCHS * -(-len(targets) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 1e-3, total_steps=steps, pct_start=0.1, anneal_strategy="linear", cycle_momentum=False
    )
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(targets)).split(BATCH):
            by_exit = model(states["train"][rows]).unbind(1)
            mean = sum(loss(logits, targets[rows]) for logits in by_exit) / (len(by_exit) * len(rows))
            optimizer.zero_grad()
            mean.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    with torch.inference_mode():
        return {split: model.eval()(states[split]).double().numpy() for split in ("validation", "test")}
