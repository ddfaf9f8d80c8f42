"""The study on tiny data: any folder of the format works, no run is made twice, and a kill costs one run."""

import gzip
from collections import defaultdict

import numpy as np
import pytest
import torch
from transformers import DistilBertConfig, DistilBertForSequenceClassification

from lstmpool.pooling_lstmpool import LayerPooling
from lstmpool.training.errors import InputError
from lstmpool.training.model import layer_cache
from study.data import read_set
from study.finetuned import FinetunedSet, above_layers, draw
from study.frozen import FrozenSet
from study.poolings import POOLINGS, own
from study.records import COLUMNS, KEY, Setting, append_row, best, read_rows
from study.regimes import REGIMES, build_of
from study.run import main
from study.store import Runs, name_of

from ..training_fixtures import save_backbone, sentences, write_csv


ROWS = {"train": 24, "validation": 10, "test": 8}


def write_set(folder, columns, splits=ROWS):
    """`columns` are functions of a row's number; the numbers go on from split to split."""
    folder.mkdir(parents=True)
    start = 0
    for split, n in splits.items():
        write_csv(folder / f"{split}.csv", {c: [of(start + i) for i in range(n)] for c, of in columns.items()})
        start += n
    return folder


def text(i):
    return sentences(i + 1)[-1]


@pytest.fixture
def data(tmp_path):
    write_set(tmp_path / "one", {"text": text, "label": lambda i: "yes" if i % 3 else "no"})
    pair = {"sentence1": text, "sentence2": lambda i: text(i + 5), "label": lambda i: f"{i % 7 / 2}"}
    write_set(tmp_path / "pairs", pair)
    both = {"text": text, "labels": lambda i: ["", "a", "a b", "b", "c a"][i % 5]}
    write_set(tmp_path / "several", both)
    return tmp_path


@pytest.fixture
def words(data, monkeypatch):
    """The flags of a study of two poolings on `one`: 10 settings each, then 2 seeds."""
    monkeypatch.setattr(layer_cache, "CACHE", data / "cache")
    flags = {"data": data, "output": data / "out", "backbone": save_backbone(data / "bert"), "token_poolings": "mean"}
    return [
        *(f"--{name}={value}" for name, value in flags.items()),
        *"--datasets one --poolings weighted last --seeds 1 2".split(),
    ]


class Counter:
    """Stands before `FrozenSet.fit`: keeps what is asked for, and interrupts one of the runs."""

    def __init__(self, monkeypatch):
        self.calls, self.stop_at, real = [], None, FrozenSet.fit

        def fit(fitter, build, seed, setting, with_test):
            if len(self.calls) == self.stop_at:
                raise KeyboardInterrupt
            self.calls.append((seed, setting, with_test))
            return real(fitter, build, seed, setting, with_test)

        monkeypatch.setattr(FrozenSet, "fit", fit)


@pytest.fixture
def runs(monkeypatch):
    return Counter(monkeypatch)


def without_time(rows):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def test_settings_are_tuned_on_validation_and_the_test_is_read_by_the_final_runs_alone(words, runs, data):
    assert main(words) == 0
    rows = read_rows(data / "out" / "runs.csv")
    tune, final = ([row for row in rows if row["kind"] == kind] for kind in ("tune", "final"))
    assert [len(tune), len(final)] == [20, 4]
    assert {row["test"] for row in tune} == {""} and {row["seed"] for row in tune} == {"0"}
    assert [row["seed"] for row in final] == ["1", "1", "2", "2"]  # a cut leaves as many of each pooling
    for pooling in ("weighted", "last"):
        highest = max(float(row["validation"]) for row in tune if row["pooling"] == pooling)
        first = next(r for r in tune if r["pooling"] == pooling and float(r["validation"]) == highest)
        of_final = [row for row in final if row["pooling"] == pooling]
        assert {(row["learning_rate"], row["epochs"]) for row in of_final} == {
            (first["learning_rate"], first["epochs"])
        }
    assert [with_test for _, _, with_test in runs.calls] == [False] * 20 + [True] * 4
    assert {(row["train_rows"], row["metric"], row["backbone"]) for row in rows} == {("24", "accuracy", "bert")}


def test_a_finished_run_is_never_repeated(words, runs):
    assert main(words) == main(words) == 0
    assert len(runs.calls) == 24
    assert main([*words, "3"]) == 0  # a seed more
    assert len(runs.calls) == 26
    assert main([*words, "--train_rows=12"]) == 0  # of another setting, all
    assert len(runs.calls) == 26 + 24


def test_a_study_that_is_stopped_again_and_again_ends_as_one_that_is_not(words, runs, data):
    for stop_at in (0, 5, 21):  # before any run, while tuning, between final runs
        runs.stop_at = stop_at
        assert main(words) == 130
        assert len(read_rows(data / "out" / "runs.csv")) == stop_at
    runs.stop_at = None
    assert main(words) == 0
    assert len(runs.calls) == 24
    assert main([word.replace("/out", "/whole") for word in words]) == 0
    whole, pieces = (read_rows(data / folder / "runs.csv") for folder in ("whole", "out"))
    assert without_time(pieces) == without_time(whole)


def test_what_a_kill_leaves_of_a_row_is_passed_over(tmp_path):
    path = tmp_path / "runs.csv"
    row = dict.fromkeys(COLUMNS, "1") | {"versions": "lstmpool 0.1.0"}
    append_row(path, row)
    whole = path.read_bytes()
    torn = whole.splitlines()[1].replace(b"1", b"2", 1)  # of another run, without its line's end
    for cut in (3, 20, len(torn) - 3, len(torn)):
        path.write_bytes(whole + torn[:cut])
        assert read_rows(path) == [row]
        append_row(path, row | {"seed": "3"})
        assert "3" in [r["seed"] for r in read_rows(path)]
    path.write_bytes(whole + torn[:20])
    append_row(path, row | {"seed": "3"})
    assert [r["seed"] for r in read_rows(path)] == ["1", "3"]


def test_of_equal_settings_the_shorter_and_then_the_slower_is_kept_and_no_number_is_the_worst():
    def row(value, epochs, rate, head=""):
        return {"validation": value, "epochs": epochs, "learning_rate": rate, "head_learning_rate": head}

    rows = [row("nan", "2", "1e-4"), row("0.5", "12", "1e-3"), row("0.5", "4", "4e-3", "0.01"), row("0.4", "2", "1")]
    assert best(rows) == (Setting(4e-3, 4, 0.01), 0.5)
    assert best([*rows, row("0.5", "4", "4e-3", "0.001")])[0] == Setting(4e-3, 4, 0.001)
    assert best([*rows, row("0.5", "4", "0.0016", "1")])[0] == Setting(0.0016, 4, 1)
    assert best(rows[:1])[0] == Setting(1e-4, 2) and best([rows[0], rows[3]])[0] == Setting(1, 2)


def test_the_best_setting_is_that_with_the_best_mean_over_the_seeds_that_it_was_tried_with():
    tried = [("0.9", "1"), ("0.1", "1"), ("0.6", "2"), ("0.5", "2")]
    rows = [{"validation": v, "epochs": "4", "learning_rate": rate, "head_learning_rate": ""} for v, rate in tried]
    assert best(rows) == (Setting(2, 4), pytest.approx(0.55))


def test_a_setting_becomes_columns_and_back():
    for setting in (Setting(2.5e-4, 12), Setting(5e-5, 3, 0.01)):
        assert Setting.of(setting.columns()) == setting
    assert Setting(5e-5, 3, 0.01).columns() == {"learning_rate": "5e-05", "head_learning_rate": "0.01", "epochs": "3"}


def test_a_pooling_that_its_seed_draws_a_part_of_is_tuned_with_several_draws(words, runs, data):
    assert main([*words, "--poolings", "lstm_shuffled", "last"]) == 0
    rows = read_rows(data / "out" / "runs.csv")
    tune = [(row["pooling"], row["seed"]) for row in rows if row["kind"] == "tune"]
    assert {seed: tune.count(("lstm_shuffled", seed)) for seed in ("0", "100", "101")} == dict.fromkeys(
        ("0", "100", "101"), 10
    )
    assert tune.count(("last", "0")) == 10 and len(tune) == 40
    # over the three, the final runs have the setting of the best mean
    values = defaultdict(list)
    for row in rows:
        if row["kind"] == "tune" and row["pooling"] == "lstm_shuffled":
            values[row["learning_rate"], row["epochs"]].append(float(row["validation"]))
    final = next(row for row in rows if row["kind"] == "final" and row["pooling"] == "lstm_shuffled")
    assert np.mean(values[final["learning_rate"], final["epochs"]]) == max(map(np.mean, values.values()))


@pytest.mark.parametrize("column", KEY)
def test_a_run_of_another_setting_is_another_run(column, tmp_path):
    row = dict.fromkeys(COLUMNS, "1")
    for other in (row, row | {column: "2"}):
        append_row(tmp_path / "runs.csv", other)
    assert len(read_rows(tmp_path / "runs.csv")) == 2
    assert name_of(row) != name_of(row | {column: "2"})


def test_a_dry_run_says_what_remains_and_how_long_it_takes(words, runs, data, capsys):
    assert main([*words, "--dry_run"]) == 0
    said = capsys.readouterr().out
    assert "one (24/10/8 rows; own test file): 24 runs remain, unknown time" in said and "in all: 24 runs" in said
    measured = {
        "regime": "frozen",
        "token_pooling": "mean",
        "pooling": "lstm",
        "seconds": "86400",
        "epochs": "4",
        "train_rows": "24",
    }  # a quarter of an hour a row and epoch
    append_row(data / "out" / "runs.csv", dict.fromkeys(COLUMNS, "") | measured)
    assert main([*words, "--poolings", "lstm", "--dry_run"]) == 0
    # 5 * 4 + 5 * 12 epochs to tune, at most 2 * 12 for the seeds, over 24 rows
    assert f"in all: 12 runs remain, at most {(80 + 24) * 24 / 4:.2f} hours of one core" in capsys.readouterr().out
    assert not runs.calls


@pytest.mark.parametrize("name, metric", [("one", "accuracy"), ("pairs", "pearson"), ("several", "f1_micro")])
def test_the_predictions_of_a_run_give_its_test_score_again(name, metric, words, data):
    assert main([*words[:4], "--datasets", name, "--poolings", "last", "--seeds", "1"]) == 0
    final = read_rows(data / "out" / "runs.csv")[-1]
    (file,) = (data / "out" / "predictions").iterdir()
    assert file.name == name_of(final)
    kept = Runs.of(data / "out", "frozen", "mean").predictions.read(final)
    label, found = kept["label"], kept["prediction"]
    assert len(label) == len(found) == 8  # the rows of the test file, in its order
    if name == "one":
        assert label == [[int((34 + i) % 3 > 0)] for i in range(8)]  # no, yes
        score = np.mean(np.array(label) == found)
    elif name == "pairs":
        assert label == [[(34 + i) % 7 / 2] for i in range(8)]
        score = np.corrcoef(np.ravel(label), np.ravel(found))[0, 1]
    else:
        assert label[:3] == [[0, 2], [], [0]]  # rows 34, 35 and 36
        hits = sum(len(set(a) & set(b)) for a, b in zip(label, found, strict=True))
        score = 2 * hits / sum(len(a) + len(b) for a, b in zip(label, found, strict=True))
    assert float(final["test"]) == pytest.approx(score, abs=6e-5)
    assert final["metric"] == metric


# ------------------------------------------------------------------------------------------- a pooling of one's own
class Difference(LayerPooling):
    """The top layer less the lowest."""

    def pool(self, layer_states):
        return layer_states[:, -1] - layer_states[:, 0]


def test_a_class_and_an_entry_put_a_pooling_through_the_study(words, data, monkeypatch):
    monkeypatch.setitem(POOLINGS, "difference", own(Difference))
    assert main([*words, "--poolings", "difference", "last"]) == 0
    rows = read_rows(data / "out" / "runs.csv")
    assert [row["pooling"] for row in rows if row["kind"] == "final"] == ["difference", "last"] * 2
    assert len({row["parameters"] for row in rows}) == 1  # those of the classifier alone
    assert len({row["validation"] for row in rows}) > 1


# ------------------------------------------------------------------------------------------------------------ the rows
def test_text_and_aspect_are_a_pair(tmp_path):
    columns = {"text": text, "aspect": lambda i: f"w{i}", "label": lambda i: "ab"[i % 2]}
    write_set(tmp_path / "absa", columns)
    found = read_set(tmp_path, "absa", None, None)
    assert found.train.pairs[:2] == ["w0", "w1"] and found.test.ids == list(range(8))
    assert found.test.labels == [0, 1] * 4 and found.note == "own test file"


def test_without_a_test_the_validation_file_is_the_test_and_a_tenth_of_train_is_validation(tmp_path):
    columns = {"text": lambda i: f"w{i}", "label": lambda i: "ab"[i % 4 == 0]}
    write_set(tmp_path / "two", columns, {"train": 200, "validation": 10})
    found = read_set(tmp_path, "two", None, None)
    assert found.test.texts == [f"w{200 + i}" for i in range(10)]
    assert (len(found.train), len(found.validation)) == (180, 20)
    assert found.validation.labels.count(1) == 5
    assert not set(found.train.texts) & set(found.validation.texts)


def test_fewer_rows_are_spread_over_the_classes_and_are_the_same_again(tmp_path):
    columns = {"text": lambda i: f"w{i}", "label": lambda i: "c" if i == 7 else "ab"[i > 100]}  # sorted by label
    write_set(tmp_path / "many", columns, {"train": 200, "validation": 100, "test": 30})
    first, again = (read_set(tmp_path, "many", 40, 20) for _ in range(2))
    assert [first.train.labels.count(label) for label in range(3)] == [20, 20, 1]  # c, of one row, stays
    assert len(first.validation) == 20 and len(first.test) == 30
    assert first.train.texts == again.train.texts


def test_zipped_files_are_read_and_a_label_unknown_to_training_counts_as_a_mistake(tmp_path):
    folder = write_set(tmp_path / "rare", {"text": text, "label": lambda i: "new" if i == 41 else "ab"[i % 2]})
    (folder / "train.csv.gz").write_bytes(gzip.compress((folder / "train.csv").read_bytes()))
    (folder / "train.csv").unlink()
    found = read_set(tmp_path, "rare", None, None)
    assert found.task.names == ["a", "b", "new"]
    assert found.test.labels[-1] == 2 and 2 not in found.train.labels


def test_an_empty_cell_is_a_row_without_labels(data):
    found = read_set(data, "several", None, None)
    assert found.task.names == ["a", "b", "c"]
    assert found.train.labels[:5] == [[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0], [1, 0, 1]]


def test_a_column_called_labels_holds_several_though_each_row_has_one(tmp_path):
    write_set(tmp_path / "each", {"text": text, "labels": lambda i: "ab"[i % 2]})
    assert read_set(tmp_path, "each", None, None).train.labels[:2] == [[1, 0], [0, 1]]


def test_wrong_input_ends_before_any_run(words, data, capsys):
    assert main([*words, "--poolings", "lstm", "lsmt"]) == 2
    assert "--poolings of frozen must be of last," in capsys.readouterr().err
    assert main([*words, "0"]) == 2
    assert "--seeds must not hold 0" in capsys.readouterr().err
    assert main([*words, "101", "100"]) == 2
    assert "--seeds must not hold 100, 101" in capsys.readouterr().err
    write_set(data / "odd", {"body": text, "label": lambda i: "ab"[i % 2]})
    assert main([*words, "--datasets", "odd"]) == 2
    assert "odd/train.csv: expected text, text and aspect, or sentence1 and sentence2" in capsys.readouterr().err
    assert main([*words, "--datasets", "one", "none"]) == 2
    assert "expected train.csv or train.csv.gz in" in capsys.readouterr().err
    assert main([*words, "--backbone", "package:nothing"]) == 2
    assert "no such package is installed" in capsys.readouterr().err
    assert not (data / "out").exists()


# --------------------------------------------------------------------------------------- where the backbone is trained
def test_few_shots_are_so_many_rows_a_class_drawn_by_the_seed(data):
    train = read_set(data, "one", None, None).train  # 8 no, 16 yes
    drawn = draw(train, 10, seed=1)
    assert (drawn.labels.count(0), drawn.labels.count(1)) == (8, 10)
    assert draw(train, 10, seed=1).texts == drawn.texts != draw(train, 10, seed=2).texts
    few = REGIMES["few_shot_16"]
    assert few.rows_of(read_set(data, "one", None, None)) == 8 + 16


@pytest.fixture
def rates(monkeypatch):
    """The rates that the optimizers start with, one dictionary a run: how many weights learn at each."""
    seen = []

    def create_scheduler(trainer, num_training_steps, optimizer=None):
        sizes = {group["lr"]: 0 for group in trainer.optimizer.param_groups}
        for group in trainer.optimizer.param_groups:
            sizes[group["lr"]] += sum(p.numel() for p in group["params"])
        seen.append(sizes)
        trainer.lr_scheduler = torch.optim.lr_scheduler.ConstantLR(trainer.optimizer, 1.0)
        return trainer.lr_scheduler

    monkeypatch.setattr("transformers.Trainer.create_scheduler", create_scheduler)
    return seen


def test_the_stock_head_and_a_pooling_train_the_backbone_and_what_is_above_it_has_a_rate_of_its_own(data, rates):
    folder, found = str(save_backbone(data / "bert")), read_set(data, "one", None, None)
    fitter = FinetunedSet(folder, found, "mean", batch_size=8, shots=4)
    for pooling in ("stock", "last"):
        fit = fitter.fit(build_of(pooling), seed=1, setting=Setting(1e-4, 1, 3e-3), with_test=True)
        assert fit.validation.shape == (10, 2) and fit.test.shape == (8, 2)
        # of the classifier, and of the stock head's pooler
        above = 2 * 17 + (16 * 17 if pooling == "stock" else 0)
        assert rates[-1].keys() == {1e-4, 3e-3} and rates[-1][3e-3] == above == fit.parameters
        assert fit.flops == 2 * 2 * 16 + (2 * 16 * 16 if pooling == "stock" else 0)  # the stock head has a pooler
    distilbert = DistilBertConfig(vocab_size=50, dim=16, n_layers=2, n_heads=2, hidden_dim=32, num_labels=2)
    above = above_layers(DistilBertForSequenceClassification(distilbert))
    assert sum(p.numel() for p in above) == 16 * 17 + 2 * 17  # it keeps its pooler beside the backbone
    for regime in ("few_shot_16", "full"):
        settings = {(s.learning_rate, s.head_learning_rate) for s in REGIMES[regime].settings}
        assert len(settings) == len(REGIMES[regime].settings) == 4  # each rate with each
    with pytest.raises(InputError, match="few shots are counted by class"):
        FinetunedSet(folder, read_set(data, "pairs", None, None), "mean", batch_size=8, shots=4)
