import multiprocessing
import os
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pyarrow
import pytest
import torch
from datasets import Dataset
from filelock import FileLock
from transformers import DataCollatorWithPadding

from lstmpool.pairs_lstmpool import pair_template
from lstmpool.training.errors import InputError
from lstmpool.training.model.layer_cache import StatesCollator, cached_states, damage, forget_states

from ...conftest import tiny_model, word_tokenizer
from ...damage import KINDS, damage_file


LENGTHS = [3, 9, 1, 6, 6, 2, 8]


@pytest.fixture
def rows():
    tokens = [
        {"input_ids": [5 + (7 * i + j) % 40 for j in range(n)], "attention_mask": [1] * n}
        for i, n in enumerate(LENGTHS)
    ]
    return Dataset.from_list(tokens).add_column("labels", list(range(7)))


@pytest.fixture
def cache(tmp_path, tokenizer):
    def states(model, rows, **options):
        options = {"batch_size": 3, "folder": tmp_path / "cache", **options}
        return cached_states(model, rows, DataCollatorWithPadding(tokenizer), **options).rows

    return states


def files(tmp_path):
    return sorted(path for path in (tmp_path / "cache").iterdir() if path.suffix != ".lock")


def test_every_row_has_its_own_states_in_the_order_of_the_rows(cache, rows):
    model = tiny_model(layers=[2, 3, 4])
    batch = StatesCollator(3, 16)([row for row in cache(model.train(), rows)])
    assert batch["layer_states"].shape == (7, 3, 16) and batch["labels"].tolist() == list(range(7))
    for i, row in enumerate(rows.remove_columns("labels")):
        with torch.no_grad():
            alone = model.eval()(**{name: torch.tensor([value]) for name, value in row.items()}).layer_states[0]
        torch.testing.assert_close(batch["layer_states"][i], alone, atol=1e-6, rtol=1e-5)


def test_pairs_that_are_read_apart_have_states_of_their_own(cache, tokenizer, tmp_path):
    template = pair_template(tokenizer)
    encoded = tokenizer(["the order", "my", "broken"], ["late", "is not late", "back"])
    rows = Dataset.from_dict(dict(encoded))
    apart, joint = tiny_model(pair_encoding="apart", pair_template=template), tiny_model()
    found = StatesCollator(4, 64)(list(cache(apart, rows)))["layer_states"]
    batch = tokenizer.pad(encoded, return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(found, apart(**batch).layer_states, atol=1e-6, rtol=1e-5)
    assert StatesCollator(4, 16)(list(cache(joint, rows)))["layer_states"].shape == (3, 4, 16)
    other = template | {"suffix": []}
    cache(tiny_model(pair_encoding="apart", pair_template=other), rows)
    assert len(files(tmp_path)) == 3


def test_the_head_trains_on_them_as_on_the_tokens(cache, rows, tokenizer):
    model = tiny_model()
    model.lstmpool.backbone.requires_grad_(False)
    tokens = DataCollatorWithPadding(tokenizer)([dict(row) for row in rows])
    tokens["labels"] = torch.tensor([0, 1, 2, 0, 1, 2, 0])
    cached = StatesCollator(4, 16)(list(cache(model, rows))) | {"labels": tokens["labels"]}
    gradients = []
    for batch in (tokens, cached):
        model.zero_grad()
        model.eval()(**batch).loss.backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and "classifier.weight" in gradients[0]
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-5, rtol=1e-4)


def test_the_next_run_reads_what_is_there(cache, rows, tmp_path, monkeypatch):
    first = cache(tiny_model(), rows)
    written = files(tmp_path)
    assert len(written) == 1
    again = "the backbone ran again"
    monkeypatch.setattr("lstmpool.training.model.layer_cache._write", lambda *args: pytest.fail(again))
    again = cache(tiny_model(), rows.remove_columns("labels"))
    assert np.array_equal(first["layer_states"][:], again["layer_states"][:])


@pytest.mark.parametrize("change", ["weights", "layers", "pooling", "tokens", "order", "dtype"])
def test_what_the_states_depend_on_makes_another_file(cache, rows, tmp_path, change):
    cache(tiny_model(), rows)
    model = tiny_model(**{"layers": {"layers": [1, 2]}, "pooling": {"token_pooling": "mean"}}.get(change, {}))
    if change == "weights":
        with torch.no_grad():
            next(model.lstmpool.backbone.parameters())[-1, -1] += 1
    if change == "tokens":
        rows = rows.map(lambda row: {"input_ids": [row["input_ids"][0] + 1, *row["input_ids"][1:]]})
    if change == "order":
        rows = rows.select(range(6, -1, -1))
    states = cache(model, rows, dtype="float16" if change == "dtype" else "float32")
    assert len(files(tmp_path)) == 2
    assert states["labels"][:].tolist() == (list(range(7)) if change != "order" else list(range(6, -1, -1)))


def test_the_head_has_no_part_in_it(cache, rows, tmp_path):
    cache(tiny_model(), rows)
    cache(tiny_model(layer_pooling="max", num_labels=5), rows)
    assert len(files(tmp_path)) == 1


def test_half_precision_takes_half_the_space(cache, rows):
    full, half = (cache(tiny_model(), rows, dtype=dtype) for dtype in ("float32", "float16"))
    assert half.features["layer_states"].feature.dtype == "float16"
    assert half["layer_states"][:].astype(np.float32) == pytest.approx(full["layer_states"][:], abs=2e-3)
    assert StatesCollator(4, 16)(list(half))["layer_states"].dtype == torch.float32


def test_an_interrupted_run_leaves_nothing_half_made(cache, rows, tmp_path, monkeypatch):
    model = tiny_model()
    calls, forward = [], model.lstmpool.forward

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return forward(*args, **kwargs)

    monkeypatch.setattr(model.lstmpool, "forward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cache(model, rows)
    assert files(tmp_path) == []
    assert len(cache(model, rows)) == 7


@pytest.mark.parametrize("at", [0.0, 0.5, 0.97, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_is_named_and_made_again(cache, rows, tmp_path, capsys, kind, at):
    first = cache(tiny_model(), rows)["layer_states"][:]
    path = files(tmp_path)[0]
    content = path.read_bytes()
    damage_file(path, kind, at)
    assert np.array_equal(cache(tiny_model(), rows)["layer_states"][:], first)
    assert files(tmp_path) == [path] and path.read_bytes() == content
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(str(path)) and line.endswith("It is made again.")


def test_a_file_of_an_earlier_release_has_no_digest_and_is_made_again(cache, rows, tmp_path, capsys):
    cache(tiny_model(), rows)
    path = files(tmp_path)[0]
    content = path.read_bytes()
    path.write_bytes(content[: -len("blake2b ") - 32])
    cache(tiny_model(), rows)
    assert path.read_bytes() == content and "comes from an earlier release" in capsys.readouterr().out


def fill(folder, barrier, found):
    """One of two processes that fill a cache at once."""
    torch.set_num_threads(1)
    rows = Dataset.from_list([{"input_ids": [5 + i % 40, 6, 7], "attention_mask": [1, 1, 1]} for i in range(400)])
    model, collator = tiny_model(), DataCollatorWithPadding(word_tokenizer())
    barrier.wait()
    states = cached_states(model, rows, collator, batch_size=4, folder=folder).rows
    found.put(float(states["layer_states"][:].sum(dtype=np.float64)))


def test_two_processes_that_fill_a_cache_at_once_leave_one_whole_file(tmp_path):
    fork = multiprocessing.get_context("fork")
    barrier, found = fork.Barrier(2), fork.Queue()
    processes = [fork.Process(target=fill, args=(tmp_path / "cache", barrier, found)) for _ in range(2)]
    for process in processes:
        process.start()
    sums = {found.get(timeout=60) for _ in processes}
    for process in processes:
        process.join()
    assert len(sums) == 1 and damage(files(tmp_path)[0]) == "" and len(files(tmp_path)) == 1


def test_what_a_killed_run_left_is_written_over(cache, rows, tmp_path):
    cache(tiny_model(), rows)
    whole = files(tmp_path)[0]
    content = whole.read_bytes()
    whole.rename(whole.with_name(f".{whole.name}.unfinished"))
    whole.with_name(f".{whole.name}.unfinished").write_bytes(b"half" * 10_000)
    cache(tiny_model(), rows)
    assert files(tmp_path) == [whole] and whole.read_bytes() == content


def test_who_comes_second_waits_and_computes_nothing(cache, rows, tmp_path, monkeypatch, capsys):
    first, written = cache(tiny_model(), rows), []
    whole = files(tmp_path)[0]
    content = whole.read_bytes()
    whole.unlink()
    monkeypatch.setattr("lstmpool.training.model.layer_cache._write", lambda path, *rest: written.append(path))
    with ThreadPoolExecutor() as pool, FileLock(f"{whole}.lock"):  # a lock is its holder's, not the process's
        second = pool.submit(cache, tiny_model(), rows)
        with pytest.raises(TimeoutError):
            second.result(timeout=1)
        assert "another process is computing them. Waiting for it." in capsys.readouterr().out
        whole.write_bytes(content)
    assert np.array_equal(second.result()["layer_states"][:], first["layer_states"][:]) and written == []


def test_what_is_there_is_read_without_the_right_to_write(cache, rows, monkeypatch):
    cache(tiny_model(), rows)
    monkeypatch.setattr("lstmpool.training.model.layer_cache.FileLock", None)
    assert len(cache(tiny_model(), rows)) == 7


def test_states_that_half_precision_cannot_hold_are_refused(cache, rows, tmp_path, monkeypatch):
    model = tiny_model()
    forward = model.lstmpool.forward

    def large(value):
        def run(*args, **kwargs):
            outputs = forward(*args, **kwargs)
            outputs.layer_states[0, 0, 0] = value
            return outputs

        return run

    monkeypatch.setattr(model.lstmpool, "forward", large(-70_000.0))
    with pytest.raises(InputError, match="up to 65504, found -70000. Give --layer_cache float32"):
        cache(model, rows, dtype="float16")
    assert files(tmp_path) == []
    assert cache(model, rows)["layer_states"][:].min() == -70_000
    monkeypatch.setattr(model.lstmpool, "forward", large(float("inf")))  # which float32 would not mend
    assert np.isinf(cache(model, rows, dtype="float16")["layer_states"][:]).any()


def test_a_disk_without_room_is_told_before_the_backbone_runs(cache, rows, tmp_path, monkeypatch):
    model, free = tiny_model(), 7 * 4 * 16 * 4 - 1  # rows, layers, H, bytes
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=free))
    forward = model.lstmpool.forward
    monkeypatch.setattr(model.lstmpool, "forward", None)
    with pytest.raises(InputError, match=r"take 0.000 GB in .*cache, found .* free. .* --layer_cache float16, which"):
        cache(model, rows, title="train")
    assert files(tmp_path) == []
    monkeypatch.setattr(model.lstmpool, "forward", forward)
    cache(model, rows, dtype="float16")
    free = 10
    with pytest.raises(InputError, match="may be deleted; give --layer_cache no; or set HF_HOME"):
        cache(model, rows.select(range(6)), dtype="float16")
    free = 7 * 4 * 16 * 4
    assert len(cache(model, rows)) == 7


def test_it_is_read_through_a_memory_map(cache, rows):
    before = pyarrow.total_allocated_bytes()
    states = cache(tiny_model(), rows)
    assert states.cache_files and pyarrow.total_allocated_bytes() - before < 7 * 4 * 16 * 4


def test_a_folder_that_cannot_be_written(cache, rows, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="layer cache in .* cannot be written or read"):
        cache(tiny_model(), rows, folder=tmp_path / "file" / "cache")


def test_states_of_a_command_go_with_it_and_those_of_killed_ones_after_a_week(tmp_path):
    for name, age in {"own": 0, "young": 6 * 86_400, "old": 8 * 86_400}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "layer_states-1.arrow").touch()
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")  # as if another command had removed it this moment
    forget_states(tmp_path / "own")
    assert {path.name for path in tmp_path.iterdir()} == {"young", "gone"}
    forget_states(tmp_path / "own")  # which is no longer there


def test_it_says_whether_states_were_computed_and_shows_a_bar_unless_it_is_quiet(tmp_path, tokenizer, rows, capsys):
    def states(folder, quiet):
        collator = DataCollatorWithPadding(tokenizer)
        return cached_states(tiny_model(), rows, collator, 3, folder=tmp_path / folder, title="train", quiet=quiet)

    assert states("a", quiet=True).computed
    assert capsys.readouterr().err == ""
    assert not states("a", quiet=False).computed
    assert states("b", quiet=False).computed
    assert "layer states of train" in capsys.readouterr().err
    damage_file(next((tmp_path / "a").glob("*.arrow")), "flipped")
    assert states("a", quiet=True).computed
