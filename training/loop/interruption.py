"""Signals that ask a run to stop: at the end of its step it saves a checkpoint, and the command ends, saying how to go
on.

Ctrl-C and SIGTERM, which schedulers send before they kill, are meant. A second one stops at once.
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
TWICE = 1.0  # seconds within which a signal is the same one: a launcher may pass on what each process was sent, too


class Interrupted(KeyboardInterrupt):
    """A signal has ended the run. Its message says how to go on; the command ends with status 128 + `signum`.

    As it is no Exception, nobody takes it for a failure of what was just going on.
    """

    def __init__(self, signum: int, message: str = LAST):
        super().__init__(message)
        self.status = 128 + signum


@contextmanager
def interruptible() -> Iterator[None]:
    """Within it, both signals raise Interrupted wherever the program is."""

    def stop(signum: int, frame: FrameType | None) -> None:
        raise Interrupted(signum)

    with _handled_by(stop):
        yield


@contextmanager
def stop_at_step(trainer: Trainer) -> Iterator[None]:
    """Within it, `trainer.train()` raises Interrupted after a signal, at the end of the step, once it has saved.

    The evaluation that is due at the end of an epoch comes before that: what a resumed run finds must be the same as
    if it had never been stopped.
    """
    callback = _StopAtStep(speaks=trainer.is_world_process_zero())
    trainer.add_callback(callback)
    try:
        with _handled_by(callback.note):
            yield
    finally:
        trainer.remove_callback(callback)
    if callback.signum:  # during the last step
        raise Interrupted(callback.signum)


@contextmanager
def _handled_by(handler: Any) -> Iterator[None]:
    here = threading.current_thread() is threading.main_thread()  # no other one may set handlers
    before = {signum: signal.signal(signum, handler) for signum in SIGNALS if here}
    try:
        yield
    finally:
        for signum, earlier in before.items():
            signal.signal(signum, earlier)


class _StopAtStep(TrainerCallback):
    def __init__(self, speaks: bool):
        self.speaks = speaks  # of several processes, one does
        self.signum, self.since = 0, 0.0  # that was caught, and when
        self.agreed = 0  # by all processes, at the end of the last step

    def note(self, signum: int, frame: FrameType | None) -> None:
        if self.signum:
            if time.monotonic() - self.since > TWICE:
                raise Interrupted(signum)
            return
        self.signum, self.since = signum, time.monotonic()
        if self.speaks:  # not to stdout, which may go to the log of a trial
            print("\nStopping at the end of this step, once it is saved. Again stops at once.", file=sys.stderr)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        self.agreed = self._highest(args)
        at_end = float(state.epoch).is_integer() or state.global_step >= state.max_steps
        if self.agreed and not at_end:
            control.should_save = True
        return control

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        self.agreed = self._highest(args)
        if self.agreed:
            control.should_save = True
        return control

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        if self.agreed:
            control.should_save = True
        return control

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.agreed:
            checkpoint = Path(args.output_dir, f"checkpoint-{state.global_step}")
            raise Interrupted(self.agreed, f"stopped at step {state.global_step}, saved in {checkpoint}. {GO_ON}")

    def _highest(self, args: TrainingArguments) -> int:
        """Of all processes: a signal may reach them in different steps."""
        if not dist.is_initialized():
            return self.signum
        signum = torch.tensor(self.signum, device=args.device)
        dist.all_reduce(signum, dist.ReduceOp.MAX)
        return int(signum)
