"""Tables by hand, of learning rates and of bounds; that the pages show what the files hold; and what the rates run."""

import json
from pathlib import Path

import pytest

from lstmpool import train_trainer
from lstmpool.benchmarks import curves, finetune_defaults, flops, many_rows, memory, profile_training, speed, summary
from lstmpool.benchmarks.cached_epochs import COMPARED as CACHED
from lstmpool.benchmarks.finetune_defaults import COLUMNS, main
from lstmpool.benchmarks.finetune_tables import read_grid, tables
from lstmpool.benchmarks.loading import COMPARED as LOADING
from lstmpool.benchmarks.prediction import COMPARED as PREDICTION
from lstmpool.benchmarks.results import HERE, read_rows, write_rows

from ..training_fixtures import ROOT, save_backbone, sentences, write_csv


GRID = ["--sets", "one", "--seeds", "1", "--learning_rates", "1e-4", "--head_learning_rates", "same", "1e-3"]


def row(name, seed, rate, head, value):
    numbers = {"seed": str(seed), "learning_rate": f"{rate:g}", "head_learning_rate": f"{head:g}", "value": str(value)}
    return dict.fromkeys(COLUMNS, "") | {"set": name, "backbone": "package:b", "metric": "accuracy"} | numbers


ROWS = [  # two cells on two sets: alike, 5e-5 for both, and 1e-3 for the new layers
    row("one", 1, 5e-5, 5e-5, 0.80),
    row("one", 1, 5e-5, 1e-3, 0.90),
    row("one", 2, 5e-5, 5e-5, 0.82),
    row("one", 2, 5e-5, 1e-3, 0.86),
    row("two", 1, 5e-5, 1e-3, 0.70),
    row("two", 1, 5e-5, 5e-5, 0.75),
]


@pytest.fixture
def data(tmp_path):
    for split, n in (("train", 16), ("validation", 6)):
        (tmp_path / "one").mkdir(exist_ok=True)
        write_csv(tmp_path / "one" / f"{split}.csv", {"text": sentences(n), "label": [i % 2 for i in range(n)]})
    return tmp_path


def test_a_finished_run_is_never_repeated(data, monkeypatch):
    """And a run's row holds the validation metric, not that of training."""
    seen, output = [], data / "results.csv"

    def stand_in(words):
        flags = dict(word.removeprefix("--").split("=") for word in words)
        seen.append(flags)
        folder = Path(flags["output_dir"])
        folder.mkdir()
        results = {"train": {"accuracy": 1.0}, "validation": {"accuracy": 0.625}}
        data = {"train": {"rows": 16}, "validation": {"rows": 6}}
        record = {"problem_type": "single_label_classification", "data": data}
        (folder / "metrics.json").write_text(json.dumps(record | {"results": results}))
        return 0

    monkeypatch.setattr(train_trainer, "main", stand_in)
    words = ["--data_dir", str(data), "--output", str(output), *GRID]
    assert main(words) == main([*words[:-1], "1e-3"]) == 0
    assert [flags["head_learning_rate"] for flags in seen] == ["0.0001", "0.001"]
    assert not any("test" in name for flags in seen for name in flags)
    assert {(flags["original_defaults"], flags["baselines"]) for flags in seen} == {("True", "False")}
    assert not Path(seen[0]["output_dir"]).parent.exists()
    assert main([*words, "5e-4"]) == 0
    assert len(seen) == 3
    assert [row["value"] for row in read_rows(output)] == ["0.6250"] * 3
    assert (read_rows(output)[0]["train_rows"], read_rows(output)[0]["validation_rows"]) == ("16", "6")


def test_the_command_takes_the_flags_and_a_run_that_fails_leaves_no_row(data, capsys):
    save_backbone(data / "backbone")
    output = data / "results.csv"
    words = [f"--data_dir={data}", f"--output={output}", "--epochs=1", "--train_rows=8", *GRID]
    assert main([f"--backbone={data / 'backbone'}", *words]) == 0
    rows = read_rows(output)
    assert [row["head_learning_rate"] for row in rows] == ["0.0001", "0.001"]
    assert (rows[0]["train_rows"], rows[0]["metric"], rows[0]["precision"]) == ("8", "accuracy", "float32")
    assert {row["backbone"] for row in rows} == {"backbone"}  # no folder of the machine
    before = output.read_text()
    with pytest.raises(SystemExit, match="ended with status 2"):
        main([f"--backbone={data / 'nothing'}", *words, "5e-4"])
    assert output.read_text() == before


def test_ranks_distances_and_noise():
    grid = read_grid(ROWS)
    assert grid.cells == [(5e-5, 0.0), (5e-5, 1e-3)]
    assert grid.ranks().tolist() == [[2, 1], [1, 2]]
    assert grid.lost().tolist() == [pytest.approx([0.07, 0]), pytest.approx([0, 0.05])]
    # less the means of cells and seeds, -+0.015 is left of each of the four: one degree of freedom
    assert grid.noise("one, b") == pytest.approx((4 * 0.015**2) ** 0.5)


def test_the_tables():
    text = tables(ROWS)
    assert "**one, b**, accuracy on validation, mean of 2 seed(s); a run scatters by 0.030 about its cell:" in text
    assert (
        "| backbone | new layers same | new layers 0.001 |\n| ---: | ---: | ---: |\n| 5e-05 | 0.810 | 0.880 |" in text
    )
    assert "| 5e-05 | 1.5 (1 to 2) | 1.5 (1 to 2) |" in text
    assert "| 5e-05 | 3.5 (7.0) | 2.5 (5.0) |" in text


def test_a_seed_that_is_not_finished_counts_only_where_there_is_no_other():
    text = tables([*ROWS, row("two", 2, 5e-5, 5e-5, 0.1), row("three", 1, 5e-5, 1e-3, 0.9)])
    assert "| 5e-05 | 0.750 | 0.700 |" in text
    assert text.startswith(tables(ROWS).strip())  # set three takes no part in ranks and distances
    assert text.endswith("| backbone | new layers 0.001 |\n| ---: | ---: |\n| 5e-05 | 0.900 |\n")


def test_table_alone_needs_results_and_makes_the_picture(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    output = tmp_path / "results.csv"
    with pytest.raises(SystemExit):
        main(["--table", f"--output={output}"])
    assert "expected results in" in capsys.readouterr().err
    write_rows(output, ROWS)
    assert main(["--table", f"--output={output}"]) == 0
    assert "**two, b**" in capsys.readouterr().out
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_the_page_of_the_rates_shows_the_results_that_are_kept():
    results, page = ROOT / "benchmarks" / "finetune_defaults.csv", ROOT / "benchmarks" / "FINETUNE.md"
    assert tables(read_rows(results)) in page.read_text(encoding="utf-8")
    assert finetune_defaults.__doc__.splitlines()[2].strip() in page.read_text(encoding="utf-8")


# -------------------------------------------------------------------------------------------------------- bounds
TABLES = {
    "memory": memory.MEMORY.table,
    "flops": flops.FLOPS.table,
    "speed": speed.table,
    "curves": curves.table,
    "cached_epochs": CACHED.table,
    "prediction": PREDICTION.table,
    "loading": LOADING.table,
    "profile_training": profile_training.table,
    "many_rows": many_rows.table,
}


def test_the_verdict_on_a_bound():
    fine, close, noisy, slow = (
        (0.9, 0.8, 1.0, "a"),
        (1.03, 1.01, 1.05, "b"),
        (1.02, 1.0, 1.3, "c"),
        (1.1, 1.04, 1.2, "d"),
    )
    assert summary.line("time", 1.02, [fine])[0][-2:] == ["0.900 [0.800, 1.000]", "met"]
    assert summary.line("time", 1.02, [fine, close])[0][1:] == ["b", "1.02", "1.030 [1.010, 1.050]", "within noise"]
    assert summary.line("time", 1.02, [noisy])[0][-1] == "met"
    assert summary.line("time", 1.02, [close, slow, fine])[0][1:] == ["d", "1.02", "1.100 [1.040, 1.200]", "missed"]
    above = (1.05, 1.01, 1.09, "f")  # a higher number, which noise explains
    slower = (1.04, 1.03, 1.05, "g")
    assert summary.line("time", 1.02, [above, slower])[0][1:] == ["g", "1.02", "1.040 [1.030, 1.050]", "missed"]
    assert summary.line("bytes", 1.02, [(1.001, 1.001, 1.001, "e")])[0][-2:] == ["1.001", "met"]
    assert summary.line("time", 1.02, []) == []


def test_each_line_reads_the_cells_that_it_is_about(tmp_path):
    place = {"shape": "12x768", "batch": "8", "tokens": "512", "mode": "inference"}
    counts = [("backbone", 100), ("stock", 50), ("lstmpool", 101)]
    short = [
        {**place, "tokens": "32", "variant": v, "peak_bytes": str(n)} for v, n in (("backbone", 1), ("lstmpool", 9))
    ]
    rows = [{**place, "variant": variant, "peak_bytes": str(count)} for variant, count in counts]
    trained = [
        {**place, "mode": "training", "variant": v, "peak_bytes": n} for v, n in (("stock", "50"), ("lstmpool", "49"))
    ]
    write_rows(tmp_path / "memory.csv", [*rows, *short, *trained])
    counted = [(6, "inference", 91), (6, "training", 103), (12, "inference", 102), (12, "training", 100)]
    write_rows(
        tmp_path / "flops.csv",
        [
            {**place, "shape": f"{layers}x8", "mode": mode, "variant": v, "flops": str(n)}
            for layers, mode, count in counted
            for v, n in (("stock", 100), ("lstmpool", count), ("backbone", 1), ("lstmpool, two thirds", 200))
        ],
    )
    times = [("lstmpool", 1.5, "32", "inference"), ("lstmpool", 0.95, "128", "inference")]
    times += [("lstmpool, two thirds", 0.8, "128", "inference"), ("lstmpool", 1.02, "128", "training")]
    write_rows(
        tmp_path / "speed.csv",
        [
            {**place, "variant": name, "tokens": tokens, "ratio": str(r), "low": str(r - 0.01), "high": str(r + 0.01)}
            | {"mode": mode}
            for name, r, tokens, mode in times
        ],
    )
    runs = {
        "cached_epochs": [("trec6", "cached", 1), ("trec6", "no cache", 4)],
        "prediction": [
            ("movie_reviews with cr", "predict", 1),
            ("movie_reviews with cr", "pipeline, lstmpool", 2),
        ],
        "loading": [
            ("load", "lstmpool", 3),
            ("load", "stock", 2),
            ("load again", "lstmpool", 1),
            ("load again", "stock", 1),
        ],
    }
    for name, found in runs.items():
        write_rows(
            tmp_path / f"{name}.csv",
            [{"subject": subject, "variant": v, "round": "1", "seconds": str(s)} for subject, v, s in found],
        )
    assert summary.table(tmp_path).splitlines()[2:] == [
        "| inference of 512 tokens, 12 layers, peak memory over the bare backbone | 12x768, 8 x 512 | 1.02 | 1.010 "
        "| met |",
        "| inference, FLOPs over the stock class, 6 layers | 6x8, 8 x 512 | 1.01 | 0.910 | met |",
        "| inference, FLOPs over the stock class, 12 layers | 12x8, 8 x 512 | 1.01 | 1.020 | missed |",
        "| training step, FLOPs over the stock class, 6 layers | 6x8, 8 x 512 | 1.01 | 1.030 | missed |",
        "| training step, FLOPs over the stock class, 12 layers | 12x8, 8 x 512 | 1.01 | 1.000 | met |",
        "| inference, time over the stock class | 12x768, 8 x 128 | 1.02 | 0.950 [0.940, 0.960] | met |",
        "| training step, time over the stock class | 12x768, 8 x 128 | 1.03 | 1.020 [1.010, 1.030] | met |",
        "| training step, peak memory over the stock class | 12x768, 8 x 512 | 1.03 | 0.980 | met |",
        "| inference with two thirds of the layers, time over the whole stock class | 12x768, 8 x 128 | 0.70 | "
        "0.800 [0.790, 0.810] | missed |",
        "| cached epoch over one without the cache | trec6 | 0.12 | 0.250 | missed |",
        "| prediction over `pipeline(batch_size=32)` | movie_reviews with cr | 0.50 | 0.500 | met |",
        "| loading a folder over the stock class | load | 1.10 | 1.500 | missed |",
        "| the same once more, in the same process | load again | 1.10 | 1.000 | met |",
    ]


@pytest.mark.parametrize("name", TABLES)
def test_the_page_shows_the_results_that_are_kept(name):
    page, rows = (HERE / "SPEED.md").read_text(encoding="utf-8"), read_rows(HERE / f"{name}.csv")
    assert f"python -m lstmpool.benchmarks.{name}" in page
    if rows:
        assert f"\n{TABLES[name](rows).strip()}\n" in page
    else:
        assert f"<!-- {name}: made by --table -->\n\nNot measured yet.\n" in page


def test_the_page_shows_the_bounds():
    assert f"\n{summary.table().strip()}\n" in (HERE / "SPEED.md").read_text(encoding="utf-8")


def test_the_readme_shows_four_lines_of_them():
    assert f"\n{summary.short_table().strip()}\n" in summary.README.read_text(encoding="utf-8")
    assert len(summary.short_table().splitlines()) == 2 + 4


def test_a_line_of_the_readme_is_the_worst_of_all_bounds_of_its_name(tmp_path):
    times = [
        ("trec6", "cached", 1),
        ("trec6", "no cache", 4),
        ("movie_reviews", "cached", 3),
        ("movie_reviews", "no cache", 4),
    ]
    rows = [{"subject": subject, "variant": v, "round": "1", "seconds": str(s)} for subject, v, s in times]
    write_rows(tmp_path / "cached_epochs.csv", rows)
    assert summary.short_table(tmp_path).splitlines()[2:] == [
        "| cached epoch over one without the cache | movie_reviews | 0.750 |"
    ]
