"""The arguments of `train_trainer.py`: three dataclasses, whose fields are its flags and the keys of a recipe."""

import inspect
from dataclasses import dataclass, field, fields
from typing import Any

import transformers

from lstmpool.configuration_lstmpool import (
    LAYER_POOLINGS,
    LSTM_READOUTS,
    PROBLEM_TYPES,
    TOKEN_POOLINGS,
    LstmPoolConfig,
)


def _config_field(name: str, help: str, **options: Any) -> Any:
    """A flag for a field of `LstmPoolConfig`, with the default that the config itself has."""
    default = inspect.signature(LstmPoolConfig.__init__).parameters[name].default
    return field(default=default, metadata={"help": help, **options})


@dataclass
class ModelArguments:
    """The pretrained model, and what is put on it."""

    _argument_group_name = "model"

    backbone: str | None = field(
        default=None,
        metadata={
            "help": "Pretrained model that is fine-tuned: a name on the Hub, a folder, or package:NAME for the folder "
            "with config.json and model.safetensors inside an installed Python package. Required."
        },
    )
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit of a backbone on the Hub."})
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Run the code that comes with the backbone, if it brings its own."}
    )
    problem_type: str | None = field(
        default=None,
        metadata={"choices": PROBLEM_TYPES, "help": "The task. Unset, it is inferred from the labels and printed."},
    )
    layers: list[int] | None = _config_field(
        "layers", "Layers that are read, 1-based and ascending; negative numbers count from the top. Unset: all."
    )
    token_pooling: str | None = _config_field(
        "token_pooling",
        "How the tokens of one layer become one vector. Unset: by the backbone's family, cls for BERT and its like.",
        choices=TOKEN_POOLINGS,
    )
    layer_pooling: str = _config_field(
        "layer_pooling",
        "What turns the layers' vectors into one: an LSTM, or a pooling to compare it with.",
        choices=LAYER_POOLINGS,
    )
    layer_norm: bool | None = _config_field(
        "layer_norm",
        "A LayerNorm on each layer's vector. Unset: on where the backbone's layers do not end in one.",
        nargs="?",
        const=True,
    )
    lstm_hidden_size: int = _config_field("lstm_hidden_size", "Units of the LSTM per direction.")
    lstm_bidirectional: bool = _config_field("lstm_bidirectional", "Read the layers from the top down too.")
    lstm_readout: str = _config_field(
        "lstm_readout",
        "What is taken from the LSTM: the output at the highest layer, each direction's final state, or the mean.",
        choices=LSTM_READOUTS,
    )
    pooler_dropout: float = _config_field("pooler_dropout", "Dropout between the LSTM and the classifier.")

    def config_fields(self) -> dict[str, Any]:
        """The fields that `LstmPoolConfig` takes."""
        names = set(inspect.signature(LstmPoolConfig.__init__).parameters) & {f.name for f in fields(self)}
        return {name: getattr(self, name) for name in sorted(names)}


@dataclass
class DataArguments:
    """Where the rows are, and which of their columns are read."""

    _argument_group_name = "data"

    train_file: str | None = field(
        default=None,
        metadata={"help": "Training rows: .csv, .json, .jsonl, .parquet, plain or .gz, or a folder of save_to_disk."},
    )
    validation_file: str | None = field(default=None, metadata={"help": "Rows on which the best epoch is chosen."})
    test_file: str | None = field(default=None, metadata={"help": "Rows that are looked at once, at the end."})
    dataset_folder: str | None = field(
        default=None,
        metadata={"help": "Instead of files: a folder of save_to_disk with the splits train, validation and test."},
    )
    text_column_names: str | None = field(
        default=None,
        metadata={
            "help": "Column of the text; two, separated by a comma, are encoded as a pair. Unset: text, or "
            "sentence1,sentence2 if there is no text."
        },
    )
    label_column_name: str | None = field(
        default=None,
        metadata={
            "help": "Column of the label; several, separated by commas, are the targets of one regression. Unset: "
            "label, or labels."
        },
    )
    max_seq_length: int | None = field(
        default=None, metadata={"help": "Tokens after which a text is cut. Unset: the backbone's limit, at most 512."}
    )
    pad_to_max_length: bool = field(
        default=False, metadata={"help": "Pad every text to max_seq_length, and not to the longest of its batch."}
    )
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Use this many training rows, shuffled first."}
    )
    max_eval_samples: int | None = field(default=None, metadata={"help": "The same for validation rows."})
    max_predict_samples: int | None = field(default=None, metadata={"help": "The same for test rows."})
    shuffle_seed: int = field(default=42, metadata={"help": "Seed of that choice."})


@dataclass(repr=False)
class TrainingArguments(transformers.TrainingArguments):
    """The library's own, and what this command adds to them."""

    _argument_group_name = "training"

    head_learning_rate: float | None = field(
        default=1e-3, metadata={"help": "Peak learning rate of the new layers; learning_rate is the backbone's."}
    )
    baselines: bool = field(
        default=False,
        metadata={"help": "Also report the most frequent label and a linear model on the frozen backbone."},
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace the run that output_dir holds."})
