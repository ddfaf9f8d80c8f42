"""The benchmarks of whole commands: what a round is, that they go on where they stopped, and what each takes."""

import pkgutil
import sys
from types import SimpleNamespace

import pytest
import torch

from lstmpool.benchmarks import cached_epochs, loading, many_rows, prediction
from lstmpool.benchmarks.results import read_rows
from lstmpool.benchmarks.rounds import Arguments, Comparison

from ..training_fixtures import save_backbone, sentences, write_csv


SECONDS = {("a", "ours"): 1.0, ("a", "theirs"): 4.0, ("b", "ours"): 3.0, ("b", "theirs"): 2.0}


def test_rounds_take_turns_and_are_not_repeated(tmp_path, capsys):
    seen, output = [], tmp_path / "results.csv"

    def measure(args, subject, variant):
        seen.append((subject, variant))
        return SECONDS[subject, variant]

    pair = Comparison("pair", ("a", "b"), ("ours", "theirs"))
    for rounds in (1, 2):
        assert pair.main(Arguments, measure, "", [f"--rounds={rounds}", f"--output={output}"]) == 0
    first = [("a", "ours"), ("a", "theirs"), ("b", "ours"), ("b", "theirs")]
    assert seen == first + [first[1], first[0], first[3], first[2]]
    out = capsys.readouterr().out
    assert "| a | ours | 2 | 1 | 0.250 [0.250, 0.250] |\n| a | theirs | 2 | 4 |  |" in out
    assert pair.over_base(read_rows(output), "b", "ours") == (1.5, 1.5, 1.5)
    assert pair.over_base([], "b", "ours") is None


@pytest.mark.parametrize("command", [cached_epochs, prediction])
def test_a_command_on_data_asks_for_it(command, tmp_path, capsys):
    with pytest.raises(SystemExit):
        command.main([f"--output={tmp_path / 'results.csv'}"])
    assert "expected --data" in capsys.readouterr().err


def test_an_epoch_lasts_from_line_to_line():
    program = (
        "import time; print('epoch 1/2', flush=True); time.sleep(0.5); print('no'); print('epoch 2/2', flush=True)"
    )
    first, second = cached_epochs.epoch_ends([sys.executable, "-c", program], {})
    assert 0.4 < second - first < 5
    with pytest.raises(SystemExit, match="broken\n\n.*ended with status 3"):
        cached_epochs.epoch_ends([sys.executable, "-c", "print('broken'); raise SystemExit(3)"], {})


@pytest.fixture
def data(tmp_path):
    for name in ("movie_reviews", "cr", "trec6"):
        (tmp_path / name).mkdir()
        for split in ("train", "validation", "test"):
            write_csv(tmp_path / name / f"{split}.csv", {"text": sentences(12), "label": [i % 2 for i in range(12)]})
    save_backbone(tmp_path / "backbone")
    return tmp_path


def test_all_predict_the_same_texts(data):
    texts = prediction.mixed_texts(data, 20)
    assert len(texts) == 20 and texts == prediction.mixed_texts(data, 20)
    found = {}
    for variant in prediction.COMPARED.variants:
        torch.manual_seed(0)  # the same new layers
        found[variant] = prediction.predictor(variant, str(data / "backbone"))(texts)
    scores = torch.tensor(found["predict"]).softmax(-1).amax(-1)
    torch.testing.assert_close(scores.float(), torch.tensor([row["score"] for row in found["pipeline, lstmpool"]]))
    assert len(found["pipeline, stock class"]) == 20


@pytest.mark.slow
@pytest.mark.parametrize("command", [cached_epochs, prediction, loading])
def test_a_command_runs_on_small_data(command, data):
    words = [] if command is loading else [f"--data={data}", f"--backbone={data / 'backbone'}"]
    output = data / "results.csv"
    assert command.main([*words, "--rounds=1", f"--output={output}"]) == 0
    rows = read_rows(output)
    assert len(rows) == len(command.COMPARED.subjects) * len(command.COMPARED.variants)
    assert all(float(row["seconds"]) > 0 for row in rows)


PRINTED = "Task: ...\nPHASE,tokens,1.50,700\nPHASE,all before the first step,4.25,900\n"


def test_what_many_rows_take_is_read_from_the_lines_of_a_run_and_not_measured_again(tmp_path, monkeypatch, capsys):
    assert all(pkgutil.resolve_name(place) for place in many_rows.PHASES)
    runs, output = [], tmp_path / "results.csv"

    def stand_in(words, **options):
        (file,) = [word.partition("=")[2] for word in words if word.startswith("--train_file=")]
        with open(file, encoding="utf-8") as lines:
            runs.append(sum(1 for _ in lines) - 1)
        return SimpleNamespace(stdout=PRINTED if runs[-1] > 3 else "no rows", stderr="broken", returncode=0)

    monkeypatch.setattr(many_rows.subprocess, "run", stand_in)
    for rows in (5, 7, 5):
        assert many_rows.main([f"--rows={rows}", f"--output={output}"]) == 0
    assert runs == [5, 7]
    assert "| 7 | tokens | 1.50 | 700 |\n| 7 | all before the first step | 4.25 | 900 |" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="no rows\nbroken\nthe command ended with status 0"):
        many_rows.main(["--rows=2", f"--output={output}"])


@pytest.mark.slow
def test_many_rows_are_measured_up_to_the_first_step(data):
    output = data / "results.csv"
    assert many_rows.main(["--rows=600", f"--backbone={data / 'backbone'}", f"--output={output}"]) == 0
    rows = read_rows(output)
    assert [row["phase"] for row in rows] == [*many_rows.PHASES.values(), many_rows.WHOLE]
    seconds = [float(row["seconds"]) for row in rows]
    assert min(seconds) >= 0 and sum(seconds[:-1]) <= seconds[-1]
    assert all(float(row["megabytes"]) > 50 for row in rows)
