"""Cross-validation as a user runs it: what the folder holds agrees with the folds, whatever was cut off on the way."""

import json
import os
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from scipy.special import softmax
from transformers import AutoTokenizer

from lstmpool.modeling_lstmpool import LstmPoolForSequenceClassification
from lstmpool.train_trainer import main
from lstmpool.training.model import layer_cache
from lstmpool.training.output.run_record import RunRecord
from lstmpool.training.runs import folds
from lstmpool.training.runs.fit import fit

from ... import kills
from ...damage import damage_file
from ...training_fixtures import save_backbone, sentences, write_csv


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("work")
    save_backbone(folder / "backbone")
    for split, n in (("train", 32), ("test", 10)):
        texts = [f"{text} {split}" for text in sentences(n)]
        columns = {
            "text": [" ".join([text] * (1 + i % 4)) for i, text in enumerate(texts)],
            "label": ["even" if i % 3 else "odd" for i in range(n)],
            "key": [f"{split}-{i}" for i in range(n)],
            "writer": [f"writer {i // 2}" for i in range(n)],
            "colours": [" ".join(name for name in ("red", "blue") if name in text) for text in texts],
            "price": [f"{20_000 + 500 * (i % 8) + 0.5}" for i in range(n)],
            "weight": [f"{0.002 + 0.001 * (i % 3)}" for i in range(n)],
        }
        write_csv(folder / f"{split}.csv", columns)
    return folder


WORDS = [
    *("--backbone=backbone", "--train_file=train.csv", "--test_file=test.csv", "--id_column_name=key", "--cv_folds=2"),
    *("--group_column=writer", "--freeze_backbone", "--use_cpu", "--disable_tqdm=True", "--report_to=none"),
    *("--num_train_epochs=4", "--head_learning_rate=3e-2", "--token_pooling=mean", "--output_dir=out"),
]


@pytest.fixture(scope="module")
def finished(work):
    """The folder of a whole run, what it printed, and how often the backbone ran over a file of rows."""
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(work)
        patched.setattr(layer_cache, "CACHE", work / "cache")
        runs, of_module = [], layer_cache._write
        patched.setattr(layer_cache, "_write", lambda *args: runs.append(args[0].name) or of_module(*args))
        assert main(WORDS) == 0
    return work / "out", runs


def test_all_folds_share_one_cache(finished, work):
    _, runs = finished
    assert len(runs) == 2 == len(set(runs))  # of the training rows, for both folds, and of the test rows
    assert len(list((work / "cache").glob("*.arrow"))) == 2


def test_each_row_is_predicted_by_the_model_that_was_trained_without_it(finished, work):
    folder, _ = finished
    rows, table = pandas.read_csv(work / "train.csv"), pandas.read_parquet(folder / "oof.parquet")
    assert list(table.columns) == ["id", "score_even", "score_odd", "prediction", "fold", "label"]
    assert table["id"].tolist() == rows["key"].tolist() and table["label"].tolist() == rows["label"].tolist()
    assert table.groupby(rows["writer"])["fold"].nunique().max() == 1 and set(table["fold"]) == {1, 2}
    for fold in (1, 2):
        model = LstmPoolForSequenceClassification.from_pretrained(folder / f"fold-{fold}").eval()
        tokenizer = AutoTokenizer.from_pretrained(folder / f"fold-{fold}")
        of_fold = (table["fold"] == fold).to_numpy()
        with torch.no_grad():
            outputs = [model(**tokenizer(text, return_tensors="pt")).logits.numpy() for text in rows["text"]]
        off = np.abs(softmax(np.concatenate(outputs), axis=1) - table[["score_even", "score_odd"]].to_numpy()).max(1)
        assert off[of_fold].max() < 1e-5 and off[~of_fold].min() > 1e-3
        data = json.loads((folder / f"fold-{fold}" / "metrics.json").read_text())["data"]
        assert data["train"]["rows"] == (~of_fold).sum() and data["validation"]["rows"] == of_fold.sum()


def test_the_numbers_are_those_of_the_table(finished):
    folder, _ = finished
    table, metrics = pandas.read_parquet(folder / "oof.parquet"), json.loads((folder / "metrics.json").read_text())
    right = table["prediction"] == table["label"]
    by_fold = right.groupby(table["fold"]).mean()
    assert metrics["results"]["fold 1"]["accuracy"] == pytest.approx(by_fold[1])
    assert metrics["mean"]["accuracy"] == pytest.approx((by_fold[1] + by_fold[2]) / 2)
    assert metrics["sd"]["accuracy"] == pytest.approx(abs(by_fold[1] - by_fold[2]) / 2**0.5)
    assert metrics["results"]["out of fold"]["accuracy"] == pytest.approx(right.mean())
    by_class = metrics["by_class"]["out of fold"]["classes"]
    assert set(metrics["by_class"]) == {"out of fold", "test"}
    for label, rows in right.groupby(table["label"]):
        assert (by_class[label]["support"], by_class[label]["recall"]) == (len(rows), pytest.approx(rows.mean()))
    interval = metrics["intervals"]["out of fold"]
    assert interval["metric"] == "accuracy" and interval["low"] <= right.mean() <= interval["high"]


def test_rows_that_the_models_of_other_folds_got_wrong_are_listed(finished, work):
    folder, _ = finished
    errors, rows = pandas.read_csv(folder / "errors.csv"), pandas.read_csv(work / "train.csv")
    table = pandas.read_parquet(folder / "oof.parquet")
    wrong = (table["prediction"] != table["label"]).to_numpy()
    found = errors[errors["split"] == "out of fold"].set_index("id")
    assert set(found.index) == set(rows["key"][wrong]) and set(errors["split"]) <= {"out of fold", "test"}
    scores = table.set_index("id")[["score_even", "score_odd"]].max(axis=1)
    np.testing.assert_allclose(found["confidence"], scores[found.index])
    assert found["text"].to_dict() == rows[wrong].set_index("key")["text"].to_dict()
    assert (folder / "fold-1" / "validation_predictions.csv").is_file()


def test_test_rows_get_the_mean_of_the_folds(finished):
    folder, _ = finished
    table = pandas.read_csv(folder / "test_predictions.csv")
    of_folds = [pandas.read_csv(folder / f"fold-{fold}" / "test_predictions.csv") for fold in (1, 2)]
    names = ["score_even", "score_odd"]
    np.testing.assert_allclose(table[names], (of_folds[0][names] + of_folds[1][names]) / 2, atol=1e-12)
    assert table["id"].tolist() == [f"test-{i}" for i in range(10)]
    assert set(json.loads((folder / "metrics.json").read_text())["results"]["test"]) >= {"accuracy", "log_loss"}


def test_what_was_cut_off_goes_on_without_the_folds_that_are_finished(finished, work, monkeypatch, capsys):
    folder, _ = finished
    monkeypatch.chdir(work)
    monkeypatch.setattr(layer_cache, "CACHE", work / "cache")
    before, weights = pandas.read_parquet(folder / "oof.parquet"), folder / "fold-1" / "model.safetensors"
    written = weights.stat().st_mtime_ns
    assert main(WORDS) == 2  # it is whole
    assert "--output_dir out holds a run already (errors.csv, metrics.json, oof.parquet)" in capsys.readouterr().err

    def cut_off(*folders):
        for each in folders:
            record = RunRecord.read(each)
            replace(record, finished=False, digests={}).write(each)

    cut_off(folder, folder / "fold-2")
    (folder / "oof.parquet").unlink()
    assert main([*WORDS, "--num_train_epochs=1"]) == 2
    assert "other settings, which was cut off (num_train_epochs 4.0 there" in capsys.readouterr().err
    rows = (work / "train.csv").read_text()
    (work / "train.csv").write_text(rows.replace("writer 3", "writer 4"))
    assert main(WORDS) == 2  # other groups, so other folds
    assert "the rows are not those that the cross-validation in out was begun with" in capsys.readouterr().err
    (work / "train.csv").write_text(rows)
    assert main([*WORDS, "--show_errors"]) == 0
    told = capsys.readouterr().out
    assert "out holds this cross-validation, which was cut off. It goes on." in told
    assert "Fold 1 of 2, 16 rows train, 16 are held out: finished before." in told
    assert "Fold 2 of 2, 16 rows train, 16 are held out:\n" in told
    assert told.count("Layer states: read from disk, in ") == 1
    errors = len(pandas.read_csv(folder / "errors.csv"))
    assert told.count("Predicted wrongly") == 1 and f"({min(errors, 10)} of {errors} in errors.csv):\n  " in told
    assert "mean over folds" in told and "all rows at once" in told and "mean of the folds' predictions" in told
    assert weights.stat().st_mtime_ns == written
    pandas.testing.assert_frame_equal(pandas.read_parquet(folder / "oof.parquet"), before, check_exact=True)
    assert RunRecord.read(folder).finished


class Killed(BaseException):
    """Stands for a kill: nobody can catch it."""


@pytest.fixture
def again(finished, work, tmp_path, monkeypatch):
    """A copy of a whole run, the command for it, and what is given to its folds, of which the second is killed."""
    monkeypatch.chdir(work)
    folder, fitted = tmp_path / "again", []
    shutil.copytree(finished[0], folder)

    def fit_or_die(job, args, start, tokens, extras):
        fitted.append(args.output_dir)
        if args.output_dir.endswith("fold-2"):
            raise Killed

    monkeypatch.setattr(folds, "fit", fit_or_die)
    return folder, [*WORDS, f"--output_dir={folder}"], fitted


@pytest.mark.parametrize(("kind", "name"), [("flipped", "logits.npz"), ("zeroed", "model.safetensors")])
def test_a_damaged_fold_is_named_and_ends_the_same(finished, work, tmp_path, monkeypatch, capsys, kind, name):
    monkeypatch.chdir(work)
    monkeypatch.setattr(layer_cache, "CACHE", work / "cache")
    folder = tmp_path / "damaged"
    shutil.copytree(finished[0], folder)
    record = RunRecord.read(folder)
    replace(record, finished=False).write(folder)  # as if it had been killed before all was written
    damage_file(folder / "fold-2" / name, kind)
    assert main([*WORDS, f"--output_dir={folder}"]) == 0
    told = capsys.readouterr().out
    assert f"{folder / 'fold-2'} is not whole: {name} is not what was written" in told
    assert not list(folder.rglob("checkpoint-*")) and not list(folder.rglob(".new_run"))
    assert "Fold 1 of 2, 16 rows train, 16 are held out: finished before." in told
    for same in (f"fold-2/{name}", "oof.parquet", "metrics.json"):
        assert (folder / same).read_bytes() == (finished[0] / same).read_bytes(), same


def contents(folder):
    """What the files of the older run hold, by their paths."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and ".new_run" not in path.parts]
    return {path: path.read_bytes() for path in paths}


def test_an_overwrite_keeps_the_older_folds_until_the_new_ones_are_whole(again, monkeypatch, capsys):
    folder, words, fitted = again
    older, words = contents(folder), [*words, "--num_train_epochs=1", "--seed=7", "--save_total_limit=1"]
    with pytest.raises(Killed):
        main([*words, "--overwrite"])
    assert fitted == [str(folder / ".new_run" / "fold-1"), str(folder / ".new_run" / "fold-2")]
    assert contents(folder) == older
    monkeypatch.setattr(folds, "fit", fit)
    monkeypatch.setattr(layer_cache, "CACHE", folder.parent / "cache")
    capsys.readouterr()
    assert main(words) == 0  # it goes on, with --overwrite or without
    told = capsys.readouterr().out
    assert f"{folder}/.new_run holds this cross-validation, which was cut off. It goes on." in told
    assert f"{folder}/fold-2 holds the model" in told and ".new_run" not in told.split("It goes on.")[1]
    assert not (folder / ".new_run").exists() and RunRecord.read(folder).settings["num_train_epochs"] == 1
    for fold in ("fold-1", "fold-2"):
        assert (
            RunRecord.read(folder / fold).settings["num_train_epochs"] == 1 and RunRecord.read(folder / fold).finished
        )
        best = json.loads(next((folder / fold).glob("checkpoint-*/trainer_state.json")).read_text())
        assert Path(best["best_model_checkpoint"]).parent == folder / fold
        assert f"# {fold}\n" in (folder / fold / "README.md").read_text()
        LstmPoolForSequenceClassification.from_pretrained(folder / fold)
    after = contents(folder)
    assert after[folder / "oof.parquet"] != older[folder / "oof.parquet"]


@pytest.mark.parametrize("kind", ["no record", "a record of the user's", "a link"])
def test_a_fold_that_no_run_has_written_is_kept(again, tmp_path, kind, capsys):
    folder, words, fitted = again
    if kind == "a link":
        (folder / "fold-2").rename(tmp_path / "mine")
        (folder / "fold-2").symlink_to(tmp_path / "mine")
    elif kind == "no record":
        (folder / "fold-2" / "run.json").unlink()
    else:
        (folder / "fold-2" / "run.json").write_text('{"mine": 1}')
    for each in (folder, tmp_path):
        before = contents(each)
        for more in ([], ["--overwrite"], ["--overwrite", "--num_train_epochs=1"]):
            assert main([*words, *more]) == 2
            assert "which no run recorded there has written" in capsys.readouterr().err
        assert contents(each) == before and fitted == []


@pytest.mark.slow
def test_several_numbers_are_told_in_their_own_units(work, monkeypatch):
    monkeypatch.chdir(work)
    monkeypatch.setattr(layer_cache, "CACHE", work / "cache")
    assert main([*WORDS, "--label_column_name=price,weight", "--output_dir=numbers", "--predictions_with_text"]) == 0
    table, rows = pandas.read_parquet(work / "numbers" / "oof.parquet"), pandas.read_csv(work / "train.csv")
    names = ["prediction_price", "prediction_weight"]
    assert list(table.columns) == ["id", "text", *names, "fold", "label_price", "label_weight"]
    errors = [((table[f"prediction_{name}"] - rows[name]) ** 2).mean() ** 0.5 for name in ("price", "weight")]
    assert errors[0] < 3_000 and errors[1] < 0.002
    results = json.loads((work / "numbers" / "metrics.json").read_text())["results"]
    assert results["out of fold"]["mcrmse"] == pytest.approx(sum(errors) / 2)
    of_test = [pandas.read_csv(work / "numbers" / of / "test_predictions.csv")[names] for of in ("fold-1", "fold-2")]
    found = pandas.read_csv(work / "numbers" / "test_predictions.csv")[names]
    np.testing.assert_allclose(found, (of_test[0] + of_test[1]) / 2, rtol=1e-9)


@pytest.mark.slow
def test_several_labels(work, monkeypatch):
    monkeypatch.chdir(work)
    monkeypatch.setattr(layer_cache, "CACHE", work / "cache")
    words = ["--label_column_name=colours", "--problem_type=multi_label_classification", "--output_dir=colours"]
    assert main([*WORDS, *words]) == 0
    table, rows = pandas.read_parquet(work / "colours" / "oof.parquet"), pandas.read_csv(work / "train.csv")
    assert table["label"].tolist() == [
        " ".join(sorted(str(c).replace("nan", "").split())).replace(" ", "|") for c in rows["colours"]
    ]
    given = [(table[f"score_{name}"] > 0.5, rows["text"].str.contains(name)) for name in ("red", "blue")]
    hits, total = sum((a & b).sum() for a, b in given), sum(a.sum() + b.sum() for a, b in given)
    results = json.loads((work / "colours" / "metrics.json").read_text())["results"]
    assert results["out of fold"]["f1_micro"] == pytest.approx(2 * hits / total)


@pytest.mark.slow
def test_a_killed_cross_validation_ends_with_the_same_table(tmp_path, monkeypatch):
    kills.prepare(tmp_path)
    settings = ["--cv_folds=3", f"--test_file={tmp_path / 'validation.csv'}"]

    def words(output):
        given = kills.command(tmp_path, settings, output)
        return [word for word in given if not word.startswith("--validation_file")]

    assert kills.finish(kills.start(words("whole"))) == 0
    process, second = kills.start(words("killed")), tmp_path / "killed" / "fold-2"
    while not list(second.glob("checkpoint-*/manifest.json")):
        assert os.waitpid(process, os.WNOHANG) == (0, 0)
        time.sleep(0.01)
    os.kill(process, signal.SIGKILL)
    assert kills.finish(process) == -signal.SIGKILL
    assert not (tmp_path / "killed" / "oof.parquet").exists() and not RunRecord.read(second).finished
    assert kills.finish(kills.start(words("killed"), tmp_path / "log")) == 0
    log = (tmp_path / "log").read_text()
    assert "Fold 1 of 3, 40 rows train, 20 are held out: finished before." in log
    assert f"{second} holds this run, which was cut off. It goes on from {second}/checkpoint-" in log
    for name in ("oof.parquet", "test_predictions.csv", "metrics.json"):
        same = [(tmp_path / output / name).read_bytes() for output in ("whole", "killed")]
        assert same[0] == same[1], name
