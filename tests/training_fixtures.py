"""A tiny random BERT with its tokenizer, and tables of rows, for tests of the training command."""

import csv
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertModel, BertTokenizer

from lstmpool.training.errors import LONGEST, InputError
from lstmpool.training.tasks.task import Task


ROOT = Path(__file__).resolve().parents[1]
WORDS = "alpha beta gamma delta one two three four red blue green dog cat bird sun moon".split()
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def save_backbone(folder: Path) -> Path:
    """Saves a BERT of 2 layers, H = 16, and a WordPiece tokenizer over `WORDS`."""
    torch.manual_seed(0)
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *WORDS])}
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    config = BertConfig(vocab_size=len(vocabulary), max_position_embeddings=32, **sizes)
    BertModel(config).save_pretrained(folder)
    BertTokenizer(vocab=vocabulary, model_max_length=32).save_pretrained(folder)
    return folder


def write_csv(path: Path, columns: dict[str, list]) -> Path:
    """Writes the columns, by their names, and returns `path`."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return path


def sentences(n: int) -> list[str]:
    """`n` texts of three words each."""
    return [f"{WORDS[i % 16]} {WORDS[(3 * i + 1) % 16]} {WORDS[(7 * i + 2) % 16]}" for i in range(n)]


def run_python(*words: str, cwd: Path, **env: str) -> subprocess.CompletedProcess:
    """Runs Python in a process of its own, without a network, as a user starts it. `env`: more variables."""
    variables = dict(os.environ)
    variables |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
    variables |= env
    return subprocess.run(
        [sys.executable, *words], cwd=cwd, env=variables, capture_output=True, text=True, timeout=300, check=False
    )


def task_of(kind: type[Task], outputs: int = 3) -> Task:
    """A task with outputs a, b, c ..."""
    return kind([chr(ord("a") + i) for i in range(outputs)])


def count_outcomes(title: str, cases: Iterable[tuple[str, Callable[[], Any]]]) -> Counter:
    """Calls each case, and prints how many were refused, accepted, or ended with a traceback.

    Args:
        title: of the printed line.
        cases: a name and a function without arguments. It returns if the input is accepted, and raises `InputError` if
            it is refused. Any other exception counts as a traceback.

    Returns:
        The numbers of "clear", "accepted" and "traceback", and for each traceback an entry `name: error`.
    """
    outcomes: Counter = Counter()
    tracebacks: Counter = Counter()
    for name, call in cases:
        try:
            call()
            outcomes["accepted"] += 1
        except InputError as error:
            assert "\n" not in str(error), name
            assert len(str(error)) < LONGEST + 100, name
            outcomes["clear"] += 1
        except Exception as error:  # noqa: BLE001 -- whatever else comes is a bug, which is counted and named
            outcomes["traceback"] += 1
            tracebacks[f"{name}: {type(error).__name__}: {str(error)[:200]}"] += 1
    print(f"{title}: {outcomes['clear']} clear, {outcomes['accepted']} accepted, {outcomes['traceback']} tracebacks")
    return outcomes + tracebacks
