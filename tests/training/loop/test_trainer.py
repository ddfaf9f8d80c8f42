import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import EvalPrediction, Trainer, TrainerCallback
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import EvalLoopOutput

from lstmpool.training.errors import Diverged, InputError
from lstmpool.training.flags.training_arguments import TrainingArguments
from lstmpool.training.loop.checkpoints import checkpoints_in, damage
from lstmpool.training.loop.measuring import TrainerMetrics, in_float32
from lstmpool.training.loop.trainer import (
    EarlyStoppingCallback,
    LstmPoolTrainer,
    check_room,
    check_settings,
    split_groups,
)
from lstmpool.training.output.run_record import RunRecord
from lstmpool.training.output.start import Resume
from lstmpool.training.runs.fit import Extras, State, _prepare_folder
from lstmpool.training.tasks.single_label import SingleLabel

from ...conftest import tiny_model
from ...damage import full_disk
from ...training_fixtures import task_of


def trainer_for(tmp_path, **arguments):
    args = TrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, learning_rate=1e-5, weight_decay=0.1, report_to=[], **arguments
    )
    return LstmPoolTrainer(tiny_model(layer_norm=True), args)


def groups_by_name(trainer):
    optimizer = trainer.create_optimizer()
    groups = [(id(p), group) for group in optimizer.param_groups for p in group["params"]]
    assert len(groups) == len(dict(groups))  # no parameter is in two groups
    groups = dict(groups)
    return {name: groups[id(p)] for name, p in trainer.model.named_parameters()}


def test_the_new_layers_have_their_own_rate(tmp_path):
    groups = groups_by_name(trainer_for(tmp_path, head_learning_rate=1e-2))
    rates = {name: group["lr"] for name, group in groups.items()}
    for name, rate in rates.items():
        assert rate == (1e-5 if ".backbone." in name else 1e-2), name
    assert "lstmpool.pooler.rnn.weight_ih_l0" in rates and "classifier.weight" in rates


def test_biases_and_norms_do_not_decay(tmp_path):
    groups = groups_by_name(trainer_for(tmp_path, head_learning_rate=1e-2))
    for name, group in groups.items():
        spared = "bias" in name or "norm" in name.lower()
        assert group["weight_decay"] == (0.0 if spared else 0.1), name


def test_without_a_rate_of_their_own_all_is_as_the_library_does_it(tmp_path):
    optimizer = trainer_for(tmp_path, head_learning_rate=None).create_optimizer()
    assert [group["lr"] for group in optimizer.param_groups] == [1e-5, 1e-5]


def test_both_rates_follow_the_schedule(tmp_path):
    trainer = trainer_for(tmp_path, head_learning_rate=1e-2)
    trainer.create_optimizer_and_scheduler(num_training_steps=4)
    for _ in range(2):
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    assert sorted({group["lr"] for group in trainer.optimizer.param_groups}) == [0.5e-5, 0.5e-2]


def test_groups_keep_their_other_settings():
    first, second = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
    optimizer = torch.optim.SGD([{"params": [first, second], "momentum": 0.5}], lr=0.1)
    split_groups(optimizer, {id(second): 0.3})
    assert [(g["params"], g["lr"], g["momentum"]) for g in optimizer.param_groups] == [
        ([first], 0.1, 0.5),
        ([second], 0.3, 0.5),
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optim": "lomo"}, "^--optim lomo cannot be trained with: You need to install `lomo_optim`"),
        ({"report_to": ["wandb"]}, "WandbCallback requires wandb"),
        ({"lr_scheduler_type": "warmup_stable_decay"}, "num_decay_steps"),
        ({"lr_scheduler_kwargs": {"nokey": 1}}, "--lr_scheduler_kwargs .* cannot .* keyword argument 'nokey'"),
        ({"optim_args": "nothere"}, "^--optim_args nothere cannot be trained with: "),
        ({"dataloader_num_workers": -1}, "^--dataloader_num_workers -1 cannot be trained with: num_workers"),
        ({"dataloader_multiprocessing_context": "no", "dataloader_num_workers": 1}, "--dataloader_multiprocessing_c"),
        (
            {"torch_compile_mode": "nothere"},
            "--torch_compile_mode nothere cannot .* Unrecognized mode=nothere",
        ),
        (
            {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"nokey": 1}},
            "^--activation_checkpointing True, --activation_checkpointing_kwargs .* keyword argument 'nokey'",
        ),
        (
            {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"every_n_layers": 0}},
            "--activation_checkpointing_kwargs .* every_n_layers must be 1 or more, got 0",
        ),
        (
            {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"power": "x"}},
            "^--lr_scheduler_kwargs {'power': 'x'} cannot be trained with",
        ),
        ({"accelerator_config": {"gradient_accumulation_kwargs": {"nokey": 1}}}, "^--accelerator_config .* 'nokey'"),
        ({"optim": "grokadamw", "eval_strategy": "epoch"}, "Please install grokadamw"),
    ],
)
def test_settings_that_the_library_refuses_are_told_before_any_weights_are_read(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        check_settings(TrainingArguments(str(tmp_path), use_cpu=True, **({"report_to": []} | options)))


@pytest.mark.parametrize(
    "options",
    [
        {"optim": "adafactor"},
        {"label_smoothing_factor": 0.1},
        {"push_to_hub": True},
        {"activation_checkpointing": True},
    ],
)
def test_settings_that_can_be_trained_with_pass(tmp_path, options):
    args = TrainingArguments(str(tmp_path / "new"), use_cpu=True, report_to=[], **options)
    check_settings(args)
    assert not (tmp_path / "new").exists()
    assert all(getattr(args, name) == value for name, value in options.items())  # it works on a copy


def test_a_backbone_that_cannot_recompute_is_told(tmp_path):
    trainer = trainer_for(tmp_path, activation_checkpointing=True)
    trainer.model.supports_gradient_checkpointing = False
    with pytest.raises(InputError, match="this kind of backbone does not support --activation_checkpointing"):
        trainer.train_from(None)


def test_a_trainer_leaves_the_arguments_that_it_is_given_as_they_are(tmp_path):
    """In a search and with folds, several trainers share them."""
    config = {"gradient_accumulation_kwargs": {"num_steps": 4}}
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to=[], accelerator_config=config)
    check_settings(args)
    assert [LstmPoolTrainer(tiny_model(), args).args.gradient_accumulation_steps for _ in range(2)] == [4, 4]
    assert args.accelerator_config.gradient_accumulation_kwargs == {"num_steps": 4}


def test_a_damaged_best_checkpoint_is_told_before_a_run_goes_on(tmp_path):
    """Also in the middle of training: in the end the last weights would be taken for the best."""
    last = tmp_path / "checkpoint-16"
    tiny_model(layer_norm=True).save_pretrained(last)
    state = {"best_model_checkpoint": str(tmp_path / "checkpoint-8"), "global_step": 16}
    (last / "trainer_state.json").write_text(json.dumps(state))
    trainer = trainer_for(tmp_path)
    trainer.args.load_best_model_at_end = True
    job = SimpleNamespace(settings={}, splits={}, model_args=SimpleNamespace(peft=None))
    state = State(job, trainer.args, Resume(last), Extras(), tokens={})
    state.model, state.record = trainer.model, RunRecord({}, {})
    for start in (lambda: trainer.train_from(str(last)), lambda: _prepare_folder(state)):
        with pytest.raises(InputError, match="checkpoint-8, is not whole: it has no manifest"):
            start()
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-16"}


def test_parameters_without_a_gradient_are_told_with_the_flag_that_allows_them(tmp_path, monkeypatch):
    said = "Expected to have finished reduction in the prior iteration before starting a new one. This error indicates"
    for message, kind in ((said, InputError), ("another one", RuntimeError)):

        def train(self, resume_from_checkpoint=None, message=message):
            raise RuntimeError(message)

        monkeypatch.setattr(LstmPoolTrainer, "train", train)
        with pytest.raises(kind) as raised:
            trainer_for(tmp_path).train_from(None)
        assert ("--ddp_find_unused_parameters True" in str(raised.value)) == (kind is InputError)


@pytest.mark.parametrize(("data_seed", "expected"), [(None, 7), (0, 0), (3, 3)])
def test_rows_grouped_by_length_have_the_order_of_the_seed_for_data(tmp_path, data_seed, expected):
    options = {"seed": 7, "data_seed": data_seed, "train_sampling_strategy": "group_by_length", "report_to": []}
    trainer = LstmPoolTrainer(
        tiny_model(),
        TrainingArguments(output_dir=str(tmp_path), use_cpu=True, **options),
        train_dataset=Dataset.from_dict({"input_ids": [[1] * (1 + i % 5) for i in range(60)]}),
    )
    order = list(trainer._get_train_sampler())
    other = LengthGroupedSampler(8, lengths=[1 + i % 5 for i in range(60)], generator=torch.manual_seed(expected))
    assert order == list(other) and sorted(order) == list(range(60))


def short_run(tmp_path):
    """Two steps, with a save after each."""
    rows = [{"input_ids": [5, 6, 7], "attention_mask": [1, 1, 1], "labels": i % 3} for i in range(16)]
    options = {"max_steps": 2, "save_steps": 1, "save_strategy": "steps", "disable_tqdm": True, "report_to": []}
    return LstmPoolTrainer(
        tiny_model(), TrainingArguments(str(tmp_path), use_cpu=True, **options), train_dataset=Dataset.from_list(rows)
    )


@pytest.mark.parametrize("share", [0.5, 1.5])
def test_a_disk_that_is_full_at_a_checkpoint_leaves_the_one_before(tmp_path, monkeypatch, share):
    """Weights are cut off, or the optimizer, which takes twice as much."""
    trainer = short_run(tmp_path)
    size = sum(p.nbytes for p in trainer.model.parameters())
    save = LstmPoolTrainer._save_checkpoint

    def full_at_the_second(self, model, trial):
        if self.state.global_step == 1:
            return save(self, model, trial)
        with full_disk(int(share * size)):
            return save(self, model, trial)

    with monkeypatch.context() as patched:
        patched.setattr(LstmPoolTrainer, "_save_checkpoint", full_at_the_second)
        with pytest.raises(InputError, match="checkpoint-2 cannot be written: .* MB free. Make room"):
            trainer.train_from(None)
    assert [path.name for path in checkpoints_in(tmp_path)] == ["checkpoint-1"]
    again = short_run(tmp_path)
    again.train_from(str(tmp_path / "checkpoint-1"))
    assert again.state.global_step == 2 and damage(tmp_path / "checkpoint-2") == ""


def test_a_disk_that_cannot_hold_a_checkpoint_is_told_before_training(tmp_path, monkeypatch):
    trainer = short_run(tmp_path)
    size = sum(p.nbytes for p in trainer.model.parameters())
    disk = SimpleNamespace(free=3 * size)
    monkeypatch.setattr("lstmpool.training.writing.shutil.disk_usage", lambda path: disk)
    check_room(trainer.model, trainer.args)
    disk.free -= 1
    with pytest.raises(InputError, match=f"takes at least {3 * size / 1e9:.3f} GB in {tmp_path}, found"):
        trainer.train_from(None)
    assert trainer.state.global_step == 0


# ---------------------------------------------------------------------------------------------- training that diverges
ROWS = {"input_ids": [[2, 5 + i % 7, 3] for i in range(8)], "attention_mask": [[1, 1, 1]] * 8, "labels": [0, 1] * 4}


def rows_trainer(tmp_path, model=None, compute_loss_func=None, callbacks=(), **options):
    """A trainer on eight rows, two a batch. It saves at each step."""
    options = {"learning_rate": 1e-3, "max_steps": 3, "save_strategy": "steps", "save_steps": 1} | options
    args = TrainingArguments(
        str(tmp_path), use_cpu=True, report_to=[], disable_tqdm=True, per_device_train_batch_size=2, **options
    )
    rows = Dataset.from_dict(ROWS).with_format("torch")
    return LstmPoolTrainer(
        model or tiny_model(),
        args,
        train_dataset=rows,
        eval_dataset=rows,
        compute_loss_func=compute_loss_func,
        callbacks=list(callbacks),
    )


def test_training_that_diverges_stops_at_once_and_saves_nothing(tmp_path):
    seldom = {"save_strategy": "no", "logging_strategy": "no"}  # so it is not these that stop it
    trainer = rows_trainer(tmp_path, learning_rate=1e30, max_steps=50, **seldom)
    with pytest.raises(Diverged, match="diverged by step [1-4]: .* lstmpool.* found NaN .* Lower --learning_rate"):
        trainer.train_from(None)
    assert not list(tmp_path.iterdir())


def test_no_checkpoint_is_saved_of_weights_that_are_no_numbers_and_earlier_ones_stay(tmp_path):
    class Poison(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            if state.global_step == 2:
                with torch.no_grad():
                    model.base_model.backbone.embeddings.word_embeddings.weight[9, 0] = float("inf")

    with pytest.raises(Diverged, match="by step 2: .* lstmpool.backbone.embeddings.word_embeddings.weight, found"):
        rows_trainer(tmp_path, callbacks=[Poison()]).train_from(None)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]
    assert damage(tmp_path / "checkpoint-1") == ""


@pytest.mark.parametrize("loss", [float("inf"), float("nan")])
def test_a_loss_that_is_no_number_stops_training_when_it_is_logged(tmp_path, loss):
    """Also where it has no gradient, so that the weights stay numbers."""

    def broken(outputs, labels, num_items_in_batch=None):
        return outputs["logits"].sum() * 0 + torch.tensor(loss)

    options = {"logging_steps": 2, "logging_nan_inf_filter": False, "max_grad_norm": 0.0}
    trainer = rows_trainer(tmp_path, compute_loss_func=broken, **options)
    with pytest.raises(Diverged, match=rf"by step 2: expected a number as the training loss, found {loss}"):
        trainer.train_from(None)


def test_metrics_of_logits_that_are_no_numbers_are_not_computed():
    metrics = TrainerMetrics(task_of(SingleLabel))
    with pytest.raises(Diverged, match="found NaN or infinity"):
        metrics(EvalPrediction(np.array([[0.0, np.nan, 1.0]]), np.array([0])))


# ------------------------------------------------------------------------------------------------------ ties of epochs
LOSSES = {1: 0.7, 2: 0.6, 3: 0.8, 4: 0.6, 5: float("nan")}  # by step


class Cut(Exception):
    """Where a kill comes."""


class CutAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise Cut


@pytest.mark.parametrize(("patience", "last"), [(None, 5), (2, 4)])
@pytest.mark.parametrize("killed_at", [None, 2, 3, 4])
def test_where_all_f1_are_zero_the_lowest_loss_is_the_best_one(tmp_path, monkeypatch, patience, last, killed_at):
    """Patience counts by the same rule. A run that goes on from a checkpoint ends with the same."""

    def evaluated(trainer, dataloader, *args, **options):
        metrics = {"eval_loss": LOSSES[trainer.state.global_step], "eval_f1_micro": 0.0}
        return EvalLoopOutput(None, None, metrics, 8)

    def run_of(callbacks, checkpoint=None):
        options = {"load_best_model_at_end": True, "metric_for_best_model": "f1_micro", "greater_is_better": True}
        options |= {"eval_strategy": "steps", "eval_steps": 1, "early_stopping_patience": patience}
        options |= {"restore_callback_states_from_checkpoint": True}
        stoppers = [EarlyStoppingCallback(patience)] if patience else []
        trainer = rows_trainer(tmp_path, callbacks=[*stoppers, *callbacks], max_steps=5, **options)
        trainer.train_from(checkpoint)
        return trainer.state

    monkeypatch.setattr(Trainer, "evaluation_loop", evaluated)
    if killed_at is None:
        state = run_of([])
    else:
        with pytest.raises(Cut):
            run_of([CutAt(killed_at)])
        state = run_of([], str(tmp_path / f"checkpoint-{killed_at - 1}"))
    assert (state.best_global_step, state.global_step) == (2, last)
    assert state.best_model_checkpoint == str(tmp_path / "checkpoint-2")


# -------------------------------------------------------------------------------------------- precision of evaluations
@pytest.mark.parametrize("trained", [False, True])
def test_evaluations_run_in_float32_whatever_the_training(tmp_path, trained):
    """So that the tables are those of the saved model, which is in float32."""
    model = tiny_model(problem_type="regression", num_labels=1)
    trainer = rows_trainer(tmp_path, model, bf16=True, learning_rate=1e-5)
    rows = trainer.train_dataset.remove_columns("labels").add_column("labels", [0.5] * 8)
    trainer.train_dataset = rows
    if trained:
        trainer.train_from(None)
        assert model.forward.__func__ is not type(model).forward  # accelerate's, with autocast
    tokens = {name: torch.tensor(ROWS[name]) for name in ("input_ids", "attention_mask")}
    logits = trainer.predict(rows).predictions
    with torch.no_grad():
        alone = type(model).forward(model.eval(), **tokens).logits.numpy()
    assert np.array_equal(logits, alone) and logits.dtype == np.float32
    assert len(np.unique(logits)) == 7  # in bfloat16, some would be the same
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_tf32_is_for_training_alone(tmp_path, monkeypatch):
    set_to = []
    monkeypatch.setattr("lstmpool.training.loop.measuring.enable_tf32", set_to.append)
    trainer = rows_trainer(tmp_path)
    with in_float32(trainer):
        assert set_to == []
    trainer.args.tf32 = True
    with in_float32(trainer):
        assert set_to == [False]
    assert set_to == [False, True]
