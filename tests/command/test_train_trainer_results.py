"""What a finished run promises: its table, weights and numbers agree, in their own units, whatever was learnt."""

import json

import numpy as np
import pandas
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, pipeline

from lstmpool.modeling_lstmpool import LstmPoolForSequenceClassification
from lstmpool.train_trainer import main
from lstmpool.training.evaluation.calibration import probability_metrics
from lstmpool.training.loop.trainer import LstmPoolTrainer
from lstmpool.training.tasks.single_label import SingleLabel

from ..training_fixtures import sentences, write_csv
from .conftest import FILES, loaded_logits, run


def test_the_table_says_of_each_row_what_the_saved_model_says(work, monkeypatch):
    # a linear model of vectors that are nearly alike, as the tiny backbone's are, would magnify what batches round
    words = ["--stages=one", "--predictions_with_text", "--per_device_eval_batch_size=5"]
    folder, metrics = run(work, monkeypatch, "table", *words)
    table, rows = pandas.read_csv(folder / "test_predictions.csv"), pandas.read_csv(work / "test.csv")
    assert list(table.columns) == ["id", "text", "score_animal", "score_other", "prediction", "label"]
    assert table["id"].tolist() == rows["key"].tolist() and table["text"].tolist() == rows["text"].tolist()
    logits = loaded_logits(folder, rows["text"])
    scores = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert table["score_animal"].to_numpy() == pytest.approx(scores[:, 0], abs=1e-5)
    assert metrics["results"]["test"]["accuracy"] == pytest.approx((table["prediction"] == rows["label"]).mean())
    assert table["label"].tolist() == rows["label"].tolist()


def test_test_rows_without_labels_are_predicted_and_not_measured(work, monkeypatch):
    rows = pandas.read_csv(work / "test.csv")[["text", "key"]]
    rows.to_parquet(work / "unlabelled.parquet")
    files = [*FILES[:2], "--test_file=unlabelled.parquet", "--id_column_name=key"]
    words = ["--predictions_format=parquet"]
    folder, metrics = run(work, monkeypatch, "unlabelled", *words, files=files)
    table = pandas.read_parquet(folder / "test_predictions.parquet")
    assert table["id"].tolist() == rows["key"].tolist() and "label" not in table
    assert set(metrics["results"]) == set(metrics["baselines"]["majority class"]) == {"validation"}
    assert metrics["data"]["test"]["labels"] is None


def test_the_linear_baseline_reads_the_backbone_as_it_was_before_training(work, monkeypatch, capsys):
    """Whatever weights training ends with, or begins from, as a run that goes on does."""
    _, metrics = run(work, monkeypatch, "before")
    linear = metrics["baselines"]["logistic regression on the frozen backbone"]
    rows = [line for line in capsys.readouterr().out.splitlines() if "logistic regression on the frozen" in line]
    assert f"{linear['test']['accuracy']:.3f}" in rows[-1]

    def wreck(trainer, checkpoint):
        for parameter in trainer.model.parameters():
            parameter.data.zero_()

    monkeypatch.setattr(LstmPoolTrainer, "train_from", wreck)
    folder, metrics = run(work, monkeypatch, "wrecked")
    assert metrics["baselines"]["logistic regression on the frozen backbone"] == linear
    ours = metrics["results"]["test"]["accuracy"]
    assert ours < linear["test"]["accuracy"]
    warning = (
        "Warning: a linear model on the backbone's vectors is better than this model on test: accuracy "
        f"{linear['test']['accuracy']:.3f} beside {ours:.3f}. Train on more rows"
    )
    assert warning in capsys.readouterr().out and warning in (folder / "README.md").read_text()


def test_baselines_can_be_turned_off_and_one_that_cannot_be_fitted_is_named(work, monkeypatch, capsys):
    monkeypatch.setattr(LstmPoolTrainer, "train_from", lambda trainer, checkpoint: None)
    _, metrics = run(work, monkeypatch, "reinit", "--reinit_layers=1")
    assert list(metrics["baselines"]) == ["majority class"]
    assert "No linear baseline: --reinit_layers has replaced layers that it would read." in capsys.readouterr().out
    monkeypatch.setattr("lstmpool.training.runs.baseline.split_vectors", None)
    _, metrics = run(work, monkeypatch, "off", "--baselines=False")
    said = "\n".join(line for line in capsys.readouterr().out.splitlines() if not line.startswith("Stage 1 "))
    assert metrics["baselines"] == {} and "majority" not in said and "linear" not in said


def test_a_training_that_diverges_ends_in_one_line_and_saves_nothing(work, monkeypatch, capsys):
    monkeypatch.chdir(work)
    words = ["--backbone=backbone", "--use_cpu", "--disable_tqdm=True", "--report_to=none", "--output_dir=diverged"]
    rates = ["--learning_rate=1e30", "--head_learning_rate=1e30", "--max_grad_norm=0"]
    assert main([*words, *rates, *FILES, "--calibrate=temperature"]) == 2
    assert "error: training has diverged by step " in capsys.readouterr().err
    assert not (work / "diverged" / "model.safetensors").exists()


def test_a_checkpoint_of_another_model_or_task_is_not_resumed(work, monkeypatch, capsys):
    folder, _ = run(work, monkeypatch, "one_shape", "--save_total_limit=1")
    checkpoint = next(folder.glob("checkpoint-*"))
    again = [
        "--backbone=backbone",
        "--use_cpu",
        *FILES,
        "--output_dir=one_shape",
        f"--resume_from_checkpoint={checkpoint}",
    ]
    for words, message in (
        (["--lstm_hidden_size=5"], "expected lstm_hidden_size 5, found 4"),
        (["--lstm_hidden_size=4", "--label_column_name=price"], "expected num_labels 1, found 2"),
    ):
        assert main([*again, *words]) == 2
        assert message in capsys.readouterr().err


def test_a_temperature_is_in_the_saved_weights(work, monkeypatch):
    words = ["--num_train_epochs=12", "--head_learning_rate=3e-2", "--load_best_model_at_end=False"]
    plain, before = run(work, monkeypatch, "plain", *words)
    folder, metrics = run(work, monkeypatch, "calibrated", *words, "--calibrate=temperature")
    rows = pandas.read_csv(work / "test.csv")
    learned = metrics["learned_on_validation"]
    np.testing.assert_allclose(
        loaded_logits(folder, rows["text"]) * learned["temperature"],
        loaded_logits(plain, rows["text"]),
        rtol=1e-3,
        atol=1e-3,
    )
    effect = learned["calibration"]
    assert effect["validation"]["after"]["log_loss"] < effect["validation"]["before"]["log_loss"]
    measured = {name: before["results"]["test"][name] for name in ("log_loss", "brier", "ece")}
    assert effect["test"]["before"] == pytest.approx(measured, rel=1e-4)
    labels = (rows["label"] == "other").to_numpy().astype(int)
    task = SingleLabel(["animal", "other"])
    wanted = probability_metrics(task, loaded_logits(folder, rows["text"]), labels)
    assert effect["test"]["after"] == pytest.approx(wanted, rel=1e-3, abs=1e-4)
    assert (folder / "reliability.png").is_file() and "temperature" in (folder / "README.md").read_text()


def test_thresholds_are_at_one_half_in_the_saved_model(work, monkeypatch):
    words = ["--label_column_name=labels", "--tune_thresholds", "--calibrate=temperature"]
    folder, metrics = run(work, monkeypatch, "thresholds", *words)
    rows, table = pandas.read_csv(work / "test.csv"), pandas.read_csv(folder / "test_predictions.csv")
    names = list(LstmPoolForSequenceClassification.from_pretrained(folder).config.id2label.values())
    assert names == ["blue", "one", "sun"]
    decided = loaded_logits(folder, rows["text"]) > 0
    said = ["|".join(np.array(names)[row]) for row in decided]
    assert said == table["prediction"].fillna("").tolist()
    effect = metrics["learned_on_validation"]["thresholds"]
    assert metrics["results"]["test"]["f1_macro"] == effect["test"]["at_thresholds"]["f1_macro"]
    assert effect["validation"]["at_thresholds"]["f1_macro"] >= effect["validation"]["at_half"]["f1_macro"]


def test_a_finished_model_is_trained_further(work, monkeypatch):
    first, _ = run(work, monkeypatch, "first", "--layers", "1", "2", "--layer_pooling=gru")
    second, _ = run(work, monkeypatch, "second", f"--init_from={first}", "--learning_rate=0", backbone=False)
    head = ["--head_learning_rate=0"]
    same, _ = run(work, monkeypatch, "same", "--init_from=first", "--learning_rate=0", *head, backbone=False)
    before, after = load_file(first / "model.safetensors"), load_file(same / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)  # it began with what was there
    moved = load_file(second / "model.safetensors")
    assert not torch.equal(before["classifier.weight"], moved["classifier.weight"])
    config = json.loads((second / "config.json").read_text())
    assert config["layer_pooling"] == "gru"
    assert "--" not in json.dumps(config["auto_map"])  # no other repository is needed


def test_a_finished_model_is_evaluated_without_training(work, monkeypatch, capsys):
    first, metrics = run(work, monkeypatch, "evaluated")
    files = ["--init_from=evaluated", "--test_file=test.csv", "--id_column_name=key"]
    folder, again = run(work, monkeypatch, "evaluation", backbone=False, files=files)
    assert again["results"]["test"] == pytest.approx(metrics["results"]["test"], abs=1e-6)
    assert {path.name for path in folder.iterdir()} == {
        "run.json",
        "metrics.json",
        "test_predictions.csv",
        "errors.csv",
        "confusion_matrix.png",
    }
    tables = [pandas.read_csv(of / "test_predictions.csv") for of in (first, folder)]
    pandas.testing.assert_frame_equal(*tables, rtol=1e-4)
    assert "evaluated, not trained" in capsys.readouterr().out


def test_rows_of_a_data_set_by_name(work, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", work / "cache_of_data")
    for split in ("train", "validation", "test"):
        (work / "hub").mkdir(exist_ok=True)
        (work / "hub" / f"{split}.csv").write_bytes((work / f"{split}.csv").read_bytes())
    files = ["--dataset_name=hub", "--validation_split_name=validation[:50%]", "--test_split_name=test"]
    words = ["--max_train_samples=40", "--max_seq_length=6", "--pad_to_max_length"]
    folder, metrics = run(work, monkeypatch, "by_name", *words, files=files)
    assert {name: of["rows"] for name, of in metrics["data"].items()} == {"train": 40, "validation": 16, "test": 24}
    assert metrics["data"]["validation"]["truncated"] == 3 / 4  # of 3, 6, 9 and 12 words, and [CLS] and [SEP]
    assert AutoTokenizer.from_pretrained(folder).model_max_length == 6


STILL = ["--learning_rate=0", "--head_learning_rate=0", "--num_train_epochs=1"]


def test_the_loss_that_was_asked_for_is_trained_on(work, monkeypatch):
    still = [*STILL, "--stages=one", "--save_total_limit=1"]  # from a linear model, the errors are small in any loss
    losses = {}
    for name in ("mse", "smooth_l1"):
        folder, _ = run(work, monkeypatch, name, *still, "--label_column_name=price", f"--regression_loss={name}")
        state = json.loads(next(folder.glob("checkpoint-*/trainer_state.json")).read_text())
        losses[name] = next(entry["loss"] for entry in state["log_history"] if "loss" in entry)
    assert losses["smooth_l1"] < 0.6 * losses["mse"]  # near zero it is half the square


def test_a_new_classifier_starts_at_the_labels_shares_and_an_old_one_as_it_is(work, monkeypatch):
    counts = pandas.read_csv(work / "train.csv")["label"].value_counts()
    shares = np.log([(counts[name] + 0.5) / 97 for name in ("animal", "other")])
    bias = {}
    for name, words in {
        "fresh": ["--stages=one"],
        "balanced": ["--class_weights=balanced", "--stages=one"],
        "kept": ["--init_from=start_balanced"],
        "other_labels": ["--init_from=start_balanced", "--label_column_name=price"],  # 8 classes of 12 rows each
    }.items():
        old = any("init" in word for word in words)
        folder, _ = run(work, monkeypatch, f"start_{name}", *STILL, *words, backbone=not old)
        bias[name] = load_file(folder / "model.safetensors")["classifier.bias"].numpy()
    np.testing.assert_allclose(bias["fresh"], shares, rtol=1e-6)
    assert (bias["balanced"] == 0).all() and (bias["kept"] == 0).all()
    np.testing.assert_allclose(bias["other_labels"], [np.log(12.5 / 100)] * 8, rtol=1e-6)


def test_training_stops_early(work, monkeypatch):
    words = ["--num_train_epochs=9", "--learning_rate=0", "--head_learning_rate=0", "--early_stopping_patience=2"]
    folder, _ = run(work, monkeypatch, "early", *words, "--save_total_limit=9")
    assert len(list(folder.glob("checkpoint-*"))) == 3  # the first is never beaten


def test_a_run_is_not_replaced_before_the_model_is_there(work, monkeypatch, capsys):
    folder, _ = run(work, monkeypatch, "kept")
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    (work / "weightless").mkdir(exist_ok=True)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (work / "weightless" / name).write_bytes((work / "backbone" / name).read_bytes())
    assert main(["--backbone=weightless", *FILES, "--output_dir=kept", "--overwrite", "--use_cpu"]) == 2
    assert "--backbone weightless: its weights cannot be loaded" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


def test_a_model_that_was_only_calibrated_says_so(work, monkeypatch):
    run(work, monkeypatch, "to_calibrate")
    files = ["--init_from=to_calibrate", *FILES[1:], "--calibrate=temperature"]
    folder, metrics = run(work, monkeypatch, "only_calibrated", backbone=False, files=files)
    card = (folder / "README.md").read_text()
    assert "evaluated, not trained" in card and "None in this run" in card and "chose the epoch" not in card
    logits = loaded_logits(folder, pandas.read_csv(work / "test.csv")["text"])
    of_first = loaded_logits(work / "to_calibrate", pandas.read_csv(work / "test.csv")["text"])
    temperature = metrics["learned_on_validation"]["temperature"]
    np.testing.assert_allclose(logits * temperature, of_first, rtol=1e-3, atol=1e-4)


def test_a_frozen_backbone_is_saved_as_it_was_and_its_states_are_cached(work, monkeypatch):
    monkeypatch.setattr("lstmpool.training.model.layer_cache.CACHE", work / "cache")
    folder, _ = run(work, monkeypatch, "frozen", "--freeze_backbone", "--baselines")
    assert len(list((work / "cache").glob("*.arrow"))) == 3  # of train, validation and test
    other, _ = run(work, monkeypatch, "uncached", "--freeze_backbone", "--baselines", "--layer_cache=no")
    tables = [pandas.read_csv(of / "test_predictions.csv") for of in (folder, other)]
    pandas.testing.assert_frame_equal(*tables, atol=1e-4)
    numbers = [json.loads((of / "metrics.json").read_text())["baselines"] for of in (folder, other)]
    assert numbers[0] == numbers[1]
    grouped = "--train_sampling_strategy=group_by_length"  # states have no length
    again, _ = run(work, monkeypatch, "grouped", "--freeze_backbone", "--baselines", grouped)
    pandas.testing.assert_frame_equal(tables[0], pandas.read_csv(again / "test_predictions.csv"))
    before, after = load_file(work / "backbone" / "model.safetensors"), load_file(folder / "model.safetensors")
    backbone = {name.removeprefix("lstmpool.backbone."): tensor for name, tensor in after.items()}
    shared = before.keys() & backbone.keys()
    assert len(shared) > 20 and all(torch.equal(before[name], backbone[name]) for name in shared)


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        "--train_sampling_strategy=group_by_length",
        "--gradient_accumulation_steps=2",
        "--label_smoothing_factor=0.1 --class_weights=balanced",
        "--layerwise_lr_decay=0.8 --freeze_embeddings",
        "--freeze_layers=1 --reinit_layers=1",
        "--eval_strategy=steps --eval_steps=3 --early_stopping_patience=1",
        "--save_strategy=no",
        "--max_steps=3",
        '--lr_scheduler_type=cosine_with_restarts --lr_scheduler_kwargs={"num_cycles":2}',
        "--optim=adafactor",
        "--optim=sgd",
        "--gradient_checkpointing",
        "--bf16",
        "--eval_on_start",
        "--eval_accumulation_steps=1",
        "--include_for_metrics loss inputs",
        "--dataloader_num_workers=1",
        "--neftune_noise_alpha=5",
        "--torch_compile",
        "--auto_find_batch_size",
        "--full_determinism",
        "--report_to=tensorboard",
        "--logging_strategy=steps --logging_steps=1",
        "--pad_to_max_length --max_seq_length=16 --preprocessing_num_workers=2",
        "--label_column_name=price --regression_loss=smooth_l1",
        "--metric_for_best_model=loss",
        "--baselines --layer_pooling=concat",
    ],
)
def test_settings_of_the_library_work(work, monkeypatch, request, words):
    folder, metrics = run(work, monkeypatch, f"setting{abs(hash(words))}", *words.split())
    assert np.isfinite(list(metrics["results"]["test"].values())).all()


def test_a_metric_that_is_never_defined_keeps_the_last_step(work, monkeypatch, capsys):
    """A correlation with rows that are all alike: no epoch is the best."""
    write_csv(work / "alike.csv", {"text": sentences(6), "price": ["1.5"] * 6, "key": list(range(6))})
    files = ["--train_file=train.csv", "--validation_file=alike.csv"]
    words = ["--label_column_name=price", "--metric_for_best_model=pearson"]
    run(work, monkeypatch, "undefined", *words, files=files)
    assert "The model after the last step, 12, was kept." in capsys.readouterr().out


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
