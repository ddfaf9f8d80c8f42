"""Full disks and damaged files: what `python -m tests.kills` does to runs besides killing them.

A limit on the size of files stands for a full disk, in a random save or at the end of the run. Or random bytes of a
random file are flipped, zeroed or cut: in the newest checkpoint, in the layer cache, or in a finished fold. Then the
command is given again. The run must have told of it, and end in the same weights as one to which nothing happened.
"""

import random
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest import mock

from lstmpool.training.loop.checkpoints import MANIFEST, saved_in
from lstmpool.training.loop.trainer import LstmPoolTrainer
from lstmpool.training.model import layer_cache
from lstmpool.training.output.run_record import RunRecord
from lstmpool.training.runs import fit

from . import kills


KINDS = ("flipped", "zeroed", "cut")
SETTINGS = [*kills.KEPT, *kills.EVALUATED]
FOLDS = ["--cv_folds=2", "--num_train_epochs=2", "--metric_for_best_model=loss"]


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """Within this block, no file can grow beyond `size` bytes. Python ignores the signal, so that writing fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def damage_file(path: Path, kind: str, at: float = 0.5) -> None:
    """Damages a file in place. `kind` is one of `KINDS`; `at`: where, as a share of its length."""
    content = bytearray(path.read_bytes())
    place = min(int(at * len(content)), len(content) - 1)
    if kind == "flipped":
        content[place] ^= 1
    elif kind == "zeroed":
        content[place] ^= 1  # so that it changes, even if zeros stood there
        content[place + 1 :] = bytes(len(content) - place - 1)
    else:
        content = content[:place]
    path.write_bytes(bytes(content))


def at_a_checkpoint(folder: Path) -> bool:
    """The disk is full in a save. Returns whether the run said so, and left only whole checkpoints."""
    step = 3 * random.randint(1, 10)
    of_trainer = LstmPoolTrainer._save_checkpoint

    def save(self, *args):
        size = random.choice([random.randint(100_000, 2_200_000), random.randint(2_300_000, 4_500_000)])
        with full_disk(size if self.state.global_step == step else resource.RLIM_INFINITY):
            of_trainer(self, *args)

    with mock.patch.object(LstmPoolTrainer, "_save_checkpoint", save):
        status, said = run(kills.command(folder, SETTINGS, "again"), folder)
    whole = not any(each.damage for each in saved_in(folder / "again"))
    return whole and is_a_line(status, said, f"checkpoint-{step} cannot be written: ")


def at_the_end(folder: Path) -> bool:
    """The disk is full when the model is written. Returns whether the run said so, and left no half of a model."""
    of_fit = fit.write_files

    def write(state):
        with full_disk(random.randint(40_000, 2_200_000)):
            of_fit(state)

    with mock.patch.object(fit, "write_files", write):
        status, said = run(kills.command(folder, SETTINGS, "again"), folder)
    half = list((folder / "again").glob("*.safetensors")) or (folder / "again" / "config.json").exists()
    return not half and is_a_line(status, said, "again cannot be written: ")


def in_a_checkpoint(folder: Path) -> bool:
    """A file of the newest checkpoint is damaged. Returns whether the run, which goes on, names it."""
    shutil.copytree(folder / "whole", folder / "again")
    replace(RunRecord.read(folder / "again"), finished=False, digests={}).write(folder / "again")
    (folder / "again" / "model.safetensors").unlink()
    newest = saved_in(folder / "again")[0].path
    path = hurt(path for path in newest.iterdir() if path.name != MANIFEST)
    status, said = run(kills.command(folder, SETTINGS, "again"), folder)
    return status == 0 and f"{newest} is left out: {path.name}" in said


def in_the_cache(folder: Path) -> bool:
    """A file of the layer cache is damaged. Returns whether the run that reads it names it."""
    path = hurt(layer_cache.CACHE.glob("*.arrow"))
    status, said = run(kills.command(folder, ["--freeze_backbone", *SETTINGS], "again"), folder)
    return status == 0 and f"{path} " in said and "It is made again." in said


def in_a_fold(folder: Path) -> bool:
    """A file of a finished fold is damaged. Returns whether the cross-validation, which goes on, names it."""
    shutil.copytree(folder / "whole", folder / "again")
    replace(RunRecord.read(folder / "again"), finished=False).write(folder / "again")
    fold = folder / "again" / "fold-1"
    path = hurt(fold / name for name in RunRecord.read(fold).digests)
    status, said = run(without_validation(kills.command(folder, FOLDS, "again")), folder)
    return status == 0 and f"{fold} is not whole: {path.name}" in said


TROUBLES: dict[str, tuple[list[str], Callable[[Path], bool]]] = {
    "a full disk at a checkpoint": (SETTINGS, at_a_checkpoint),
    "a full disk at the end": (SETTINGS, at_the_end),
    "a damaged file in the newest checkpoint": (SETTINGS, in_a_checkpoint),
    "a damaged file in the layer cache": (["--freeze_backbone", *SETTINGS], in_the_cache),
    "a damaged file in a finished fold": (FOLDS, in_a_fold),
}


def hurt(paths: Iterator[Path]) -> Path:
    """Damages one of the files, drawn at random, anywhere and in any way. Returns its path."""
    path = random.choice(sorted(paths))
    damage_file(path, random.choice(KINDS), random.random())
    return path


def run(words: list[str], folder: Path) -> tuple[int, str]:
    """Runs the command. Returns its status and what it has said."""
    log = folder / "log"
    log.unlink(missing_ok=True)
    status = kills.finish(kills.start(words, log))
    return status, log.read_text()


def is_a_line(status: int, said: str, words: str) -> bool:
    """Whether the run has ended with status 2 and one line that holds `words`."""
    last = said.strip().splitlines()[-1]
    return status == 2 and last.startswith("error: ") and words in last and "Traceback" not in said


def without_validation(words: list[str]) -> list[str]:
    """The command for a cross-validation, which takes no validation rows."""
    return [word for word in words if not word.startswith("--validation_file")]


def suffer(folder: Path, name: str, tries: int) -> tuple[int, int]:
    """How often a run with this trouble has told of it, and how often it has then ended as the whole one.

    `folder` holds what `kills.prepare` has made.
    """
    settings, trouble = TROUBLES[name]
    end = (lambda output: (output / "oof.parquet").read_bytes()) if settings is FOLDS else kills.digest
    words = [kills.command(folder, settings, output) for output in ("whole", "again")]
    if settings is FOLDS:
        words = [without_validation(each) for each in words]
    shutil.rmtree(folder / "whole", ignore_errors=True)
    status, said = run(words[0], folder)
    if status:
        raise RuntimeError(f"the run that nothing happens to has failed: {said}")
    told = same = 0
    for number in range(tries):
        random.seed(number)
        shutil.rmtree(folder / "again", ignore_errors=True)
        told += trouble(folder)
        status, _ = run(words[1], folder) if RunRecord.read(folder / "again").finished is False else (0, "")
        same += status == 0 and end(folder / "again") == end(folder / "whole")
    return told, same


def table(folder: Path, tries: int) -> list[str]:
    """Lines of Markdown: a row for each of `TROUBLES`."""
    lines = [
        f"\n## {tries} full disks or damaged files each\n",
        "Told: a full disk by one line and status 2, with nothing half-made; a damaged file by its name, in the run",
        "that goes on. The source is `tests/damage.py`.\n",
        "| trouble | told | same weights in the end, bit for bit |",
        "|---|---:|---:|",
    ]
    for name in TROUBLES:
        told, same = suffer(folder, name, tries)
        lines.append(f"| {name} | {told} of {tries} | {same} of {tries} |")
        print(lines[-1], flush=True)
    return lines
