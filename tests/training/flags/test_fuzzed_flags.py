"""What recipes and flags mean: what people read, or an error of one line. First by hand, then all flags."""

import json
import os
import random
import time

import pytest
import torch
from accelerate.state import AcceleratorState

from lstmpool import train_trainer
from lstmpool.training.command_line import parse_arguments
from lstmpool.training.errors import InputError
from lstmpool.training.flags.arguments import MAPS
from lstmpool.training.flags.documents import LARGEST
from lstmpool.training.flags.help import make_parser
from lstmpool.training.flags.training_arguments import TrainingArguments
from lstmpool.training.runs.job import Job

from ...training_fixtures import count_outcomes, save_backbone, sentences, write_csv


NEEDED = "backbone: b\ntrain_file: a.csv\noutput_dir: out\n"


@pytest.fixture
def parse(tmp_path):
    """Parses a recipe of these lines, or of this text or bytes under a name of its own."""

    def call(content, *words, name="recipe.yaml"):
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content, encoding="utf-8")
        return parse_arguments([str(path), *words], description="")

    return call


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("seed: 010", ["--seed=010"]),  # in YAML 1.1, 8
        ("seed: 1_000", ["--seed=1_000"]),
        ("seed: '8'", ["--seed=8"]),
        ("seed: !!int 8", ["--seed=8"]),
        ("learning_rate: 1e-5", ["--learning_rate=1e-5"]),  # in YAML 1.1, a text
        ("learning_rate: 1.0e-5", ["--learning_rate=1.0e-5"]),
        ("num_train_epochs: .5", ["--num_train_epochs=.5"]),
        ("output_dir: 2.50", ["--output_dir=2.50"]),  # in YAML, 2.5
        ("output_dir: 010", ["--output_dir=010"]),
        ("output_dir: 2024-01-01", ["--output_dir=2024-01-01"]),
        ("output_dir: 2024-01-01 10:00:00", ["--output_dir=2024-01-01 10:00:00"]),
        ("output_dir: 1:30", ["--output_dir=1:30"]),
        ("output_dir: 'no'", ["--output_dir=no"]),
        ("output_dir: =", ["--output_dir=="]),
        ("label_column_name: y", ["--label_column_name=y"]),
        ("text_column_names: [q, 2.50]", ["--text_column_names=q,2.50"]),
        ("layers: [-2, -1]", ["--layers", "-2", "-1"]),
        ("layers: -1", ["--layers=-1"]),
        ("layer_cache: no", ["--layer_cache=no"]),
        ("save_strategy: off", ["--save_strategy=no"]),
        ("standardize_targets: off", ["--no_standardize_targets"]),
        ("overwrite: on", ["--overwrite"]),
        ("resume_from_checkpoint: true", ["--resume_from_checkpoint=True"]),
        ("report_to: [none]", ["--report_to=none"]),
        ("max_seq_length: null", []),
        (
            "lr_scheduler_kwargs: {num_cycles: 2, power: 1e-1}",
            ['--lr_scheduler_kwargs={"num_cycles": 2, "power": 0.1}'],
        ),
        ("train-file: b.csv", ["--train_file=b.csv"]),
    ],
)
def test_a_recipe_means_what_a_command_line_means(parse, line, words):
    key = line.partition(":")[0].replace("-", "_")
    others = "".join(f"{other}\n" for other in NEEDED.splitlines() if other.partition(":")[0] != key)
    by_recipe = parse(others + line)
    by_words = parse(others, *words)
    assert by_recipe[:2] == by_words[:2] and by_recipe[3] == by_words[3]
    assert by_recipe[2].to_dict() == by_words[2].to_dict()


def test_numbers_are_what_a_person_reads(parse):
    assert parse(NEEDED + "seed: 010")[2].seed == 10
    assert parse("\ufeff" + NEEDED)[1].train_file == "a.csv"  # as some editors save it
    assert parse(json.dumps({"train_file": "a.csv", "output_dir": "1.0", "seed": 7}), name="r.JSON")[2].seed == 7


YAML = [
    ("seed: 1\nlearning_rate: 1e-5\nseed: 2", "the key 'seed' is given twice, in lines 4 and 6. Leave one out"),
    (
        "head_learning_rate: 1\nhead-learning-rate: 2",
        "'head_learning_rate' and 'head-learning-rate' are the same flag",
    ),
    ("lr_scheduler_kwargs: {a: 1, a: 2}", "the key 'a' is given twice"),
    ("seed: 1:30", "--seed: invalid int value: '1:30'"),
    ("seed: 0x10", "--seed: invalid int value: '0x10'"),
    ("seed: 0o10", "--seed: invalid int value"),
    ("seed: yes", "--seed: invalid int value: 'True'"),
    ("seed: 8.0", "--seed: invalid int value: '8.0'"),
    ("seed: 2024-01-01", "--seed: invalid int value: '2024-01-01'"),
    ("seed: " + "9" * 5000, "--seed: invalid int value"),
    ("seed: " + "9" * 4000, "--seed: expected a finite number of at most 64 bits, got 9999"),
    ("learning_rate: .inf", "--learning_rate.*: invalid float value: '.inf'"),
    ("learning_rate: .nan", "--learning_rate.*: invalid float value: '.nan'"),
    ("weight_decay: 1e999", "--weight_decay: expected a finite number"),
    ("run_name: no", "run_name: expected a text, found what YAML reads as False. Put it in quotes"),
    ("label_column_name: [on, b]", "label_column_name: expected a text, found what YAML reads as True"),
    ("lora_target_modules: [yes]", "lora_target_modules: expected a text"),
    ("resume_from_checkpoint: no", "resume_from_checkpoint: expected a text"),
    ("seed: [1]", "seed: expected one value, found a list"),
    ("text_column_names: [[a], b]", "expected a list of single values, found .'a'. in it"),
    ("text_column_names: [a, null]", "expected a list of single values, found None in it"),
    ("text_column_names: ['a,b', c]", "expected names without commas"),
    ("text_column_names: [a, a]", "--text_column_names: expected names of columns, each once, got a,a"),
    ("lora_target_modules: [query, --overwrite]", "found '--overwrite', which a command takes for a flag"),
    ("layers: []", "--layers: expected at least one argument"),
    ("seed: {a: 1}", "seed: expected a value, found a mapping"),
    ("lr_scheduler_kwargs: {a: 010}", "expected a number such as 8 or 1e-5, found 010. A text needs quotes"),
    ("lr_scheduler_kwargs: {a: [.inf]}", "expected a number such as 8 or 1e-5, found .inf"),
    ("lr_scheduler_kwargs: &a {x: *a}", r"expected a value, found the alias \*a. Write the value out"),
    ("run_name: &a x\nproject: *a", r"found the alias \*a"),
    ("<<: {seed: 1}", "unknown key in the recipe .*: '<<'"),
    ("no: 1", "unknown key in the recipe .*: 'no'"),
    ("1: 2", "unknown key in the recipe .*: '1'"),
    ("? [a, b]\n: 1", "line 4: expected a name before the colon, found a list or a mapping"),
    ("run_name: !!python/name:os.system", "line 4: expected a plain value, found the tag .*python/name:os.system"),
    ("run_name: !!python/object/apply:os.system ['true']", "found the tag .*python/object/apply"),
    ("run_name: !!binary aGFsbG8=", "found the tag .*binary"),
    ("run_name: !!set {a}", "found the tag .*set"),
    ("overwrite: !!bool maybe", "found the tag .*bool"),
    (
        "run_name: 'a\\0b'\nproject: \"a\\0b\"",
        "--project: expected a text that can be printed, found the character .x00",
    ),
    ('run_name: "\\ud800"', "is not valid YAML|found the character"),
    ("run_name: ''", "--run_name: expected a value, found an empty one"),
    ("---\nseed: 1\n---\nseed: 2", "is not valid YAML: expected a single document|is not valid YAML"),
    ("seed:\t1\n\tproject: a", "is not valid YAML: .* line 4"),
    ("a: [", "is not valid YAML"),
    ("lr_scheduler_kwargs: " + "[" * 20_000, "is not valid YAML: maximum recursion depth exceeded"),
    ("lr_scheduler_kwargs: " + "{a: " * 20_000, "is not valid YAML: maximum recursion depth exceeded"),
    ("run_name: " + "x" * LARGEST, "it has more than 100,000 bytes. Is it another file"),
    (b"run_name: \xff", "cannot read .*: 'utf-8' codec can't decode byte 0xff"),
    (b"run_name: a\x00b", "is not valid YAML"),
]
ALONE = [
    ("", "must hold lines 'flag: value', found nothing"),
    ("# nothing", "found nothing"),
    ("just words", "found a single value"),
    ("- a list", "found a list"),
    ("text,label\na,b\n", "found a single value"),
    ("backbone: b".encode("utf-16"), "cannot read .*: 'utf-8' codec can't decode"),
]
JSON = [
    ('{"seed": 1, "seed": 2}', "the key 'seed' is given twice. Leave one out"),
    ('{"lr_scheduler_kwargs": {"a": 1, "a": 2}}', "the key 'a' is given twice"),
    ('{"learning_rate": NaN}', "is not valid JSON: expected a finite number, found NaN"),
    ('{"learning_rate": -Infinity}', "expected a finite number, found -Infinity"),
    ('{"seed": ' + "9" * 5000 + "}", "--seed: invalid int value"),
    ('{"seed": true}', "--seed: invalid int value: 'True'"),
    ('{"seed": 1.0}', "--seed: invalid int value: '1.0'"),
    ('{"output_dir": false}', "output_dir: expected a text"),
    ('{"output_dir": "a\\u0000"}', "--output_dir: expected a text that can be printed"),
    ('{"output_dir": "\\ud800"}', "--output_dir: expected a text that can be printed"),
    ('{"seed": ' + "[" * 50_000, "is not valid JSON: maximum recursion depth exceeded"),
    ("[1]", "found a list"),
    ("null", "found nothing"),
    ("3", "found a single value"),
    ("", "is not valid JSON"),
    ('{"seed": 1,}', "is not valid JSON"),
]


def refused(parse, message, content, **options):
    began = time.process_time()
    with pytest.raises(InputError, match=message) as error:
        parse(content, **options)
    assert "\n" not in str(error.value) and len(str(error.value)) < 1600
    assert time.process_time() - began < 10  # seconds


def short(value):
    return repr(value)[:40]


@pytest.mark.parametrize(("content", "message"), YAML, ids=short)
def test_a_recipe_that_could_mean_two_things_is_refused(parse, content, message):
    whole = NEEDED.encode() + content if isinstance(content, bytes) else NEEDED + content
    refused(parse, message, whole)


@pytest.mark.parametrize(("content", "message"), ALONE, ids=short)
def test_another_kind_of_file_is_refused(parse, content, message):
    refused(parse, message, content)


@pytest.mark.parametrize(("content", "message"), JSON, ids=short)
def test_a_recipe_of_json_is_read_as_strictly(parse, content, message):
    refused(parse, message, content, name="recipe.json")


def test_billions_of_values_in_a_few_lines_are_refused_at_once(parse):
    lines = ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30)]
    refused(parse, r"found the alias \*a0", "\n".join(lines))


@pytest.mark.parametrize("name", ["", "a\0b", "caf\udce9.yaml", "x" * 300, ".", "/dev/zero", "missing.yaml"])
def test_what_is_no_recipe_file_is_told(name):
    with pytest.raises(InputError, match="expected a recipe .* as the first word, cannot read"):
        parse_arguments([name], description="")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ['--lr_scheduler_kwargs={"a": 1, "a": 2}'],
            "--lr_scheduler_kwargs is not valid JSON: the key 'a' is given twice",
        ),
        (['--lr_scheduler_kwargs={"a": NaN}'], "expected a finite number, found NaN"),
        (['--accelerator_config={"a": ' + "[" * 50_000], "--accelerator_config is not valid JSON: maximum recursion"),
        (['--fsdp_config={"a": ' + "9" * 5000 + "}"], "--fsdp_config: expected a number such as 8"),
        (["--deepspeed={a: 1}"], "--deepspeed is not valid JSON"),
        (["--lr_scheduler_kwargs=3"], "--lr_scheduler_kwargs must be a JSON object"),
        (["--output_dir=--"], "--output_dir: expected a value, found '--'"),
        (["--layers=--"], "--layers: expected a value, found '--'"),
        (["--lear", "1"], "unknown flag: 'lear'"),
        (["--seed", "1" * 5000], "--seed: invalid int value"),
        (["--seed", "1" * 4000], "--seed: expected a finite number of at most 64 bits, got 1111"),
        (["--text_column_names", "text,text"], "--text_column_names: expected names of columns, each once"),
        (["--output_dir", "x" * 256], "--output_dir x+ cannot be used: a name of 256 bytes"),
        (["--train_file", ""], "--train_file: expected a value, found an empty one"),
        (["--dataset_name", ""], "--dataset_name: expected a value, found an empty one"),
        (["--backbone", ""], "--backbone: expected a value, found an empty one"),
        (["--hp_search=1", "--hp_space="], "--hp_space: expected a value, found an empty one"),
    ],
    ids=short,
)
def test_words_are_read_as_strictly(parse, words, message):
    with pytest.raises(InputError, match=message):
        parse(NEEDED, *words)


@pytest.mark.parametrize(
    ("flag", "needed"), [("train_file", os.R_OK), ("dataset_name", os.R_OK | os.X_OK), ("output_dir", os.W_OK)]
)
def test_what_we_may_not_read_or_write_is_told(tmp_path, monkeypatch, flag, needed):
    path = tmp_path / flag
    path.write_text("") if flag == "train_file" else path.mkdir()
    monkeypatch.setattr(os, "access", lambda asked, mode: str(asked) != str(path) or not mode & needed)
    with pytest.raises(InputError, match=f"--{flag} .* cannot be used: permission denied"):
        parse_arguments(["--output_dir=out", f"--{flag}={path}"], description="")


def test_flags_that_take_a_mapping_are_those_of_the_library():
    assert set(MAPS) == {*TrainingArguments._VALID_DICT_FIELDS, "hp_space"}


# ---------------------------------------------------------------------------------------------- every flag, odd values
VALUES = "-1 0 1 1.5 nan inf 1e400 1e-400 0x10 1_0 \u0663 no True None [] {} { - -- ~ ../.. . /dev/null".split()
VALUES += "train.csv train.csv/x a,a text,label , http://a.b/c \u597d package: package:os last \udce9".split()
VALUES += ["", " ", "a\0b", "a\nb", "\x1b[2J", "9" * 30, "9" * 4000, "9" * 5000, "x" * 300, "x" * 5000, "a/" * 3000]
VALUES += ['{"a": 1}', '{"learning_rate": [1e-5, "log"]}', '{"a": ' + "[" * 5000]
WRITTEN = (
    "~ 010 1:30 1_000 .inf .nan 1e-5 no 'no' on 2024-01-01 [] [1] [[a]] [null] [--overwrite] {} *a = << '".split()
)
WRITTEN += ["", "[a, a]", "{a: 1}", "{a: 010}", "{a: {a: [x]}}", "&a [*a]", "!!python/none x", "!!binary aGFs", "!x y"]
WRITTEN += ["|\n  a\n  b", '"\\0"', "? a", "[", "-", "@a", "`a", "1\nseed: 2\nseed: 3"]
FILES = ["train_file", "validation_file", "test_file"]
BASE = {"backbone": "backbone", "output_dir": "out", "lstm_hidden_size": "4", "use_cpu": "True", "report_to": "none"}
BASE |= {name: name.replace("_file", ".csv") for name in FILES}
BESIDE = {  # beginning of a flag -> flags that it needs, to be looked at; None: flags that it does not go with
    "lora_": {"peft": "lora"},
    "merge": {"peft": "lora"},
    "hp_": {"hp_search": "1"},
    "init_from": {"backbone": None, "lstm_hidden_size": None},
    "dataset_": dict.fromkeys(FILES, None),
    "cv_folds": {"validation_file": None},
    "shuffle_seed": {"validation_file": None, "cv_folds": "2"},
    "validation_size": {"validation_file": None},
    "seeds": {"seed": "4294967290"},
    "group_column": {"validation_file": None},
}
FLAGS = [action.dest for action in make_parser("", TrainingArguments)._actions if action.nargs != 0]


@pytest.fixture
def run_until_weights(tmp_path, monkeypatch):
    """The command, in this process, up to where it has read all but the weights. It leaves the process as it was."""
    save_backbone(tmp_path / "backbone")
    for name, n in (("train", 12), ("validation", 6), ("test", 3)):
        write_csv(
            tmp_path / f"{name}.csv", {"text": sentences(n), "label": ["yes" if i % 2 else "no" for i in range(n)]}
        )
    monkeypatch.chdir(tmp_path)

    class Reached(Exception):
        pass

    def stop(job):
        raise Reached

    monkeypatch.setattr(Job, "encode", stop)
    environment = dict(os.environ)

    def run(*words):
        try:
            train_trainer.run(*parse_arguments(list(words), description=""), command=list(words))
        except Reached:
            pass
        finally:
            os.environ.clear()
            os.environ.update(environment)

    yield run
    torch.use_deterministic_algorithms(False)
    AcceleratorState._reset_state(True)


def settings_beside(name):
    settings = dict(BASE)
    for beginning, others in BESIDE.items():
        if name.startswith(beginning):
            settings |= others
    settings.pop(name, None)
    return {key: value for key, value in settings.items() if value is not None}


def flag_cases(run):
    """Each flag with each value, on a command line."""
    for name in FLAGS:
        words = [f"--{key}={value}" for key, value in settings_beside(name).items()]
        for value in VALUES:
            yield f"--{name}={value[:30]!r}", lambda words=(*words, f"--{name}={value}"): run(*words)


def recipe_cases(run, folder):
    """Each flag with each text behind its colon, in a recipe."""
    path = folder / "fuzzed.yaml"

    def run_recipe(text):
        path.write_text(text, encoding="utf-8")
        run(str(path))

    for name in FLAGS:
        lines = "".join(f"{key}: {value}\n" for key, value in settings_beside(name).items())
        for value in WRITTEN:
            yield f"{name}: {value!r}", lambda text=f"{lines}{name}: {value}\n": run_recipe(text)


def check_outcomes(outcomes, cases):
    tracebacks = [name for name in outcomes if name not in ("clear", "accepted", "traceback")]
    assert not tracebacks, tracebacks
    assert outcomes["clear"] + outcomes["accepted"] == len(cases)
    assert outcomes["clear"] > len(cases) / 3 and outcomes["accepted"] > len(cases) / 20


def test_no_flag_and_no_recipe_ends_in_a_traceback(run_until_weights, tmp_path):
    cases = [*flag_cases(run_until_weights), *recipe_cases(run_until_weights, tmp_path)]
    cases = random.Random(0).sample(cases, 600)
    check_outcomes(count_outcomes("600 recipes and flags", cases), cases)


@pytest.mark.slow
def test_no_flag_at_all_and_no_recipe_ends_in_a_traceback(run_until_weights, tmp_path):
    cases = [*flag_cases(run_until_weights), *recipe_cases(run_until_weights, tmp_path)]
    check_outcomes(count_outcomes(f"{len(cases):,} recipes and flags", cases), cases)
