"""The library's own ways to push, as users call them: `push_to_hub` of a model, and `Trainer(push_to_hub=True)`."""

import pytest
import torch

from ...conftest import CODE
from .conftest import ANN
from .localhub_repo import POINTER


pytestmark = pytest.mark.hub

TRAIN = """
import torch
from transformers import AutoTokenizer, Trainer, TrainerCallback, TrainingArguments
from lstmpool.modeling_lstmpool import LstmPoolForSequenceClassification
from lstmpool.training.hub.folder import prepare_output_dir

torch.set_num_threads(1)
tokenizer = AutoTokenizer.from_pretrained(FOLDER)
rows = [{**tokenizer(text), "labels": i % 3} for i, text in enumerate(["money back", "my order", "late"] * 2)]


class Wait(TrainerCallback):
    # so that no push is left out because the one before is still under way, as happens in a training this short
    def on_save(self, args, state, control, **kwargs):
        if trainer.push_in_progress:
            for job in trainer.push_in_progress.jobs:
                job.result()


for name, strategy, prepared in RUNS:
    model = LstmPoolForSequenceClassification.from_pretrained(FOLDER)
    args = TrainingArguments(
        output_dir=f"{WORK}/{name}", push_to_hub=True, hub_model_id=f"ann/{name}", hub_strategy=strategy,
        max_steps=2, save_steps=1, per_device_train_batch_size=3, learning_rate=0.1,
        use_cpu=True, report_to="none", disable_tqdm=True,
    )
    if prepared:
        prepare_output_dir(model, args.output_dir)
    trainer = Trainer(model, args, train_dataset=rows, processing_class=tokenizer, callbacks=[Wait()])
    trainer.train()
    if prepared:
        trainer.push_to_hub()
"""
PUSH_TO_HUB = """
LstmPoolForSequenceClassification.from_pretrained(FOLDER).push_to_hub("lab/parcels", private=True)
tokenizer.push_to_hub("lab/parcels")
"""
STRATEGIES = ["end", "every_save", "checkpoint"]


@pytest.fixture(scope="module")
def pushed(hub, clients, model_folder, tmp_path_factory):
    """The commits by a Trainer for each strategy, by one whose output folder was not prepared, and by the methods."""
    runs = [(name, name, True) for name in STRATEGIES] + [("unprepared", "every_save", False)]
    code = f"{TRAIN}\n{PUSH_TO_HUB}".replace("FOLDER", repr(str(model_folder))).replace("RUNS", repr(runs))
    clients.python(code.replace("{WORK}", str(tmp_path_factory.mktemp("runs"))), token=ANN)
    return {name: hub.repos[name].pushed() for name in ("lab/parcels", *(f"ann/{run[0]}" for run in runs))}


@pytest.fixture(scope="module")
def loaded(clients, pushed):
    """The logits (B, C) by each commit, all loaded by one stranger."""
    commits = [(name, commit.id) for name, found in pushed.items() for commit in found if name != "ann/unprepared"]
    results = {name: [] for name, _ in commits}
    for (name, _), logits in zip(commits, clients.load_commits(commits, token=ANN), strict=True):
        results[name].append(logits)
    return results


@pytest.mark.parametrize(("strategy", "count", "answers"), [("end", 1, 1), ("every_save", 3, 2), ("checkpoint", 5, 2)])
def test_every_commit_of_a_training_loads_by_itself(pushed, loaded, strategy, count, answers):
    commits, results = pushed[f"ann/{strategy}"], loaded[f"ann/{strategy}"]
    assert len(commits) == len(results) == count
    # one answer a save; the push of a checkpoint, and the one at the end, leave the weights as they were
    assert len({tuple(logits.flatten().tolist()) for logits in results}) == answers
    for commit in commits:
        assert POINTER.fullmatch(commit.files["model.safetensors"]) and CODE <= set(commit.files)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_no_commit_holds_a_pickle_but_for_the_last_checkpoint(pushed, strategy):
    for commit in pushed[f"ann/{strategy}"]:
        outside = [name for name in commit.files if not name.startswith("last-checkpoint/")]
        assert not [name for name in outside if name.endswith((".bin", ".pt", ".pth"))]
    last = pushed[f"ann/{strategy}"][-1].files
    assert ("last-checkpoint/optimizer.pt" in last) == (strategy == "checkpoint")  # from which to resume


def test_without_the_call_before_training_the_code_is_missing(pushed):
    """If the library mends this one day, `prepare_output_dir` is needed no more."""
    first = pushed["ann/unprepared"][0].files
    assert not CODE & set(first) and "training_args.bin" in first


def test_a_model_and_its_tokenizer_are_pushed_by_their_own_methods(hub, pushed, loaded, local_logits):
    assert len(loaded["lab/parcels"]) == 2 and hub.repos["lab/parcels"].private
    for logits in loaded["lab/parcels"]:
        assert torch.equal(logits, local_logits)
