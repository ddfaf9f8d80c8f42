"""The poolings of the study: the controls by hand, equal sizes, and the loop that trains them against Trainer."""

import copy

import pytest
import torch
from transformers import BertConfig

from lstmpool.configuration_lstmpool import LstmPoolConfig
from lstmpool.training.flags.training_arguments import DEFAULTS, TrainingArguments
from lstmpool.training.loop.trainer import LstmPoolTrainer
from study.frozen import head_flops, predict, train_head
from study.poolings import POOLINGS, SINGLE_LAYERS, put_pooling, scramble
from study.records import Setting

from ..conftest import tiny_config, tiny_model


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
