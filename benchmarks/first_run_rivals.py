"""What people would do instead of the command, on the same rows and with the same backbone: three rivals.

    python first_run_rivals.py linear --backbone DIR --rows DIR

It reads `train.csv` and `test.csv` in the folder of rows, and writes `predictions.json` beside them. `first_run.py`
calls it. It imports nothing of this project, so it also runs in an environment that holds only SetFit:

- `linear`: logistic or ridge regression on the sentence vectors. Cross-validation chooses its strength.
- `stock`: the library's own class, trained with the defaults of its example `run_classification.py`. Two texts are
  encoded as a pair, and a batch is padded to its longest text.
- `setfit`: SetFit's defaults in batches of 16, for one epoch of at most 500 steps.
"""

import argparse
import csv
import json
import sys
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np


CODE = "1"  # raise it when a rival's settings change: its runs are then made anew
TOKENS = 128  # after which a text is cut
STRENGTHS = (0.1, 1.0, 3.0, 10.0, 30.0, 100.0, 1000.0)  # C of the logistic regression
PENALTIES = tuple(10.0 ** (k / 2) for k in range(-6, 7))  # alpha of the ridge regression
FOLDS = 5
SETFIT_BATCH = 16
SETFIT_STEPS = 500
PACKAGES = ("torch", "transformers", "sentence-transformers", "scikit-learn", "setfit")

Columns = dict[str, list[str]]


def main(argv: list[str] | None = None) -> int:
    """Fits one rival and writes its predictions; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rival", choices=list(RIVALS))
    parser.add_argument("--backbone", required=True, help="folder of a sentence-transformers model")
    parser.add_argument("--rows", required=True, type=Path, help="folder with train.csv and test.csv")
    parser.add_argument("--metric", required=True, choices=["accuracy", "f1_micro", "pearson"])
    args = parser.parse_args(argv)
    warnings.filterwarnings("ignore", module="sklearn")  # of classes that few rows have
    train = read(args.rows / "train.csv")
    test = read(args.rows / "test.csv")
    labels = train.pop("labels" if args.metric == "f1_micro" else "label")
    found = {
        "predictions": RIVALS[args.rival](args.backbone, args.metric, train, labels, test),
        "versions": ", ".join(installed()),
    }
    (args.rows / "predictions.json").write_text(json.dumps(found), encoding="utf-8")
    return 0


def read(path: Path) -> Columns:
    """The columns of a CSV, by name."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: [row[name] for row in rows] for name in rows[0]}


def installed() -> list[str]:
    """The packages that matter, with their versions."""
    found = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return found


class Labels:
    """The labels of the training rows as numbers, and predictions as words."""

    def __init__(self, metric: str, cells: list[str]):
        self.metric = metric
        if metric == "pearson":
            self.names = []
            self.numbers = np.array([float(cell) for cell in cells])  # (N,)
        elif metric == "accuracy":
            self.names = sorted(set(cells))
            self.numbers = np.array([self.names.index(cell) for cell in cells])  # (N,)
        else:
            self.names = sorted({name for cell in cells for name in cell.split()})
            self.numbers = np.array([[float(name in cell.split()) for name in self.names] for cell in cells])  # (N, C)

    def words(self, predicted: np.ndarray) -> list[str]:
        """A number or a name for each row; several names are joined by |.

        `predicted` has a number (N,), the number of a class (N,), or zeros and ones (N, C).
        """
        if self.metric == "pearson":
            return [f"{value:.4f}" for value in predicted]
        if self.metric == "accuracy":
            return [self.names[number] for number in predicted]
        return ["|".join(name for name, is_on in zip(self.names, row, strict=True) if is_on) for row in predicted]


def linear(backbone: str, metric: str, train: Columns, cells: list[str], test: Columns) -> list[str]:
    """Logistic or ridge regression on the backbone's sentence vectors."""
    from sentence_transformers import SentenceTransformer

    encoder = SentenceTransformer(backbone, device="cpu")
    encoder.max_seq_length = TOKENS
    labels = Labels(metric, cells)
    model = tuned(metric, labels.numbers)
    model.fit(features(encoder, train), labels.numbers)
    return labels.words(model.predict(features(encoder, test)))


def features(encoder: Any, columns: Columns) -> np.ndarray:
    """The vectors u of the texts (N, H). Of two texts, encoded apart: [u, v, |u - v|, u * v], (N, 4H)."""
    vectors = [encoder.encode(texts, show_progress_bar=False) for texts in columns.values()]
    if len(vectors) == 1:
        return vectors[0]
    u, v = vectors
    return np.concatenate([u, v, np.abs(u - v), u * v], axis=1)


def tuned(metric: str, labels: np.ndarray) -> Any:
    """The linear model, whose strength cross-validation on the training rows chooses."""
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.model_selection import GridSearchCV, KFold, StratifiedKFold
    from sklearn.multiclass import OneVsRestClassifier

    folds = KFold(FOLDS, shuffle=True, random_state=0)
    if metric == "pearson":
        return GridSearchCV(Ridge(), {"alpha": PENALTIES}, cv=folds)
    classifier = LogisticRegression(max_iter=1000)
    if metric == "f1_micro":
        one_a_label = OneVsRestClassifier(classifier)
        return GridSearchCV(one_a_label, {"estimator__C": STRENGTHS}, scoring="f1_micro", cv=folds)
    if np.bincount(labels).max() >= FOLDS:  # else no class has a row for each fold
        folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    return GridSearchCV(classifier, {"C": STRENGTHS}, cv=folds)


def stock(backbone: str, metric: str, train: Columns, cells: list[str], test: Columns) -> list[str]:
    """The library's sequence classifier. All rows are training rows: nothing is chosen by validation."""
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments, set_seed

    problem_types = {
        "accuracy": "single_label_classification",
        "f1_micro": "multi_label_classification",
        "pearson": "regression",
    }
    labels = Labels(metric, cells)
    args = TrainingArguments("stock", report_to="none", disable_tqdm=True, use_cpu=True)
    set_seed(args.seed)
    tokenizer = AutoTokenizer.from_pretrained(backbone)
    model = AutoModelForSequenceClassification.from_pretrained(
        backbone, num_labels=max(1, len(labels.names)), problem_type=problem_types[metric]
    )

    def rows_of(columns: Columns, targets: np.ndarray | None = None) -> Dataset:
        encoded = dict(tokenizer(*columns.values(), truncation=True, max_length=TOKENS))
        if targets is not None:
            encoded["label"] = targets.tolist()
        return Dataset.from_dict(encoded)

    trainer = Trainer(model, args, train_dataset=rows_of(train, labels.numbers), processing_class=tokenizer)
    trainer.train()
    logits = trainer.predict(rows_of(test)).predictions  # (N, C)
    if metric == "pearson":
        return labels.words(logits[:, 0])
    return labels.words(logits.argmax(-1) if metric == "accuracy" else logits > 0)


def setfit(backbone: str, metric: str, train: Columns, cells: list[str], test: Columns) -> list[str]:
    """SetFit, of one text and one label a row."""
    from datasets import Dataset
    from setfit import SetFitModel, Trainer, TrainingArguments

    labels = Labels(metric, cells)
    model = SetFitModel.from_pretrained(backbone, device="cpu")
    model.model_body.max_seq_length = TOKENS
    steps = min(SETFIT_STEPS, steps_an_epoch(labels.numbers))
    args = TrainingArguments(batch_size=SETFIT_BATCH, num_epochs=1, max_steps=steps, report_to="none")
    rows = Dataset.from_dict({"text": train["text"], "label": labels.numbers.tolist()})
    trainer = Trainer(model, args, train_dataset=rows)
    trainer.train()
    return labels.words(np.asarray(model.predict(test["text"], show_progress_bar=False)))


def steps_an_epoch(labels: np.ndarray) -> int:
    """The batches of SetFit's epoch: all pairs of rows, the rarer kind of pair repeated until both are as many."""
    of_class = np.bincount(labels)
    alike = int((of_class * (of_class + 1) // 2).sum())
    pairs = len(labels) * (len(labels) + 1) // 2
    return -(-2 * max(alike, pairs - alike) // SETFIT_BATCH)


RIVALS = {"linear": linear, "stock": stock, "setfit": setfit}


if __name__ == "__main__":
    sys.exit(main())
