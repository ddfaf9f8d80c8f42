"""Two processes, joined by gloo on the CPU: the same numbers as one process with twice the batch."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas
import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from ..conftest import tiny_model
from ..training_fixtures import ROOT, run_python, save_backbone, sentences, write_csv
from .distributed_worker import batch_of_rows


TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
ACCELERATE = (
    "-m accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no".split()
)
ACCELERATE += ["--dynamo_backend", "no"]
WORKER = ["-m", "tests.command.distributed_worker"]
pytestmark = pytest.mark.slow


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
        (TORCHRUN, ["--freeze_backbone"]),
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
    results = [json.loads((work / output / "metrics.json").read_text())["results"] for output in ("both", "alone")]
    for split in ("validation", "test"):
        assert results[0][split] == pytest.approx(results[1][split], abs=1e-5)
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
