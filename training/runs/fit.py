"""One run, from tokens to a finished folder. Five steps hand on one `State`: read, load, train, measure, write."""

import time
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
from transformers import DataCollatorWithPadding, PreTrainedModel, set_seed

from lstmpool.configuration_lstmpool import LstmPoolConfig
from lstmpool.training.data.order import Tokens, by_length
from lstmpool.training.data.summary import data_lines, describe_data
from lstmpool.training.evaluation.learned_head import (
    Arrays,
    HeadThresholds,
    Learned,
    calibrate,
    find_thresholds,
    fold_scale,
)
from lstmpool.training.evaluation.results import Evaluation
from lstmpool.training.flags.training_arguments import TrainingArguments
from lstmpool.training.loop.checkpoints import find_best
from lstmpool.training.loop.divergence import check_weights
from lstmpool.training.loop.interruption import stop_at_step
from lstmpool.training.loop.measuring import TrainerMetrics, predict_logits
from lstmpool.training.loop.progress import Progress
from lstmpool.training.loop.trainer import EarlyStoppingCallback, LstmPoolTrainer
from lstmpool.training.loop.trainer_arguments import changed, trainer_arguments, within_limits
from lstmpool.training.model.backbone import quiet_loading
from lstmpool.training.model.layer_cache import CACHE, StatesCollator, cached_states
from lstmpool.training.model.linear_start import ROWS
from lstmpool.training.model.starts import set_prior
from lstmpool.training.model.target_scale import TargetScale
from lstmpool.training.model.token_limits import TokenLimits
from lstmpool.training.model.trainable_parts import (
    learning_rates,
    prepare_layers,
    switch_off_dropout,
    trained_head,
    trained_skip,
)
from lstmpool.training.output.folder import check_resumed, prepare_output, tidy
from lstmpool.training.output.lock import locked
from lstmpool.training.output.run_record import RunRecord
from lstmpool.training.output.start import Resume, Start
from lstmpool.training.output.terminal import describe_best, describe_length, describe_model
from lstmpool.training.runs.baseline import baselines_of, frozen_vectors, judge_labels
from lstmpool.training.runs.contrast import compare_texts, contrastive_steps, steps_after
from lstmpool.training.runs.exits import check_backbone, drop_exits, fit_exits
from lstmpool.training.runs.finish import write_files
from lstmpool.training.runs.job import Job
from lstmpool.training.runs.layer_report import report_layers
from lstmpool.training.runs.pooling_choice import NotesChoice, choose_pooling
from lstmpool.training.runs.stages import standardize_layers, start_head
from lstmpool.training.runs.state import Extras, State
from lstmpool.training.tasks.losses import MeanLoss
from lstmpool.training.tasks.task import LossSettings


# fields of a new model that are chosen for its backbone
CHOSEN = ("token_pooling", "linear_skip", "pair_encoding", "pair_template", "standardize_layers")


def fit(
    job: Job,
    args: TrainingArguments,
    start: Start,
    tokens: dict[str, Tokens],
    extras: Extras | None = None,
) -> Evaluation:
    """Trains and evaluates, and writes the result to `args.output_dir`.

    Args:
        job: the rows, the task and the model.
        args: the parsed arguments, which stay as they are.
        start: how the run begins in its output folder. The folder is locked until the run ends.
        tokens: the tokens of each split of `job`.
        extras: what the run does besides.

    Raises:
        InputError: if the model cannot be loaded or resumed, or has diverged, or another run has the folder.
        Interrupted: after a signal, at the end of the step, once a checkpoint is saved.
    """
    works_there = changed(args, output_dir=str(start.place(args.output_dir)))
    state = State(job, works_there, start, extras or Extras(), tokens)
    with locked(state.final) if state.is_first_process else nullcontext():
        read(state)
        load(state)
        train(state)
        measure(state)
        write(state)
    return state.evaluation


# ---------------------------------------------------------------------------------------------------------------- read
def read(state: State) -> None:
    """Looks at the rows and their tokens, says what they are like, and settles how long the run is."""
    job = state.job
    datasets = {name: tokens.choose(tokens.dataset) for name, tokens in state.tokens.items()}
    cut = {name: tokens.cut for name, tokens in state.tokens.items()}
    state.summary = describe_data(job.splits, datasets, cut, job.task)
    lines = ["Data:", *data_lines(state.summary, job.tokenizer.model_max_length)]
    print("\n".join(lines), flush=True)
    if state.args.do_train:
        tokens = state.summary["train"]["tokens"]["median"]
        state.contrastive_steps = contrastive_steps(state, tokens)
        limits = state.args.limits
        if state.contrastive_steps:
            limits = limits._replace(least_steps=steps_after(limits.least_steps, len(job.splits["train"])))
        state.args = within_limits(changed(state.args, limits=limits), len(job.splits["train"]), tokens)


# ---------------------------------------------------------------------------------------------------------------- load
def load(state: State) -> None:
    """Loads the model, and prepares the output folder and what Trainer reads."""
    if state.job.model_args.chooses_pooling:
        choose_pooling(state)
    job, args = state.job, state.args
    set_seed(args.seed)
    state.model, state.is_fresh = _load_model(state)  # before an earlier run is replaced: the model may be refused
    resumed_from = state.start.resumed_from if isinstance(state.start, Resume) else ""
    state.record = RunRecord.of(job.settings, job.splits, resumed_from)
    _prepare_folder(state)
    state.scale = None
    if job.task.has_numbers and args.do_train and args.standardize_targets:
        state.scale = TargetScale(job.splits["train"].labels)
        state.scale.switch_on(trained_head(state.model), state.is_fresh, trained_skip(state.model))
    if state.is_fresh and args.do_train and not state.resumed and not job.model_args.original_defaults:
        set_prior(trained_head(state.model), state.targets("train"), job.task, args.class_weights == "balanced")
    print(describe_model(state.model, job.backbone.title), flush=True)
    state.inputs = {name: tokens.with_labels(state.targets(name)) for name, tokens in state.tokens.items()}
    state.collator = DataCollatorWithPadding(job.tokenizer)  # each batch is padded to its longest text
    if state.caches_states:
        _read_layer_states(state)
    state.inputs = {name: state.tokens[name].choose(dataset) for name, dataset in state.inputs.items()}


def _load_model(state: State) -> tuple[PreTrainedModel, bool]:
    """The model, with adapters if they are wanted, and whether its classifier is new."""
    job = state.job
    with quiet_loading():
        model, is_fresh = job.backbone.load_model(_fields(state))
    drop_exits(model, state.args, wanted=job.model_args.early_exit)
    if job.model_args.early_exit:
        check_backbone(model)
    job.check_tokens(state.tokens, TokenLimits.of(model))
    prepare_layers(model, job.model_args)
    if is_fresh and state.has_two_stages and len(job.splits["train"]) <= ROWS:
        # the linear model is fitted without dropout, in which features that hardly vary between texts would drown
        switch_off_dropout(model.base_model.backbone)
    if job.model_args.peft:
        from lstmpool.training.model.adapters import add_adapters  # peft may not be installed

        model = add_adapters(model, job.model_args, job.backbone)
    learning_rates(model, state.args)  # called for its errors: they should come before the caches are filled
    return model, is_fresh


def _fields(state: State) -> dict[str, Any]:
    """The fields of the model. A run that goes on keeps what was chosen when it began, unless a flag names another.

    An earlier release may have chosen otherwise.
    """
    job = state.job
    if not state.resumed or job.model_args.init_from:
        return job.fields
    try:
        begun = LstmPoolConfig.from_pretrained(state.resumed)
    except (OSError, ValueError):  # `check_resumed` will say so
        return job.fields
    kept = {name: getattr(begun, name) for name in CHOSEN if not getattr(job.model_args, name, None)}
    for name, value in kept.items():
        chosen_now = job.fields.get(name)  # None for pairs where there are none
        if name != "pair_template" and chosen_now not in (None, value):
            print(f"{name} {value}, with which this run began.", flush=True)
    return job.fields | kept


def _prepare_folder(state: State) -> None:
    """Checks the checkpoint to resume from, and prepares the output folder.

    Raises:
        InputError: if the checkpoint is of another model or of other rows, or the best checkpoint is damaged.
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


def _read_layer_states(state: State) -> None:
    """Has Trainer read the layer states of the frozen backbone in place of tokens."""
    args, model = state.args, state.model
    model.to(args.device)
    computed: dict[str, bool] = {}
    with args.main_process_first():  # the others find the files
        for name, tokens in state.inputs.items():
            state.inputs[name], computed[name] = cached_states(
                model,
                tokens,
                state.collator,
                batch_size=args.per_device_eval_batch_size,
                dtype=args.layer_cache,
                title=name,
                quiet=args.disable_tqdm,
            )
    state.collator = StatesCollator(len(model.config.layers), model.config.state_size)
    print(_origin(computed), flush=True)


def _origin(computed: dict[str, bool]) -> str:
    """Says whether the layer states of each split were `computed`, or there from an earlier run."""
    new = ", ".join(name for name, is_new in computed.items() if is_new)
    if all(computed.values()):
        return f"Layer states: computed once, and kept in {CACHE}."
    if not new:
        return f"Layer states: read from disk, in {CACHE}."
    return f"Layer states: read from disk, in {CACHE}; those of {new} were computed, and are kept there."


# --------------------------------------------------------------------------------------------------------------- train
def train(state: State) -> None:
    """Trains, if that is wanted, and ends with the best epoch's weights."""
    state.trainer = _trainer(state)
    _before_training(state)
    if state.frozen_vectors is None:
        state.frozen_vectors = frozen_vectors(state)
    if state.args.do_train:
        print(describe_length(state.args, len(state.job.splits["train"])), flush=True)
        with stop_at_step(state.trainer):
            state.trainer.train_from(str(state.resumed) if state.resumed else None)
    if state.job.model_args.merge:  # before measuring, so that the model that is measured is the one that is saved
        merged = state.trainer.model.merge_and_unload()
        state.trainer.model = merged
        state.trainer.model_wrapped = merged
    state.model = state.trainer.model


def _before_training(state: State) -> None:
    """What comes before everything is trained. The baseline reads the backbone as it was before."""
    if state.args.find_label_issues and state.args.do_train:
        judge_labels(state)  # before texts are compared: a backbone that has seen the labels would believe them
    if state.begins_with_stage_1 and state.contrastive_steps:
        state.frozen_vectors = frozen_vectors(state)
        compare_texts(state)
    if state.standardizes_layers:
        standardize_layers(state)
    if state.begins_with_stage_1:
        start_head(state)


def _trainer(state: State) -> LstmPoolTrainer:
    """The Trainer, with the loss and the metrics of the task."""
    job, args = state.job, state.args
    callbacks = list(state.extras.callbacks)
    if state.pooling_choice and not state.resumed:
        callbacks.append(NotesChoice(state.pooling_choice))
    if args.early_stopping_patience:
        callbacks.append(EarlyStoppingCallback(args.early_stopping_patience))
    settings = LossSettings(args.class_weights, args.label_smoothing_factor, args.regression_loss)
    loss = job.task.loss(settings, job.splits["train"].labels if args.do_train else [])
    trainer = LstmPoolTrainer(
        state.model,
        trainer_arguments(args, job.best, reads_layer_states=state.caches_states),
        data_collator=state.collator,
        train_dataset=state.inputs.get("train"),
        eval_dataset=by_length(state.inputs["validation"])[0] if args.do_eval else None,
        processing_class=job.tokenizer,
        compute_metrics=TrainerMetrics(job.task, state.scale.scale if state.scale else None),
        compute_loss_func=MeanLoss(loss) if loss else None,
        callbacks=callbacks,
    )
    Progress.install(trainer, job.task.titles)
    return trainer


# ------------------------------------------------------------------------------------------------------------- measure
def measure(state: State) -> None:
    """Folds what validation teaches into the weights, and measures what the model then gives."""
    job = state.job
    splits = [name for name in state.inputs if name != "train"]
    logits = {name: predict_logits(state.trainer, state.inputs[name]) for name in splits}
    targets = {name: np.asarray(job.splits[name].labels) for name in splits if name in state.labelled}
    logits, learned = _learn_from_validation(state, logits, targets)
    state.evaluation = Evaluation.of(job.task, logits, targets, learned)
    state.thresholds = _earlier_thresholds(state).after(learned, trains=state.args.do_train)
    state.baselines = baselines_of(state, targets)
    if state.args.layer_report:  # before there are exits: a cache of layer states is then at hand
        state.layer_report = report_layers(state)
    if job.model_args.early_exit:
        _fit_exits(state)


def _earlier_thresholds(state: State) -> HeadThresholds:
    """What the runs before have taken from the logits of the head; none if it is new."""
    outputs = len(state.job.task.names)
    if state.is_fresh:
        return HeadThresholds.none(outputs)
    return HeadThresholds.read(state.job.backbone.metrics(), outputs)


def _fit_exits(state: State) -> None:
    """Fits exits to the model as it is now, if it reads more than one layer."""
    if len(state.model.config.layers) < 2:  # --layer_pooling auto may have chosen one
        print("No exits: the model reads a single layer.", flush=True)
        return
    state.exits = fit_exits(state)


def _learn_from_validation(state: State, logits: Arrays, targets: Arrays) -> Learned:
    """Folds scale, temperature and thresholds, in this order, into the classifier and the skip. See `learned_head`."""
    task, args = state.job.task, state.args
    head, skip = trained_head(state.model), trained_skip(state.model)
    learned: dict[str, Any] = {}
    if state.scale is not None:
        logits, found = fold_scale(head, state.scale, logits, skip)
        learned |= found
    if args.calibrate:
        logits, found = calibrate(head, task, logits, targets, skip)
        learned |= found
    if task.tunes_thresholds and "validation" in targets:
        logits, found = find_thresholds(head, task, logits, targets, fold=args.tune_thresholds)
        learned |= found
    return logits, learned


# --------------------------------------------------------------------------------------------------------------- write
def write(state: State) -> None:
    """Fills the output folder and says what is in it. The run then counts as finished."""
    check_weights(state.model, state.trainer.state.global_step)
    if state.is_first_process:
        write_files(state)
    state.args.distributed_state.wait_for_everyone()
    if state.is_first_process:
        state.extras.publish()
        kept = state.trainer.kept
        kept.folder = state.final
        best = describe_best(state.trainer, state.job.task.titles)
        record = replace(state.record, seconds=round(time.monotonic() - state.began, 1), kept=best)
        record.finish(state.final, kept.left_over(state.trainer.state, state.args.keeps_checkpoints))
        tidy(state.final)
