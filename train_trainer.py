"""Fine-tunes a pretrained transformer with an LSTM over its layers, and writes a folder that is ready for the Hub.

    python train_trainer.py recipes/demo.yaml
    python train_trainer.py recipes/demo.yaml --num_train_epochs 3 --output_dir outputs/short
    python train_trainer.py --backbone distilbert-base-uncased --train_file train.csv --validation_file dev.csv \\
        --test_file test.csv --output_dir outputs/mine
    python train_trainer.py --backbone distilbert-base-uncased --dataset_name nyu-mll/glue \\
        --dataset_config_name mrpc --output_dir outputs/mrpc
    python train_trainer.py --init_from outputs/mine --test_file new.csv --output_dir outputs/new_predictions
    python train_trainer.py --init_from outputs/mine --early_exit --train_file train.csv --validation_file dev.csv \\
        --output_dir outputs/early
    python train_trainer.py --backbone distilbert-base-uncased --train_file train.csv --cv_folds 5 \\
        --output_dir outputs/folds
    python train_trainer.py recipes/demo.yaml --seeds 5 --output_dir outputs/seeds
    python train_trainer.py recipes/demo.yaml --hp_search 20 --output_dir outputs/searched
    python train_trainer.py recipes/demo.yaml --push_to_hub --hub_model_id your-name/support-mail

A recipe is a YAML or JSON file of the flags below, by name; flags on the command line override it. The rows are CSV,
TSV, JSON, JSON lines or Parquet, or a data set on the Hub. They have a column `text` (or a pair, `sentence1` and
`sentence2`) and a column `label`: names or whole numbers are classes, decimal numbers a regression, and lists several
labels.

By default, stage 1 fits a linear model to all layers of the backbone, or to the top one, as cross-validation finds
better. Stage 2 trains everything from there, for 3 epochs and at least 200 steps, fewer where texts are long. Of fewer
than 500 rows, where each is one text with one label, the backbone first learns which texts share a label.
With validation rows, the better of the start and the best epoch is kept, and the run says which; fewer than 500
training rows are all trained on, and the last step is kept.

A run that was cut off goes on from its last checkpoint when you repeat the command. Ctrl-C and SIGTERM save a
checkpoint at the end of the step; the status is then 130 or 143. `accelerate launch` and `torchrun` start several
processes.

Wrong input ends the command with status 2 and one line that says what was expected, what was found and what to do. If
a push fails, the status is 3, and the folder is complete.
"""

from __future__ import annotations

import contextlib
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lstmpool.training.errors import InputError, as_line
from lstmpool.training.flags.arguments import DataArguments, ModelArguments
from lstmpool.training.flags.help import exit_with_help_if_asked
from lstmpool.training.printing import printing


if TYPE_CHECKING:  # takes seconds to import, and --help does not need it
    from lstmpool.training.flags.training_arguments import TrainingArguments
    from lstmpool.training.hub.saves import HubRun
    from lstmpool.training.output.start import Start
    from lstmpool.training.runs.fit import Extras
    from lstmpool.training.runs.job import Job
    from lstmpool.training.runs.search_space import Space


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit status. Of several processes, only the first prints its progress."""
    words = sys.argv[1:] if argv is None else argv
    with contextlib.ExitStack() as stack:
        stack.enter_context(printing())
        rank = os.environ.get("RANK", "0")
        prefix = "error"
        if rank != "0":
            silence = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
            stack.enter_context(contextlib.redirect_stdout(silence))
            prefix = f"error in process {rank}"
        exit_with_help_if_asked(words, description=__doc__)

        from lstmpool.training.command_line import parse_arguments
        from lstmpool.training.hub.repository import PushError
        from lstmpool.training.loop.interruption import interruptible

        stack.callback(_leave_group)
        stack.enter_context(interruptible())
        try:
            run(*parse_arguments(words, description=__doc__), command=words)
        except InputError as error:
            print(f"{prefix}: {error}", file=sys.stderr)
            return 2
        except PushError as error:
            print("\n".join(f"{prefix}: {line}" for line in str(error).splitlines()), file=sys.stderr)
            return 3
        except KeyboardInterrupt as error:
            print(f"\n{str(error) or 'stopped.'}", file=sys.stderr if rank == "0" else sys.stdout)
            return getattr(error, "status", 130)
    return 0


def run(
    model_args: ModelArguments,
    data_args: DataArguments,
    args: TrainingArguments,
    places: dict[str, str],
    command: list[str],
) -> None:
    """Trains on the rows at `places` and writes the finished folder, or those of all folds or seeds.

    Args:
        model_args: the flags of the model.
        data_args: the flags of the data.
        args: the flags of training.
        places: where the rows of each split are, see `named_splits`.
        command: the words that were typed, for the model card.

    Raises:
        InputError: if the flags, the rows or the output folder do not fit, or another run has the folder.
        PushError: if a push to the Hub failed; the folder is complete.
    """
    import datasets
    import transformers

    from lstmpool.training.output.lock import locked

    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()  # of loading and saving; training keeps its own
    with locked(Path(args.output_dir)) if args.process_index == 0 else contextlib.nullcontext():
        _run_alone(model_args, data_args, args, places, command)


def _run_alone(
    model_args: ModelArguments,
    data_args: DataArguments,
    args: TrainingArguments,
    places: dict[str, str],
    command: list[str],
) -> None:
    """Does what `run` does, where no other run has the output folder."""
    from lstmpool.training.hub.saves import HubRun
    from lstmpool.training.loop.trainer import check_settings
    from lstmpool.training.output.folder import repair
    from lstmpool.training.output.run_record import settings_of
    from lstmpool.training.output.start import choose_start
    from lstmpool.training.output.terminal import describe_task
    from lstmpool.training.runs.fit import Extras
    from lstmpool.training.runs.folds import cross_validate
    from lstmpool.training.runs.job import read_job
    from lstmpool.training.runs.search import unsearched
    from lstmpool.training.runs.search_space import space_of
    from lstmpool.training.runs.seeds import repeat_with_seeds
    from lstmpool.training.runs.stages import as_begun

    # All checks come before any weights are read.
    space = space_of(model_args, args)
    if args.process_index == 0:
        repair(Path(args.output_dir))
    args.distributed_state.wait_for_everyone()  # until the folder may be looked at
    model_args, args, settings = as_begun(model_args, args, settings_of(model_args, data_args, args))
    known = unsearched(settings, space)
    start = choose_start(args.output_dir, known, args.resume_from_checkpoint, args.overwrite, model_args.init_from)
    check_settings(args)
    hub = HubRun(args) if args.push_to_hub and args.process_index == 0 else None
    job = read_job(model_args, data_args, args, places, settings, command)
    args = job.arguments(args)
    extras = Extras(hub.open(), publish=hub.publish) if hub else Extras()
    print(describe_task(job.task), flush=True)
    for line in job.said:
        print(as_line(line), flush=True)

    if data_args.cv_folds or args.seeds:
        run_all = cross_validate if data_args.cv_folds else repeat_with_seeds
        run_all(job, args, start)
        _forget_states(job, args)
    else:
        _run_one(job, args, start, extras, space, hub)


def _run_one(
    job: Job, args: TrainingArguments, start: Start, extras: Extras, space: Space, hub: HubRun | None
) -> None:
    """Does the search, if there is a `space` to search, and the run. Waits for what the run pushes."""
    from lstmpool.training.runs.fit import fit
    from lstmpool.training.runs.search import Search, check_goes_on
    from lstmpool.training.runs.search_space import of_rows

    try:
        tokens = job.encode()
        if space:
            space, args = of_rows(space, args, len(job.splits["train"]), tokens["train"].median_length)
            search = Search(job, args, space, tokens)
            job, args = search.run()
            check_goes_on(start, args, job.settings)
            extras = replace(extras, files=search.table)
        fit(job, args, start, tokens, extras)
        _forget_states(job, args)
    finally:
        if hub:
            hub.wait()
    if hub:
        hub.check()


def _forget_states(job: Job, args: TrainingArguments) -> None:
    """Removes the layer states that the runs of the command have shared."""
    from lstmpool.training.model.layer_cache import forget_states

    if args.process_index == 0:
        forget_states(job.states_folder)


def _leave_group() -> None:
    """Leaves the process group, since processes that end without doing so have been seen to abort."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
