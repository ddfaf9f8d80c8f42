"""Every field of the training arguments: what it may change. A new field of the library fails until it has a class."""

from collections import Counter
from dataclasses import fields

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import DataCollatorWithPadding
from transformers.utils import logging

from lstmpool.train_trainer import main
from lstmpool.training import command_line
from lstmpool.training.errors import InputError
from lstmpool.training.evaluation.baselines import text_vectors
from lstmpool.training.flags.arguments import ModelArguments
from lstmpool.training.flags.conditions import UNFIT, UNFIT_FOR_EXITS, Flags, training_or_exits
from lstmpool.training.flags.defaults import LENGTH, OF_TRAINING
from lstmpool.training.flags.rules import AT_ONCE, check
from lstmpool.training.flags.training_arguments import TrainingArguments
from lstmpool.training.loop.measuring import TrainerMetrics, predict_logits
from lstmpool.training.loop.trainer import LstmPoolTrainer
from lstmpool.training.loop.trainer_arguments import trainer_arguments
from lstmpool.training.tasks.single_label import SingleLabel

from .. import kills
from ..conftest import tiny_model, word_tokenizer
from ..training_fixtures import save_backbone, sentences, task_of, write_csv


# Evaluation, logging, saving, the Hub, the device: field -> a value that is not the default. Weights stay as they are.
LEAVE_THE_WEIGHTS = {
    # evaluation
    "eval_strategy": "no",
    "eval_steps": 1,
    "eval_delay": 1.0,
    "eval_on_start": True,
    "eval_use_gather_object": True,
    "eval_accumulation_steps": 1,
    "per_device_eval_batch_size": 3,
    "metric_for_best_model": "eval_loss",
    "do_eval": True,
    "do_predict": True,
    "skip_memory_metrics": False,
    "include_for_metrics": ["loss"],
    "predictions_format": "parquet",
    "predictions_with_text": True,
    "raw_csv": True,
    "show_errors": True,
    "layer_report": True,
    "find_label_issues": True,
    "baselines": False,
    # logging
    "logging_strategy": "steps",
    "logging_steps": 1,
    "logging_first_step": True,
    "logging_nan_inf_filter": True,
    "log_on_each_node": False,
    "log_level": "error",
    "log_level_replica": "error",
    "include_num_input_tokens_seen": "all",
    "disable_tqdm": False,
    "report_to": ["tensorboard"],
    "run_name": "run",
    "project": "project",
    "trackio_space_id": "a/b",
    "trackio_bucket_id": "a/b",
    "trackio_static_space_id": "a/b",
    # saving
    "output_dir": "elsewhere",
    "save_strategy": "steps",
    "save_steps": 1,
    "save_total_limit": 1,
    "save_on_each_node": True,
    "overwrite": True,
    # the Hub
    "push_to_hub": True,
    "hub_model_id": "a/b",
    "hub_strategy": "end",
    "hub_private_repo": True,
    "hub_revision": "branch",
    # the device, its memory, and how rows reach it
    "use_cpu": False,
    "torch_empty_cache_steps": 1,
    "auto_find_batch_size": True,
    "activation_checkpointing": True,
    "activation_checkpointing_kwargs": {"use_reentrant": False},
    "gradient_checkpointing": True,
    "gradient_checkpointing_kwargs": {"use_reentrant": False},
    "use_cache": True,
    "liger_kernel_config": {"rope": True},
    "dataloader_num_workers": 1,
    "dataloader_pin_memory": False,
    "dataloader_prefetch_factor": 1,
    "dataloader_multiprocessing_context": "fork",
    "remove_unused_columns": False,
    "length_column_name": "tokens",
    "local_rank": 0,
    "ddp_timeout": 60,
    "ddp_bucket_cap_mb": 1,
    "ddp_broadcast_buffers": False,
    "ddp_find_unused_parameters": True,
    "ddp_static_graph": True,
}
TOGETHER = {  # what a field needs beside it
    "dataloader_prefetch_factor": {"dataloader_num_workers": 1},
    "dataloader_multiprocessing_context": {"dataloader_num_workers": 1},
    "activation_checkpointing_kwargs": {"activation_checkpointing": True},
    "gradient_checkpointing_kwargs": {"gradient_checkpointing": True},
    "eval_steps": {"eval_strategy": "steps"},
    "save_steps": {"save_strategy": "steps"},
    "logging_steps": {"logging_strategy": "steps"},
}
PRECISION = {"bf16", "fp16", "tf32"}  # of training alone; tests/training/loop/test_trainer.py
REFUSED = {*UNFIT, "greater_is_better", "hub_token"}
CHOOSE_THE_WEIGHTS = {
    *("load_best_model_at_end", "early_stopping_patience", "resume_from_checkpoint", "hp_search", "hp_space"),
    "seeds",  # each run has the weights of its own seed; see tests/training/runs/test_seeds.py
}
AFTER_TRAINING = {  # folded into the head, see `learned_head`, or about the exits beside it
    *("calibrate", "tune_thresholds", "early_exit_max_drop", "early_exit_rule"),
}
TRAINING = {
    *("do_train", "per_device_train_batch_size", "num_train_epochs", "max_steps", "gradient_accumulation_steps"),
    *("learning_rate", "head_learning_rate", "layerwise_lr_decay", "lr_scheduler_type", "lr_scheduler_kwargs"),
    "contrastive_steps",
    *("warmup_steps", "optim", "optim_args", "optim_target_modules", "weight_decay", "max_grad_norm"),
    *("adam_beta1", "adam_beta2", "adam_epsilon", "label_smoothing_factor", "neftune_noise_alpha"),
    *("regression_loss", "standardize_targets", "class_weights", "layer_cache"),
    *("seed", "data_seed", "full_determinism", "train_sampling_strategy", "dataloader_in_order"),
    *("torch_compile", "torch_compile_backend", "torch_compile_mode"),
    *("accelerator_config", "parallelism_config", "average_tokens_across_devices"),
    *("fsdp", "fsdp_config", "deepspeed", "ddp_backend"),
}
# What counts where exits are added to a finished model, and nothing is trained. All else is refused there.
WITH_EXITS_ALONE = {
    *("output_dir", "overwrite", "do_eval", "do_predict", "calibrate", "tune_thresholds", "early_exit_max_drop"),
    *(
        "early_exit_rule",
        "layer_report",
        "predictions_format",
        "predictions_with_text",
        "raw_csv",
        "show_errors",
        "disable_tqdm",
    ),
    # what predicts: the device, its memory and precision, how rows reach it, and the chance in the draw of rows
    *("use_cpu", "per_device_eval_batch_size", "eval_accumulation_steps", "eval_use_gather_object", "tf32"),
    *("torch_compile", "torch_compile_backend", "torch_compile_mode", "seed", "full_determinism"),
    *("dataloader_num_workers", "dataloader_pin_memory", "dataloader_prefetch_factor", "dataloader_in_order"),
    *("dataloader_multiprocessing_context", "accelerator_config", "parallelism_config"),
    *("local_rank", "ddp_backend", "ddp_timeout"),
    # loggers, some of which note predictions, too
    *("report_to", "run_name", "project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"),
    *("log_level", "log_level_replica", "log_on_each_node", "skip_memory_metrics"),
}
REFUSED_WITH_EXITS = {  # by other rules
    *(REFUSED | UNFIT_FOR_EXITS.keys()),
    *("push_to_hub", "hub_model_id", "hub_strategy", "hub_private_repo", "hub_revision", "seeds"),
    "find_label_issues",  # a finished model may have learnt these very labels
}
CLASSES = [LEAVE_THE_WEIGHTS, PRECISION, REFUSED, CHOOSE_THE_WEIGHTS, AFTER_TRAINING, TRAINING]
TASK = task_of(SingleLabel)
ROWS = {
    "input_ids": [[2, *range(5, 6 + i % 4), 3] for i in range(8)],
    "attention_mask": [[1] * (3 + i % 4) for i in range(8)],
    "labels": [i % 3 for i in range(8)],
}


def trained(folder, **values):
    """The weights after four steps with dropout, an evaluation after each second, and the logits of the rows."""
    plain = {"use_cpu": True, "num_train_epochs": 2, "per_device_train_batch_size": 4, "disable_tqdm": True}
    plain |= {"output_dir": str(folder), "eval_strategy": "epoch", "save_strategy": "no", "report_to": []}
    plain |= {"logging_nan_inf_filter": False, "dataloader_pin_memory": True}
    args = TrainingArguments(**(plain | values))
    rows = Dataset.from_dict(ROWS)
    trainer = LstmPoolTrainer(
        tiny_model(pooler_dropout=0.3),
        trainer_arguments(args, TASK.best_by("auto")),
        data_collator=DataCollatorWithPadding(word_tokenizer()),
        train_dataset=rows,
        eval_dataset=rows,
        compute_metrics=TrainerMetrics(TASK),
    )
    if args.baselines:
        text_vectors(trainer.model, rows.remove_columns("labels"), trainer.data_collator, batch_size=3)
    trainer.train_from(None)
    return trainer.model.state_dict(), predict_logits(trainer, rows)


@pytest.fixture(autouse=True)
def verbosity_of_before():
    """Trainer sets the library's verbosity to --log_level, for the whole process."""
    before = logging.get_verbosity()
    yield
    logging.set_verbosity(before)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("plain"))


def test_each_field_is_in_one_class():
    classes = Counter(name for names in CLASSES for name in names)
    assert {name for name, count in classes.items() if count > 1} == set()
    assert {entry.name for entry in fields(TrainingArguments) if entry.init} == set(classes)


def test_each_field_counts_or_is_refused_where_exits_are_added_to_a_finished_model():
    of_training = set(OF_TRAINING) - {entry.name for entry in fields(ModelArguments)}
    classes = Counter(name for names in (WITH_EXITS_ALONE, REFUSED_WITH_EXITS, of_training, LENGTH) for name in names)
    assert {name for name, count in classes.items() if count > 1} == set()
    assert {entry.name for entry in fields(TrainingArguments) if entry.init} == set(classes) - {"peft"}


@pytest.mark.parametrize(("value", "refused"), [(5, True), (0.0, True), ("no", True), (False, False)])
@pytest.mark.parametrize("name", ["logging_steps", "save_total_limit", "eval_strategy", "baselines"])
def test_what_counts_in_training_alone_is_refused_where_nothing_is_trained(name, value, refused):
    """What is off need not be refused."""
    given = {"output_dir": "out", "init_from": "m", "early_exit": True, name: value}
    found = training_or_exits(Flags(given=given))
    assert found == ({"name": name, "switch": "early_exit"} if refused else None)
    assert training_or_exits(Flags(given=given | {"max_steps": 3})) is None


def assert_same(found, plain):
    """The same weights, bit for bit. Logits of batches of another size are rounded in other places."""
    assert all(torch.equal(found[0][key], tensor) for key, tensor in plain[0].items())
    assert np.allclose(found[1], plain[1], rtol=0, atol=1e-6)


def test_all_that_is_no_part_of_training_leaves_the_weights_as_they_are(tmp_path, monkeypatch, plain):
    """All at once, which is quick; the next test says which one does not."""
    monkeypatch.chdir(tmp_path)
    values = LEAVE_THE_WEIGHTS | {"eval_strategy": "steps"}
    values.pop("skip_memory_metrics")  # takes seconds
    assert_same(trained(tmp_path, **values), plain)


@pytest.mark.slow
@pytest.mark.parametrize("name", LEAVE_THE_WEIGHTS)
def test_what_is_no_part_of_training_leaves_the_weights_as_they_are(tmp_path, monkeypatch, plain, name):
    monkeypatch.chdir(tmp_path)
    values = TOGETHER.get(name, {}) | {name: LEAVE_THE_WEIGHTS[name]}
    assert_same(trained(tmp_path, **values), plain)


def test_seeds_do_change_the_weights(tmp_path, plain):
    """So the test above can fail."""
    weights, _ = trained(tmp_path, seed=7)
    assert not torch.equal(weights["classifier.weight"], plain[0]["classifier.weight"])


@pytest.mark.parametrize("name", UNFIT)
def test_what_cannot_work_is_refused(name):
    needed = UNFIT[name][0]
    wrong = not needed if isinstance(needed, bool) else ["something"]
    given = {"output_dir": "out", "push_to_hub": True, "hub_model_id": "a/b", name: wrong}
    with pytest.raises(InputError, match=f"--{name} cannot be "):
        check(AT_ONCE, Flags(given=given))


def test_bf16_leaves_the_weights_in_float32(tmp_path, plain):
    weights, logits = trained(tmp_path, bf16=True)
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert not torch.equal(weights["classifier.weight"], plain[0]["classifier.weight"])
    assert not np.array_equal(logits, torch.tensor(logits).bfloat16().double().numpy())


def test_weights_that_are_no_numbers_are_never_a_result(tmp_path, monkeypatch, capsys):
    """Also where nothing is evaluated, and nothing was saved before: here the last step breaks the weights."""
    save_backbone(tmp_path / "backbone")
    write_csv(tmp_path / "train.csv", {"text": sentences(8), "label": ["a", "b"] * 4})
    monkeypatch.chdir(tmp_path)

    def broken(trainer, checkpoint):
        with torch.no_grad():
            trainer.model.lstmpool.backbone.embeddings.word_embeddings.weight[0, 0] = float("nan")

    monkeypatch.setattr(LstmPoolTrainer, "train_from", broken)
    words = ["--backbone=backbone", "--train_file=train.csv", "--validation_size=0", "--output_dir=out", "--use_cpu"]
    assert main([*words, "--report_to=none"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: training has diverged") and "word_embeddings.weight, found NaN" in said
    assert not list((tmp_path / "out").glob("**/*.safetensors"))


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("work")
    kills.prepare(folder)
    return folder


def values_of(groups):
    return [{f.name: getattr(group, f.name) for f in fields(group)} for group in groups]


@pytest.mark.parametrize(
    "words",
    [
        [
            "--num_train_epochs=1",
            "--save_total_limit=1",
            "--early_stopping_patience=1",
            "--metric_for_best_model=auto",
        ],
        ["--num_train_epochs=1", "--freeze_backbone", "--train_sampling_strategy=group_by_length", "--baselines"],
        ["--num_train_epochs=1", "--cv_folds=2"],
        ["--num_train_epochs=1", "--seeds=2"],
        ["--num_train_epochs=1", "--hp_search=1"],
        ["--num_train_epochs=1", "--label_column_name=score"],
    ],
    ids=["plain", "frozen", "folds", "seeds", "search", "numbers"],
)
def test_no_run_writes_to_the_parsed_arguments(work, tmp_path, monkeypatch, words):
    """What was typed stays as it was typed."""
    monkeypatch.setattr("lstmpool.training.model.layer_cache.CACHE", tmp_path / "cache")
    monkeypatch.setattr("lstmpool.training.runs.search.STUDIES", tmp_path / "studies")
    parsed, parse = [], command_line.parse_arguments

    def remember(*args, **kwargs):
        groups = parse(*args, **kwargs)
        parsed.append((groups[:3], values_of(groups[:3])))
        return groups

    monkeypatch.setattr(command_line, "parse_arguments", remember)
    words = [*kills.command(work, words, "out"), f"--output_dir={tmp_path / 'out'}"]
    if "--cv_folds=2" in words:
        words = [word for word in words if not word.startswith("--validation_file")]
    assert main(words) == 0
    ((groups, before),) = parsed
    assert values_of(groups) == before
