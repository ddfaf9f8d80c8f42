"""Times, bytes and FLOPs: ratios and counts by hand, what the project promises of them, and the commands."""

import random

import pytest
import torch
from torch import nn

from lstmpool.benchmarks import rounds as of_rounds
from lstmpool.benchmarks import speed
from lstmpool.benchmarks.flops import FLOPS
from lstmpool.benchmarks.grid import flops, lstm_flops, peak_bytes
from lstmpool.benchmarks.memory import MEMORY
from lstmpool.benchmarks.results import fill_page, marks, read_rows
from lstmpool.benchmarks.rounds import FEWEST, interleave, missed, ratio
from lstmpool.benchmarks.variants import TWO_THIRDS, Cell, build, inference, prepare, random_inputs, training


def test_a_ratio_is_taken_within_a_round_so_that_drift_cancels():
    stock = [1.0, 10.0, 3.0, 100.0, 2.0]
    assert ratio([2 * t for t in stock], stock) == (2, 2, 2)
    middle, low, high = ratio([1.0, 1.1, 1.2, 1.3, 9.0], [1.0] * 5)
    assert middle == 1.2
    assert 1.0 <= low < 1.2 < high <= 9.0


def test_a_bound_is_missed_only_where_noise_does_not_explain_it():
    assert missed(low=1.03, bound=1.02)
    assert not missed(low=1.01, bound=1.02)


class Machine:
    """Steps whose time is told, on a machine that becomes slower with every call."""

    def __init__(self, monkeypatch, **seconds):
        self.now, self.speed, self.calls, self.seconds = 0.0, 1.0, [], seconds
        monkeypatch.setattr(of_rounds.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(of_rounds.time, "monotonic", lambda: self.now)

    def step(self, name):
        def call():
            self.calls.append(name)
            self.now += self.seconds[name] * self.speed
            self.speed *= 1.01

        return call

    def steps(self):
        return {name: self.step(name) for name in self.seconds}


def test_every_round_runs_each_once_in_an_order_of_its_own(monkeypatch):
    machine = Machine(monkeypatch, stock=1.0, naive=1.5, again=1.0)
    times = interleave(machine.steps(), budget=0, rounds=40)
    rounds = [tuple(machine.calls[i : i + 3]) for i in range(3, len(machine.calls), 3)]
    assert machine.calls[:3] == ["stock", "naive", "again"]  # to warm up, which does not count
    assert len(rounds) == 40 and all(sorted(of) == ["again", "naive", "stock"] for of in rounds)
    assert len(set(rounds)) == 6
    assert ratio(times["naive"], times["stock"])[0] == pytest.approx(1.5, abs=0.03)
    assert ratio(times["again"], times["stock"])[0] == pytest.approx(1.0, abs=0.02)


def test_the_budget_ends_the_rounds_but_not_before_the_fewest(monkeypatch):
    machine = Machine(monkeypatch, one=1.0)
    assert len(interleave(machine.steps(), budget=0.5)["one"]) == FEWEST
    assert 15 < len(interleave(Machine(monkeypatch, one=1.0).steps(), budget=20)["one"]) < 22


def test_the_command_measures_the_cells_that_the_file_lacks(tmp_path, capsys):
    pytest.importorskip("sentence_transformers")
    output = tmp_path / "speed.csv"
    words = [f"--output={output}", "--rounds=2", "--cells", "2x24/inference/1x8"]
    assert speed.main(words) == 0
    before = read_rows(output)
    assert speed.main([*words, "2x24/training/1x8"]) == 0
    rows = read_rows(output)
    assert rows[:7] == before and len(rows) == 14
    assert [row["over"] for row in rows[:7]] == ["stock"] * 6 + ["lstmpool"]
    assert rows[1]["variant"] == "stock" and rows[1]["ratio"] == rows[1]["low"] == "1.0000"
    assert "**Training**, time over stock" in capsys.readouterr().out
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_a_wrong_flag_ends_the_command(tmp_path, capsys):
    for words, said in (
        (["--cells", "6x384"], "a cell is written like 6x384/inference/32x128, got '6x384'"),
        (["--table"], "expected results in"),
        (["--device", "cuda"], "expected a GPU for --device cuda, found none"),
    ):
        with pytest.raises(SystemExit):
            speed.main([*words, f"--output={tmp_path / 'none.csv'}"])
        assert said in capsys.readouterr().err


def test_the_text_replaces_what_stands_between_the_marks(tmp_path):
    page, (first, last) = tmp_path / "page.md", marks("speed")
    page.write_text(f"above\n{first}old\n{last}below\n")
    for text in ("new\n", "newer\n"):
        fill_page(page, "speed", text)
    assert page.read_text() == f"above\n{first}\nnewer\n\n{last}below\n"
    with pytest.raises(ValueError, match="memory"):
        fill_page(page, "memory", "text")


def test_the_order_does_not_take_from_the_global_generator(monkeypatch):
    random.seed(1)
    wanted = random.Random(1).random()
    interleave({"one": lambda: None}, budget=0, rounds=1)
    assert random.random() == wanted


# ------------------------------------------------------------------------------------------------- bytes and FLOPs
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
