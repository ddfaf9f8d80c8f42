"""The study's tables: differences, intervals, ranks and families, from runs made up so that all can be worked out."""

import re

import numpy as np
import pytest
from scipy.stats import pearsonr
from sklearn.metrics import f1_score

from lstmpool.benchmarks.evidence_runs import COLUMNS, Runs
from lstmpool.benchmarks.evidence_statistics import (
    difference,
    family_of,
    final_rows,
    item_sums,
    metric_of,
    read_tables,
)
from lstmpool.benchmarks.evidence_tables import (
    all_tables,
    by_set,
    compared,
    costs,
    hours,
    main,
    mean_ranks,
    means,
    pairs,
)
from lstmpool.training.errors import InputError

from .training_fixtures import ROOT


def keep(output, dataset, pooling, correct, seed=1, regime="frozen", **fields):
    """A finished study of one pooling: its tuning, and a final run that was right where `correct` says so."""
    common = {"backbone": "b", "regime": regime, "dataset": dataset, "token_pooling": "mean", "pooling": pooling}
    common |= {"learning_rate": "0.001", "epochs": "4", "batch_size": "32", "train_rows": "500", "seconds": "2"}
    common |= {"parameters": "7", "flops": "3000000", "metric": "accuracy", "validation": "0.5"}
    row = dict.fromkeys(COLUMNS, "") | common | fields
    runs = Runs.of(output, regime, "mean")
    if not any(r["dataset"] == dataset and r["pooling"] == pooling for r in runs.rows):
        runs.add(row | {"seed": "0", "kind": "tune"})
        runs.add(row | {"seed": "0", "kind": "tune", "learning_rate": "0.004", "validation": "0.4"})
    columns = {"id": range(len(correct)), "label": [1] * len(correct), "prediction": [int(c) for c in correct]}
    runs.add(row | {"seed": str(seed), "kind": "final", "test": f"{np.mean(correct):.4f}"}, columns)


def test_metrics_are_those_of_the_items_that_are_drawn():
    generator = np.random.default_rng(0)
    rows = generator.integers(30, size=30)
    weights = np.bincount(rows, minlength=30) / 30
    labels, found = generator.integers(3, size=30), generator.integers(3, size=30)
    value = metric_of("accuracy", weights @ item_sums("accuracy", list(labels), list(found)))
    assert value == pytest.approx((labels == found)[rows].mean())

    true, guess = generator.integers(2, size=(2, 30, 4))
    listed = [[list(np.nonzero(row)[0]) for row in table] for table in (true, guess)]
    value = metric_of("f1_micro", weights @ item_sums("f1_micro", *listed))
    assert value == pytest.approx(f1_score(true[rows], guess[rows], average="micro"))
    assert metric_of("f1_micro", item_sums("f1_micro", [[]], [[]]).mean(0)) == 0

    x, y = 1e7 + generator.random(30), 5e6 + generator.random(30)
    value = metric_of("pearson", weights @ item_sums("pearson", list(x), list(y)))
    assert value == pytest.approx(pearsonr(x[rows], y[rows])[0])
    assert metric_of("pearson", item_sums("pearson", [1, 2, 3], [4, 4, 4]).mean(0)) == 0


def test_a_difference_is_paired_and_siblings_count_once(tmp_path):
    half = [True, False] * 20
    for dataset, of_lstm, of_last in (("trec6", [1] * 40, [0] * 40), ("trec50", half, half), ("cr", half, half)):
        keep(tmp_path, dataset, "lstm", of_lstm)
        keep(tmp_path, dataset, "last", of_last)
    (table,) = read_tables(tmp_path)
    found = difference(table, "lstm", "last")
    # the same items are drawn for both: where both are right and wrong alike, nothing is uncertain
    assert found.by_set == {"trec6": (1, 1, 1), "trec50": (0, 0, 0), "cr": (0, 0, 0)}
    assert found.tally == (1, 2, 0)
    assert found.pooled == (0.25, 0.25, 0.25)  # trec6 and trec50 make 0.5, beside cr's 0
    assert found.over_sets == (0, 0.5)  # one family, or the other, or both
    # drawn 0, 1 or 2 times of 2: 0, 0.25, 0.5 with a variance of 0.25 ** 2 / 2
    assert found.detectable == pytest.approx(2.8 * 0.25 / 2**0.5, rel=0.05)
    assert family_of("trec6") == family_of("trec50") and family_of("cr") == "cr"


def test_an_interval_tells_of_items_and_of_seeds(tmp_path):
    keep(tmp_path, "items", "lstm", [True, False] * 200)
    for seed in (1, 2, 3, 4):
        keep(tmp_path, "seeds", "lstm", [seed > 2] * 10, seed=seed)
    (table,) = read_tables(tmp_path)
    items, seeds = (table.draws(dataset, ["lstm"])[0] for dataset in ("items", "seeds"))
    assert items[0] == 0.5 and items[1:].std() == pytest.approx(0.5 / 400**0.5, rel=0.06)
    assert seeds[0] == 0.5 and seeds[1:].std() == pytest.approx(0.5 / 4**0.5, rel=0.06)
    assert set(np.round(seeds, 6)) <= {0, 0.25, 0.5, 0.75, 1}


def test_only_seeds_that_both_have_are_compared(tmp_path):
    for seed in (1, 2):
        keep(tmp_path, "cr", "lstm", [seed == 1] * 4, seed=seed)
    keep(tmp_path, "cr", "last", [True] * 4, seed=2)
    keep(tmp_path, "mr", "last", [True] * 4, seed=2)
    (table,) = read_tables(tmp_path)
    assert difference(table, "lstm", "last").by_set == {"cr": (-1, -1, -1)}
    assert difference(table, "last", "weighted") is None


def test_a_final_run_counts_only_with_the_setting_that_tuning_chose(tmp_path):
    keep(tmp_path, "cr", "lstm", [True] * 4)
    keep(tmp_path, "cr", "lstm", [False] * 4, learning_rate="0.004")
    rows = Runs.of(tmp_path, "frozen", "mean").rows
    assert [row["learning_rate"] for row in final_rows(rows)] == ["0.001"]
    assert read_tables(tmp_path)[0].score("cr", "lstm") == 1


def test_two_settings_of_one_pooling_are_refused(tmp_path):
    keep(tmp_path, "cr", "lstm", [True] * 4)
    runs = Runs.of(tmp_path, "frozen", "mean")
    for row in list(runs.rows):
        runs.add(row | {"train_rows": "2000"})
    with pytest.raises(InputError, match="found two of cr, lstm"):
        read_tables(tmp_path)


def test_what_all_sets_have_is_ranked(tmp_path):
    shares = {"cr": (0.9, 0.8, 0.7), "mr": (0.6, 0.6, 0.9), "trec6": (0.5, 0.4, 0.1), "trec50": (0.7, 0.2, 0.1)}
    for dataset, of_set in shares.items():
        for pooling, share in zip(("lstm", "last", "max"), of_set, strict=True):
            keep(tmp_path, dataset, pooling, [i < 10 * share for i in range(10)])
    keep(tmp_path, "cr", "gru", [True] * 10)
    (table,) = read_tables(tmp_path)
    assert table.rectangle() == (["trec6", "cr", "trec50", "mr"], ["last", "max", "lstm"])
    families, poolings, scores = table.family_scores()
    assert families == ["trec50/trec6", "cr", family_of("mr")]
    np.testing.assert_allclose(scores, [[0.3, 0.1, 0.6], [0.8, 0.7, 0.9], [0.6, 0.9, 0.6]])
    np.testing.assert_allclose(mean_ranks(scores), [(2 + 2 + 2.5) / 3, (3 + 3 + 1) / 3, (1 + 1 + 2.5) / 3])
    text = means(table)
    assert "| pooling | trec6 (accuracy) | cr (accuracy) | trec50 (accuracy) | mr (accuracy) | mean of 3 |" in text
    assert "| 70.0 | 1.5 |" in text and "| gru |  | 100.0 ±0.0 |  |  |  |  |" in text
    assert text.rstrip().endswith("| most frequent label | 100.0 | 100.0 | 100.0 | 100.0 |  |  |")


@pytest.fixture
def study(tmp_path):
    """Six sets: lstm is right on 30 of 40 items, last on the first 20 of them, max as lstm."""
    output = tmp_path / "evidence"
    for dataset in ("cr", "mr", "cola", "rte", "mrpc", "snips"):
        for pooling, right in (("lstm", 30), ("last", 20), ("max", 30)):
            for seed in (1, 2):
                keep(output, dataset, pooling, [i < right for i in range(40)], seed=seed)
    return output


def test_the_tables_hold_the_numbers(study):
    (table,) = read_tables(study)
    found = compared(table, "lstm")
    assert "| lstm | 75.0 ±" in means(table) and "| 75.0 | 1.5 |" in means(table)
    assert "| last | 6 | 6 / 0 / 0 | +25.0 (" in pairs(table, "lstm", found)
    last, top = pairs(table, "lstm", found).splitlines()[2:]
    assert last.endswith("| 1.00, 0.00, 0.00 |")
    assert top == "| max | 6 | 0 / 6 / 0 | +0.0 (+0.0 to +0.0) | +0.0 to +0.0 | 0.0 | 0.00, 1.00, 0.00 |"
    assert by_set(found).splitlines()[2].startswith("| cr | +25.0 (+1")
    # 2 s for 4 epochs of 500 rows
    assert "| lstm | 7 | 3.000 | 1000 | 75.0 |" in costs(table)
    assert hours(study).splitlines()[-1] == f"| frozen-mean | 36 | 36 | {72 * 2 / 3600:.2f} |"
    assert "| lstm | 6 | 0 |" in all_tables([table], "lstm", study)


def test_the_command_fills_the_page_and_draws_the_pictures(study, capsys):
    page = study.parent / "EVIDENCE.md"
    page.write_text("above\n<!-- tables: made by --table -->\nold\n<!-- end of tables -->\nbelow\n")
    assert main(["--output", str(study)]) == 0
    assert "### frozen, mean, b" in capsys.readouterr().out
    text = page.read_text()
    assert text.startswith("above\n") and text.endswith("below\n") and "| last | 6 | 6 / 0 / 0 |" in text
    for name in ("differences-frozen-mean.png", "ranks-frozen-mean.png"):
        assert (study / name).read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SystemExit):
        main(["--output", str(study / "none")])
    assert "expected results in" in capsys.readouterr().err


@pytest.mark.slow
def test_the_page_shows_the_results_that_are_kept():
    output = ROOT / "benchmarks" / "evidence"
    assert all_tables(read_tables(output), "lstm", output).strip() in (output.parent / "EVIDENCE.md").read_text()


def test_the_readme_quotes_the_verdict():
    page, readme = ((ROOT / path).read_text(encoding="utf-8") for path in ("benchmarks/EVIDENCE.md", "README.md"))
    verdict = " ".join(page.partition("## Verdict\n")[2].partition("\n## ")[0].split())
    quoted = " ".join(readme.partition("### Is it worth it?\n")[2].partition("\n## ")[0].split())
    sentences = [part for part in re.split(r"(?<=\.) (?=[A-Z\[])", quoted) if "](benchmarks/EVIDENCE.md)" not in part]
    assert len(sentences) == 3 and all(sentence in verdict for sentence in sentences)
