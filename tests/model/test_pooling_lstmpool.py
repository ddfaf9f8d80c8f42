"""The poolings, of tokens and of layers, against numbers worked out by hand."""

import math

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lstmpool.fields_lstmpool import LAYER_POOLINGS, TOKEN_POOLINGS
from lstmpool.modeling_lstmpool import LstmPoolForSequenceClassification, LstmPoolModel
from lstmpool.pooling_lstmpool import LinearSkip, TopLSTM, pool_tokens

from ..conftest import random_inputs, tiny_config, tiny_model


# ------------------------------------------------------------------------------------------------------- token pooling
HIDDEN = torch.tensor([[[1.0, 8.0], [2.0, 4.0], [6.0, 0.0], [99.0, 99.0]]])  # (1, 4, 2), the last token is poison


BY_HAND = {
    "first": [1.0, 8.0],
    "last": [6.0, 0.0],
    "mean": [3.0, 4.0],
    "max": [6.0, 8.0],
}


def test_every_token_pooling_is_worked_out_by_hand():
    assert set(BY_HAND) == {"first" if name == "cls" else name for name in TOKEN_POOLINGS}


@pytest.mark.parametrize(("how", "expected"), BY_HAND.items())
def test_token_pooling_by_hand(how, expected):
    mask = torch.tensor([[1, 1, 1, 0]])
    assert pool_tokens(HIDDEN, mask, how).tolist() == [expected]
    # the same on the left
    assert pool_tokens(HIDDEN[:, [3, 0, 1, 2]], mask[:, [3, 0, 1, 2]], how).tolist() == [expected]
    # the same without any padding
    assert pool_tokens(HIDDEN[:, :3], torch.ones(1, 3), how).tolist() == [expected]
    # NaN behind the mask does not get out
    poisoned = HIDDEN.masked_fill(mask[..., None] == 0, math.nan)
    assert pool_tokens(poisoned, mask, how).tolist() == [expected]
    # negative numbers are not lost to the zeros of the mask
    if how == "max":
        assert pool_tokens(-HIDDEN, mask, how).tolist() == [[-1.0, 0.0]]


@pytest.mark.parametrize("how", BY_HAND)
def test_a_row_without_tokens_gives_zeros(how):
    for hidden in (HIDDEN, torch.full_like(HIDDEN, math.nan)):  # some backbones make NaN of padding alone
        assert pool_tokens(hidden, torch.zeros(1, 4), how).tolist() == [[0.0, 0.0]]
    both = pool_tokens(HIDDEN.repeat(2, 1, 1), torch.tensor([[0, 0, 0, 0], [1, 1, 1, 0]]), how)
    assert both.tolist() == [[0.0, 0.0], BY_HAND[how]]


def test_the_mean_does_not_leave_the_range_of_float16():
    hidden = torch.full((1, 300, 2), 300.0, dtype=torch.float16)  # the sum, 90000, is infinite in float16
    assert pool_tokens(hidden, torch.ones(1, 300), "mean").tolist() == [[300.0, 300.0]]


def test_the_vectors_do_not_hold_on_to_the_layer():
    for how in BY_HAND:
        assert pool_tokens(HIDDEN, torch.ones(1, 4), how).untyped_storage().nbytes() == 2 * 4


# ------------------------------------------------------------------------------------------------------- layer pooling
STATES = torch.tensor([[[1.0, -2.0], [3.0, 5.0], [2.0, 0.0]]])  # (1, 3 layers, 2)


def pooling(name, **fields):
    """The pooling alone, for 3 layers of width 2."""
    config = tiny_config(layer_pooling=name, layers=[1, 2, 3], **fields)
    config.backbone_config.hidden_size = 2
    config.backbone_config.num_attention_heads = 1
    return LstmPoolModel(config).pooler.eval()


def test_last_and_max_by_hand():
    assert pooling("last")(STATES).tolist() == [[2.0, 0.0]]
    assert pooling("max")(STATES).tolist() == [[3.0, 5.0]]


def test_weighted_by_hand():
    pooler = pooling("weighted")
    pooler.layer_weights.data = torch.tensor([0.0, math.log(2), math.log(5)])  # softmax: 1/8, 2/8, 5/8
    torch.testing.assert_close(pooler(STATES), torch.tensor([[17 / 8, 8 / 8]]))
    assert pooling("weighted").layer_weights.tolist() == [0.0, 0.0, 0.0]  # begins as the mean


def test_attention_by_hand():
    pooler = pooling("attention")
    pooler.query.weight.data = torch.tensor([[math.log(2), 0.0]])  # 2 ** (1, 3, 2), so 2/14, 8/14, 4/14
    torch.testing.assert_close(pooler(STATES), torch.tensor([[34 / 14, 36 / 14]]))


def test_concat_by_hand():
    pooler = pooling("concat")
    pooler.dense.weight.data.zero_()
    pooler.dense.weight.data[0] = torch.tensor([1.0, 10.0, 100.0, 1e3, 1e4, 1e5])  # layer by layer, not unit by unit
    pooler.dense.bias.data.zero_()
    expected = 1 - 20 + 300 + 5e3 + 2e4 + 0  # large enough for GELU to be the identity
    assert pooler(STATES)[0, 0].item() == expected


@pytest.mark.parametrize("fields", [{}, {"layers": [2, 4]}, {"lstm_bidirectional": False}])
def test_concat_has_the_lstms_parameter_count(fields):
    def count(name):
        model = LstmPoolModel(tiny_config(layer_pooling=name, lstm_hidden_size=64, **fields))
        return sum(parameter.numel() for parameter in model.pooler.parameters())

    assert abs(count("concat") / count("lstm") - 1) < 0.01


def lstm_by_hand(x, w_ih, w_hh, b_ih, b_hh):
    """One direction, one unit, over a list of numbers; the equations of the LSTM, gates i f g o."""
    sigmoid, hidden, cell, outputs = (lambda z: 1 / (1 + math.exp(-z))), 0.0, 0.0, []
    for value in x:
        i, f, g, o = (w * value + u * hidden + a + b for w, u, a, b in zip(w_ih, w_hh, b_ih, b_hh, strict=True))
        cell = sigmoid(f) * cell + sigmoid(i) * math.tanh(g)
        hidden = sigmoid(o) * math.tanh(cell)
        outputs.append(hidden)
    return outputs


def test_lstm_and_its_readouts_by_hand():
    x, results = [0.5, -1.0, 2.0], {}
    weights = {"": ([0.1, 0.2, 0.3, 0.4], [0.5, -0.6, 0.7, 0.8], [0.1] * 4, [0.0, 0.1, -0.1, 0.2])}
    weights["_reverse"] = ([-0.3, 0.5, 0.9, 0.2], [0.4, 0.3, -0.2, 0.1], [0.2] * 4, [0.1, 0.0, 0.3, -0.2])
    for readout in ("last", "final", "mean"):
        config = tiny_config(layers=[1, 2, 3], lstm_hidden_size=1, lstm_readout=readout)
        config.backbone_config.hidden_size = config.backbone_config.num_attention_heads = 1
        pooler = LstmPoolModel(config).pooler
        for suffix, parts in weights.items():
            for name, values in zip(("weight_ih", "weight_hh", "bias_ih", "bias_hh"), parts, strict=True):
                parameter = getattr(pooler.rnn, f"{name}_l0{suffix}")
                parameter.data = torch.tensor(values).view_as(parameter)
        results[readout] = pooler(torch.tensor(x).view(1, 3, 1)).flatten()
    forward = lstm_by_hand(x, *weights[""])
    backward = lstm_by_hand(x[::-1], *weights["_reverse"])[::-1]
    torch.testing.assert_close(results["last"], torch.tensor([forward[-1], backward[-1]]))
    torch.testing.assert_close(results["final"], torch.tensor([forward[-1], backward[0]]))
    torch.testing.assert_close(results["mean"], torch.tensor([sum(forward) / 3, sum(backward) / 3]))


def test_with_the_seeds_readout_the_backward_direction_reads_the_top_layer_alone():
    states = torch.randn(2, 3, 2, requires_grad=True)
    for readout, alone in (("last", True), ("final", False)):
        (gradient,) = torch.autograd.grad(pooling("lstm", lstm_readout=readout)(states)[:, 5:].sum(), states)
        assert (gradient[:, :2] == 0).all().item() is alone
        assert (gradient[:, 2] != 0).any()


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_the_lstm_that_is_read_at_the_top_is_torchs(bidirectional, dtype, autocast):
    sizes = {"input_size": 16, "hidden_size": 12, "batch_first": True, "bidirectional": bidirectional}
    lstm, top = nn.LSTM(**sizes).to(dtype), TopLSTM(**sizes).to(dtype)
    top.load_state_dict(lstm.state_dict())
    arithmetic = torch.bfloat16 if autocast and dtype == torch.float32 else dtype
    tolerance = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 2e-2}[arithmetic]
    for batch, layers in ((1, 1), (1, 4), (3, 1), (3, 4)):
        states, results = torch.randn(batch, layers, 16, dtype=dtype, requires_grad=True), []
        for net in (lstm, top):
            with torch.autocast("cpu", enabled=autocast and dtype == torch.float32):
                output = net(states) if net is top else net(states)[0][:, -1]
            loss = (output.float() * torch.arange(output.numel()).view_as(output)).sum()
            results.append([output, *torch.autograd.grad(loss, [states, *net.parameters()])])
        for found, wanted in zip(*results, strict=True):
            assert found.dtype == wanted.dtype
            assert (found - wanted).norm() <= tolerance * wanted.norm()


def test_the_backward_direction_takes_one_step_and_all_its_parameters_a_gradient():
    sizes = {"input_size": 16, "hidden_size": 12, "batch_first": True, "bidirectional": True}
    products, states = {}, torch.randn(3, 5, 16)
    for net in (nn.LSTM(**sizes), TopLSTM(**sizes)):
        # without oneDNN, whose LSTM the counter takes for nothing
        with torch.backends.mkldnn.flags(enabled=False), FlopCounterMode(display=False) as counter:
            net(states)
        products[type(net)] = counter.get_total_flops() / (2 * 3 * 4 * 12)
    assert products == {nn.LSTM: 2 * 5 * (16 + 12), TopLSTM: 5 * (16 + 12) + 16}
    top = TopLSTM(**sizes)
    top(states).sum().backward()
    # it multiplies the state before the first step, zero; DistributedDataParallel refuses a gradient that is not there
    assert (top.weight_hh_l0_reverse.grad == 0).all()
    assert all((p.grad != 0).any() for name, p in top.named_parameters() if name != "weight_hh_l0_reverse")


@pytest.mark.parametrize("readout", ["last", "final", "mean"])
def test_gru_is_torchs(readout):
    pooler = pooling("gru", lstm_readout=readout)
    gru = nn.GRU(2, 5, batch_first=True, bidirectional=True)
    gru.load_state_dict(pooler.rnn.state_dict())
    outputs, last = gru(STATES)
    wanted = {"last": outputs[:, -1], "final": torch.cat([last[0], last[1]], -1), "mean": outputs.mean(1)}
    torch.testing.assert_close(pooler(STATES), wanted[readout])


@pytest.mark.parametrize("name", LAYER_POOLINGS)
def test_layer_norm_brings_layers_to_one_scale(name):
    pooler = pooling(name, layer_norm=True)
    scaled = STATES * torch.tensor([1.0, 1e3, 30.0])[:, None] + torch.tensor([0.0, 500.0, -70.0])[:, None]
    torch.testing.assert_close(pooler(scaled), pooler(STATES), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(pooling(name, layer_norm=False)(scaled), pooling(name, layer_norm=False)(STATES))


def test_states_that_do_not_fit_the_lstm_are_refused_as_by_torch():
    lstm = TopLSTM(16, 12, batch_first=True, bidirectional=True)
    with pytest.raises(RuntimeError, match="input.size.-1. must be equal to input_size"):
        lstm(torch.zeros(2, 3, 15))
    with pytest.raises(ValueError, match="dtype"):
        lstm(torch.zeros(2, 3, 16, dtype=torch.bfloat16))


# --------------------------------------------------------------------------------------------------------- linear skip
SKIP = {"linear_skip.weight", "linear_skip.mean", "linear_skip.scale"}


def test_a_fresh_skip_changes_nothing_and_its_absence_adds_no_weight():
    plain, skipping = tiny_model(), tiny_model(linear_skip=True)
    assert plain.linear_skip is None
    assert skipping.state_dict().keys() - plain.state_dict().keys() == SKIP
    assert all(torch.equal(skipping.state_dict()[name], tensor) for name, tensor in plain.state_dict().items())
    with torch.no_grad():
        assert torch.equal(skipping(**random_inputs()).logits, plain(**random_inputs()).logits)


def test_the_skip_by_hand():
    config = tiny_config(layers=[2, 4], num_labels=2, linear_skip=True)
    skip = LinearSkip(config)
    assert not skip.weight.any()
    with torch.no_grad():
        skip.weight[0, 3] = 10.0  # number 3 of the lower layer
        skip.weight[1, 16] = 1.0  # number 0 of the upper, which lies behind the 16 of the lower
    states = torch.zeros(1, 2, 16)
    states[0, 0, 3], states[0, 1, 0], states[0, 1, 3] = 2.0, 5.0, 99.0
    assert skip(states).tolist() == [[20.0, 5.0]]
    assert skip.bias is None


def test_the_skip_centres_and_scales_and_sees_what_bfloat16_would_not():
    """Of 100.25, bfloat16 has 100; a feature that hardly varies has a large weight in its own units."""
    skip = LinearSkip(tiny_config(layers=[2], num_labels=1, linear_skip=True))
    with torch.no_grad():
        skip.weight[0, 3] = 3.0
        skip.mean[3], skip.scale[3] = 100.0, 0.5
    states = torch.zeros(1, 1, 16)
    states[0, 0, 3] = 100.25
    with torch.autocast("cpu", torch.bfloat16):
        assert skip(states).tolist() == [[1.5]]


@pytest.mark.parametrize("training", [False, True])
def test_the_skip_is_added_to_the_logits_without_dropout(training):
    model = tiny_model(linear_skip=True, pooler_dropout=0.9).train(training)
    states = torch.randn(3, 4, 16)
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.tensor([1.0, 2.0, 3.0]))
        model.linear_skip.weight.normal_()
        expected = states.reshape(3, 64) @ model.linear_skip.weight.T + model.classifier.bias
        torch.testing.assert_close(model(layer_states=states).logits, expected)


def test_a_skip_that_a_folder_lacks_is_loaded_as_zeros(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    model, report = LstmPoolForSequenceClassification.from_pretrained(
        tmp_path, linear_skip=True, output_loading_info=True
    )
    assert set(report["missing_keys"]) == SKIP
    assert model.linear_skip.weight.shape == (3, 64) and not model.linear_skip.weight.any()
    assert not model.linear_skip.mean.any() and (model.linear_skip.scale == 1).all()
