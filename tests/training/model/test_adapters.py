"""Adapters: what they train, that they load again in a process that knows nothing of the run, and what is refused."""

import importlib.util
import json
import shlex
import shutil

import numpy as np
import pandas
import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer, pipeline

from lstmpool.modeling_lstmpool import LstmPoolForSequenceClassification
from lstmpool.train_trainer import main
from lstmpool.training.errors import InputError
from lstmpool.training.flags.training_arguments import TrainingArguments
from lstmpool.training.hub.publishing import main as publish
from lstmpool.training.loop.trainer import LstmPoolTrainer
from lstmpool.training.model.adapters import load_adapter, lora_config
from lstmpool.training.model.trainable_parts import trained_skip

from ...command import conftest as results
from ...conftest import random_inputs, tiny_model
from ...training_fixtures import run_python


FILES, run, work = results.FILES, results.run, results.work  # the last, a fixture, is made anew for this file
LORA = ["--peft=lora", "--learning_rate=2e-2", "--head_learning_rate=1e-2", "--num_train_epochs=3", "--stages=one"]


@pytest.fixture(scope="module")
def trained(work, tmp_path_factory):
    """A folder with an adapter, and the numbers of its run."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        return run(
            work,
            monkeypatch,
            "adapter",
            *LORA,
            "--lora_dropout=0.1",
            "--calibrate=temperature",
            "--save_total_limit=9",
        )


def logits_of(model, tokenizer, texts):
    with torch.no_grad():
        return np.concatenate([model(**tokenizer(text, return_tensors="pt")).logits.numpy() for text in texts])


@pytest.mark.parametrize("family", ["bert", "gpt2", "t5", "deberta-v2", "llama"])
def test_modules_of_the_backbone_alone_are_adapted(family):
    model = tiny_model(family, layer_pooling="concat")  # whose pooler and classifier are linear modules, too
    model = get_peft_model(model, lora_config(model, target_modules="all-linear"))
    adapted = {name for name, module in model.named_modules() if hasattr(module, "lora_A")}
    assert len(adapted) > 8
    assert all(name.startswith("base_model.model.lstmpool.backbone.") for name in adapted)
    default = lora_config(tiny_model(family)).target_modules
    assert default.startswith(r"lstmpool\.backbone\.") and r"\d+" in default


def test_only_adapters_pooler_and_classifier_learn():
    """Trained by hand, so that each parameter's fate is seen."""
    model = tiny_model(lstm_readout="final")  # which uses all weights of the LSTM
    config = lora_config(model, r=3, alpha=6)
    assert (config.r, config.lora_alpha, config.modules_to_save) == (3, 6, ["lstmpool.pooler", "classifier"])
    model = get_peft_model(model, config)
    # of 4 layers with H = 16, query and value get matrices (3, 16) and (16, 3); an LSTM of 5 units a direction reads
    # 16, and 3 classes read 10
    adapters, lstm, classifier = 4 * 2 * (3 * 16 + 16 * 3), 2 * 4 * 5 * (16 + 5 + 2), 3 * 10 + 3
    assert model.get_nb_trainable_parameters()[0] == adapters + lstm + classifier == 1721
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):  # in the first step one of the two matrices of each adapter is zero
        optimizer.zero_grad()
        model(**random_inputs(), labels=torch.tensor([0, 1, 2])).loss.backward()
        optimizer.step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if ".lora_" in name or ".modules_to_save." in name}


def test_the_linear_skip_is_trained_and_saved_with_an_adapter(tmp_path):
    model = get_peft_model(tiny_model(linear_skip=True), lora_config(tiny_model(linear_skip=True)))
    copies = model.linear_skip.modules_to_save
    assert trained_skip(model) is copies["default"] and copies["default"].weight.requires_grad
    with torch.no_grad():
        trained_skip(model).weight.fill_(7.0)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_model(linear_skip=True), tmp_path)
    assert (trained_skip(loaded).weight == 7).all()
    states = torch.ones(1, 4, 16)
    without = tiny_model()(layer_states=states).logits
    torch.testing.assert_close(loaded(layer_states=states).logits, without + 7 * 64)


def test_layer_states_are_those_of_the_adapted_backbone():
    model = tiny_model()
    model = get_peft_model(model, lora_config(model))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.1)
        outputs = model(**random_inputs(), output_hidden_states=True)
    whole = torch.stack([hidden[:, 0] for hidden in outputs.hidden_states[1:]], dim=1)  # (B, L, H)
    assert torch.equal(outputs.layer_states, whole)
    with model.disable_adapter(), torch.no_grad():
        assert not torch.allclose(model(**random_inputs()).layer_states, whole, atol=1e-3)


def test_each_part_has_its_rate(tmp_path):
    model = tiny_model()
    args = TrainingArguments(
        str(tmp_path), use_cpu=True, report_to=[], learning_rate=1e-4, head_learning_rate=1e-2, weight_decay=0.1
    )
    trainer = LstmPoolTrainer(get_peft_model(model, lora_config(model)), args)
    optimizer = trainer.create_optimizer()
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    names = {id(p): name for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert rates.keys() == names.keys()
    assert all(rate == (1e-4 if ".lora_" in names[p] else 1e-2) for p, rate in rates.items())


def test_activations_can_be_computed_again():
    """Trainer asks for it with embeddings that are frozen, which once left all above them without gradients."""
    gradients = []
    for again in (False, True):
        model = tiny_model()
        torch.manual_seed(1)
        model = get_peft_model(model, lora_config(model)).train()
        if again:
            model.activation_checkpointing_enable()
        model(**random_inputs(), labels=torch.tensor([0, 1, 2])).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    assert any(".lora_B" in name and gradient.abs().max() > 0 for name, gradient in gradients[1].items())
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


def test_an_adapter_of_a_notebook_is_loaded_on_the_same_model_again(tmp_path):
    model = tiny_model()
    adapted = get_peft_model(model, lora_config(model)).eval()
    with torch.no_grad():
        for parameter in (p for p in adapted.parameters() if p.requires_grad):
            parameter.normal_()
        wanted = adapted(**random_inputs()).logits
    adapted.save_pretrained(tmp_path)
    other = tiny_model()
    with torch.no_grad():
        for parameter in other.lstmpool.pooler.parameters():
            parameter.fill_(99.0)  # what a new pooler holds must not matter
        again = PeftModel.from_pretrained(other, tmp_path)(**random_inputs()).logits
    assert torch.equal(again, wanted)


@pytest.mark.parametrize(
    ("family", "targets", "message"),
    [
        ("bert", ["query", "vlaue"], "vlaue matches no linear module of this bert backbone. Did you mean 'value'?"),
        ("bert", ["classifier"], "Name some of dense, key, query, value; or all-linear"),
        ("bert", ["output"], "output matches no linear module"),  # a module, but no linear one
        ("modernbert", None, "peft has no default for modernbert backbones. Name some of"),
    ],
)
def test_targets_that_are_not_there_are_named(family, targets, message):
    with pytest.raises(InputError) as error:
        lora_config(tiny_model(family), target_modules=targets)
    assert message in str(error.value)


def test_one_layer_can_be_adapted():
    model = tiny_model()
    config = lora_config(model, target_modules=["layer.1.attention.self.query"])
    adapted = get_peft_model(model, config)
    names = [name for name, module in adapted.named_modules() if hasattr(module, "lora_A")]
    assert [name.rpartition("backbone.")[2] for name in names] == ["encoder.layer.1.attention.self.query"]


def test_the_folder_holds_what_was_trained_and_nothing_of_the_machine(work, trained):
    folder, _ = trained
    names = {path.name for path in folder.iterdir() if path.is_file()}
    assert {"adapter_config.json", "adapter_model.safetensors", "config.json", "tokenizer.json", "README.md"} <= names
    assert not names & {"model.safetensors", "training_args.bin"}
    assert not list(folder.glob("checkpoint-*/README.md"))  # peft writes one of its own
    saved = load_file(folder / "adapter_model.safetensors")
    assert all(".lora_" in name or "lstmpool.pooler." in name or ".classifier." in name for name in saved)
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "backbone"
    for path in [*folder.glob("*.json"), folder / "README.md", *folder.glob("checkpoint-*/*.*")]:
        assert str(work).encode() not in path.read_bytes(), path
    card = (folder / "README.md").read_text()
    assert "library_name: peft" in card and "load_adapter" in card and "trust_remote_code" not in card
    assert "rank 8, alpha 16, dropout 0.1" in card and "| learning rate, adapters | 0.02 |" in card


def test_what_was_trained_is_what_is_loaded(work, trained, monkeypatch):
    folder, _ = trained
    monkeypatch.chdir(work)  # from where the backbone was named
    rows, table = pandas.read_csv(work / "test.csv"), pandas.read_csv(folder / "test_predictions.csv")
    assert table["score_animal"].std() > 0.002  # it has learnt to tell them apart
    logits = logits_of(load_adapter(str(folder)), AutoTokenizer.from_pretrained(folder), rows["text"])
    scores = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(table[["score_animal", "score_other"]], scores, atol=1e-5)


@pytest.mark.slow
def test_the_lines_of_the_card_load_it_in_another_process(work, trained):
    folder, _ = trained
    text = pandas.read_csv(work / "test.csv")["text"][0]
    snippet = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    program = snippet.replace("Your text here.", text) + (
        f"import json\nlogits = model(**tokenizer({text!r}, return_tensors='pt')).logits[0].tolist()\n"
        "print(json.dumps([type(model).__name__, logits]))"
    )
    done = run_python("-c", program, cwd=work)
    assert not done.returncode, done.stderr
    assert "Warning" not in done.stderr
    kind, logits = json.loads(done.stdout.splitlines()[-1])
    assert kind == "PeftModel"
    here = logits_of(load_adapter(str(folder), str(work / "backbone")), AutoTokenizer.from_pretrained(folder), [text])
    assert logits == pytest.approx(here[0], abs=1e-5)


def test_an_adapter_is_put_on_no_other_kind_of_model(work, trained):
    """By names such as `query` alone, peft would put it on the bare backbone, and say nothing."""
    with pytest.raises(ValueError, match="not found in the base model"):
        PeftModel.from_pretrained(AutoModel.from_pretrained(work / "backbone"), trained[0])


def test_a_backbone_that_is_elsewhere_is_asked_for(tmp_path, trained, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="backbone, cannot be loaded: .* Say where it is"):
        load_adapter(str(trained[0]))


@pytest.mark.parametrize(
    "words",
    [
        ["--calibrate=temperature", "--lora_target_modules", "query", "dense"],
        ["--label_column_name=price,weight", "--num_train_epochs=4"],
        [
            "--label_column_name=labels",
            "--tune_thresholds",
            "--lora_target_modules=all-linear",
            "--layer_pooling=max",
            "--stages=two",
        ],
    ],
)
def test_a_merged_model_is_one_like_any_other(work, monkeypatch, words):
    """What is learnt after training acts on the classifier that was trained; the table is that of the saved model."""
    folder, metrics = run(work, monkeypatch, "merged", *LORA, "--merge", "--overwrite", *words)
    names = {path.name for path in folder.iterdir()}
    assert {"model.safetensors", "modeling_lstmpool.py"} <= names and "adapter_config.json" not in names
    assert metrics["learned_on_validation"].keys() & {"temperature", "target_scale", "folded_thresholds"}
    rows, table = pandas.read_csv(work / "test.csv"), pandas.read_csv(folder / "test_predictions.csv")
    model, report = LstmPoolForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not any(report[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    logits = logits_of(model, AutoTokenizer.from_pretrained(folder), rows["text"])
    if "target_scale" in metrics["learned_on_validation"]:
        wanted = table[["prediction_price", "prediction_weight"]].to_numpy()
        assert np.abs(logits - wanted).max(0) == pytest.approx([0, 0], abs=1e-4 * wanted.max())
        np.testing.assert_allclose(logits, wanted, rtol=1e-4)
    elif "folded_thresholds" in metrics["learned_on_validation"]:
        np.testing.assert_allclose(table["score_sun"], 1 / (1 + np.exp(-logits[:, 2])), atol=1e-4)
    else:
        scores = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        np.testing.assert_allclose(table["score_other"], scores[:, 1], atol=1e-4)
        classify = pipeline("text-classification", str(folder), trust_remote_code=True)
        assert classify(rows["text"][0])[0]["score"] == pytest.approx(scores[0].max(), abs=1e-4)


def test_merging_changes_no_answer_and_leaves_what_was_not_adapted(work, trained, monkeypatch):
    """The two runs differ by the flag alone."""
    folder, _ = trained
    merged, _ = run(work, monkeypatch, "whole", *LORA, "--lora_dropout=0.1", "--calibrate=temperature", "--merge")
    tables = [pandas.read_csv(of / "test_predictions.csv") for of in (folder, merged)]
    pandas.testing.assert_frame_equal(*tables, atol=1e-4, rtol=0)
    before, after = load_file(work / "backbone" / "model.safetensors"), load_file(merged / "model.safetensors")
    backbone = {name.removeprefix("lstmpool.backbone."): tensor for name, tensor in after.items()}
    changed = {name for name in before.keys() & backbone.keys() if not torch.equal(before[name], backbone[name])}
    layers = [f"encoder.layer.{layer}.attention.self.{part}.weight" for layer in (0, 1) for part in ("query", "value")]
    assert changed == set(layers)


@pytest.mark.slow
def test_a_merged_model_is_fit_to_be_published(work, monkeypatch):
    folder, _ = run(work, monkeypatch, "to_publish", *LORA, "--merge")
    assert publish([str(folder), "--check"]) == 0


def test_an_adapter_is_not_published_nor_trained_further(trained, capsys):
    assert publish([str(trained[0]), "--check"]) == 2
    assert "holds an adapter, which does not load by itself. Merge it into a whole model" in capsys.readouterr().err
    words = [f"--init_from={trained[0]}", f"--train_file={trained[0].parent / 'train.csv'}", "--output_dir=no"]
    assert main([*words, "--use_cpu"]) == 2
    assert "is an adapter, not a whole model" in capsys.readouterr().err


def test_a_whole_model_is_made_of_an_adapter_as_the_refusal_says_and_trained_further(
    work, trained, monkeypatch, capsys
):
    folder, _ = trained
    monkeypatch.chdir(work)
    assert main(["--init_from=adapter", "--test_file=test.csv", "--output_dir=no", "--use_cpu"]) == 2
    python, _, program = shlex.split(capsys.readouterr().err.partition("use that: ")[2])
    assert python == "python"
    exec(program, {})
    still = ["--init_from=adapter-whole", "--learning_rate=0", "--head_learning_rate=0", "--num_train_epochs=1"]
    further, _ = run(work, monkeypatch, "further", *still, backbone=False)
    tables = [pandas.read_csv(of / "test_predictions.csv") for of in (folder, further)]
    pandas.testing.assert_frame_equal(*tables, atol=1e-4, rtol=0)


def test_the_best_epoch_is_kept_and_a_resumed_run_ends_with_the_same_bits(work, monkeypatch, capsys):
    words = [*LORA, "--label_column_name=price", "--lora_dropout=0.2", "--save_total_limit=9"]
    folder, metrics = run(work, monkeypatch, "again", *words)
    printed = capsys.readouterr().out
    adapters, new = 2 * 2 * (8 * 16 + 16 * 8), 2 * 4 * 4 * (16 + 4 + 2) + 8 + 1
    assert f"adapters: {adapters:,} parameters. Trained: {adapters + new:,} of " in printed
    whole = load_file(folder / "adapter_model.safetensors")
    steps = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name[11:]))
    logged = json.loads((steps[-1] / "trainer_state.json").read_text())
    assert min(entry["eval_mse"] for entry in logged["log_history"] if "eval_mse" in entry) == pytest.approx(
        metrics["results"]["validation"]["mse"], rel=1e-5
    )
    best = load_file(folder / logged["best_model_checkpoint"].rpartition("/")[2] / "adapter_model.safetensors")
    assert all(torch.equal(whole[name], best[name]) for name in whole)  # in the targets' units, there and here
    run(work, monkeypatch, "again", *words, "--overwrite", f"--resume_from_checkpoint={steps[0]}")
    again = load_file(folder / "adapter_model.safetensors")
    assert whole.keys() == again.keys() and all(torch.equal(whole[name], again[name]) for name in whole)
    resumed = ["--backbone=backbone", "--lstm_hidden_size=4", "--use_cpu", *FILES, "--output_dir=again", *words]
    for other, message in ((["--lora_rank=4"], "expected r 4, found 8"), ([], "expected peft_type None, found LORA")):
        words = [*resumed, *other] if other else [word for word in resumed if "lora" not in word]
        assert main([*words, "--overwrite", f"--resume_from_checkpoint={steps[0]}"]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.slow
def test_a_finished_model_is_adapted(work, monkeypatch):
    first, _ = run(work, monkeypatch, "finished")
    files = ["--train_file=train.csv", "--test_file=test.csv", "--id_column_name=key", "--validation_size=0"]
    still = [*LORA, "--learning_rate=0", "--head_learning_rate=0", "--init_from=finished"]
    folder, _ = run(work, monkeypatch, "adapted", *still, backbone=False, files=files)
    tables = [pandas.read_csv(of / "test_predictions.csv") for of in (first, folder)]
    pandas.testing.assert_frame_equal(*tables, atol=1e-5)  # it began with the pooler that was there
    folder, _ = run(work, monkeypatch, "others", *LORA[:1], "--init_from=finished", "--label_column_name=weight",
                    backbone=False, files=files)  # fmt: skip
    rows, table = pandas.read_csv(work / "test.csv"), pandas.read_csv(folder / "test_predictions.csv")
    logits = logits_of(load_adapter("others"), AutoTokenizer.from_pretrained(folder), rows["text"])  # (N, 8)
    scores = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(table.filter(like="score_").to_numpy(), scores, atol=1e-5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--lora_rank=4"], "--lora_rank needs --peft lora"),
        (["--merge"], "--merge needs --peft lora"),
        (["--peft=lora", "--freeze_backbone"], "--freeze_backbone does not go with --peft lora"),
        (["--peft=lora", "--reinit_layers=1"], "--reinit_layers does not go with --peft lora"),
        (["--peft=lora", "--layerwise_lr_decay=0.9"], "--layerwise_lr_decay does not go with --peft lora"),
        (["--peft=lora", "--lora_dropout=1"], "expected a --lora_rank and a --lora_alpha above 0"),
        (["--peft=lora", "--push_to_hub", "--hub_model_id=a/b"], "Add --merge --hub_strategy end"),
        (["--peft=lora", "--lora_target_modules=key_proj"], "key_proj matches no linear module of this bert backbone"),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_is_written(work, monkeypatch, capsys, words, message):
    monkeypatch.chdir(work)
    assert main(["--backbone=backbone", "--use_cpu", *FILES, "--output_dir=refused", *words]) == 2
    assert message in capsys.readouterr().err
    assert not (work / "refused").exists()


def test_without_peft_its_package_is_asked_for(work, monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *of: None if name == "peft" else find(name, *of))
    monkeypatch.chdir(work)
    assert main(["--backbone=backbone", "--use_cpu", *FILES, "--output_dir=refused", "--peft=lora"]) == 2
    assert 'pip install -c constraints.txt -e ".[peft]"' in capsys.readouterr().err


def test_the_whole_model_takes_the_place_of_the_adapter(work, trained, monkeypatch):
    """Both in one folder would be loaded together."""
    folder = work / "replaced"
    shutil.copytree(trained[0], folder)
    last = max(folder.glob("checkpoint-*"), key=lambda path: int(path.name[11:]))
    words = [*LORA, "--lora_dropout=0.1", "--merge", f"--resume_from_checkpoint={last}"]
    run(work, monkeypatch, "replaced", *words)
    names = {path.name for path in folder.iterdir()}
    assert "model.safetensors" in names and not names & {"adapter_config.json", "adapter_model.safetensors"}
