"""Stops a run on a signal: it saves a checkpoint at the end of its step, and the command ends and says how to go on.

The signals are Ctrl-C, and SIGTERM, which schedulers send before they kill. A second signal stops the run at once.
"""

import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState

from lstmpool.training.flags.training_arguments import TrainingArguments


SIGNALS = (signal.SIGINT, signal.SIGTERM)
GO_ON = "The same command goes on from there."
LAST = "stopped. The same command goes on from the last checkpoint, if there is one, or begins anew."
# A signal within so many seconds of the first is the same one: a launcher may pass on what each process gets anyway.
TWICE = 1.0


class Interrupted(KeyboardInterrupt):
    """A signal has ended the run. The message says how to go on; the command ends with status 128 + `signum`.

    It is not an Exception, so no handler of failures catches it.
    """

    def __init__(self, signum: int, message: str = LAST):
        super().__init__(message)
        self.status = 128 + signum


@contextmanager
def interruptible() -> Iterator[None]:
    """Within this block, both signals raise Interrupted wherever the program is."""

    def stop(signum: int, frame: FrameType | None) -> None:
        raise Interrupted(signum)

    with _handled_by(stop):
        yield


@contextmanager
def stop_at_step(trainer: Trainer) -> Iterator[None]:
    """Within this block, a signal makes `trainer.train()` save at the end of the step and then raise Interrupted.

    At the end of an epoch, the evaluation that is due comes first, so that a resumed run finds the same as a run that
    was never stopped.
    """
    callback = _StopAtStep(speaks=trainer.is_world_process_zero())
    trainer.add_callback(callback)
    try:
        with _handled_by(callback.note):
            yield
    finally:
        trainer.remove_callback(callback)
    if callback.signum:  # it came during the last step
        raise Interrupted(callback.signum)


@contextmanager
def unbroken(said: str) -> Iterator[None]:
    """Within this block, a signal waits for its end, and then raises Interrupted. A second one raises it at once.

    `said`: what the user is told meanwhile; empty for nothing.
    """
    noting = _Noting(said)
    with _handled_by(noting.note):
        yield
    if noting.signum:
        raise Interrupted(noting.signum)


@contextmanager
def _handled_by(handler: Any) -> Iterator[None]:
    """Within this block, `handler` handles both signals."""
    in_main_thread = threading.current_thread() is threading.main_thread()  # no other one may set handlers
    earlier = {signum: signal.signal(signum, handler) for signum in SIGNALS if in_main_thread}
    try:
        yield
    finally:
        for signum, earlier_handler in earlier.items():
            signal.signal(signum, earlier_handler)


class _Noting:
    """Notes a signal. `said`: what the user is then told; empty for nothing."""

    def __init__(self, said: str):
        self.said = said
        self.signum = 0  # the signal that this process caught
        self.since = 0.0  # when it was caught

    def note(self, signum: int, frame: FrameType | None) -> None:
        """The handler of both signals. A second signal raises Interrupted at once."""
        if self.signum:
            if time.monotonic() - self.since > TWICE:
                raise Interrupted(signum)
            return
        self.signum = signum
        self.since = time.monotonic()
        if self.said:  # not to stdout, which may go to the log of a trial
            print(f"\n{self.said}", file=sys.stderr)


class _StopAtStep(_Noting, TrainerCallback):
    """Notes a signal, has Trainer save, and raises Interrupted once it has.

    `speaks`: whether this process, of several, tells the user.
    """

    def __init__(self, speaks: bool):
        said = "Stopping at the end of this step, once it is saved. Again stops at once."
        super().__init__(said if speaks else "")
        self.agreed = 0  # the signal that all processes know of, since the end of the last step

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Has Trainer save, unless the epoch ends here: then its evaluation comes first."""
        self.agreed = self._highest(args)
        at_end = float(state.epoch).is_integer() or state.global_step >= state.max_steps
        if self.agreed and not at_end:
            control.should_save = True
        return control

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Has Trainer save after an evaluation, during which the signal may have come."""
        self.agreed = self._highest(args)
        if self.agreed:
            control.should_save = True
        return control

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Has Trainer save at the end of an epoch."""
        if self.agreed:
            control.should_save = True
        return control

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Ends the run, now that its checkpoint is saved."""
        if self.agreed:
            checkpoint = Path(args.output_dir, f"checkpoint-{state.global_step}")
            raise Interrupted(self.agreed, f"stopped at step {state.global_step}, saved in {checkpoint}. {GO_ON}")

    def _highest(self, args: TrainingArguments) -> int:
        """The highest signal of all processes: a signal may reach them in different steps."""
        if not dist.is_initialized():
            return self.signum
        signum = torch.tensor(self.signum, device=args.device)
        dist.all_reduce(signum, dist.ReduceOp.MAX)
        return int(signum)
