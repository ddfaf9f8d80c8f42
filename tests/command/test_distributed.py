"""Two processes, joined by gloo on the CPU: the same numbers as one process with twice the batch.

Each process runs this module, with `ddp`, `unused`, `fsdp` or `command`, and a folder.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
import torch.distributed as dist
from datasets import Dataset
from safetensors.torch import load_file
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close
from transformers import TrainerCallback

from lstmpool.train_trainer import main
from lstmpool.training.errors import InputError
from lstmpool.training.flags.training_arguments import TrainingArguments
from lstmpool.training.loop.trainer import LstmPoolTrainer

from ..conftest import random_inputs, tiny_model
from ..training_fixtures import ROOT, run_python, save_backbone, sentences, write_csv


TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
ACCELERATE = (
    "-m accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no".split()
)
ACCELERATE += ["--dynamo_backend", "no"]
WORKER = ["-m", "tests.command.test_distributed"]
pytestmark = pytest.mark.slow


# -------------------------------------------------------------------------------------------- what a process runs
class Notes(TrainerCallback):
    """Of each step the gradients, which all processes have then agreed on."""

    def __init__(self):
        self.gradients = []

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        self.gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})


def batch_of_rows(rows=16):
    return {**random_inputs(batch=rows, tokens=6, seed=3), "labels": torch.arange(rows) % 3}


def arguments(folder: Path, **more) -> TrainingArguments:
    """For 16 rows, 8 a step, however many processes there are."""
    flags = {"max_grad_norm": 0.0, "logging_steps": 1, "save_strategy": "no", "report_to": [], "use_cpu": True}
    flags |= {"per_device_train_batch_size": 8 // int(os.environ.get("WORLD_SIZE", "1")), "num_train_epochs": 2}
    flags |= {"ddp_find_unused_parameters": False, "learning_rate": 1e-2, "disable_tqdm": True}
    return TrainingArguments(output_dir=str(folder / "trainer"), **{**flags, **more})


def dataset() -> Dataset:
    return Dataset.from_dict({name: value.tolist() for name, value in batch_of_rows().items()})


def run_ddp(folder: Path) -> None:
    """Trains; the first process writes what it saw."""
    args, notes = arguments(folder), Notes()
    trainer = LstmPoolTrainer(tiny_model().train(), args, train_dataset=dataset(), callbacks=[notes])
    trainer.train_from(None)
    if args.process_index == 0:
        wrapper = trainer.model_wrapped
        seen = {"wrapper": type(wrapper).__name__, "gradients": notes.gradients}
        if isinstance(wrapper, DistributedDataParallel):
            seen["find_unused_parameters"] = wrapper.find_unused_parameters
        seen["losses"] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        torch.save(seen, folder / f"ddp-{args.world_size}.pt")
    if dist.is_initialized():
        dist.destroy_process_group()


def run_unused(folder: Path) -> None:
    """Trains a backbone with a parameter that nothing reads, with and without the flag that allows it."""
    for find in (True, False):
        model = tiny_model().train()
        model.lstmpool.backbone.unread = torch.nn.Parameter(torch.zeros(3))
        trainer = LstmPoolTrainer(model, arguments(folder, ddp_find_unused_parameters=find), train_dataset=dataset())
        try:
            trainer.train_from(None)
            print(f"find {find}: {trainer.state.global_step} steps", flush=True)
        except InputError as error:
            print(f"find {find}: {error}", flush=True)
    dist.destroy_process_group()


def run_fsdp(folder: Path) -> None:
    """Shards the layers and the whole, trains on this process' half of the rows, and saves one whole state dict."""
    dist.init_process_group("gloo")
    model, half = tiny_model().train(), dist.get_rank()
    for layer in model.lstmpool.backbone.encoder.layer:
        fully_shard(layer)
    fully_shard(model)
    sharded = isinstance(model, FSDPModule) and all(isinstance(p, DTensor) for p in model.parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        model(**{name: value[half::2] for name, value in batch_of_rows().items()}).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    whole = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if half == 0:
        local = sum(p.to_local().numel() for p in model.parameters())
        torch.save({"weights": whole, "sharded": sharded, "local": local}, folder / "fsdp.pt")
    dist.barrier()
    dist.destroy_process_group()


# --------------------------------------------------------------------------------------------------------- tests
def run(*words):
    done = run_python(*words, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "destroy_process_group" not in done.stderr  # the warning of a group that was left behind
    return done


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What DDP gave in two processes, and what one process did without it."""
    folder = tmp_path_factory.mktemp("ddp")
    run(*TORCHRUN, *WORKER, "ddp", str(folder))
    run(*WORKER, "ddp", str(folder))
    return [torch.load(folder / f"ddp-{n}.pt", weights_only=True) for n in (2, 1)]


def test_the_model_is_wrapped_once_and_no_parameter_is_looked_for(seen):
    two, one = seen
    assert two["wrapper"] == "DistributedDataParallel" and two["find_unused_parameters"] is False
    assert one["wrapper"] == "LstmPoolForSequenceClassification"


def test_two_processes_give_the_losses_and_gradients_of_one_with_twice_the_batch(seen):
    two, one = seen
    assert len(one["losses"]) == 4 and two["losses"] == pytest.approx(one["losses"], abs=1e-6)
    for of_two, of_one in zip(two["gradients"], one["gradients"], strict=True):
        assert of_one.keys() == {name.removeprefix("module.") for name in of_two}
        for name, gradient in of_two.items():
            assert_close(gradient, of_one[name.removeprefix("module.")], atol=2e-6, rtol=1e-4)
    assert max(float(g.abs().max()) for g in one["gradients"][0].values()) > 0.01


def test_a_parameter_without_a_gradient_is_allowed_by_the_flag_that_its_error_names(tmp_path):
    told = run(*TORCHRUN, *WORKER, "unused", str(tmp_path)).stdout
    assert told.count("find True: 4 steps") == 2
    assert told.count("find False: several processes expect a gradient of every parameter") == 2
    assert told.count("Add --ddp_find_unused_parameters True.") == 2


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A backbone without dropout, and 21 rows to predict: an odd number, of different lengths."""
    folder = tmp_path_factory.mktemp("work")
    config = json.loads((save_backbone(folder / "backbone") / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "backbone" / "config.json").write_text(json.dumps(config))
    for name, rows in (("train", 32), ("validation", 13), ("test", 21)):
        texts = [" ".join([text] * (1 + i % 4)) for i, text in enumerate(sentences(rows))]
        columns = {"id": [f"{name} {i}" for i in range(rows)], "text": texts}
        write_csv(folder / f"{name}.csv", columns | {"label": ["dog" if "dog" in text else "none" for text in texts]})
    return folder


def command(work, output, *more):
    words = [f"--{name}_file={work / f'{name}.csv'}" for name in ("train", "validation", "test")]
    words += [f"--backbone={work / 'backbone'}", f"--output_dir={work / output}", "--use_cpu", "--report_to=none"]
    return [*WORKER, "command", *words, "--pooler_dropout=0", "--lstm_hidden_size=8", "--num_train_epochs=3", *more]


@pytest.mark.parametrize(
    ("launcher", "options"),
    [
        (TORCHRUN, []),
        (TORCHRUN, ["--freeze_backbone", "--early_exit", "--exit_threshold=0.8"]),
        (ACCELERATE, ["--train_sampling_strategy=group_by_length"]),
    ],
)
def test_the_command_writes_what_it_writes_alone(work, launcher, options, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path))  # the cache is filled by two processes at once
    both = run(*launcher, *command(work, "both", "--per_device_train_batch_size=4", "--overwrite", *options))
    alone = run(*command(work, "alone", "--per_device_train_batch_size=8", "--overwrite", *options))
    assert both.stderr.count("the group is gone") == 2
    assert both.stdout.count("Task:") == alone.stdout.count("Task:") == 1  # the first process speaks
    tables = [pandas.read_csv(work / output / "test_predictions.csv") for output in ("both", "alone")]
    assert list(tables[0]["id"]) == list(tables[1]["id"]) == [f"test {i}" for i in range(21)]
    np.testing.assert_allclose(tables[0]["score_dog"], tables[1]["score_dog"], atol=1e-5)
    assert tables[0]["score_dog"].nunique() > 5  # so that an order of its own would be seen
    metrics = [json.loads((work / output / "metrics.json").read_text()) for output in ("both", "alone")]
    for split in ("validation", "test"):
        assert metrics[0]["results"][split] == pytest.approx(metrics[1]["results"][split], abs=1e-5)
    if "--early_exit" in options:  # no text leaves early where several processes run the model
        exits = [of_run["early_exit"] for of_run in metrics]
        assert exits[0]["times_as_fast"] == {} != exits[1]["times_as_fast"]
        assert exits[0]["splits"]["test"] == exits[1]["splits"]["test"]
        assert exits[0]["splits"]["test"]["mean_layers"] < 2
    weights = [load_file(work / output / "model.safetensors") for output in ("both", "alone")]
    assert_close(*weights, atol=1e-5, rtol=1e-4)


def test_what_is_wrong_is_told_once(work):
    done = run_python(*TORCHRUN, *command(work, "wrong", "--layers", "9"), cwd=ROOT)
    assert done.returncode and done.stderr.count("error: layers must lie in 1..2") == 1


def test_all_processes_stop_at_the_same_step_and_go_on(work):
    options = ["--num_train_epochs=60", "--save_strategy=no", "--disable_tqdm=True"]
    words = [*TORCHRUN, *command(work, "stopped", *options)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    with open(work / "told", "w+") as told:
        process = subprocess.Popen([sys.executable, *words], cwd=ROOT, env=env, stdout=told, stderr=told)
        deadline = time.monotonic() + 120
        while "epoch 2/" not in (work / "told").read_text() and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=120) == 1  # of the launcher, which does not pass on that of the processes
    assert (work / "told").read_text().count("stopped at step") == 1
    (checkpoint,) = (work / "stopped").glob("checkpoint-*")
    again = run(*words)
    assert f"It goes on from {checkpoint}." in again.stdout
    run(*TORCHRUN, *command(work, "whole", *options))
    assert_close(*(load_file(work / output / "model.safetensors") for output in ("stopped", "whole")), atol=0, rtol=0)


def test_fully_sharded_weights_train_and_are_saved_as_one_whole(tmp_path):
    run(*TORCHRUN, *WORKER, "fsdp", str(tmp_path))
    found, model = torch.load(tmp_path / "fsdp.pt", weights_only=True), tiny_model().train()
    total = sum(p.numel() for p in model.parameters())
    assert found["sharded"] and found["local"] < 0.6 * total
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        model(**batch_of_rows()).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert_close(found["weights"], dict(model.state_dict()), atol=1e-5, rtol=1e-4)
    tiny_model().load_state_dict(found["weights"])


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "command":
        status = main(sys.argv[2:])
        print("the group is still there" if dist.is_initialized() else "the group is gone", file=sys.stderr)
        sys.exit(status)
    {"ddp": run_ddp, "unused": run_unused, "fsdp": run_fsdp}[sys.argv[1]](Path(sys.argv[2]))
