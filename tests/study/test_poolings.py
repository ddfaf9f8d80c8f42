"""The poolings of the study and the variants of the LSTM: by hand, the loop, and the rule of choice."""

import copy

import numpy as np
import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers import BertConfig

from lstmpool.configuration_lstmpool import LstmPoolConfig
from lstmpool.training.flags.training_arguments import DEFAULTS, TrainingArguments
from lstmpool.training.loop.trainer import LstmPoolTrainer
from study import choice
from study.choice import FIRST_HALF, best_of, first_round, later_round, scores_table
from study.data import read_set
from study.frozen import MEMBER, FrozenSet, head_flops, predict, train_head
from study.poolings import POOLINGS, SINGLE_LAYERS, put_pooling, scramble
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


def minilm(labels):
    sizes = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
    return LstmPoolConfig(backbone_config=BertConfig(**sizes), num_labels=labels)


def test_the_scrambled_reshape_mixes_the_layers_of_a_text_and_no_two_texts():
    layers = torch.tensor([0.0, 1.0, 2.0])[None, :, None].expand(1, 3, 4)  # each constant
    expected = [[0, 1, 2, 0], [1, 2, 0, 1], [2, 0, 1, 2]]
    assert scramble(layers)[0].tolist() == expected
    assert scramble(torch.cat([layers, layers + 10]))[1].tolist() == [[10 + x for x in row] for row in expected]


def test_the_scrambled_pooling_is_the_lstm_over_that_reshape():
    states, config = torch.randn(2, 4, 16), tiny_config()
    scrambled, lstm = POOLINGS["lstm_scrambled"](config, 1), POOLINGS["lstm"](config, 1)
    lstm.load_state_dict(scrambled.state_dict())
    torch.testing.assert_close(scrambled(states), lstm(scramble(states)))
    assert not torch.allclose(scrambled(states), lstm(states))


def test_shuffled_layers_are_the_lstm_over_them_in_one_order_a_seed():
    states, config = torch.randn(2, 4, 16), tiny_config()
    shuffled, lstm = POOLINGS["lstm_shuffled"](config, 1), POOLINGS["lstm"](config, 1)
    lstm.load_state_dict({name: value for name, value in shuffled.state_dict().items() if name != "order"})
    assert sorted(shuffled.order.tolist()) == [0, 1, 2, 3]
    torch.testing.assert_close(shuffled(states), lstm(states[:, shuffled.order]))
    torch.testing.assert_close(shuffled.eval()(states), lstm(states[:, shuffled.order]))
    assert POOLINGS["lstm_shuffled"](config, 1).order.equal(shuffled.order)
    assert len({tuple(POOLINGS["lstm_shuffled"](config, seed).order.tolist()) for seed in range(8)}) > 3


def test_a_shuffle_is_never_the_order_that_there_was():
    config = tiny_config(layers=[1, 2])
    assert all(POOLINGS["lstm_shuffled"](config, seed).order.tolist() == [1, 0] for seed in range(8))


@pytest.mark.parametrize("labels", [2, 77])
def test_the_mlp_on_the_top_layer_is_as_large_as_the_lstm(labels):
    def size(name):
        pooler = POOLINGS[name](minilm(labels), 0)
        return sum(p.numel() for p in pooler.parameters()) + (pooler.output_size + 1) * labels

    # two directions of 4 gates of 256 units over 384 inputs, 256 states and two biases; then 512 and a bias a label
    assert size("lstm") == 2 * 4 * 256 * (384 + 256 + 2) + 513 * labels
    assert size("last_mlp") == pytest.approx(size("lstm"), rel=0.01)
    assert size("concat") == pytest.approx(size("lstm"), rel=0.01)


def test_the_mlp_on_the_top_layer_reads_nothing_else():
    states, pooler = torch.randn(2, 4, 16), POOLINGS["last_mlp"](tiny_config(), 0)
    other = states.clone()
    other[:, :-1] = 99
    assert pooler(states).equal(pooler(other))


def test_one_layer_is_read_and_the_lowest_one_where_there_are_too_few():
    states = torch.randn(2, 4, 16)
    found = [POOLINGS[name](tiny_config(), 0)(states) for name in SINGLE_LAYERS]
    expected = [states[:, k] for k in (3, 2, 1, 0, 0, 0)]
    assert all(a.equal(b) for a, b in zip(found, expected, strict=True))


def test_layers_side_by_side_are_all_of_them_and_nothing_more():
    states, pooler = torch.randn(2, 4, 16), POOLINGS["concat_linear"](tiny_config(), 0)
    assert pooler(states).equal(torch.cat(states.unbind(1), dim=1)) and pooler.output_size == 4 * 16
    assert not list(pooler.parameters())


def test_each_readout_and_the_norm_are_what_their_names_say():
    built = {name: POOLINGS[name](tiny_config(), 0) for name in POOLINGS}
    assert {name: built[name].readout for name in built if name.startswith("lstm_") and "s" not in name[5:6]} == {
        "lstm_final": "final",
        "lstm_mean": "mean",
        "lstm_norm": "last",
    }
    assert isinstance(built["lstm_norm"].layer_norm, torch.nn.LayerNorm)
    assert isinstance(built["lstm"].layer_norm, torch.nn.Identity)
    assert isinstance(built["gru"].rnn, torch.nn.GRU)


@pytest.mark.parametrize("pooling", ["lstm_norm", "weighted"])
@pytest.mark.parametrize("problem_type", ["single_label_classification", "multi_label_classification", "regression"])
def test_the_loop_trains_as_trainer_does(pooling, problem_type, tmp_path):
    """In batches of all rows, where the order of the rows is no matter."""
    model = tiny_model(problem_type=problem_type)
    model.lstmpool.backbone.requires_grad_(False)
    put_pooling(model, POOLINGS[pooling], seed=1)
    states = 3 * torch.randn(8, 4, 16)
    single = problem_type == "single_label_classification"
    labels = torch.arange(8) % 3 if single else (torch.arange(24) % 5 < 2).float().view(8, 3)
    other = copy.deepcopy(model)

    train_head(model, states, labels, Setting(0.05, 7), batch_size=8, seed=1)
    args = TrainingArguments(
        **{**DEFAULTS, "report_to": "none", "save_strategy": "no", "learning_rate": 0.05},
        **{"output_dir": str(tmp_path), "num_train_epochs": 7, "disable_tqdm": True, "use_cpu": True},
    )
    args.per_device_train_batch_size, args.head_learning_rate, args.remove_unused_columns = 8, 0.05, False
    rows = [{"layer_states": state, "labels": label} for state, label in zip(states, labels, strict=True)]
    LstmPoolTrainer(other, args, train_dataset=rows).train()
    for (name, found), expected in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5, msg=name)


def test_what_a_seed_gives_is_the_same_again_and_the_backbone_stays():
    states, labels, logits = torch.randn(20, 4, 16), torch.arange(20) % 3, {}
    model = tiny_model(pooler_dropout=0.1)
    before = copy.deepcopy(model.lstmpool.backbone.state_dict())
    for run, (weights, order) in enumerate([(1, 1), (1, 1), (2, 1), (1, 2)]):
        put_pooling(model, POOLINGS["lstm"], weights)
        train_head(model, states, labels, Setting(1e-2, 2), batch_size=6, seed=order)
        logits[run] = predict(model, states)
    assert (logits[0] == logits[1]).all()
    assert (logits[0] != logits[2]).any() and (logits[0] != logits[3]).any()
    assert all(value.equal(before[name]) for name, value in model.lstmpool.backbone.state_dict().items())


def test_operations_are_counted_the_lstms_too():
    model = tiny_model(layers=[3, 4])
    put_pooling(model, POOLINGS["last"], 0)
    assert head_flops(model) == 2 * 16 * 3
    put_pooling(model, POOLINGS["lstm_mean"], 0)
    # two directions, two layers read, 4 gates of 5 units over 16 inputs and 5 states; then 10 to 3
    assert head_flops(model) == 2 * (2 * 2 * 4 * 5 * (16 + 5) + 10 * 3)


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
    rows += [row("lstm_std", "trec6", of, seed=seed, rate="0.016") for of, seed in ((0.9, "0"), (1.0, "100"))]
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
    made_runs = (tmp_path / "out" / "runs.csv").read_text().splitlines()[1:]
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
