"""Fine-tunes a pretrained transformer with an LSTM over its layers, and writes a folder that is ready for the Hub.

    python train_trainer.py recipes/demo.yaml
    python train_trainer.py recipes/demo.yaml --num_train_epochs 3 --output_dir outputs/short
    python train_trainer.py --backbone distilbert-base-uncased --train_file train.csv --validation_file dev.csv \\
        --test_file test.csv --output_dir outputs/mine
    python train_trainer.py --backbone distilbert-base-uncased --dataset_name nyu-mll/glue \\
        --dataset_config_name mrpc --output_dir outputs/mrpc
    python train_trainer.py --init_from outputs/mine --test_file new.csv --output_dir outputs/new_predictions
    python train_trainer.py recipes/demo.yaml --push_to_hub --hub_model_id your-name/support-mail

A recipe is a YAML or JSON file of the flags below, by their names; flags on the command line override it. The rows are
CSV, JSON, JSON lines or Parquet, or a data set of the Hub, with a column `text` (or `sentence1` and `sentence2`, a
pair) and a column `label`: names or whole numbers are classes, decimal numbers a regression, lists several labels.

Wrong input ends the command with status 2 and one line that says what was expected, what was found and what to do. If
a push failed, the status is 3, and the folder is whole.
"""

import sys
import time
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import transformers
from transformers import DataCollatorWithPadding, EarlyStoppingCallback, set_seed

from lstmpool.training.arguments import DataArguments, ModelArguments, TrainingArguments
from lstmpool.training.backbone import Backbone, quiet_loading
from lstmpool.training.baselines import fit_baselines, top_states
from lstmpool.training.command_line import parse_arguments
from lstmpool.training.data import read_splits
from lstmpool.training.data_report import data_lines, describe_data
from lstmpool.training.errors import InputError
from lstmpool.training.evaluation import Evaluation
from lstmpool.training.folding import fold_into
from lstmpool.training.holdout import hold_out
from lstmpool.training.hub_push import PushError
from lstmpool.training.hub_saves import HubRun
from lstmpool.training.labels import REGRESSION, SINGLE
from lstmpool.training.layer_cache import CACHE, StatesCollator, cached_states
from lstmpool.training.layers import check_layers, learning_rates, prepare_layers
from lstmpool.training.losses import make_loss
from lstmpool.training.metrics import TaskMetrics
from lstmpool.training.model_card import Run, model_card
from lstmpool.training.output import check_output, check_resumed, json_writer, prepare_output, write_output
from lstmpool.training.predictions import by_length, predict_logits
from lstmpool.training.report import (
    Progress,
    describe_best,
    describe_model,
    describe_task,
    loading_lines,
    rows_of,
    text_table,
)
from lstmpool.training.target_scale import TargetScale
from lstmpool.training.trainer import LstmPoolTrainer, check_settings


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    words = sys.argv[1:] if argv is None else argv
    try:
        run(*parse_arguments(words, description=__doc__), command=words)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except PushError as error:
        print("\n".join(f"error: {line}" for line in str(error).splitlines()), file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        print("\nstopped. Continue from the last checkpoint with --resume_from_checkpoint last", file=sys.stderr)
        return 130
    return 0


def run(
    model_args: ModelArguments,
    data_args: DataArguments,
    args: TrainingArguments,
    places: dict[str, str],
    command: list[str],
) -> None:
    """From rows, which are at `places`, to a finished folder. `command` is what was typed, for the model card."""
    started = time.monotonic()
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()  # those of loading and saving; training keeps its own
    set_seed(args.seed)

    # All checks, before any weights are read.
    check_output(args, model_args.init_from)
    check_settings(args)
    hub = HubRun(args) if args.push_to_hub else None
    backbone = Backbone.find(model_args)
    config = backbone.load_config()
    wanted = {"train": args.do_train, "validation": args.do_eval, "test": args.do_predict}
    places = {name: place for name, place in places.items() if wanted[name]}
    finished = config if model_args.init_from else None
    splits, labels = read_splits(data_args, places, model_args.problem_type, finished)
    if args.do_eval and "validation" not in splits:
        share, seed, limit = data_args.validation_size, data_args.shuffle_seed, data_args.max_eval_samples
        train, held = hold_out(splits["train"], labels.problem_type, share, seed, limit)
        others = {name: split for name, split in splits.items() if name != "train"}
        splits = {"train": train, "validation": held, **others}
        print(f"No validation rows: {len(held)} of the training rows, stratified, are held out as such.")
    args.check_task(labels.problem_type)
    metrics = TaskMetrics.of(labels.problem_type, len(labels.names))
    metrics.choose_best(args)
    fields = {**model_args.config_fields(), **labels.config_fields}
    check_layers(model_args, backbone.check_fields(config, fields))
    tokenizer = backbone.load_tokenizer(data_args.max_seq_length)
    callbacks = hub.open() if hub else []
    if args.early_stopping_patience:
        callbacks.append(EarlyStoppingCallback(args.early_stopping_patience))
    print(describe_task(labels), flush=True)

    # The model, before an earlier run is replaced: it may be refused, too.
    with quiet_loading():
        model, fresh = backbone.load_model(fields)
    prepare_layers(model, model_args)
    learning_rates(model, args)  # refuses layers that cannot be told apart now, and not after the caches are filled
    if args.resume_from_checkpoint:
        check_resumed(args.resume_from_checkpoint, model.config)
    prepare_output(args)

    # Rows as tokens, and what they are like.
    regression = labels.problem_type == REGRESSION
    scale = TargetScale(splits["train"].labels) if regression and args.do_train and args.standardize_targets else None
    rows, cut = {}, {}
    for name, split in splits.items():
        if scale is not None and split.labels is not None:
            split = replace(split, labels=scale.divide(split.labels))
        rows[name], cut[name] = split.tokenize(
            tokenizer, data_args.pad_to_max_length, data_args.preprocessing_num_workers
        )
    numbers = describe_data(splits, rows, cut, labels)
    print("\n".join(["Data:", *data_lines(numbers, tokenizer.model_max_length)]), flush=True)

    # The trainer.
    if scale is not None:
        scale.switch_on(model.classifier, fresh)
        metrics = replace(metrics, scale=scale.scale)
    print(describe_model(model, backbone.title), flush=True)
    collator = DataCollatorWithPadding(tokenizer)  # each batch is padded to its longest text
    if model_args.freeze_backbone and args.layer_cache != "no":
        model.to(args.device)
        of = {"batch_size": args.per_device_eval_batch_size, "dtype": args.layer_cache}
        rows = {name: cached_states(model, rows[name], collator, title=name, **of) for name in rows}
        if args.train_sampling_strategy != "sequential":
            args.train_sampling_strategy = "random"  # the others look at the tokens, of which there are none now
        collator = StatesCollator(len(model.config.layers), model.config.hidden_size)
        print(f"Layer states: computed once, and kept in {CACHE}.", flush=True)
    args.remove_unused_columns = False  # every column is the tokenizer's, or the labels; the model knows what it takes
    trainer = LstmPoolTrainer(
        model,
        args,
        data_collator=collator,
        train_dataset=rows.get("train"),
        eval_dataset=by_length(rows["validation"])[0] if args.do_eval else None,
        processing_class=tokenizer,
        compute_metrics=metrics,
        compute_loss_func=make_loss(
            args, labels.problem_type, splits["train"].labels if args.do_train else [], len(labels.names)
        ),
        callbacks=callbacks,
    )
    Progress.install(trainer, metrics.titles)
    labelled = [name for name, split in splits.items() if split.labels is not None]
    states = {name: top_states(trainer, rows[name]) for name in labelled} if args.baselines else {}

    # Training; the best epoch is loaded at its end.
    if args.do_train:
        try:
            trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
        finally:
            if hub:
                hub.wait()

    # What the model gives, once what validation teaches is in its weights. Training rows are of interest only beside
    # the baselines.
    logits = {name: predict_logits(trainer, rows[name]) for name in rows if name != "train" or args.baselines}
    targets = {name: np.array(splits[name].labels) for name in logits if splits[name].labels is not None}
    logits, learned = fold_into(model.classifier, args, labels.problem_type, logits, targets, metrics, scale)

    # How good it is, beside what it should be compared with.
    evaluation = Evaluation(metrics, labels, logits, targets, learned)
    baselines = fit_baselines(states, targets, labels.problem_type, metrics) if states else {}
    model_name = f"{model.config.layer_pooling} over {len(model.config.layers)} layers"
    table = rows_of(
        {model_name: evaluation.results, **baselines}, metrics.titles, metrics.headline, evaluation.intervals
    )
    best = describe_best(trainer, metrics.titles)

    # The folder for the Hub.
    changed = args.do_train or scale is not None or any(key in learned for key in ("temperature", "folded_thresholds"))
    pair, many = next(iter(splits.values())).pairs is not None, labels.problem_type != SINGLE and len(labels.names) > 1
    name = Path(args.output_dir).resolve().name
    plots = evaluation.plots(trainer.state.log_history)
    record = {
        "problem_type": labels.problem_type,
        "data": numbers,
        **evaluation.record(),
        "baselines": baselines,
    }
    files = {"metrics.json": json_writer(record), **plots, **evaluation.predictions(splits.get("test"), args)}
    if changed:
        card = model_card(
            Run(
                name=name,
                config=model.config,
                args=args,
                backbone=backbone,
                data=numbers,
                max_seq_length=tokenizer.model_max_length,
                best=best,
                table=table,
                learned=learned,
                plots=list(plots),
                snippet=loading_lines(name, pair, many, revision="main"),
                command=command,
            )
        )
        files["README.md"] = lambda path: path.write_text(card, encoding="utf-8")
    write_output(Path(args.output_dir), model if changed else None, tokenizer, files)

    print(f"\n{text_table(table)}\n\n{best}")
    print(f"Done in {time.monotonic() - started:.0f} s. {args.output_dir} holds", end=" ")
    if changed:
        print("the model; these lines load it:\n")
        print("\n".join(loading_lines(args.output_dir, pair, many)))
    else:
        print(", ".join(sorted(files)) + ".")
    if hub:
        hub.finish()


if __name__ == "__main__":
    sys.exit(main())
