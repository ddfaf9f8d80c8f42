"""The benchmark of learning rates: what it runs, that it goes on where it stopped, and its tables, by hand."""

import json
from pathlib import Path

import pytest

from lstmpool import train_trainer
from lstmpool.benchmarks import finetune_defaults
from lstmpool.benchmarks.finetune_defaults import COLUMNS, main
from lstmpool.benchmarks.finetune_tables import read_grid, tables
from lstmpool.benchmarks.results import read_rows, write_rows

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


def test_the_page_shows_the_results_that_are_kept():
    results, page = ROOT / "benchmarks" / "finetune_defaults.csv", ROOT / "benchmarks" / "FINETUNE.md"
    assert tables(read_rows(results)) in page.read_text(encoding="utf-8")
    assert finetune_defaults.__doc__.splitlines()[2].strip() in page.read_text(encoding="utf-8")
