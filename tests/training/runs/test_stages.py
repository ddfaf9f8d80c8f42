"""Two stages: what is kept, what is shared, and that a run which was cut off ends as one that was not."""

import json
import os
import shutil
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerState

from lstmpool.train_trainer import main
from lstmpool.training.flags.arguments import ModelArguments
from lstmpool.training.flags.defaults import Limits
from lstmpool.training.flags.training_arguments import TrainingArguments
from lstmpool.training.loop.checkpoints import checkpoints_in
from lstmpool.training.loop.trainer import LstmPoolTrainer
from lstmpool.training.model import layer_cache, linear_start
from lstmpool.training.output.run_record import RunRecord
from lstmpool.training.output.terminal import describe_best
from lstmpool.training.runs import finish, stages
from lstmpool.training.runs import search as hp_search
from lstmpool.training.runs.job import why_one_stage
from lstmpool.training.runs.stages import as_begun
from lstmpool.training.tasks.single_label import SingleLabel

from ...training_fixtures import save_backbone, sentences, task_of, write_csv


EVERY_2 = ["--max_steps=6", "--eval_strategy=steps", "--eval_steps=2", "--save_steps=2", "--logging_steps=2"]
RUINOUS = ["--learning_rate=0.9", "--head_learning_rate=0.9", "--warmup_steps=0", "--max_grad_norm=0"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A backbone, and rows whose label is whether the text has a certain word."""
    folder = tmp_path_factory.mktemp("data")
    save_backbone(folder / "backbone")
    for split, n in (("train", 36), ("validation", 12)):
        texts = sentences(n)
        labels = ["yes" if i % 16 < 8 else "no" for i in range(n)]
        numbers = [f"{20_000 + 500 * (i % 16)}.5" for i in range(n)]
        write_csv(folder / f"{split}.csv", {"text": texts, "label": labels, "price": numbers})
    return folder


@pytest.fixture
def work(data, tmp_path, monkeypatch):
    """A folder to work in, with caches and studies of its own. Little is tried in stage 1, and no plot is drawn."""
    for path in data.iterdir():
        os.symlink(path, tmp_path / path.name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(layer_cache, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(hp_search, "STUDIES", tmp_path / "studies")
    monkeypatch.setattr(linear_start, "STRENGTHS", np.array([0.01, 1.0]))
    monkeypatch.setattr(linear_start, "FOLDS", 2)
    monkeypatch.setattr(linear_start, "MOST_ITERATIONS", 20)
    monkeypatch.setattr(finish, "plots_of", lambda *args: {})
    return tmp_path


def train(*words, validation=True, output="out"):
    base = ["--backbone=backbone", "--train_file=train.csv", f"--output_dir={output}", "--use_cpu"]
    base += ["--lstm_hidden_size=4", "--report_to=none", "--disable_tqdm=True", "--bf16=False"]
    base += ["--validation_file=validation.csv"] if validation else []
    base += [] if "--baselines" in words else ["--baselines=False"]
    base += [] if any(word.startswith("--label_column_name") for word in words) else ["--label_column_name=label"]
    return main([*base, *words])


def weights(folder):
    return (folder / "model.safetensors").read_bytes()


def saved_steps(folder):
    return sorted(int(path.name.removeprefix("checkpoint-")) for path in checkpoints_in(folder))


def cut_off_after(step, folder):
    """Makes a finished run look as if it had been killed soon after a step."""
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(record | {"finished": False}))
    for name in ("model.safetensors", "metrics.json"):
        (folder / name).unlink()
    for later in saved_steps(folder):
        if later > step:
            shutil.rmtree(folder / f"checkpoint-{later}")


# ----------------------------------------------------------------------------------------------------------- going on
@pytest.mark.parametrize(
    "settings",
    [
        ["--baselines"],
        pytest.param(["--label_column_name=price"], marks=pytest.mark.slow),
        pytest.param(["--freeze_backbone"], marks=pytest.mark.slow),
    ],
)
def test_a_run_that_goes_on_ends_as_one_that_never_stopped(work, monkeypatch, capsys, settings):
    assert train(*EVERY_2, "--save_total_limit=99", *settings) == 0
    out = work / "out"
    expected, metrics = weights(out), (out / "metrics.json").read_text()
    assert saved_steps(out) == [0, 2, 4, 6] and "Stage 1 of 2: " in capsys.readouterr().out
    monkeypatch.setattr(stages, "fit_start", lambda *args: pytest.fail("stage 1 is repeated"))
    for step in (4, 0):
        cut_off_after(step, out)
        assert train(*EVERY_2, "--save_total_limit=99", *settings) == 0
        assert f"It goes on from out/checkpoint-{step}." in capsys.readouterr().out
        assert weights(out) == expected and (out / "metrics.json").read_text() == metrics


@pytest.mark.slow
def test_what_is_killed_in_stage_1_or_at_its_save_begins_anew_and_ends_alike(work, monkeypatch):
    assert train(*EVERY_2) == 0
    expected, metrics = weights(work / "out"), (work / "out" / "metrics.json").read_text()

    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    for place in ((layer_cache, "_write"), (stages, "fit_start"), (LstmPoolTrainer, "_save_checkpoint")):
        shutil.rmtree(work / "out")
        with monkeypatch.context() as patched:
            patched.setattr(*place, killed)
            assert train(*EVERY_2) == 130
        assert place[1] == "_write" or len(list((work / "cache").rglob("*.arrow"))) == 1  # for the run that goes on
        assert train(*EVERY_2) == 0
        assert weights(work / "out") == expected and (work / "out" / "metrics.json").read_text() == metrics
        assert not list((work / "cache").rglob("*.arrow"))


def test_a_run_whose_folder_has_moved_still_ends_with_its_best_start(work, capsys):
    assert train(*EVERY_2, *RUINOUS, "--save_total_limit=2") == 0
    expected = weights(work / "out")
    cut_off_after(2, work / "out")
    shutil.move(work / "out", work / "there")
    assert train(*EVERY_2, *RUINOUS, "--save_total_limit=1", output="there") == 0
    assert "Stage 1 was kept: " in capsys.readouterr().out
    assert weights(work / "there") == expected and saved_steps(work / "there") == [0]


# ------------------------------------------------------------------------------------------------------- checkpoint 0
def test_a_start_that_training_ruins_is_kept(work, capsys):
    assert train(*EVERY_2, *RUINOUS, "--save_total_limit=1") == 0
    said = capsys.readouterr().out
    assert "Stage 1 was kept: validation accuracy " in said and "; training everything from there gave " in said
    out = work / "out"
    assert saved_steps(out) == [0]
    assert weights(out) == weights(out / "checkpoint-0")


def poor_start(fit_start):
    """A stage 1 that gives one answer to all rows, too sure of it."""

    def fit(*args, **kwargs):
        start = fit_start(*args, **kwargs)
        return replace(start, weight=0 * start.weight, bias=5 * torch.arange(len(start.bias)).float())

    return fit


def test_a_start_that_training_improves_is_removed_as_other_checkpoints(work, monkeypatch, capsys):
    monkeypatch.setattr(stages, "fit_start", poor_start(stages.fit_start))
    words = [*EVERY_2, "--metric_for_best_model=loss", "--head_learning_rate=0.1", "--save_total_limit=1"]
    assert train(*words) == 0
    assert "Stage 2 was kept, at epoch " in capsys.readouterr().out
    assert 0 not in saved_steps(work / "out")


def counted(calls, function):
    return lambda *args, **more: calls.append(1) or function(*args, **more)


def test_without_a_best_model_the_start_is_neither_evaluated_nor_saved(work, monkeypatch, capsys):
    evaluated = []
    evaluate = counted(evaluated, LstmPoolTrainer.evaluation_loop)
    monkeypatch.setattr(LstmPoolTrainer, "evaluation_loop", evaluate)
    assert train(*EVERY_2, "--load_best_model_at_end=False", "--save_total_limit=99") == 0
    assert len(evaluated) == 4 and saved_steps(work / "out") == [2, 4, 6]
    assert "The model after the last step, 6, was kept." in capsys.readouterr().out
    assert "stage_1_out_of_fold" in json.loads((work / "out" / "metrics.json").read_text())


@pytest.mark.parametrize("more", [pytest.param([], marks=pytest.mark.slow), ["--eval_on_start"]])
def test_early_stopping_counts_from_the_start(work, more):
    words = [*EVERY_2, "--max_steps=20", *RUINOUS, "--early_stopping_patience=2", "--metric_for_best_model=loss"]
    assert train(*words, *more, "--save_total_limit=99") == 0
    assert saved_steps(work / "out") == [0, 2, 4]


def trained(values, best_step, has_start=True):
    """A Trainer whose log has the validation accuracy `values`, by step."""
    log = [{"epoch": 0, "step": 0, "start": {}}] if has_start else []
    log += [{"step": step, "eval_accuracy": value} for step, value in values.items()]
    state = TrainerState(
        epoch=2.0, global_step=4, best_global_step=best_step, best_metric=values.get(best_step), log_history=log
    )
    state.best_model_checkpoint = f"out/checkpoint-{best_step}"
    args = SimpleNamespace(
        do_train=True, load_best_model_at_end=True, metric_for_best_model="accuracy", greater_is_better=True
    )
    return SimpleNamespace(state=state, args=args)


@pytest.mark.parametrize(
    ("values", "best", "has_start", "said"),
    [
        ({0: 0.5, 2: 0.75, 4: 0.25}, 2, True, "Stage 2 was kept, at epoch 1: validation accuracy 0.750, 0.500 after"),
        (
            {0: 0.5, 2: 0.25, 4: 0.375},
            0,
            True,
            "Stage 1 was kept: validation accuracy 0.500; training everything from ",
        ),
        ({0: 0.5, 2: float("nan")}, 0, True, " from there gave undefined at best."),
        ({0: float("nan"), 2: 0.5}, 2, True, "validation accuracy 0.500, undefined after stage 1."),
        ({2: 0.75, 4: 0.25}, 2, True, "Epoch 1 was kept: validation accuracy 0.750."),  # the start was not evaluated
        ({0: 0.5, 2: 0.75}, 2, False, "Epoch 1 was kept: validation accuracy 0.750."),  # one stage, --eval_on_start
    ],
)
def test_what_was_kept_is_said(values, best, has_start, said):
    assert said in describe_best(trained(values, best, has_start), {})


# ------------------------------------------------------------------------------------------------------------ sharing
@pytest.fixture
def passes(monkeypatch):
    """The files for which the backbone ran."""
    found, write = [], layer_cache._write
    monkeypatch.setattr(layer_cache, "_write", lambda *args: found.append(args[0]) or write(*args))
    return found


def test_folds_share_one_file_of_layer_states(work, monkeypatch, passes, capsys):
    monkeypatch.setattr(stages, "ROWS", 20)  # of 36, which every fold draws alike
    assert train("--cv_folds=2", "--max_steps=2", validation=False) == 0
    assert len(passes) == 1 and capsys.readouterr().out.count("Stage 1 of 2: ") == 2
    assert not passes[0].exists() and not list((work / "cache").rglob("*.arrow"))


@pytest.mark.slow
def test_trials_and_the_final_run_share_one_file_of_layer_states(work, passes, capsys):
    space = '--hp_space={"head_learning_rate": [1e-4, 1e-3, "log"]}'
    assert train("--hp_search=2", space, "--max_steps=2") == 0
    assert len(passes) == 1 and not passes[0].exists()


def test_what_commands_have_left_a_week_ago_is_removed(work):
    own, new, old = (layer_cache.states_folder(name) for name in ("own", "new", "old"))
    for folder in (own, new, old):
        folder.mkdir(parents=True)
        (folder / "states.arrow").write_text("")
    a_week = 7 * 24 * 60 * 60
    os.utime(old, (0, time.time() - a_week - 60))
    os.utime(new, (0, time.time() - a_week + 600))
    layer_cache.forget_states(own)
    assert [path.exists() for path in (own, new, old)] == [False, True, False]


# ---------------------------------------------------------------------------------------------------------- one stage
def test_without_room_for_the_states_there_is_one_stage(work, monkeypatch, capsys):
    usage = layer_cache.shutil.disk_usage

    def room(folder):
        return SimpleNamespace(free=100) if "first_stage" in str(folder) else usage(folder)

    monkeypatch.setattr(layer_cache.shutil, "disk_usage", room)
    assert train("--max_steps=2") == 0
    said = capsys.readouterr()
    (line,) = [line for line in said.out.splitlines() if "stage" in line.lower()]
    assert line.startswith("One stage: the layer states of train take 0.000 GB in ") and "--layer_cache" not in line
    assert not said.err and "stage_1_out_of_fold" not in json.loads((work / "out" / "metrics.json").read_text())


def test_where_the_cache_cannot_be_written_there_is_one_stage(work, monkeypatch, capsys):
    (work / "cache").write_text("a file")
    assert train("--max_steps=2") == 0
    assert "One stage: the layer cache in " in capsys.readouterr().out


def reason(outputs=3, **flags):
    args = SimpleNamespace(fsdp=flags.pop("fsdp", []), deepspeed=None)
    return why_one_stage(ModelArguments(backbone="b", **flags), args, task_of(SingleLabel, outputs))


def test_why_there_is_one_stage():
    assert reason() == ""
    assert reason(stages="one") == "as --stages says"
    assert reason(original_defaults=True) == "as --original_defaults says"
    assert reason(init_from="m") == "the model of --init_from has been trained"
    assert reason(reinit_layers=1) == "--reinit_layers replaces layers that a linear model would read"
    assert reason(fsdp=["full_shard"]) == "the model is spread over processes"
    assert "up to 1000 outputs, found 1001" in reason(outputs=1001)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--reinit_layers=1"], ["One stage: --reinit_layers replaces layers that a linear model would read."]),
        (["--stages=one"], []),
    ],
)
def test_a_run_of_one_stage_has_no_skip_and_says_why_if_no_flag_does(work, capsys, words, said):
    assert train("--max_steps=2", *words) == 0
    assert [line for line in capsys.readouterr().out.splitlines() if "stage" in line.lower()] == said
    assert "linear_skip.weight" not in load_file(work / "out" / "model.safetensors")


def test_the_original_defaults(work, capsys):
    assert train("--original_defaults") == 0
    said = capsys.readouterr().out
    assert "Training: 9 steps on 36 rows, 3 epochs." in said and "cls vectors" in said and "tage" not in said
    shutil.rmtree(work / "out")
    assert train("--original_defaults", "--token_pooling=mean", "--num_train_epochs=1") == 0
    said = capsys.readouterr().out
    assert "Training: 3 steps on 36 rows, 1 epoch." in said and "mean vectors" in said


# --------------------------------------------------------------------------------------------------- earlier releases
NEW_FIELDS = ("linear_skip", "pair_encoding", "standardize_layers")
NEW_SETTINGS = ("stages", "original_defaults", *NEW_FIELDS, *Limits()._asdict())


def test_a_run_that_an_older_release_began_goes_on_as_it_would_have_there(work, capsys):
    assert train("--original_defaults", "--save_total_limit=99", validation=False) == 0
    out = work / "out"
    expected = weights(out)
    cut_off_after(6, out)
    record = json.loads((out / "run.json").read_text())
    settings = {name: value for name, value in record["settings"].items() if name not in NEW_SETTINGS}
    (out / "run.json").write_text(json.dumps(record | {"settings": settings}))
    for again in range(2):  # the record stays as an older release's
        if again:
            cut_off_after(3, out)
        capsys.readouterr()
        assert train("--save_total_limit=99", validation=False) == 0
        said = capsys.readouterr().out
        assert "It goes on from out/checkpoint-" in said and "tage" not in said.replace("Stage", "tage")
        assert weights(out) == expected


def test_only_what_an_older_release_began_with_these_flags_keeps_its_defaults(tmp_path):
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to=[])
    args.limits = Limits(200, 10, 10, 500)
    args.bf16 = True
    model = ModelArguments(backbone="b")
    settings = {"learning_rate": 1e-5, "bf16": True, "stages": "two", "few_rows": 500}

    def begun(record):
        record.write(tmp_path)
        of_model, of_training, known = as_begun(model, args, settings)
        return of_model.original_defaults, of_training.limits, of_training.bf16, known

    older = {"learning_rate": 1e-5, "bf16": False}
    assert begun(RunRecord(older, {})) == (True, Limits(), False, older)
    as_now = (False, args.limits, True, settings)
    assert begun(RunRecord(older | {"stages": "two"}, {})) == as_now
    assert begun(RunRecord(older, {}, finished=True)) == as_now
    assert begun(RunRecord(older | {"learning_rate": 1.0}, {})) == as_now


# ------------------------------------------------------------------------------------------------------------ numbers
def test_the_numbers_of_stage_1_are_in_the_targets_own_units(work, capsys):
    assert train(*EVERY_2, *RUINOUS, "--label_column_name=price") == 0
    metrics = json.loads((work / "out" / "metrics.json").read_text())
    spread = np.std([500 * (i % 16) for i in range(36)])
    assert 0.2 < metrics["stage_1_out_of_fold"]["mse"] ** 0.5 / spread < 5
    assert metrics["results"]["validation"]["mse"] ** 0.5 < 5 * spread


def test_a_single_row_has_no_stage_1(work, capsys):
    write_csv(work / "one.csv", {"text": ["red cat"], "label": ["1.5"]})
    assert train("--train_file=one.csv", "--max_steps=1", validation=False) == 0
    assert "One stage: a linear model needs 2 rows or more, found 1." in capsys.readouterr().out
