"""How long a run is; what it learns from validation, in which order, and what it learns without validation rows."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lstmpool.train_trainer import main
from lstmpool.training.errors import Diverged
from lstmpool.training.evaluation import learned_head
from lstmpool.training.evaluation.learned_head import ENTRY, HeadThresholds
from lstmpool.training.flags.defaults import Limits
from lstmpool.training.flags.training_arguments import TrainingArguments
from lstmpool.training.loop.progress import TimeLeft, duration
from lstmpool.training.loop.trainer_arguments import within_limits
from lstmpool.training.model.layer_cache import CACHE
from lstmpool.training.model.target_scale import TargetScale
from lstmpool.training.output.lock import HOLDER, LOCK
from lstmpool.training.output.run_record import RunRecord
from lstmpool.training.output.start import Fresh
from lstmpool.training.output.terminal import describe_best, describe_length
from lstmpool.training.runs import fit
from lstmpool.training.runs.fit import _learn_from_validation, _origin
from lstmpool.training.runs.state import Extras, State
from lstmpool.training.tasks.multi_label import MultiLabel
from lstmpool.training.tasks.single_label import SingleLabel

from ...training_fixtures import save_backbone, sentences, task_of, write_csv


STATES = np.array([[-16.0], [-8.0], [8.0], [24.0]])  # (N, H)
LABELS = np.array([[0.0], [1.0], [1.0], [1.0]])  # (N, C)


def state_with(kind=MultiLabel, scale=None, calibrate=False, tune_thresholds=False):
    """The state of a run whose classifier gives its input."""
    head = torch.nn.Linear(1, 1)
    head.load_state_dict({"weight": torch.ones(1, 1), "bias": torch.zeros(1)})
    if scale is not None:
        scale.switch_on(head, fresh=False)
    args = SimpleNamespace(calibrate=calibrate, tune_thresholds=tune_thresholds)
    state = State(SimpleNamespace(task=task_of(kind, outputs=1)), args, Fresh(), Extras(), tokens={})
    state.model = SimpleNamespace(classifier=head)
    state.scale = scale
    return state


def logits_of(state):
    return state.model.classifier(torch.tensor(STATES, dtype=torch.float32)).detach().numpy().astype(float)


def test_scale_temperature_and_thresholds_come_in_this_order(monkeypatch):
    fitted_on = []

    def two(task, logits, labels):
        fitted_on.append(logits.tolist())
        return 2.0

    monkeypatch.setattr(learned_head, "fit_temperature", two)
    state = state_with(scale=TargetScale([[0.0], [16.0]]), calibrate=True, tune_thresholds=True)  # std 8: the scale
    before = logits_of(state)
    assert before.tolist() == [[-2.0], [-1.0], [1.0], [3.0]]
    logits, learned = _learn_from_validation(state, {"validation": before}, {"validation": LABELS})
    assert fitted_on == [STATES.tolist()]  # in units of the scale, the temperature would be another one
    # 8 times, then half of it: -8, -4, 4, 12. All that is true lies above -6, midway between the lowest two.
    assert learned["target_scale"] == [8.0]
    assert learned["temperature"] == 2.0
    assert learned["folded_thresholds"] == [-6.0]
    assert logits["validation"].tolist() == [[-2.0], [2.0], [10.0], [18.0]]
    assert logits_of(state).tolist() == [[-2.0], [2.0], [10.0], [18.0]]


def test_without_validation_rows_no_thresholds_are_looked_for():
    state = state_with(tune_thresholds=True)
    logits, learned = _learn_from_validation(state, {"test": STATES}, {"test": LABELS})
    assert learned == {}
    assert logits["test"].tolist() == logits_of(state).tolist() == STATES.tolist()


@pytest.mark.parametrize(("kind", "learns"), [(MultiLabel, True), (SingleLabel, False)])
def test_thresholds_are_looked_for_with_several_labels_alone(kind, learns):
    state = state_with(kind)
    _, learned = _learn_from_validation(state, {"validation": STATES}, {"validation": LABELS})
    assert ("thresholds" in learned) == learns
    assert logits_of(state).tolist() == STATES.tolist()  # found, and not folded unless asked for


# ------------------------------------------------------------------------ thresholds that earlier runs have folded
def test_thresholds_travel_along_every_chain_of_runs():
    """By hand: 2 and -1 are folded, then a temperature of 4, then 0.5 and 0. Training may undo what is there."""
    tuned = HeadThresholds.none(2).after({"folded_thresholds": [2.0, -1.0]}, trains=True)
    assert tuned.record() == {"settled": [2.0, -1.0], "trained": [0.0, 0.0]}
    calibrated = HeadThresholds.read({ENTRY: tuned.record()}, 2).after({"temperature": 4.0}, trains=False)
    assert calibrated.record() == {"settled": [0.5, -0.25], "trained": [0.0, 0.0]}
    both = calibrated.after({"temperature": 0.5, "folded_thresholds": [0.5, 0.0]}, trains=False)
    assert both.record() == {"settled": [1.5, -0.5], "trained": [0.0, 0.0]}
    further = both.after({"temperature": 0.5, "folded_thresholds": [3.0, 0.0]}, trains=True)
    assert further.record() == {"settled": [3.0, 0.0], "trained": [3.0, -1.0]}
    assert further.after({}, trains=True).record() == {"settled": [0.0, 0.0], "trained": [6.0, -1.0]}
    assert HeadThresholds.none(2).after({"temperature": 3.0}, trains=True).are_none and not further.are_none


def test_what_a_folder_says_of_its_thresholds():
    learned = {"learned_on_validation": {"folded_thresholds": [2.0, -1.0]}}
    assert HeadThresholds.read(learned, 2).record() == {"settled": [2.0, -1.0], "trained": [0.0, 0.0]}  # earlier ones
    assert HeadThresholds.read(learned, 3).are_none  # of other labels
    for wrong in ({}, {ENTRY: 1}, {ENTRY: {"settled": "ab"}}, {ENTRY: {"settled": [1.0, float("nan")]}}):
        assert HeadThresholds.read(wrong, 2).are_none
    assert HeadThresholds.read({ENTRY: {}} | learned, 2).are_none  # this release's own entry counts


@pytest.mark.parametrize(
    ("moved", "left"),
    [
        ([2.0, -1.0], [2.0, -1.0]),  # training has left them as they were
        ([0.0, 0.0], [0.0, 0.0]),  # or has undone them
        ([0.5, -0.75], [0.5, -0.75]),  # or a part of them
        ([-3.0, 4.0], [0.0, 0.0]),  # never more than all, nor the other way
        ([9.0, -9.0], [2.0, -1.0]),
    ],
)
def test_how_much_of_the_thresholds_training_has_left(moved, left):
    """Of 100 rows a half and a quarter have the labels. Honest logits for all rows are log 1 and log 1/3."""
    labels = np.stack([np.arange(100) % 2, np.arange(100) % 4 == 0], axis=1).astype(float)
    honest = np.log([[1.0, 1 / 3]]).repeat(100, axis=0)
    settled = np.array([0.25, 0.5])
    thresholds = HeadThresholds(settled, np.array([2.0, -1.0]))
    found = thresholds.left(task_of(MultiLabel, 2), honest - moved - settled, labels)
    np.testing.assert_allclose(found, settled + left, atol=1e-6)
    two = HeadThresholds(np.zeros(2), np.array([0.0, 2.0]))  # of two classes, the second one's alone is moved
    logits = np.stack([honest[:, 0], honest[:, 0] - moved[0]], axis=1)
    np.testing.assert_allclose(two.left(task_of(SingleLabel, 2), logits, labels[:, 0]), [0.0, left[0]], atol=1e-6)


# ------------------------------------------------------------------------------------------------------ how long it is
BY_EPOCH = {"eval_strategy": "epoch", "save_strategy": "epoch", "logging_strategy": "epoch"}


FEW = Limits(300, 10, 10)


def arguments(limits=FEW, **values):
    values = {"per_device_train_batch_size": 16, "do_train": True} | BY_EPOCH | values
    args = TrainingArguments("out", use_cpu=True, report_to=[], **values)
    args.limits = limits
    return args


def how_often(args):
    pairs = [(args.eval_strategy, args.eval_steps), (args.save_strategy, args.save_steps)]
    return [strategy.value if strategy == "epoch" else steps for strategy, steps in pairs]


def test_a_run_over_few_rows_is_long_enough_and_is_evaluated_and_saved_ten_times():
    args = within_limits(arguments(), rows=300)
    assert args.num_train_epochs == 16 and how_often(args) == [31, 31] and args.logging_steps == 31
    assert describe_length(args, 300) == (
        "Training: 304 steps on 300 rows, 16 epochs, since 3 are fewer than 300 steps; "
        "--num_train_epochs sets another number."
    )
    assert within_limits(args, rows=300) is not args and how_often(within_limits(args, rows=300)) == [31, 31]
    summed = within_limits(arguments(gradient_accumulation_steps=2), rows=300)
    assert summed.num_train_epochs == 30 and how_often(summed) == [30, 30]  # 10 steps an epoch
    assert within_limits(arguments(), rows=1000).num_train_epochs == 5
    assert how_often(within_limits(arguments(), rows=1000)) == ["epoch", "epoch"]


def test_long_texts_make_a_run_shorter_but_never_shorter_than_its_epochs():
    args = within_limits(arguments(), rows=300, tokens=62.5)  # 1,000 tokens a step: 100 steps, and 19 an epoch
    assert args.num_train_epochs == 6 and how_often(args) == ["epoch", "epoch"]
    assert "114 steps on 300 rows, 6 epochs, since 3 are fewer than 100 steps" in describe_length(args, 300)
    args = within_limits(arguments(), rows=300, tokens=500)
    assert args.num_train_epochs == 3 and describe_length(args, 300) == "Training: 57 steps on 300 rows, 3 epochs."


def test_what_was_named_stays():
    args = within_limits(arguments(Limits(300, 0, 10)), rows=300)
    assert args.num_train_epochs == 16 and how_often(args) == ["epoch", "epoch"] and args.logging_steps == 31
    args = within_limits(arguments(Limits(), num_train_epochs=2), rows=300)
    assert args.num_train_epochs == 2 and describe_length(args, 300) == "Training: 38 steps on 300 rows, 2 epochs."
    args = within_limits(arguments(Limits(), max_steps=60), rows=300)
    assert describe_length(args, 300) == "Training: 60 steps on 300 rows, 3.2 epochs."
    by_steps = {"eval_strategy": "steps", "eval_steps": 7, "save_strategy": "steps", "save_steps": 7}
    assert how_often(within_limits(arguments(Limits(300, 0, 10), **by_steps), rows=300)) == [7, 7]


NAN = float("nan")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({0: 0.5, 10: 0.75, 20: 0.5}, "Stage 2 was kept, at epoch 1: validation macro F1 0.750, 0.500 after stage 1."),
        ({0: 0.75, 10: 0.5, 20: 0.625}, "Stage 1 was kept: validation macro F1 0.750; training everything from there "
         "gave 0.625 at best."),
        ({0: 0.5, 10: NAN, 20: NAN}, "Stage 1 was kept: validation macro F1 0.500; training everything from there "
         "gave undefined at best."),
        ({10: 0.5, 20: 0.75}, "Epoch 2 was kept: validation macro F1 0.750."),  # stage 1 could not be kept
    ],
)  # fmt: skip
def test_the_run_says_which_stage_was_kept_and_by_how_much(values, said):
    best = max(values, key=lambda step: -1 if np.isnan(values[step]) else values[step])
    history = [{"step": 0, "epoch": 0, "start": {"f1_macro": 0.25}}]
    history += [{"step": step, "eval_f1_macro": value} for step, value in values.items()]
    state = SimpleNamespace(
        best_model_checkpoint="out/checkpoint", best_global_step=best, best_metric=values[best], epoch=2.0,
        global_step=20, log_history=history,
    )  # fmt: skip
    args = SimpleNamespace(
        do_train=True, load_best_model_at_end=True, metric_for_best_model="f1_macro", greater_is_better=True
    )
    titles = {"f1_macro": "macro F1"}
    assert describe_best(SimpleNamespace(state=state, args=args), titles) == said


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.2, "1 s"), (99.5, "100 s"), (120, "2 min"), (5900, "98 min"), (9000, "2.5 h")]
)
def test_times_are_said_in_their_unit(seconds, said):
    assert duration(seconds) == said


def test_the_time_that_is_left_is_said_once_after_ten_steps(monkeypatch, capsys):
    """Steps of half a minute, the first of which took an hour."""
    callback, times = TimeLeft(), iter([3600.0 + 30 * step for step in (0, 10)])
    monkeypatch.setattr("lstmpool.training.loop.progress.time.monotonic", lambda: next(times))
    callback.on_train_begin(None, None, None)
    for step in range(21, 61):  # of a run that goes on
        state = SimpleNamespace(global_step=step, max_steps=131, is_world_process_zero=True)
        callback.on_step_end(None, state, None)
        assert capsys.readouterr().out == ("about 50 min left\n" if step == 31 else "")


def test_a_default_run_on_few_rows_has_its_steps_also_where_it_was_cut_off(tmp_path, monkeypatch, capsys):
    save_backbone(tmp_path / "backbone")
    for split, n in (("train", 36), ("validation", 8)):
        write_csv(tmp_path / f"{split}.csv", {"text": sentences(n), "label": ["a", "b"] * (n // 2)})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lstmpool.training.flags.defaults.LEAST_STEPS", 80)  # half of them for stage 2
    monkeypatch.setattr("lstmpool.training.runs.contrast.FEWEST_TO_GO_ON", 36)
    words = ["--backbone=backbone", "--train_file=train.csv", "--output_dir=out", "--use_cpu", "--lstm_hidden_size=4"]
    words += ["--validation_file=validation.csv", "--report_to=none", "--save_total_limit=99", "--disable_tqdm=True"]
    words += ["--bf16=False"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "Training: 42 steps on 36 rows, 14 epochs, since 3 are fewer than 40 steps" in said and " left\n" in said
    saved = {int(path.name.removeprefix("checkpoint-")) for path in (tmp_path / "out").glob("checkpoint-*")}
    assert saved == {0, 5, 10, 15, 20, 25, 30, 35, 40, 42} and said.count("\nepoch ") == 10
    record = RunRecord.read(tmp_path / "out")
    weights = (tmp_path / "out" / "model.safetensors").read_bytes()
    (tmp_path / "out" / "run.json").write_text(json.dumps(vars(record) | {"finished": False}))
    for step in saved - {0, 5, 10}:
        (tmp_path / "out" / f"checkpoint-{step}" / "manifest.json").unlink()
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "It goes on from out/checkpoint-10." in said
    assert "with which this run began" not in said
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == weights


def test_where_layer_states_came_from_is_said():
    both = _origin({"train": True, "validation": True})
    assert both == f"Layer states: computed once, and kept in {CACHE}."
    assert _origin({"train": False, "validation": False}) == f"Layer states: read from disk, in {CACHE}."
    assert _origin({"train": False, "validation": True, "test": True}) == (
        f"Layer states: read from disk, in {CACHE}; those of validation, test were computed, and are kept there."
    )


def test_a_run_from_python_has_the_folder_to_itself(tmp_path):
    """Its lock is that of the command."""
    job = SimpleNamespace(splits={}, task=None)
    args = SimpleNamespace(output_dir=str(tmp_path / "out"), process_index=0, accelerator_config=None)

    def look_on(state):
        assert {path.name for path in (tmp_path / "out").iterdir()} == {LOCK, HOLDER}
        raise Diverged("no number")

    with pytest.MonkeyPatch.context() as patched, pytest.raises(Diverged):
        patched.setattr(fit, "read", look_on)
        fit.fit(job, args, Fresh(), {})
    assert not (tmp_path / "out").exists()
