"""Linear models beside a run, which read the backbone as it is before training.

The run is compared with one, which is fitted afterwards. Others, of `--find_label_issues`, judge the labels.
"""

import time

import numpy as np

from lstmpool.fields_lstmpool import APART
from lstmpool.training.data.holdout import units_of
from lstmpool.training.evaluation.baselines import (
    Baselines,
    Vectors,
    fit_baselines,
    split_vectors,
    vectors_of,
    why_no_linear_model,
)
from lstmpool.training.evaluation.label_issues import LINEAR, find_issues, linear_issues
from lstmpool.training.evaluation.learned_head import Arrays
from lstmpool.training.runs.stages import read_states
from lstmpool.training.runs.state import State


def frozen_vectors(state: State) -> dict[str, Vectors]:
    """What the linear baseline reads, in the first process; empty if there is none. Others wait meanwhile."""
    job, args = state.job, state.args
    if not args.baselines or not args.do_train:
        return {}
    if reason := why_no_linear_model(job.task, vars(args) | vars(job.model_args)):
        print(f"No linear baseline: {reason}.", flush=True)
        return {}
    # each fold's test rows would be read for numbers that nobody sees: folds are judged together
    names = [name for name in state.labelled if name != "test" or not job.data_args.cv_folds]
    found = {name: _vectors(state, name) for name in names} if state.is_first_process else {}
    args.distributed_state.wait_for_everyone()
    return found


def _vectors(state: State, name: str) -> Vectors:
    """The vectors of a split: those that stage 1 has read, where they are the same, or new ones."""
    job, args = state.job, state.args
    same = not job.reads_pairs or state.model.config.pair_encoding == APART
    if name == "train" and state.top_states is not None and same:
        return vectors_of(state.top_states, np.arange(len(state.top_states)), are_pairs=job.reads_pairs)
    return split_vectors(
        state.trainer.model,
        job.splits[name],
        state.inputs[name],
        state.collator,
        job.tokenizer,
        batch_size=args.per_device_eval_batch_size,
        seed=args.seed,
        title=name,
        quiet=args.disable_tqdm,
    )


def baselines_of(state: State, targets: Arrays) -> Baselines:
    """The baselines, in the process that tells of them."""
    if not state.args.baselines or not state.args.do_train or not state.is_first_process:
        return Baselines()
    labels = {"train": np.asarray(state.job.splits["train"].labels)} | targets
    return fit_baselines(state.frozen_vectors, labels, state.evaluation, state.args.seed, state.job.held_out)


def judge_labels(state: State) -> None:
    """Finds the training rows whose label looks wrong, in the first process, and says what it took.

    It is called before any training, also by a run that goes on, and changes nothing that training reads. Stage 1
    reads the same layer states again.

    Raises:
        InputError: as `read_states` does.
    """
    began = time.monotonic()
    train, task = state.job.splits["train"], state.job.task
    states, rows = read_states(state)
    if not state.is_first_process:
        return
    labels = np.asarray(train.labels)[rows]
    logits, fold_of = linear_issues(task, states, labels, np.asarray(units_of(train))[rows], state.args.seed)
    seconds = time.monotonic() - began
    state.label_issues = find_issues(task, logits, labels, fold_of, rows, len(train), LINEAR, seconds)
    judged = f"{state.label_issues.judged:,} of {len(train):,} training rows"
    print(f"Labels: {judged} judged by {LINEAR}, in {seconds:.0f} s.", flush=True)
