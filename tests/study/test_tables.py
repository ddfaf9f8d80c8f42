"""The study's tables: differences, intervals, ranks and families, from runs made up so that all can be worked out."""

import numpy as np
import pytest
from scipy.stats import pearsonr
from sklearn.metrics import f1_score

from lstmpool.training.errors import InputError
from study.differences import compared, difference
from study.plots import rank_test
from study.records import COLUMNS
from study.statistics import (
    family_of,
    final_rows,
    item_sums,
    metric_of,
    read_tables,
)
from study.store import Runs
from study.tables import (
    all_tables,
    by_set,
    chosen,
    costs,
    hours,
    main,
    mean_ranks,
    means,
    pairs,
    picture,
    to_rank,
)


def keep(output, dataset, pooling, correct, seed=1, regime="frozen", **fields):
    """A finished study of one pooling: its tuning, and a final run that was right where `correct` says so."""
    common = {"backbone": "b", "regime": regime, "dataset": dataset, "token_pooling": "mean", "pooling": pooling}
    common |= {"learning_rate": "0.001", "epochs": "4", "batch_size": "32", "train_rows": "500", "seconds": "2"}
    common |= {"head_learning_rate": ""}
    common |= {"parameters": "7", "flops": "3000000", "metric": "accuracy", "validation": "0.5"}
    row = dict.fromkeys(COLUMNS, "") | common | fields
    runs = Runs.of(output, regime, row["token_pooling"])
    tried = [tuple(r[name] for name in ("dataset", "pooling", "backbone")) for r in runs.rows]
    if (dataset, pooling, row["backbone"]) not in tried:
        runs.add(row | {"seed": "0", "kind": "tune"})
        runs.add(row | {"seed": "0", "kind": "tune", "learning_rate": "0.004", "validation": "0.4"})
    predictions = [[1.0] for _ in correct], [[float(c)] for c in correct]
    runs.add(row | {"seed": str(seed), "kind": "final", "test": f"{np.mean(correct):.4f}"}, predictions)


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
    # of two families, 0.5 and 0: a deviation of 0.3536, an error of 0.25; Student's quantiles at 0.975 and 0.8 of one
    # degree of freedom are 12.706 and 1.376
    assert found.over_sets == pytest.approx((0.25 - 12.706 * 0.25, 0.25 + 12.706 * 0.25), abs=1e-3)
    assert found.detectable == pytest.approx((12.706 + 1.376) * 0.25, abs=1e-3)
    assert found.without_one == (0, 0.5)
    assert family_of("trec6") == family_of("trec50") and family_of("cr") == "cr"


def test_an_interval_tells_of_items_and_of_seeds(tmp_path):
    keep(tmp_path, "items", "lstm", [True, False] * 200)
    for seed in (1, 2, 3, 4):
        keep(tmp_path, "seeds", "lstm", [seed > 2] * 10, seed=seed)
    (table,) = read_tables(tmp_path)
    items, seeds = (table.draws(dataset, ["lstm"])[0] for dataset in ("items", "seeds"))
    assert items[0] == 0.5 and items[1:].std() == pytest.approx(0.5 / 400**0.5, rel=0.06)
    # as four draws from the population of which these four seeds are an unbiased sample
    deviation = np.std([0, 0, 1, 1], ddof=1)
    assert seeds[0] == 0.5 and seeds[1:].std() == pytest.approx(deviation / 4**0.5, rel=0.06)
    assert len(set(np.round(seeds, 6))) == 5


def test_siblings_with_the_same_test_texts_draw_the_same_ones(tmp_path):
    right = [i % 3 > 0 for i in range(50)]
    for dataset in ("trec6", "trec50", "cr"):
        keep(tmp_path, dataset, "lstm", right)
    (table,) = read_tables(tmp_path)
    six, fifty, other = (table.draws(dataset, ["lstm"]) for dataset in ("trec6", "trec50", "cr"))
    assert (six == fifty).all() and (six != other).any()


def test_over_one_set_nothing_is_said_of_sets_that_are_drawn(tmp_path):
    for pooling in ("lstm", "last"):
        keep(tmp_path, "cr", pooling, [True] * 4)
    found = difference(read_tables(tmp_path)[0], "lstm", "last")
    assert (found.over_sets, found.without_one, found.detectable) == (None, None, None)
    assert "| last | 1 | 0 / 1 / 0 | +0.0 (+0.0 to +0.0) |  |  |  | too few sets |" in pairs(
        read_tables(tmp_path)[0], {"last": found}
    )


def test_over_a_few_sets_nothing_is_said_either(tmp_path):
    cells = []
    for dataset in ("trec6", "trec50", "cr", "mr", "cola", "rte"):  # the first two count as one
        for pooling, right in (("lstm", True), ("last", False)):
            keep(tmp_path, dataset, pooling, [right] * 4)
        (table,) = read_tables(tmp_path)
        cells.append(pairs(table, compared(table, "lstm")).splitlines()[2].split(" | ")[4:])
    assert cells[2:5] == [["", "+100.0 to +100.0", "", "too few sets |"]] * 3  # of two, three and four families
    assert cells[5] == ["+100.0 to +100.0", "+100.0 to +100.0", "0.0", "1.00, 0.00, 0.00 |"]


def test_the_best_layer_is_the_one_that_validation_likes_best(tmp_path):
    validation = {
        "last": "0.7",
        "below_1": "0.6",
        "below_2": "0.9",
        "below_3": "0.9",
        "below_4": "0.5",
        "below_5": "0.5",
    }
    for pooling, value in validation.items():
        (before,) = read_tables(tmp_path) or [None]
        assert before is None or "best_layer" not in before.poolings  # not before all were tried
        keep(tmp_path, "cr", pooling, [pooling == "below_4"] * 4, validation=value)
    runs = Runs.of(tmp_path, "frozen", "mean")
    below_2 = [row for row in runs.rows if row["pooling"] == "below_2" and row["kind"] == "final"]
    assert [row for pooling, row in final_rows(runs.rows) if pooling == "best_layer"] == below_2
    (table,) = read_tables(tmp_path)
    assert table.poolings == ["last", "best_layer"] and table.lower_layers == list(validation)[1:]
    assert table.score("cr", "best_layer") == 0  # best on test is another
    assert difference(table, "best_layer", "last").by_set == {"cr": (0, 0, 0)}
    assert "| below_4 | 100.0 ±0.0 | 100.0 |  |" in means(table)
    assert "The layer that was best alone: last 0, below_1 0, below_2 1," in chosen(table, tmp_path)


def test_a_mean_of_the_lower_layers_is_shown_only_over_the_sets_of_the_others(tmp_path):
    for dataset in ("cr", "mr"):
        keep(tmp_path, dataset, "last", [True] * 4)
    keep(tmp_path, "cr", "below_1", [True] * 4)
    assert "| below_1 | 100.0 ±0.0 |  |  |  |" in means(read_tables(tmp_path)[0])
    keep(tmp_path, "mr", "below_1", [False] * 4)
    assert "| below_1 | 100.0 ±0.0 | 0.0 ±0.0 | 50.0 |  |" in means(read_tables(tmp_path)[0])


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
    for seed in (1, 2):
        keep(tmp_path, "cr", "lstm", [False] * 4, seed, learning_rate="0.004")
    rows = Runs.of(tmp_path, "frozen", "mean").rows
    assert [(pooling, row["learning_rate"]) for pooling, row in final_rows(rows)] == [("lstm", "0.001")]
    assert hours(tmp_path).splitlines()[-1].startswith("| frozen-mean | 2 | 3 | 2 | 1 |")  # two are void, of one pair
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
    assert table.rectangle(table.poolings) == (["trec6", "cr", "trec50", "mr"], ["last", "max", "lstm"])
    families, poolings, scores = table.family_scores()
    assert families == ["trec50/trec6", "cr", family_of("mr")]
    np.testing.assert_allclose(scores, [[0.3, 0.1, 0.6], [0.8, 0.7, 0.9], [0.6, 0.9, 0.6]])
    np.testing.assert_allclose(mean_ranks(scores), [(2 + 2 + 2.5) / 3, (3 + 3 + 1) / 3, (1 + 1 + 2.5) / 3])
    text = means(table)
    assert "| pooling | trec6 (accuracy) | cr (accuracy) | trec50 (accuracy) | mr (accuracy) | mean of 3 |" in text
    assert "| 70.0 |  |" in text and "| gru |  | 100.0 ±0.0 |  |  |  |  |" in text  # three sets are too few for ranks
    assert text.rstrip().endswith("| most frequent test label | 100.0 | 100.0 | 100.0 | 100.0 |  |  |")


@pytest.fixture
def study(tmp_path):
    """Six sets: lstm is right on 30 of 40 items, last on the first 20 of them, max as lstm."""
    output = tmp_path / "results"
    for dataset in ("cr", "mr", "cola", "rte", "mrpc", "snips"):
        for pooling, right in (("lstm", 30), ("last", 20), ("max", 30)):
            for seed in (1, 2):
                keep(output, dataset, pooling, [i < right for i in range(40)], seed=seed)
    return output


def test_the_tables_hold_the_numbers(study):
    (table,) = read_tables(study)
    found = compared(table, "lstm")
    assert "| lstm | 75.0 ±" in means(table) and "| 75.0 | 1.5 |" in means(table)
    last, top = pairs(table, found).splitlines()[2:]
    assert last.startswith("| last | 6 | 6 / 0 / 0 | +25.0 (+")
    assert last.endswith("| +25.0 to +25.0 | +25.0 to +25.0 | 0.0 | 1.00, 0.00, 0.00 |")
    no = "+0.0 to +0.0"
    assert top == f"| max | 6 | 0 / 6 / 0 | +0.0 ({no}) | {no} | {no} | 0.0 | 0.00, 1.00, 0.00 |"
    above = compared(table, "last", ["max", "gru"], others_first=True)
    assert list(above) == ["max"]  # gru has no runs
    (line,) = pairs(table, above).splitlines()[2:]
    assert line == last.replace("| last |", "| max |")  # which is right where lstm is
    assert by_set(found).splitlines()[2].startswith("| cr | +25.0 (+1")
    # 2 s for 4 epochs of 500 rows
    assert "| lstm | 7 | 3.000 | 1000 | 75.0 |" in costs(table)
    assert hours(study).splitlines()[-1] == f"| frozen-mean | 36 | 36 | 0 | 0 | {72 * 2 / 3600:.2f} |"
    text = all_tables([table], "lstm", study)
    assert "| lstm | 6 | 0 |" in text and "| pooling | 4 epochs, 0.001 | 4 epochs, 0.004 |" in text
    assert "**The others less last**" in text
    assert "**The others less last**" not in all_tables([table], "last", study)


def test_variants_of_the_lstm_are_not_ranked_and_rounding_makes_no_ranks(study):
    for dataset in ("cr", "mr", "cola", "rte", "mrpc", "snips"):
        keep(study, dataset, "lstm_norm", [i < 35 for i in range(40)])
    (table,) = read_tables(study)
    _, poolings, scores = to_rank(table)
    assert poolings == ["last", "max", "lstm"]
    assert "| 75.0 | 1.5 |" in means(table) and "| lstm_norm | 87.5" in means(table) and "| 87.5 |  |" in means(table)
    # places 3, 1.5 and 1.5 on all of six sets: 12 / 6 / 3 / 4 * 6 ** 2 * (9 + 2.25 + 2.25) - 3 * 6 * 4 = 9, corrected
    # for ties by 1 - 6 * 6 / 6 / 24 = 0.75 to 12, of which two degrees of freedom give exp(-6)
    assert rank_test(*to_rank(table)).pvalue == pytest.approx(np.exp(-6), rel=1e-6)
    assert mean_ranks(scores + [[0, 1e-15, 0]]).tolist() == [3, 1.5, 1.5]


def test_two_backbones_are_two_tables_with_pictures_of_their_own(study):
    for dataset in ("cr", "mr"):
        keep(study, dataset, "lstm", [True] * 4, backbone="c")
    titles = {table.title: picture(table, "lstm") for table in read_tables(study)}
    assert titles == {
        "frozen, mean, b": "differences-lstm-frozen-mean-b.png",
        "frozen, mean, c": "differences-lstm-frozen-mean-c.png",
    }
    assert [chosen(table, study).partition(":")[0] for table in read_tables(study)] == list(titles)


def test_tables_come_in_the_order_of_the_regimes_mean_vectors_first(tmp_path):
    for regime, token_pooling in (("full", "mean"), ("frozen", "cls"), ("few_shot_16", "mean"), ("frozen", "mean")):
        keep(tmp_path, "cr", "lstm", [True] * 4, regime=regime, token_pooling=token_pooling)
    titles = [table.title for table in read_tables(tmp_path)]
    assert titles == ["frozen, mean, b", "frozen, cls, b", "few_shot_16, mean, b", "full, mean, b"]


def test_the_rates_of_the_new_layers_are_part_of_a_setting(tmp_path):
    keep(tmp_path, "cr", "lstm", [True] * 4, regime="full", head_learning_rate="0.01")
    head = "| pooling | 4 epochs, 0.001, head 0.01 | 4 epochs, 0.004, head 0.01 |"
    text = chosen(read_tables(tmp_path)[0], tmp_path)
    assert head in text and "| lstm | 1 | 0 |" in text


def test_the_command_fills_the_page_and_draws_the_pictures(study, capsys):
    page = study.parent / "TABLES.md"
    page.write_text("above\n<!-- tables: made by --table -->\nold\n<!-- end of tables -->\nbelow\n")
    short = study.parent / "EVIDENCE.md"
    short.write_text("above\n<!-- answer: made by --table -->\nold\n<!-- end of answer -->\nbelow\n")
    assert main(["--output", str(study)]) == 0
    printed = capsys.readouterr().out
    answered = "| Does it pay to look below the top layer? | frozen | mean | last | 6 | +25.0 (+"
    assert "### frozen, mean, b" in printed and answered in printed
    assert short.read_text().startswith("above\n") and short.read_text().endswith("below\n")
    assert answered in short.read_text() and "old" not in short.read_text()
    assert not (study / "predictions").exists()  # gathered into the file beside it
    text = page.read_text()
    assert text.startswith("above\n") and text.endswith("below\n") and "| last | 6 | 6 / 0 / 0 |" in text
    of_lstm = (study / "differences-lstm-frozen-mean-b.png").read_bytes()
    assert of_lstm.startswith(b"\x89PNG")
    # another pooling's tables are printed, and neither the page nor the pictures of the LSTM are touched
    assert main(["--output", str(study), "--pooling", "max"]) == 0
    assert "| last | 6 | 6 / 0 / 0 |" in capsys.readouterr().out
    assert page.read_text() == text and (study / "differences-lstm-frozen-mean-b.png").read_bytes() == of_lstm
    assert (study / "differences-max-frozen-mean-b.png").is_file()
    assert main(["--output", str(study), "--pooling", "max", "--page", str(page)]) == 0
    assert "**max less the other pooling**" in page.read_text()
    with pytest.raises(SystemExit):
        main(["--output", str(study / "none")])
    assert "expected results in" in capsys.readouterr().err
