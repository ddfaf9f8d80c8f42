"""Runs that are asked to stop, and runs that are killed: the end is the same. And the logits of a run's rows."""

import io
import math
import os
import signal
import time
from contextlib import redirect_stdout
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import DataCollatorWithPadding, TrainingArguments

from lstmpool.training.data.order import by_length
from lstmpool.training.errors import InputError
from lstmpool.training.loop.interruption import Interrupted, interruptible, stop_at_step
from lstmpool.training.loop.measuring import predict_logits
from lstmpool.training.loop.trainer import LstmPoolTrainer

from ... import damage, kills
from ...conftest import tiny_model


def test_outside_of_training_a_signal_ends_the_program_at_once():
    before = [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)]
    for signum, status in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        with pytest.raises(Interrupted, match="The same command goes on") as stopped, interruptible():
            os.kill(os.getpid(), signum)
            time.sleep(1)
        assert stopped.value.status == status
        assert not isinstance(stopped.value, Exception)  # which a library may catch and go on
    assert [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize("first", [True, False])
def test_a_signal_is_answered_at_once_by_the_first_process_even_where_stdout_goes_to_a_log(capsys, first):
    trainer = Mock(**{"is_world_process_zero.return_value": first})
    log = io.StringIO()
    with redirect_stdout(log), pytest.raises(Interrupted), stop_at_step(trainer):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
    assert ("Stopping at the end of this step" in capsys.readouterr().err) == first and not log.getvalue()


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("work")
    kills.prepare(folder)
    return folder


@pytest.fixture(scope="module")
def whole(work):
    """The weights of a run that nothing stopped."""
    assert kills.finish(kills.start(kills.command(work, kills.KEPT, "whole"))) == 0
    return kills.digest(work / "whole")


def signal_at(monkeypatch, where, signum, times=1):
    """Has the next run send itself the signal, in the training step or the evaluation that `where` names; without a
    number, in the first one."""
    method, number = where

    def sending(self, *args, **kwargs):
        if number is None or self.state.global_step == number:
            for again in range(times):
                time.sleep(1.1 * again)  # a second one that comes at once is the same one, passed on
                os.kill(os.getpid(), signum)
        return of_class(self, *args, **kwargs)

    of_class = getattr(LstmPoolTrainer, method)
    monkeypatch.setattr(LstmPoolTrainer, method, sending)


@pytest.mark.parametrize(
    ("where", "signum", "saved"),
    [
        (("training_step", 10), signal.SIGINT, 11),
        (("training_step", 10), signal.SIGTERM, 11),
        # 8 steps an epoch: before its end is saved, the epoch is evaluated, as in a run that nothing stops
        pytest.param(("training_step", 15), signal.SIGTERM, 16, marks=pytest.mark.slow),
        pytest.param(("evaluate", 16), signal.SIGTERM, 16, marks=pytest.mark.slow),
        pytest.param(("evaluate", 32), signal.SIGTERM, 32, marks=pytest.mark.slow),
        pytest.param(("predict", 32), signal.SIGTERM, 32, marks=pytest.mark.slow),
    ],
)
def test_a_signal_saves_at_the_end_of_the_step_and_the_same_command_goes_on(
    work, whole, monkeypatch, tmp_path, where, signum, saved
):
    words = [*kills.command(work, kills.KEPT, "stopped"), f"--output_dir={tmp_path / 'out'}"]
    with monkeypatch.context() as patched:
        signal_at(patched, where, signum)
        assert kills.finish(kills.start(words, tmp_path / "log")) == 128 + signum
    told, checkpoint = (tmp_path / "log").read_text(), tmp_path / "out" / f"checkpoint-{saved}"
    assert "Traceback" not in told and checkpoint.is_dir()
    assert not (tmp_path / "out" / "model.safetensors").exists()
    if where[0] != "predict":  # after the training the command ends at once
        assert f"stopped at step {saved}, saved in {checkpoint}. The same command goes on from there." in told
    assert kills.finish(kills.start(words, tmp_path / "log")) == 0
    assert f"It goes on from {checkpoint}." in (tmp_path / "log").read_text()
    assert kills.digest(tmp_path / "out") == whole


def test_a_folder_that_was_moved_after_its_last_save_goes_on_with_its_own_best_weights(
    work, whole, monkeypatch, tmp_path
):
    words = [*kills.command(work, kills.KEPT, "stopped"), "--output_dir"]
    with monkeypatch.context() as patched:
        signal_at(patched, ("predict", 32), signal.SIGKILL)
        assert kills.finish(kills.start([*words, str(tmp_path / "out")], tmp_path / "log")) == -signal.SIGKILL
    (tmp_path / "out").rename(tmp_path / "moved")
    assert kills.finish(kills.start([*words, str(tmp_path / "moved")], tmp_path / "log")) == 0
    assert kills.digest(tmp_path / "moved") == whole
    told = (tmp_path / "log").read_text().split("It goes on from")[1]
    assert "was kept" in told and "\nepoch " not in told  # no epoch is trained again


def test_a_second_signal_stops_at_once(work, monkeypatch, tmp_path):
    signal_at(monkeypatch, ("training_step", 10), signal.SIGINT, times=2)
    words = [*kills.command(work, kills.KEPT, "stopped"), f"--output_dir={tmp_path / 'out'}"]
    assert kills.finish(kills.start(words, tmp_path / "log")) == 130
    assert {path.name for path in (tmp_path / "out").glob("checkpoint-*")} == {"checkpoint-0", "checkpoint-8"}
    assert "The same command goes on from the last checkpoint" in (tmp_path / "log").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a number of steps", "a part of an epoch", "early stopping"])
def test_a_run_that_is_killed_after_its_training_is_not_trained_further(work, name, monkeypatch, tmp_path):
    words = [*kills.command(work, [*kills.KEPT, *kills.SETTINGS[name]], "stopped"), "--output_dir"]
    assert kills.finish(kills.start([*words, str(tmp_path / "whole")])) == 0
    with monkeypatch.context() as patched:
        signal_at(patched, ("predict", None), signal.SIGKILL)
        assert kills.finish(kills.start([*words, str(tmp_path / "killed")])) == -signal.SIGKILL
    assert kills.finish(kills.start([*words, str(tmp_path / "killed")])) == 0
    assert kills.digest(tmp_path / "killed") == kills.digest(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("name", damage.TROUBLES)
def test_a_run_tells_of_full_disks_and_damaged_files_and_ends_with_the_same_weights(work, name, monkeypatch):
    monkeypatch.setattr("lstmpool.training.model.layer_cache.CACHE", work / "cache")
    assert damage.suffer(work, name, 3) == (3, 3)


@pytest.mark.slow
@pytest.mark.parametrize("name", kills.SETTINGS)
def test_a_killed_run_ends_with_the_same_weights(work, name, monkeypatch):
    monkeypatch.setattr("lstmpool.training.model.layer_cache.CACHE", work / "cache")
    found = kills.measure(work, kills.SETTINGS[name], 10)
    assert all(same for _, same in found), found
    assert {"between saves", "inside a save"} <= {where for where, _ in found}, found


# -------------------------------------------------------------------------------------------------------------- logits
class Echo(torch.nn.Module):
    """Its logits name the row: the first token, and the number of tokens. It remembers how long its batches were."""

    main_input_name = "input_ids"

    def __init__(self):
        super().__init__()
        self.config, self.batches = tiny_model().config, []
        self.nothing = torch.nn.Parameter(torch.zeros(1))

    def forward(self, input_ids=None, attention_mask=None, **others):
        self.batches.append(input_ids.shape[1])
        logits = torch.stack([input_ids[:, 0], attention_mask.sum(1)], dim=1).float()
        return {"logits": logits.masked_fill(logits == 99, math.nan)}


@pytest.mark.parametrize("strategy", ["random", "group_by_length", "sequential"])
def test_every_row_is_in_its_place(tmp_path, tokenizer, strategy):
    lengths = np.random.default_rng(0).integers(1, 30, size=37)
    rows = [{"input_ids": [5 + i] * n, "attention_mask": [1] * n} for i, n in enumerate(lengths)]
    args = TrainingArguments(
        str(tmp_path),
        use_cpu=True,
        per_device_eval_batch_size=4,
        train_sampling_strategy=strategy,
        remove_unused_columns=False,
        disable_tqdm=True,
        report_to=[],
    )
    model = Echo()
    trainer = LstmPoolTrainer(model, args, data_collator=DataCollatorWithPadding(tokenizer))
    for dataset in (Dataset.from_list(rows), Dataset.from_list(rows).add_column("labels", [0] * 37)):
        model.batches.clear()
        logits = predict_logits(trainer, dataset)
        assert logits[:, 0].tolist() == [5 + i for i in range(37)]
        assert logits[:, 1].tolist() == lengths.tolist()
        assert model.batches == sorted(model.batches, reverse=True)  # little padding, and the longest first
        assert sum(model.batches) * 4 < 1.3 * lengths.sum() + 4 * 30
    assert args.train_sampling_strategy == strategy


def test_a_model_that_gives_no_numbers_is_refused(tmp_path, tokenizer):
    args = TrainingArguments(str(tmp_path), use_cpu=True, disable_tqdm=True, report_to=[])
    trainer = LstmPoolTrainer(Echo(), args, data_collator=DataCollatorWithPadding(tokenizer))
    rows = Dataset.from_list([{"input_ids": [n], "attention_mask": [1]} for n in (5, 99)])
    with pytest.raises(InputError, match="found NaN or infinity: it has diverged"):
        predict_logits(trainer, rows)


def test_rows_are_sorted_by_their_own_tokens_not_by_padding():
    rows = [{"input_ids": [9] * 4, "attention_mask": [1] * n + [0] * (4 - n)} for n in (2, 4, 1, 4)]
    ordered, order = by_length(Dataset.from_list(rows))
    assert order.tolist() == [1, 3, 0, 2]
    assert [sum(mask) for mask in ordered["attention_mask"]] == [4, 4, 2, 1]
