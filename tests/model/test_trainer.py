"""The model in other libraries: `Trainer` and `pipeline`, in which most people run it, `evaluate`'s evaluator, and
sentence-transformers' CrossEncoder."""

import evaluate
import pytest
import torch
from datasets import Dataset as HubDataset
from sentence_transformers import CrossEncoder
from torch.utils.data import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments, pipeline

from lstmpool.training.tasks.metrics import SingleLabelMetric

from ..conftest import random_inputs, tiny_model


class Rows(Dataset):
    def __init__(self, n=8, labels=3):
        inputs = random_inputs(n, 7, lengths=[7, 3, 5, 4, 6, 2, 7, 5][:n])
        types = torch.cat([torch.zeros(n, 2), torch.ones(n, 5)], 1).long()
        label = torch.arange(n) % labels if labels > 1 else torch.arange(float(n))
        self.columns = inputs | {"token_type_ids": types, "labels": label}

    def __len__(self):
        return len(self.columns["labels"])

    def __getitem__(self, row):
        return {name: column[row] for name, column in self.columns.items()}


def trainer(model, folder, **arguments):
    arguments = {"report_to": [], "disable_tqdm": True, "seed": 1, "use_cpu": True} | arguments
    return Trainer(model, TrainingArguments(str(folder), **arguments), train_dataset=Rows(), eval_dataset=Rows())


def test_accumulation_gives_the_same_loss_and_step(tmp_path):
    results = []
    for batch, steps in ((8, 1), (4, 2), (2, 4)):
        run = trainer(
            tiny_model(),
            tmp_path / str(batch),
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=steps,
            max_steps=1,
            optim="sgd",
            learning_rate=1.0,
            max_grad_norm=0.0,
            lr_scheduler_type="constant",
        )
        before = {name: parameter.detach().clone() for name, parameter in run.model.named_parameters()}
        loss = run.train().training_loss
        step = {name: before[name] - parameter.detach() for name, parameter in run.model.named_parameters()}
        results.append((loss, step))
    for loss, step in results[1:]:
        assert loss == pytest.approx(results[0][0], abs=1e-5)
        for name, gradient in results[0][1].items():
            torch.testing.assert_close(step[name], gradient, atol=2e-6, rtol=1e-4, msg=name)


def test_trainer_passes_every_column_and_predicts_logits_alone(tmp_path):
    model, seen = tiny_model(), []
    model.config.output_hidden_states = True  # the extras must stay out of the predictions
    model.lstmpool.backbone.register_forward_pre_hook(
        lambda m, args, kwargs: seen.append(set(kwargs)), with_kwargs=True
    )
    columns = {name: column.tolist() for name, column in Rows().columns.items()}
    columns |= {"text": ["not for the model"] * 8, "token_count": [7] * 8}
    run = trainer(model, tmp_path, per_device_eval_batch_size=3)
    output = run.predict(HubDataset.from_dict(columns))  # Trainer drops the columns that `forward` does not name
    assert output.predictions.shape == (8, 3)
    with torch.no_grad():
        wanted = model(**{name: column for name, column in Rows().columns.items() if name != "labels"}).logits
    assert output.predictions == pytest.approx(wanted.numpy(), abs=1e-5)
    assert all({"input_ids", "attention_mask", "token_type_ids"} <= names for names in seen)


def test_trainer_trains_on_layer_states_alone(tmp_path):
    model = tiny_model()
    with torch.no_grad():
        states = model(**{name: column for name, column in Rows().columns.items() if name != "labels"}).layer_states
    rows = HubDataset.from_dict({"layer_states": states.tolist(), "labels": [row % 3 for row in range(8)]})
    run = trainer(model, tmp_path, max_steps=2, per_device_train_batch_size=4, save_strategy="no")
    run.train_dataset = rows.with_format("torch")
    before = model.classifier.weight.detach().clone()
    assert run.train().training_loss > 0
    assert not torch.equal(model.classifier.weight, before)


def test_pipeline_returns_the_raw_value_of_a_regression(tokenizer):
    model = tiny_model(num_labels=1)
    model.classifier.bias.data.fill_(7.5)
    score = pipeline("text-classification", model=model, tokenizer=tokenizer)("where is my order")[0]["score"]
    wanted = model(**tokenizer("where is my order", return_tensors="pt")).logits.item()
    assert score == pytest.approx(wanted, abs=1e-5) and score > 5


def test_pipeline_by_problem_type(tokenizer):
    text = "the parcel is late"
    for problem_type, function in (
        ("single_label_classification", "softmax"),
        ("multi_label_classification", "sigmoid"),
    ):
        model = tiny_model(problem_type=problem_type, id2label={0: "a", 1: "b", 2: "c"})
        scores = pipeline("text-classification", model=model, tokenizer=tokenizer, top_k=None)([text])[0]
        logits = model(**tokenizer(text, return_tensors="pt")).logits[0]
        wanted = logits.softmax(-1) if function == "softmax" else logits.sigmoid()
        for row in scores:
            assert row["score"] == pytest.approx(wanted["abc".index(row["label"])].item(), abs=1e-5)


# ------------------------------------------------------------------------------------------ evaluator and CrossEncoder
def test_the_evaluator_gives_the_metrics_of_the_models_answers(tmp_path, tokenizer):
    names = ["late", "broken", "other"]
    label2id = {name: i for i, name in enumerate(names)}
    tiny_model(id2label=dict(enumerate(names)), label2id=label2id).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    texts = ["where is my order", "money back please", "broken parcel", "late late late"]
    answers = [model(**tokenizer(text, return_tensors="pt")).logits.argmax().item() for text in texts]
    rows = HubDataset.from_dict({"text": texts, "label": [*answers[:3], (answers[3] + 1) % 3]})
    # the model and its tokenizer: a pipeline object is refused under this version of transformers
    result = evaluate.evaluator("text-classification").compute(
        model_or_pipeline=model,
        tokenizer=tokenizer,
        data=rows,
        metric=SingleLabelMetric(),
        label_mapping=model.config.label2id,
    )
    assert result["accuracy"] == 3 / 4
    assert result["f1_macro"] == pytest.approx(
        SingleLabelMetric().compute(predictions=answers, references=rows["label"])["f1_macro"]
    )


PAIRS = [("where is my order", "the parcel is late"), ("money back please", "you broken parcel")]


def saved_cross_encoder(folder, tokenizer, **fields):
    """A CrossEncoder of a saved model, and the model's logits for `PAIRS`."""
    model = tiny_model(**fields)
    with torch.no_grad():
        model.classifier.weight.mul_(20)  # far from where a sigmoid is nearly straight
        model.classifier.bias.add_(3.25)
        logits = model(**tokenizer(*zip(*PAIRS, strict=True), padding=True, return_tensors="pt")).logits
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return CrossEncoder(str(folder), trust_remote_code=True, device="cpu"), logits


def test_a_cross_encoder_gives_the_numbers_of_a_regression(tmp_path, tokenizer):
    encoder, logits = saved_cross_encoder(tmp_path / "a", tokenizer, num_labels=1)
    assert logits.abs().max() > 1  # which no sigmoid gives
    assert encoder.predict(PAIRS) == pytest.approx(logits[:, 0].numpy(), abs=1e-5)
    encoder.save_pretrained(str(tmp_path / "b"))  # the field travels
    again = CrossEncoder(str(tmp_path / "b"), trust_remote_code=True, device="cpu")
    assert again.predict(PAIRS) == pytest.approx(logits[:, 0].numpy(), abs=1e-5)


def test_a_cross_encoder_agrees_with_the_table_on_labels(tmp_path, tokenizer):
    encoder, logits = saved_cross_encoder(tmp_path / "classes", tokenizer)
    assert encoder.predict(PAIRS, apply_softmax=True) == pytest.approx(logits.softmax(-1).numpy(), abs=1e-5)
    several = {"problem_type": "multi_label_classification"}
    for labels in (1, 3):
        encoder, logits = saved_cross_encoder(tmp_path / f"several{labels}", tokenizer, num_labels=labels, **several)
        wanted = logits.sigmoid().numpy().reshape(encoder.predict(PAIRS).shape)
        assert encoder.predict(PAIRS) == pytest.approx(wanted, abs=1e-5)


def test_a_new_problem_type_brings_its_own_activation(tmp_path, tokenizer):
    several = {"problem_type": "multi_label_classification", "num_labels": 1}
    saved_cross_encoder(tmp_path, tokenizer, **several)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path, problem_type="regression")
    model.save_pretrained(tmp_path / "again")
    config = (tmp_path / "again" / "config.json").read_text()
    assert '"activation_fn": "torch.nn.modules.linear.Identity"' in config
