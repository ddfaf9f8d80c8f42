"""The model card, README.md of the output folder: what the model is for, how it was made, how good it is, how to load.

It is made to be published, so it names no folder of the machine it was made on, and claims nothing that is not known:
no licence, no language.
"""

import platform
import shlex
from collections import Counter
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import PurePath

import yaml

from lstmpool.configuration_lstmpool import LstmPoolConfig
from lstmpool.training.arguments import TrainingArguments
from lstmpool.training.backbone import Backbone
from lstmpool.training.data import Split
from lstmpool.training.labels import REGRESSION, SINGLE
from lstmpool.training.report import markdown_table


TASKS = {
    "single_label_classification": "one label a text",
    "multi_label_classification": "any number of labels a text",
    "regression": "regression",
}


@dataclass(frozen=True)
class Run:
    """What the card tells of a finished run."""

    name: str
    config: LstmPoolConfig
    args: TrainingArguments
    backbone: Backbone
    splits: dict[str, Split]
    max_seq_length: int
    best: str
    table: list[list[str]]
    snippet: list[str]
    command: list[str]


def model_card(run: Run) -> str:
    """The whole card, with the header that the Hub reads."""
    header = {
        "library_name": "transformers",
        "pipeline_tag": "text-classification",
        "tags": ["lstmpool", "text-regression" if run.config.problem_type == REGRESSION else "text-classification"],
    }
    if run.backbone.on_hub:
        header["base_model"] = run.backbone.title
    return f"""---
{yaml.safe_dump(header, sort_keys=False).strip()}
---

# {run.name}

{_what(run)}

## Load it

The model brings its own code, two files that import torch and transformers alone; `trust_remote_code=True` runs them.
Put the folder, or the name under which it is on the Hub, in place of `{run.name}`.

```python
{chr(10).join(run.snippet)}
```

## Results

{markdown_table(run.table)}

{_how_measured(run)}

## Data

{_data(run)}

## Training

{_settings(run)}

```
{_command(run.command)}
```

{_versions()}
"""


def _what(run: Run) -> str:
    config = run.config
    pooling = config.layer_pooling
    if pooling in ("lstm", "gru"):
        direction = "bidirectional" if config.lstm_bidirectional else "one-way"
        pooling = f"a {direction} {pooling.upper()} ({config.lstm_hidden_size} units a direction)"
    names = ", ".join(f"`{name}`" for name in config.id2label.values())
    outputs = "Target" if config.problem_type == REGRESSION else "Label"
    layers = ", ".join(map(str, config.layers))
    return (
        f"Text classification ({TASKS[config.problem_type]}): `{run.backbone.title}` "
        f"({config.backbone_config.model_type}), fine-tuned with lstmpool. The {config.token_pooling} vectors of its "
        f"layers {layers} are read by {pooling}.\n\n{outputs}s ({config.num_labels}): {names}"
    )


def _how_measured(run: Run) -> str:
    if "validation" not in run.splits:
        return run.best
    return f"{run.best} Validation rows chose the epoch; this run saw test rows, if any, once, at its end."


def _data(run: Run) -> str:
    rows = [["split", "source", "rows", "labels"]]
    for name, split in run.splits.items():
        balance = "numbers"
        if run.config.problem_type == SINGLE:
            counts = Counter(split.labels)
            shown = [f"{run.config.id2label[i]} {counts[i]}" for i in range(run.config.num_labels)]
            balance = ", ".join(shown[:20]) + (" ..." if len(shown) > 20 else "")
        elif run.config.problem_type != REGRESSION:
            sums = [int(sum(column)) for column in zip(*split.labels, strict=True)]
            shown = [f"{run.config.id2label[i]} {n}" for i, n in enumerate(sums)]
            balance = ", ".join(shown[:20]) + (" ..." if len(shown) > 20 else "")
        rows.append([name, f"`{split.source}`", str(len(split)), balance])
    return markdown_table(rows)


def _settings(run: Run) -> str:
    args = run.args
    settings = {
        "epochs": f"{args.num_train_epochs:g}" if args.max_steps < 0 else f"{args.max_steps} steps",
        "learning rate, backbone": f"{args.learning_rate:g}",
        "learning rate, new layers": f"{args.head_learning_rate or args.learning_rate:g}",
        "schedule": f"{args.lr_scheduler_type.value}, warm-up {args.warmup_steps:g}",
        "batch": str(args.train_batch_size * args.gradient_accumulation_steps * args.world_size),
        "weight decay": f"{args.weight_decay:g}",
        "optimizer": args.optim.value,
        "gradient norm, at most": f"{args.max_grad_norm:g}",
        "pooler dropout": f"{run.config.pooler_dropout:g}",
        "tokens, at most": str(run.max_seq_length),
        "precision": "bf16" if args.bf16 else "fp16" if args.fp16 else "float32",
        "seed": str(args.seed),
    }
    return markdown_table([["setting", "value"], *map(list, settings.items())])


def _command(words: list[str]) -> str:
    """The command as it was typed, with folders of the machine left out."""
    return shlex.join(["python", "train_trainer.py", *map(_public, words)])


def _public(word: str) -> str:
    flag, equals, value = word.partition("=") if word.startswith("-") else ("", "", word)
    path = PurePath(value)
    return flag + equals + (path.name if path.is_absolute() or ".." in path.parts or "~" in path.parts else value)


def _versions() -> str:
    packages = ("lstmpool", "torch", "transformers", "datasets", "scikit-learn")
    return f"Python {platform.python_version()}, " + ", ".join(f"{name} {version(name)}" for name in packages)
