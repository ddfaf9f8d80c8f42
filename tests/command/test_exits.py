"""Runs with --early_exit: the finished folder answers with its exits, and its model is what it would be without.

And runs with --layer_report, which change nothing."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pandas
import pytest
import torch
from safetensors.torch import load_file

from lstmpool.train_trainer import main
from lstmpool.training.errors import InputError
from lstmpool.training.output.finished import FinishedRun
from lstmpool.training.runs import exits as last_step
from lstmpool.training.runs import fit as steps
from lstmpool.training.runs.exits import check_backbone, drop_exits

from ..conftest import tiny_model
from ..training_fixtures import write_csv
from .conftest import FILES, loaded_logits, run


WORDS = ["--use_cpu", "--disable_tqdm=True", "--report_to=none", "--baselines=False"]
SURE = "--exit_threshold=0.97"  # at which some texts leave
ONE = ["--stages=one", "--baselines=False", "--save_total_limit=1"]
LATER = ["--early_exit", *WORDS, *FILES]  # on a finished model


def weights(folder):
    return load_file(folder / "model.safetensors")


def same(found, wanted):
    return found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.fixture(scope="module")
def finished(work):
    """A run with exits, with a threshold at which some texts leave, and a layer report; and the same run without."""
    with pytest.MonkeyPatch.context() as patch:
        run(work, patch, "plain", *ONE)
        run(work, patch, "early", *ONE, "--early_exit", SURE, "--layer_report")
    return work


def test_the_model_is_what_it_would_be_without_exits(finished):
    early = weights(finished / "early")
    whole = {name: tensor for name, tensor in early.items() if not name.startswith("exits.")}
    assert same(whole, weights(finished / "plain"))
    assert early["exits.heads.0.weight"].shape == (2, 16) and "exits.heads.1.weight" not in early
    config = json.loads((finished / "early" / "config.json").read_text())
    assert config["early_exit"] is True and config["exit_threshold"] == 0.97
    assert "early_exit" not in json.loads((finished / "plain" / "config.json").read_text())


def test_the_tables_say_what_the_folder_answers(finished):
    folder, rows = finished / "early", pandas.read_csv(finished / "test.csv")
    table = pandas.read_csv(folder / "test_predictions.csv")
    logits = loaded_logits(folder, rows["text"])
    scores = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert table["score_animal"].to_numpy() == pytest.approx(scores[:, 0], abs=1e-5)
    without = pandas.read_csv(finished / "plain" / "test_predictions.csv")
    left = np.abs(table["score_animal"] - without["score_animal"]) > 1e-9
    exits = json.loads((folder / "metrics.json").read_text())["early_exit"]
    share = exits["splits"]["test"]["share_at_layer"]
    assert 0 < left.mean() < 1 and share == pytest.approx([left.mean(), 1 - left.mean()])
    assert exits["splits"]["test"]["mean_layers"] == pytest.approx(share[0] * 1 + share[1] * 2)
    assert exits["results"]["test"]["accuracy"] == pytest.approx((table["prediction"] == rows["label"]).mean())
    assert exits["rule"] is None and exits["threshold"] == 0.97


def test_numbers_of_the_whole_model_stand_beside_those_with_exits(finished):
    folder = finished / "early"
    metrics, plain = [json.loads((finished / name / "metrics.json").read_text()) for name in ("early", "plain")]
    assert metrics["results"] == plain["results"]
    assert FinishedRun.read(folder).results["test"] == metrics["early_exit"]["results"]["test"]
    assert FinishedRun.read(finished / "plain").results["test"] == plain["results"]["test"]
    card = (folder / "README.md").read_text()
    assert "## Exits" in card and "![exits](exits.png)" in card and "model.config.exit_threshold" in card
    assert "| test | with exits | " in card
    assert (folder / "exits.png").stat().st_size > 5000
    assert "1" in metrics["early_exit"]["times_as_fast"]


def test_exits_can_be_added_to_a_finished_model(finished, monkeypatch, capsys):
    """The same ones, and nothing else changes."""
    monkeypatch.chdir(finished)
    assert main(["--init_from=plain", SURE, "--output_dir=later", *LATER]) == 0
    assert same(weights(finished / "later"), weights(finished / "early"))
    said = capsys.readouterr().out
    assert "Training:" not in said and "Exits: linear heads on layers 1, fitted to 96 training rows" in said
    tables = [pandas.read_csv(finished / name / "test_predictions.csv") for name in ("later", "early")]
    assert (tables[0]["prediction"] == tables[1]["prediction"]).all()


def test_the_report_says_which_layers_matter(finished):
    folder = finished / "early"
    metrics = json.loads((folder / "metrics.json").read_text())
    report = metrics["layer_report"]
    assert (report["layers"], report["rows"], report["validation_rows"]) == ([1, 2], 96, 32)
    assert report["model"] == metrics["results"]["validation"]["accuracy"]
    assert report["up_to"][1]["score"] == report["all_layers"] and report["without"][1] == report["up_to"][0]
    card = (folder / "README.md").read_text()
    assert "## Which layers matter" in card and "![which layers matter](layer_report.png)" in card
    assert f"whose own accuracy on these rows is {report['model']:.3f}" in card
    assert f"| 1 | {report['up_to'][0]['score']:.3f} | " in card and "- A linear model " in card
    assert (folder / "layer_report.png").stat().st_size > 5000
    assert "layer_report" not in json.loads((finished / "plain" / "metrics.json").read_text())
    assert not (finished / "plain" / "layer_report.png").exists()


@pytest.mark.parametrize("start", ["plain", "early"])
def test_a_finished_model_has_the_same_report_also_with_exits(finished, monkeypatch, capsys, start):
    """It is the same model, which is not trained, and not saved again."""
    monkeypatch.chdir(finished)
    output = finished / f"report_on_{start}"
    assert main([f"--init_from={start}", f"--output_dir={output}", "--layer_report", *WORDS, *FILES]) == 0
    said = capsys.readouterr().out
    assert "Layers: A linear model" in said and "Layers: All this was fitted to 96 training rows" in said
    assert not (output / "model.safetensors").exists() and (output / "layer_report.png").exists()
    reports = [json.loads((f / "metrics.json").read_text())["layer_report"] for f in (output, finished / "early")]
    for report in reports:
        report.pop("seconds")
    model = [report.pop("model") for report in reports]
    assert reports[0] == reports[1] and (start == "early" or model[0] == model[1])


def test_several_targets_of_pairs_read_apart_have_a_report_in_their_own_units(finished, monkeypatch):
    words = ["--label_column_name=price,weight", "--text_column_names=text,key", "--pair_encoding=apart"]
    words += ["--freeze_backbone", "--max_steps=2", "--layer_report", "--token_pooling=mean"]
    _, metrics = run(finished, monkeypatch, "numbers", *ONE, *words)
    report = metrics["layer_report"]
    assert 10 < report["all_layers"] < 1000 < report["model"]  # of one answer for all rows it would be 1,837


def test_a_rule_chooses_on_validation_rows(finished, monkeypatch, capsys):
    monkeypatch.chdir(finished)
    assert main(["--init_from=plain", "--output_dir=point", "--early_exit_max_drop=60", *LATER]) == 0
    exits = json.loads((finished / "point" / "metrics.json").read_text())["early_exit"]
    assert exits["rule"] == "point" and exits["splits"]["validation"]["mean_layers"] == 1.0  # anything may be lost
    config = json.loads((finished / "point" / "config.json").read_text())
    assert config["exit_threshold"] == exits["threshold"] < 0.97
    assert "by the rule point, for a drop of 60 points at most." in capsys.readouterr().out
    assert main(["--init_from=plain", "--output_dir=bounded", "--early_exit_rule=bounded", *LATER]) == 0
    said = capsys.readouterr().out
    assert "They are off: the rule bounded needs 460 validation rows" in said and "with exits  " not in said
    config = json.loads((finished / "bounded" / "config.json").read_text())
    assert config["early_exit"] is True and "exit_threshold" not in config
    assert "They are off: the rule bounded needs 460" in (finished / "bounded" / "README.md").read_text()


def test_a_model_with_exits_is_measured_with_them(finished, monkeypatch, capsys):
    monkeypatch.chdir(finished)
    files = ["--test_file=test.csv", "--id_column_name=key", "--freeze_backbone"]
    assert main(["--init_from=early", "--output_dir=measured", *WORDS, *files]) == 0
    said = capsys.readouterr().out
    assert "Exits: texts leave early, with a confidence of 0.97 or more." in said
    assert "lstm over 2 layers, with exits" in said
    tables = [pandas.read_csv(finished / name / "test_predictions.csv") for name in ("measured", "early")]
    assert tables[0]["score_animal"].to_numpy() == pytest.approx(tables[1]["score_animal"].to_numpy(), abs=1e-5)


@pytest.mark.parametrize(("processes", "compiles", "left"), [(1, False, 0.999985), (2, False, None), (1, True, None)])
def test_exits_that_cannot_be_taken_are_off_in_a_measurement(capsys, processes, compiles, left):
    """Several processes read every text to the end: that must not be called the numbers with exits."""
    model = tiny_model(early_exit=True, exit_threshold=0.999985)
    off = {"do_train": False, "calibrate": None, "tune_thresholds": False}
    args = SimpleNamespace(world_size=processes, torch_compile=compiles, **off)
    drop_exits(model, args, wanted=False)
    assert model.config.exit_threshold == left and model.exits is not None
    said = capsys.readouterr().out
    assert ("every text is read to the end" in said) is (left is None)
    assert ("with a confidence of 0.999985 or more" in said) is (left is not None)  # and not of 1


def test_of_several_processes_only_the_first_fits_exits(monkeypatch):
    """The others wait for it, and then write nothing. All read the layer states: each waits for all in that."""
    read = []
    for name in ("_training_rows", "_states"):
        monkeypatch.setattr(last_step, name, lambda state, name=name: read.append(name))
    state = SimpleNamespace(is_first_process=False, model=tiny_model())
    assert last_step.fit_exits(state) is None
    assert read == ["_training_rows", "_states"] and state.model.exits is None


@pytest.mark.parametrize(("processes", "compiles"), [(2, False), (1, True)])
def test_exits_that_cannot_be_taken_are_not_timed(monkeypatch, processes, compiles):
    """Both ways would be the same, and the gain would be called 1."""
    monkeypatch.setattr(last_step, "time_gains", lambda *_: {1: 1.0})
    args = SimpleNamespace(world_size=processes, torch_compile=compiles)
    job = SimpleNamespace(tokenizer=None)
    tokens = {"test": SimpleNamespace(dataset=None)}
    state = SimpleNamespace(args=args, answers_early=True, job=job, tokens=tokens, model=None)
    assert last_step._gains(state) == {}
    args.world_size, args.torch_compile = 1, False
    assert last_step._gains(state) == {1: 1.0}


@pytest.mark.parametrize("words", [["--max_steps=1"], ["--calibrate=temperature", "--do_eval"]])
def test_exits_of_a_model_that_changes_are_removed(finished, monkeypatch, capsys, words):
    monkeypatch.chdir(finished)
    output = f"changed_{words[0].strip('-').partition('=')[0]}"
    assert main(["--init_from=early", f"--output_dir={output}", *WORDS, *FILES, *words]) == 0
    assert "Exits: those of the model are removed, since it changes; --early_exit fits new ones." in (
        capsys.readouterr().out
    )
    assert not any(name.startswith("exits.") for name in weights(finished / output))
    assert "early_exit" not in json.loads((finished / output / "config.json").read_text())


def test_a_run_that_is_killed_in_this_step_repeats_it(finished, monkeypatch):
    """It ends with the weights that it would have had."""
    before = {}

    def killed(state, fit_exits=steps.fit_exits):
        fit_exits(state)
        before.update({name: tensor.clone() for name, tensor in state.model.state_dict().items()})
        raise KeyboardInterrupt

    words = [*ONE, "--early_exit", SURE]
    with monkeypatch.context() as patch:
        patch.setattr(steps, "fit_exits", killed)
        with pytest.raises(AssertionError):
            run(finished, patch, "killed", *words)
    assert not (finished / "killed" / "model.safetensors").exists()
    folder, _ = run(finished, monkeypatch, "killed", *words)
    assert same(weights(folder), before)


def test_thresholds_of_the_head_are_in_the_exits_too(work, monkeypatch):
    words = [*ONE, "--label_column_name=labels", "--early_exit", "--exit_threshold=0.5"]
    plain, _ = run(work, monkeypatch, "several", *words)
    tuned, metrics = run(work, monkeypatch, "several_tuned", *words, "--tune_thresholds")
    before, after = weights(plain), weights(tuned)
    thresholds = metrics["learned_on_validation"]["folded_thresholds"]
    assert np.abs(thresholds).max() > 0.01
    assert torch.equal(before["exits.heads.0.weight"], after["exits.heads.0.weight"])
    moved = before["exits.heads.0.bias"] - after["exits.heads.0.bias"]
    assert moved.numpy() == pytest.approx(thresholds, abs=1e-5)
    for start, output in (("several_tuned", "several_later"), ("several_later", "several_again")):  # an earlier run's
        words = [f"--init_from={start}", "--label_column_name=labels", "--exit_threshold=0.5", *LATER]
        assert main([*words, f"--output_dir={output}"]) == 0
        assert same(weights(work / output), after)


@pytest.mark.parametrize(
    ("between", "kept"),
    [(["--calibrate=temperature", "--do_eval"], "settled"), (["--max_steps=1", "--validation_size=0"], "trained")],
)
def test_thresholds_are_in_the_exits_whatever_runs_came_between(work, monkeypatch, between, kept):
    """The run before the last tunes none, and may have no validation rows."""
    tuned = work / "several_tuned"
    first = json.loads((tuned / "metrics.json").read_text())["learned_on_validation"]["folded_thresholds"]
    monkeypatch.chdir(work)
    of_labels = [*WORDS, "--label_column_name=labels", "--train_file=train.csv"]
    if kept == "settled":
        of_labels += FILES
    assert main(["--init_from=several_tuned", f"--output_dir=then_{kept}", *of_labels, *between]) == 0
    metrics = json.loads((work / f"then_{kept}" / "metrics.json").read_text())
    temperature = metrics["learned_on_validation"].get("temperature", 1.0)
    assert metrics["head_thresholds"][kept] == pytest.approx(np.array(first) / temperature)
    words = [f"--init_from=then_{kept}", f"--output_dir=early_{kept}", "--exit_threshold=0.5", *LATER]
    assert main([*words, "--label_column_name=labels"]) == 0
    exits = json.loads((work / f"early_{kept}" / "metrics.json").read_text())["early_exit"]
    shares = np.array(exits["folded_thresholds"]) / (np.array(first) / temperature)
    assert shares.min() >= 0 and shares.max() <= 1 + 1e-6 and shares.max() > 0.1
    if kept == "settled":
        assert shares == pytest.approx(1)
        moved = weights(work / "several")["exits.heads.0.bias"] - weights(work / "early_settled")["exits.heads.0.bias"]
        assert moved.numpy() == pytest.approx(exits["folded_thresholds"], abs=1e-5)


def test_the_temperature_of_each_exit_is_in_its_weights(finished, monkeypatch):
    """Without it, the exit's logits would be those of the metrics times the temperature."""
    monkeypatch.chdir(finished)
    with monkeypatch.context() as patch:
        patch.setattr("lstmpool.training.runs.exits.fit_temperature", lambda *_: 1.0)
        assert main(["--init_from=plain", SURE, "--output_dir=hot", *LATER]) == 0
    (temperature,) = json.loads((finished / "early" / "metrics.json").read_text())["early_exit"]["temperatures"]
    hot, early = weights(finished / "hot"), weights(finished / "early")
    assert temperature != pytest.approx(1, abs=0.01)
    for name in ("exits.heads.0.weight", "exits.heads.0.bias"):
        torch.testing.assert_close(hot[name] / temperature, early[name])


@pytest.mark.slow
def test_trials_of_a_search_fit_no_exits(work, monkeypatch, tmp_path):
    monkeypatch.setattr("lstmpool.training.runs.search.STUDIES", tmp_path)
    fitted = []

    def noted(state, fit_exits=steps.fit_exits):
        fitted.append(state.args.output_dir)
        return fit_exits(state)

    monkeypatch.setattr(steps, "fit_exits", noted)
    words = ["--early_exit", SURE, "--hp_search=1", "--max_steps=2"]
    space = '--hp_space={"learning_rate": [1e-5, 1e-4]}'
    run(work, monkeypatch, "searched", *ONE, *words, space)
    assert fitted == ["searched"]


def test_a_model_of_a_single_layer_gets_none(capsys):
    """--layer_pooling auto may choose one."""
    state = SimpleNamespace(model=tiny_model(layers=[2]), exits=None)
    steps._fit_exits(state)
    assert state.exits is None and capsys.readouterr().out == "No exits: the model reads a single layer.\n"


def test_a_backbone_whose_layers_are_not_certain_is_refused():
    model = tiny_model()
    check_backbone(model)
    model.lstmpool.capture.streams = False
    with pytest.raises(InputError, match="--early_exit needs a backbone whose layers lie in one list of their own"):
        check_backbone(model)


@pytest.mark.parametrize(("wanted", "error"), [(True, InputError), (False, LookupError)])
def test_it_is_refused_before_training_and_only_where_exits_are_wanted(wanted, error):
    model = tiny_model()
    model.lstmpool.capture.streams = False

    def go_on(*_):
        raise LookupError

    backbone = SimpleNamespace(load_model=lambda fields: (model, True))
    model_args = SimpleNamespace(early_exit=wanted, init_from=None)
    job = SimpleNamespace(backbone=backbone, model_args=model_args, fields={}, check_tokens=go_on)
    with pytest.raises(error):
        steps._load_model(SimpleNamespace(job=job, args=None, resumed=None, tokens={}))


def refused(capsys, *words, flag="--early_exit"):
    assert main([*WORDS, flag, "--output_dir=refused", *words]) == 2
    return capsys.readouterr().err


def test_what_can_have_no_exits_is_refused_before_the_work(finished, monkeypatch, capsys):
    monkeypatch.chdir(finished)
    new = ["--backbone=backbone", *FILES]
    assert "needs two layers or more that are read, found layers [2]" in refused(capsys, *new, "--layers=2")
    assert "--early_exit is for classification" in refused(capsys, *new, "--label_column_name=price")
    later = ["--init_from=plain", "--train_file=train.csv"]
    for split in ("train", "validation"):
        write_csv(finished / f"{split}_others.csv", {"text": ["alpha cat", "beta"] * 4, "label": ["a", "b"] * 4})
    others = ["--train_file=train_others.csv", "--validation_file=validation_others.csv"]
    assert "these rows have other labels than its own: a, b." in refused(capsys, "--init_from=plain", *others)
    assert "--early_exit needs validation rows" in refused(capsys, *later)
    monkeypatch.setattr("lstmpool.families_lstmpool.Families.EARLY_EXIT", frozenset({"roberta"}))
    assert "a family that texts can leave early: roberta. Found bert. Name another" in refused(capsys, *new)
    flag = "--layer_report"
    assert "--layer_report needs two layers or more that are read" in refused(capsys, *new, "--layers=2", flag=flag)
    assert "these rows have other labels than its own: a" in refused(capsys, "--init_from=plain", *others, flag=flag)
    assert "--layer_report needs training rows, to which" in refused(capsys, *later, flag=flag)
    assert not (finished / "refused").exists() or not list((finished / "refused").glob("checkpoint-*"))
    shutil.rmtree(finished / "refused", ignore_errors=True)
