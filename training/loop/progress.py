"""What is seen while Trainer trains: a progress bar, and a line an evaluation."""

import math
from typing import Any

from tqdm.auto import tqdm
from transformers import ProgressCallback, Trainer
from transformers.trainer_callback import PrinterCallback


class Progress(ProgressCallback):
    """The library's progress bar, with one line an evaluation in place of its dictionaries."""

    def __init__(self, titles: dict[str, str]):
        super().__init__()
        self.titles, self.loss = titles, math.nan

    @classmethod
    def install(cls, trainer: Trainer, titles: dict[str, str]) -> None:
        """Takes the place of the library's callback. `titles` are the metrics that are shown, by their keys."""
        trainer.remove_callback(ProgressCallback)
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback((_Lines if trainer.args.disable_tqdm else cls)(titles))

    def on_prediction_step(self, args: Any, state: Any, control: Any, eval_dataloader: Any = None, **kwargs: Any):
        if not state.is_world_process_zero:
            return
        if self.prediction_bar is None:  # shown only where it takes long
            self.prediction_bar = tqdm(total=len(eval_dataloader), leave=False, dynamic_ncols=True, delay=3)
        self.prediction_bar.update(1)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any):
        if self.prediction_bar is not None:  # a line written beside a bar would bring it to light
            self.prediction_bar.close()
            self.prediction_bar = None
        self.loss = logs.get("loss", self.loss)
        evaluated = {title: logs[f"eval_{key}"] for key, title in self.titles.items() if f"eval_{key}" in logs}
        if evaluated or ("loss" in logs and args.eval_strategy == "no"):
            shown = {
                **({} if math.isnan(self.loss) else {"training loss": self.loss}),
                **{f"validation {title}": value for title, value in evaluated.items()},
            }
            words = [f"epoch {logs['epoch']:g}/{args.num_train_epochs:g}", *(f"{k} {v:.4f}" for k, v in shown.items())]
            tqdm.write("  ".join(words))


class _Lines(Progress):
    """The lines without the bar, for logs that are files."""

    def _no_bar(self, *args: Any, **kwargs: Any) -> None:
        pass

    on_train_begin = on_step_end = on_train_end = on_prediction_step = on_evaluate = on_predict = _no_bar
