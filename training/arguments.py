"""The arguments of `train_trainer.py`: three dataclasses, whose fields are its flags and the keys of a recipe."""

import importlib.util
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
from lstmpool.training.errors import InputError


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
    init_from: str | None = field(
        default=None,
        metadata={
            "help": "Instead of a backbone: a finished LstmPool model, a folder or a name on the Hub, to train "
            "further or, without training rows, to evaluate. Its config stays; if the labels are its own, so does its "
            "classifier."
        },
    )
    model_revision: str = field(
        default="main", metadata={"help": "Branch, tag or commit, where the backbone or init_from is on the Hub."}
    )
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
    freeze_backbone: bool = field(
        default=False, metadata={"help": "Train the new layers alone; the backbone runs without dropout, too."}
    )
    freeze_embeddings: bool = field(
        default=False,
        metadata={"help": "Do not train the backbone's embeddings: with a large vocabulary, most of the memory."},
    )
    freeze_layers: int = field(
        default=0, metadata={"help": "Do not train the embeddings and this many of the lowest layers."}
    )
    reinit_layers: int = field(
        default=0, metadata={"help": "Start this many of the highest layers from random weights."}
    )

    peft: str | None = field(
        default=None,
        metadata={
            "choices": ("lora",),
            "help": "Train adapters in a frozen backbone, and the new layers. What is saved is an adapter: small, and "
            "loaded beside its backbone. The default of --learning_rate is for whole backbones: adapters usually want "
            "a higher one, such as 2e-4, which was not measured here.",
        },
    )
    lora_rank: int = field(default=8, metadata={"help": "Rank of the matrices that are trained."})
    lora_alpha: int = field(default=16, metadata={"help": "What they add is multiplied by this over lora_rank."})
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout of what enters them."})
    lora_target_modules: list[str] | None = field(
        default=None,
        metadata={
            "help": "Names of the backbone's linear modules that are adapted, such as query value, or all-linear. "
            "Unset: by the backbone's family, query and value for BERT and its like."
        },
    )
    merge: bool = field(
        default=False, metadata={"help": "Add the adapters to the backbone, and save a whole model like any other."}
    )

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
    dataset_name: str | None = field(
        default=None,
        metadata={"help": "Instead of files: a data set on the Hub, or a folder of save_to_disk or of data files."},
    )
    dataset_config_name: str | None = field(
        default=None, metadata={"help": "Configuration of the data set, such as mrpc of nyu-mll/glue."}
    )
    dataset_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of a data set on the Hub."}
    )
    train_split_name: str | None = field(
        default=None, metadata={"help": "Split of the data set with the training rows. Unset: train."}
    )
    validation_split_name: str | None = field(
        default=None, metadata={"help": "Split with the validation rows. Unset: validation, if there is one."}
    )
    test_split_name: str | None = field(
        default=None, metadata={"help": "Split with the test rows. Unset: test, if there is one."}
    )
    validation_size: float = field(
        default=0.1,
        metadata={"help": "Without validation rows, the share of the training rows held out as such; 0: none."},
    )
    text_column_names: str | None = field(
        default=None,
        metadata={
            "help": "Column of the text; two, separated by a comma, are encoded as a pair, more are joined. Unset: "
            "text, sentence, or a pair known from GLUE, such as sentence1,sentence2."
        },
    )
    text_column_delimiter: str | None = field(
        default=None,
        metadata={"help": "Join the text columns, two as well, with this between them. Unset: a space, from three."},
    )
    label_column_name: str | None = field(
        default=None,
        metadata={
            "help": "Column of the label; several, separated by commas, are the targets of one regression or, if they "
            "hold zeros and ones alone, labels of which a text has any number. Unset: label, or labels."
        },
    )
    id_column_name: str | None = field(
        default=None,
        metadata={"help": "Column that names the rows in the table of predictions. Unset: id, or the row's number."},
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
    shuffle_seed: int = field(
        default=42, metadata={"help": "Seed of that choice, and of the rows held out for validation, or the folds."}
    )
    cv_folds: int | None = field(
        default=None,
        metadata={
            "help": "Cross-validation: put the training rows into this many folds and train without each in turn. "
            "output_dir gets a folder a fold, and every row's prediction by the model that was trained without it."
        },
    )
    group_column: str | None = field(
        default=None,
        metadata={
            "help": "Column that says which rows belong together, such as those of one writer: they are in one fold "
            "or, where validation rows are held out, on one side."
        },
    )
    preprocessing_num_workers: int | None = field(
        default=None, metadata={"help": "Processes that turn texts into tokens. Unset: one."}
    )


@dataclass(repr=False)
class TrainingArguments(transformers.TrainingArguments):
    """The library's own, and what this command adds to them."""

    _argument_group_name = "training"

    head_learning_rate: float | None = field(
        default=1e-3, metadata={"help": "Peak learning rate of the new layers; learning_rate is the backbone's."}
    )
    layer_cache: str = field(
        default="float32",
        metadata={
            "choices": ("float32", "float16", "no"),
            "help": "With a frozen backbone: run it once and keep the layer states on disk, for later runs as well. "
            "float16 takes half the space; no: run it in every epoch.",
        },
    )
    layerwise_lr_decay: float = field(
        default=1.0,
        metadata={
            "help": "Each layer's rate is this times that of the layer above it; the embeddings' is the lowest."
        },
    )
    regression_loss: str = field(
        default="mse",
        metadata={"choices": ("mse", "smooth_l1"), "help": "Loss of a regression; smooth_l1 minds outliers less."},
    )
    standardize_targets: bool = field(
        default=True,
        metadata={
            "help": "Train a regression on targets of about unit spread; the saved weights give their own units."
        },
    )
    class_weights: str | None = field(
        default=None,
        metadata={"choices": ("balanced",), "help": "Let every class count the same in the loss, rare ones too."},
    )
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Stop after so many evaluations in a row without a better one."}
    )
    calibrate: str | None = field(
        default=None,
        metadata={
            "choices": ("temperature",),
            "help": "Fit a temperature on validation and divide the classifier by it: the scores become honest.",
        },
    )
    tune_thresholds: bool = field(
        default=False,
        metadata={
            "help": "Multi label: move the classifier's bias so that 0.5 is each label's best threshold on validation."
        },
    )
    predictions_format: str = field(
        default="csv", metadata={"choices": ("csv", "parquet"), "help": "Kind of the table of test predictions."}
    )
    predictions_with_text: bool = field(default=False, metadata={"help": "Put the texts into that table, too."})
    baselines: bool = field(
        default=False,
        metadata={"help": "Also report the most frequent label and a linear model on the frozen backbone."},
    )
    hp_search: int | None = field(
        default=None,
        metadata={
            "help": "Before training, try this many settings on the validation rows, and train with the best. The "
            "trials of a search that was cut off, or that is given a higher number, count."
        },
    )
    hp_space: str | None = field(
        default=None,
        metadata={
            "help": 'What is searched, as JSON or a file of YAML: {"learning_rate": [1e-5, 1e-4, "log"], '
            '"num_train_epochs": [2, 3, 4]}; a list that ends in log or linear is a range. Unset: both rates and '
            "the epochs."
        },
    )
    overwrite: bool = field(
        default=False,
        metadata={"help": "Replace the run that output_dir holds, unless it is this one, cut off: that goes on."},
    )
    hub_private_repo: bool = False  # the library's own, as a flag that can stand alone

    def check_adapters(self, model: ModelArguments, given: set[str]) -> None:
        """Refuses what cannot be had with adapters, or needs them. `given`: the names of the flags that were set.

        Raises:
            InputError: naming the flag and what to do.
        """
        if model.peft is None:
            if alone := sorted(name for name in given if name.startswith("lora_") or name == "merge"):
                raise InputError(f"--{alone[0]} needs --peft lora. Add it, or leave this out.")
            return
        if importlib.util.find_spec("peft") is None:
            raise InputError(
                "--peft lora needs the package peft, which is not installed. Install it with: "
                'pip install -c constraints.txt -e ".[peft]"'
            )
        against = [
            name
            for name in ("freeze_backbone", "freeze_embeddings", "freeze_layers", "reinit_layers")
            if name in given
        ]
        against += ["layerwise_lr_decay"] if self.layerwise_lr_decay != 1 else []
        if against := [name for name in against if getattr(model, name, True)]:
            raise InputError(
                f"--{against[0]} does not go with --peft lora, under which no layer of the backbone is trained but "
                "by adapters. Leave one of them out."
            )
        if not self.do_train:
            raise InputError("--peft lora is for training, found no training rows. Name them, or leave it out.")
        if not (model.lora_rank > 0 and model.lora_alpha > 0 and 0 <= model.lora_dropout < 1):
            raise InputError(
                "expected a --lora_rank and a --lora_alpha above 0, and a --lora_dropout in 0..1, without 1; got "
                f"{model.lora_rank}, {model.lora_alpha} and {model.lora_dropout}."
            )
        if self.push_to_hub and not (model.merge and self.hub_strategy == "end"):
            raise InputError(
                "--push_to_hub publishes models that load by themselves, which an adapter does not. Add --merge "
                "--hub_strategy end."
            )

    def check_task(self, problem_type: str) -> None:
        """Refuses what the task cannot use, once it is known.

        Raises:
            InputError: naming the flag, the task that it is for, and what to do.
        """
        single, multi = "single_label_classification", "multi_label_classification"
        wrong = {
            "label_smoothing_factor": self.label_smoothing_factor > 0 and problem_type != single,
            "class_weights": self.class_weights is not None and problem_type != single,
            "calibrate": self.calibrate is not None and problem_type == "regression",
            "tune_thresholds": self.tune_thresholds and problem_type != multi,
            "regression_loss": self.regression_loss != "mse" and problem_type != "regression",
        }
        meant = {
            "label_smoothing_factor": "one label a text",
            "class_weights": "one label a text; for several, see --tune_thresholds",
            "calibrate": "classification",
            "tune_thresholds": "several labels a text",
            "regression_loss": "a regression",
        }
        for name, is_wrong in wrong.items():
            if is_wrong:
                raise InputError(f"--{name} is for {meant[name]}; this task is {problem_type}. Leave it out.")
        for name in ("calibrate", "tune_thresholds"):
            if getattr(self, name) and not self.do_eval:
                raise InputError(f"--{name} is fitted on validation rows, found none. Name them, or leave it out.")
        if self.baselines and not self.do_train:
            raise InputError("--baselines are fitted on training rows, found none. Name them, or leave it out.")
        if not 0 <= self.label_smoothing_factor < 1:
            raise InputError(
                f"--label_smoothing_factor must lie in 0..1, without 1, got {self.label_smoothing_factor}."
            )
        if not 0 < self.layerwise_lr_decay <= 1:
            raise InputError(f"--layerwise_lr_decay must lie in 0..1, without 0, got {self.layerwise_lr_decay}.")
