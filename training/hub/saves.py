"""What `train_trainer.py --push_to_hub` does: checkpoints go to the Hub during training, the finished model after it.

The library's own pushes during training leave out the code, upload whatever lies in the folder, and lose their errors.
These push a copy of the checkpoint, which loads by itself, in one commit. Once training is over, however it ends, the
command says what came of them.
"""

import shutil
import sys
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from huggingface_hub.utils import disable_progress_bars
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_utils import HubStrategy

from lstmpool.training.errors import InputError
from lstmpool.training.flags.training_arguments import TrainingArguments
from lstmpool.training.hub.folder import copy_files
from lstmpool.training.hub.publishing import Options, checked, describe, push
from lstmpool.training.hub.repository import LAST, Hub, PushError
from lstmpool.training.hub.scratch import scratch


class HubRun:
    """The repository of a run. It is made before training, so that a wrong token or name is told then."""

    def __init__(self, args: TrainingArguments):
        """Raises InputError if the Hub does not know the token, or the name is not OWNER/NAME."""
        self.folder = Path(args.output_dir)
        self.options = Options(private=args.hub_private_repo)
        self.hub = Hub.connect(args.hub_model_id, args.hub_revision or "main")
        self.saves = _PushSaves(self.hub, args.hub_strategy)
        self.waited = False
        self.wrong: list[str] = []
        disable_progress_bars()  # those of uploads would break up that of the training

    def open(self) -> list[TrainerCallback]:
        """Finds or makes the repository; returns what pushes during training. Raises InputError if that fails."""
        self.hub.open(self.options.private)
        if self.saves.strategy == HubStrategy.CHECKPOINT:
            print(_what_goes_up(self.hub), flush=True)
        return [] if self.saves.strategy == HubStrategy.END else [self.saves]

    def wait(self) -> None:
        """Waits for the pushes that are under way, and says which steps were pushed and which were not.

        Call it at the end of training, after an error or Ctrl-C as well: otherwise nobody hears of a failed push.
        """
        if not self.waited:
            self.waited = True
            self.saves.wait()

    def publish(self) -> None:
        """Publishes the finished folder as the command `publish` does, once the pushes under way are over.

        Errors are kept for `check`, which raises them.
        """
        self.wait()
        try:
            with checked(self.folder) as model:
                print(describe(model), flush=True)
                published = push(model, self.hub, self.options)
            print(f"{published.repo_id} at commit {published.commit} loads and gives the same logits:")
            print(f"\n{published.snippet}")
        except (InputError, PushError) as error:
            again = f"python -m lstmpool.training.publish {self.folder} {self.hub.repo_id}"
            self.wrong.append(f"{error} The model is whole in {self.folder}; to publish it: {again}")
        if self.saves.wrong:
            self.wrong.append("not every checkpoint was pushed; the reasons stand above.")

    def check(self) -> None:
        """Raises PushError if a push failed. It names each that did, what is whole, and what to do."""
        if self.wrong:
            raise PushError("\n".join(self.wrong))


def _what_goes_up(hub: Hub) -> str:
    """What --hub_strategy checkpoint pushes during training. It depends on who can read the repository."""
    if not hub.private:
        return (
            f"{hub.repo_id} is public. Only the model of each checkpoint goes up, and nothing to resume from: "
            "optimizer states are pickled, and the settings name folders of this machine. For those, use a private "
            "repository, with --hub_private_repo."
        )
    return (
        f"{hub.repo_id} is private. All that a run resumes from goes up with each checkpoint: pickled optimizer "
        "states, and names of folders of this machine. It stays in older commits when the model is published, so do "
        "not make the repository public."
    )


class _PushSaves(TrainerCallback):
    """Pushes each checkpoint in the background, but skips it while the one before is still under way."""

    def __init__(self, hub: Hub, strategy: HubStrategy):
        self.hub = hub
        self.strategy = strategy
        self.jobs: dict[int, Future] = {}  # by step
        self.left_out: list[int] = []
        self.wrong: list[str] = []
        self.stack = ExitStack()
        self.copies = self.stack.enter_context(scratch())  # a checkpoint may be deleted before it is pushed

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        step = state.global_step
        checkpoint = Path(args.output_dir, f"checkpoint-{step}")
        if any(not job.done() for job in self.jobs.values()):
            self.left_out.append(step)
            return
        copy = self.copies / str(step)
        try:
            copy.mkdir()
            copy_files(checkpoint, copy)
            if self.strategy == HubStrategy.CHECKPOINT and self.hub.private:
                shutil.copytree(checkpoint, copy / LAST, symlinks=True)
        except (InputError, OSError) as error:  # no room, for example; the training goes on
            self.wrong.append(f"step {step} was not pushed, because it cannot be copied: {error}")
            return
        paths = [path for path in copy.rglob("*") if path.is_file() and not path.is_symlink()]
        files = {path.relative_to(copy).as_posix(): path for path in paths}
        self.jobs[step] = self.hub.api.run_as_future(self._push, files, step, copy)

    def wait(self) -> None:
        """Waits until all pushes are over, and prints what came of each. `wrong` is then complete."""
        if running := [step for step, job in self.jobs.items() if not job.done()]:
            print(f"Waiting for the push of step {running[0]}.", flush=True)
        errors = {step: job.exception() for step, job in self.jobs.items()}
        self.wrong += [f"the push of step {step} failed: {error}" for step, error in errors.items() if error]
        if pushed := [step for step, error in errors.items() if not error]:
            print(f"Pushed: step {', '.join(map(str, pushed))}.")
        if self.left_out:
            print(f"Not pushed, because the push before was under way: step {', '.join(map(str, self.left_out))}.")
        for line in self.wrong:
            print(f"error: {line}", file=sys.stderr)
        self.stack.close()

    def _push(self, files: dict[str, Path], step: int, copy: Path) -> None:
        self.hub.push(files, f"Training in progress, step {step}")
        shutil.rmtree(copy)
