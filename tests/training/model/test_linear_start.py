import warnings

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge

from lstmpool.fields_lstmpool import MULTI, REGRESSION, SINGLE
from lstmpool.training.model import linear_start
from lstmpool.training.model.linear_start import fit_start, summed_loss

from ...conftest import tiny_model


def states_of(labels, layers=(0, 1), rows=None, width=6, seed=0):
    """Layer states (N, 2, width) of noise, whose `layers` hold the labels in their first features."""
    rng = np.random.default_rng(seed)
    states = rng.normal(size=(len(labels), 2, width)).astype(np.float32)
    for layer in layers:
        states[:, layer, 0] += 3 * np.asarray(labels, dtype=np.float32)
    return states


def fit(states, labels, outputs, problem_type=SINGLE, strata=None):
    return fit_start(states, labels, outputs, summed_loss(problem_type), strata, seed=0)


def logits_of(start, states):
    vectors = (torch.tensor(states).flatten(1) - start.mean) / start.scale
    return (vectors @ start.weight.T + start.bias).numpy()


def one_strength(monkeypatch, strength):
    monkeypatch.setattr(linear_start, "STRENGTHS", np.array([strength]))


@pytest.mark.parametrize("width", [4, 40])  # fewer features than rows, and more
def test_it_is_the_logistic_regression_of_scikit_learn(monkeypatch, width):
    one_strength(monkeypatch, 0.1)
    labels = np.arange(60) % 3
    states = states_of(labels, layers=[0], width=width) * 5 + 2
    start = fit(states, labels, 3, strata=labels)
    assert start.layers == "all"
    flat = states.reshape(60, -1)
    flat = (flat - flat.mean(0)) / flat.std(0)
    expected = LogisticRegression(C=0.1, tol=1e-8, max_iter=1000).fit(flat, labels).predict_proba(flat)
    found = torch.tensor(logits_of(start, states)).softmax(-1).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-3)


@pytest.mark.parametrize("width", [4, 40])
def test_of_numbers_it_is_the_ridge_regression_of_scikit_learn(monkeypatch, width):
    one_strength(monkeypatch, 0.1)
    labels = np.random.default_rng(1).normal(size=(60, 2)) + 7
    states = states_of(labels[:, 0], width=width)
    start = fit(states, labels, 2, REGRESSION)
    chosen = states[:, -1] if start.layers == "top" else states.reshape(60, -1)
    flat = (chosen - chosen.mean(0)) / chosen.std(0)
    expected = Ridge(alpha=1 / (2 * 0.1)).fit(flat, labels).predict(flat)  # its error is not halved
    np.testing.assert_allclose(logits_of(start, states), expected, atol=2e-3)


def test_the_layers_are_chosen_that_hold_the_labels():
    labels = np.arange(80) % 2
    low = fit(states_of(labels, layers=[0]), labels, 2, strata=labels)
    assert low.layers == "all"
    only_top = states_of(labels, layers=[1], width=30)
    top = fit(only_top, labels, 2, strata=labels)
    assert top.layers == "top"
    assert not top.weight[:, :30].any() and top.weight[:, 30:].any()


def test_the_strength_is_chosen_on_rows_that_were_held_out():
    """Labels that do not depend on the states want the strongest regularisation, labels that do a weak one."""
    labels = np.arange(100) % 2
    states = states_of(labels)
    noise = np.random.default_rng(2).permutation(labels)
    assert fit(states, labels, 2, strata=labels).strength >= 0.01
    assert fit(states, noise, 2, strata=noise).strength <= 1e-3


def test_the_logits_are_of_rows_that_a_model_has_not_seen():
    """With labels of pure chance and features enough to learn them by heart, held-out rows are not given right."""
    labels = np.random.default_rng(3).permutation(np.arange(60) % 2)
    states = np.random.default_rng(4).normal(size=(60, 2, 100)).astype(np.float32)
    start = fit(states, labels, 2, strata=labels)
    assert sorted(start.rows) == list(range(60))
    assert (start.logits.argmax(1) == labels[start.rows]).mean() < 0.75


def test_several_labels_are_fitted_each():
    labels = np.stack([np.arange(90) % 2, np.arange(90) % 3 == 0, np.zeros(90)], axis=1).astype(int)
    states = states_of(labels[:, 0])
    states[:, 1, 1] += 5 * labels[:, 1]
    logits = logits_of(fit(states, labels, 3, MULTI), states)
    assert ((logits > 0) == (labels > 0)).mean(0).tolist() == pytest.approx([1, 1, 1], abs=0.05)
    assert (logits[:, 2] < -2).all()  # a label that no row has


@pytest.mark.parametrize("labels", [[0, 0, 0, 1], [0, 1, 2, 3, 4, 5], [0, 0, 1, 1, 1, 1, 1, 1, 1]])
def test_rare_classes_are_no_error_and_no_warning(labels):
    labels = np.array(labels)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        start = fit(states_of(labels), labels, 7, strata=labels)
    logits = logits_of(start, states_of(labels))
    assert np.isfinite(logits).all()
    assert logits[:, 6].max() < logits.max()  # a class without rows


def test_a_constant_feature_is_no_error():
    labels = np.arange(20) % 2
    states = states_of(labels)
    states[:, :, 3] = 7.0
    assert np.isfinite(logits_of(fit(states, labels, 2, strata=labels), states)).all()


def test_what_hardly_varies_is_not_blown_up():
    """300.7 in float32 has a spread of its own rounding; the labels lie in a millionth of it."""
    labels = np.arange(40) % 2
    states = np.full((40, 2, 3), 300.7, dtype=np.float32)
    states[:, 1, 0] += 3e-4 * labels
    start = fit(states, labels, 2, strata=labels)
    assert start.scale[-3:].tolist() == pytest.approx([3.007] * 3, rel=1e-3)
    assert np.abs(logits_of(start, states)).max() < 0.1


def test_of_many_rows_some_are_read(monkeypatch):
    monkeypatch.setattr(linear_start, "ROWS_TO_CHOOSE", 20)
    labels = np.arange(100) % 2
    start = fit(states_of(labels), labels, 2, strata=labels)
    assert len(start.rows) == 20


def test_more_than_a_few_rows_are_split_once(monkeypatch):
    monkeypatch.setattr(linear_start, "FEW", 50)
    labels = np.arange(100) % 2
    assert len(fit(states_of(labels), labels, 2, strata=labels).rows) == 20  # a fifth


def test_the_same_seed_gives_the_same_start():
    labels = np.arange(50) % 2
    first, second = (fit(states_of(labels), labels, 2, strata=labels) for _ in range(2))
    assert torch.equal(first.weight, second.weight)
    assert np.array_equal(first.logits, second.logits)


def test_a_model_then_answers_as_the_linear_model(monkeypatch):
    model = tiny_model(linear_skip=True, num_labels=2).eval()
    config = model.config
    labels = np.arange(40) % 2
    states = np.random.default_rng(0).normal(size=(40, len(config.layers), config.state_size)).astype(np.float32)
    states[:, 0, 0] += 2 * labels
    start = fit(states, labels, 2, strata=labels)
    model.classifier.weight.data.zero_()
    model.classifier.bias.data.fill_(99.0)
    start.put(model)
    with torch.no_grad():
        found = model(layer_states=torch.tensor(states)).logits.numpy()
    np.testing.assert_allclose(found, logits_of(start, states), atol=1e-5)
