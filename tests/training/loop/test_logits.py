import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import DataCollatorWithPadding, TrainingArguments

from lstmpool.training.data.order import by_length
from lstmpool.training.errors import InputError
from lstmpool.training.loop.logits import predict_logits
from lstmpool.training.loop.trainer import LstmPoolTrainer

from ...conftest import tiny_model


class Echo(torch.nn.Module):
    """Its logits name the row: the first token, and the number of tokens. It remembers how long its batches were."""

    main_input_name = "input_ids"

    def __init__(self):
        super().__init__()
        self.config, self.batches = tiny_model().config, []
        self.nothing = torch.nn.Parameter(torch.zeros(1))

    def forward(self, input_ids=None, attention_mask=None, **others):
        self.batches.append(input_ids.shape[1])
        logits = torch.stack([input_ids[:, 0], attention_mask.sum(1)], dim=1).float()
        return {"logits": logits.masked_fill(logits == 99, math.nan)}


@pytest.mark.parametrize("strategy", ["random", "group_by_length", "sequential"])
def test_every_row_is_in_its_place(tmp_path, tokenizer, strategy):
    lengths = np.random.default_rng(0).integers(1, 30, size=37)
    rows = [{"input_ids": [5 + i] * n, "attention_mask": [1] * n} for i, n in enumerate(lengths)]
    args = TrainingArguments(
        str(tmp_path),
        use_cpu=True,
        per_device_eval_batch_size=4,
        train_sampling_strategy=strategy,
        remove_unused_columns=False,
        disable_tqdm=True,
        report_to=[],
    )
    model = Echo()
    trainer = LstmPoolTrainer(model, args, data_collator=DataCollatorWithPadding(tokenizer))
    for dataset in (Dataset.from_list(rows), Dataset.from_list(rows).add_column("labels", [0] * 37)):
        model.batches.clear()
        logits = predict_logits(trainer, dataset)
        assert logits[:, 0].tolist() == [5 + i for i in range(37)]
        assert logits[:, 1].tolist() == lengths.tolist()
        assert model.batches == sorted(model.batches, reverse=True)  # little padding, and the longest first
        assert sum(model.batches) * 4 < 1.3 * lengths.sum() + 4 * 30
    assert args.train_sampling_strategy == strategy


def test_a_model_that_gives_no_numbers_is_refused(tmp_path, tokenizer):
    args = TrainingArguments(str(tmp_path), use_cpu=True, disable_tqdm=True, report_to=[])
    trainer = LstmPoolTrainer(Echo(), args, data_collator=DataCollatorWithPadding(tokenizer))
    rows = Dataset.from_list([{"input_ids": [n], "attention_mask": [1]} for n in (5, 99)])
    with pytest.raises(InputError, match="found NaN or infinity: it has diverged"):
        predict_logits(trainer, rows)


def test_rows_are_sorted_by_their_own_tokens_not_by_padding():
    rows = [{"input_ids": [9] * 4, "attention_mask": [1] * n + [0] * (4 - n)} for n in (2, 4, 1, 4)]
    ordered, order = by_length(Dataset.from_list(rows))
    assert order.tolist() == [1, 3, 0, 2]
    assert [sum(mask) for mask in ordered["attention_mask"]] == [4, 4, 2, 1]
