"""Each rule of flags: what breaks it, and what is said then. The cases are a table, as the rules are."""

import pytest

from lstmpool.fields_lstmpool import MULTI, REGRESSION, SINGLE
from lstmpool.training.errors import InputError
from lstmpool.training.flags import later_rules
from lstmpool.training.flags import rules as tables_of_rules
from lstmpool.training.flags.arguments import DataArguments, ModelArguments
from lstmpool.training.flags.defaults import FINE_TUNING, worked_out
from lstmpool.training.flags.later_rules import WITH_LAYERS, WITH_METRICS, WITH_TASK
from lstmpool.training.flags.rules import (
    AT_ONCE,
    DATA_SOURCE,
    MODEL,
    WITH_PROCESSES,
    WITH_SPLITS,
    Flags,
    Rule,
    check,
)


TRAIN = {"train": "train.csv"}
ALL = {"train": "train.csv", "validation": "v.csv", "test": "test.csv"}
NO_VALIDATION = {"train": "train.csv", "test": "test.csv"}
# What a training flag is where nothing was said, for the rules that see all of them.
PLAIN = {
    "label_smoothing_factor": 0.0,
    "class_weights": None,
    "calibrate": None,
    "tune_thresholds": False,
    "regression_loss": "mse",
    "layerwise_lr_decay": 1.0,
    "do_train": True,
    "do_eval": True,
    "hp_search": None,
    "seeds": None,
    "report_to": [],
    "mixed_precision": "no",
}


def at_once(model=None, data=None, **given):
    given = {"output_dir": "out", **(model or {}), **(data or {}), **given}
    return AT_ONCE, Flags(ModelArguments(**(model or {})), DataArguments(**(data or {})), given)


def with_splits(places, model=None, data=None, **given):
    data_args = DataArguments(**(data or {}))
    values = worked_out(given, FINE_TUNING, data_args, places)
    return WITH_SPLITS, Flags(ModelArguments(**(model or {})), data_args, given, values, places)


def with_processes(data=None, processes=1, loggers=(), device="cpu", **training):
    known = {"processes": processes, "loggers": loggers, "device": device}
    return WITH_PROCESSES, Flags(data=DataArguments(**(data or {})), training=PLAIN | training, **known)


def with_task(task, outputs=1, model=None, **training):
    return WITH_TASK, Flags(ModelArguments(**(model or {})), training=PLAIN | training, task=task, outputs=outputs)


def with_layers(**model):
    return WITH_LAYERS, Flags(ModelArguments(**model), layers=4)


FOLDS = {"cv_folds": 2}
LORA = {"peft": "lora"}
EXITS = {"early_exit": True}
ISSUES = {"find_label_issues": True}
STEPS = {"eval_strategy": "steps", "save_strategy": "steps"}
CASES = [
    # from the start
    (at_once(per_device_train_batch_size=0), "--per_device_train_batch_size must be more than 0, got 0"),
    (at_once(num_train_epochs=-1), "--num_train_epochs must be more than 0, got -1"),
    (
        at_once(num_train_epochs=float("nan")),
        "--num_train_epochs: expected a finite number of at most 64 bits, got nan.",
    ),
    (at_once(learning_rate=float("inf")), "--learning_rate: expected a finite number of at most 64 bits, got inf."),
    (at_once(head_learning_rate=-1), "--head_learning_rate must be 0 or more, got -1"),
    (at_once(data={"max_eval_samples": 0}), "--max_eval_samples must be 1 or more, got 0"),
    (at_once(data={"validation_size": 1.0}), "--validation_size must be 0 or more and below 1, got 1.0"),
    (at_once(data={"validation_size": -0.1}), "--validation_size must be 0 or more and below 1, got -0.1"),
    (at_once({"init_from": "m", "layers": [1]}), "--layers is settled by the model of --init_from. Leave it out"),
    (at_once(output_dir=""), "expected --output_dir"),
    (at_once(greater_is_better=True), "--greater_is_better follows from the metric here"),
    (at_once(save_only_model=True), "--save_only_model cannot be True here: a run could not go on from such"),
    # the value of any flag
    (at_once(run_name="a\0b"), "--run_name: expected a text that can be printed, found the character \\x00"),
    (
        at_once({"lora_target_modules": ["a", "b\x1b[2J"]}),
        "--lora_target_modules: expected a text that can be printed",
    ),
    (at_once(data={"train_file": "caf\udce9.csv"}), "found the character \\udce9. If it is part of a letter, start"),
    (at_once(resume_from_checkpoint=""), "--resume_from_checkpoint: expected a value, found an empty one."),
    (at_once(data={"train_file": " "}), "--train_file: expected a value, found an empty one."),
    (at_once(seed=2**63), "--seed: expected a finite number of at most 64 bits, got 92233"),
    (at_once(warmup_steps=float("inf")), "--warmup_steps: expected a finite number of at most 64 bits, got inf."),
    (
        at_once(data={"text_column_names": "a, a"}),
        "--text_column_names: expected names of columns, each once, got a, a",
    ),
    (at_once(data={"label_column_name": "a,"}), "--label_column_name: expected names of columns, each once, got a,."),
    (at_once(output_dir="s3://bucket/out"), "--output_dir s3://bucket/out is not the name of a folder."),
    (at_once(output_dir="~/out"), "--output_dir ~/out is not the name of a folder."),
    (at_once(output_dir="-"), "--output_dir - is not the name of a folder."),
    (at_once(output_dir="new/" + "é" * 128), "cannot be used: a name of 256 bytes, where at most 255 fit."),
    (at_once(output_dir=f"{__file__}/out"), "/out cannot be used: Not a directory."),
    (at_once({"backbone": "b/" * 3000}), "cannot be used: File name too long."),
    # values that the library would take for something else, or fail on later
    (at_once(num_train_epochs=1e6), "--num_train_epochs must be below 1000000, got 1000000.0"),
    (at_once(weight_decay=-0.1), "--weight_decay must be 0 or more, got -0.1"),
    (at_once(max_grad_norm=-1.0), "--max_grad_norm must be 0 or more, got -1.0"),
    (at_once(warmup_steps=-1), "--warmup_steps must be 0 or more, got -1"),
    (at_once(warmup_steps=1.5), "--warmup_steps must be a whole number of steps, or a share of them below 1, got 1.5"),
    (at_once(eval_steps=0), "--eval_steps must be more than 0, got 0"),
    (at_once(save_steps=-5), "--save_steps must be more than 0, got -5"),
    (at_once(logging_steps=0), "--logging_steps must be more than 0, got 0"),
    (at_once(max_steps=0), "--max_steps must be 1 or more, or -1 for no limit, got 0."),
    (at_once(max_steps=-2), "--max_steps must be 1 or more, or -1 for no limit, got -2."),
    (at_once(save_total_limit=0), "--save_total_limit must be more than 0, got 0"),
    (at_once(seed=-1), "--seed must be 0 or more, got -1"),
    (at_once(data_seed=2**32), "--data_seed must be below 4294967296, got 4294967296"),
    (at_once(data={"shuffle_seed": -1}), "--shuffle_seed must be 0 or more, got -1"),
    (at_once(adam_beta1=1.0), "--adam_beta1 must be below 1, got 1.0"),
    (at_once(adam_epsilon=0.0), "--adam_epsilon must be more than 0, got 0.0"),
    (at_once(dataloader_num_workers=-1), "--dataloader_num_workers must be 0 or more, got -1"),
    (at_once(dataloader_num_workers=10**6), "--dataloader_num_workers must be below 1024, got 1000000"),
    (at_once(neftune_noise_alpha=-1.0), "--neftune_noise_alpha must be 0 or more, got -1.0"),
    (at_once(eval_accumulation_steps=0), "--eval_accumulation_steps must be more than 0, got 0"),
    (at_once(lr_scheduler_kwargs="3"), '--lr_scheduler_kwargs must be a JSON object, such as {"key": 1}, got 3'),
    (at_once(activation_checkpointing_kwargs="{}"), "belongs to --activation_checkpointing, which is not given. Add"),
    (
        at_once(bf16=True),
        "--bf16 needs a GPU that computes in bfloat16, found none. Add --use_cpu to train on the CPU",
    ),
    (at_once(bf16_full_eval=True), "--bf16_full_eval cannot be True here: the library would round the weights that"),
    (at_once(fp16_full_eval=True), "--fp16_full_eval cannot be True here: the library would round the weights that"),
    # the data set
    (at_once(data={"train_split_name": "train"}), "--train_split_name belongs to --dataset_name, which is not given"),
    (at_once(data={"dataset_name": "x/y", "test_file": "t.csv"}), "found both (--test_file). Leave one out."),
    ((DATA_SOURCE, Flags(data=DataArguments(dataset_revision="v1"))), "--dataset_revision belongs to --dataset_name"),
    # the model
    ((MODEL, Flags(ModelArguments(backbone="a", init_from="b"))), "expected --backbone or --init_from, found both"),
    ((MODEL, Flags()), "expected --backbone (a name on the Hub, a folder, or package:NAME), found none."),
    # the Hub
    (at_once(hub_token="hf_secret"), "Log in with `hf auth login`, or set HF_TOKEN."),
    (
        at_once(hub_strategy="end", hub_model_id="a/b"),
        "--hub_model_id needs --push_to_hub. Add it, or leave this out.",
    ),
    (at_once(push_to_hub=True), "--push_to_hub needs --hub_model_id OWNER/NAME, found none."),
    (
        at_once(push_to_hub=True, hub_model_id="a/b", hub_strategy="all_checkpoints"),
        "--hub_strategy all_checkpoints would publish every optimizer",
    ),
    # folds
    (at_once(data={"cv_folds": 1}), "--cv_folds must be 2 or more, got 1."),
    (at_once(data=FOLDS | {"validation_file": "v.csv"}), "--validation_file does not go with --cv_folds, where each"),
    (at_once(data=FOLDS | {"max_eval_samples": 9}), "--max_eval_samples does not go with --cv_folds, where each"),
    (at_once(data=FOLDS, push_to_hub=True, hub_model_id="a/b"), "--push_to_hub does not go with --cv_folds: there is"),
    (at_once(data=FOLDS, calibrate="temperature"), "very rows that a fold predicts"),
    (at_once(data=FOLDS, tune_thresholds=True), "very rows that a fold predicts"),
    (at_once(data=FOLDS, resume_from_checkpoint="last"), "each fold goes on by itself"),
    (at_once(data=FOLDS, hp_search=3), "Search without folds first"),
    (at_once({"layer_pooling": "auto"}, hp_search=3), "--hp_search does not go with --layer_pooling auto: each trial"),
    # seeds
    (at_once(seeds=1), "--seeds must be 2 or more, got 1."),
    (at_once(seeds=1001), "--seeds must be below 1001, got 1001."),
    (at_once(seeds=2, seed=2**32 - 1), "must be below 4294967296; got 2 from 4294967295 on. Begin with a lower one."),
    (at_once(seeds=2, data=FOLDS), "--cv_folds does not go with --seeds: the spread of seeds and that of folds"),
    (at_once(seeds=2, push_to_hub=True, hub_model_id="a/b"), "--push_to_hub does not go with --seeds: there is one"),
    (at_once(seeds=2, resume_from_checkpoint="last"), "each seed goes on by itself"),
    (at_once(seeds=2, hp_search=3), "--hp_search does not go with --seeds: each seed would find other settings"),
    (at_once(EXITS, seeds=2), "--early_exit does not go with --seeds: each model would have exits of its own"),
    # adapters
    (at_once({"lora_rank": 4}), "--lora_rank needs --peft lora"),
    (at_once({"merge": True}), "--merge needs --peft lora"),
    (at_once(LORA | {"freeze_layers": 1}), "--freeze_layers does not go with --peft lora"),
    (at_once(LORA, layerwise_lr_decay=0.9), "--layerwise_lr_decay does not go with --peft lora"),
    (at_once(LORA | {"lora_alpha": 0}), "above 0, and a --lora_dropout of 0 or more and below 1; got 8, 0 and 0.0."),
    (at_once(LORA, push_to_hub=True, hub_model_id="a/b"), "Add --merge --hub_strategy end."),
    (at_once(LORA | {"merge": True}, push_to_hub=True, hub_model_id="a/b"), "Add --merge --hub_strategy end."),
    # the search
    (at_once(hp_space="{}"), "--hp_space belongs to --hp_search, which is not given"),
    (at_once(hp_search=1, resume_from_checkpoint="last"), "--hp_search, whose command goes on by itself"),
    (at_once(hp_search=1, metric_for_best_model="eval_loss"), "needs a metric of the task to judge by"),
    # exits
    (at_once(early_exit_max_drop=0.2), "--early_exit_max_drop belongs to --early_exit, which is not given. Add it"),
    (at_once(early_exit_rule="point"), "--early_exit_rule belongs to --early_exit, which is not given"),
    (at_once({"exit_threshold": 0.9}), "--exit_threshold belongs to --early_exit, which is not given"),
    (at_once(EXITS, early_exit_max_drop=100.0), "--early_exit_max_drop must be below 100, got 100.0."),
    (at_once(EXITS | {"exit_threshold": -0.1}), "--exit_threshold must be 0 or more, got -0.1."),
    (at_once(EXITS | LORA), "--peft does not go with --early_exit: an adapter that is not merged has no place for"),
    (at_once(EXITS, fsdp="full_shard"), "--fsdp does not go with --early_exit: the model is spread over processes."),
    (
        at_once(EXITS, data=FOLDS),
        "--early_exit does not go with --cv_folds: the threshold would be chosen on",
    ),
    (at_once(EXITS | {"exit_threshold": 0.9}, early_exit_rule="point"), "but --exit_threshold names it. Leave one"),
    (
        at_once(EXITS, early_exit_rule="bounded", early_exit_max_drop=0.0),
        "bounded needs an --early_exit_max_drop",
    ),
    (
        at_once(EXITS | {"init_from": "m"}, learning_rate=1e-4),
        "--learning_rate is about training, but --early",
    ),
    (at_once(EXITS | {"init_from": "m"}, do_train=True), "--do_train is about training, but --early_exit with --init"),
    (at_once(EXITS | {"init_from": "m"}, optim="adafactor"), "--optim is about training, but --early_exit with --in"),
    (
        at_once(EXITS | {"init_from": "m", "layers": [1]}),
        "--layers is settled by the model of --init_from.",
    ),
    # the layer report
    (
        at_once(layer_report=True, data=FOLDS),
        "--layer_report does not go with --cv_folds: it is about one model",
    ),
    (at_once(layer_report=True, fsdp="full_shard"), "--layer_report needs a whole model, but --fsdp"),
    (at_once({"init_from": "m"}, layer_report=True, optim="adafactor"), "--optim is about training, but --layer_repo"),
    # with the splits
    (with_splits({"test": "t.csv"}, data=FOLDS), "--cv_folds needs training rows"),
    (with_splits(NO_VALIDATION, data=FOLDS, do_predict=True), "found that do_train is off. Add --do_train."),
    (with_splits(NO_VALIDATION, data=FOLDS, do_eval=False), "found that do_eval is off. Add --do_eval."),
    (with_splits(ALL, data={"group_column": "essay"}), "found neither. Leave it out."),
    (with_splits(TRAIN, data={"group_column": "essay", "validation_size": 0.0}), "found neither. Leave it out."),
    (with_splits(TRAIN, do_predict=True), "--do_predict needs test rows, found none. Name them with --test_file."),
    (with_splits({"test": "t.csv"}, {"init_from": "m"}, do_eval=True), "--do_eval needs validation rows"),
    (with_splits({"test": "t.csv"}), "expected rows to train on, found none."),
    (with_splits({"test": "t.csv"}, {"init_from": "m"}, push_to_hub=True), "--push_to_hub publishes what this run"),
    (with_splits({}, {"init_from": "m"}), "expected rows, found none."),
    (
        with_splits(ALL, eval_steps=50, save_steps=100, **STEPS),
        "expected --eval_steps and --save_steps to be the same, found 50 and 100. Give both the same number",
    ),
    (with_splits(TRAIN, data={"validation_size": 0.0}, eval_strategy="epoch"), "eval_strategy needs validation rows"),
    (with_splits(TRAIN, data={"validation_size": 0.0}, eval_on_start=True), "--eval_on_start needs validation rows"),
    (with_splits(TRAIN, data={"validation_size": 0.0}, early_stopping_patience=2), "needs a best checkpoint to go"),
    (at_once({"init_from": "m"}, **ISSUES), "--find_label_issues does not go with --init_from: a finished model may"),
    (
        at_once({"backbone": "b", "reinit_layers": 1}, **ISSUES, reinit_layers=1),
        "does not go with --reinit_layers, --",
    ),
    (with_splits({"test": "t.csv"}, LORA | {"init_from": "m"}), "--peft lora is for training, found no training rows"),
    (with_splits(ALL, hp_search=1, do_eval=False), "--hp_search needs training and validation rows"),
    (with_splits({"validation": "v.csv"}, EXITS | {"init_from": "m"}), "--early_exit needs training rows, to which"),
    (
        with_splits(NO_VALIDATION, EXITS, {"validation_size": 0.0}),
        "--early_exit needs validation rows, which",
    ),
    (with_splits(ALL, EXITS, do_eval=False), "--early_exit needs validation rows, which"),
    (with_splits(TRAIN, EXITS | {"init_from": "m"}, do_train=False), "--early_exit needs validation rows, which say"),
    (with_splits({"test": "t.csv"}, {"init_from": "m"}, seeds=2), "--seeds trains a model with each seed, found noth"),
    (
        with_splits(ALL, seeds=2, do_predict=True),
        "--seeds trains a model with each seed, found nothing to train.",
    ),
    (with_splits(ALL, layer_report=True, do_eval=False), "--layer_report needs training rows, to which"),
    (with_splits({"validation": "v.csv"}, {"init_from": "m"}, layer_report=True), "one of them is missing. Name them"),
    # with the processes
    (
        with_processes(report_to=["none_such"], loggers=("tensorboard",)),
        "--report_to none_such: no such logger is installed, found tensorboard. Install it",
    ),
    (with_processes(mixed_precision="fp16"), "--fp16 needs a GPU, found none: the library would train in float32."),
    (with_processes(data=FOLDS, processes=2), "--cv_folds runs in one process, found 2. Start it with python alone."),
    (with_processes(seeds=2, processes=2), "--seeds runs in one process, found 2. Start it with python alone."),
    (with_processes(hp_search=1, processes=2), "--hp_search runs in one process, found 2. Start it with python"),
    # with the task
    (with_task(REGRESSION, label_smoothing_factor=0.1), "is for one label a text; this task is regression. Leave"),
    (with_task(MULTI, class_weights="balanced"), "for several, see --tune_thresholds; this task is multi_label"),
    (with_task(REGRESSION, calibrate="temperature"), "--calibrate is for classification"),
    (
        with_task(REGRESSION, model=EXITS),
        "--early_exit is for classification: a text leaves when its",
    ),
    (with_task(SINGLE, 3, tune_thresholds=True), "or for two classes; this task is single_label_classification (outp"),
    (with_task(REGRESSION, **ISSUES), "--find_label_issues goes by the probability of each label, and a number has n"),
    (with_task(REGRESSION, 2, tune_thresholds=True), "--tune_thresholds is for several labels a text"),
    (with_task(SINGLE, regression_loss="smooth_l1"), "--regression_loss is for a regression"),
    (with_task(SINGLE, calibrate="temperature", do_eval=False), "--calibrate is fitted on validation rows"),
    (with_task(SINGLE, label_smoothing_factor=1.0), "must be 0 or more and below 1, got 1.0"),
    (with_task(SINGLE, layerwise_lr_decay=0.0), "--layerwise_lr_decay must be above 0 and at most 1, got 0.0"),
    (
        (WITH_METRICS, Flags(training={"metric_for_best_model": "f2"}, metrics=("f1", "loss"))),
        "--metric_for_best_model must be one of f1, loss, got f2.",
    ),
    # with the layers
    (with_layers(freeze_layers=5), "--freeze_layers must lie in 0..4, the layers there are, got 5."),
    (with_layers(reinit_layers=2, freeze_layers=3), "Freeze fewer layers."),
]
KEPT = [
    at_once(),
    at_once({"init_from": "m", "freeze_layers": 2}, learning_rate=0.0, save_only_model=False),
    at_once(LORA | {"merge": True}, push_to_hub=True, hub_model_id="a/b", hub_strategy="end"),
    at_once(data=FOLDS | {"group_column": "essay"}),
    at_once(seeds=1000, seed=2**32 - 1000, calibrate="temperature", data={"group_column": "essay"}),
    with_splits(ALL, {"init_from": "m"}, seeds=2),
    at_once(
        data={"text_column_delimiter": "\n", "text_column_names": "a, b"}, warmup_steps=2**63 - 1, output_dir="no"
    ),
    at_once(data={"text_column_delimiter": "", "train_file": "数据 1.csv"}, hp_search=1, hp_space="{\n}"),
    at_once({"backbone": "é" * 127}, output_dir="é" * 127),
    at_once(hp_search=1, hp_space="{}", metric_for_best_model="f1_macro"),
    with_splits(TRAIN, data={"group_column": "essay"}, hp_search=1),
    with_splits(ALL, LORA, early_stopping_patience=1),
    with_splits(NO_VALIDATION, data=FOLDS | {"group_column": "essay"}),
    with_splits({"test": "t.csv"}, {"init_from": "m"}),
    with_splits(ALL, eval_steps=50, save_steps=100, load_best_model_at_end=False, **STEPS),
    with_processes(data=FOLDS, hp_search=None, report_to=["tensorboard", "flyte"], loggers=("tensorboard",)),
    with_processes(mixed_precision="fp16", device="cuda"),
    with_processes(mixed_precision="bf16"),
    at_once(bf16=True, use_cpu=True, max_steps=-1, warmup_steps=0.1, eval_steps=1.0, max_grad_norm=0.0),
    at_once(activation_checkpointing=True, activation_checkpointing_kwargs="{}", accelerator_config="file.json"),
    at_once(lr_scheduler_kwargs={"num_cycles": 2}, include_for_metrics=[], label_names=None, seed=0, adam_beta1=0.0),
    with_task(SINGLE, class_weights="balanced", label_smoothing_factor=0.1, calibrate="temperature"),
    with_task(MULTI, tune_thresholds=True, layerwise_lr_decay=0.5),
    with_task(SINGLE, 2, tune_thresholds=True),
    with_task(REGRESSION, regression_loss="smooth_l1"),
    with_layers(freeze_layers=3, reinit_layers=1),
    at_once(EXITS, early_exit_rule="bounded", early_exit_max_drop=2.0),
    at_once(EXITS | LORA | {"merge": True, "exit_threshold": 1.5}, early_exit_max_drop=0.0),
    at_once(EXITS | {"init_from": "m"}, calibrate="temperature", per_device_eval_batch_size=8, do_train=False),
    at_once(EXITS | {"init_from": "m"}, learning_rate=1e-4, num_train_epochs=1.0),
    with_splits(ALL, EXITS | {"init_from": "m"}, do_train=False),
    with_splits(TRAIN, EXITS),  # a tenth is held out
    with_task(MULTI, model=EXITS),
    with_task(MULTI, **ISSUES),
    at_once({"backbone": "b", "reinit_layers": 1}, FOLDS, **ISSUES, reinit_layers=1),  # the folds' own models judge
]
PACKAGES = ("peft", "optuna", "cleanlab")


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    monkeypatch.setattr("lstmpool.training.flags.conditions.is_torch_bf16_gpu_available", lambda: False)


@pytest.mark.parametrize(("broken", "message"), CASES, ids=[message for _, message in CASES])
def test_what_breaks_a_rule_is_told(broken, message):
    with pytest.raises(InputError) as error:
        check(*broken)
    assert message in str(error.value)
    assert "\n" not in str(error.value) and "{flags" not in str(error.value) and "{name" not in str(error.value)


@pytest.mark.parametrize("kept", KEPT)
def test_what_fits_together_passes(kept):
    check(*kept)


@pytest.mark.parametrize(
    ("flags", "package", "extra"),
    [
        (at_once(LORA), "peft", "peft"),
        (at_once(hp_search=1), "optuna", "search"),
        (at_once(**ISSUES), "cleanlab", "cleanlab"),
    ],
)
def test_a_package_that_is_missing_is_asked_for(monkeypatch, flags, package, extra):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=rf'needs the package {package}, .* pip install .* -e "\.\[{extra}\]"'):
        check(*flags)


def test_each_rule_has_a_case():
    named = vars(tables_of_rules) | vars(later_rules)
    tables = [table for name, table in named.items() if name.isupper() and isinstance(table, tuple)]
    rules = {rule.message: rule for table in tables for rule in table if isinstance(rule, Rule)}
    met = {next(rule.message for rule in table if rule.broken(flags)) for (table, flags), _ in CASES}
    left = sorted(rules.keys() - met)
    assert len(left) == len(PACKAGES) and all("which is not installed" in message for message in left)
