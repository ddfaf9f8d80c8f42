"""The rules that flags must obey, as tables of conditions and messages.

A condition finds one mistake in `Flags`, a read-only view of the flags. Its message says what was expected, what was
found and what to do. Each table is checked once its facts are known: the command line, the splits or the processes.
Those that need the task or the model are in `later_rules`.

To add a rule, put its condition and message into the table whose facts it needs. Mistakes that show only in a file, a
model or the rows are checked where these are read.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from lstmpool.training.errors import InputError
from lstmpool.training.flags.arguments import BOUNDED
from lstmpool.training.flags.conditions import (
    UNFIT_FOR_AUTO,
    UNFIT_FOR_FOLDS,
    UNFIT_FOR_SEEDS,
    Broken,
    Flags,
    adapter_flag_alone,
    adapter_out_of_range,
    best_without_its_checkpoint,
    bf16_without_gpu,
    files_and_data_set,
    folds_and_validation_rows,
    fraction_of_a_step,
    groups_without_use,
    half_of_folds,
    hub_without_push,
    is_missing,
    layers_beside_adapters,
    limit_without_rows,
    missing_logger,
    no_steps,
    not_an_object,
    out_of_bounds,
    part_of_no_data_set,
    push_of_adapter,
    settled_by_init_from,
    split_without_rows,
    training_or_exits,
    unfit,
    unfit_for_exits,
    unfit_value,
    without_its_switch,
)
from lstmpool.training.flags.defaults import DOING
from lstmpool.training.flags.values import (
    UTF8,
    blank_text,
    column_named_twice,
    endless_number,
    odd_output_dir,
    unprintable_character,
    unusable_path,
)


class Rule(NamedTuple):
    """A rule: `broken` finds a mistake, and `message` reports it.

    The message may name parts of the flags (`{flags...}`) and of what `broken` returned.
    """

    broken: Callable[[Flags], Broken]
    message: str


def check(rules: tuple[Rule, ...], flags: Flags) -> None:
    """Raises InputError with the message of the first rule that is broken."""
    for rule in rules:
        found = rule.broken(flags)
        if found:
            details = found if isinstance(found, Mapping) else {}
            raise InputError(rule.message.format(flags=flags, **details))


MODEL = (
    Rule(
        lambda f: bool(f.model.backbone and f.model.init_from),
        "expected --backbone or --init_from, found both. A finished model has its backbone.",
    ),
    Rule(
        lambda f: not (f.model.backbone or f.model.init_from),
        "expected --backbone (a name on the Hub, a folder, or package:NAME), found none.",
    ),
)
DATA_SOURCE = (
    Rule(part_of_no_data_set, "--{name} belongs to --dataset_name, which is not given. Name the data set, too."),
    Rule(files_and_data_set, "expected --dataset_name or files, found both (--{name}). Leave one out."),
)
HUB = (
    Rule(
        lambda f: "hub_token" in f.given or "push_to_hub_token" in f.given,
        "others can read a token in a command. Log in with `hf auth login`, or set HF_TOKEN.",
    ),
    Rule(hub_without_push, "--{name} needs --push_to_hub. Add it, or leave this out."),
    Rule(
        lambda f: f.given.get("push_to_hub") and not f.given.get("hub_model_id"),
        "--push_to_hub needs --hub_model_id OWNER/NAME, found none.",
    ),
    Rule(
        lambda f: f.given.get("hub_strategy") == "all_checkpoints",
        "--hub_strategy all_checkpoints would publish every optimizer state. Use checkpoint, for the last alone.",
    ),
)
FOLDS = (
    Rule(
        lambda f: f.data.cv_folds is not None and f.data.cv_folds < 2,
        "--cv_folds must be 2 or more, got {flags.data.cv_folds}.",
    ),
    Rule(
        folds_and_validation_rows,
        "--{name} does not go with --cv_folds, where each fold in turn serves as validation rows. Leave it out, also "
        "of the recipe.",
    ),
    Rule(
        lambda f: f.data.cv_folds is not None and unfit(f, UNFIT_FOR_FOLDS),
        "--{name} does not go with --cv_folds: {reason}",
    ),
)
SEEDS = (
    Rule(lambda f: "seeds" in f.given and unfit(f, UNFIT_FOR_SEEDS), "--{name} does not go with --seeds: {reason}"),
    Rule(
        lambda f: f.given.get("seed", 0) + f.given.get("seeds", 0) > 2**32,
        "--seeds counts on from --seed, and the last of them must be below 4294967296; got {flags.given[seeds]} from "
        "{flags.given[seed]} on. Begin with a lower one.",
    ),
)
ADAPTERS = (
    Rule(adapter_flag_alone, "--{name} needs --peft lora. Add it, or leave this out."),
    Rule(
        lambda f: f.model.peft is not None and is_missing("peft"),
        "--peft lora needs the package peft, which is not installed. Install it with: "
        'pip install -c constraints.txt -e ".[peft]"',
    ),
    Rule(
        layers_beside_adapters,
        "--{name} does not go with --peft lora, which trains the backbone only through adapters. Leave one of them "
        "out.",
    ),
    Rule(
        adapter_out_of_range,
        "expected a --lora_rank and a --lora_alpha above 0, and a --lora_dropout of 0 or more and below 1; got "
        "{flags.model.lora_rank}, {flags.model.lora_alpha} and {flags.model.lora_dropout}.",
    ),
    Rule(
        push_of_adapter,
        "--push_to_hub publishes only models that load by themselves, and an adapter does not. Add --merge "
        "--hub_strategy end.",
    ),
)
SEARCH = (
    Rule(
        lambda f: "hp_space" in f.given and "hp_search" not in f.given,
        "--hp_space belongs to --hp_search, which is not given. Add it, or leave this out.",
    ),
    Rule(
        lambda f: "hp_search" in f.given and is_missing("optuna"),
        "--hp_search needs the package optuna, which is not installed. Install it with: "
        'pip install -c constraints.txt -e ".[search]"',
    ),
    Rule(
        lambda f: "hp_search" in f.given and "resume_from_checkpoint" in f.given,
        "--resume_from_checkpoint does not go with --hp_search, whose command goes on by itself. Leave it out.",
    ),
    Rule(
        lambda f: "hp_search" in f.given and f.given.get("metric_for_best_model") in ("loss", "eval_loss"),
        "--hp_search needs a metric of the task to judge by, got --metric_for_best_model loss.",
    ),
)
EXITS = (
    Rule(unfit_for_exits, "--{name} does not go with --early_exit: {reason}. Leave one of them out."),
    Rule(
        training_or_exits,
        "--{name} is about training, but --{switch} with --init_from takes the model as it is. Leave it out; or name "
        "--num_train_epochs or --max_steps, and the model is trained further first.",
    ),
    Rule(
        lambda f: "exit_threshold" in f.given and "early_exit_rule" in f.given,
        "--early_exit_rule chooses a threshold, but --exit_threshold names it. Leave one of them out.",
    ),
    Rule(
        lambda f: f.given.get("early_exit_rule") == BOUNDED and f.given.get("early_exit_max_drop") == 0,
        "--early_exit_rule bounded needs an --early_exit_max_drop above 0: no number of rows shows that none is ever "
        "lost. Raise it, or use the rule point.",
    ),
)
LAYERS = (
    Rule(
        lambda f: f.given.get("layer_report") and (f.given.get("fsdp") or f.given.get("deepspeed")),
        "--layer_report needs a whole model, but --fsdp and --deepspeed spread it over processes. Leave one of them "
        "out.",
    ),
)
LABELS = (
    Rule(
        lambda f: bool(f.given.get("find_label_issues")) and is_missing("cleanlab"),
        "--find_label_issues needs the package cleanlab, which is not installed. Install it with: "
        'pip install -c constraints.txt -e ".[cleanlab]"',
    ),
    Rule(
        lambda f: bool(f.given.get("find_label_issues")) and f.model.init_from,
        "--find_label_issues does not go with --init_from: a finished model may have learnt these very labels. Start "
        "from --backbone.",
    ),
    Rule(
        lambda f: (
            bool(f.given.get("find_label_issues"))
            and not f.data.cv_folds
            and any(f.given.get(name) for name in ("reinit_layers", "fsdp", "deepspeed"))
        ),
        "--find_label_issues has linear models read the whole pretrained backbone, so it does not go with "
        "--reinit_layers, --fsdp or --deepspeed. Leave one of them out, or use --cv_folds.",
    ),
)
VALUES = (  # of any flag
    Rule(
        unprintable_character,
        f"--{{name}}: expected a text that can be printed, found the character {{character}}. {UTF8}",
    ),
    Rule(blank_text, "--{name}: expected a value, found an empty one. Leave the flag out."),
    Rule(endless_number, "--{name}: expected a finite number of at most 64 bits, got {value}."),
    Rule(column_named_twice, "--{name}: expected names of columns, each once, got {value}."),
    Rule(
        odd_output_dir,
        "--output_dir {flags.given[output_dir]} is not the name of a folder. Write the path of a folder, in full.",
    ),
    Rule(unusable_path, "--{name} {path} cannot be used: {reason}. Name another path."),
)
SETTINGS = (  # that the library would take for something else, or fail on late
    Rule(out_of_bounds, "--{name} must be {expected}, got {value}."),
    Rule(fraction_of_a_step, "--{name} must be a whole number of steps, or a share of them below 1, got {value}."),
    Rule(no_steps, "--max_steps must be 1 or more, or -1 for no limit, got {flags.given[max_steps]}."),
    Rule(not_an_object, '--{name} must be a JSON object, such as {{"key": 1}}, got {value}'),
    Rule(without_its_switch, "--{name} belongs to --{switch}, which is not given. Add it, or leave this out."),
    Rule(
        bf16_without_gpu,
        "--bf16 needs a GPU that computes in bfloat16, found none. Add --use_cpu to train on the CPU, or leave --bf16 "
        "out.",
    ),
)
AT_ONCE = (  # known from the command line and the recipe alone
    Rule(limit_without_rows, "--{name} must be 1 or more, got {value}."),
    Rule(
        lambda f: not 0 <= f.data.validation_size < 1,
        "--validation_size must be 0 or more and below 1, got {flags.data.validation_size}.",
    ),
    Rule(
        settled_by_init_from,
        "--{name} is settled by the model of --init_from. Leave it out, or start from --backbone.",
    ),
    Rule(
        lambda f: not f.given.get("output_dir"),
        "expected --output_dir, the folder for the finished model, found none.",
    ),
    *DATA_SOURCE,
    *HUB,
    Rule(
        lambda f: "greater_is_better" in f.given,
        "--greater_is_better follows from the metric here. Leave it out.",
    ),
    *VALUES,
    *SETTINGS,
    Rule(unfit_value, "--{name} cannot be {value} here: {reason}. Leave it out."),
    *FOLDS,
    *SEEDS,
    Rule(
        lambda f: f.model.chooses_pooling and unfit(f, UNFIT_FOR_AUTO),
        "--{name} does not go with --layer_pooling auto: {reason}",
    ),
    *ADAPTERS,
    *SEARCH,
    *EXITS,
    *LAYERS,
    *LABELS,
)
WITH_SPLITS = (  # known once the splits are found
    Rule(
        lambda f: f.data.cv_folds is not None and "train" not in f.places,
        "--cv_folds needs training rows, found none. Name them with --train_file or --dataset_name.",
    ),
    Rule(half_of_folds, "--cv_folds trains and evaluates, found that {name} is off. Add --{name}."),
    Rule(
        lambda f: "seeds" in f.given and not f.training.get("do_train"),
        "--seeds trains a model with each seed, found nothing to train. Name training rows and --do_train, or leave "
        "it out.",
    ),
    Rule(
        groups_without_use,
        "--group_column keeps rows together in --cv_folds, or where validation rows are held out of the training "
        "rows; found neither. Leave it out.",
    ),
    Rule(split_without_rows, "--{flag} needs {split} rows, found none. Name them with --{split}_file."),
    Rule(
        lambda f: not (f.training.get("do_train") or f.model.init_from),
        "expected rows to train on, found none. Name them with --train_file or --dataset_name.",
    ),
    Rule(
        lambda f: f.given.get("push_to_hub") and not f.training.get("do_train"),
        "--push_to_hub publishes what this run trains. For any other model, use python -m lstmpool.training.publish.",
    ),
    Rule(
        lambda f: f.model.early_exit and "train" not in f.places,
        "--early_exit needs training rows, to which its exits are fitted, found none. Name them with --train_file or "
        "--dataset_name.",
    ),
    Rule(
        lambda f: f.model.early_exit and not f.training.get("do_eval"),
        "--early_exit needs validation rows, which say when a text may leave, found none. Name them with "
        "--validation_file, or leave --early_exit out.",
    ),
    Rule(
        lambda f: f.training.get("layer_report") and not ("train" in f.places and f.training.get("do_eval")),
        "--layer_report needs training rows, to which linear models are fitted, and validation rows, which judge "
        "them; one of them is missing. Name them with --train_file and --validation_file, or leave it out.",
    ),
    Rule(
        lambda f: not any(f.training.get(flag) for flag in DOING),
        "expected rows, found none. Name them with --train_file, --validation_file or --test_file.",
    ),
    Rule(
        best_without_its_checkpoint,
        "to keep the best model, each evaluation needs its checkpoint: expected --eval_steps and --save_steps to be "
        "the same, found {flags.training[eval_steps]:g} and {flags.training[save_steps]:g}. Give both the same "
        "number, or --load_best_model_at_end False.",
    ),
    Rule(
        lambda f: not f.training.get("do_eval") and f.training.get("eval_strategy", "no") != "no",
        "eval_strategy needs validation rows, found none. Name them with --validation_file.",
    ),
    Rule(
        lambda f: f.given.get("eval_on_start") and not f.training.get("do_eval"),
        "--eval_on_start needs validation rows, found none. Name them with --validation_file, or leave it out.",
    ),
    Rule(
        lambda f: "early_stopping_patience" in f.given and not f.training.get("load_best_model_at_end"),
        "--early_stopping_patience needs a best checkpoint to go back to. Give it validation rows, the same "
        "--eval_strategy and --save_strategy, and --load_best_model_at_end.",
    ),
    Rule(
        lambda f: f.model.peft is not None and not f.training.get("do_train"),
        "--peft lora is for training, found no training rows. Name them, or leave it out.",
    ),
    Rule(
        lambda f: "hp_search" in f.given and not (f.training.get("do_train") and f.training.get("do_eval")),
        "--hp_search needs training and validation rows, with --do_train and --do_eval on. Give it these, or leave "
        "it out.",
    ),
)
WITH_PROCESSES = (  # known once the library has read its arguments
    Rule(
        lambda f: f.training["mixed_precision"] == "fp16" and f.device == "cpu",
        "--fp16 needs a GPU, found none: the library would train in float32. Leave it out, or give --bf16 --use_cpu.",
    ),
    Rule(
        missing_logger,
        "--report_to {name}: no such logger is installed, found {found}. Install it, or leave it out.",
    ),
    Rule(
        lambda f: f.data.cv_folds is not None and f.processes > 1,
        "--cv_folds runs in one process, found {flags.processes}. Start it with python alone.",
    ),
    Rule(
        lambda f: f.training["seeds"] is not None and f.processes > 1,
        "--seeds runs in one process, found {flags.processes}. Start it with python alone.",
    ),
    Rule(
        lambda f: f.training["hp_search"] is not None and f.processes > 1,
        "--hp_search runs in one process, found {flags.processes}. Start it with python alone.",
    ),
)
