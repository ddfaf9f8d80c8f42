"""Several seeds as a user runs them: each is the run with that seed, and the numbers of all agree with theirs."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas
import pytest

from lstmpool.compare import main as compare
from lstmpool.predict import main as predict
from lstmpool.train_trainer import main
from lstmpool.training.model import layer_cache
from lstmpool.training.output.found import Found, Members, look
from lstmpool.training.output.run_record import RunRecord
from lstmpool.training.output.start import Fresh, GoOn, Refuse, Replace, StartFlags, Wanted, decide
from lstmpool.training.runs import folds
from lstmpool.training.runs.fit import fit
from lstmpool.training.runs.seeds import Spread, about_spread
from lstmpool.training.tasks.single_label import SingleLabel

from ...damage import damage_file
from ...training_fixtures import save_backbone, sentences, task_of, write_csv


WORDS = [
    *("--backbone=backbone", "--train_file=train.csv", "--test_file=test.csv", "--id_column_name=key"),
    *("--validation_size=0.25", "--freeze_backbone", "--use_cpu", "--disable_tqdm=True", "--report_to=none"),
    *("--num_train_epochs=3", "--head_learning_rate=3e-2", "--token_pooling=mean", "--baselines=False"),
]
SEEDS = [*WORDS, "--seed=5", "--seeds=2", "--output_dir=out"]
SCORES = ["score_even", "score_odd"]


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("work")
    save_backbone(folder / "backbone")
    for split, n in (("train", 40), ("test", 12)):
        texts = [f"{text} {split}" for text in sentences(n)]
        columns = {
            "text": [" ".join([text] * (1 + i % 4)) for i, text in enumerate(texts)],
            "label": ["even" if i % 3 else "odd" for i in range(n)],
            "key": [f"{split}-{i}" for i in range(n)],
            "price": [f"{20_000 + 500 * (i % 8) + 0.5}" for i in range(n)],
        }
        write_csv(folder / f"{split}.csv", columns)
    return folder


@pytest.fixture
def there(work, monkeypatch):
    """In the folder of the rows, with a layer cache of its own."""
    monkeypatch.chdir(work)
    monkeypatch.setattr(layer_cache, "CACHE", work / "cache")
    return work


@pytest.fixture(scope="module")
def finished(work):
    """The folder of a whole run, and how often the backbone ran over a file of rows."""
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(work)
        patched.setattr(layer_cache, "CACHE", work / "cache")
        passes, of_module = [], layer_cache._write
        patched.setattr(layer_cache, "_write", lambda *args: passes.append(args[0].name) or of_module(*args))
        assert main(SEEDS) == 0
    return work / "out", passes


@pytest.fixture
def copy(finished, there, tmp_path):
    """A copy of the whole run, and the command for it."""
    folder = tmp_path / "copy"
    shutil.copytree(finished[0], folder)
    return folder, [*SEEDS, f"--output_dir={folder}"]


def read(path):
    return json.loads(path.read_text())


def contents(folder):
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and ".new_run" not in path.parts]
    return {path: path.read_bytes() for path in paths}


# ------------------------------------------------------------------------------------------------------------- numbers
def test_each_seed_is_the_run_with_that_seed(finished, there):
    folder, passes = finished
    assert len(passes) == 3 == len(set(passes))  # of training, validation and test rows, for both seeds
    assert main([*WORDS, "--seed=6", "--output_dir=plain"]) == 0
    for name in ("model.safetensors", "metrics.json", "test_predictions.csv", "validation_predictions.csv"):
        assert (folder / "seed-6" / name).read_bytes() == (there / "plain" / name).read_bytes(), name
        assert (folder / "seed-5" / name).read_bytes() != (there / "plain" / name).read_bytes(), name
    record, plain = RunRecord.read(folder / "seed-6"), RunRecord.read(there / "plain")
    assert (record.settings, record.rows) == (plain.settings, plain.rows)
    assert {*record.files} == {*plain.files, "logits.npz"}
    held = [pandas.read_csv(folder / f"seed-{seed}" / "validation_predictions.csv")["id"].tolist() for seed in (5, 6)]
    assert held[0] == held[1] and len(held[0]) == 10


def test_the_numbers_are_those_of_the_seeds(finished):
    folder, _ = finished
    metrics, of_seeds = read(folder / "metrics.json"), [read(folder / f"seed-{n}" / "metrics.json") for n in (5, 6)]
    assert metrics["seeds"] == [5, 6] and metrics["by_seed"]["6"] == of_seeds[1]["results"]
    assert set(metrics["mean"]) == {"validation", "test"}
    for split in metrics["mean"]:
        for metric, mean in metrics["mean"][split].items():
            a, b = (of["results"][split][metric] for of in of_seeds)
            assert mean == pytest.approx((a + b) / 2)
            assert metrics["sd"][split][metric] == pytest.approx(abs(a - b) / 2**0.5)
            assert (metrics["lowest"][split][metric], metrics["highest"][split][metric]) == (min(a, b), max(a, b))
    assert metrics["interval_of_mean"]["test"]["metric"] == "accuracy"


def test_the_predictions_are_the_mean_of_those_of_the_seeds(finished):
    folder, _ = finished
    for split in ("test", "validation"):
        table = pandas.read_csv(folder / f"{split}_predictions.csv")
        of_seeds = [pandas.read_csv(folder / f"seed-{seed}" / f"{split}_predictions.csv") for seed in (5, 6)]
        np.testing.assert_allclose(table[SCORES], (of_seeds[0][SCORES] + of_seeds[1][SCORES]) / 2, atol=1e-12)
        right = (table["prediction"] == table["label"]).mean()
        assert read(folder / "metrics.json")["results"][split]["accuracy"] == pytest.approx(right)


def test_other_commands_take_the_folder_for_the_mean_of_its_models(finished, there, capsys):
    folder, _ = finished
    words = ["test.csv", "--id_column_name=key", "--scores", "--use_cpu", "--output=out.csv", "--overwrite"]
    assert predict(["out", *words]) == 0
    found, expected = pandas.read_csv("out.csv"), pandas.read_csv(folder / "test_predictions.csv")
    np.testing.assert_allclose(found[SCORES], expected[SCORES], atol=1e-6)
    assert compare(["out", "out/seed-5"]) == 0
    told = capsys.readouterr().out
    assert "out is 2 models: its answers are the mean of those of its seeds. To compare a single run, name a" in told
    weights = [line.split()[-2:] for line in told.splitlines() if line.startswith("parameters")]
    assert int(weights[0][0].replace(",", "")) == 2 * int(weights[0][1].replace(",", ""))


def test_the_spread_is_that_of_a_sample_and_students_t():
    by_seed = {seed: {"test": {"accuracy": value}} for seed, value in ((1, 0.80), (2, 0.82), (3, 0.84))}
    spread = Spread.of(by_seed)
    assert spread.mean["test"]["accuracy"] == pytest.approx(0.82)
    assert spread.sd["test"]["accuracy"] == pytest.approx(0.02)  # the squares add up to 0.0008, over 2
    # Student's t with 2 degrees of freedom is below 4.30265 with 97.5 %
    half = 4.30265 * 0.02 / 3**0.5
    assert spread.interval("test", "accuracy") == pytest.approx((0.82 - half, 0.82 + half), abs=1e-6)
    assert spread.telling("test", "accuracy", 3) == pytest.approx(4.30265 * 0.02 * (2 / 3) ** 0.5, abs=1e-6)
    said = about_spread(spread, "test", task_of(SingleLabel))
    assert "a difference in accuracy on test must exceed 0.070 between two means over 3 seeds, or 0.122 be" in said
    same = Spread.of({1: {"test": {"accuracy": 0.5}}, 2: {"test": {"accuracy": 0.5}}})
    assert about_spread(same, "test", task_of(SingleLabel)).startswith("accuracy on test is the same with every seed")
    undefined = Spread.of({1: {"test": {"accuracy": math.nan}}, 2: {"test": {"accuracy": 0.5}}})
    assert "is undefined with a seed" in about_spread(undefined, "test", task_of(SingleLabel))
    assert math.isnan(undefined.mean["test"]["accuracy"])


def test_what_measures_nothing_is_refused_before_training(there, tmp_path, capsys):
    words = [word for word in SEEDS if not word.startswith(("--test_file", "--validation_size"))]
    assert main([*words, f"--output_dir={tmp_path / 'none'}"]) == 2  # of so few rows, none are held out
    assert "--seeds measures each seed on validation or test rows with labels, found none." in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


# ----------------------------------------------------------------------------------------------- what goes on, or not
class Killed(BaseException):
    """Stands for a kill: nobody can catch it."""


@pytest.fixture
def dies(monkeypatch):
    """Has runs die in the folder that it is given, and returns the folders of those that began."""

    def die_in(name):
        fitted = []

        def fit_or_die(job, args, start, tokens, extras):
            fitted.append(Path(args.output_dir).name)
            if fitted[-1] == name:
                raise Killed
            fit(job, args, start, tokens, extras)

        monkeypatch.setattr(folds, "fit", fit_or_die)
        return fitted

    return die_in


def test_more_seeds_are_added_to_those_that_are_there(copy, dies, capsys):
    folder, words = copy
    kept = contents(folder / "seed-5") | contents(folder / "seed-6")
    for others in ([], ["--seed=4", "--seeds=3"], ["--seeds=3", "--num_train_epochs=1"]):
        assert main([*words, *others]) == 2
        assert "holds a run already (errors.csv, metrics.json" in capsys.readouterr().err
    fitted = dies("seed-7")
    more = [*words, "--seeds=3", "--predictions_format=parquet"]
    with pytest.raises(Killed):
        main(more)
    assert f"{folder} holds a run with 2 of these seeds. The others are added." in capsys.readouterr().out
    assert not RunRecord.read(folder).finished and RunRecord.read(folder).settings["seeds"] == 3
    assert main(words) == 2
    assert "which was cut off (seeds 3 there and 2 here)" in capsys.readouterr().err
    dies("")
    assert main(more) == 0
    told = capsys.readouterr().out
    assert f"{folder} holds this run with several seeds, which was cut off. It goes on." in told
    assert "Seed 6, 2 of 3: finished before." in told and "Seed 7, 3 of 3:\n" in told and "mean over seeds" in told
    assert fitted == ["seed-7"] and contents(folder / "seed-5") | contents(folder / "seed-6") == kept
    assert read(folder / "metrics.json")["seeds"] == [5, 6, 7] and RunRecord.read(folder).finished
    assert not (folder / "test_predictions.csv").exists()  # of two seeds
    table = pandas.read_parquet(folder / "test_predictions.parquet")
    each = [np.load(folder / f"seed-{seed}" / "logits.npz")["test"] for seed in (5, 6, 7)]
    scores = [np.exp(logits) / np.exp(logits).sum(1, keepdims=True) for logits in each]
    np.testing.assert_allclose(table[SCORES], np.mean(scores, axis=0), atol=1e-6)


@pytest.mark.parametrize(("flag", "entry"), [("find_label_issues", "label_issues"), ("layer_report", "layer_report")])
def test_a_report_that_finished_seeds_lack_is_refused_before_training(copy, dies, capsys, flag, entry):
    folder, words = copy
    kept, words = contents(folder), [*words, "--seeds=3", f"--{flag}"]
    assert main(words) == 2
    assert f"these are finished without it: {folder / 'seed-5'}, {folder / 'seed-6'}. Leave" in capsys.readouterr().err
    assert contents(folder) == kept
    metrics = folder / "seed-6" / "metrics.json"
    metrics.write_text(json.dumps(read(metrics) | {entry: None}))  # as if there had been nothing to tell
    assert main(words) == 2
    assert f"without it: {folder / 'seed-5'}. Leave" in capsys.readouterr().err
    shutil.rmtree(folder / "seed-5")
    fitted = dies("seed-5")
    with pytest.raises(Killed):
        main(words)
    assert fitted == ["seed-5"]


def test_a_damaged_seed_is_named_and_ends_the_same(finished, copy, capsys):
    folder, words = copy
    replace(RunRecord.read(folder), finished=False).write(folder)  # as if it had been killed before all was written
    damage_file(folder / "seed-6" / "logits.npz", "flipped")
    rows = Path("test.csv").read_text()
    Path("test.csv").write_text(rows.replace("odd", "even", 1))
    assert main(words) == 2
    assert f"those that the run with several seeds in {folder} was begun with" in capsys.readouterr().err
    Path("test.csv").write_text(rows)
    assert main(words) == 0
    told = capsys.readouterr().out
    assert "Seed 5, 1 of 2: finished before." in told and "Seed 6, 2 of 2:\n" in told
    assert not list(folder.rglob(".new_run"))
    for name in ("seed-6/model.safetensors", "seed-6/logits.npz", "metrics.json", "test_predictions.csv"):
        assert (folder / name).read_bytes() == (finished[0] / name).read_bytes(), name


def test_an_overwrite_keeps_the_older_seeds_until_the_new_ones_are_whole(copy, dies, capsys):
    folder, words = copy
    (folder / "seed-5" / "notes.txt").write_text("mine")
    older, words = contents(folder), [*words, "--seed=6", "--max_steps=1"]
    fitted = dies("seed-7")
    with pytest.raises(Killed):
        main([*words, "--overwrite"])
    assert fitted == ["seed-6", "seed-7"] and contents(folder) == older
    dies("")
    assert main(words) == 0  # it goes on, with --overwrite or without
    assert f"{folder}/seed-7 holds the model" in capsys.readouterr().out
    assert not (folder / ".new_run").exists() and RunRecord.read(folder).finished
    assert [path.name for path in (folder / "seed-5").iterdir()] == ["notes.txt"]
    assert RunRecord.read(folder / "seed-6").settings["max_steps"] == 1


# --------------------------------------------------------------------------------------------------------- whose it is
TWO = {"seed": 5, "seeds": 2}


def put_run(folder, settings):
    folder.mkdir(parents=True, exist_ok=True)
    RunRecord(settings, {}, finished=True, files=["run.json"]).write(folder)


def test_a_seed_by_hand_is_the_users_unless_the_folders_record_lists_it(tmp_path):
    for name in ("seed-5", "seed-6", "seed-7", "seed-06"):
        put_run(tmp_path / name, {"seed": 5})
    (tmp_path / "seed-9").symlink_to(tmp_path / "seed-5")
    assert look(tmp_path).members == ()
    decision = decide(look(tmp_path), Wanted(TWO), StartFlags(overwrite=True))
    assert decision.message.startswith(f"--output_dir {tmp_path} holds seed-5, seed-6, which no run recorded there")
    assert decide(look(tmp_path), Wanted({"seed": 7}), StartFlags()) == Fresh()  # which replaces none of them
    assert decide(look(tmp_path), Wanted({"seed": 10, "seeds": 2}), StartFlags()) == Fresh()
    assert "holds seed-9 (a link)," in decide(look(tmp_path), Wanted({"seed": 8, "seeds": 2}), StartFlags()).message
    put_run(tmp_path, TWO)
    found = look(tmp_path)
    assert found.members == ("seed-5", "seed-6") and found.all_of_run == ("seed-5", "seed-6", "run.json")
    assert decide(found, Wanted({"seed": 7}), StartFlags(overwrite=True)) == Replace(within=".new_run")
    more = decide(found, Wanted({"seed": 5, "seeds": 3}), StartFlags())
    assert isinstance(more, Refuse) and "holds seed-7, which no run recorded" in more.message


def test_seeds_are_added_only_to_the_same_run():
    def begins(there, here, overwrite=False, **kept):
        found = Found(Path("out"), Path("/out"), record=RunRecord(there, {}, **kept), members=("seed-5",))
        return decide(found, Wanted(here), StartFlags(overwrite=overwrite))

    three = TWO | {"seeds": 3}
    added = GoOn(said=("out holds a run with 2 of these seeds. The others are added.",))
    assert begins(TWO, three, finished=True) == begins(TWO, three) == added
    assert begins(TWO, three, overwrite=True, finished=True) == Replace(within=".new_run")
    for here in (TWO, {"seed": 5}, three | {"seed": 4}, three | {"rate": 2}, {"seed": 5, "cv_folds": 3}):
        assert isinstance(begins(TWO | {"rate": 1, "cv_folds": None}, here, finished=True), Refuse), here
    assert "seeds None there and 3 here" in begins({"seed": 5}, three).message  # of an earlier release


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        (TWO, ["seed-5", "seed-6"]),
        ({"seed": 0, "seeds": 2, "cv_folds": None}, ["seed-0", "seed-1"]),
        ({"cv_folds": 2, "seed": 5}, ["fold-1", "fold-2"]),
        ({"cv_folds": 2, "fold": 1}, []),
        ({"seed": 5}, []),
        ({"seed": "x", "seeds": 2}, []),
        ({"seed": 5, "seeds": 10**30}, []),
    ],
)
def test_the_folders_of_a_command_follow_from_its_settings(settings, names):
    assert list(Members.of(settings).names()) == names


# ----------------------------------------------------------------------------------------------- numbers, not classes
@pytest.mark.slow
def test_numbers_are_averaged_in_their_own_units(there, tmp_path):
    words = ["--label_column_name=price", f"--output_dir={tmp_path / 'numbers'}", "--layer_cache=no"]
    assert main([*SEEDS, *words]) == 0
    places = [tmp_path / "numbers" / name for name in ("", "seed-5", "seed-6")]
    of_all, *of_seeds = [pandas.read_csv(place / "test_predictions.csv")["prediction"] for place in places]
    np.testing.assert_allclose(of_all, (of_seeds[0] + of_seeds[1]) / 2, rtol=1e-9)
    assert "mse" in read(tmp_path / "numbers" / "metrics.json")["sd"]["validation"]
