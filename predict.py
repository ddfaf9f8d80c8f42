"""Predicts the rows of files with a finished model, and writes a table of them.

    python -m lstmpool.predict outputs/mine new.csv --output predictions.csv
    python -m lstmpool.predict outputs/mine monday.csv tuesday.jsonl.gz --output predictions.parquet
    python -m lstmpool.predict outputs/mine new.csv --output predictions.csv --resume
    python -m lstmpool.predict outputs/mine --dataset_name nyu-mll/glue --dataset_config_name sst2 --split_name test
    cat lines.txt | python -m lstmpool.predict outputs/mine - --format jsonl | head
    python -m lstmpool.predict outputs/mine new.csv --output predictions --shard 3/16
    python -m lstmpool.predict outputs/mine-onnx new.csv --output predictions.csv --engine onnx
    torchrun --nproc_per_node 8 -m lstmpool.predict outputs/mine new.csv --output predictions

MODEL is a folder that train_trainer.py has written, or its name on the Hub: a whole model, an adapter, or the folder
of folds or seeds, whose predictions are averaged. The rows have the text columns that it was trained on.

The table has the columns id, prediction and confidence. With one label a text, the confidence is the probability of
that label. With any number of labels, it is the probability of the least sure of all yes and no. A regression has
numbers, and no confidence.

All rows are read and checked first. They stay in their order, and need no more memory the more there are. The file of
--output takes its place once it is whole. Ctrl-C and SIGTERM stop at the end of a chunk of rows; the status is then
130 or 143, and --resume goes on from there.

Wrong input ends the command with status 2 and one line that says what was expected, what was found and what to do.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, BinaryIO

from lstmpool.training.errors import InputError
from lstmpool.training.predicting.options import Request, parse
from lstmpool.training.printing import printing


if TYPE_CHECKING:  # takes seconds to import, and --help does not need it
    from lstmpool.training.predicting.model import Predictor
    from lstmpool.training.predicting.output import ToFile, ToStdout
    from lstmpool.training.predicting.rows import Rows, Survey


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit status. Of several processes, only the first tells how far it is."""
    words = sys.argv[1:] if argv is None else argv
    rank = os.environ.get("RANK", "0")
    prefix = "error" if rank == "0" else f"error in process {rank}"
    with printing():
        try:
            request = parse(words, description=__doc__)
            stdout = sys.stdout.buffer
            with contextlib.redirect_stdout(sys.stderr if request.is_first else None):
                from lstmpool.training.loop.interruption import interruptible

                with interruptible():
                    run(request, stdout)
        except InputError as error:
            print(f"{prefix}: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt as error:
            print(f"\n{str(error) or 'stopped.'}", file=sys.stderr)
            return getattr(error, "status", 130)
    return 0


def run(request: Request, stdout: BinaryIO) -> None:
    """Predicts what is asked for. What there is to say is printed; rows alone go to `stdout`.

    Raises:
        InputError: for a model, rows or an output that do not fit.
        Interrupted: after a signal, at the end of the chunk.
    """
    import datasets
    import transformers

    from lstmpool.training.predicting.engine import Exported
    from lstmpool.training.predicting.model import Finished
    from lstmpool.training.predicting.output import ToFile, ToStdout, check_answers
    from lstmpool.training.predicting.rows import Columns, Rows, sources_of

    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    options = request.options
    if options.engine == "torch":
        model = Finished.find(request.model, options.model_revision, options.trust_remote_code)
    else:
        model = Exported.find(request.model, is_int8=options.engine == "onnx_int8")
    check_answers(model.task, options)
    sources = sources_of(request)
    rows = Rows(sources, Columns.of(request, model.title, model.reads_pairs, model.settings))
    inputs = [source.title for source in sources]
    output = ToStdout(request, stdout) if request.output is None else ToFile(request, inputs)
    with _told(output):
        survey = None if request.reads_stdin else rows.survey(request.shard, _hides_bar(request))
        with output.opened(model.digest(), survey.digest if survey else "the standard input"):
            if output.is_finished:
                print(f"{request.output} is finished already.")
                return
            predictor = model.load(options.use_cpu, options.bf16)
            _predict(request, rows, survey, predictor, output)


@contextlib.contextmanager
def _told(output: ToFile | ToStdout) -> Iterator[None]:
    """Lets the message of an interruption say how to go on."""
    from lstmpool.training.loop.interruption import Interrupted

    try:
        yield
    except Interrupted as stopped:
        raise Interrupted(stopped.status - 128, f"stopped after {output.done} chunks. {output.how_to_go_on}") from None


def _predict(
    request: Request, rows: Rows, survey: Survey | None, predictor: Predictor, output: ToFile | ToStdout
) -> None:
    """Predicts the chunks that are not done, and ends the output. Without a `survey`, the rows are read only once."""
    from tqdm.auto import tqdm

    from lstmpool.training.loop.interruption import unbroken
    from lstmpool.training.predicting.output import Answers

    began, before, done = time.monotonic(), output.done, 0
    options, shard = request.options, request.shard
    answers = Answers(predictor.task, options, survey)
    sizes = survey.of_shard(shard) if survey else []
    mine = islice(rows.chunks(is_second=survey is not None), shard.index - 1, None, shard.count)
    bar = tqdm(
        total=sum(sizes) if survey else None,
        initial=sum(sizes[:before]),
        unit=" rows",
        dynamic_ncols=True,
        disable=_hides_bar(request),
    )
    said = "Stopping at the end of this chunk. Again stops at once." if request.is_first else ""
    with bar:
        for chunk in islice(mine, before, None):
            with unbroken(said):
                logits = predictor.logits(chunk, options.batch_size, options.batch_tokens)
                output.write(answers.table(chunk, logits))
                done += len(chunk)
                bar.update(len(chunk))
    if survey and done + sum(sizes[:before]) != sum(sizes):
        raise InputError("the rows are others than when they were checked. Begin anew with --overwrite.")
    with unbroken(said):
        output.finish(answers.empty())
    seconds = time.monotonic() - began
    print(f"{done:,} rows in {seconds:,.1f} s, {done / seconds:,.0f} a second.")


def _hides_bar(request: Request) -> bool:
    return request.options.disable_tqdm or not request.is_first


if __name__ == "__main__":
    sys.exit(main())
