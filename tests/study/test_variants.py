"""The variants of the study: what is done to states and logits, by hand, and the rule that chooses among them."""

import numpy as np
import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from study import choice
from study.choice import FIRST_HALF, best_of, first_round, later_round, scores_table
from study.data import read_set
from study.frozen import MEMBER, FrozenSet, train_head
from study.poolings import POOLINGS, put_pooling
from study.records import FINAL, TUNE, Setting
from study.run import main
from study.variants import (
    FITTED,
    HELD_OUT,
    VARIANTS,
    DroppedPooling,
    Linear,
    Variant,
    made,
    standardise,
)

from ..conftest import tiny_config, tiny_model
from ..training_fixtures import save_backbone
from .test_run import text, write_set


SETTING = Setting(1e-2, 2)


def test_standardised_states_have_the_training_rows_mean_and_spread():
    train = torch.tensor([[[1.0, 7.0]], [[3.0, 7.0]]])  # of one layer: mean 2 and spread 1; a constant
    other = torch.tensor([[[5.0, 9.0]]])
    found, of_other = standardise([train, other])
    assert found.tolist() == [[[-1, 0]], [[1, 0]]]
    # the constant's spread counts as a hundredth of the layer's root mean square, of 1, 7, 3 and 7
    least = 0.01 * ((1 + 49 + 9 + 49) / 4) ** 0.5
    torch.testing.assert_close(of_other, torch.tensor([[[3.0, 2 / least]]]))


def test_a_rows_held_out_logits_are_of_a_model_that_never_saw_it():
    """Each row has a feature of its own, by which a model that saw it knows its label, and no other does."""
    states, labels = torch.eye(20).view(20, 1, 20), torch.arange(20) % 2
    linear = Linear.fit([states, states, states], labels, 2, torch.nn.CrossEntropyLoss(reduction="sum"))
    margin = linear.train[torch.arange(20), labels] - linear.train[torch.arange(20), 1 - labels]
    assert (margin > 0).all() and linear.validation.equal(linear.train)
    of_held_out = linear.held_out[torch.arange(20), labels] - linear.held_out[torch.arange(20), 1 - labels]
    assert of_held_out.abs().max() < 0.5 * margin.min() or (of_held_out < 0).any()
    assert linear.parameters == 2 * 20 + 2


@pytest.fixture
def frozen(tmp_path, monkeypatch):
    monkeypatch.setattr("lstmpool.training.model.layer_cache.CACHE", tmp_path / "cache")
    folder = write_set(tmp_path / "one", {"text": text, "label": lambda i: "yes" if i % 3 else "no"})
    backbone = str(save_backbone(tmp_path / "bert"))
    return FrozenSet(backbone, read_set(folder.parent, "one", None, None), "mean", batch_size=8)


def test_the_linear_way_adds_its_logits_and_is_all_where_there_is_no_pooling(frozen, monkeypatch):
    alone = frozen.fit(Variant(None, linear=FITTED), 1, SETTING, with_test=True)
    way = frozen.linear(("mean",))
    np.testing.assert_allclose(alone.validation, way.validation.double())
    np.testing.assert_allclose(alone.test, way.test.double())
    seen = []

    def spy(model, states, labels, setting, batch_size, seed, beside, averaged):
        seen.append((seed, beside, averaged))
        for parameter in model.classifier.parameters():  # so that the pooling adds its seed
            torch.nn.init.constant_(parameter, 0)
        torch.nn.init.constant_(model.classifier.bias, float(seed))

    monkeypatch.setattr("study.frozen.train_head", spy)
    four = Variant(POOLINGS["last"], linear=HELD_OUT, averaged=True, members=2)
    fit = frozen.fit(four, 3, SETTING, with_test=True)
    assert [seed for seed, _, _ in seen] == [3, 3 + MEMBER] and all(averaged for _, _, averaged in seen)
    assert all(beside.equal(way.held_out) for _, beside, _ in seen)
    np.testing.assert_allclose(fit.test, way.test.double() + (3 + 3 + MEMBER) / 2)
    assert fit.parameters == 2 * (2 * 16 + 2) + way.parameters
    frozen.fit(Variant(POOLINGS["last"], linear=FITTED), 3, SETTING, with_test=False)
    assert seen[-1][1].equal(way.train)
    frozen.fit(Variant(POOLINGS["last"]), 3, SETTING, with_test=False)
    assert seen[-1][1] is None


def test_vectors_lie_side_by_side_and_only_a_standardised_variant_is_standardised(frozen, monkeypatch):
    seen = []
    monkeypatch.setattr("study.frozen.train_head", lambda model, states, *others: seen.append(states))
    frozen.fit(VARIANTS["cross_attention"], 1, SETTING, with_test=False)
    cls, mean = frozen.states(("cls",))[0], frozen.states(("mean",))[0]
    assert seen[-1].equal(torch.cat([cls, mean], dim=-1)) and not cls.equal(mean)
    frozen.fit(VARIANTS["lstm_std"], 1, SETTING, with_test=False)
    assert seen[-1].equal(standardise([mean])[0])
    frozen.fit(VARIANTS["lstm_wide"], 1, SETTING, with_test=True)
    assert seen[-1].shape == (24, mean.size(1), 3 * 16)
    assert seen[-1].mean(0).abs().max() < 1e-4


def test_the_loop_takes_what_is_beside_and_averages_the_second_half_of_the_steps():
    states, labels = torch.randn(6, 4, 16), torch.arange(6) % 3
    model = tiny_model()
    weights, epochs = [], 4

    def train(averaged=False, beside=None):
        put_pooling(model, POOLINGS["last"], 1)
        train_head(model, states, labels, Setting(1e-2, epochs), 6, 1, beside, averaged)
        return model.classifier.weight.detach().clone()

    hook = register_optimizer_step_post_hook(
        lambda optimizer, *_: weights.append(optimizer.param_groups[0]["params"][0].detach().clone())
    )
    last = train()
    hook.remove()
    assert len(weights) == epochs and last.equal(weights[-1])
    torch.testing.assert_close(train(averaged=True), (weights[2] + weights[3]) / 2)
    certain = 100.0 * torch.nn.functional.one_hot(labels, 3)  # leaves nothing to learn but the decay
    start = put_pooling(model, POOLINGS["last"], 1)[0].detach().clone()
    assert (train(beside=certain) - start).abs().max() < 1e-3 < (last - start).abs().max()


def test_layers_are_dropped_in_training_alone():
    states, pooler = torch.ones(64, 4, 16), made(DroppedPooling)(tiny_config(), 0)
    seen = []
    pooler.rnn.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    pooler.eval()(states)
    assert seen[-1].equal(states)
    torch.manual_seed(0)
    pooler.train()(states)
    of_layers = seen[-1][:, :, 0]
    assert seen[-1].equal(of_layers[..., None].expand_as(states))  # a layer goes whole
    assert 0.1 < (of_layers == 0).float().mean() < 0.3


def test_cross_attention_reads_the_cls_and_the_mean_vectors_of_each_layer():
    pooler = VARIANTS["cross_attention"].build(tiny_config(), 0).eval()
    states = torch.randn(3, 4, 32)
    swapped = torch.cat([states[..., 16:], states[..., :16]], dim=-1)
    torch.testing.assert_close(pooler(states), pooler(swapped))  # attention does not know the order
    changed = states.clone()
    changed[:, 2, 20:] += 1
    assert not torch.allclose(pooler(states), pooler(changed))
    vectors = pooler.norm(torch.cat([states[..., :16], states[..., 16:]], dim=1))
    query = pooler.query.repeat(3, 1, 1)
    torch.testing.assert_close(pooler(states), pooler.attention(query, vectors, vectors)[0][:, 0])


# ------------------------------------------------------------------------------------------------------------ the rule
def row(pooling, dataset, validation, kind=TUNE, seed="0", rate="0.001"):
    return {
        **{"pooling": pooling, "dataset": dataset, "validation": str(validation), "kind": kind, "seed": seed},
        **{"learning_rate": rate, "head_learning_rate": "", "epochs": "4", "test": "nan"},
    }


def of_all(pooling, value, **others):
    return [row(pooling, dataset, value, **others) for dataset in FIRST_HALF]


def test_a_variant_counts_with_its_best_setting_averaged_over_families():
    rows = of_all("lstm_std", 0.5) + of_all("lstm_std", 0.4, rate="0.004") + of_all("lstm_small", 0.6)[:-1]
    rows += [row("lstm_std", "trec6", 0.9, rate="0.016"), row("lstm_std", "trec6", 1.0, seed="100")]
    # trec6 counts 0.9 and trec50 0.5, so their family 0.7; three other families 0.5
    assert first_round(rows) == {"lstm_std": pytest.approx((0.7 + 3 * 0.5) / 4)}  # the other lacks a set


def test_the_second_round_reads_only_final_runs_of_the_chosen_setting():
    rows = of_all("lstm_std", 0.5) + of_all("lstm_std", 0.6, rate="0.004")
    for seed, value in (("1", 0.5), ("2", 0.7)):
        rows += of_all("lstm_std", value, kind=FINAL, seed=seed, rate="0.004")
        rows += of_all("lstm_std", 0.99, kind=FINAL, seed=seed, rate="0.001")
    assert later_round(rows) == {"lstm_std": pytest.approx(0.6)}


def test_the_best_go_on_by_their_mean_over_the_kinds_of_vectors():
    scores = {
        "mean": {"lstm_std": 0.8, "lstm_wide": 0.75, "lstm_small": 0.7, "linear_all": 0.9},
        "cls": {"lstm_std": 0.6, "lstm_small": 0.76, "linear_all": 0.9},
    }
    assert best_of(scores, choice.CANDIDATES) == ["lstm_wide", "lstm_small", "lstm_std"]
    assert "| lstm_small | variant | 70.0 | 76.0 | 73.0 |" in scores_table(scores)
    assert "| linear_all | control | 90.0 | 90.0 | 90.0 |" in scores_table(scores)
    assert set(choice.SECOND_HALF).isdisjoint(FIRST_HALF)


def test_the_study_runs_variants_and_an_ensemble_takes_its_members_setting(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("lstmpool.training.model.layer_cache.CACHE", tmp_path / "cache")
    write_set(tmp_path / "trec6", {"text": text, "label": lambda i: "yes" if i % 3 else "no"})
    flags = [f"--data={tmp_path}", f"--output={tmp_path / 'out'}", f"--backbone={save_backbone(tmp_path / 'bert')}"]
    words = [*flags, *"--token_poolings mean --datasets trec6 --poolings linear_all concat_residual".split()]
    words += ["concat_residual_ensemble", "--tune_only"]
    assert main(words) == 0
    made_runs = (tmp_path / "out" / "frozen-mean.csv").read_text().splitlines()[1:]
    assert [run.split(",")[4] for run in made_runs] == [
        "linear_all",
        *["concat_residual"] * 10,
        "concat_residual_ensemble",
    ]
    assert not any(",final," in run for run in made_runs)
    capsys.readouterr()
    assert main([*words, "--dry_run"]) == 0 and "0 runs remain" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        choice.main([f"--study={tmp_path / 'out'}", f"--output={tmp_path / 'none'}"])
    assert "expected runs of variants" in capsys.readouterr().err
