"""Reads and checks what a command asks for, before any weights are read. Its runs, such as folds, share this `Job`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
from transformers import PretrainedConfig, PreTrainedTokenizerBase
from transformers.trainer_utils import IntervalStrategy

from lstmpool.families_lstmpool import Families
from lstmpool.fields_lstmpool import APART, SINGLE
from lstmpool.training.data.holdout import hold_out
from lstmpool.training.data.order import Tokens
from lstmpool.training.data.rows import Split, read_splits
from lstmpool.training.data.summary import remarks
from lstmpool.training.errors import InputError, as_line, one_line, tokenizing
from lstmpool.training.flags.arguments import DataArguments, ModelArguments
from lstmpool.training.flags.conditions import Flags
from lstmpool.training.flags.later_rules import WITH_TASK
from lstmpool.training.flags.rules import check
from lstmpool.training.flags.training_arguments import TrainingArguments
from lstmpool.training.loop.trainer_arguments import changed
from lstmpool.training.model.backbone import Backbone
from lstmpool.training.model.layer_cache import states_folder
from lstmpool.training.model.token_limits import TokenLimits
from lstmpool.training.model.trainable_parts import check_layers
from lstmpool.training.tasks.task import SCORED, BestBy, Task


HELD_OUT = 10_000  # rows are enough for validation, where nobody asks for another share


@dataclass(frozen=True)
class Job:
    """The rows, the task that their labels set, and the model to train for it."""

    model_args: ModelArguments
    data_args: DataArguments
    backbone: Backbone
    fields: dict[str, Any]  # of LstmPoolConfig
    splits: dict[str, Split]
    task: Task
    best: BestBy
    tokenizer: PreTrainedTokenizerBase
    settings: dict[str, Any]  # see `settings_of`
    command: list[str]  # as it was typed, for the model card
    held_out: bool = False  # whether the validation rows are some of the training file's
    said: tuple[str, ...] = ()  # lines on what was chosen for a new model, and why
    why_one_stage: str = ""  # empty if there are two, see `stages`
    states_folder: Path = Path()  # where the layer states of the first stage lie meanwhile

    @property
    def is_adapter(self) -> bool:
        """Whether the run saves an adapter and not a whole model."""
        return self.model_args.peft is not None and not self.model_args.merge

    @property
    def reads_pairs(self) -> bool:
        """Whether a row is a pair of texts."""
        return next(iter(self.splits.values())).pairs is not None

    def arguments(self, args: TrainingArguments) -> TrainingArguments:
        """The arguments for the rows at hand: without validation rows, nothing is evaluated during training."""
        if not args.do_eval or "validation" in self.splits or self.data_args.cv_folds:
            return args
        return changed(args, do_eval=False, eval_strategy=IntervalStrategy.NO, load_best_model_at_end=False)

    def encode(self) -> dict[str, Tokens]:
        """The rows of each split as tokens. Raises InputError if the backbone cannot read them."""
        tokens = {name: self._tokens_of(name) for name in self.splits}
        config = self.backbone.check_fields(self.backbone.load_config(), self.fields)
        with one_line(f"{self.backbone.flag} {self.backbone.title} cannot be built", ValueError, ImportError):
            limits = TokenLimits.of_config(config)
        if limits is not None:  # else `check_tokens` will see
            self.check_tokens(tokens, limits)
        pyarrow.default_memory_pool().release_unused()
        return tokens

    def _tokens_of(self, name: str) -> Tokens:
        padded, workers = self.data_args.pad_to_max_length, self.data_args.preprocessing_num_workers
        with tokenizing(self._where(name)):
            return Tokens(*self.splits[name].tokenize(self.tokenizer, padded, workers))

    def _where(self, name: str) -> str:
        return f"{self.backbone.flag} {self.backbone.title}, {name} rows"

    def check_tokens(self, tokens: dict[str, Tokens], limits: TokenLimits) -> None:
        """Raises InputError if a backbone of these `limits` cannot read the tokens.

        The tokenizer, which is saved with the model, will cut longer texts than these where the positions end.
        """
        for name, of_split in tokens.items():
            limits.check(of_split.dataset, self.tokenizer, self._where(name))
        if limits.positions is not None:
            self.tokenizer.model_max_length = min(self.tokenizer.model_max_length, limits.positions)


def read_job(
    model_args: ModelArguments,
    data_args: DataArguments,
    args: TrainingArguments,
    places: dict[str, str],
    settings: dict[str, Any],
    command: list[str],
) -> Job:
    """Reads the rows and settles the task.

    Args:
        places: by split, where its rows are.
        settings: see `settings_of`.
        command: as it was typed, for the model card.

    Raises:
        InputError: if the rows, the flags and the backbone's config do not fit together.
    """
    backbone = Backbone.find(model_args)
    config = backbone.load_config()
    finished = config if model_args.init_from else None
    places = _places_read(model_args, args, places)
    splits, task = read_splits(data_args, places, model_args.problem_type, finished)
    why = why_one_stage(model_args, args, task)
    held_out = "validation" not in splits
    if args.do_eval and held_out and not data_args.cv_folds:
        splits = _with_validation(splits, task, data_args, few=args.limits.few_rows if not why else 0)
    pyarrow.default_memory_pool().release_unused()  # what reading took, the system may have back
    _check_labels(splits, task, args)
    learnt = {"task": task.problem_type, "outputs": len(task.names)}
    check(WITH_TASK, Flags(model_args, data_args, training=vars(args), **learnt))
    _check_linear(model_args, args, task, finished)
    _check_contrastive(model_args, args, splits, task, why)
    best = task.best_by(args.metric_for_best_model)
    tokenizer = backbone.load_tokenizer(data_args.max_seq_length)
    fields, said = _fields_of(backbone, config, tokenizer, model_args, splits, task, why)
    if why and _is_news(model_args, args):
        said = [f"One stage: {why}.", *said]
    _check_model(backbone, config, fields, model_args, args, splits)
    return Job(
        model_args,
        data_args,
        backbone,
        fields,
        splits,
        task,
        best,
        tokenizer,
        settings,
        command,
        held_out=held_out,
        said=tuple(said),
        why_one_stage=why,
        states_folder=states_folder(args.output_dir),
    )


def _places_read(model_args: ModelArguments, args: TrainingArguments, places: dict[str, str]) -> dict[str, str]:
    """The places of the splits that the command reads."""
    reads_train = args.do_train or model_args.early_exit or args.layer_report
    wanted = {"train": reads_train, "validation": args.do_eval, "test": args.do_predict}
    return {name: place for name, place in places.items() if wanted[name]}


def _fields_of(
    backbone: Backbone,
    config: PretrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    args: ModelArguments,
    splits: dict[str, Split],
    task: Task,
    why_one_stage: str,
) -> tuple[dict[str, Any], list[str]]:
    """The fields of the model's config that flags and rows set, and lines on those that were chosen for a new one."""
    fields = args.config_fields() | task.config_fields
    if args.pair_encoding == APART:
        _check_pairs(splits)
    if args.init_from:
        return fields, []
    reads_pairs = next(iter(splits.values())).pairs is not None
    chosen, said = choose_fields(backbone, config, tokenizer, args, reads_pairs, two_stages=not why_one_stage)
    return fields | chosen, said


def why_one_stage(model_args: ModelArguments, args: TrainingArguments, task: Task) -> str:
    """Says why a run trains everything from a random head; empty if it has the two stages of `stages`."""
    if model_args.original_defaults:
        return "as --original_defaults says"
    if model_args.stages == "one":
        return "as --stages says"
    if model_args.init_from:
        return "the model of --init_from has been trained"
    if len(task.names) > SCORED:
        return f"a linear model is for up to {SCORED} outputs, found {len(task.names)}"
    if model_args.reinit_layers:
        return "--reinit_layers replaces layers that a linear model would read"
    if args.fsdp or args.deepspeed:
        return "the model is spread over processes"
    return ""


def _is_news(model_args: ModelArguments, args: TrainingArguments) -> bool:
    """Whether a user who trains may have expected two stages: no flag that is about them says otherwise."""
    about_stages = model_args.original_defaults or model_args.stages == "one"
    return args.do_train and not about_stages and not model_args.init_from


def choose_fields(
    backbone: Backbone,
    config: PretrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    args: ModelArguments,
    reads_pairs: bool,
    two_stages: bool,
) -> tuple[dict[str, Any], list[str]]:
    """What a new model is given beyond the flags, and lines that say why.

    The two texts of a pair are read apart where the backbone says that it was made for sentence vectors, if its
    tokenizer allows it: such backbones have hardly seen pairs.
    """
    stated = None if args.original_defaults else backbone.stated_pooling(config)
    pooling, reason = backbone.token_pooling(config, args.token_pooling, stated)
    fields: dict[str, Any] = {"token_pooling": pooling, "linear_skip": two_stages or bool(args.linear_skip)}
    if args.standardize_layers is None and args.freeze_backbone and not args.original_defaults:
        fields["standardize_layers"] = pooling == "cls"  # by the study; mean vectors lose by it
    said = [f"Token pooling: {pooling}, {reason}."]
    if not reads_pairs:
        return fields, said
    encoding, reason = args.pair_encoding, "as --pair_encoding says"
    if encoding is None:
        encoding, reason = "joint", "as is usual"
        if stated is not None:
            encoding, reason = APART, "since the backbone was made for single texts"
    fields["pair_encoding"] = encoding
    try:
        fields = backbone.with_template(fields, tokenizer)
    except InputError:
        if args.pair_encoding is not None:
            raise
        fields["pair_encoding"] = encoding = "joint"
        reason = "since its tokenizer does not tell two texts apart"
    said.append(f"Pairs: {encoding}, {reason}.")
    return fields, said


def _check_pairs(splits: dict[str, Split]) -> None:
    """Raises InputError unless each row has two texts."""
    for split in splits.values():
        if split.pairs is None:
            raise InputError(
                f"{split.source}: expected two texts a row, which the model reads apart (pair_encoding), found one. "
                "Name both columns, as in --text_column_names sentence1,sentence2, or use pair_encoding joint."
            )


def _check_texts(splits: dict[str, Split], expected: int | None, model: str) -> None:
    """Raises InputError if a row has one text and `model` was trained on pairs, or the reverse, as far as is known."""
    for split in splits.values():
        found = len(split.columns)
        if expected == 2 and found == 1:
            raise InputError(
                f"{split.source}: expected two texts a row, since {model} was trained on pairs, found one. Name both "
                "columns, as in --text_column_names sentence1,sentence2."
            )
        if expected == 1 and found == 2:
            raise InputError(
                f"{split.source}: expected one text a row, since {model} was trained on single texts, found two. Name "
                "its column with --text_column_names, or join both with --text_column_delimiter ' '."
            )


def _check_labels(splits: dict[str, Split], task: Task, args: TrainingArguments) -> None:
    """Prints what the user should know of the labels. Raises InputError if they cannot be learnt as `args` say."""
    if args.do_train:
        task.check_learnable(splits["train"].labels, splits["train"].source)
        for remark in remarks(splits, task, weighted=args.class_weights is not None):
            print(as_line(f"Warning: {remark}"))


def _check_contrastive(
    model_args: ModelArguments, args: TrainingArguments, splits: dict[str, Split], task: Task, why_one_stage: str
) -> None:
    """Raises InputError if texts are to be compared, and cannot be."""
    if not args.contrastive_steps:
        return
    found = [
        (task.problem_type != SINGLE, f"the task {task.problem_type}"),
        (next(iter(splits.values())).pairs is not None, "pairs of texts"),
        (bool(why_one_stage), f"one stage, {why_one_stage}"),
        (model_args.freeze_backbone, "--freeze_backbone"),
        (model_args.peft is not None, "--peft"),
    ]
    wrong = next((what for is_so, what in found if is_so), None)
    if wrong:
        raise InputError(
            "--contrastive_steps trains the backbone in a run of two stages, on rows of one text and one label; found "
            f"{wrong}. Leave it out."
        )


def _flags_of_layers(model_args: ModelArguments, args: TrainingArguments) -> list[str]:
    """The flags that have linear models fitted to single layers of the finished model, of those that are on."""
    on = {"--early_exit": model_args.early_exit, "--layer_report": args.layer_report}
    return [flag for flag, is_on in on.items() if is_on]


def _check_linear(
    model_args: ModelArguments, args: TrainingArguments, task: Task, finished: PretrainedConfig | None
) -> None:
    """Raises InputError if linear models of single layers, or that judge labels, are wanted and cannot be fitted.

    `finished`: config of the model to start from.
    """
    for flag in _flags_of_layers(model_args, args):
        if len(task.names) > SCORED:
            raise InputError(f"{flag} is for up to {SCORED:,} outputs, found {len(task.names):,}. Leave it out.")
        known = finished.id2label.values() if finished else task.names
        if not args.do_train and list(known) != task.names:
            raise InputError(
                f"{flag} with --init_from takes the model as it is, but these rows have other labels than its own: "
                f"{', '.join(task.names[:8])}. Name rows with its labels; or --num_train_epochs, to train it on these."
            )
    if args.find_label_issues and len(task.names) > SCORED:
        found = f"found {len(task.names):,}"
        raise InputError(f"--find_label_issues is for up to {SCORED:,} outputs, {found}. Leave it out.")


def _check_model(
    backbone: Backbone,
    config: PretrainedConfig,
    fields: dict[str, Any],
    model_args: ModelArguments,
    args: TrainingArguments,
    splits: dict[str, Split],
) -> None:
    """Raises InputError if no model can be made with these `fields`, or one that is finished reads no such rows.

    `config`: of the backbone, or of the model to start from.
    """
    wanted = backbone.check_fields(config, fields)
    check_layers(model_args, wanted)
    _check_depth(model_args, args, wanted)
    if model_args.init_from:
        _check_texts(splits, backbone.texts_a_row(config), f"{backbone.flag} {backbone.title}")


def _check_depth(model_args: ModelArguments, args: TrainingArguments, config: PretrainedConfig) -> None:
    """Raises InputError if a model with this config reads too few layers, or no text could leave it early."""
    for flag in _flags_of_layers(model_args, args):
        if len(config.layers) < 2:
            raise InputError(
                f"{flag} needs two layers or more that are read, found layers {config.layers}. Read more layers, or "
                "leave it out."
            )
    family = config.backbone_config.model_type
    if model_args.early_exit and family not in Families.EARLY_EXIT:
        raise InputError(
            f"--early_exit needs a backbone of a family that texts can leave early: "
            f"{', '.join(sorted(Families.EARLY_EXIT))}. Found {family}. Name another, or leave it out."
        )


def _with_validation(splits: dict[str, Split], task: Task, args: DataArguments, few: int) -> dict[str, Split]:
    """Holds out some of the training rows as validation rows, unless these are fewer than `few`."""
    if len(splits["train"]) < few:
        print(f"No validation rows: fewer than {few} training rows, of which none are held out for validation.")
        return splits
    enough = args.max_eval_samples
    if enough is None and args.validation_size == DataArguments.validation_size:
        enough = HELD_OUT
    train, held = hold_out(splits["train"], task, args.validation_size, args.shuffle_seed, enough)
    print(f"No validation rows: {len(held)} of the training rows, stratified, are held out for validation.")
    others = {name: split for name, split in splits.items() if name != "train"}
    return {"train": train, "validation": held} | others
