"""`Trainer` and `pipeline`, the two ways in which most people run the model."""

import pytest
import torch
from datasets import Dataset as HubDataset
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments, pipeline

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
