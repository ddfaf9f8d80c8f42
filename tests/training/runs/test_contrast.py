"""Few rows: which texts share a label is learnt first, where that is known to help."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import DataCollatorWithPadding

from lstmpool.train_trainer import main
from lstmpool.training.flags import defaults
from lstmpool.training.flags.defaults import Limits
from lstmpool.training.flags.training_arguments import TrainingArguments
from lstmpool.training.runs import contrast
from lstmpool.training.runs.contrast import compare_texts, contrastive_steps, draw_batch, pair_loss, steps_after
from lstmpool.training.tasks.multi_label import MultiLabel
from lstmpool.training.tasks.regression import Regression
from lstmpool.training.tasks.single_label import SingleLabel

from ...conftest import tiny_model, word_tokenizer
from ...training_fixtures import save_backbone, sentences, task_of, write_csv


def test_the_loss_is_the_mean_of_both_kinds_of_pairs():
    # cosines: first with second 0.6, first with third 0, second with third 0.8
    vectors = torch.tensor([[2.0, 0.0], [3.0, 4.0], [0.0, 5.0]])
    labels = torch.tensor([7, 7, 2])
    agree = (1 - 0.6) ** 2
    differ = (0**2 + 0.8**2) / 2
    assert pair_loss(vectors, labels).item() == pytest.approx((agree + differ) / 2)


@pytest.mark.parametrize(("labels", "expected"), [([1, 1], (1 - 0.6) ** 2 / 2), ([1, 2], 0.6**2 / 2)])
def test_a_batch_with_one_kind_of_pairs_has_a_loss_and_finite_gradients(labels, expected):
    vectors = torch.tensor([[1.0, 0.0], [3.0, 4.0]], requires_grad=True)
    loss = pair_loss(vectors, torch.tensor(labels))
    loss.backward()
    assert loss.item() == pytest.approx(expected)
    assert vectors.grad.isfinite().all()


def test_a_batch_holds_equally_many_rows_of_each_label():
    labels = np.array([0] * 90 + [1] * 7 + [2] * 5)
    drawn = draw_batch(labels, 16, np.random.default_rng(0))
    assert np.bincount(labels[drawn]).tolist() == [5, 5, 5]
    assert len(set(drawn.tolist())) == 15


def test_of_many_labels_half_as_many_as_texts_are_drawn_and_a_lone_row_twice():
    labels = np.arange(40)
    drawn = draw_batch(labels, 16, np.random.default_rng(0))
    assert sorted(np.bincount(drawn)[np.unique(drawn)].tolist()) == [2] * 8


def test_comparing_texts_trains_the_backbone_alone_and_tells_the_labels_apart(tmp_path):
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to=[], learning_rate=5e-3, disable_tqdm=True)
    rows = [{"input_ids": [5, 6 + i % 8, 7], "attention_mask": [1, 1, 1], "labels": i % 2} for i in range(24)]
    model, collator = tiny_model(), DataCollatorWithPadding(word_tokenizer())
    embeddings = model.get_input_embeddings().weight.requires_grad_(False)  # as --freeze_embeddings does
    before = {name: parameter.clone() for name, parameter in model.state_dict().items()}
    batch = collator(rows)
    labels = batch.pop("labels")
    inputs = {"train": Dataset.from_list(rows)}

    def loss():
        with torch.no_grad():
            return pair_loss(model.eval().base_model(**batch).layer_states[:, -1], labels).item()

    first = loss()
    compare_texts(SimpleNamespace(model=model, args=args, inputs=inputs, collator=collator, contrastive_steps=40))
    assert loss() < 0.8 * first
    moved = {name for name, parameter in model.state_dict().items() if not parameter.equal(before[name])}
    assert moved and all(".backbone." in name for name in moved)
    assert embeddings.equal(before["lstmpool.backbone.embeddings.word_embeddings.weight"])


def state_of(
    rows=499, kind=SingleLabel, outputs=3, pairs=False, steps=None, least_steps=200, two_stages=True, **model_args
):
    model = SimpleNamespace(**{"freeze_backbone": False, "peft": None} | model_args)
    job = SimpleNamespace(
        task=task_of(kind, outputs=outputs), reads_pairs=pairs, model_args=model, splits={"train": range(rows)}
    )
    args = SimpleNamespace(
        contrastive_steps=steps,
        limits=Limits(least_steps),
        train_batch_size=16,
        gradient_accumulation_steps=1,
        world_size=1,
    )
    return SimpleNamespace(job=job, args=args, has_two_stages=two_stages)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 100),
        ({"least_steps": 0}, 0),  # the user has set the length
        ({"rows": 500}, 0),
        ({"rows": 24}, 100),  # 8 of each class
        ({"rows": 23}, 0),
        ({"steps": 7, "rows": 5000, "least_steps": 0}, 7),
        ({"steps": 0}, 0),
        ({"kind": MultiLabel}, 0),
        ({"kind": Regression}, 0),
        ({"pairs": True}, 0),
        ({"freeze_backbone": True}, 0),
        ({"peft": "lora"}, 0),
        ({"two_stages": False, "steps": 7}, 0),
    ],
)
def test_texts_are_compared_where_it_is_known_to_help(changes, expected):
    assert contrastive_steps(state_of(**changes), tokens=12) == expected


def test_of_long_texts_fewer_steps_will_do():
    assert contrastive_steps(state_of(), tokens=125) == 25  # half of those that read 100,000 tokens


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A backbone, and 24 rows whose label is whether the text has a certain word."""
    folder = tmp_path_factory.mktemp("data")
    save_backbone(folder / "backbone")
    labels = ["yes" if i % 16 < 8 else "no" for i in range(24)]
    columns = {"text": sentences(24), "label": labels, "price": [f"{i}.5" for i in range(24)]}
    write_csv(folder / "train.csv", columns)
    write_csv(folder / "pairs.csv", {"sentence1": sentences(24), "sentence2": sentences(24), "label": labels})
    return folder


def train(data, output, *words, length=("--max_steps=1",)):
    base = [f"--backbone={data / 'backbone'}", f"--output_dir={output}", "--use_cpu", "--lstm_hidden_size=4"]
    base += ["--report_to=none", "--disable_tqdm=True", "--bf16=False", *length]
    base += [] if any(word.startswith("--train_file") for word in words) else [f"--train_file={data / 'train.csv'}"]
    base += [] if any(word.startswith("--label_column") for word in words) else ["--label_column_name=label"]
    return main([*base, *words])


@pytest.mark.parametrize(
    ("fewest", "length"), [(24, "10 steps on 24 rows, 5 epochs,"), (25, "6 steps on 24 rows, 3 epochs.")]
)
def test_stage_2_has_the_other_half_of_the_steps_or_three_epochs(data, tmp_path, monkeypatch, capsys, fewest, length):
    monkeypatch.setattr(defaults, "LEAST_STEPS", 20)
    monkeypatch.setattr(contrast, "FEWEST_TO_GO_ON", fewest)
    assert train(data, tmp_path / "out", length=()) == 0
    said = capsys.readouterr().out
    assert "Texts compared: 10 steps of the backbone alone" in said
    assert f"Training: {length}" in said  # of 2 steps each


def test_very_few_rows_are_fewer_than_200():
    assert [steps_after(200, rows) for rows in (199, 200)] == [0, 100]


def test_comparing_texts_moves_the_backbone_and_is_repeatable(data, tmp_path, capsys):
    still = ["--learning_rate=1e-9", "--head_learning_rate=0"]
    outcomes = {}
    for name, words in {
        "none": [*still, "--contrastive_steps=0"],
        "one": [*still, "--learning_rate=1e-3", "--contrastive_steps=3"],
        "same": [*still, "--learning_rate=1e-3", "--contrastive_steps=3"],
    }.items():
        assert train(data, tmp_path / name, *words) == 0
        outcomes[name] = (tmp_path / name / "model.safetensors").read_bytes()
    assert outcomes["one"] == outcomes["same"] != outcomes["none"]
    said = capsys.readouterr().out
    assert said.count("Texts compared: 3 steps of the backbone alone") == 2
    # of a backbone that has seen all labels, no row is held out
    assert said.count("on rows held out from it") == 1
    measured = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("none", "one")]
    assert ["stage_1_out_of_fold" in metrics for metrics in measured] == [True, False]


def test_the_baseline_reads_the_backbone_as_it_was(data, tmp_path):
    scores = []
    for name, words in {"compared": ["--contrastive_steps=20", "--learning_rate=1e-2"], "not": []}.items():
        files = [f"--validation_file={data / 'train.csv'}", "--baselines=True"]
        assert train(data, tmp_path / name, *files, *words) == 0
        scores.append(json.loads((tmp_path / name / "metrics.json").read_text())["baselines"])
    assert scores[0] == scores[1]


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["--label_column_name=price"], "the task regression"),
        (["--stages=one"], "one stage, as --stages says"),
        (["--freeze_backbone"], "--freeze_backbone"),
        (["--peft=lora"], "--peft"),
        (["--train_file=pairs.csv"], "pairs of texts"),
    ],
)
def test_it_is_refused_where_there_is_nothing_to_compare(data, tmp_path, capsys, monkeypatch, words, found):
    monkeypatch.chdir(data)
    assert train(data, tmp_path / "out", "--contrastive_steps=3", *words) == 2
    assert f"found {found}." in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
