"""The mean and scale of each layer's features come from the training rows alone, and the backbone at its start."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from lstmpool.modeling_lstmpool import LstmPoolForSequenceClassification
from lstmpool.train_trainer import main
from lstmpool.training.data.holdout import draw_by_class
from lstmpool.training.errors import InputError
from lstmpool.training.flags.arguments import ModelArguments
from lstmpool.training.loop.trainer import LstmPoolTrainer
from lstmpool.training.model import layer_cache, linear_start
from lstmpool.training.model.adapters import load_adapter
from lstmpool.training.model.backbone import Backbone
from lstmpool.training.model.trainable_parts import trained_pooler
from lstmpool.training.runs import finish, fit, stages
from lstmpool.training.runs import search as hp_search
from lstmpool.training.runs.job import choose_fields

from ...training_fixtures import save_backbone, sentences, write_csv


ROWS = 36
LABELS = ["yes" if i % 16 < 8 else "no" for i in range(ROWS)]
EVERY_2 = ["--max_steps=4", "--eval_strategy=steps", "--eval_steps=2", "--save_steps=2", "--save_total_limit=99"]


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A folder with a backbone and rows, those of validation and test far from those of training."""
    save_backbone(tmp_path / "backbone")
    write_csv(tmp_path / "train.csv", {"text": sentences(ROWS), "label": LABELS})
    for name in ("validation", "test"):
        write_csv(tmp_path / f"{name}.csv", {"text": ["moon"] * 40 + ["sun"] * 40, "label": ["yes", "no"] * 40})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(layer_cache, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(hp_search, "STUDIES", tmp_path / "studies")
    monkeypatch.setattr(linear_start, "STRENGTHS", np.array([0.01]))
    monkeypatch.setattr(linear_start, "FOLDS", 2)
    monkeypatch.setattr(linear_start, "MOST_ITERATIONS", 5)
    monkeypatch.setattr(finish, "plots_of", lambda *args: {})
    return tmp_path


def train(*words, start="--backbone=backbone", validation=True, output="out"):
    base = ["--train_file=train.csv", f"--output_dir={output}", "--use_cpu"]
    base += ["--report_to=none", "--disable_tqdm=True", "--bf16=False", "--baselines=False"]
    base += ["--validation_file=validation.csv", "--test_file=test.csv"] if validation else []
    fields = ["--standardize_layers", "--token_pooling=mean", "--lstm_hidden_size=4"]
    return main([*base, start, *([] if start.startswith("--init_from") else fields), *words])


def by_numpy(texts, change=None):
    """The mean and scale over `texts`, each read by itself by the backbone as it was, or as `change` makes it."""
    tokenizer = AutoTokenizer.from_pretrained("backbone")
    model = LstmPoolForSequenceClassification.from_backbone("backbone", token_pooling="mean")
    if change:
        change(model)
    with torch.no_grad():
        states = [model(**tokenizer(text, return_tensors="pt")).layer_states[0].numpy() for text in texts]
    states = np.stack(states).astype(np.float64)  # (N, L, S)
    least = 0.01 * np.sqrt((states**2).mean((0, 2)))
    return states.mean(0), np.maximum(states.std(0), least[:, None])


def assert_saved(file, expected):
    """Whether a file of weights holds the `expected` mean and scale."""
    found = load_file(file)
    for name, wanted in zip(("mean", "scale"), expected, strict=True):
        (key,) = [key for key in found if key.endswith(f"pooler.standardization.{name}")]
        np.testing.assert_allclose(found[key].numpy(), wanted, atol=1e-5)


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--stages=one"],
        ["--freeze_backbone"],
        pytest.param(["--freeze_backbone", "--stages=one"], marks=pytest.mark.slow),
        pytest.param(["--freeze_backbone", "--layer_cache=no", "--stages=one"], marks=pytest.mark.slow),
        pytest.param(["--peft=lora", "--merge", "--learning_rate=0.1"], marks=pytest.mark.slow),
    ],
    ids=["two stages", "one stage", "frozen", "frozen, one stage", "frozen, no cache", "merged"],
)
def test_the_statistics_are_those_of_the_training_rows(work, capsys, words):
    assert train("--max_steps=2", *words) == 0
    said = "Layers standardised: mean and scale of each feature from the layer states of 36 rows."
    assert capsys.readouterr().out.count(said) == 1
    expected = by_numpy(sentences(ROWS))
    assert_saved("out/model.safetensors", expected)
    others = by_numpy([*sentences(ROWS), *["moon"] * 40, *["sun"] * 40])
    assert all(np.abs(a - b).max() > 0.01 for a, b in zip(expected, others, strict=True))  # they would have shown
    assert not list((work / "cache").rglob("first_stage/*/*"))


def test_an_adapter_holds_them(work):
    assert train("--max_steps=2", "--peft=lora", "--stages=one") == 0
    expected = by_numpy(sentences(ROWS))
    assert_saved("out/adapter_model.safetensors", expected)
    loaded = trained_pooler(load_adapter("out")).standardization
    np.testing.assert_allclose(loaded.mean.numpy(), expected[0], atol=1e-5)


@pytest.mark.parametrize("words", [pytest.param(["--stages=one"], marks=pytest.mark.slow), ["--freeze_backbone"]])
def test_of_many_rows_some_are_drawn_by_class(work, monkeypatch, capsys, words):
    monkeypatch.setattr(stages, "ROWS", 20)
    assert train("--max_steps=1", *words) == 0
    assert "from the layer states of 20 of 36 rows." in capsys.readouterr().out
    drawn = draw_by_class(np.array([label == "yes" for label in LABELS]).astype(int), 20, 42)
    assert_saved("out/model.safetensors", by_numpy([sentences(ROWS)[i] for i in drawn]))


def longer_words(model):
    with torch.no_grad():
        model.lstmpool.backbone.embeddings.word_embeddings.weight.mul_(3)


def test_where_texts_are_compared_first_they_come_afterwards(work, monkeypatch):
    monkeypatch.setattr(fit, "compare_texts", lambda state: longer_words(state.model))
    assert train("--max_steps=1", "--contrastive_steps=5") == 0
    assert_saved("out/model.safetensors", by_numpy(sentences(ROWS), longer_words))


@pytest.fixture
def fitted(monkeypatch):
    """The texts of the training rows of each run, and the mean and scale that it took."""
    found, standardize = [], fit.standardize_layers

    def noted(state):
        standardize(state)
        part = trained_pooler(state.model).standardization
        found.append((list(state.job.splits["train"].inputs()), part.mean.numpy().copy(), part.scale.numpy().copy()))

    monkeypatch.setattr(fit, "standardize_layers", noted)
    return found


def assert_own(fitted):
    for texts, *found in fitted:
        for each, wanted in zip(found, by_numpy(texts), strict=True):
            np.testing.assert_allclose(each, wanted, atol=1e-5)


@pytest.mark.parametrize("words", [["--stages=one"], pytest.param(["--freeze_backbone"], marks=pytest.mark.slow)])
def test_each_fold_has_those_of_its_own_rows(work, fitted, words):
    assert train("--max_steps=1", "--cv_folds=2", *words, validation=False) == 0
    assert [len(texts) for texts, *_ in fitted] == [18, 18]
    assert_own(fitted)
    assert not np.allclose(fitted[0][1], fitted[1][1])


@pytest.mark.slow
def test_so_does_each_trial_of_a_search(work, fitted):
    space = '--hp_space={"head_learning_rate": [1e-4, 1e-3, "log"]}'
    assert train("--max_steps=1", "--hp_search=1", space, "--stages=one") == 0
    assert len(fitted) == 2
    assert_own(fitted)


@pytest.mark.parametrize(
    ("words", "step"),
    [
        (["--stages=one"], 2),
        pytest.param(["--stages=one"], 0, marks=pytest.mark.slow),
        pytest.param([], 2, marks=pytest.mark.slow),
        pytest.param([], 0, marks=pytest.mark.slow),
    ],
)
def test_a_run_that_goes_on_keeps_them_and_one_that_begins_anew_repeats_them(work, monkeypatch, capsys, words, step):
    words = [*EVERY_2, *words]
    assert train(*words) == 0
    expected = (work / "out" / "model.safetensors").read_bytes()
    shutil.rmtree(work / "out")
    save = LstmPoolTrainer._save_checkpoint

    def save_until(trainer, *args, **kwargs):
        if trainer.state.global_step > step:
            raise KeyboardInterrupt
        save(trainer, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(LstmPoolTrainer, "_save_checkpoint", save_until)
        assert train(*words) == 130
    capsys.readouterr()
    assert train(*words) == 0
    begins_anew = step == 0 and "--stages=one" in words  # stage 1 saves a checkpoint 0
    assert ("Layers standardised: " in capsys.readouterr().out) is begins_anew
    assert (work / "out" / "model.safetensors").read_bytes() == expected
    assert_saved("out/model.safetensors", by_numpy(sentences(ROWS)))


@pytest.mark.parametrize("labels", [["yes", "no"], pytest.param(["good", "bad"], marks=pytest.mark.slow)])
def test_a_finished_model_keeps_its_own(work, capsys, labels):
    assert train("--max_steps=1", "--stages=one") == 0
    capsys.readouterr()
    write_csv(work / "train.csv", {"text": ["moon", "sun"] * 20, "label": labels * 20})
    words = ["--max_steps=1", "--validation_size=0"]
    assert train(*words, start="--init_from=out", validation=False, output="next") == 0
    assert "Layers standardised" not in capsys.readouterr().out
    assert_saved("next/model.safetensors", by_numpy(sentences(ROWS)))


@pytest.mark.parametrize("words", [["--stages=one"], []])
def test_without_room_for_the_states_the_run_stops(work, monkeypatch, capsys, words):
    usage = layer_cache.shutil.disk_usage

    def room(folder):
        return SimpleNamespace(free=100) if "first_stage" in str(folder) else usage(folder)

    monkeypatch.setattr(layer_cache.shutil, "disk_usage", room)
    assert train("--max_steps=1", *words) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: --standardize_layers needs layer states: the layer states of train take 0.000 GB")
    assert said.endswith(" Or train without: --standardize_layers False.")
    assert not list((work / "out").glob("**/*.safetensors"))


def test_states_that_are_no_numbers_stop_the_run(work, capsys):
    weights = load_file("backbone/model.safetensors")
    weights["encoder.layer.0.output.dense.weight"][0, 0] = 1e30  # a number, which makes NaN of every text
    save_file(weights, "backbone/model.safetensors", metadata={"format": "pt"})
    wrong = "expected layer states that are numbers below 1e+15, found NaN, infinity or larger ones in 36 of 36 rows."
    for words, start in (
        (["--stages=one"], "--standardize_layers needs layer states"),
        (["--layer_pooling=auto"], "--layer_pooling auto"),
    ):
        assert train("--max_steps=1", *words) == 2
        assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: {start}: {wrong}")


@pytest.mark.parametrize(("wrong", "rows"), [(np.nan, 1), (-np.inf, 1), (1e15, 1), (1e14, 0)])
def test_of_states_too_large_to_be_squared_the_rows_are_counted(wrong, rows):
    model = SimpleNamespace(config=SimpleNamespace(layers=[1, 2], state_size=2))
    states = np.zeros((3, 4), dtype=np.float32)
    states[1, 2] = wrong
    if rows:
        with pytest.raises(InputError, match=f"in {rows} of 3 rows"):
            stages.states_in({"layer_states": states}, model)
    else:
        assert stages.states_in({"layer_states": states}, model).shape == (3, 2, 2)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ({"token_pooling": "cls", "freeze_backbone": True}, True),
        ({"token_pooling": "mean", "freeze_backbone": True}, False),
        ({"token_pooling": "cls"}, None),  # which the config takes for off
        ({"token_pooling": "cls", "freeze_backbone": True, "original_defaults": True}, None),
        ({"token_pooling": "cls", "freeze_backbone": True, "standardize_layers": False}, False),
        ({"token_pooling": "mean", "standardize_layers": True}, True),
    ],
)
def test_the_cls_vectors_of_a_frozen_backbone_are_standardised_unless_a_flag_says_otherwise(work, words, expected):
    args = ModelArguments(backbone="backbone", **words)
    backbone = Backbone.find(args)
    chosen, _ = choose_fields(backbone, backbone.load_config(), None, args, reads_pairs=False, two_stages=True)
    assert (args.config_fields() | chosen)["standardize_layers"] is expected
