"""Runs on numbers: what is scaled in training is in its own units in all that a run leaves."""

import json

import numpy as np
import pandas
import pytest
import torch
from safetensors.torch import load_file
from transformers import pipeline

from .conftest import FILES, loaded_logits, run


TARGETS = ["--label_column_name=price,weight", "--num_train_epochs=10", "--head_learning_rate=1e-2"]


def test_a_regression_is_learnt_in_its_own_units_whatever_they_are(work, monkeypatch):
    larger = ["--stages=one", "--lstm_hidden_size=16", "--learning_rate=1e-2"]
    folder, metrics = run(work, monkeypatch, "numbers", *TARGETS, *larger)
    rows, table = pandas.read_csv(work / "test.csv"), pandas.read_csv(folder / "test_predictions.csv")
    scale = metrics["learned_on_validation"]["target_scale"]
    assert scale == [4096.0, 2.0**-9]
    for column, name in enumerate(("price", "weight")):
        spread = rows[name].std()
        assert abs(table[f"prediction_{name}"].mean() - rows[name].mean()) < spread
        error = table[f"prediction_{name}"] - rows[name]
        assert error.std() < 0.8 * spread  # it learns, both the large and the small
        assert table[f"prediction_{name}"].to_numpy() == pytest.approx(
            loaded_logits(folder, rows["text"])[:, column], rel=1e-4
        )
    errors = table[["prediction_price", "prediction_weight"]].to_numpy() - rows[["price", "weight"]].to_numpy()
    assert metrics["results"]["test"]["mcrmse"] == pytest.approx(np.sqrt((errors**2).mean(0)).mean(), rel=1e-4)
    classify = pipeline("text-classification", str(folder), trust_remote_code=True, top_k=None)
    said = {entry["label"]: entry["score"] for entry in classify(rows["text"][0])[0]}
    assert said["price"] == pytest.approx(table["prediction_price"][0], rel=1e-4)
    assert said["weight"] == pytest.approx(table["prediction_weight"][0], rel=1e-4)


def test_training_rows_alone_set_the_scale_and_epochs_are_measured_in_real_units(work, monkeypatch):
    far = pandas.read_csv(work / "validation.csv")
    far.assign(price=far["price"] * 64).to_csv(work / "far.csv", index=False)
    files = [FILES[0], "--validation_file=far.csv", "--test_file=far.csv"]
    folder, metrics = run(work, monkeypatch, "far", "--label_column_name=price", "--save_total_limit=1", files=files)
    assert metrics["learned_on_validation"]["target_scale"] == [4096.0]
    last = max(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    logged = json.loads((last / "trainer_state.json").read_text())["log_history"]
    best = min(entry["eval_mse"] for entry in logged if "eval_mse" in entry)
    assert best == pytest.approx(metrics["results"]["validation"]["mse"], rel=1e-5)


def test_a_metric_that_is_never_a_number_chooses_no_epoch(work, monkeypatch, capsys):
    alike = pandas.read_csv(work / "validation.csv").assign(price=2.5)
    alike.to_csv(work / "alike.csv", index=False)
    files = [FILES[0], "--validation_file=alike.csv"]
    run(work, monkeypatch, "alike", "--label_column_name=price", "--metric_for_best_model=pearson", files=files)
    assert "The model after the last step, 12, was kept" in capsys.readouterr().out


def test_other_units_give_the_same_predictions_in_those_units(work, monkeypatch):
    tables = []
    for name in ("price", "cents"):
        folder, _ = run(work, monkeypatch, f"of_{name}", f"--label_column_name={name}")
        tables.append(pandas.read_csv(folder / "test_predictions.csv")["prediction"])
    assert (tables[0] * 64).tolist() == tables[1].tolist()


def test_checkpoints_of_a_regression_are_in_its_units_too(work, monkeypatch):
    folder, metrics = run(
        work, monkeypatch, "checkpoints", *TARGETS, "--load_best_model_at_end=False", "--save_total_limit=9"
    )
    last = max(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    saved, checkpoint = load_file(folder / "model.safetensors"), load_file(last / "model.safetensors")
    assert all(torch.equal(saved[name], tensor) for name, tensor in checkpoint.items())


def test_a_resumed_regression_ends_with_the_same_weights_to_the_last_bit(work, monkeypatch):
    words = [*TARGETS, "--save_total_limit=10"]
    folder, _ = run(work, monkeypatch, "resumed", *words)
    whole = load_file(folder / "model.safetensors")
    half = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))[2]
    run(work, monkeypatch, "resumed", *words, "--overwrite", f"--resume_from_checkpoint={half}")
    again = load_file(folder / "model.safetensors")
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_targets_as_they_are_on_request(work, monkeypatch):
    words = ["--label_column_name=weight", "--no_standardize_targets"]
    _, metrics = run(work, monkeypatch, "raw", *words)
    assert "target_scale" not in metrics["learned_on_validation"]


def test_a_regression_is_trained_further_from_where_it_was(work, monkeypatch):
    still = ["--label_column_name=price,weight", "--learning_rate=0", "--head_learning_rate=0"]
    first, _ = run(work, monkeypatch, "price", *TARGETS)
    second, _ = run(work, monkeypatch, "price_again", "--init_from=price", *still, backbone=False)
    before, after = load_file(first / "model.safetensors"), load_file(second / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
