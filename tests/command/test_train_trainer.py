"""The command as users run it: in a process of its own, without a network, on files."""

import json
import re
import shutil

import pandas
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer, pipeline

from lstmpool.train_trainer import main
from lstmpool.training.errors import Diverged
from lstmpool.training.hub.repository import PushError
from lstmpool.training.output.run_record import RunRecord
from lstmpool.training.runs import fit

from ..conftest import CODE
from ..training_fixtures import ROOT, run_python, save_backbone, sentences, write_csv


COMMAND = str(ROOT / "train_trainer.py")
CACHES = {".hypothesis", ".pytest_cache", "__pycache__"}  # tests in other processes write them


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with a backbone, rows and a recipe, as a user might have it."""
    folder = tmp_path_factory.mktemp("work")
    save_backbone(folder / "backbone")
    for split, n in (("train", 24), ("validation", 8), ("test", 10)):
        texts, rows = sentences(n), range(n)
        numbers = {name: [f"{i % k + 0.5}" for i in rows] for name, k in (("grammar", 3), ("cohesion", 5))}
        pair = {"sentence1": texts, "sentence2": texts[::-1], "label": ["no" if i % 3 else "yes" for i in rows]}
        write_csv(folder / f"{split}.csv", {**pair, **numbers})
        lists = [{"text": t, "labels": [["a", "b"], ["b"], []][i % 3]} for i, t in enumerate(texts)]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, lists)))
    recipe = {f"{split}_file": f"{split}.csv" for split in ("train", "validation", "test")}
    recipe |= {"backbone": "backbone", "num_train_epochs": 5, "lstm_hidden_size": 4, "use_cpu": True}
    recipe["save_total_limit"] = 1
    (folder / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "baselines": True, "output_dir": "from_recipe"}))
    return folder


@pytest.fixture(scope="module")
def finished(work):
    """One complete run, with a flag that overrides the recipe."""
    words = [COMMAND, "recipe.yaml", "--output_dir", "out", "--num_train_epochs", "2"]
    done = run_python(*words, cwd=work)
    assert done.returncode == 0, done.stderr
    return work / "out", done


def in_process(work, monkeypatch, *words):
    monkeypatch.chdir(work)
    return main(["--backbone=backbone", "--lstm_hidden_size=4", "--use_cpu", "--num_train_epochs=1", *words])


def test_the_folder_is_complete_and_holds_nothing_pickled(finished, work):
    folder, _ = finished
    names = {path.name for path in folder.iterdir() if path.is_file()}
    tokenizer = {"tokenizer.json", "tokenizer_config.json"}
    results = {"run.json", "metrics.json", "learning_curve.png", "confusion_matrix.png"}
    results |= {"validation_predictions.csv", "test_predictions.csv", "errors.csv"}
    assert names == {"README.md", "config.json", "model.safetensors", *results, *CODE, *tokenizer}
    assert (
        len(list(folder.glob("checkpoint-*"))) == 1
    )  # the best one; that of the last epoch went when all was written
    config = json.loads((folder / "config.json").read_text())
    assert config["problem_type"] == "single_label_classification"
    assert config["id2label"] == {"0": "no", "1": "yes"}
    assert set(config["auto_map"]) == {"AutoConfig", "AutoModel", "AutoModelForSequenceClassification"}
    for name in names:
        assert str(work).encode() not in (folder / name).read_bytes(), name


def test_the_flag_won_over_the_recipe(finished, work):
    state = json.loads(next((finished[0]).glob("checkpoint-*/trainer_state.json")).read_text())
    assert state["num_train_epochs"] == 2
    assert not (work / "from_recipe").exists()


def test_what_it_prints(finished):
    done = finished[1]
    lines = done.stdout.splitlines()
    assert lines[0].startswith("Task: single_label_classification, because column 'label'")
    for word in ("validation accuracy", "majority class", "logistic regression", "lstm over 2 layers", "test"):
        assert word in done.stdout
    assert "100%" in done.stderr  # the progress bar
    assert "Warning" not in done.stderr and "REPORT" not in done.stderr and "Loading weights" not in done.stderr


def test_the_printed_lines_load_the_result_where_nothing_of_the_project_is(finished, work):
    """In a fresh interpreter in which `lstmpool` cannot be imported; and a checkpoint loads by itself, too."""
    checkpoint = str(next(finished[0].glob("checkpoint-*")))
    program = [
        "import sys; sys.modules['lstmpool'] = None",
        *finished[1].stdout.splitlines()[-3:],
        "print(type(classifier.model).__module__)",
        f"again = pipeline('text-classification', {checkpoint!r}, trust_remote_code=True)",
        "print(again({'text': 'alpha beta', 'text_pair': 'gamma'}, top_k=None))",
    ]
    done = run_python("-I", "-c", "\n".join(program), cwd=work, HF_HOME=str(work / "hf"))
    assert done.returncode == 0, done.stderr
    printed, module, of_checkpoint = done.stdout.strip().splitlines()
    assert "'label': 'no'" in printed or "'label': 'yes'" in printed
    assert module.startswith("transformers_modules.")
    assert "'no'" in of_checkpoint and "'yes'" in of_checkpoint


def test_the_threshold_of_two_classes_is_in_the_saved_model(work, monkeypatch, capsys):
    monkeypatch.chdir(work)
    assert (
        main(["recipe.yaml", "--output_dir=tuned", "--num_train_epochs=1", "--tune_threshold", "--show_errors"]) == 0
    )
    wrong = pandas.read_csv(work / "tuned" / "errors.csv")
    told = capsys.readouterr().out
    assert f"Predicted wrongly, surest first ({min(len(wrong), 10)} of {len(wrong)} in errors.csv):" in told
    assert f'"{wrong["text"][0]}" | "{wrong["text_pair"][0]}"' in told
    metrics = json.loads((work / "tuned" / "metrics.json").read_text())
    effect = metrics["learned_on_validation"]["thresholds"]
    assert effect["validation"]["at_thresholds"]["f1_macro"] > effect["validation"]["at_half"]["f1_macro"]
    assert metrics["results"]["test"]["f1_macro"] == effect["test"]["at_thresholds"]["f1_macro"]
    rows, table = pandas.read_csv(work / "test.csv"), pandas.read_csv(work / "tuned" / "test_predictions.csv")
    classifier = pipeline("text-classification", model=str(work / "tuned"), trust_remote_code=True, device="cpu")
    pairs = [{"text": a, "text_pair": b} for a, b in zip(rows["sentence1"], rows["sentence2"], strict=True)]
    assert [classifier(pair)["label"] for pair in pairs] == table["prediction"].tolist()
    assert f"a score of {effect['probabilities'][1]:.3f} for yes" in (work / "tuned" / "README.md").read_text()


def test_metrics_and_card(finished):
    folder, done = finished
    metrics = json.loads((folder / "metrics.json").read_text())
    assert {name: of["rows"] for name, of in metrics["data"].items()} == {"train": 24, "validation": 8, "test": 10}
    assert set(metrics["results"]) == {"validation", "test"}
    known = {"accuracy", "f1_macro", "f1_weighted", "matthews_correlation", "log_loss", "brier", "ece"}
    assert known <= set(metrics["results"]["test"])
    assert {"roc_auc", "average_precision"} <= set(metrics["results"]["test"])
    by_class = metrics["by_class"]["test"]["classes"]
    assert {name: of["support"] for name, of in by_class.items()} == {"no": 6, "yes": 4}
    assert "By class, on test:\n\nclass  precision" in done.stdout and "ROC AUC: " in done.stdout
    interval = metrics["intervals"]["test"]
    assert interval["low"] <= metrics["results"]["test"][interval["metric"]] <= interval["high"]
    assert metrics["baselines"]["majority class"]["test"]["accuracy"] == 0.6
    card = (folder / "README.md").read_text()
    header = yaml.safe_load(card.split("---")[1])
    assert (header["library_name"], header["pipeline_tag"]) == ("transformers", "text-classification")
    assert "base_model" not in header and "license" not in header  # a folder is no name on the Hub
    for word in (f"{metrics['results']['test']['accuracy']:.3f}", "`no`, `yes`", "trust_remote_code=True", "majority"):
        assert word in card
    assert "python train_trainer.py recipe.yaml --output_dir out --num_train_epochs 2" in card
    assert "transformers 5" in card and "| learning rate, new layers | 0.001 |" in card
    assert sentences(1)[0] not in card  # a row may be private
    accuracy = metrics["results"]["test"]["accuracy"]
    for said in (card, done.stdout):
        assert f"{accuracy:.3f} [{interval['low']:.3f}, {interval['high']:.3f}]" in said and '"text_pair": ' in said


def test_a_finished_run_is_not_overwritten(finished, work):
    before = (finished[0] / "model.safetensors").stat().st_mtime_ns
    done = run_python(COMMAND, "recipe.yaml", "--output_dir", "out", cwd=work)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: --output_dir out holds a run already")
    assert len(done.stderr.splitlines()) == 1
    assert (finished[0] / "model.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--label_column_name=lable"], "train.csv: expected a column 'lable', found .* Did you mean 'label'"),
        (["--train_file=trian.csv"], "found nothing at trian.csv. Did you mean 'train.csv'"),
        (["--layers", "3"], "layers must lie in 1..2"),
        (["--token_pooling=men"], "invalid choice: 'men'"),
        (["--backbone=package:nothing_here"], "pip install nothing-here"),
        (["--max_seq_length=99"], "must lie in 4..32"),
        (["--metric_for_best_model=mse"], "must be one of accuracy"),
        (["--tune_threshold", "--label_column_name=grammar"], "--tune_thresholds is for several labels a text, or"),
        (["--freeze_layers=3"], "--freeze_layers must lie in 0..2"),
    ],
)
def test_wrong_input_ends_with_status_2_before_anything_is_written(work, monkeypatch, capsys, words, message):
    monkeypatch.chdir(work)
    assert main(["recipe.yaml", "--output_dir=never", *words]) == 2
    output = capsys.readouterr()
    assert output.out == "" and len(output.err.splitlines()) == 1
    assert re.match(f"error: .*{message}", output.err)
    assert not (work / "never").exists()


def test_regression_with_several_targets(work, monkeypatch, capsys):
    files = ["--train_file=train.csv", "--validation_file=validation.csv", "--test_file=test.csv"]
    words = [*files, "--text_column_names=sentence1", "--label_column_name=grammar,cohesion", "--baselines"]
    assert in_process(work, monkeypatch, "--output_dir=numbers", *words) == 0
    config = json.loads((work / "numbers" / "config.json").read_text())
    assert (config["problem_type"], config["id2label"]) == ("regression", {"0": "grammar", "1": "cohesion"})
    metrics = json.loads((work / "numbers" / "metrics.json").read_text())
    assert {"mse", "mae", "pearson", "spearman", "mcrmse"} <= set(metrics["results"]["test"])
    output = capsys.readouterr().out
    assert "MCRMSE" in output and "ridge regression" in output and "top_k=None" in output


def test_the_rows_that_were_predicted_wrongly_are_listed_and_shown_if_that_is_asked(finished, work):
    """In errors.csv, with their texts; not in the card, nor in what is printed unasked."""
    folder, done = finished
    errors = pandas.read_csv(folder / "errors.csv")
    assert errors["confidence"].is_monotonic_decreasing and len(errors)
    for split in ("validation", "test"):
        rows = pandas.read_csv(work / f"{split}.csv")
        predicted = pandas.read_csv(folder / f"{split}_predictions.csv")["prediction"]
        of_split = errors[errors["split"] == split].sort_values("id")
        wrong = rows[predicted != rows["label"]]
        assert of_split["id"].tolist() == wrong.index.tolist()
        assert of_split["text"].tolist() == wrong["sentence1"].tolist()
        assert of_split["text_pair"].tolist() == wrong["sentence2"].tolist()
        assert of_split["truth"].tolist() == wrong["label"].tolist()
    assert not any(text in done.stdout + (folder / "README.md").read_text() for text in errors["text"])


def test_a_run_of_one_step_without_validation_and_test_rows_prints_no_empty_table(work, monkeypatch, capsys):
    words = ["--train_file=train.csv", "--validation_size=0", "--max_steps=1", "--show_errors", "--output_dir=bare"]
    assert in_process(work, monkeypatch, *words, "--max_train_samples=16", "--stages=one") == 0
    said = capsys.readouterr().out
    assert "Training: 1 step on 16 rows, 1 epoch" in said and "1 epochs" not in said
    assert "split  " not in said and "\n\nThe model after the last step, 1, was kept." in said
    assert "No validation or test row has a label, so there are no errors to show." in said
    assert "| split | model |" not in (work / "bare" / "README.md").read_text()
    assert not (work / "bare" / "errors.csv").exists()


def test_multi_label_with_another_pooling(work, monkeypatch, capsys):
    words = [
        "--train_file=train.jsonl",
        "--test_file=test.jsonl",
        "--layer_pooling=attention",
        "--validation_size=0.1",
    ]
    assert in_process(work, monkeypatch, "--output_dir=multi", *words) == 0
    config = json.loads((work / "multi" / "config.json").read_text())
    assert (config["problem_type"], config["layer_pooling"]) == ("multi_label_classification", "attention")
    results = json.loads((work / "multi" / "metrics.json").read_text())
    # held out of the training rows
    assert {name: of["rows"] for name, of in results["data"].items()} == {"train": 21, "validation": 3, "test": 10}
    assert "micro F1" in capsys.readouterr().out


def test_a_checkpoint_in_half_precision_is_trained_in_float32(work, monkeypatch, capsys):
    backbone = AutoModel.from_pretrained(work / "backbone", dtype=torch.bfloat16)
    backbone.save_pretrained(work / "half")
    AutoTokenizer.from_pretrained(work / "backbone").save_pretrained(work / "half")
    words = [
        "--train_file=train.csv",
        "--validation_file=validation.csv",
        "--test_file=test.csv",
        "--do_predict=False",
        "--output_dir=from_half",
        "--disable_tqdm=True",
    ]
    assert in_process(work, monkeypatch, "--backbone=half", *words) == 0
    assert {tensor.dtype for tensor in load_file(work / "from_half" / "model.safetensors").values()} == {torch.float32}
    assert not (work / "from_half" / "test_predictions.csv").exists()  # the test rows were not asked for
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    # without the bar, the lines are there all the same: of the model before the first step, and of the epoch
    assert [line.split()[1] for line in lines] == ["0/1", "1/1"]
    assert all("validation accuracy" in line for line in lines)


def test_the_same_seed_gives_the_same_numbers_and_a_run_can_be_resumed(work, monkeypatch):
    words = ["--train_file=train.csv", "--test_file=test.csv", "--num_train_epochs=2", "--save_total_limit=2"]
    words += ["--validation_size=0"]
    halfway, losses, written = work / "again" / "checkpoint-2" / "model.safetensors", [], []
    for more in (["--overwrite"], ["--overwrite"], ["--overwrite", "--resume_from_checkpoint=again/checkpoint-2"]):
        assert in_process(work, monkeypatch, "--output_dir=again", *words, *more) == 0
        losses.append(json.loads((work / "again" / "metrics.json").read_text())["results"]["test"]["log_loss"])
        written.append(halfway.stat().st_mtime_ns)
    assert losses[0] == losses[1] == pytest.approx(losses[2], abs=1e-6)
    assert written[0] < written[1] == written[2]  # the resumed run did not train its first half again


def test_the_token_pooling_is_what_the_backbone_states_or_what_the_run_began_with(tmp_path, monkeypatch, capsys):
    """A run that an earlier release began, which did not ask the backbone, goes on as it began."""
    write_csv(tmp_path / "rows.csv", {"text": sentences(12), "label": ["no", "yes"] * 6})
    backbone = save_backbone(tmp_path / "backbone")

    def train(folder, *words):
        rows = ["--train_file=rows.csv", "--validation_file=rows.csv", "--logging_strategy=no", "--save_total_limit=1"]
        assert in_process(tmp_path, monkeypatch, *rows, f"--output_dir={folder}", *words) == 0
        chosen = json.loads((tmp_path / folder / "config.json").read_text())["token_pooling"]
        lines = capsys.readouterr().out.splitlines()
        return chosen, [line for line in lines if line.lower().replace("_", " ").startswith("token pooling")]

    assert train("old") == ("cls", ["Token pooling: cls, the default of its family."])
    modules = [{"path": "", "type": "x.Transformer"}, {"path": "1_Pooling", "type": "x.Pooling"}]
    for name, content in {"modules": modules, "1_Pooling/config": {"pooling_mode": "mean"}}.items():
        (backbone / f"{name}.json").parent.mkdir(exist_ok=True)
        (backbone / f"{name}.json").write_text(json.dumps(content))
    stated = "Token pooling: mean, as the backbone's 1_Pooling/config.json says."
    assert train("new") == ("mean", [stated])
    assert train("asked", "--token_pooling=max") == ("max", ["Token pooling: max, as --token_pooling says."])
    record = json.loads((tmp_path / "old" / "run.json").read_text())
    (tmp_path / "old" / "run.json").write_text(json.dumps(record | {"finished": False}))
    assert train("old") == ("cls", [stated, "token_pooling cls, with which this run began."])


def test_a_run_counts_as_finished_once_it_is_published_or_cannot_be(work, monkeypatch, capsys):
    class Hub:
        """Stopped the first time, and refused the second time."""

        stopped, calls = False, []

        def __init__(self, args):
            self.calls.clear()

        def open(self):
            return []

        def publish(self):
            assert not RunRecord.read(work / "late").finished
            if not Hub.stopped:
                Hub.stopped = True
                raise KeyboardInterrupt
            self.calls.append("publish")

        def wait(self):
            self.calls.append("wait")

        def check(self):
            raise PushError("how to publish it")

    monkeypatch.setattr("lstmpool.training.hub.saves.HubRun", Hub)
    words = [
        "--train_file=train.csv",
        "--validation_file=validation.csv",
        "--num_train_epochs=2",
        "--lr_scheduler_type",
    ]
    words += ["constant", "--output_dir=late", "--push_to_hub", "--hub_model_id=ann/late", "--disable_tqdm=True"]
    assert in_process(work, monkeypatch, *words, "--overwrite") == 130
    assert Hub.calls == ["wait"] and (work / "late" / "checkpoint-4").is_dir()
    weights = (work / "late" / "model.safetensors").read_bytes()
    assert "epoch 2/2" in capsys.readouterr().out
    assert in_process(work, monkeypatch, *words) == 3
    told = capsys.readouterr()
    assert "goes on from late/checkpoint-4" in told.out and "epoch 2/2" not in told.out
    assert told.err.endswith("error: how to publish it\n")
    assert Hub.calls == ["publish", "wait"] and RunRecord.read(work / "late").finished
    assert not list((work / "late").glob("checkpoint-*"))  # --save_total_limit does not ask for any
    assert (work / "late" / "model.safetensors").read_bytes() == weights


def test_a_run_that_diverges_leaves_the_run_that_it_was_to_replace(work, finished, monkeypatch, capsys):
    folder = work / "replaced"
    shutil.copytree(finished[0], folder)
    words = ["--train_file=train.csv", "--validation_file=validation.csv", "--output_dir=replaced", "--seed=7"]

    def contents():
        paths = [path for path in folder.rglob("*") if path.is_file() and ".new_run" not in path.parts]
        return {path: path.read_bytes() for path in paths}

    def diverge(state):
        raise Diverged("no number")

    older = contents()
    with monkeypatch.context() as patched:
        patched.setattr(fit, "measure", diverge)
        assert in_process(work, monkeypatch, *words, "--overwrite") == 2
    assert contents() == older and not (folder / ".new_run" / "model.safetensors").exists()
    capsys.readouterr()
    assert in_process(work, monkeypatch, *words) == 0  # it goes on, with --overwrite or without
    told = capsys.readouterr().out
    assert "replaced/.new_run holds this run, which was cut off. It goes on from replaced/.new_run/checkpoint-" in told
    assert "replaced holds the model" in told and 'model="replaced"' in told
    assert RunRecord.read(folder).settings["seed"] == 7 and RunRecord.read(folder).finished
    assert contents()[folder / "model.safetensors"] != older[folder / "model.safetensors"]
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
    assert "# replaced\n" in (folder / "README.md").read_text()


def test_the_folder_of_the_running_code_is_left_as_it_is(work, monkeypatch, capsys, tmp_path):
    # as with `--output_dir .` in a checkout
    def contents():
        return {p: p.is_file() and p.stat().st_mtime_ns for p in ROOT.iterdir() if p.name not in CACHES}

    before = contents()
    (tmp_path / "link").symlink_to(ROOT)
    for name in (ROOT, tmp_path / "link"):
        for more in ([], ["--overwrite"]):
            assert in_process(work, monkeypatch, "--train_file=train.csv", f"--output_dir={name}", *more) == 2
            assert f"--output_dir {name} holds the code that is running." in capsys.readouterr().err
    assert contents() == before


def test_help(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "python train_trainer.py recipes/demo.yaml" in text and "--backbone" in text
