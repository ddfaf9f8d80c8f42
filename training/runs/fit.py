"""One run: from a model with new layers to a finished folder, by way of the Trainer, and what it is compared with."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import (
    DataCollatorWithPadding,
    EarlyStoppingCallback,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    set_seed,
)
from transformers.data.data_collator import DataCollator

from lstmpool.training.arguments import TrainingArguments
from lstmpool.training.data.summary import data_lines, describe_data
from lstmpool.training.evaluation.baselines import fit_baselines, top_states
from lstmpool.training.evaluation.learned_head import fold_into
from lstmpool.training.evaluation.predictions import by_length, predict_logits
from lstmpool.training.evaluation.results import Evaluation
from lstmpool.training.loop.checkpoints import find_best
from lstmpool.training.loop.interruption import stop_at_step
from lstmpool.training.loop.trainer import LstmPoolTrainer
from lstmpool.training.model.backbone import quiet_loading
from lstmpool.training.model.layer_cache import CACHE, StatesCollator, cached_states
from lstmpool.training.model.target_scale import TargetScale
from lstmpool.training.model.trainable_parts import learning_rates, prepare_layers, trained_head
from lstmpool.training.output.folder import Writer, check_resumed, json_writer, prepare_output, write_output
from lstmpool.training.output.model_card import Run, model_card
from lstmpool.training.output.run_record import RunRecord
from lstmpool.training.output.terminal import (
    Progress,
    describe_best,
    describe_model,
    loading_lines,
    rows_of,
    text_table,
)
from lstmpool.training.runs.job import Job
from lstmpool.training.tasks.labels import REGRESSION, SINGLE
from lstmpool.training.tasks.losses import make_loss
from lstmpool.training.tasks.metrics import TaskMetrics


def fit(
    job: Job,
    args: TrainingArguments,
    callbacks: list[TrainerCallback] | None = None,
    also: Callable[[Evaluation], dict[str, Writer]] = lambda evaluation: {},
    publish: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Trains, evaluates, and writes what came of it to `args.output_dir`, `also` what this gives: writers of more
    files, by their names. Only once `publish` is over, in the first process, does the run count as finished.

    Raises:
        InputError: if the model cannot be loaded or resumed, or has diverged.
        Interrupted: after a signal, at the end of the step, once a checkpoint is saved.
    """
    started, labels, splits = time.monotonic(), job.labels, job.splits
    set_seed(args.seed)

    model, fresh = _load(job, args)  # before an earlier run is replaced: it may be refused, too
    record = _begin(job, args, model)

    # Rows as tokens, and what they are like.
    tokens = job.encode()
    rows = {name: of.choose(of.rows) for name, of in tokens.items()}
    numbers = describe_data(splits, rows, {name: of.cut for name, of in tokens.items()}, labels)
    print("\n".join(["Data:", *data_lines(numbers, job.tokenizer.model_max_length)]), flush=True)
    scale, metrics = None, job.metrics
    if labels.problem_type == REGRESSION and args.do_train and args.standardize_targets:
        scale = TargetScale(splits["train"].labels)
        scale.switch_on(trained_head(model), fresh)
        metrics = replace(metrics, scale=scale.scale)
    print(describe_model(model, job.backbone.title), flush=True)
    rows, collator = _rows(job, args, model, scale)

    trainer = _trainer(job, args, model, rows, collator, metrics, callbacks or [])
    labelled = [name for name, split in splits.items() if split.labels is not None]
    states = {name: top_states(trainer, rows[name]) for name in labelled} if args.baselines else {}

    # Training; the best epoch is loaded at its end.
    if args.do_train:
        with stop_at_step(trainer):
            trainer.train_from(args.resume_from_checkpoint)
    if job.model_args.merge:  # now: what is measured is what is saved
        model = trainer.model = trainer.model_wrapped = trainer.model.merge_and_unload()

    # What the model gives, once what validation teaches is in its weights. Training rows are of interest only beside
    # the baselines.
    logits = {name: predict_logits(trainer, rows[name]) for name in rows if name != "train" or args.baselines}
    targets = {name: np.array(splits[name].labels) for name in logits if splits[name].labels is not None}
    logits, learned = fold_into(trained_head(model), args, labels.problem_type, logits, targets, metrics, scale)

    # How good it is, beside what it should be compared with.
    evaluation = Evaluation(metrics, labels, logits, targets, learned)
    baselines = fit_baselines(states, targets, labels.problem_type, metrics) if states else {}
    if args.process_index == 0:
        changed = args.do_train or any(key in learned for key in ("temperature", "folded_thresholds"))
        written = _write(job, args, trainer, evaluation, baselines, numbers, changed, also(evaluation))
        print(f"Done in {time.monotonic() - started:.0f} s. {args.output_dir} holds", end=" ")
        if changed:
            print("the model; these lines load it:\n")
            print("\n".join(_loading_lines(job, args.output_dir)))
        else:
            print(", ".join(written) + ".")
    args.distributed_state.wait_for_everyone()
    if args.process_index == 0:
        publish()
        record.finish(Path(args.output_dir))
        trainer.remove_last_checkpoint()
    return evaluation


def _load(job: Job, args: TrainingArguments) -> tuple[PreTrainedModel, bool]:
    """The model, with adapters where these are wanted, and whether its layers above the backbone are new.

    Raises:
        InputError: if it cannot be loaded, or does not fit the flags.
    """
    with quiet_loading():
        model, fresh = job.backbone.load_model(job.fields)
    prepare_layers(model, job.model_args)
    if job.model_args.peft:
        from lstmpool.training.model.adapters import add_adapters  # here: peft is not always installed

        model = add_adapters(model, job.model_args, job.backbone)
    learning_rates(model, args)  # refuses layers that cannot be told apart now, and not after the caches are filled
    return model, fresh


def _begin(job: Job, args: TrainingArguments, model: PreTrainedModel) -> RunRecord:
    """Makes the output folder ready for the run, whose record is returned.

    Raises:
        InputError: if the checkpoint to resume from is of another model, or of other rows, or the best one is damaged.
    """
    record = RunRecord.of(job.settings, job.splits, args.resumed_from)
    if args.resume_from_checkpoint:
        adapter = model.active_peft_config.to_dict() if job.model_args.peft else None
        check_resumed(args.resume_from_checkpoint, model.config, adapter)
        record.check_rows(Path(args.output_dir))
        if args.load_best_model_at_end:
            find_best(Path(args.resume_from_checkpoint), Path(args.output_dir))
    args.distributed_state.wait_for_everyone()  # until each has looked at what the folder holds
    if args.process_index == 0:
        prepare_output(args, record)
    args.distributed_state.wait_for_everyone()
    return record


def _rows(
    job: Job, args: TrainingArguments, model: PreTrainedModel, scale: TargetScale | None
) -> tuple[dict[str, Dataset], DataCollator]:
    """What the Trainer reads of each split: tokens and labels or, with a frozen backbone, its layer states and labels;
    and what makes batches of them."""
    rows: dict[str, Dataset] = {}
    for name, of in job.encode().items():
        targets = job.splits[name].labels
        rows[name] = of.with_labels(scale.divide(targets) if scale is not None and targets is not None else targets)
    collator = DataCollatorWithPadding(job.tokenizer)  # each batch is padded to its longest text
    if job.model_args.freeze_backbone and args.layer_cache != "no":
        model.to(args.device)
        of = {"batch_size": args.per_device_eval_batch_size, "dtype": args.layer_cache}
        with args.main_process_first():  # the others find the files
            rows = {name: cached_states(model, rows[name], collator, title=name, **of) for name in rows}
        if args.train_sampling_strategy != "sequential":
            args.train_sampling_strategy = "random"  # the others look at the tokens, of which there are none now
        collator = StatesCollator(len(model.config.layers), model.config.hidden_size)
        print(f"Layer states: computed once, and kept in {CACHE}.", flush=True)
    return {name: job.tokens[name].choose(rows[name]) for name in rows}, collator


def _trainer(
    job: Job,
    args: TrainingArguments,
    model: PreTrainedModel,
    rows: dict[str, Dataset],
    collator: DataCollator,
    metrics: TaskMetrics,
    callbacks: list[TrainerCallback],
) -> LstmPoolTrainer:
    args.remove_unused_columns = False  # every column is the tokenizer's, or the labels; the model knows what it takes
    patience, problem_type = args.early_stopping_patience, job.labels.problem_type
    targets = job.splits["train"].labels if args.do_train else []
    trainer = LstmPoolTrainer(
        model,
        args,
        data_collator=collator,
        train_dataset=rows.get("train"),
        eval_dataset=by_length(rows["validation"])[0] if args.do_eval else None,
        processing_class=job.tokenizer,
        compute_metrics=metrics,
        compute_loss_func=make_loss(args, problem_type, targets, len(job.labels.names)),
        callbacks=[*callbacks, *([EarlyStoppingCallback(patience)] if patience else [])],
    )
    Progress.install(trainer, metrics.titles)
    return trainer


def _write(
    job: Job,
    args: TrainingArguments,
    trainer: Trainer,
    evaluation: Evaluation,
    baselines: dict[str, Any],
    numbers: dict[str, Any],
    changed: bool,
    others: dict[str, Writer],
) -> list[str]:
    """Fills the folder, with the model if it has `changed` and `others`, and prints the table of results. Returns the
    names of the files beside the model."""
    model, metrics, labels = trainer.model, evaluation.metrics, job.labels
    model_name = f"{model.config.layer_pooling} over {len(model.config.layers)} layers"
    results = {model_name: evaluation.results, **baselines}
    table = rows_of(results, metrics.titles, metrics.headline, evaluation.intervals)
    best = describe_best(trainer, metrics.titles)
    plots = evaluation.plots(trainer.state.log_history)
    numbers_of_run = {"problem_type": labels.problem_type, "data": numbers, **evaluation.record()}
    files = {"metrics.json": json_writer({**numbers_of_run, "baselines": baselines}), **plots}
    files |= evaluation.predictions(job.splits.get("test"), args) | others
    if changed:
        name = Path(args.output_dir).resolve().name
        card = model_card(
            Run(
                name=name,
                config=model.config,
                args=args,
                backbone=job.backbone,
                lora=job.model_args if job.model_args.peft else None,
                data=numbers,
                data_args=job.data_args,
                results=evaluation.results,
                max_seq_length=job.tokenizer.model_max_length,
                best=best,
                table=table,
                learned=evaluation.learned,
                plots=list(plots),
                snippet=_loading_lines(job, name, revision="main"),
                command=job.command,
            )
        )
        files["README.md"] = lambda path: path.write_text(card, encoding="utf-8")
    write_output(Path(args.output_dir), model if changed else None, job.tokenizer, files)
    print(f"\n{text_table(table)}\n\n{best}")
    return sorted(files)


def _loading_lines(job: Job, model: str, revision: str | None = None) -> list[str]:
    pair = next(iter(job.splits.values())).pairs is not None
    many = job.labels.problem_type != SINGLE and len(job.labels.names) > 1
    adapter = job.model_args.peft is not None and not job.model_args.merge
    return loading_lines(model, pair, many, revision, adapter)
