"""One run, from rows as tokens to a finished folder, in five steps: read, load, train, measure, write."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import (
    DataCollatorWithPadding,
    EarlyStoppingCallback,
    PreTrainedModel,
    TrainerCallback,
    set_seed,
)
from transformers.data.data_collator import DataCollator

from lstmpool.training.data.order import by_length
from lstmpool.training.data.summary import data_lines, describe_data
from lstmpool.training.evaluation.baselines import Scores, fit_baselines, top_states
from lstmpool.training.evaluation.learned_head import Arrays, Learned, calibrate, find_thresholds, fold_scale
from lstmpool.training.evaluation.results import Evaluation
from lstmpool.training.flags.training_arguments import TrainingArguments
from lstmpool.training.loop.checkpoints import find_best
from lstmpool.training.loop.interruption import stop_at_step
from lstmpool.training.loop.logits import predict_logits
from lstmpool.training.loop.measuring import TrainerMetrics
from lstmpool.training.loop.progress import Progress
from lstmpool.training.loop.trainer import LstmPoolTrainer
from lstmpool.training.loop.trainer_arguments import trainer_arguments
from lstmpool.training.model.backbone import quiet_loading
from lstmpool.training.model.layer_cache import CACHE, StatesCollator, cached_states
from lstmpool.training.model.target_scale import TargetScale
from lstmpool.training.model.trainable_parts import learning_rates, prepare_layers, trained_head
from lstmpool.training.output.artifacts import Writers, plots_of, predictions_of
from lstmpool.training.output.folder import check_resumed, json_writer, prepare_output, write_output
from lstmpool.training.output.model_card import Run, model_card
from lstmpool.training.output.run_record import RunRecord
from lstmpool.training.output.start import Resume, Start
from lstmpool.training.output.terminal import describe_best, describe_model, loading_lines, rows_of, text_table
from lstmpool.training.runs.job import Job, Tokens
from lstmpool.training.tasks.losses import MeanLoss
from lstmpool.training.tasks.task import LossSettings


def no_files(evaluation: Evaluation) -> Writers:
    """No further files."""
    return {}


def do_not_publish() -> None:
    """Nothing."""


@dataclass(frozen=True)
class Extras:
    """What a run does besides, for the command that asked for it."""

    callbacks: list[TrainerCallback] = field(default_factory=list)
    files: Callable[[Evaluation], Writers] = no_files  # further ones for the finished folder
    publish: Callable[[], None] = do_not_publish  # what comes before the run counts as finished


@dataclass
class State:
    """What a run has so far. Each step fills the part under its name, and later steps read it."""

    job: Job
    args: TrainingArguments
    start: Start
    extras: Extras
    tokens: dict[str, Tokens]
    began: float = field(default_factory=time.monotonic)

    # read
    texts: dict[str, Dataset] = field(init=False)  # the rows of each split, as tokens
    summary: dict[str, dict[str, Any]] = field(init=False)

    # load
    model: PreTrainedModel = field(init=False)
    record: RunRecord = field(init=False)
    scale: TargetScale | None = field(init=False)  # of regression targets
    rows: dict[str, Dataset] = field(init=False)  # what Trainer reads: tokens or layer states, and labels
    collator: DataCollator = field(init=False)

    # train
    trainer: LstmPoolTrainer = field(init=False)
    frozen_states: Arrays = field(init=False)  # (N, H) before training, for the baselines

    # measure
    evaluation: Evaluation = field(init=False)
    baselines: dict[str, Scores] = field(init=False)

    @property
    def folder(self) -> Path:
        return Path(self.args.output_dir)

    @property
    def resumed(self) -> Path | None:
        """The checkpoint that training goes on from."""
        return self.start.checkpoint if isinstance(self.start, Resume) else None

    @property
    def caches_states(self) -> bool:
        return self.job.model_args.freeze_backbone and self.args.layer_cache != "no"

    @property
    def is_first_process(self) -> bool:
        return self.args.process_index == 0

    @property
    def labelled(self) -> list[str]:
        """The splits that have labels."""
        return [name for name, split in self.job.splits.items() if split.labels is not None]


def fit(
    job: Job,
    args: TrainingArguments,
    start: Start,
    tokens: dict[str, Tokens],
    extras: Extras | None = None,
) -> Evaluation:
    """Trains and evaluates, and writes what came of it to `args.output_dir`.

    Args:
        start: what becomes of what that folder holds.
        tokens: the rows of `job`, encoded.

    Raises:
        InputError: if the model cannot be loaded or resumed, or has diverged.
        Interrupted: after a signal, at the end of the step, once a checkpoint is saved.
    """
    state = State(job, args, start, extras or Extras(), tokens)
    read(state)
    load(state)
    train(state)
    measure(state)
    write(state)
    return state.evaluation


# ---------------------------------------------------------------------------------------------------------------- read
def read(state: State) -> None:
    """Looks at the rows, and says what they are like."""
    job = state.job
    state.texts = {name: of.choose(of.rows) for name, of in state.tokens.items()}
    cut = {name: of.cut for name, of in state.tokens.items()}
    state.summary = describe_data(job.splits, state.texts, cut, job.task)
    lines = ["Data:", *data_lines(state.summary, job.tokenizer.model_max_length)]
    print("\n".join(lines), flush=True)


# ---------------------------------------------------------------------------------------------------------------- load
def load(state: State) -> None:
    """Loads the model, makes the output folder ready for it, and the rows ready for Trainer."""
    job, args = state.job, state.args
    set_seed(args.seed)
    state.model, is_fresh = _load_model(job, args)  # before an earlier run is replaced: it may be refused, too
    resumed_from = state.start.resumed_from if isinstance(state.start, Resume) else ""
    state.record = RunRecord.of(job.settings, job.splits, resumed_from)
    _prepare_folder(state)
    state.scale = None
    if job.task.has_numbers and args.do_train and args.standardize_targets:
        state.scale = TargetScale(job.splits["train"].labels)
        state.scale.switch_on(trained_head(state.model), is_fresh)
    print(describe_model(state.model, job.backbone.title), flush=True)
    state.rows = {name: state.tokens[name].with_labels(_targets(state, name)) for name in state.tokens}
    state.collator = DataCollatorWithPadding(job.tokenizer)  # each batch is padded to its longest text
    if state.caches_states:
        _read_layer_states(state)
    state.rows = {name: state.tokens[name].choose(rows) for name, rows in state.rows.items()}


def _load_model(job: Job, args: TrainingArguments) -> tuple[PreTrainedModel, bool]:
    """The model, with adapters where these are wanted, and whether its layers above the backbone are new."""
    with quiet_loading():
        model, is_fresh = job.backbone.load_model(job.fields)
    prepare_layers(model, job.model_args)
    if job.model_args.peft:
        from lstmpool.training.model.adapters import add_adapters  # here: peft is not always installed

        model = add_adapters(model, job.model_args, job.backbone)
    learning_rates(model, args)  # refuses layers that cannot be told apart now, and not after the caches are filled
    return model, is_fresh


def _prepare_folder(state: State) -> None:
    """Makes the output folder ready.

    Raises:
        InputError: if the checkpoint to resume from is of another model, or of other rows, or the best one is damaged.
    """
    args, model = state.args, state.model
    if state.resumed:
        adapter = model.active_peft_config.to_dict() if state.job.model_args.peft else None
        check_resumed(str(state.resumed), model.config, adapter)
        state.record.check_rows(state.folder)
        if args.load_best_model_at_end:
            find_best(state.resumed, state.folder)
    args.distributed_state.wait_for_everyone()  # until each has looked at what the folder holds
    if state.is_first_process:
        prepare_output(state.folder, state.start, state.record, with_code=args.do_train)
    args.distributed_state.wait_for_everyone()


def _targets(state: State, split: str) -> list[Any] | None:
    """The labels of a split as they are trained on."""
    labels = state.job.splits[split].labels
    if labels is None or state.scale is None:
        return labels
    return state.scale.divide(labels)


def _read_layer_states(state: State) -> None:
    """Puts the layer states of the frozen backbone in the place of tokens."""
    args, model = state.args, state.model
    model.to(args.device)
    with args.main_process_first():  # the others find the files
        for name, rows in state.rows.items():
            state.rows[name] = cached_states(
                model,
                rows,
                state.collator,
                batch_size=args.per_device_eval_batch_size,
                dtype=args.layer_cache,
                title=name,
            )
    state.collator = StatesCollator(len(model.config.layers), model.config.hidden_size)
    print(f"Layer states: computed once, and kept in {CACHE}.", flush=True)


# --------------------------------------------------------------------------------------------------------------- train
def train(state: State) -> None:
    """Trains, if that is wanted, and ends with the best epoch's weights."""
    state.trainer = _trainer(state)
    state.frozen_states = {}
    if state.args.baselines:
        state.frozen_states = {name: top_states(state.trainer, state.rows[name]) for name in state.labelled}
    if state.args.do_train:
        with stop_at_step(state.trainer):
            state.trainer.train_from(str(state.resumed) if state.resumed else None)
    if state.job.model_args.merge:  # now: what is measured is what is saved
        merged = state.trainer.model.merge_and_unload()
        state.trainer.model = state.trainer.model_wrapped = merged
    state.model = state.trainer.model


def _trainer(state: State) -> LstmPoolTrainer:
    job, args = state.job, state.args
    callbacks = list(state.extras.callbacks)
    if args.early_stopping_patience:
        callbacks.append(EarlyStoppingCallback(args.early_stopping_patience))
    settings = LossSettings(args.class_weights, args.label_smoothing_factor, args.regression_loss)
    loss = job.task.loss(settings, job.splits["train"].labels if args.do_train else [])
    trainer = LstmPoolTrainer(
        state.model,
        trainer_arguments(args, job.best, reads_layer_states=state.caches_states),
        data_collator=state.collator,
        train_dataset=state.rows.get("train"),
        eval_dataset=by_length(state.rows["validation"])[0] if args.do_eval else None,
        processing_class=job.tokenizer,
        compute_metrics=TrainerMetrics(job.task, state.scale.scale if state.scale else None),
        compute_loss_func=MeanLoss(loss) if loss else None,
        callbacks=callbacks,
    )
    Progress.install(trainer, job.task.titles)
    return trainer


# ------------------------------------------------------------------------------------------------------------- measure
def measure(state: State) -> None:
    """Puts what validation teaches into the weights, and measures what the model gives from then on."""
    job, args, trainer = state.job, state.args, state.trainer
    splits = [name for name in state.rows if name != "train" or args.baselines]  # train only beside the baselines
    logits = {name: predict_logits(trainer, state.rows[name]) for name in splits}
    targets = {name: np.array(job.splits[name].labels) for name in splits if name in state.labelled}
    logits, learned = _learn_from_validation(state, logits, targets)
    state.evaluation = Evaluation.of(job.task, logits, targets, learned)
    state.baselines = fit_baselines(state.frozen_states, targets, job.task) if args.baselines else {}


def _learn_from_validation(state: State, logits: Arrays, targets: Arrays) -> Learned:
    head, task, args = trained_head(state.model), state.job.task, state.args
    learned: dict[str, Any] = {}
    if state.scale is not None:
        logits, found = fold_scale(head, state.scale, logits)
        learned |= found
    if args.calibrate:
        logits, found = calibrate(head, task, logits, targets)
        learned |= found
    if task.has_thresholds and "validation" in targets:
        logits, found = find_thresholds(head, task, logits, targets, fold=args.tune_thresholds)
        learned |= found
    return logits, learned


# --------------------------------------------------------------------------------------------------------------- write
def write(state: State) -> None:
    """Fills the output folder and says what is in it; the run then counts as finished."""
    if state.is_first_process:
        _write_files(state)
    state.args.distributed_state.wait_for_everyone()
    if state.is_first_process:
        state.extras.publish()
        state.record.finish(state.folder)
        state.trainer.kept.finish(state.trainer.state)


def _write_files(state: State) -> None:
    job, args, evaluation = state.job, state.args, state.evaluation
    has_new_weights = args.do_train or not {"temperature", "folded_thresholds"}.isdisjoint(evaluation.learned)
    table = _table(state)
    best = describe_best(state.trainer, job.task.titles)
    plots = plots_of(evaluation, state.trainer.state.log_history)
    files = {
        "metrics.json": json_writer(_metrics(state)),
        **plots,
        **predictions_of(evaluation, job.splits.get("test"), args.predictions_format, args.predictions_with_text),
        **state.extras.files(evaluation),
    }
    if has_new_weights:
        card = _card(state, table, best, list(plots))
        files["README.md"] = lambda path: path.write_text(card, encoding="utf-8")
    write_output(state.folder, state.model if has_new_weights else None, job.tokenizer, files)
    print(f"\n{text_table(table)}\n\n{best}")
    print(f"Done in {time.monotonic() - state.began:.0f} s. {args.output_dir} holds", end=" ")
    if has_new_weights:
        lines = _loading_lines(state, args.output_dir)
        print("the model; these lines load it:\n\n" + "\n".join(lines))
    else:
        print(", ".join(sorted(files)) + ".")


def _table(state: State) -> list[list[str]]:
    """The table of results, with a head."""
    task, config = state.job.task, state.model.config
    results = {f"{config.layer_pooling} over {len(config.layers)} layers": state.evaluation.results}
    results |= state.baselines
    return rows_of(results, task.titles, task.headline, state.evaluation.intervals)


def _metrics(state: State) -> dict[str, Any]:
    """For metrics.json."""
    return {
        "problem_type": state.job.task.problem_type,
        "data": state.summary,
        **state.evaluation.record(),
        "baselines": state.baselines,
    }


def _card(state: State, table: list[list[str]], best: str, plots: list[str]) -> str:
    job, name = state.job, state.folder.resolve().name
    run = Run(
        name=name,
        config=state.model.config,
        args=state.args,
        backbone=job.backbone,
        lora=job.model_args if job.model_args.peft else None,
        data=state.summary,
        max_seq_length=job.tokenizer.model_max_length,
        best=best,
        table=table,
        learned=state.evaluation.learned,
        plots=plots,
        snippet=_loading_lines(state, name, revision="main"),
        command=job.command,
        data_args=job.data_args,
        results=state.evaluation.results,
    )
    return model_card(run)


def _loading_lines(state: State, model: str, revision: str | None = None) -> list[str]:
    job = state.job
    return loading_lines(model, job.reads_pairs, job.task.gives_several_answers, revision, job.is_adapter)
