"""The counters of bytes and FLOPs count what they should, and what the project promises of both holds."""

import pytest
import torch
from torch import nn

from lstmpool.benchmarks import curves
from lstmpool.benchmarks.counters import flops, lstm_flops, peak_bytes
from lstmpool.benchmarks.curves import Point
from lstmpool.benchmarks.flops import FLOPS
from lstmpool.benchmarks.memory import MEMORY
from lstmpool.benchmarks.results import read_rows
from lstmpool.benchmarks.variants import TWO_THIRDS, Cell, build, inference, prepare, random_inputs, training


DEEP = "12x96/inference/2x512"


def peak(name, cell, layers=None):
    cell = Cell.parse(cell)
    side, inputs = build(name, cell.config(vocab_size=30000), layers), random_inputs(cell)
    side.model.eval()
    inference(side, inputs)
    return peak_bytes(prepare(side, cell, inputs))


def test_the_peak_is_what_was_held_at_once():
    def step():
        first = torch.zeros(1000)
        del first
        second, third = torch.zeros(1000), torch.zeros(600)
        del second, third

    assert peak_bytes(step) == 4 * 1600


def test_inference_needs_the_memory_of_the_bare_backbone_and_the_counter_sees_one_that_needs_more():
    bare = peak("backbone", DEEP)
    assert peak("naive", DEEP) > 1.5 * bare  # every layer's (B, T, H) is kept
    assert peak("lstmpool", DEEP) <= 1.02 * bare


def test_memory_does_not_grow_with_the_layers_that_are_read():
    alone, all_of_them = (peak("lstmpool", DEEP, layers) for layers in ([-1], None))
    assert all_of_them <= 1.005 * alone


def test_the_lstm_is_counted_as_the_formula_says():
    lstm = nn.LSTM(24, 16, batch_first=True, bidirectional=True)
    states = torch.zeros(3, 6, 24)  # (B, L, H)
    assert flops(lambda: lstm(states)) == lstm_flops(3, 6, 24, 16) == 2 * 3 * 6 * 2 * 64 * 40


@pytest.mark.parametrize("step", [inference, training])
def test_nothing_computed_counts_as_much_as_all_computed(step):
    cell, counts = Cell.parse("2x24/training/2x16"), []
    for device in ("cpu", "meta"):
        with torch.device(device):
            side = build("lstmpool", cell.config(attn_implementation="eager"))
        inputs = random_inputs(cell, device)
        counts.append(flops(lambda side=side, inputs=inputs: step(side, inputs)))
    assert counts[0] == counts[1]


STEP = 2 * 4 * 256 * (24 + 256)  # of the LSTM in one direction, for one text


@pytest.mark.parametrize(
    ("variant", "beyond_two_layers"),
    [
        ("backbone", 0),
        ("stock", 2 * 24 * 24 + 2 * 24 * 2),  # its pooler and classifier
        ("naive", 4 * STEP + 2 * 512 * 2),
        ("lstmpool", 2 * STEP + 2 * 4 * 256 * 24 + 2 * 512 * 2),
    ],
)
def test_the_flops_of_a_small_model_by_hand(variant, beyond_two_layers):
    layer = 4 * (2 * 8 * 24 * 24) + 2 * (2 * 8 * 8 * 24) + 2 * (2 * 8 * 24 * 96)  # projections, attention, perceptron
    assert FLOPS.count(variant, Cell.parse("2x24/inference/1x8")) == 2 * layer + beyond_two_layers


def test_the_memory_of_the_naive_code_by_hand():
    cell = Cell.parse("6x384/inference/8x128")
    # where the bare backbone is at its peak, the naive code holds what four more of the six layers gave
    assert MEMORY.count("naive", cell) - MEMORY.count("backbone", cell) == 4 * (8 * 128 * 384 * 4)


def test_a_point_of_the_curves_by_hand():
    cell = Cell.parse("2x24/inference/1x8")
    both, alone = (curves.count(Point("layers read", read, cell, read), "lstmpool") for read in (2, 1))
    assert both["flops"] == str(FLOPS.count("lstmpool", cell)) == str(int(alone["flops"]) + STEP)
    assert both["peak_bytes"] == str(MEMORY.count("lstmpool", cell))
    parameters = sum(parameter.numel() for parameter in build("lstmpool", cell.config()).model.parameters())
    assert both["weight_bytes"] == alone["weight_bytes"] == str(4 * parameters)


@pytest.mark.parametrize(("shape", "bound"), [("6x384", 1.01), ("12x768", 1.01)])
def test_flops_over_the_stock_class(shape, bound):
    cell, counts = Cell.parse(f"{shape}/training/8x128"), {}
    for name in ("stock", "lstmpool", TWO_THIRDS):
        with torch.device("meta"):
            side = build(name, cell.config(attn_implementation="eager"))
        inputs = random_inputs(cell, "meta")
        for step in (inference, training):
            counts[name, step] = flops(lambda step=step, side=side, inputs=inputs: step(side, inputs))
    for step in (inference, training):
        assert 1 < counts["lstmpool", step] / counts["stock", step] <= bound
        assert 0.5 < counts[TWO_THIRDS, step] / counts["stock", step] <= 0.70


def test_the_counter_of_flops_sees_a_head_that_reads_every_token():
    cell = Cell.parse("6x384/inference/8x128")
    with torch.device("meta"):
        side, lstm = build("backbone", cell.config(attn_implementation="eager")), nn.LSTM(384, 256, batch_first=True)
    inputs = random_inputs(cell, "meta")
    lean = flops(lambda: side(inputs))
    wasteful = flops(lambda: lstm(side.model(**inputs).last_hidden_state))
    assert wasteful == lean + lstm_flops(8, 128, 384, 256, directions=1) > 1.04 * lean


def test_the_command_counts_what_the_file_lacks(tmp_path, capsys, monkeypatch):
    output, counted = tmp_path / "memory.csv", []

    def stand_in(name, cell):
        counted.append((name, cell.tokens))
        return 2**20 * (cell.tokens + (name == "naive"))

    monkeypatch.setattr("lstmpool.benchmarks.grid.versions", lambda *packages: "v")
    memory = MEMORY.__class__(**{**MEMORY.__dict__, "count": stand_in})
    for tokens in (4, 8):
        memory.main("", ["--output", str(output), "--cells", "2x24/inference/1x4", f"2x24/inference/1x{tokens}"])
    assert [tokens for _, tokens in counted] == [4] * 6 + [8] * 6
    assert len(read_rows(output)) == 12
    assert "| 2x24 | 1 x 4 | 4.0 | 1.000 | 1.250 | 1.000 | 1.000 | 1.000 |" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        memory.main("", ["--output", str(output), "--cells", "2x24/compiled/1x4"])
    assert "inference, training; times are compared for the others" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["6x384", "6x384/inference/32", "6x384/predict/1x8", "6x384/training/0x8"])
def test_a_cell_of_another_form_is_refused(text):
    with pytest.raises(ValueError, match="cell"):
        Cell.parse(text)
