"""What each process of `test_distributed.py` runs: `ddp`, `unused`, `fsdp` or `command`, and a folder."""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from datasets import Dataset
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers import TrainerCallback

from lstmpool.train_trainer import main
from lstmpool.training.errors import InputError
from lstmpool.training.flags.training_arguments import TrainingArguments
from lstmpool.training.loop.trainer import LstmPoolTrainer

from ..conftest import random_inputs, tiny_model


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


def rows() -> Dataset:
    return Dataset.from_dict({name: value.tolist() for name, value in batch_of_rows().items()})


def ddp(folder: Path) -> None:
    """Trains; the first process writes what it saw."""
    args, notes = arguments(folder), Notes()
    trainer = LstmPoolTrainer(tiny_model().train(), args, train_dataset=rows(), callbacks=[notes])
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


def unused(folder: Path) -> None:
    """Trains a backbone with a parameter that nothing reads, with and without the flag that allows it."""
    for find in (True, False):
        model = tiny_model().train()
        model.lstmpool.backbone.unread = torch.nn.Parameter(torch.zeros(3))
        trainer = LstmPoolTrainer(model, arguments(folder, ddp_find_unused_parameters=find), train_dataset=rows())
        try:
            trainer.train_from(None)
            print(f"find {find}: {trainer.state.global_step} steps", flush=True)
        except InputError as error:
            print(f"find {find}: {error}", flush=True)
    dist.destroy_process_group()


def fsdp(folder: Path) -> None:
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


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "command":
        status = main(sys.argv[2:])
        print("the group is still there" if dist.is_initialized() else "the group is gone", file=sys.stderr)
        sys.exit(status)
    {"ddp": ddp, "unused": unused, "fsdp": fsdp}[sys.argv[1]](Path(sys.argv[2]))
