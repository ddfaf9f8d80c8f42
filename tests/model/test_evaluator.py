"""Other libraries, on a model as users load it: `evaluate`'s evaluator, and sentence-transformers' CrossEncoder."""

import evaluate
import pytest
import torch
from datasets import Dataset
from sentence_transformers import CrossEncoder
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lstmpool.training.tasks.metrics import SingleLabelMetric

from ..conftest import tiny_model


def test_the_evaluator_gives_the_metrics_of_the_models_answers(tmp_path, tokenizer):
    names = ["late", "broken", "other"]
    label2id = {name: i for i, name in enumerate(names)}
    tiny_model(id2label=dict(enumerate(names)), label2id=label2id).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    texts = ["where is my order", "money back please", "broken parcel", "late late late"]
    answers = [model(**tokenizer(text, return_tensors="pt")).logits.argmax().item() for text in texts]
    rows = Dataset.from_dict({"text": texts, "label": [*answers[:3], (answers[3] + 1) % 3]})
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
