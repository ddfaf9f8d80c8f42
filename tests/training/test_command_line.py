import io
import json
import os
import sys
from dataclasses import fields

import pytest
import transformers
from datasets import Dataset, DatasetDict

from lstmpool.fields_lstmpool import MULTI, REGRESSION, SINGLE, TOKEN_POOLINGS
from lstmpool.training.command_line import parse_arguments
from lstmpool.training.errors import InputError
from lstmpool.training.flags.help import library_flags, make_parser
from lstmpool.training.flags.later_rules import WITH_TASK
from lstmpool.training.flags.rules import Flags, check
from lstmpool.training.flags.training_arguments import TrainingArguments
from lstmpool.training.printing import READER_GONE, printing

from ..training_fixtures import run_python


NEEDED = ["--train_file", "train.csv", "--output_dir", "out"]


def parse(*words):
    return parse_arguments(list(words), description="")


@pytest.fixture
def recipe(tmp_path):
    def write(content, name="recipe.yaml"):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return str(path)

    return write


def test_flags_override_the_recipe_and_the_recipe_the_defaults(recipe):
    path = recipe(
        "backbone: b\ntrain_file: a.csv\noutput_dir: out\nlearning_rate: 1e-4\nlayers: [-2, -1]\nseed: 7\n"
        "lstm_bidirectional: false\nlr_scheduler_kwargs: {num_cycles: 2}\n"
    )
    model, data, training, places = parse(path, "--seed", "8", "--train_file=b.csv", "--layers", "1", "2")
    assert (training.seed, data.train_file, model.layers) == (8, "b.csv", [1, 2])
    assert places == {"train": "b.csv"}
    assert (training.learning_rate, model.lstm_bidirectional) == (1e-4, False)  # YAML reads 1e-4 as a string
    assert training.lr_scheduler_kwargs == {"num_cycles": 2}
    assert training.per_device_train_batch_size == 16  # the command's default, where the library's is 8
    assert parse(path)[0].layers == [-2, -1]


def test_files_on_the_command_line_stand_in_for_the_data_set_of_the_recipe(recipe):
    """And a data set for files: a recipe made for one can be run on the other."""
    path = recipe(
        "backbone: b\noutput_dir: out\ndataset_name: owner/rows\ndataset_config_name: some\n"
        "test_split_name: dev\nlabel_column_name: kind\n"
    )
    for words in (["--train_file=a.csv"], ["--train-file", "a.csv"]):
        _, data, _, places = parse(path, *words)
        assert places == {"train": "a.csv"}
        assert (data.dataset_name, data.dataset_config_name, data.label_column_name) == (None, None, "kind")
    with pytest.raises(InputError, match="found both"):
        parse("--backbone=b", "--output_dir=out", "--dataset_name=owner/rows", "--train_file=a.csv")


def test_a_flag_may_be_spelled_in_two_ways(recipe):
    for key in ("tune_threshold", "tune-threshold", "tune_thresholds"):
        text = "backbone: b\noutput_dir: out\ntrain_file: a.csv\nvalidation_file: b.csv\n"
        assert parse(recipe(f"{text}{key}: true\n"))[2].tune_thresholds is True
        assert parse(*NEEDED, f"--{key}")[2].tune_thresholds is True
        assert parse(recipe(f"{text}{key}: true\n"), f"--{key}", "False")[2].tune_thresholds is False
    with pytest.raises(InputError, match="'tune_thresholds' and 'tune_threshold' are the same flag"):
        parse(recipe("tune_thresholds: true\ntune_threshold: true"))


def test_a_data_set_on_the_command_line_stands_in_for_the_files_of_the_recipe(recipe, tmp_path):
    rows = Dataset.from_dict({"text": ["a"], "label": [0]})
    DatasetDict({"train": rows}).save_to_disk(tmp_path / "saved")
    path = recipe("backbone: b\noutput_dir: out\ntrain_file: a.csv\ntest_file: b.csv\n")
    assert parse(path, f"--dataset_name={tmp_path / 'saved'}")[3] == {"train": "train"}


def test_json_recipe_is_the_same_as_yaml_and_as_flags(recipe):
    fields = {"backbone": "b", "train_file": "a.csv", "output_dir": "out", "text_column_names": ["q", "a"]}
    from_json = parse(recipe(fields, "recipe.json"))
    from_yaml = parse(recipe("backbone: b\ntrain_file: a.csv\noutput_dir: out\ntext_column_names: [q, a]\n"))
    from_flags = parse("--backbone=b", "--train_file=a.csv", "--output_dir=out", "--text_column_names=q,a")
    for left, right in ((from_json, from_yaml), (from_yaml, from_flags)):
        assert left[:2] == right[:2]
        assert left[2].to_dict() == right[2].to_dict()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("learnin_rate: 1e-4", "unknown key in the recipe .*'learnin_rate'. Did you mean 'learning_rate'"),
        ("overwrite_output_dir: true", "called 'overwrite' here"),
        ("seed: three", "--seed.*invalid int value: 'three'"),
        ("do_train: perhaps", "expected one of yes/no"),
        ("layers: [1, x]", "--layers.*invalid int value: 'x'"),
        ("token_pooling: men", "--token_pooling.*invalid choice: 'men'"),
        ("- a list", "must hold lines 'flag: value'"),
        ("a: [", "is not valid YAML"),
        ("bf16: false\noutput_dir: out", "expected rows to train on, found none"),
        ("train_file: a.csv", "expected --output_dir"),
        ("do_eval: true\ntrain_file: a.csv\nvalidation_size: 0\noutput_dir: out", "--do_eval needs validation rows"),
        ("eval_strategy: epoch\ntrain_file: a.csv\nvalidation_size: 0\noutput_dir: out", "eval_strategy needs valid"),
        ("push_to_hub: true\ntrain_file: a.csv\noutput_dir: out", "--push_to_hub needs --hub_model_id OWNER/NAME"),
    ],
)
def test_wrong_recipes_are_told_in_one_line(recipe, content, message):
    with pytest.raises(InputError, match=message) as error:
        parse(recipe(content))
    assert "\n" not in str(error.value)


def test_wrong_words_are_told_in_one_line(tmp_path):
    with pytest.raises(InputError, match="unknown flag: 'head_learn_rate'. Did you mean 'head_learning_rate'"):
        parse(*NEEDED, "--head_learn_rate", "1")
    with pytest.raises(InputError, match="a recipe is the first word"):
        parse(*NEEDED, "recipe.yaml")
    with pytest.raises(InputError, match="cannot read"):
        parse(str(tmp_path / "missing.yaml"))
    with pytest.raises(InputError, match="both"):
        parse(*NEEDED, "--dataset_name", str(tmp_path))


def test_what_is_done_follows_from_the_files():
    training = parse(*NEEDED)[2]  # validation rows are held out of the training rows
    assert (training.do_train, training.do_eval, training.do_predict) == (True, True, False)
    training = parse(*NEEDED, "--validation_size", "0")[2]
    assert (training.do_train, training.do_eval, training.do_predict) == (True, False, False)
    assert (training.eval_strategy, training.load_best_model_at_end) == ("no", False)
    training = parse("--init_from=m", "--test_file=t.csv", "--output_dir=out")[2]
    assert (training.do_train, training.do_eval, training.do_predict) == (False, False, True)
    training = parse(*NEEDED, "--validation_file", "v.csv", "--test_file", "t.csv")[2]
    assert (training.do_train, training.do_eval, training.do_predict) == (True, True, True)
    assert (training.eval_strategy, training.load_best_model_at_end) == ("epoch", True)
    training = parse(*NEEDED, "--validation_file", "v.csv", "--eval_strategy=steps", "--eval_steps=5")[2]
    assert (training.save_strategy, training.save_steps, training.load_best_model_at_end) == ("steps", 5, True)
    training = parse(*NEEDED, "--save_strategy=steps", "--save_steps=100")[2]
    assert (training.eval_strategy, training.eval_steps, training.load_best_model_at_end) == ("steps", 100, True)
    training = parse(*NEEDED, "--save_strategy=steps", "--eval_steps=0.1")[2]
    assert (training.eval_steps, training.save_steps, training.load_best_model_at_end) == (0.1, 0.1, True)
    training = parse(*NEEDED, "--eval_strategy=steps", "--logging_steps=50")[2]
    assert (training.eval_steps, training.save_steps) == (50, 50)
    training = parse(*NEEDED, "--test_file", "t.csv", "--do_predict", "False")[2]
    assert (training.do_train, training.do_predict) == (True, False)
    training = parse(*NEEDED, "--init_from=m", "--test_file", "t.csv", "--do_train", "False")[2]
    assert (training.do_train, training.do_eval, training.do_predict) == (False, False, True)  # nothing is held out
    training = parse(*NEEDED, "--eval_strategy=no", "--save_strategy=no")[2]
    assert (training.do_eval, training.load_best_model_at_end) == (True, False)
    training = parse(*NEEDED, "--test_file", "t.csv", "--do_train")[2]
    assert (training.do_train, training.do_predict) == (True, False)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--hub_token", "hf_secret"], "others can read a token in a command. Log in with `hf auth login`"),
        (["--hub_model_id", "a/b"], "--hub_model_id needs --push_to_hub"),
        (["--push_to_hub", "--hub_model_id=a/b", "--hub_strategy=all_checkpoints"], "would publish every optimizer"),
        (["--push_to_hub", "--hub_model_id=a/b", "--hub_always_push"], "hub_always_push cannot be True here"),
        (["--per_device_train_batch_size", "0"], "must be more than 0, got 0"),
        (["--num_train_epochs", "-1"], "must be more than 0, got -1"),
        (["--learning_rate", "nan"], "--learning_rate: expected a finite number"),
        (["--head_learning_rate", "-1"], "--head_learning_rate must be 0 or more, got -1"),
        (["--preprocessing_num_workers", "-1"], "must be more than 0, got -1"),
        (["--early_stopping_patience", "0"], "must be more than 0, got 0"),
        (["--report_to", "none_such"], "no such logger is installed, found .*tensorboard"),
        (["--output_dir="], "expected --output_dir"),
        (["--batch_eval_metrics"], "cannot be True here: metrics such as F1 .* are computed over all rows at once"),
        (["--prediction_loss_only", "True"], "metrics need the predictions"),
        (["--eval_do_concat_batches", "False"], "cannot be False here"),
        (["--dataloader_drop_last"], "would drop rows of an evaluation as well"),
        (["--accelerator_config", "missing.json"], "No such file or directory: 'missing.json'"),
        (
            ["--accelerator_config", '{"nokey": 1}'],
            "--accelerator_config .* unexpected keyword argument 'nokey'.",
        ),
        (["--deepspeed", "nothere.json"], "--deepspeed nothere.json cannot be trained with: .*"),
        (["--tf32", "True"], "--tf32 True cannot be trained with: --tf32 requires Ampere"),
        (["--bf16", "--use_cpu", "--fp16"], "--bf16 True, --fp16 True cannot be trained with: At most one"),
        (["--fp16"], "--fp16 needs a GPU, found none"),
        (["--resume_from_checkpoint="], "--resume_from_checkpoint: expected a value, found an empty one"),
        (["--max_steps", "0"], "--max_steps must be 1 or more, or -1 for no limit, got 0"),
        (["--lr_scheduler_kwargs", "{bad"], "--lr_scheduler_kwargs is not valid JSON"),
        (["--use_liger_kernel"], "Liger has no kernels"),
        (["--greater_is_better", "False"], "--greater_is_better follows from the metric here"),
        (["--init_from", "m", "--do_eval"], "--do_eval needs validation rows, found none"),
        (["--label_names", "stars"], "cannot be .'stars'. here"),
        (["--early_stopping_patience", "2", "--validation_size", "0"], "needs a best checkpoint to go back to"),
        (["--init_from", "m", "--do_train", "False", "--validation_size", "0"], "expected rows, found none"),
        (["--init_from", "m", "--reinit_layers", "1"], "--reinit_layers is settled by the model of --init_from"),
        (["--init_from", "m", "--problem_type", "regression"], "--problem_type is settled by the model"),
        (["--init_from", "m", "--layers", "1"], "--layers is settled by the model of --init_from"),
    ],
)
def test_flags_that_cannot_work_are_refused_at_once(words, message):
    with pytest.raises(InputError, match=message):
        parse(*NEEDED, *words)


def test_where_the_best_model_is_kept_each_evaluation_is_saved():
    by_steps = ["--eval_strategy=steps", "--save_strategy=steps"]
    for evaluated, saved in (("50", "100"), ("0.1", "0.2"), ("100", "50"), ("50", "0.1")):
        words = [*by_steps, f"--eval_steps={evaluated}", f"--save_steps={saved}"]
        with pytest.raises(InputError, match=f"the same, found {evaluated} and {saved}. Give both the same number"):
            parse(*NEEDED, *words)
        training = parse(*NEEDED, *words, "--load_best_model_at_end", "False")[2]
        assert (training.eval_steps, training.save_steps) == (float(evaluated), float(saved))
    assert parse(*NEEDED, "--eval_steps=50")[2].load_best_model_at_end  # which epochs make nothing of
    best = parse(*NEEDED, *by_steps[:1], "--eval_steps=50", "--save_strategy=best", "--load_best_model_at_end")[2]
    assert (best.eval_steps, best.save_strategy, best.load_best_model_at_end) == (50, "best", True)


def test_unquoted_no_in_yaml_means_the_strategy(recipe):
    training = parse(recipe("train_file: a.csv\nvalidation_file: b.csv\noutput_dir: out\nsave_strategy: no"))[2]
    assert (training.save_strategy, training.eval_strategy, training.load_best_model_at_end) == ("no", "epoch", False)


def test_help_explains_what_one_needs_and_names_the_rest(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    text = make_parser("What it does.").format_help()
    for word in (
        "What it does.",
        "--backbone",
        "--head_learning_rate",
        f"--token_pooling {{{','.join(TOKEN_POOLINGS)}}}",
        "model:",
    ):
        assert word in text
    assert "with 90% certainty" in " ".join(text.split())  # which argparse would take for a format
    assert "deepspeed" in text.partition("every other field")[2]
    assert "--head-learning-rate" not in text
    assert all(len(line) <= 100 for line in text.splitlines() if "{" not in line)


def test_the_help_is_that_of_the_arguments_that_a_run_parses():
    """It is made from a table, since their import takes seconds: types, choices and defaults must be the same."""
    made, parsed = make_parser("").format_help(), make_parser("", TrainingArguments).format_help()
    assert sorted(made.splitlines()) == sorted(parsed.splitlines())
    assert library_flags() == [entry.name for entry in fields(transformers.TrainingArguments) if entry.init]


HEAVY = ("torch", "datasets", "pandas", "sklearn", "accelerate", "transformers.training_args", "transformers.trainer")


@pytest.mark.parametrize(
    "command", ["lstmpool.train_trainer", "lstmpool.predict", "lstmpool.compare", "lstmpool.training.publish"]
)
def test_help_imports_nothing_heavy(command, tmp_path):
    code = f"""
import runpy, sys
sys.argv = ["command", "--help"]
try:
    runpy.run_module({command!r}, run_name="__main__")
except SystemExit as stop:
    assert not stop.code
print("imported:", [name for name in {HEAVY} if name in sys.modules])
"""
    done = run_python("-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "usage: " in done.stdout and done.stdout.endswith("imported: []\n")


def test_validation_rows_that_a_data_set_brings_are_left_out_of_folds_and_that_is_said(tmp_path, capsys):
    rows = Dataset.from_dict({"text": ["a"], "label": [0]})
    DatasetDict(dict.fromkeys(("train", "validation", "test"), rows)).save_to_disk(tmp_path / "saved")
    words = [f"--dataset_name={tmp_path / 'saved'}", "--output_dir=out"]
    assert parse(*words, "--cv_folds=5")[3] == {"train": "train", "test": "test"}
    assert f"validation rows of {tmp_path / 'saved'} are not read" in capsys.readouterr().out
    assert parse(*words)[3] == {"train": "train", "validation": "validation", "test": "test"}
    assert capsys.readouterr().out == ""


def test_what_is_done_unasked():
    _, data, training, _ = parse(*NEEDED)
    assert (data.validation_size, training.standardize_targets, training.save_total_limit) == (0.1, True, 1)
    assert (training.learning_rate, training.head_learning_rate, training.layerwise_lr_decay) == (5e-5, 1e-3, 1.0)


def test_parameters_without_a_gradient_are_looked_for_on_request():
    assert parse(*NEEDED)[2].ddp_find_unused_parameters is False
    assert parse(*NEEDED, "--ddp_find_unused_parameters", "True")[2].ddp_find_unused_parameters is True


def test_no_flag_is_of_type_bool():
    assert [action.dest for action in make_parser("", TrainingArguments)._actions if action.type is bool] == []


@pytest.mark.parametrize(
    ("options", "task", "message"),
    [
        ({"label_smoothing_factor": 0.1}, REGRESSION, "--label_smoothing_factor is for one label a text"),
        ({"label_smoothing_factor": 0.1}, MULTI, "this task is multi_label_classification. Leave it out"),
        ({"class_weights": "balanced"}, MULTI, "for several, see --tune_thresholds"),
        ({"calibrate": "temperature", "do_eval": True}, REGRESSION, "--calibrate is for classification"),
        ({"calibrate": "temperature"}, SINGLE, "--calibrate is fitted on validation rows, found none"),
        ({"tune_thresholds": True, "do_eval": True}, SINGLE, "--tune_thresholds is for several labels a text"),
        ({"regression_loss": "smooth_l1"}, SINGLE, "--regression_loss is for a regression"),
        ({"layerwise_lr_decay": 1.5}, SINGLE, "--layerwise_lr_decay must be above 0 and at most 1"),
        ({"layerwise_lr_decay": 0.0}, SINGLE, "--layerwise_lr_decay must be above 0 and at most 1"),
        ({"label_smoothing_factor": 1.0}, SINGLE, "must be 0 or more and below 1, got 1.0"),
    ],
)
def test_what_a_task_cannot_use_is_refused(tmp_path, options, task, message):
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to=[], **options)
    with pytest.raises(InputError, match=message):
        check(WITH_TASK, Flags(training=vars(args), task=task))


def test_every_task_can_use_its_own_flags(tmp_path):
    for task, options in (
        (SINGLE, {"label_smoothing_factor": 0.1, "class_weights": "balanced", "calibrate": "temperature"}),
        (MULTI, {"calibrate": "temperature", "tune_thresholds": True}),
        (REGRESSION, {"regression_loss": "smooth_l1", "layerwise_lr_decay": 0.9}),
    ):
        args = TrainingArguments(str(tmp_path), use_cpu=True, report_to=[], do_eval=True, **options)
        check(WITH_TASK, Flags(training=vars(args), task=task))


def test_live_logs_go_to_tensorboard_where_it_is_installed():
    assert parse(*NEEDED)[2].report_to == ["tensorboard"]
    assert parse(*NEEDED, "--report_to", "none")[2].report_to == []


def test_what_is_trained_is_pushed_and_nothing_else():
    words = ["--push_to_hub", "--hub_model_id=a/b", "--hub_private_repo", "--hub_strategy=checkpoint"]
    training = parse(*NEEDED, *words)[2]
    assert (training.push_to_hub, training.hub_model_id, training.hub_private_repo) == (True, "a/b", True)
    assert training.hub_strategy == "checkpoint"
    with pytest.raises(InputError, match="--push_to_hub publishes what this run trains"):
        parse("--init_from=m", "--test_file=t.csv", "--output_dir=out", *words)


# ----------------------------------------------------------------------------------------------- where the output goes
@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_pipe_whose_reader_is_gone_ends_the_command_quietly(monkeypatch, name):
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stream:
        monkeypatch.setattr(sys, name, stream)
        os.close(reader)
        with pytest.raises(SystemExit) as stopped, printing():
            print("a line", file=stream, flush=True)
        print("what is left raises no more", file=stream, flush=True)
    assert stopped.value.code == READER_GONE


def test_what_is_still_to_be_printed_when_the_reader_goes_is_no_error_either(monkeypatch):
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        with pytest.raises(SystemExit) as stopped, printing():
            print("a line that waits for others")
            os.close(reader)
    assert stopped.value.code == READER_GONE


def test_another_broken_pipe_is_told():
    with pytest.raises(BrokenPipeError, match="of a socket"), printing():
        raise BrokenPipeError("of a socket")


def test_letters_that_the_terminal_lacks_are_escaped(monkeypatch):
    content = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(content, encoding="ascii"))
    with printing():
        print("class 好的")
    assert content.getvalue() == b"class \\u597d\\u7684\n"
