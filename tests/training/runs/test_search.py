"""A search of settings: what is tried, what is kept of it, and that it goes on wherever it was cut off."""

import gc
import importlib.util
import json
import math
import os
import shutil
import signal
import time
import weakref
from dataclasses import replace
from types import SimpleNamespace

import pandas
import pytest
import torch

from lstmpool.train_trainer import main
from lstmpool.training.command_line import parse_arguments
from lstmpool.training.errors import Diverged, InputError
from lstmpool.training.flags.training_arguments import TrainingArguments
from lstmpool.training.model.layer_cache import CACHE
from lstmpool.training.output.run_record import RunRecord, settings_of
from lstmpool.training.output.start import Resume
from lstmpool.training.runs import search as hp_search
from lstmpool.training.runs.job import read_job
from lstmpool.training.runs.search import Search, check_goes_on, unsearched
from lstmpool.training.runs.search_space import space_of

from ... import kills
from ...damage import damage_file


optuna = pytest.importorskip("optuna")


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("work")
    kills.prepare(folder)
    return folder


@pytest.fixture
def studies(tmp_path, monkeypatch):
    monkeypatch.setattr(hp_search, "STUDIES", tmp_path / "studies")
    return tmp_path / "studies"


def search(work, trials, *words, output="out"):
    words = [*kills.command(work, [f"--hp_search={trials}", *words], output)]
    model_args, data_args, args, places = parse_arguments(words, "")
    settings = settings_of(model_args, data_args, args)
    job = read_job(model_args, data_args, args, places, settings, words)
    return Search(job, args, space_of(model_args, args), job.encode())


class Killed(BaseException):
    """Stands for a kill: nobody can catch it."""


@pytest.fixture
def trained(monkeypatch):
    """In the place of a run: its metric is best at a head's rate of 1e-3. Keeps what each trial was given."""
    seen = SimpleNamespace(trials=[], tokens=[], kill_at=None, diverges=(), too_large=(), left=[], alive=[])

    def fit(job, args, start, tokens):
        number = len(seen.trials)
        seen.alive.append([left for left in seen.left if left() is not None])
        seen.trials.append((job, args))
        seen.tokens.append(tokens)
        folder = args.output_dir
        record = replace(RunRecord.of(job.settings, job.splits), files=["model.safetensors", "run.json"])
        hp_search.Path(folder).mkdir(exist_ok=True)
        record.write(hp_search.Path(folder))
        hp_search.Path(folder, "model.safetensors").write_text("large")
        if number == seen.kill_at:
            raise Killed
        if number in seen.diverges:
            raise Diverged("no number")
        if number in seen.too_large:
            model = torch.nn.Identity()
            model.trainer = SimpleNamespace(model=model)  # as they refer to each other
            seen.left.append(weakref.ref(model))
            raise torch.OutOfMemoryError("CUDA out of memory")
        accuracy = 1 - abs(math.log10(args.head_learning_rate) + 3) / 10
        hp_search.Path(folder, "metrics.json").write_text(
            json.dumps({"results": {"validation": {"accuracy": accuracy}}})
        )
        record.finish(hp_search.Path(folder))

    monkeypatch.setattr(hp_search, "fit", fit)
    return seen


def tried(trained):
    return [(args.learning_rate, args.head_learning_rate, args.num_train_epochs) for _, args in trained.trials]


def test_the_settings_of_the_command_come_first_and_the_best_of_all_are_taken(work, studies, trained, capsys):
    job, args = search(work, 4, "--head_learning_rate=2e-3", "--test_file=" + str(work / "validation.csv")).run()
    values = tried(trained)
    assert len(values) == 4 == len(set(values)) and values[0] == (5e-5, 2e-3, 4.0)
    best = min(values, key=lambda of: abs(math.log10(of[1]) + 3))
    assert (args.learning_rate, args.head_learning_rate, args.num_train_epochs) == best
    assert args.output_dir == str(work / "out") and args.do_predict and "test" in job.splits
    # what is found counts as the settings of the run, for its record and its card
    assert [job.settings[name] for name in ("learning_rate", "head_learning_rate", "num_train_epochs")] == list(best)
    for (of_trial, given), tokens in zip(trained.trials, trained.tokens, strict=True):
        assert set(of_trial.splits) == {"train", "validation"} == set(tokens) and not given.do_predict
    table = pandas.read_csv(next(studies.iterdir()) / "hp_search.csv")
    assert table["accuracy"].is_monotonic_decreasing and table["head_learning_rate"][0] == best[1]
    told = capsys.readouterr().out
    assert f"--learning_rate {best[0]!r} --head_learning_rate {best[1]!r} --num_train_epochs {best[2]!r}" in told
    kept = {path.name for path in next(studies.iterdir()).glob("trial-*/*")}
    assert kept == {"metrics.json", "run.json"}  # and no weights


@pytest.mark.slow
def test_the_number_is_the_total_and_rows_of_the_test_make_no_other_study(work, studies, trained):
    whole = search(work, 5)
    whole.run()
    first = tried(trained)
    trained.trials.clear()
    search(work, 2, "--seed=7").run()  # another study
    trained.trials.clear()
    hp_search.shutil.rmtree(whole.folder)
    search(work, 2).run()
    search(work, 2).run()
    assert tried(trained) == first[:2]
    search(work, 5, "--test_file=" + str(work / "validation.csv"), "--overwrite").run()
    assert tried(trained) == first
    assert len(list(studies.iterdir())) == 2


@pytest.mark.parametrize("kill_at", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_a_trial_that_was_cut_off_is_tried_again_in_its_folder(work, studies, trained, kill_at):
    search(work, 4).run()
    expected = tried(trained)
    hp_search.shutil.rmtree(studies)
    trained.trials.clear()
    trained.kill_at = kill_at
    with pytest.raises(Killed):
        search(work, 4).run()
    best = search(work, 4).run()[1]
    values = tried(trained)
    assert values.pop(kill_at + 1) == values[kill_at] and values == expected
    assert trained.trials[kill_at][1].output_dir == trained.trials[kill_at + 1][1].output_dir
    assert (best.learning_rate, best.head_learning_rate, best.num_train_epochs) in expected
    states = [
        trial.state.name
        for trial in optuna.load_study(
            study_name=None, storage=f"sqlite:///{next(studies.iterdir()) / 'study.db'}"
        ).trials
    ]
    assert states.count("FAIL") == 1 and states.count("COMPLETE") == 4 and len(states) == 5


def test_other_weights_at_the_same_place_make_another_study(work, studies, monkeypatch, tmp_path):
    shutil.copytree(work / "backbone", tmp_path / "backbone")
    monkeypatch.chdir(tmp_path)
    first = search(work, 1, "--backbone=backbone").folder
    assert search(work, 2, "--backbone=backbone").folder == first
    with (tmp_path / "backbone" / "model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"1")
    assert search(work, 1, "--backbone=backbone").folder != first


def test_studies_are_not_in_the_layer_cache_which_may_be_deleted():
    assert CACHE not in hp_search.STUDIES.parents and hp_search.STUDIES.parent == CACHE.parent


def test_a_kill_before_the_trial_that_is_repeated_is_marked_as_failed_repeats_it_once(work, studies, monkeypatch):
    def kill(*args, **kwargs):
        raise Killed

    one, study = search(work, 2), optuna.create_study()
    trial = study.ask()
    values = {name: hp_search._suggest(trial, name, of) for name, of in one.space.items()}
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(optuna.study.Study, "tell", kill)  # the repeat is enqueued by then
        one._repeat_cut_off(study)
    one._repeat_cut_off(study)
    assert [trial.state.name for trial in study.trials] == ["FAIL", "WAITING"]
    again = study.ask()
    assert values == {name: hp_search._suggest(again, name, of) for name, of in one.space.items()}
    assert again.user_attrs == {"folder": "trial-0"}


def test_a_trial_that_was_cut_off_goes_on_when_the_test_rows_are_others(work, studies, trained):
    trained.kill_at = 0
    with pytest.raises(Killed):
        search(work, 1).run()
    search(work, 1, "--test_file=" + str(work / "validation.csv"), "--max_predict_samples=3").run()
    assert len(trained.trials) == 2 and len(list(studies.iterdir())) == 1


def test_a_kill_between_the_end_of_a_run_and_its_entry_in_the_study_costs_nothing(work, studies, trained, monkeypatch):
    def kill(*args, **kwargs):
        raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(optuna.study.Study, "tell", kill)
        search(work, 2).run()
    search(work, 2).run()
    assert len(trained.trials) == 2


def test_a_kill_while_settings_are_taken_loses_none(work, studies, trained, monkeypatch):
    def kill(*args, **kwargs):
        raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(hp_search, "_suggest", kill)
        search(work, 1).run()
    search(work, 1).run()
    assert tried(trained) == [(5e-5, 1e-3, 4.0)]  # those of the command, as if nothing had been


@pytest.mark.parametrize(("kind", "at"), [("zeroed", 0), ("cut", 0.5)])
def test_a_damaged_study_is_one_line_and_a_new_one_repeats_no_run(work, studies, trained, kind, at):
    search(work, 2).run()
    (database,) = studies.glob("*/study.db")
    damage_file(database, kind, at)
    with pytest.raises(InputError, match=f"the study {database} is damaged: .* Remove it"):
        search(work, 2).run()
    database.unlink()
    search(work, 3).run()
    assert len(trained.trials) == 3


def test_what_diverges_counts_and_is_not_taken(work, studies, trained, capsys):
    trained.diverges = (0,)
    args = search(work, 2).run()[1]
    assert len(trained.trials) == 2 and args.head_learning_rate == trained.trials[1][1].head_learning_rate
    assert "diverged" in capsys.readouterr().out
    trained.diverges = range(9)
    with pytest.raises(InputError, match="all 1 trials have diverged. Lower the rates"):
        search(work, 1, "--seed=1").run()


def test_whole_numbers_are_printed_plainly():
    values = {"lstm_hidden_size": 1024, "num_train_epochs": 4.0, "learning_rate": 1.234e-5, "max_grad_norm": 0.0}
    assert hp_search._words(values) == (
        "lstm_hidden_size 1024, num_train_epochs 4, learning_rate 1.23e-05, max_grad_norm 0"
    )


def test_what_needs_too_much_memory_counts_and_gives_it_back(work, studies, trained, capsys, request):
    trained.too_large = (0,)
    request.addfinalizer(gc.enable)
    gc.disable()  # or it might come to it by chance
    args = search(work, 2).run()[1]
    assert len(trained.trials) == 2 and args.head_learning_rate == trained.trials[1][1].head_learning_rate
    assert len(trained.left) == 1 and trained.alive == [[], []]  # when the next one begins
    assert "-> run out of memory" in capsys.readouterr().out
    table = pandas.read_csv(next(studies.iterdir()) / "hp_search.csv", keep_default_na=False)
    assert table["end"].tolist() == ["", "run out of memory"]
    trained.too_large, trained.diverges = (2,), (3,)
    with pytest.raises(
        InputError, match="all 2 trials have diverged or run out of memory. Lower the rates.* Lower --"
    ):
        search(work, 2, "--seed=1").run()


def test_settings_of_the_model_are_searched_too(work, studies, trained):
    space = '--hp_space={"lstm_hidden_size": [8], "pooler_dropout": [0.2, 0.3, "linear"]}'
    job, args = search(work, 2, space).run()
    for of_trial in (job, trained.trials[0][0]):
        assert of_trial.fields["lstm_hidden_size"] == 8 == of_trial.model_args.lstm_hidden_size
        assert 0.2 <= of_trial.fields["pooler_dropout"] <= 0.3
        assert of_trial.settings["pooler_dropout"] == of_trial.fields["pooler_dropout"]


def test_two_processes_do_not_search_at_once(work, studies, trained):
    one = search(work, 1)
    with one._lock(), pytest.raises(InputError, match="another process runs this search"):
        search(work, 1).run()


def test_a_final_run_with_an_earlier_best_does_not_go_on(work, studies, trained, tmp_path):
    first = search(work, 1, f"--output_dir={tmp_path / 'final'}", "--head_learning_rate=9e-3")
    job, args = first.run()
    (tmp_path / "final").mkdir()
    RunRecord.of(job.settings, job.splits).write(tmp_path / "final")
    assert not RunRecord.read(tmp_path / "final").differs(unsearched(first.job.settings, first.space))
    more = search(work, 6, f"--output_dir={tmp_path / 'final'}", "--head_learning_rate=9e-3")
    job, args = more.run()
    start = Resume(tmp_path / "final" / "checkpoint-1")
    with pytest.raises(InputError, match="with what was the best before more trials"):
        check_goes_on(start, args, job.settings)


def test_what_cannot_search_is_refused(work, monkeypatch):
    for word, message in (
        ("--metric_for_best_model=loss", "needs a metric of the task to judge by"),
        ("--do_eval=False", "needs training and validation rows"),
        ("--resume_from_checkpoint=last", "whose command goes on by itself"),
    ):
        with pytest.raises(InputError, match=message):
            search(work, 1, word)
    with monkeypatch.context() as patch:
        patch.setattr(TrainingArguments, "world_size", 2)
        with pytest.raises(InputError, match="runs in one process, found 2"):
            search(work, 1)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *of: None if name == "optuna" else find(name, *of))
    with pytest.raises(InputError, match="needs the package optuna, .* pip install -c constraints.txt -e .*search"):
        search(work, 1)


def test_the_command_trains_with_the_best(work, studies, monkeypatch, capsys):
    words = kills.command(work, ["--hp_search=1", "--head_learning_rate=5e-3", "--num_train_epochs=1"], "searched")
    assert main(words) == 0
    told, card = capsys.readouterr().out, (work / "searched" / "README.md").read_text()
    assert (
        "trial 1 of 1: learning_rate 5e-05, head_learning_rate 0.005, num_train_epochs 1 -> validation accuracy"
        in told
    )
    assert "| learning rate, new layers | 0.005 |" in card and "chose the rates and the like, by --hp_search 1" in card
    assert len(pandas.read_csv(work / "searched" / "hp_search.csv")) == 1
    folder = next(studies.glob("*/trial-0"))
    assert {path.name for path in folder.iterdir()} == {"metrics.json", "run.json"}
    of_trial, of_run = (json.loads((of / "metrics.json").read_text()) for of in (folder, work / "searched"))
    assert of_trial["results"]["validation"] == of_run["results"]["validation"]


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_search_that_was_stopped_goes_on_and_ends_the_same(work, studies, tmp_path, signum):
    words = kills.command(work, ["--hp_search=3"], "whole")
    whole = [word.replace(str(work / "whole"), str(tmp_path / "whole")) for word in words]
    assert kills.finish(kills.start(whole)) == 0
    expected = pandas.read_csv(tmp_path / "whole" / "hp_search.csv").drop(columns=["seconds", "trial"])
    hp_search.shutil.rmtree(studies)
    words = [*whole[:-1], whole[-1], f"--output_dir={tmp_path / 'killed'}"]
    process = kills.start(words, tmp_path / "log")
    while not list(studies.glob("*/trial-1/checkpoint-*/manifest.json")):
        assert os.waitpid(process, os.WNOHANG) == (0, 0)
        time.sleep(0.01)
    os.kill(process, signum)
    assert kills.finish(process) == (-signum if signum == signal.SIGKILL else 128 + signum)
    assert kills.finish(kills.start(words, tmp_path / "log")) == 0
    log = (tmp_path / "log").read_text()
    assert "Search: 1 of 3 trials are done" in log
    assert ("Stopping at the end of this step" in log) == (signum != signal.SIGKILL)
    assert (
        "trial-1 holds this run, which was cut off. It goes on from" in next(studies.glob("*/trial-1.log")).read_text()
    )
    found = pandas.read_csv(tmp_path / "killed" / "hp_search.csv").drop(columns=["seconds", "trial"])
    pandas.testing.assert_frame_equal(found, expected, check_exact=True)
    assert kills.digest(tmp_path / "killed") == kills.digest(tmp_path / "whole")
