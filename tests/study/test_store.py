"""Predictions are kept run by run and gathered in one file a regime, and no kill loses a run that had ended."""

import numpy as np
import pyarrow.parquet
import pytest

from lstmpool.training.errors import InputError
from study.records import KEY
from study.store import Predictions, rounded


def row(**fields):
    return dict.fromkeys(KEY, "1") | fields


RUNS = {  # one label a row; several labels or none; a number
    "single": (row(dataset="trec6", seed="3"), [[0], [5], [2]], [[0], [4], [2]]),
    "several": (row(dataset="semeval2018_ec"), [[0, 2], [], [1]], [[0], [3, 10], []]),
    "number": (row(dataset="stsb", seed="2"), [[2.5], [0.0], [5.0]], [[2.25], [-0.5], [4.75]]),
}


@pytest.fixture
def kept(tmp_path):
    predictions = Predictions(tmp_path / "predictions" / "frozen-mean.parquet")
    for run, label, prediction in RUNS.values():
        predictions.add(run, label, prediction)
    return predictions


def read_again(kept):
    """By a process that starts now."""
    return Predictions(kept.file)


@pytest.mark.parametrize("gathered", [False, True])
@pytest.mark.parametrize("kind", RUNS)
def test_what_is_kept_is_read_again(kind, gathered, kept):
    if gathered:
        kept.gather()
    run, label, prediction = RUNS[kind]
    for predictions in (kept, read_again(kept)):
        assert predictions.read(run) == {"label": label, "prediction": prediction}


def test_gathering_leaves_one_file_that_is_the_same_in_any_order(kept, tmp_path):
    kept.gather()
    assert [path.name for path in kept.file.parent.iterdir()] == ["frozen-mean.parquet"]
    other = Predictions(tmp_path / "again" / "frozen-mean.parquet")
    for run, label, prediction in reversed(RUNS.values()):
        other.add(run, label, prediction)
        other.gather()
    assert other.file.read_bytes() == kept.file.read_bytes()
    assert pyarrow.parquet.read_table(kept.file)["dataset"].to_pylist() == ["semeval2018_ec", "stsb", "trec6"]


def test_without_waiting_files_nothing_is_written(kept):
    kept.gather()
    before = kept.file.stat()
    kept.gather()
    assert (kept.file.stat().st_mtime_ns, kept.file.stat().st_ino) == (before.st_mtime_ns, before.st_ino)


def test_a_run_that_was_made_again_replaces_the_first(kept):
    kept.gather()
    run, label, _ = RUNS["single"]
    kept.add(run, label, [[1], [1], [1]])
    assert kept.read(run)["prediction"] == [[1], [1], [1]]
    kept.gather()
    assert read_again(kept).read(run)["prediction"] == [[1], [1], [1]]
    assert len(pyarrow.parquet.read_table(kept.file)) == 3


@pytest.mark.parametrize("step", ["write", "replace", "unlink"])
def test_a_kill_while_gathering_loses_nothing(step, tmp_path, monkeypatch):
    kept = Predictions(tmp_path / "frozen-mean.parquet")
    first, *others = RUNS.values()
    kept.add(*first)
    kept.gather()
    for run in others:
        kept.add(*run)

    def kill(*args, **kwargs):
        raise KeyboardInterrupt

    target = {"write": "pyarrow.parquet.write_table", "replace": "os.replace", "unlink": "pathlib.Path.unlink"}[step]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(target, kill)
        kept.gather()
    for finished in (False, True):
        for run, label, prediction in RUNS.values():
            assert read_again(kept).read(run) == {"label": label, "prediction": prediction}
        if not finished:
            kept.gather()
    assert len(pyarrow.parquet.read_table(kept.file)) == 3


def test_a_run_without_predictions_is_named_with_the_remedy(kept):
    with pytest.raises(
        InputError, match="expected the predictions of .*cola.* found none. Delete its line in the CSV"
    ):
        kept.read(row(dataset="cola"))


def test_numbers_are_rounded_to_sixteen_binary_digits():
    assert rounded(np.array([1 + 2**-15, 1 + 2**-17, -3.0, 0.0])).tolist() == [1 + 2**-15, 1, -3, 0]
    values = np.random.default_rng(0).normal(scale=1e6, size=1000)
    assert (np.abs(rounded(values) / values - 1) <= 2**-16).all()
