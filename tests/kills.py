"""Kills runs, starts each again with the same command, and compares it with a run that was never killed.

python -m tests.kills [--kills 10] [--output tests/KILLS.md]

Each run is the training command on a tiny BERT with dropout, in a forked process, so that no time goes into imports.
SIGKILL comes, in turn, at one of three moments:

- drawn uniformly from the time of a whole run;
- in a random save, once its checkpoint lies there without a manifest;
- in a random step or soon after it, where an evaluation or a save may be going on.

Then the command is given again. The SHA-256 of the best and the last weights, and of the numbers in metrics.json, must
be that of the run that was never killed.

With --early_exit, there is a fourth moment: soon after the fit of the exits has begun.

With --overwrite, the folder holds an older run. There is a fourth moment: before a random file is removed or moved,
once the new run takes the older one's place. After the kill, the older model must load, or the new one, or none if the
kill came between the moves.

In the end, `tests/damage.py` has runs meet full disks and damaged files.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from lstmpool.modeling_lstmpool import LstmPoolForSequenceClassification
from lstmpool.train_trainer import main
from lstmpool.training.loop.checkpoints import MANIFEST, checkpoints_in, step_of
from lstmpool.training.loop.trainer import LstmPoolTrainer
from lstmpool.training.model import layer_cache
from lstmpool.training.model.backbone import quiet_loading
from lstmpool.training.output.found import NEW_RUN
from lstmpool.training.output.run_record import RunRecord
from lstmpool.training.runs import finish as finish_of_run
from lstmpool.training.runs import fit as steps_of_run

from .training_fixtures import save_backbone, sentences, write_csv


SAVES = 3  # a run has at least so many
STEPS = 32  # of a run whose settings name no other number, 4 epochs of 60 rows
EVALUATED = ["--eval_strategy=steps", "--eval_steps=3", "--save_strategy=steps", "--save_steps=3"]
JUDGED = "--metric_for_best_model=loss"
KEPT = [JUDGED, "--save_total_limit=2"]  # the last checkpoint stays beside the best
NONE_KEPT = "none is kept"  # in place of a flag: as without --save_total_limit
PLACES = ("before a checkpoint was begun", "between saves", "inside a save", "between moves", "after the end")
OVERWRITE = "--overwrite"
EXITS = "--early_exit"
EXIT_SECONDS = 0.5  # about as long as the exits are fitted and timed
MOVES = 40  # a run that takes an older one's place removes and moves about so many files
SETTINGS = {
    "random order": [],
    "random order, a save every 3 steps": EVALUATED,
    "sequential order": ["--train_sampling_strategy=sequential", *EVALUATED],
    "grouped by length": ["--train_sampling_strategy=group_by_length", *EVALUATED],
    "rebalanced batches": ["--train_sampling_strategy=batch_rebalance", *EVALUATED],
    "2 batches a step": ["--gradient_accumulation_steps=2", "--per_device_train_batch_size=4", *EVALUATED],
    "grouped, 2 batches a step": [
        *("--train_sampling_strategy=group_by_length", "--gradient_accumulation_steps=2"),
        *("--per_device_train_batch_size=4", *EVALUATED),
    ],
    "early stopping": ["--early_stopping_patience=2", "--head_learning_rate=1e-2"],
    "early stopping within an epoch": ["--early_stopping_patience=3", "--head_learning_rate=1e-2", *EVALUATED],
    "a number of steps": ["--max_steps=14", *EVALUATED],
    "a part of an epoch": ["--num_train_epochs=2.4", *EVALUATED],
    "one checkpoint besides the best": ["--save_total_limit=1", *EVALUATED],
    "a regression": ["--label_column_name=score", *EVALUATED],
    "frozen, from the cache": ["--freeze_backbone", *EVALUATED],
    "a pooling that is chosen, standardised": [
        *("--freeze_backbone", "--stages=one", "--layer_pooling=auto", "--standardize_layers", *EVALUATED),
    ],
    "adapters, merged": ["--peft=lora", "--lora_dropout=0.1", "--merge", *EVALUATED],
    "one stage": ["--stages=one", *EVALUATED],
    "texts compared first": ["--contrastive_steps=5", *EVALUATED],
    "no checkpoint beside the model": [NONE_KEPT, *EVALUATED],
    "a start that is kept": ["--learning_rate=1", "--warmup_steps=0", *EVALUATED],
    "with exits": [EXITS, "--early_exit_max_drop=40", *EVALUATED],
    "over an older run": [OVERWRITE],
    "over an older run, a save every 3 steps": [OVERWRITE, *EVALUATED],
}


def command(folder: Path, settings: list[str], output: str) -> list[str]:
    """The words of the training command. `folder` holds what `prepare` has made."""
    words = [f"--backbone={folder / 'backbone'}", f"--train_file={folder / 'train.csv'}", "--num_train_epochs=4"]
    words += [f"--validation_file={folder / 'validation.csv'}", f"--output_dir={folder / output}", "--use_cpu"]
    return [*words, "--per_device_train_batch_size=8", "--report_to=none", "--disable_tqdm=True", *settings]


def prepare(folder: Path) -> None:
    """Saves a backbone with dropout, and rows of different lengths."""
    save_backbone(folder / "backbone")
    for name, rows in (("train", 60), ("validation", 20)):
        columns = {
            "text": [" ".join([text] * (1 + i % 5)) for i, text in enumerate(sentences(rows))],
            "label": ["even" if i % 2 else "odd" for i in range(rows)],
            "score": [f"{40 * (i % 3) + 0.5}" for i in range(rows)],
        }
        write_csv(folder / f"{name}.csv", columns)


def start(
    words: list[str],
    log: Path | None = None,
    die_in: int | None = None,
    die_between_moves: int | None = None,
    die_in_exits: bool = False,
) -> int:
    """Forks a process that runs the command, and returns its id. The process adds what it prints to `log`.

    It kills itself soon after it has begun step `die_in`, or before the move `die_between_moves`, or soon after it has
    begun to fit exits, if these are set.
    """
    process = os.fork()
    if process:
        return process
    torch.set_num_threads(1)
    if die_in is not None:
        _die_in_step(die_in)
    if die_between_moves is not None:
        _die_between_moves(die_between_moves)
    if die_in_exits:
        _die_in_exits()
    with open(log or os.devnull, "a") as file:
        sys.stdout = file  # a test may have put another one there
        sys.stderr = file
        status = 99
        try:
            status = main(words)
        except Exception:
            traceback.print_exc()
        finally:
            file.flush()
            os._exit(status)


def _die_in_step(number: int) -> None:
    """Has this process kill itself within 0.1 s of the beginning of a step."""
    training_step = LstmPoolTrainer.training_step

    def dying(self, *args, **kwargs):
        if self.state.global_step == number:
            _die_soon(0.1)
        return training_step(self, *args, **kwargs)

    LstmPoolTrainer.training_step = dying


def _die_soon(seconds: float) -> None:
    """Has this process kill itself within so many seconds."""
    threading.Timer(random.uniform(0, seconds), os.kill, (os.getpid(), signal.SIGKILL)).start()


def _die_in_exits() -> None:
    """Has this process kill itself soon after it has begun to fit exits."""
    fit_exits = steps_of_run.fit_exits

    def dying(state):
        _die_soon(EXIT_SECONDS)
        return fit_exits(state)

    steps_of_run.fit_exits = dying


def _die_between_moves(number: int) -> None:
    """Has this process kill itself in the place of the change with this number, once its run takes another's place."""
    handover = finish_of_run.handover
    left = iter(range(number))

    def dying(change):
        def change_or_die(*args, **kwargs):
            if next(left, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
            return change(*args, **kwargs)

        return change_or_die

    def handover_or_die(folder):
        for name in ("unlink", "replace", "rmdir"):
            setattr(os, name, dying(getattr(os, name)))
        handover(folder)

    finish_of_run.handover = handover_or_die


def finish(process: int) -> int:
    """Waits for the process. Returns its exit status, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def digest(output: Path) -> str:
    """A digest of the weights that were kept (the best ones), of the last checkpoint's step and weights, if there is
    one, and of the numbers, except for times."""
    paths = [output / "model.safetensors"]
    metrics = json.loads((output / "metrics.json").read_text(encoding="utf-8"))
    metrics.get("early_exit", {}).pop("times_as_fast", None)
    found = hashlib.sha256(json.dumps(metrics).encode())
    for last in checkpoints_in(output)[:1]:
        found.update(last.name.encode())
        paths += sorted(last.glob("*.safetensors"))
    for path in paths:
        found.update(path.read_bytes())
    return found.hexdigest()


def model_in(output: Path) -> str:
    """A digest of the model that loads from a folder; empty if none does."""
    if not (output / "config.json").exists():
        return ""
    with quiet_loading():
        model = LstmPoolForSequenceClassification.from_pretrained(output)
    found = hashlib.sha256((output / "config.json").read_bytes())
    for name, values in sorted(model.state_dict().items()):
        found.update(name.encode() + values.numpy().tobytes())
    return found.hexdigest()


def kill_in_save(process: int, output: Path, number: int) -> None:
    """Kills the process in the save with this number, once its checkpoint lies there and is not whole yet."""
    seen = set()
    while os.waitpid(process, os.WNOHANG) == (0, 0):
        seen |= {path.name for path in output.glob("checkpoint-*") if not (path / MANIFEST).exists()}
        time.sleep(0.0005)
        if len(seen) >= number:
            os.kill(process, signal.SIGKILL)
            finish(process)
            return


def kill_and_resume(folder: Path, settings: list[str], seconds: float, number: int) -> tuple[str, bool]:
    """Says where the kill fell, and whether the run ended as the whole one did, which took `seconds`."""
    saved = checkpoints_in(folder / "whole")
    steps = step_of(saved[0]) if saved else STEPS
    expected = digest(folder / "whole")
    output = folder / "killed"
    words = command(folder, settings, "killed")
    shutil.rmtree(output, ignore_errors=True)
    overwrites = OVERWRITE in settings
    if overwrites:
        shutil.copytree(folder / "older", output)
    random.seed(number)
    moment = number % (4 if overwrites or EXITS in settings else 3)
    process = start(
        words,
        die_in=random.randrange(steps) if moment == 2 else None,
        die_between_moves=random.randrange(MOVES) if moment == 3 and overwrites else None,
        die_in_exits=moment == 3 and not overwrites,
    )
    if moment == 0:
        time.sleep(random.uniform(0, seconds))
        os.kill(process, signal.SIGKILL)
    if moment == 1:
        kill_in_save(process, output / NEW_RUN if overwrites else output, random.randint(1, SAVES))
    else:
        finish(process)
    where = _place_of_kill(output, RunRecord.read(folder / "older") if overwrites else None)
    kept = not overwrites or model_in(output) in _may_load(folder, where)
    if where == "after the end":
        if not saved and checkpoints_in(output):  # the kill came before they were removed
            finish(start(words))
        return where, kept and digest(output) == expected
    status = finish(start(words))
    return where, kept and status == 0 and digest(output) == expected and not (output / NEW_RUN).exists()


def _may_load(folder: Path, where: str) -> list[str]:
    """Digests of the models, one of which must load after a kill; empty for none."""
    older, new = model_in(folder / "older"), model_in(folder / "whole")
    return {"between moves": [older, "", new], "after the end": [new]}.get(where, [older])


def _place_of_kill(output: Path, older: RunRecord | None) -> str:
    """One of `PLACES`, by what the killed run has left in `output`, where `older` was the record of an older run."""
    record = RunRecord.read(output)
    place = output
    if older is not None and (record is None or record == older):
        place = output / NEW_RUN
        record = RunRecord.read(place)
    if record is not None and record.finished:
        return "after the end"
    if record is not None and record.handover:
        return "between moves"
    saved = checkpoints_in(place)
    if not saved:
        return "before a checkpoint was begun"
    cut_off = any(not (path / MANIFEST).exists() for path in saved)
    return "inside a save" if cut_off else "between saves"


def measure(folder: Path, settings: list[str], kills: int) -> Counter:
    """Counts the kills by where they fell, and by whether the weights were the same in the end."""
    for name in ("whole", "older"):
        shutil.rmtree(folder / name, ignore_errors=True)
    settings = [JUDGED, *settings[1:]] if NONE_KEPT in settings else [*KEPT, *settings]
    log = folder / "log"
    if OVERWRITE in settings and finish(start(command(folder, [*KEPT, *EVALUATED, "--seed=7"], "older"), log)):
        raise RuntimeError(f"the older run has failed: {log.read_text()}")
    began = time.monotonic()
    if finish(start(command(folder, settings, "whole"), log)):
        raise RuntimeError(f"the run that is not killed has failed: {log.read_text()}")
    seconds = time.monotonic() - began
    return Counter(kill_and_resume(folder, settings, seconds, number) for number in range(kills))


if __name__ == "__main__":
    from . import damage  # which imports this module

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10, help="for each setting")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("KILLS.md"))
    args = parser.parse_args()
    lines = [
        f"# {args.kills} kills for each setting, and what became of the run\n",
        "Made by `python -m tests.kills`, whose source says how. A number is how many kills fell there.\n",
        f"| setting | {' | '.join(PLACES)} | same weights in the end, bit for bit |",
        "|---|" + "---:|" * (len(PLACES) + 1),
    ]
    with TemporaryDirectory() as work:
        layer_cache.CACHE = Path(work, "cache")
        prepare(Path(work))
        for name, settings in SETTINGS.items():
            found = measure(Path(work), settings, args.kills)
            fell = [sum(n for (where, _), n in found.items() if where == place) for place in PLACES]
            same = sum(n for (_, equal), n in found.items() if equal)
            lines.append(f"| {name} | {' | '.join(map(str, fell))} | {same} of {args.kills} |")
            print(lines[-1], flush=True)
        lines += damage.table(Path(work), args.kills)
    args.output.write_text("\n".join(lines) + "\n", encoding="utf-8")
