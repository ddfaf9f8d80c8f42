"""What the user sees while Trainer trains: a progress bar, and a line for each evaluation."""

import math
import time
from typing import Any

from tqdm.auto import tqdm
from transformers import ProgressCallback, Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback


TIMED = 10  # steps


class Lines(TrainerCallback):
    """Prints a line for each evaluation. `titles` are the metrics that it shows, by their keys."""

    def __init__(self, titles: dict[str, str]):
        self.titles = titles
        self.loss = math.nan  # the last training loss

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        """Prints the metrics of an evaluation; where there are no evaluations, the training loss."""
        self.loss = logs.get("loss", self.loss)
        evaluated = {title: logs[f"eval_{key}"] for key, title in self.titles.items() if f"eval_{key}" in logs}
        if not evaluated and not ("loss" in logs and args.eval_strategy == "no"):
            return
        words = [f"epoch {round(logs['epoch'], 2):g}/{args.num_train_epochs:g}"]
        if not math.isnan(self.loss):
            words.append(f"training loss {self.loss:.4f}")
        for title, value in evaluated.items():
            words.append(f"validation {title} {value:.4f}")
        tqdm.write("  ".join(words))


class TimeLeft(TrainerCallback):
    """Says once how long training will take, as soon as some steps have been timed."""

    def __init__(self):
        self.timed = 0  # steps, since the first one of this process, which may take longer
        self.began = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begins to count anew."""
        self.timed = -1

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Prints the line after step `TIMED`."""
        self.timed += 1
        if self.timed == 0:
            self.began = time.monotonic()
        left = state.max_steps - state.global_step
        if self.timed == TIMED and left > 0 and state.is_world_process_zero:
            tqdm.write(f"about {duration((time.monotonic() - self.began) / TIMED * left)} left")


def duration(seconds: float) -> str:
    """A time in the unit that it is read in: seconds, minutes or hours."""
    if seconds < 100:
        return f"{math.ceil(seconds)} s"
    if seconds < 100 * 60:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:.1f} h"


class Progress(ProgressCallback):
    """The library's progress bar, with `Lines` in place of its dictionaries."""

    def __init__(self, titles: dict[str, str]):
        super().__init__()
        self.lines = Lines(titles)

    @classmethod
    def install(cls, trainer: Trainer, titles: dict[str, str]) -> None:
        """Takes the place of the library's callback, or leaves the bar out, for logs that are files."""
        trainer.remove_callback(ProgressCallback)
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(Lines(titles) if trainer.args.disable_tqdm else cls(titles))
        trainer.add_callback(TimeLeft())

    def on_prediction_step(
        self, args: Any, state: Any, control: Any, eval_dataloader: Any = None, **kwargs: Any
    ) -> None:
        """Moves the bar of an evaluation, which is shown only if the evaluation takes long."""
        if not state.is_world_process_zero:
            return
        if self.prediction_bar is None:
            self.prediction_bar = tqdm(total=len(eval_dataloader), leave=False, dynamic_ncols=True, delay=3)
        self.prediction_bar.update(1)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        """Prints the line, if one is due, once the bar of an evaluation is gone."""
        if self.prediction_bar is not None:  # a line written beside a bar would make it appear
            self.prediction_bar.close()
            self.prediction_bar = None
        self.lines.on_log(args, state, control, logs)
