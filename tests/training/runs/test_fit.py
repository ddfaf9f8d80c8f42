"""What a run learns from validation, in which order, and what it learns without validation rows."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lstmpool.training.evaluation import learned_head
from lstmpool.training.model.target_scale import TargetScale
from lstmpool.training.output.start import Fresh
from lstmpool.training.runs.fit import _learn_from_validation
from lstmpool.training.runs.state import Extras, State
from lstmpool.training.tasks.multi_label import MultiLabel
from lstmpool.training.tasks.single_label import SingleLabel

from ...training_fixtures import task_of


STATES = np.array([[-16.0], [-8.0], [8.0], [24.0]])  # (N, H)
LABELS = np.array([[0.0], [1.0], [1.0], [1.0]])  # (N, C)


def state_with(kind=MultiLabel, scale=None, calibrate=False, tune_thresholds=False):
    """The state of a run whose classifier gives its input."""
    head = torch.nn.Linear(1, 1)
    head.load_state_dict({"weight": torch.ones(1, 1), "bias": torch.zeros(1)})
    if scale is not None:
        scale.switch_on(head, fresh=False)
    args = SimpleNamespace(calibrate=calibrate, tune_thresholds=tune_thresholds)
    state = State(SimpleNamespace(task=task_of(kind, outputs=1)), args, Fresh(), Extras(), tokens={})
    state.model = SimpleNamespace(classifier=head)
    state.scale = scale
    return state


def logits_of(state):
    return state.model.classifier(torch.tensor(STATES, dtype=torch.float32)).detach().numpy().astype(float)


def test_scale_temperature_and_thresholds_come_in_this_order(monkeypatch):
    fitted_on = []

    def two(task, logits, labels):
        fitted_on.append(logits.tolist())
        return 2.0

    monkeypatch.setattr(learned_head, "fit_temperature", two)
    state = state_with(scale=TargetScale([[0.0], [16.0]]), calibrate=True, tune_thresholds=True)  # std 8: the scale
    before = logits_of(state)
    assert before.tolist() == [[-2.0], [-1.0], [1.0], [3.0]]
    logits, learned = _learn_from_validation(state, {"validation": before}, {"validation": LABELS})
    assert fitted_on == [STATES.tolist()]  # in units of the scale, the temperature would be another one
    # 8 times, then half of it: -8, -4, 4, 12. All that is true lies above -6, midway between the lowest two.
    assert learned["target_scale"] == [8.0]
    assert learned["temperature"] == 2.0
    assert learned["folded_thresholds"] == [-6.0]
    assert logits["validation"].tolist() == [[-2.0], [2.0], [10.0], [18.0]]
    assert logits_of(state).tolist() == [[-2.0], [2.0], [10.0], [18.0]]


def test_without_validation_rows_no_thresholds_are_looked_for():
    state = state_with(tune_thresholds=True)
    logits, learned = _learn_from_validation(state, {"test": STATES}, {"test": LABELS})
    assert learned == {}
    assert logits["test"].tolist() == logits_of(state).tolist() == STATES.tolist()


@pytest.mark.parametrize(("kind", "learns"), [(MultiLabel, True), (SingleLabel, False)])
def test_thresholds_are_looked_for_with_several_labels_alone(kind, learns):
    state = state_with(kind)
    _, learned = _learn_from_validation(state, {"validation": STATES}, {"validation": LABELS})
    assert ("thresholds" in learned) == learns
    assert logits_of(state).tolist() == STATES.tolist()  # found, and not folded unless asked for
