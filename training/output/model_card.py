"""The model card, README.md of the output folder: what the model is for, how it was made, how good it is, how to load.

It is made to be published, so it names no folder of the machine it was made on, and claims nothing that is not known:
no licence, no language.
"""

import platform
import shlex
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import PurePath
from typing import Any

import yaml

from lstmpool.configuration_lstmpool import LstmPoolConfig
from lstmpool.training.arguments import ModelArguments, TrainingArguments
from lstmpool.training.data.summary import balance_words
from lstmpool.training.model.backbone import Backbone
from lstmpool.training.output.terminal import markdown_table
from lstmpool.training.tasks.labels import REGRESSION


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
    data: dict[str, dict[str, Any]]  # see `describe_data`
    max_seq_length: int
    best: str
    table: list[list[str]]
    learned: dict[str, Any]  # see `fold_into`
    plots: list[str]
    snippet: list[str]
    command: list[str]
    lora: ModelArguments | None = None  # what the adapters were made by, if there are any


def model_card(run: Run) -> str:
    """The whole card, with the header that the Hub reads."""
    header = {
        "library_name": "peft" if _is_adapter(run) else "transformers",
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

{_loading(run)}

```python
{chr(10).join(run.snippet)}
```

## Results

{markdown_table(run.table)}

{_how_measured(run)}
{_learned(run)}{_plots(run)}
## Data

{_data(run)}

## Training

{_settings(run) if run.args.do_train else "None in this run: the model of `--init_from` was taken as it is."}

```
{_command(run.command)}
```

{_versions(run)}
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


def _is_adapter(run: Run) -> bool:
    return run.lora is not None and not run.lora.merge


def _loading(run: Run) -> str:
    if _is_adapter(run):
        return (
            "This is an adapter: what was trained in the backbone, the pooler and the classifier. It needs `lstmpool` "
            f"and `peft`, and loads its backbone, `{run.backbone.title}`, from where that was; if it has moved, say "
            "where to: `load_adapter(name, backbone=...)`."
        )
    return (
        "The model brings its own code, which imports torch and transformers only; `trust_remote_code=True` "
        "runs it.\n`model` is its name on the Hub and `revision` the commit whose code you have read; for a folder, "
        "leave `revision` out."
    )


def _how_measured(run: Run) -> str:
    of_rows = "In brackets, a 95% bootstrap interval over rows; it does not tell of the chance in training."
    if run.args.hp_search:
        of_rows = f"Validation rows also chose the rates and the like, by --hp_search {run.args.hp_search}. {of_rows}"
    if "validation" not in run.data or not (run.args.do_train and run.args.load_best_model_at_end):
        return f"{run.best} {of_rows}"
    return f"{run.best} Validation rows chose the epoch; this run saw test rows, if any, once, at its end. {of_rows}"


def _learned(run: Run) -> str:
    """What was fitted on validation and lies in the weights, and what it did to rows that it was not fitted on."""
    lines, split = [], "test" if "test" in run.data and run.data["test"]["labels"] else "validation"
    if "temperature" in run.learned:
        effect = run.learned["calibration"][split]
        rows = [[name, f"{effect['before'][name]:.4f}", f"{effect['after'][name]:.4f}"] for name in effect["before"]]
        lines += [
            f"The classifier was divided by a temperature of {run.learned['temperature']:.3f}, fitted on validation. "
            f"On {split}:",
            markdown_table([["", "before", "after"], *rows]),
        ]
    if "folded_thresholds" in run.learned:
        effect = run.learned["thresholds"][split]
        rows = [
            [name, f"{effect['at_half'][name]:.3f}", f"{effect['at_thresholds'][name]:.3f}"]
            for name in effect["at_half"]
        ]
        lines += [
            "The classifier's bias was moved so that a score of 0.5 is the threshold that gave each label's best F1 "
            f"on validation; scores are no longer plain probabilities. On {split}:",
            markdown_table([["", "before", "after"], *rows]),
        ]
    return "".join(f"\n{line}\n" for line in lines)


def _plots(run: Run) -> str:
    return "".join(f"\n![{name.removesuffix('.png').replace('_', ' ')}]({name})\n" for name in run.plots)


def _data(run: Run) -> str:
    rows = [["split", "source", "rows", "tokens, median", "cut", "also in train", "labels"]]
    for name, of in run.data.items():
        also = str(of["also_in_train"]) if "also_in_train" in of else ""
        numbers = [str(of["rows"]), f"{of['tokens']['median']:g}", f"{of['truncated']:.1%}", also]
        rows.append([name, f"`{of['source']}`", *numbers, balance_words(of["labels"])])
    return markdown_table(rows)


def _settings(run: Run) -> str:
    args = run.args
    head_rate = args.learning_rate if args.head_learning_rate is None else args.head_learning_rate
    settings = {
        "epochs": f"{args.num_train_epochs:g}" if args.max_steps < 0 else f"{args.max_steps} steps",
        f"learning rate, {'backbone' if run.lora is None else 'adapters'}": f"{args.learning_rate:g}",
        "learning rate, new layers": f"{head_rate:g}",
        **_lora(run.lora),
        **(
            {"rate of a layer, times that above": f"{args.layerwise_lr_decay:g}"}
            if args.layerwise_lr_decay < 1
            else {}
        ),
        "schedule": f"{args.lr_scheduler_type.value}, warm-up {args.warmup_steps:g}",
        "batch": str(args.train_batch_size * args.gradient_accumulation_steps * args.world_size),
        "weight decay": f"{args.weight_decay:g}",
        "optimizer": args.optim.value,
        "gradient norm, at most": f"{args.max_grad_norm:g}",
        **({"classes weighted": args.class_weights} if args.class_weights else {}),
        **({"label smoothing": f"{args.label_smoothing_factor:g}"} if args.label_smoothing_factor else {}),
        **({"loss": args.regression_loss} if run.config.problem_type == REGRESSION else {}),
        "pooler dropout": f"{run.config.pooler_dropout:g}",
        "tokens, at most": str(run.max_seq_length),
        "precision": "bf16" if args.bf16 else "fp16" if args.fp16 else "float32",
        "seed": str(args.seed),
    }
    return markdown_table([["setting", "value"], *map(list, settings.items())])


def _lora(args: ModelArguments | None) -> dict[str, str]:
    if args is None:
        return {}
    size = f"rank {args.lora_rank}, alpha {args.lora_alpha}, dropout {args.lora_dropout:g}"
    modules = " ".join(args.lora_target_modules or ["the family's default modules"])
    return {"LoRA": f"{size}, in {modules}{', merged' if args.merge else ''}"}


def _command(words: list[str]) -> str:
    """The command as it was typed, with folders of the machine left out."""
    return shlex.join(["python", "train_trainer.py", *map(_public, words)])


def _public(word: str) -> str:
    flag, equals, value = word.partition("=") if word.startswith("-") else ("", "", word)
    path = PurePath(value)
    return flag + equals + (path.name if path.is_absolute() or ".." in path.parts or "~" in path.parts else value)


def _versions(run: Run) -> str:
    packages = ("lstmpool", "torch", "transformers", "datasets", "scikit-learn", *(["peft"] if run.lora else []))
    return f"Python {platform.python_version()}, " + ", ".join(f"{name} {version(name)}" for name in packages)
