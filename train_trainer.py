"""Fine-tunes a pretrained transformer with an LSTM over its layers, and writes a folder that is ready for the Hub.

    python train_trainer.py recipes/demo.yaml
    python train_trainer.py recipes/demo.yaml --num_train_epochs 3 --output_dir outputs/short
    python train_trainer.py --backbone distilbert-base-uncased --train_file train.csv --validation_file dev.csv \\
        --test_file test.csv --output_dir outputs/mine

A recipe is a YAML or JSON file of the flags below, by their names; flags on the command line override it. The rows are
CSV, JSON, JSON lines or Parquet with a column `text` (or `sentence1` and `sentence2`, a pair) and a column `label`:
names or whole numbers are classes, decimal numbers a regression, lists several labels a text.

Wrong input ends the command with status 2 and one line that says what was expected, what was found and what to do.
"""

import sys
import time
from pathlib import Path

import datasets
import numpy as np
import torch
import transformers
from transformers import DataCollatorWithPadding, set_seed

from lstmpool.modeling_lstmpool import LstmPoolForSequenceClassification
from lstmpool.training.arguments import DataArguments, ModelArguments, TrainingArguments
from lstmpool.training.backbone import Backbone, quiet_loading
from lstmpool.training.baselines import fit_baselines, top_states
from lstmpool.training.command_line import parse_arguments
from lstmpool.training.data import read_splits
from lstmpool.training.errors import InputError
from lstmpool.training.labels import SINGLE
from lstmpool.training.metrics import TaskMetrics
from lstmpool.training.model_card import Run, model_card
from lstmpool.training.output import check_output, prepare_output, write_output
from lstmpool.training.report import (
    Progress,
    describe_best,
    describe_model,
    describe_task,
    loading_lines,
    rows_of,
    text_table,
)
from lstmpool.training.trainer import LstmPoolTrainer


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    words = sys.argv[1:] if argv is None else argv
    try:
        run(*parse_arguments(words, description=__doc__), command=words)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped. Continue from the last checkpoint with --resume_from_checkpoint last", file=sys.stderr)
        return 130
    return 0


def run(model_args: ModelArguments, data_args: DataArguments, args: TrainingArguments, command: list[str]) -> None:
    """From rows to a finished folder. `command` is what was typed, for the model card."""
    started = time.monotonic()
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()  # those of loading and saving; training keeps its own
    set_seed(args.seed)

    # All checks, before any weights are read.
    check_output(args)
    backbone = Backbone.find(model_args)
    wanted = {"train": True, "validation": args.do_eval, "test": args.do_predict}
    splits, labels = read_splits(data_args, [name for name in wanted if wanted[name]], model_args.problem_type)
    metrics = TaskMetrics.of(labels.problem_type, len(labels.names))
    metrics.choose_best(args)
    fields = {**model_args.config_fields(), **labels.config_fields}
    backbone.check_config(fields)
    tokenizer = backbone.load_tokenizer(data_args.max_seq_length)
    prepare_output(args)
    print(describe_task(splits, labels), flush=True)

    # Model and trainer.
    with quiet_loading():
        # float32 whatever it was saved in: weights held in half precision lose most small updates
        model = LstmPoolForSequenceClassification.from_backbone(
            backbone.path, dtype=torch.float32, **backbone.loading, **fields
        )
    print(describe_model(model, backbone.title), flush=True)
    args.remove_unused_columns = False  # every column is the tokenizer's, or the labels; the model knows what it takes
    rows = {name: split.tokenize(tokenizer, data_args.pad_to_max_length) for name, split in splits.items()}
    trainer = LstmPoolTrainer(
        model,
        args,
        data_collator=DataCollatorWithPadding(tokenizer),  # each batch is padded to its longest text
        train_dataset=rows["train"],
        eval_dataset=rows.get("validation"),
        processing_class=tokenizer,
        compute_metrics=metrics,
    )
    Progress.install(trainer, metrics.titles)
    states = {name: top_states(trainer, data) for name, data in rows.items()} if args.baselines else {}

    # Training; the best epoch is loaded at its end.
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)

    # Evaluation, beside what it should be compared with.
    model_name = f"{model.config.layer_pooling} over {len(model.config.layers)} layers"
    results = {name: trainer.measure(data) for name, data in rows.items()}
    targets = {name: np.array(split.labels) for name, split in splits.items()}
    baselines = fit_baselines(states, targets, labels.problem_type, metrics) if states else {}
    table = rows_of({model_name: results, **baselines}, metrics.titles)
    best = describe_best(trainer, metrics.titles)

    # The folder for the Hub.
    pair, many = splits["train"].pairs is not None, labels.problem_type != SINGLE and len(labels.names) > 1
    name = Path(args.output_dir).resolve().name
    card = model_card(
        Run(
            name=name,
            config=model.config,
            args=args,
            backbone=backbone,
            splits=splits,
            max_seq_length=tokenizer.model_max_length,
            best=best,
            table=table,
            snippet=loading_lines(name, pair, many),
            command=command,
        )
    )
    record = {
        "problem_type": labels.problem_type,
        "rows": {name: len(split) for name, split in splits.items()},
        "results": results,
        "baselines": baselines,
    }
    write_output(Path(args.output_dir), model, tokenizer, card, record)

    print(f"\n{text_table(table)}\n\n{best}")
    print(f"Done in {time.monotonic() - started:.0f} s. {args.output_dir} holds the model; these lines load it:\n")
    print("\n".join(loading_lines(args.output_dir, pair, many)))


if __name__ == "__main__":
    sys.exit(main())
