"""The regimes of the study: what is trained, on what, and how it is tuned."""

from dataclasses import dataclass, field
from itertools import product

from study.data import TextSet
from study.finetuned import FinetunedSet
from study.frozen import FrozenSet
from study.poolings import POOLINGS, Build
from study.records import Setting
from study.variants import VARIANTS, Variant


STOCK = "stock"  # the library's own classifier, compared only where the backbone is trained
SETS = (
    "trec6 cr mrpc cola rte stsb tweet_eval_irony absa_laptops14 absa_restaurants14 semeval2018_ec trec50 banking77"
).split()


@dataclass(frozen=True)
class Regime:
    """All poolings have one grid, and every combination of its rates and epochs is tried."""

    learning_rates: tuple[float, ...]  # of all that is trained, or of the backbone alone
    epochs: tuple[int, ...]
    batch_size: int
    seeds: tuple[int, ...]
    sets: list[str]
    train_rows: int | None  # at most, drawn by class; None: all, from which few shots are drawn
    validation_rows: int
    token_poolings: tuple[str, ...] = ("mean",)
    poolings: list[str] = field(default_factory=lambda: list(POOLINGS))
    trains_backbone: bool = True  # in mixed precision
    head_learning_rates: tuple[float | None, ...] = (None,)  # of what lies above the backbone
    shots: int | None = None  # rows a class

    def open(self, backbone: str, data: TextSet, token_pooling: str) -> FrozenSet | FinetunedSet:
        """What makes the runs on one set."""
        if not self.trains_backbone:
            return FrozenSet(backbone, data, token_pooling, self.batch_size)
        return FinetunedSet(backbone, data, token_pooling, self.batch_size, self.shots)

    @property
    def settings(self) -> list[Setting]:
        return [Setting(*of) for of in product(self.learning_rates, self.epochs, self.head_learning_rates)]

    @property
    def precision(self) -> str:
        return "bf16" if self.trains_backbone else "float32"

    def rows_of(self, data: TextSet) -> int:
        """The training rows of a run."""
        if self.shots is None:
            return len(data.train)
        counts = [data.train.labels.count(label) for label in set(data.train.labels)]
        return sum(min(self.shots, count) for count in counts)


# A mixture of layers needs a higher rate than the training command's default, which is the lower one.
HEAD_RATES = (1e-3, 1e-2)
FEW = {
    "learning_rates": (5e-5, 2e-4),
    "head_learning_rates": HEAD_RATES,
    "batch_size": 8,
    "seeds": (1, 2, 3, 4, 5),
    "sets": "trec6 cr mrpc cola tweet_eval_irony absa_laptops14".split(),
    "train_rows": None,
    "validation_rows": 200,  # who has so few training rows seldom has more
    "poolings": [STOCK, "last", "weighted", "concat", "lstm"],
}
REGIMES = {
    "frozen": Regime(
        # linear poolings need the higher of these rates, LSTMs the lower ones
        learning_rates=(2.5e-4, 1e-3, 4e-3, 1.6e-2, 6.4e-2),
        epochs=(4, 12),
        batch_size=32,
        seeds=(1, 2, 3, 4, 5),
        sets=SETS,
        train_rows=1000,
        validation_rows=1000,
        token_poolings=("mean", "cls"),
        trains_backbone=False,
    ),
    "few_shot_16": Regime(epochs=(12,), shots=16, **FEW),
    "few_shot_64": Regime(epochs=(4,), shots=64, **FEW),
    "full": Regime(
        learning_rates=(5e-5, 1.5e-4),
        head_learning_rates=HEAD_RATES,
        epochs=(3,),
        batch_size=16,
        seeds=(1, 2, 3),
        sets="trec6 cr stsb absa_restaurants14".split(),
        train_rows=2000,
        validation_rows=1000,
        poolings=[STOCK, "last", "concat", "lstm"],
    ),
}


def build_of(pooling: str) -> Build | None:
    """How a pooling is made; None for the stock head."""
    return None if pooling == STOCK else POOLINGS[pooling]


def variant_of(pooling: str) -> Variant:
    """What a frozen run trains."""
    return VARIANTS.get(pooling) or Variant(POOLINGS[pooling])
