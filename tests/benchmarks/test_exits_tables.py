"""The tables of the benchmark of exits, by hand: means, goals, the front, the hint, the cost, and the page."""

import pytest

from lstmpool.benchmarks.exits import main
from lstmpool.benchmarks.exits_measured import COLUMNS
from lstmpool.benchmarks.exits_tables import (
    BOUNDED,
    CUT,
    EXITS,
    FULL,
    HALF,
    LSTM,
    MEAN,
    OWN,
    PATIENCE,
    STOCK,
    UNTIMED,
    Results,
    cost_table,
    goals,
    hints,
    tables,
)
from lstmpool.benchmarks.results import HERE, marks, read_rows, write_rows


def line(name, seed, who, test=90.0, faster=1.0, layers=6.0, depth="6", gain=0.0, **more):
    numbers = {"test": test, "validation": test, "gain_test": gain, "gain_validation": gain, "low": gain, "high": gain}
    timed = {} if who in UNTIMED else {f"{column}_{size}": faster for column in FASTER for size in ("1", "32")}
    row = {"set": name, "seed": seed, "contender": who, "code": "c", "versions": "v", "device": "d", "chosen": "0.9"}
    row |= dict.fromkeys(COLUMNS, "") | {"layers": layers, "agreement": 0.5, "depth": depth, "chosen": "0.9"}
    return {column: str(value) for column, value in (row | numbers | timed | more).items()}


FASTER = ("faster", "faster_low", "faster_high", "ms")


def lines(name, seed, exits_gain, exits_faster, depth="4", cut_gain=-0.4):
    return [
        line(name, seed, FULL),
        line(name, seed, EXITS, gain=exits_gain, faster=exits_faster, layers=3.0),
        line(name, seed, BOUNDED, gain=0.0, faster=1.2, layers=5.0),
        line(name, seed, CUT, gain=cut_gain, faster=1.5, layers=4.0, depth=depth),
        line(name, seed, HALF, gain=-2.0, faster=2.0, layers=3.0, depth="3"),
        line(name, seed, STOCK, gain=-1.0, faster=1.1),
        line(name, seed, PATIENCE, gain=-0.3, layers=4.5),
        line(name, seed, OWN, layers=3.5),
        line(name, seed, MEAN, layers=4.0),
        line(name, seed, LSTM, layers=5.0),
    ]


ROWS = lines("a", "1", -0.2, 2.0) + lines("a", "2", -0.4, 3.0) + lines("b", "1", -1.1, 1.25, "6", 0.0)


def test_a_mean_is_over_sets_and_within_them_over_seeds():
    results = Results(ROWS)
    assert results.mean(EXITS, "faster_1") == pytest.approx((2.5 + 1.25) / 2)
    assert results.time(EXITS, "32") == pytest.approx((1 / 2.5 + 1 / 1.25) / 2)
    assert results.time(PATIENCE, "1") == pytest.approx(4.5 / 6)


def test_a_contender_that_was_not_measured_on_a_set_has_a_mean_over_the_others():
    rows = [row for row in ROWS if (row["contender"], row["set"]) != (STOCK, "b")]
    results = Results(rows)
    assert results.mean(STOCK, "gain_test") == -1.0 and results.time(STOCK, "1") == pytest.approx(1 / 1.1)
    text = tables(rows)
    assert "| stock (1 sets) | – | -1.00 | -1.00 |" in text and "| b | 90.0 | -1.1 | +0.0 | +0.0 | -2.0 | – |" in text


def test_the_goals():
    found = [[part.strip() for part in line.split("|")[2:-1]] for line in goals(Results(ROWS)).splitlines()[2:]]
    assert found[0] == found[1] == ["at least 1.8", "1.88", "**met**"]
    assert found[2] == ["at least -0.5", "-0.70", "**not met**"]
    assert found[3] == ["at least -1", "-1.10 (b)", "**not met**"]
    # exits take 0.6 of the time for -0.7; the cut 0.67 for -0.2; half of the layers 0.5 for -2; patience is beaten
    assert found[4] == found[5] == ["exits", "half, exits, cut, full", "**met**"]
    slower = lines("a", "1", -0.5, 1.4)  # than the cut, and worse
    assert "| exits | half, cut, patience, full | **not met** |" in goals(Results(slower))


def test_how_often_the_hint_held():
    text = hints(Results([*ROWS, *lines("c", "1", 0.0, 1.0, "5", -0.6)]))
    assert "named in 3 of 4 runs." in text and "on validation in 2 of these, on test in 2." in text
    assert "| b | 1 | none | – | – |" in text and "| c | 1 | 5 | -0.6 | -0.6 |" in text


def cost_row(tokens, time, low, bytes_=102):
    place = {"batch": "1", "tokens": str(tokens), "device": "d", "versions": "v"}
    return place | {"time": str(time), "low": str(low), "high": "2", "bytes": str(bytes_), "bytes_without": "100"}


def test_the_cost_has_a_bound_for_short_texts_and_one_for_longer_ones():
    text = cost_table([cost_row(16, 1.05, 1.0), cost_row(64, 1.05, 1.02), cost_row(256, 1.05, 1.04, 103)])
    assert [row.split(" | ")[2:] for row in text.splitlines()[2:5]] == [
        ["1.06", "met", "1.020", "1.02", "met |"],
        ["1.03", "within noise", "1.020", "1.02", "met |"],
        ["1.03", "missed", "1.030", "1.02", "missed |"],
    ]


def test_the_page_is_made_of_the_files_alone(tmp_path, capsys):
    output, page = tmp_path / "exits.csv", tmp_path / "EXITS.md"
    words = ["--table", "--output", str(output)]
    with pytest.raises(SystemExit):
        main(words)
    assert "expected results in" in capsys.readouterr().err
    write_rows(output, [{**row, "code": "old"} for row in ROWS[:10]] + ROWS)
    write_rows(tmp_path / "exits_cost.csv", [cost_row(16, 1.05, 1.0)])
    page.write_text("before\n" + "".join(marks("tables")) + "between\n" + "".join(marks("cost")) + "after\n")
    assert main(words) == 0
    text = page.read_text()
    assert text.startswith("before\n") and "\nbetween\n" in text and text.endswith("after\n")
    assert "**Goals**, over 2 sets, 3 runs:" in text and "(exits.png)" in text and "| 1 x 16 | 1.050" in text
    assert (tmp_path / "exits.png").stat().st_size > 5000
    first = (tmp_path / "exits.png").read_bytes()
    assert main([*words, "--code", "c"]) == 0
    assert page.read_text() == text and (tmp_path / "exits.png").read_bytes() == first
    assert main([*words, "--code", "old"]) == 0 and "over 1 sets, 1 runs" in page.read_text()


def test_the_page_shows_the_results_that_are_kept():
    page = (HERE / "EXITS.md").read_text(encoding="utf-8")
    rows, cost = read_rows(HERE / "exits.csv"), read_rows(HERE / "exits_cost.csv")
    last = [row for row in rows if row["code"] == rows[-1]["code"]]
    assert (tables(last).strip() if rows else "<!-- tables: made by --table -->\n\nNot measured yet.\n") in page
    assert f"<!-- cost: made by --table -->\n\n{cost_table(cost).strip()}\n" in page
