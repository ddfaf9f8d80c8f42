"""What was typed stays as it was typed: no step of a run writes to the parsed arguments."""

from dataclasses import fields

import pytest

from lstmpool import train_trainer
from lstmpool.training import command_line

from .. import kills


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("work")
    kills.prepare(folder)
    return folder


def values_of(groups):
    return [{f.name: getattr(group, f.name) for f in fields(group)} for group in groups]


@pytest.mark.parametrize(
    "words",
    [
        [
            "--num_train_epochs=1",
            "--save_total_limit=1",
            "--early_stopping_patience=1",
            "--metric_for_best_model=auto",
        ],
        ["--num_train_epochs=1", "--freeze_backbone", "--train_sampling_strategy=group_by_length", "--baselines"],
        ["--num_train_epochs=1", "--cv_folds=2"],
        ["--num_train_epochs=1", "--hp_search=1"],
        ["--num_train_epochs=1", "--label_column_name=score"],
    ],
    ids=["plain", "frozen", "folds", "search", "numbers"],
)
def test_no_run_writes_to_the_parsed_arguments(work, tmp_path, monkeypatch, words):
    monkeypatch.setattr("lstmpool.training.model.layer_cache.CACHE", tmp_path / "cache")
    monkeypatch.setattr("lstmpool.training.runs.search.STUDIES", tmp_path / "studies")
    parsed, parse = [], command_line.parse_arguments

    def remember(*args, **kwargs):
        groups = parse(*args, **kwargs)
        parsed.append((groups[:3], values_of(groups[:3])))
        return groups

    monkeypatch.setattr(command_line, "parse_arguments", remember)
    words = [*kills.command(work, words, "out"), f"--output_dir={tmp_path / 'out'}"]
    if "--cv_folds=2" in words:
        words = [word for word in words if not word.startswith("--validation_file")]
    assert train_trainer.main(words) == 0
    ((groups, before),) = parsed
    assert values_of(groups) == before
