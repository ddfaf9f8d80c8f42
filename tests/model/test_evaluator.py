"""`evaluate`'s evaluator for text classification, on a model as users load it, with this project's own metrics."""

import evaluate
import pytest
from datasets import Dataset
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
