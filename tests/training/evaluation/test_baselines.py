import warnings
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from transformers import DataCollatorWithPadding

from lstmpool.training.data.rows import Split
from lstmpool.training.evaluation import baselines, linear
from lstmpool.training.evaluation.baselines import (
    Baselines,
    Lead,
    Vectors,
    fit_baselines,
    of_length_1,
    split_vectors,
    text_vectors,
    why_no_linear_model,
)
from lstmpool.training.evaluation.linear import drawn, fit_linear, linear_features
from lstmpool.training.evaluation.results import Evaluation
from lstmpool.training.model.layer_cache import StatesCollator
from lstmpool.training.output.terminal import about_linear
from lstmpool.training.tasks.multi_label import MultiLabel
from lstmpool.training.tasks.regression import Regression
from lstmpool.training.tasks.single_label import SingleLabel

from ...conftest import random_inputs, tiny_model, word_tokenizer
from ...training_fixtures import task_of


# ---------------------------------------------------------------------------------------------------- the linear model
def test_the_features_of_a_pair_say_how_alike_its_texts_are():
    u, v = np.array([[1.0, -2.0]]), np.array([[3.0, 1.0]])
    assert linear_features(u, v).tolist() == [[1, -2, 3, 1, 2, 3, 3, -2]]
    assert linear_features(u).tolist() == [[1, -2]]


def test_cross_validation_chooses_how_strongly_it_is_regularised(monkeypatch):
    features = np.random.default_rng(0).normal(size=(40, 20)).astype(np.float32)
    labels = features[:, 0] - features[:, 1]
    assert fit_linear(features, labels, task_of(Regression, 1), seed=0)[-1].alpha == 0.1  # the weakest: no noise
    scores = dict(zip(linear.STRENGTHS, [0.1, 0.7, 0.3, 0.9, 0.9, 0.2, 0.1], strict=True))
    monkeypatch.setattr(linear, "_held_out_score", lambda strength, *rest: scores[strength])
    assert fit_linear(features, labels > 0, task_of(SingleLabel, 2), seed=0)[-1].C == 0.01  # the first of two equals
    scores |= {1e-5: -1.0}
    assert fit_linear(features, labels, task_of(Regression, 1), seed=0)[-1].alpha == pytest.approx(1e5)  # the lowest


def test_a_row_is_predicted_by_models_that_have_not_seen_it():
    """Each row has a feature of its own, which says nothing of the others."""
    labels = np.array([0] * 6 + [1] * 4)
    fold_of = np.arange(10) % 5
    assert linear._held_out_score(10.0, np.eye(10), labels, fold_of, task_of(SingleLabel, 2)) < 0.7


def test_each_class_is_dealt_out_over_the_folds():
    strata = [0] * 10 + [1] * 5 + [2] * 2 + [3]
    fold_of = linear.deal_folds(strata, 5, seed=0)
    assert np.bincount(fold_of[:10]).tolist() == [2] * 5 and sorted(fold_of[10:15]) == [0, 1, 2, 3, 4]
    assert fold_of[15] != fold_of[16]
    assert fold_of.tolist() != linear.deal_folds(strata, 5, seed=1).tolist()


ODD = {
    "one class": (SingleLabel, [0] * 6),
    "one row": (SingleLabel, [1]),
    "two rows of two classes": (SingleLabel, [0, 1]),
    "a class with one row": (SingleLabel, [0] * 11 + [2]),
    "all classes with one row": (SingleLabel, [0, 1, 2]),
    "a label that no row has": (MultiLabel, [[1, 0, 0], [0, 0, 1]] * 4),
    "a label that all rows have": (MultiLabel, [[1, 1, 0], [0, 1, 1]] * 4),
    "a label that one row has": (MultiLabel, [[1, 0, 0]] + [[0, 0, 1]] * 7),
    "no labels": (MultiLabel, [[0, 0, 0]] * 5),
    "one output": (MultiLabel, [[0], [1]] * 4),
    "one output that no row has": (MultiLabel, [[0]] * 8),
    "numbers": (Regression, [0.5, 1.5, 2.5, 0.5, 7.0, 1e6]),
    "several targets": (Regression, [[0.5, 1e-6, 3.0], [1.5, 2e-6, 3.0]] * 4),
    "numbers that are all the same": (Regression, [3.0] * 6),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_labels_give_a_model_without_a_warning(name):
    kind, labels = ODD[name]
    labels = np.array(labels)
    features = np.random.default_rng(0).normal(size=(len(labels), 4)).astype(np.float32)
    features[:, 3] = 2  # a feature that never changes
    task = task_of(kind, labels.shape[1] if labels.ndim > 1 else 1 if kind is Regression else 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        answers = fit_linear(features, labels, task, seed=0).predict(features)
        assert np.isfinite(list(task.score(answers, labels).values())[0])


def test_its_cost_is_bounded(monkeypatch):
    fitted = []
    monkeypatch.setattr(linear, "_fitted", lambda model, features, labels, task: fitted.append(len(labels)))
    monkeypatch.setattr(linear, "_held_out_score", lambda s, x, *rest: fitted.append(len(x)) or 0.0)
    features, labels = np.zeros((30_000, 2), dtype=np.float32), np.arange(30_000) % 2
    fit_linear(features, labels, task_of(SingleLabel, 2), seed=0)
    assert fitted == [5_000] * 8  # seven strengths, and the last fit
    fitted.clear()
    many = task_of(SingleLabel, 1000)
    fit_linear(np.zeros((20_000, 1000), dtype=np.float32), labels[:20_000], many, seed=0)
    assert fitted == [2_000] * 4 + [4_000]  # four strengths, and as many rows as 4e9 products allow
    assert linear.rows_fitted(20_000, 1000, many) == 4_000


def test_rows_are_drawn_where_there_are_more():
    assert drawn(3, 5, seed=0).tolist() == [0, 1, 2]
    some = drawn(100, 5, seed=0)
    assert len(set(some)) == 5 and some.tolist() == sorted(some)
    assert some.tolist() == drawn(100, 5, seed=0).tolist() != drawn(100, 5, seed=1).tolist()


# --------------------------------------------------------------------------------------------------------- the vectors
def tokens(inputs):
    return datasets.Dataset.from_dict({name: value.tolist() for name, value in inputs.items()})


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_the_vectors_are_those_of_the_top_layer():
    model, inputs = tiny_model(), random_inputs(5, 7, lengths=[7, 3, 5, 2, 6])
    with torch.no_grad():
        wanted = model(**inputs, output_hidden_states=True).hidden_states[-1][:, 0].numpy()
    model.train()
    state = torch.get_rng_state()
    found = text_vectors(model, tokens(inputs), DataCollatorWithPadding(word_tokenizer()), batch_size=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert found == pytest.approx(wanted, abs=1e-5)


def test_a_text_without_tokens_has_a_vector_of_zeros():
    rows = datasets.Dataset.from_dict({"input_ids": [[], [2, 7, 3]], "attention_mask": [[], [1, 1, 1]]})
    found = text_vectors(tiny_model(), rows, DataCollatorWithPadding(word_tokenizer()), batch_size=2)
    assert found[0].tolist() == [0.0] * 16 and np.linalg.norm(found[1]) > 1
    assert of_length_1(found)[0].tolist() == [0.0] * 16
    assert np.linalg.norm(of_length_1(found)[1]) == pytest.approx(1)


def test_cached_states_are_read_without_the_backbone(monkeypatch):
    states = np.random.default_rng(0).normal(size=(3, 4 * 16)).astype(np.float32)
    model = tiny_model()
    monkeypatch.setattr(model.base_model, "forward", None)
    rows = datasets.Dataset.from_dict({"layer_states": states}).with_format("numpy")
    found = text_vectors(model, rows, StatesCollator(4, 16), batch_size=2)
    assert found == pytest.approx(states.reshape(3, 4, 16)[:, -1], abs=1e-6)


def test_the_texts_of_a_pair_are_read_apart(monkeypatch):
    """The tokens of both together, which Trainer reads, are not looked at."""
    model, tokenizer = tiny_model(token_pooling="mean"), word_tokenizer()
    first, second = ["the late parcel", "money", "when"], ["a parcel", "my money back please", "where"]
    split = Split("rows.csv", first, second, [0, 1, 0], ids=[0, 1, 2])
    monkeypatch.setattr(baselines, "ROWS", 2)
    found = split_vectors(model, split, None, None, tokenizer, batch_size=2, seed=1, title="train")
    assert len(found.rows) == 2
    for vectors, texts in ((found.u, first), (found.v, second)):
        for vector, row in zip(vectors, found.rows, strict=True):
            with torch.no_grad():
                states = model(**tokenizer(texts[row], return_tensors="pt")).layer_states[:, -1].numpy()
            assert vector == pytest.approx(unit(states)[0], abs=1e-5)


def test_of_single_texts_what_trainer_reads_is_read():
    inputs = random_inputs(4, 5)
    rows = tokens(inputs)
    split = Split("rows.csv", ["never read"] * 4, None, [0, 1, 0, 1], ids=[0, 1, 2, 3])
    collator = DataCollatorWithPadding(word_tokenizer())
    model = tiny_model()
    labelled = rows.add_column("labels", [0, 1, 0, 1])
    found = split_vectors(model, split, labelled, collator, None, batch_size=2, seed=0, title="test")
    assert found.v is None and found.rows.tolist() == [0, 1, 2, 3]
    assert found.u == pytest.approx(unit(text_vectors(model, rows, collator, batch_size=4)), abs=1e-6)


def test_where_there_is_no_linear_model_a_reason_is_given():
    flags = {"reinit_layers": 0, "fsdp": None, "deepspeed": None}
    task = task_of(SingleLabel)
    assert why_no_linear_model(task, flags) == ""
    assert "--reinit_layers" in why_no_linear_model(task, flags | {"reinit_layers": 1})
    assert "spread" in why_no_linear_model(task, flags | {"fsdp": True})
    assert "up to 1000 outputs, found 1001" in why_no_linear_model(SingleLabel([str(i) for i in range(1001)]), flags)


# ---------------------------------------------------------------------------------------------------------- the scores
def fitted(kind, labels, outputs=2, right=None, vectors=None):
    """The baselines of vectors whose first number gives the labels away, beside a model that is `right` or wrong.

    Args:
        labels: by split.
        right: of each row of test or, without test, of validation: whether the model's answer is right.
        vectors: in place of those.
    """
    task = task_of(kind, outputs)
    arrays = {split: np.array(of) for split, of in labels.items()}
    if vectors is None:
        vectors = {}
        for split, of in arrays.items():
            first = of.reshape(len(of), -1)[:, :1].astype(np.float32)
            vectors[split] = Vectors(np.arange(len(of)), np.c_[first, np.ones_like(first)])
    logits = {}
    for split, of in arrays.items():
        answers = of.copy()
        if split != "train" and right is not None:
            answers = np.where(np.array(right)[: len(of)], of, 1 - of)
        logits[split] = answers * 10.0 if kind is Regression else np.eye(2)[answers]
        logits[split] = logits[split].reshape(len(of), -1)
    evaluation = Evaluation.of(task, logits, arrays, learned={})
    return fit_baselines(vectors, arrays, evaluation, seed=0, held_out=True), evaluation


TRAIN = [0, 0, 0, 0, 0, 1, 1, 1]
TEST = [0, 0, 1, 1, 1, 1, 1, 1]


def test_majority_class_and_linear_model():
    found, _ = fitted(SingleLabel, {"train": TRAIN, "validation": TRAIN, "test": TEST})
    assert list(found.scores) == ["logistic regression on the frozen backbone", "majority class"]
    of_linear, majority = found.scores.values()
    assert majority["test"]["accuracy"] == 2 / 8 and majority["validation"]["accuracy"] == 5 / 8
    assert of_linear["test"]["accuracy"] == 1 and set(of_linear) == {"validation", "test"}
    assert found.lead is None  # equals do not lead


def test_mean_and_ridge():
    train, test = [[0.0, 1.0], [2.0, 3.0]] * 4, [[2.0, 3.0], [0.0, 1.0]] * 4
    of_linear, mean = fitted(Regression, {"train": train, "test": test})[0].scores.values()
    assert mean["test"]["mcrmse"] == pytest.approx(1)  # each target lies 1 away from its mean
    assert of_linear["test"]["mcrmse"] < 0.5


def test_baselines_of_multi_label():
    labels = np.array([[1, 1], [0, 0], [1, 1], [1, 0]] * 2)
    vectors = {split: Vectors(np.arange(8), labels.astype(np.float32)) for split in ("train", "test")}
    evaluation = Evaluation.of(task_of(MultiLabel, 2), {"test": labels - 0.5}, {"test": labels}, learned={})
    found = fit_baselines(vectors, {"train": labels, "test": labels}, evaluation, seed=0, held_out=True)
    of_linear, majority = found.scores.values()
    assert majority["test"]["f1_micro"] == pytest.approx(2 * 6 / (8 + 10))  # label 0 to all rows, label 1 to none
    assert of_linear["test"]["f1_micro"] == 1


def test_test_rows_are_predicted_from_rows_held_out_too_and_validation_rows_from_training_rows():
    """Only validation has rows of the class 1."""
    train, validation, test = [0, 0, 2, 2] * 2, [0, 1, 1, 2] * 2, [1, 1, 0, 2]
    vectors = {}
    for split, of in (("train", train), ("validation", validation), ("test", test)):
        vectors[split] = Vectors(np.arange(len(of)), np.eye(3, dtype=np.float32)[of])
    arrays = {split: np.array(of) for split, of in (("train", train), ("validation", validation), ("test", test))}
    logits = {split: np.eye(3)[of] for split, of in arrays.items()}
    evaluation = Evaluation.of(task_of(SingleLabel), logits, arrays, learned={})
    for held_out, of_test in ((True, 1), (False, 0.5)):
        found = fit_baselines(vectors, arrays, evaluation, seed=0, held_out=held_out)
        of_linear = found.scores["logistic regression on the frozen backbone"]
        assert of_linear["validation"]["accuracy"] == 0.5  # the rows of 1 are never given it
        assert of_linear["test"]["accuracy"] == of_test


def test_without_vectors_the_most_frequent_label_is_left():
    found, _ = fitted(SingleLabel, {"train": TRAIN, "test": TEST}, vectors={})
    assert list(found.scores) == ["majority class"] and found.lead is None
    assert found.scores["majority class"]["test"]["accuracy"] == 0.25


def test_rows_without_labels_are_not_compared():
    found, _ = fitted(SingleLabel, {"train": TRAIN})
    assert found == Baselines()


def test_only_some_of_many_rows_are_compared_and_said_so():
    """Here every other test row has a vector; the model is right in those, and wrong in the others."""
    labels = {"train": TRAIN * 4, "test": TEST * 4}
    vectors = {
        "train": Vectors(np.arange(0, 32, 2), np.array(TRAIN * 4, dtype=np.float32)[::2, None]),
        "test": Vectors(np.arange(0, 32, 2), np.array(TEST * 4, dtype=np.float32)[::2, None]),
    }
    found, _ = fitted(SingleLabel, labels, right=[True, False] * 16, vectors=vectors)
    assert found.lead is None
    assert found.drawn == (
        "The linear model was fitted to 16 of 32 rows and scored on 16 of 32 test rows, drawn at random."
    )
    found, _ = fitted(SingleLabel, labels, right=[False, True] * 16, vectors=vectors)
    assert found.lead == Lead("test", linear=1.0, trained=0.0, is_clear=True)


# --------------------------------------------------------------------------------------------------------- the warning
ADVICE = "Train on more rows or for more steps, or use the linear model."


def warning_of(found, evaluation):
    return about_linear(found, evaluation.task.titles[evaluation.task.headline])


@pytest.mark.parametrize(
    ("wrong", "doubt"),
    [(1, ", but not clearly,"), (20, "")],  # of 40 rows, beside a linear model that is always right
)
def test_it_warns_where_the_linear_model_is_better(wrong, doubt):
    labels = {"train": TRAIN, "validation": TRAIN, "test": TEST * 5}
    found, evaluation = fitted(SingleLabel, labels, right=[False] * wrong + [True] * (40 - wrong))
    assert warning_of(found, evaluation) == [
        f"Warning: a linear model on the backbone's vectors is better than this model{doubt} on test: "
        f"accuracy 1.000 beside {(40 - wrong) / 40:.3f}. {ADVICE}"
    ]


def test_without_test_rows_validation_decides():
    found, evaluation = fitted(SingleLabel, {"train": TRAIN, "validation": TEST}, right=[False] * 8)
    assert found.lead == Lead("validation", linear=1.0, trained=0.0, is_clear=True)
    assert "better than this model on validation: accuracy 1.000 beside 0.000." in warning_of(found, evaluation)[0]


def test_it_does_not_warn_where_the_model_is_better_or_as_good():
    """The vectors say nothing, so the linear model always gives the most frequent label."""
    blind = {split: Vectors(np.arange(8), np.ones((8, 2), dtype=np.float32)) for split in ("train", "test")}
    labels = {"train": TRAIN, "test": TEST}
    for right in ([True] * 8, [False] * 6 + [True] * 2):  # 8 and 2 of 8; the linear model 2 of 8
        found, evaluation = fitted(SingleLabel, labels, right=right, vectors=blind)
        assert warning_of(found, evaluation) == []


def test_of_errors_the_lower_is_better():
    labels = {"train": [0.0, 1.0, 2.0, 3.0] * 5, "test": [0.0, 1.0, 2.0, 3.0] * 5}
    found, evaluation = fitted(Regression, labels, outputs=1)  # the model gives 10 times the truth
    assert found.lead.is_clear and found.lead.linear < found.lead.trained == 81 * 14 / 4
    assert "on test: MSE 0.000 beside 283.500." in warning_of(found, evaluation)[0]
    close = Evaluation.of(evaluation.task, {"test": np.array(labels["test"])[:, None]}, evaluation.targets, {})
    vectors = {split: Vectors(np.arange(20), np.array(of)[:, None]) for split, of in labels.items()}
    arrays = {split: np.array(of) for split, of in labels.items()}
    assert fit_baselines(vectors, arrays, close, seed=0, held_out=True).lead is None


def test_a_few_rows_that_agree_decide_nothing():
    labels = {"train": TRAIN, "test": TEST[1:4]}
    assert fitted(SingleLabel, labels, right=[False] * 3)[0].lead.is_clear is False


def test_of_many_outputs_nothing_is_fitted():
    task = MultiLabel([str(i) for i in range(1001)])
    assert fit_baselines({}, {}, SimpleNamespace(task=task), seed=0, held_out=True) == Baselines()


def test_a_threshold_that_was_moved_for_macro_f1_is_no_reason_to_warn():
    labels = {"train": np.array(TRAIN), "test": np.array(TEST)}
    vectors = {split: Vectors(np.arange(8), of[:, None].astype(np.float32)) for split, of in labels.items()}
    logits = {split: np.eye(2)[of] + [0, 5] for split, of in labels.items()}  # the second class is always given
    for learned, warns in (({}, True), ({"folded_thresholds": [0.0, -5.0]}, False)):
        evaluation = Evaluation.of(task_of(SingleLabel, 2), logits, labels, learned)
        found = fit_baselines(vectors, labels, evaluation, seed=0, held_out=True)
        assert bool(warning_of(found, evaluation)) == warns
