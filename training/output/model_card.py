"""The model card, README.md of the output folder: what the model is for, how it was made, how good it is, how to load.

The card may be published, so it names no folder of the machine, and its header claims only what is known. The words
are in the template beside this file; this module fills in the numbers, and the names of the data as `markdown` shows
them.
"""

import math
import platform
import re
import shlex
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path, PurePath
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from lstmpool.configuration_lstmpool import LstmPoolConfig
from lstmpool.fields_lstmpool import DEFAULTS as CONFIG_FIELDS
from lstmpool.training.data.summary import balance_words
from lstmpool.training.errors import counted
from lstmpool.training.evaluation.by_class import ByClass
from lstmpool.training.evaluation.exit_results import ExitResults
from lstmpool.training.evaluation.layer_report import LayerReport
from lstmpool.training.evaluation.results import judged_split
from lstmpool.training.flags.arguments import LIMITS, DataArguments, ModelArguments
from lstmpool.training.flags.training_arguments import TrainingArguments
from lstmpool.training.model.backbone import Backbone
from lstmpool.training.output import markdown
from lstmpool.training.output.exits import depth_rows, saving_words, threshold_words
from lstmpool.training.output.layers import layer_lines, layer_rows, measured
from lstmpool.training.output.terminal import (
    about_classes,
    choice_rows,
    chosen_on,
    class_rows,
    class_title,
    confused_rows,
)
from lstmpool.training.tasks.inference import TASKS
from lstmpool.training.tasks.metrics import HUB_METRICS
from lstmpool.training.tasks.single_label import SingleLabel
from lstmpool.training.tasks.task import Task


FOLDERS = re.compile(r"""(?<=['"])(~|\.\.)?/([^'"/]*/)*""")  # of a path in quotes, such as one in a flag's JSON
EXITS, LAYERS = "exits.png", "layer_report.png"  # which have sections of their own
NAMED = 200  # outputs that the card lists
TEMPLATE = Path(__file__).with_name("model_card.md.jinja")


@dataclass(frozen=True)
class CardContents:
    """What the card says about a finished run."""

    name: str
    config: LstmPoolConfig
    args: TrainingArguments
    backbone: Backbone
    data: dict[str, dict[str, Any]]  # see `describe_data`
    max_seq_length: int
    best: str
    table: list[list[str]]
    learned: dict[str, Any]  # see `learned_head`
    plots: list[str]
    snippet: list[str]
    command: list[str]
    lora: ModelArguments | None = None  # how the adapters were made, if there are any
    data_args: DataArguments | None = None  # where the rows came from; unset: nowhere that others can look up
    results: dict[str, dict[str, float]] = field(default_factory=dict)  # by split and metric
    caveats: list[str] = field(default_factory=list)  # warnings, in Markdown
    about_linear: str = ""  # what there is to say of the linear baseline beyond its numbers
    pooling_choice: dict[str, Any] | None = None  # what was tried for --layer_pooling auto, see `choose_pooling`
    contrastive_steps: int = 0  # in which the backbone first learnt which texts share a label
    by_class: ByClass | None = None  # the numbers of `judged_on` class by class, unless outputs are numbers
    exits: ExitResults | None = None  # of --early_exit
    layers: LayerReport | None = None  # of --layer_report

    @property
    def answered(self) -> dict[str, dict[str, float]]:
        """The metrics of what the saved model answers: with its exits where they are on."""
        return self.exits.answers.results if self.exits is not None and self.exits.is_on else self.results

    @property
    def task(self) -> type[Task]:
        return TASKS[self.config.problem_type]

    @property
    def judged_on(self) -> str | None:
        """The split that is told in detail, see `judged_split`."""
        return judged_split(self.results)

    @property
    def is_adapter(self) -> bool:
        return self.lora is not None and not self.lora.merge


def model_card(run: CardContents) -> str:
    """The whole card, with the header that the Hub reads."""
    card = ModelCard.from_template(
        _header(run),
        template_path=str(TEMPLATE),
        title=markdown.name(run.name),
        task=run.task.title,
        backbone=markdown.code(run.backbone.title),
        family=markdown.name(run.config.backbone_config.model_type),
        pooling=_pooling(run.config),
        token_pooling=run.config.token_pooling,
        linear_skip=run.config.linear_skip,
        layers=", ".join(map(str, run.config.layers)),
        outputs=_outputs(run),
        adapter=run.is_adapter,
        snippet=markdown.code_block("\n".join(run.snippet), "python"),
        results=markdown.table(run.table) if run.results else "",
        best=run.best,
        about_linear=run.about_linear,
        searched=run.args.hp_search,
        chose_epoch="validation" in run.data and run.args.do_train and run.args.load_best_model_at_end,
        judged_on=run.judged_on,
        temperature=_temperature(run.learned),
        calibration=_calibration(run),
        thresholds=_thresholds(run),
        tuned_for=_tuned_for(run),
        by_class=_by_class(run),
        confused=_confused(run),
        plots=[plot for plot in run.plots if plot not in (EXITS, LAYERS)],
        exits=_exits(run),
        layer_report=_layers(run),
        caveats=run.caveats,
        choice=_choice(run),
        data=_data(run),
        trained=run.args.do_train,
        settings=_settings(run),
        command=markdown.code_block(_command(run.command)),
        versions=_versions(run),
    )
    return f"{card}\n"


def _header(run: CardContents) -> ModelCardData:
    """What the Hub reads. Neither a licence nor a language follows from files or from a backbone, so none is named."""
    on_hub = _dataset_on_hub(run)
    results = _hub_results(run) if on_hub else []
    return ModelCardData(
        library_name="peft" if run.is_adapter else "transformers",
        pipeline_tag="text-classification",
        tags=["lstmpool", run.task.hub_tag],
        base_model=run.backbone.title if run.backbone.on_hub else None,
        datasets=[on_hub] if on_hub and "train" in run.data else None,
        model_name=run.name if results else None,
        eval_results=results or None,
    )


def _dataset_on_hub(run: CardContents) -> str | None:
    """The name of the data set, if it is one on the Hub; a folder of that name would have been read instead."""
    name = run.data_args.dataset_name if run.data_args else None
    return name if name and not Path(name).exists() else None


def _hub_results(run: CardContents) -> list[EvalResult]:
    """The results on a split of the data set; on test or, if there is none, on validation.

    The Hub asks which data set and split gave a number. Local files have no name that others can look up, so their
    results are in the card's table alone (the card of the library's `Trainer` leaves them out, too). The same goes for
    rows that are only a part of a split: those held out of training, a fold, and those left by a limit.
    """
    split = run.judged_on
    if split is None:
        return []
    args = run.data_args
    place = getattr(args, f"{split}_split_name") or split
    if getattr(args, LIMITS[split]) is not None or run.data[split]["source"] != f"{args.dataset_name} {place}":
        return []
    results = []
    for metric, value in run.answered[split].items():
        if metric not in HUB_METRICS or not math.isfinite(value):
            continue
        hub_name, metric_args = HUB_METRICS[metric]
        result = EvalResult(
            task_type="text-classification",
            dataset_type=args.dataset_name,
            dataset_name=args.dataset_name,
            dataset_config=args.dataset_config_name,
            dataset_split=place,
            dataset_revision=args.dataset_revision,
            metric_type=hub_name,
            metric_name=metric,
            metric_value=value,
            metric_args=metric_args,
        )
        results.append(result)
    return results


def _pooling(config: LstmPoolConfig) -> str:
    """The subject of the sentence that says who reads the layers."""
    if config.layer_pooling not in ("lstm", "gru"):
        return f"The layer pooling `{config.layer_pooling}`"
    direction = "bidirectional" if config.lstm_bidirectional else "one-way"
    return f"A {direction} {config.layer_pooling.upper()} ({config.lstm_hidden_size} units a direction)"


def _outputs(run: CardContents) -> str:
    labels = list(run.config.id2label.values())
    names = ", ".join(markdown.code(name) for name in labels[:NAMED])
    more = f" and {len(labels) - NAMED} more, which config.json names" if len(labels) > NAMED else ""
    return f"{run.task.output_title}s ({run.config.num_labels}): {names}{more}"


def _choice(run: CardContents) -> dict[str, str]:
    """What chose the layer pooling, and a table of what was tried; nothing if a flag named it."""
    choice = run.pooling_choice
    if not choice:
        return {}
    titles = run.task(list(run.config.id2label.values())).titles
    return {
        "on": choice["on"],
        "rows": chosen_on(choice),
        "table": markdown.table(choice_rows(choice, titles), words=1),
    }


def _temperature(learned: dict[str, Any]) -> str:
    return f"{learned['temperature']:.3f}" if "temperature" in learned else ""


def _calibration(run: CardContents) -> str:
    """How honest the scores were before and after the temperature; empty without one."""
    if "temperature" not in run.learned:
        return ""
    effect = run.learned["calibration"][run.judged_on]
    return _before_and_after(effect["before"], effect["after"], digits=4)


def _thresholds(run: CardContents) -> str:
    """How good the decisions were before and after the bias was moved; empty if it was not."""
    if "folded_thresholds" not in run.learned:
        return ""
    effect = run.learned["thresholds"][run.judged_on]
    return _before_and_after(effect["at_half"], effect["at_thresholds"], digits=3)


def _tuned_for(run: CardContents) -> str:
    """What the threshold was the best for, and which one it was if there is but one."""
    if run.task is not SingleLabel or "folded_thresholds" not in run.learned:
        return "each label's best F1 on validation"
    score = run.learned["thresholds"]["probabilities"][1]
    name = markdown.name(run.config.id2label[1])
    return f"the best macro F1 on validation: before, it was a score of {score:.3f} for {name}"


def _by_class(run: CardContents) -> str:
    """How good the answers are class by class; empty if outputs are numbers."""
    if run.by_class is None:
        return ""
    title = class_title(run.by_class, run.judged_on)
    about = about_classes(run.by_class, run.judged_on, run.results[run.judged_on])
    parts = [f"### {title}", markdown.table(class_rows(run.by_class, markdown.name), words=1), about]
    return "\n\n".join(part for part in parts if part)


def _exits(run: CardContents) -> dict[str, str]:
    """What there is to say of the exits; nothing if there are none."""
    exits = run.exits
    if exits is None:
        return {}
    off = "" if exits.is_on else f"They are off: {exits.why_off}."
    return {
        "layers": ", ".join(map(str, exits.layers[:-1])),
        "said": off or f"{threshold_words(exits)} {saving_words(exits)}",
        "off": off,
        "table": markdown.table(depth_rows(exits, exits.answers.task.titles[exits.answers.task.headline]), words=1),
        "picture": EXITS if EXITS in run.plots else "",
    }


def _layers(run: CardContents) -> dict[str, Any]:
    """What there is to say of the layers; nothing if it was not asked for."""
    report = run.layers
    if report is None:
        return {}
    return {
        "title": report.task.titles[report.task.headline],
        "rows": counted(report.validation_rows, "validation row"),
        "model": measured(report, report.model_score),
        "said": layer_lines(report),
        "table": markdown.table(layer_rows(report), words=1),
        "picture": LAYERS,
    }


def _confused(run: CardContents) -> str:
    """The classes that are confused most often; empty where there are few, or none are."""
    rows = confused_rows(run.by_class, markdown.name) if run.by_class else []
    return markdown.table(rows) if rows else ""


def _before_and_after(before: dict[str, float], after: dict[str, float], digits: int) -> str:
    rows = [["", "before", "after"]]
    for name in before:
        rows.append([name, f"{before[name]:.{digits}f}", f"{after[name]:.{digits}f}"])
    return markdown.table(rows)


def _data(run: CardContents) -> str:
    rows = [["split", "source", "rows", "tokens, median", "cut", "also in train", "labels"]]
    for name, of in run.data.items():
        row = [
            name,
            markdown.code(of["source"]),
            str(of["rows"]),
            f"{of['tokens']['median']:g}",
            f"{of['truncated']:.1%}",
            str(of.get("also_in_train", "")),
            balance_words(of["labels"], markdown.name),
        ]
        rows.append(row)
    return markdown.table(rows)


def _settings(run: CardContents) -> str:
    """What the run was trained with; a setting that was off has no row."""
    args = run.args
    head_rate = args.learning_rate if args.head_learning_rate is None else args.head_learning_rate
    batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    trained = "backbone" if run.lora is None else "adapters"

    rows = [["setting", "value"]]
    if run.contrastive_steps:
        rows.append(["texts compared first", counted(run.contrastive_steps, "step")])
    rows.append(["epochs", f"{args.num_train_epochs:g}" if args.max_steps < 0 else counted(args.max_steps, "step")])
    rows.append([f"learning rate, {trained}", f"{args.learning_rate:g}"])
    rows.append(["learning rate, new layers", f"{head_rate:g}"])
    if run.lora is not None:
        rows.append(["LoRA", _lora(run.lora)])
    if args.layerwise_lr_decay < 1:
        rows.append(["rate of a layer, times that above", f"{args.layerwise_lr_decay:g}"])
    rows.append(["schedule", f"{args.lr_scheduler_type.value}, warm-up {args.warmup_steps:g}"])
    rows.append(["batch", str(batch)])
    rows.append(["weight decay", f"{args.weight_decay:g}"])
    rows.append(["optimizer", args.optim.value])
    rows.append(["gradient norm, at most", f"{args.max_grad_norm:g}"])
    if args.class_weights:
        rows.append(["classes weighted", args.class_weights])
    if args.label_smoothing_factor:
        rows.append(["label smoothing", f"{args.label_smoothing_factor:g}"])
    if run.task.has_numbers:
        rows.append(["loss", args.regression_loss])
    rows.append(["tokens, at most", str(run.max_seq_length)])
    rows.append(["precision", _precision(args)])
    rows.append(["seed", str(args.seed)])
    for name in CONFIG_FIELDS:
        rows.append([f"`{name}`", str(getattr(run.config, name))])
    return markdown.table(rows)


def _lora(args: ModelArguments) -> str:
    modules = " ".join(map(markdown.name, args.lora_target_modules or ["the family's default modules"]))
    merged = ", merged" if args.merge else ""
    return f"rank {args.lora_rank}, alpha {args.lora_alpha}, dropout {args.lora_dropout:g}, in {modules}{merged}"


def _precision(args: TrainingArguments) -> str:
    if args.bf16:
        return "bf16"
    return "fp16" if args.fp16 else "float32"


def _command(words: list[str]) -> str:
    """The command as it was typed, without the folders of the machine."""
    return shlex.join(["python", "train_trainer.py", *map(_public, words)])


def _public(word: str) -> str:
    """The word, with a path outside the working directory cut down to its name."""
    flag, equals, value = word.partition("=") if word.startswith("-") else ("", "", word)
    path = PurePath(value)
    private = path.is_absolute() or ".." in path.parts or "~" in path.parts
    return flag + equals + (path.name if private else FOLDERS.sub("", value))


def _versions(run: CardContents) -> str:
    packages = ["lstmpool", "torch", "transformers", "datasets", "scikit-learn"]
    if run.lora:
        packages.append("peft")
    named = ", ".join(f"{name} {version(name)}" for name in packages)
    return f"Python {platform.python_version()}, {named}"
