"""The times: rounds, ratios and their intervals by hand, and the commands that compare and draw."""

import random

import pytest

from lstmpool.benchmarks import curves, speed, timing
from lstmpool.benchmarks.results import fill_page, marks, read_rows
from lstmpool.benchmarks.timing import FEWEST, interleave, missed, ratio


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
        monkeypatch.setattr(timing.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(timing.time, "monotonic", lambda: self.now)

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


def test_what_fits_is_reckoned_from_two_peaks():
    peaks = {2: 100 + 2 * 30, 4: 100 + 4 * 30}  # bytes
    assert curves.largest_batch(1000, peaks, weights=200, mode="inference") == (1000 - 200 - 100) // 30
    assert curves.largest_batch(1000, peaks, weights=200, mode="training") == (1000 - 600 - 100) // 30
    assert curves.largest_batch(100, peaks, weights=200, mode="inference") == 0


def test_the_table_and_the_picture_of_the_curves(tmp_path, capsys, monkeypatch):
    def stand_in(point, name):
        size = point.cell.batch * 2**30 * (2 if name == "naive" else 1)
        return {"peak_bytes": str(size), "flops": "7", "weight_bytes": str(2**30), "versions": "v"}

    monkeypatch.setattr(curves, "count", stand_in)
    output = tmp_path / "curves.csv"
    assert curves.main([f"--output={output}", "--along", "tokens", "fits"]) == 0
    out = capsys.readouterr().out
    assert "| inference | stock | 3 | 7 | 15 |" in out and "| training | naive | 0 | 2 | 6 |" in out
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


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
