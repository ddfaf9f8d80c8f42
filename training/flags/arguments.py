"""The arguments of `train_trainer.py`: dataclasses whose fields are its flags and the keys of a recipe.

This module imports neither torch nor transformers, so `--help` prints at once. `training_arguments.py` joins
`TrainingFields` with the library's own training arguments.
"""

from dataclasses import dataclass, field, fields
from typing import Any

from lstmpool.fields_lstmpool import DEFAULTS, LAYER_POOLINGS, PROBLEM_TYPES, LstmPoolFields


SPLITS = ("train", "validation", "test")
LIMITS = {"train": "max_train_samples", "validation": "max_eval_samples", "test": "max_predict_samples"}
OF_FILES = ("test_file", "train_file", "validation_file")
OF_DATA_SETS = (
    "train_split_name",
    "validation_split_name",
    "test_split_name",
    "dataset_config_name",
    "dataset_revision",
)
OBJECTS = ("lr_scheduler_kwargs", "activation_checkpointing_kwargs", "gradient_checkpointing_kwargs")
OBJECTS_OR_FILES = ("accelerator_config", "deepspeed", "fsdp_config", "hp_space")
MAPS = (*OBJECTS, *OBJECTS_OR_FILES)  # flags whose value may be a mapping, on a command line as JSON
# As metric_for_best_model it stands for the task's headline metric, until the task is known; as layer_pooling, for the
# one that is chosen before training.
AUTO = "auto"
POINT, BOUNDED = "point", "bounded"  # of --early_exit_rule, see `exit_rules`


@dataclass
class ModelSource:
    """The pretrained model, and the task that it is fine-tuned for."""

    backbone: str | None = field(
        default=None,
        metadata={
            "help": "Pretrained model to fine-tune: a name on the Hub, a folder, or package:NAME for the folder with "
            "config.json and model.safetensors inside an installed Python package. Required."
        },
    )
    init_from: str | None = field(
        default=None,
        metadata={
            "help": "Instead of a backbone: a finished LstmPool model, a folder or a name on the Hub, to train "
            "further or, without training rows, to evaluate. It keeps its config and, if the labels are its own, its "
            "classifier."
        },
    )
    model_revision: str = field(
        default="main", metadata={"help": "Branch, tag or commit of a backbone or init_from on the Hub."}
    )
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Run the backbone's own code, if it comes with any."}
    )
    problem_type: str | None = field(
        default=None,
        metadata={"choices": PROBLEM_TYPES, "help": "The task. Unset: it is inferred from the labels, and printed."},
    )


@dataclass
class TrainedParts:
    """Which parts of the pretrained model are trained, and how."""

    stages: str = field(
        default="two",
        metadata={
            "choices": ("two", "one"),
            "help": "two: the model starts at a linear model of the frozen backbone's layers, which cross-validation "
            "chooses; then everything is trained from there, and the better on validation rows is kept. one: "
            "everything is trained from a random head, whose bias gives the labels' shares.",
        },
    )
    original_defaults: bool = field(
        default=False,
        metadata={
            "help": "Train as this model was first described: one stage of 3 epochs in float32, the family's token "
            "pooling (cls for most encoders), pairs encoded together. A flag that is named still counts."
        },
    )
    freeze_backbone: bool = field(
        default=False, metadata={"help": "Train only the new layers. The backbone then runs without dropout."}
    )
    freeze_embeddings: bool = field(
        default=False,
        metadata={
            "help": "Do not train the backbone's embeddings. With a large vocabulary, that saves most of the memory."
        },
    )
    freeze_layers: int = field(
        default=0, metadata={"help": "Do not train the embeddings and this many of the lowest layers."}
    )
    reinit_layers: int = field(
        default=0, metadata={"help": "Reset this many of the highest layers to random weights."}
    )

    peft: str | None = field(
        default=None,
        metadata={
            "choices": ("lora",),
            "help": "Train adapters in a frozen backbone, and the new layers. The saved adapter is small, and is "
            "loaded beside its backbone. The default of --learning_rate is for whole backbones: adapters usually want "
            "a higher one, such as 2e-4, which was not measured here.",
        },
    )
    lora_rank: int = field(default=8, metadata={"help": "Rank of the trained matrices."})
    lora_alpha: int = field(default=16, metadata={"help": "Their output is multiplied by lora_alpha / lora_rank."})
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout on their input."})
    lora_target_modules: list[str] | None = field(
        default=None,
        metadata={
            "help": "Names of the backbone's linear modules to adapt, such as query value, or all-linear. Unset: by "
            "the backbone's family, query and value for BERT and its like."
        },
    )
    merge: bool = field(
        default=False, metadata={"help": "Add the adapters to the backbone's weights and save a whole model."}
    )


@dataclass
class ModelArguments(TrainedParts, LstmPoolFields, ModelSource):  # the fields of the last come first
    """The pretrained model, what reads its layers, and which parts of it are trained."""

    _argument_group_name = "model"

    layer_pooling: str = field(
        default=DEFAULTS["layer_pooling"],
        metadata={
            "choices": (*LAYER_POOLINGS, AUTO),
            "help": LstmPoolFields.__dataclass_fields__["layer_pooling"].metadata["help"]
            + " auto: each of these is tried on the layer states of the frozen backbone, and last on each of the four "
            "highest layers; validation rows choose, or cross-validation where they are few.",
        },
    )

    @property
    def chooses_pooling(self) -> bool:
        """Whether the command is to choose the layer pooling."""
        return self.layer_pooling == AUTO

    def config_fields(self) -> dict[str, Any]:
        """The fields that `LstmPoolConfig` takes, with their values; for a pooling not yet chosen, the default."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(LstmPoolFields)}
        for name in ("early_exit", "exit_threshold"):  # the exits come after training
            values.pop(name)
        if self.chooses_pooling:
            values["layer_pooling"] = DEFAULTS["layer_pooling"]
        return values


@dataclass
class DataArguments:
    """Where the rows are, and which of their columns are read."""

    _argument_group_name = "data"

    train_file: str | None = field(
        default=None,
        metadata={"help": "Training rows: .csv, .json, .jsonl, .parquet, plain or .gz, or a folder of save_to_disk."},
    )
    validation_file: str | None = field(default=None, metadata={"help": "Rows by which the best epoch is chosen."})
    test_file: str | None = field(default=None, metadata={"help": "Rows to evaluate on once, at the end."})
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
        metadata={
            "help": "Without validation rows, hold out this share of the training rows; 0: none. Unset: at most "
            "10,000 rows, and none of fewer than 500 where there are two stages and no flag is about validation."
        },
    )
    text_column_names: str | None = field(
        default=None,
        metadata={
            "help": "Column of the text. Two, separated by a comma, are encoded as a pair; more are joined. Unset: "
            "text, sentence, or a pair known from GLUE, such as sentence1,sentence2."
        },
    )
    text_column_delimiter: str | None = field(
        default=None,
        metadata={"help": "Join the text columns, even two, with this. Unset: three or more with a space."},
    )
    label_column_name: str | None = field(
        default=None,
        metadata={
            "help": "Column of the label. Several, separated by commas, are the targets of one regression or, if "
            "they hold only zeros and ones, labels of which a text has any number. Unset: label, or labels."
        },
    )
    id_column_name: str | None = field(
        default=None,
        metadata={"help": "Column that names the rows in the table of predictions. Unset: id, or the row number."},
    )
    max_seq_length: int | None = field(
        default=None, metadata={"help": "Tokens after which a text is cut. Unset: the backbone's limit, at most 512."}
    )
    pad_to_max_length: bool = field(
        default=False, metadata={"help": "Pad every text to max_seq_length, not to the longest of its batch."}
    )
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Use this many training rows, drawn at random."}
    )
    max_eval_samples: int | None = field(default=None, metadata={"help": "The same for validation rows."})
    max_predict_samples: int | None = field(default=None, metadata={"help": "The same for test rows."})
    shuffle_seed: int = field(
        default=42, metadata={"help": "Seed of that draw, of the rows held out for validation, and of the folds."}
    )
    cv_folds: int | None = field(
        default=None,
        metadata={
            "help": "Cross-validation: put the training rows into this many folds and train without each in turn. "
            "output_dir gets a folder for each fold, and each row's prediction by the model that has not seen it."
        },
    )
    group_column: str | None = field(
        default=None,
        metadata={
            "help": "Column that says which rows belong together, such as those of one writer. They stay in one fold "
            "or, where validation rows are held out, on one side."
        },
    )
    preprocessing_num_workers: int | None = field(
        default=None, metadata={"help": "Processes that turn texts into tokens. Unset: one."}
    )


@dataclass(repr=False)
class TrainingFields:
    """The fields that this command adds to the library's own training arguments."""

    head_learning_rate: float | None = field(
        default=1e-3, metadata={"help": "Peak learning rate of the new layers; learning_rate is the backbone's."}
    )
    contrastive_steps: int | None = field(
        default=None,
        metadata={
            "help": "Steps before stage 1 in which the backbone alone learns which texts share a label. Unset: 100, "
            "or fewer for long texts, if there are fewer than 500 rows, each of one text and one label, and at least "
            "8 a class on average. Else 0, as where the length of the run is set."
        },
    )
    layer_cache: str = field(
        default="float32",
        metadata={
            "choices": ("float32", "float16", "no"),
            "help": "Run a frozen backbone once and keep its layer states on disk, for later runs too. float16 takes "
            "half the space; no: run it in every epoch.",
        },
    )
    layerwise_lr_decay: float = field(
        default=1.0,
        metadata={
            "help": "Each layer's rate is this times the rate of the layer above it; the embeddings have the lowest."
        },
    )
    regression_loss: str = field(
        default="mse",
        metadata={"choices": ("mse", "smooth_l1"), "help": "Loss of a regression; outliers weigh less in smooth_l1."},
    )
    standardize_targets: bool = field(
        default=True,
        metadata={
            "help": "Train a regression on targets of unit spread. The saved model predicts in their own units."
        },
    )
    class_weights: str | None = field(
        default=None,
        metadata={"choices": ("balanced",), "help": "Let every class, even a rare one, count the same in the loss."},
    )
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Stop after this many evaluations in a row without a better one."}
    )
    calibrate: str | None = field(
        default=None,
        metadata={
            "choices": ("temperature",),
            "help": "Fit a temperature on validation and divide the classifier by it, which makes the scores honest.",
        },
    )
    tune_thresholds: bool = field(
        default=False,
        metadata={
            "aliases": ["--tune_threshold", "--tune-threshold"],
            "help": "Shift the classifier's bias so that 0.5 is the best threshold on validation: with several labels "
            "a text for each label's F1, with two classes for macro F1.",
        },
    )
    early_exit_max_drop: float = field(
        default=0.5,
        metadata={
            "help": "Points (hundredths) of the main metric that the exits of early_exit may cost on validation rows. "
            "With early_exit_rule bounded: how many rows in a hundred may be lost, which the whole model gets right."
        },
    )
    early_exit_rule: str = field(
        default=POINT,
        metadata={
            "choices": (POINT, BOUNDED),
            "help": "How exit_threshold is chosen on the validation rows. point: the lowest one that keeps the metric "
            "within early_exit_max_drop, with a margin of one standard error. bounded: the lowest one that keeps new "
            "rows within it, too, with 90% certainty; that needs more rows, and saves less.",
        },
    )
    predictions_format: str = field(
        default="csv", metadata={"choices": ("csv", "parquet"), "help": "Format of the tables of predictions."}
    )
    predictions_with_text: bool = field(default=False, metadata={"help": "Put the texts into these tables too."})
    raw_csv: bool = field(
        default=False,
        metadata={
            "help": "Leave ids, texts and labels in these tables as they are. Unset: an apostrophe keeps a "
            "spreadsheet from running those that begin like a formula."
        },
    )
    show_errors: bool = field(
        default=False,
        metadata={
            "help": "Print ten of the validation and test rows that were predicted wrongly, the surest first. All are "
            "in errors.csv."
        },
    )
    find_label_issues: bool = field(
        default=False,
        metadata={
            "help": "List the training rows that look mislabelled in label_issues.csv. Of up to 5,000 rows, each is "
            "judged by a linear model of the backbone's layers that was fitted without it, before training; with "
            "--cv_folds all are, by the folds' own models. Needs the package cleanlab."
        },
    )
    baselines: bool = field(
        default=True,
        metadata={
            "help": "Also fit what costs seconds, a linear model on the vectors of the backbone before training, and "
            "warn if it is better. The most frequent label stands beside them."
        },
    )
    seeds: int | None = field(
        default=None,
        metadata={
            "help": "Run this many times on the same rows, with the seeds seed, seed + 1 and so on. output_dir gets "
            "a folder for each seed, their results with mean and spread, and the mean of their predictions."
        },
    )
    layer_report: bool = field(
        default=False,
        metadata={
            "help": "Say which layers of the finished model matter. From the layer states of training rows, linear "
            "models are fitted to some of the layers, and judged on validation rows. It takes seconds to minutes, and "
            "the model stays as it is."
        },
    )
    hp_search: int | None = field(
        default=None,
        metadata={
            "help": "Before training, try this many settings on the validation rows, then train with the best. If a "
            "search was cut off, or gets a higher number, its trials count."
        },
    )
    hp_space: str | None = field(
        default=None,
        metadata={
            "help": 'What to search, as JSON or a YAML file: {"learning_rate": [1e-5, 1e-4, "log"], '
            '"num_train_epochs": [2, 3, 4]}. A list that ends in log or linear is a range. Unset: both rates and '
            "the epochs."
        },
    )
    overwrite: bool = field(
        default=False,
        metadata={"help": "Replace the run in output_dir. If it is this same run, cut off, it goes on instead."},
    )
