"""The arguments of `train_trainer.py`: dataclasses whose fields are its flags and the keys of a recipe.

Nothing here needs torch or transformers, so that `--help` prints at once. The library's own training arguments join
`TrainingFields` in `training_arguments.py`.
"""

from dataclasses import dataclass, field, fields
from typing import Any

from lstmpool.fields_lstmpool import PROBLEM_TYPES, LstmPoolFields


SPLITS = ("train", "validation", "test")
AUTO = "auto"  # metric_for_best_model, until the task is known: its headline metric


@dataclass
class ModelSource:
    """The pretrained model, and the task that it is fine-tuned for."""

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


@dataclass
class TrainedParts:
    """Which parts of the pretrained model are trained, and how."""

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


@dataclass
class ModelArguments(TrainedParts, LstmPoolFields, ModelSource):  # the fields of the last come first
    """The pretrained model, what reads its layers, and what of it is trained."""

    _argument_group_name = "model"

    def config_fields(self) -> dict[str, Any]:
        """The fields that `LstmPoolConfig` takes."""
        return {entry.name: getattr(self, entry.name) for entry in fields(LstmPoolFields)}


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
class TrainingFields:
    """What this command adds to the library's own training arguments."""

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
