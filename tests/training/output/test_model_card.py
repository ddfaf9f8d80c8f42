"""The model card, and names that would act in it. Where a Markdown library is installed, it reads the card."""

from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from lstmpool.fields_lstmpool import DEFAULTS
from lstmpool.training.evaluation.by_class import ByClass
from lstmpool.training.flags.arguments import DataArguments
from lstmpool.training.flags.training_arguments import TrainingArguments
from lstmpool.training.model.backbone import Backbone
from lstmpool.training.output import markdown
from lstmpool.training.output.model_card import CardContents, model_card
from lstmpool.training.output.terminal import describe_best
from lstmpool.training.tasks.single_label import SingleLabel

from ...conftest import tiny_config


TABLE = [["split", "model", "accuracy"], ["test", "lstm over 4 layers", "0.750 [0.700, 0.800]"]]
TEXTS = {"tokens": {"median": 5.5, "longest": 9}, "truncated": 0.25, "labels": {"no": 3, "yes": 1}}
DATA = {name: {"source": f"{name}.csv", "rows": 4, **TEXTS} for name in ("train", "validation", "test")}


def card(
    folder,
    on_hub=True,
    data=DATA,
    learned=None,
    command=(),
    fields=(),
    name="mine",
    rows=None,
    results=None,
    caveats=(),
    by_class=None,
    contrastive_steps=0,
    pooling_choice=None,
    exits=None,
    **options,
):
    """A card of a made-up run, and its header. `rows` are the arguments that say where its rows came from."""
    fields = {"num_labels": 2, "id2label": {0: "no", 1: "yes"}} | dict(fields)
    measured = [name for name in data if name != "train" and data[name]["labels"]]
    options = {"do_train": True, "eval_strategy": "epoch", "save_strategy": "epoch", **options}
    options = {"load_best_model_at_end": True, "metric_for_best_model": "accuracy", **options}
    args = TrainingArguments(str(folder), use_cpu=True, report_to=[], learning_rate=2e-5, **options)
    text = model_card(
        CardContents(
            name=name,
            config=tiny_config(**fields),
            args=args,
            backbone=Backbone("--backbone", "/home/me/bert", "owner/bert", on_hub, {}),
            data=data,
            max_seq_length=128,
            best="Epoch 2 was kept.",
            table=TABLE,
            learned=learned or {},
            plots=["confusion_matrix.png"],
            snippet=["print(1)"],
            command=list(command),
            data_args=DataArguments(**(rows or {})),
            results=dict.fromkeys(measured, {}) if results is None else results,
            caveats=list(caveats),
            by_class=by_class,
            contrastive_steps=contrastive_steps,
            pooling_choice=pooling_choice,
            exits=exits,
        )
    )
    return text, yaml.safe_load(text.split("\n---\n")[0])


def test_the_header_claims_what_is_known(tmp_path):
    assert card(tmp_path)[1]["base_model"] == "owner/bert"
    text, header = card(tmp_path, on_hub=False, fields={"problem_type": "regression"})
    assert "base_model" not in header and header["tags"] == ["lstmpool", "text-regression"]
    assert "Targets (2): `no`, `yes`" in text and "| loss | mse |" in text
    assert "| loss |" not in card(tmp_path)[0]


SETS = {name: {"source": f"nyu-mll/glue {name}", "rows": 4, **TEXTS} for name in ("train", "validation", "test")}
ON_HUB = {"dataset_name": "nyu-mll/glue", "dataset_config_name": "mrpc", "dataset_revision": "v1"}
RESULTS = {"validation": {"accuracy": 0.5}, "test": {"accuracy": 0.75, "f1_macro": 0.25, "mcrmse": 9.0, "ece": 9.0}}


def test_results_on_a_split_of_a_data_set_on_the_hub_are_in_the_header(tmp_path):
    header = card(tmp_path, data=SETS, rows=ON_HUB, results=RESULTS)[1]
    assert header["datasets"] == ["nyu-mll/glue"] and "model_name" not in header
    (index,) = header["model-index"]
    dataset = {"type": "nyu-mll/glue", "name": "nyu-mll/glue", "config": "mrpc", "revision": "v1", "split": "test"}
    macro = {"type": "f1", "name": "f1_macro", "value": 0.25, "args": {"average": "macro"}}
    assert index == {
        "name": "mine",
        "results": [
            {
                "task": {"type": "text-classification"},
                "dataset": dataset,
                "metrics": [{"type": "accuracy", "name": "accuracy", "value": 0.75}, macro],
            }
        ],
    }


def test_the_header_has_the_results_with_exits_and_the_classes_those_of_the_whole_model(tmp_path, monkeypatch):
    monkeypatch.setattr("lstmpool.training.output.model_card._exits", lambda run: {})
    exits = SimpleNamespace(is_on=True, answers=SimpleNamespace(results={"test": {"accuracy": 0.5, "roc_auc": 0.625}}))
    by_class = ByClass.of(SingleLabel(["no", "yes"]), np.array([[2.0, 0.0], [0.0, 1.0]]), np.array([0, 1]))
    found = {"data": SETS, "rows": ON_HUB, "results": {"test": {"accuracy": 0.75, "roc_auc": 0.875}}}
    text, header = card(tmp_path, by_class=by_class, exits=exits, **found)
    assert header["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.5
    assert "ROC AUC: 0.875." in text
    exits.is_on = False
    header = card(tmp_path, by_class=by_class, exits=exits, **found)[1]
    assert header["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.75


def test_a_regression_is_told_by_the_names_of_the_hub_and_without_what_is_no_number(tmp_path):
    data = {"validation": SETS["validation"] | {"source": "nyu-mll/glue dev"}}
    results = {"validation": {"mse": 0.5, "mae": 0.25, "pearson": float("nan"), "spearman": 0.125}}
    rows = ON_HUB | {"validation_split_name": "dev"}
    header = card(tmp_path, data=data, rows=rows, results=results, fields={"problem_type": "regression"})[1]
    (of_split,) = header["model-index"][0]["results"]
    assert of_split["dataset"]["split"] == "dev" and "datasets" not in header  # nothing was trained
    assert [(of["type"], of["value"]) for of in of_split["metrics"]] == [
        ("mse", 0.5),
        ("mae", 0.25),
        ("spearmanr", 0.125),
    ]


@pytest.mark.parametrize(
    ("rows", "source"),
    [
        pytest.param({"test_file": "test.csv"}, "test.csv", id="a file has no name that others can look up"),
        pytest.param(ON_HUB | {"max_predict_samples": 3}, "nyu-mll/glue test", id="a part of the split"),
        pytest.param(ON_HUB, "10% of nyu-mll/glue test", id="rows held out"),
        pytest.param({"dataset_name": "a_folder"}, "a_folder test", id="a folder is read before the Hub is asked"),
    ],
)
def test_results_on_other_rows_are_in_the_table_alone(tmp_path, monkeypatch, rows, source):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a_folder").mkdir()
    data = SETS | {"test": SETS["test"] | {"source": source}}
    text, header = card(tmp_path, data=data, rows=rows, results=RESULTS)
    assert "model-index" not in header and "model_name" not in header
    assert header.get("datasets") == (["nyu-mll/glue"] if "dataset_config_name" in rows else None)
    assert "| test | lstm over 4 layers | 0.750 [0.700, 0.800] |" in text


def test_no_name_breaks_the_header_or_is_read_as_a_template(tmp_path):
    name, label = 'a: "b" #c\n---\nlicense: mit', "{{ 7 * 7 }} {% if %}"
    fields = {"id2label": {0: label, 1: "---"}}
    text, header = card(tmp_path, name=name, data=SETS, rows=ON_HUB, results=RESULTS, fields=fields)
    assert header["model-index"][0]["name"] == name and "license" not in header
    assert f"Labels (2): `{label}`, `---`" in text


def test_it_shows_results_plots_and_data(tmp_path):
    text = card(tmp_path, data=DATA | {"test": DATA["test"] | {"also_in_train": 2}})[0]
    for line in (
        "| test | lstm over 4 layers | 0.750 [0.700, 0.800] |",
        "![confusion matrix](confusion_matrix.png)",
        "| train | `train.csv` | 4 | 5.5 | 25.0% |  | no 3, yes 1. |",
        "| test | `test.csv` | 4 | 5.5 | 25.0% | 2 | no 3, yes 1. |",
    ):
        assert line in text.splitlines()
    assert "Epoch 2 was kept. Validation rows chose the epoch" in text
    assert "chose the epoch" not in card(tmp_path, data={"train": DATA["train"]})[0]
    assert "chose the epoch" not in card(tmp_path, load_best_model_at_end=False)[0]
    searched = card(tmp_path, hp_search=3)[0]
    assert "at its end. Validation rows also chose the rates and the like, by --hp_search 3. Brackets" in searched


def test_what_was_learnt_is_shown_on_rows_that_it_was_not_fitted_on(tmp_path):
    effect = {"validation": {"before": {"ece": 0.5}, "after": {"ece": 0.1}}}
    effect["test"] = {"before": {"ece": 0.4}, "after": {"ece": 0.2}}
    learned = {"temperature": 1.5, "calibration": effect}
    text = card(tmp_path, learned=learned)[0]
    assert "temperature of 1.500" in text and "On test:" in text and "| ece | 0.4000 | 0.2000 |" in text
    unlabelled = DATA | {"test": DATA["test"] | {"labels": None}}
    text = card(tmp_path, learned=learned, data=unlabelled)[0]
    assert "On validation:" in text and "| ece | 0.5000 | 0.1000 |" in text
    thresholds = {"thresholds": {"test": {"at_half": {"f1": 0.5}, "at_thresholds": {"f1": 0.75}}}}
    assert "bias was moved" not in card(tmp_path, learned=thresholds)[0]  # measured, but not folded
    folded = thresholds | {"folded_thresholds": [0.0]}
    text = card(tmp_path, learned=folded, fields={"problem_type": "multi_label_classification"})[0]
    assert "is the threshold that gave each label's best F1 on validation" in text and "| f1 | 0.500 | 0.750 |" in text
    folded["thresholds"]["probabilities"] = [0.75, 0.25]
    text = card(tmp_path, learned=folded, fields={"id2label": {0: "no", 1: "a|b"}})[0]
    assert (
        "The classifier's bias was moved so that a score of 0.5 is the threshold that gave the best macro F1 on "
        "validation: before, it was a score of 0.250 for `a|b`. Scores are no longer plain probabilities. On test:"
    ) in text and "| f1 | 0.500 | 0.750 |" in text


def test_classes_and_confused_pairs_are_told_by_escaped_names(tmp_path):
    # class 0 is taken for class 13 in one of its two rows, class 2 has no row
    names = ["a|b", *(f"label {i}" for i in range(1, 13)), "<c>"]
    true = np.array([0, *(i for i in range(14) if i != 2)])
    predicted = np.where(np.arange(14) == 0, 13, true)
    by_class = ByClass.of(SingleLabel(names), np.eye(14)[predicted], true)
    text = card(tmp_path, fields=labels_of(names), by_class=by_class, results={"test": {"accuracy": 13 / 14}})[0]
    lines = text.splitlines()
    start = lines.index("### By class, on test")
    assert lines[start + 2 : start + 6] == [
        "| class | precision | recall | F1 | rows |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| `a\\|b` | 1.000 | 0.500 | 0.667 | 2 |",
        "| label 1 | 1.000 | 1.000 | 1.000 | 1 |",
    ]
    assert "Classes without a row in test, which are left out here: 1." in lines
    start = lines.index("### Most often confused, on test")
    assert lines[start + 2 : start + 6] == [
        "| true | predicted | rows | of |",
        "| --- | --- | ---: | ---: |",
        "| `a\\|b` | `<c>` | 1 | 2 |",
        "",
    ]
    assert "By class" not in card(tmp_path)[0] and "confused" not in card(tmp_path)[0]


@pytest.mark.parametrize(
    ("options", "row"),
    [
        ({}, "learning rate, new layers | 0.001"),
        ({"head_learning_rate": None}, "learning rate, new layers | 2e-05"),
        ({"head_learning_rate": 0.0}, "learning rate, new layers | 0"),
        ({"layerwise_lr_decay": 0.9}, "rate of a layer, times that above | 0.9"),
        ({"per_device_train_batch_size": 8, "gradient_accumulation_steps": 3}, "batch | 24"),
        ({"max_steps": 70}, "epochs | 70 steps"),
        ({"num_train_epochs": 2.5}, "epochs | 2.5"),
        ({"bf16": True}, "precision | bf16"),
        ({"class_weights": "balanced"}, "classes weighted | balanced"),
        ({"label_smoothing_factor": 0.1}, "label smoothing | 0.1"),
    ],
)
def test_the_settings_are_those_of_the_run(tmp_path, options, row):
    assert f"| {row} |" in card(tmp_path, **options)[0].splitlines()


def test_texts_that_were_compared_first_are_told(tmp_path):
    assert "| texts compared first | 100 steps |" in card(tmp_path, contrastive_steps=100)[0].splitlines()
    assert "texts compared" not in card(tmp_path)[0]


def test_what_was_tried_for_the_layer_pooling_is_told(tmp_path):
    tried = [("last", [3], 0.75), ("gru", [1, 2, 3, 4], float("nan"))]
    tried = [{"layer_pooling": name, "layers": layers, "score": score} for name, layers, score in tried]
    choice = {"metric": "f1_macro", "on": "validation", "rows": 300, "tried": tried}
    text = card(tmp_path, pooling_choice=choice)[0]
    assert "and took the best on 300 validation rows. So its number here is somewhat too good. These rows also" in text
    table = ["| layer pooling | macro F1 |", "| --- | ---: |", "| last on layer 3 | 0.750 |", "| gru | undefined |"]
    assert "\n\n## Layer pooling\n\n" in text and "\n\n" + "\n".join(table) + "\n\n## Data\n" in text
    last_step = {"load_best_model_at_end": False}
    assert "also chose the epoch" not in card(tmp_path, pooling_choice=choice, **last_step)[0]
    folds = card(tmp_path, pooling_choice=choice | {"on": "train", "rows": 1})[0]
    assert "took the best on 1 training row, held out in turn. So" in folds and "also chose" not in folds
    assert "## Layer pooling" not in card(tmp_path)[0]


def test_where_nothing_was_measured_that_is_said_in_place_of_a_table(tmp_path):
    text = card(tmp_path, data={"train": DATA["train"]})[0]
    assert "## Results\n\nNothing was measured: no validation or test row had a label.\n\nEpoch 2 was kept.\n" in text
    assert "Brackets" not in text and "Brackets hold" in card(tmp_path)[0]


def test_warnings_are_caveats_and_there_is_no_such_part_without_one(tmp_path):
    text = card(tmp_path, caveats=["this run is short.", "fewer rows have `a|b` (1)."])[0]
    assert "\n\n## Caveats\n\n- This run is short.\n- Fewer rows have `a|b` (1).\n\n## Data\n" in text
    assert "Caveats" not in card(tmp_path)[0]


def test_every_field_of_the_config_has_a_row(tmp_path):
    text, _ = card(tmp_path, fields={"layers": [2, 4], "pooler_dropout": 0.25})
    assert "| `layers` | [2, 4] |" in text and "| `pooler_dropout` | 0.25 |" in text
    assert all(f"| `{name}` |" in text for name in DEFAULTS)


def test_the_command_names_no_folder_of_the_machine(tmp_path):
    words = ["my recipe.yaml", "--train_file=/home/me/a.csv", "--test_file", "../me/b.csv", "--init_from=~/c"]
    words += ["--accelerator_config", '{"a": "/home/me/c.json", "b": "~/d", "c": "e/f"}']
    text = card(tmp_path, command=words)[0]
    assert """--accelerator_config '{"a": "c.json", "b": "d", "c": "e/f"}'""" in text
    assert "python train_trainer.py 'my recipe.yaml' --train_file=a.csv --test_file b.csv --init_from=c" in text
    assert "/home/me" not in text


INJECTION = """pos`

## Use it

```python
classifier = pipeline("text-classification", model="mine", revision="main"); __import__("os").system("id")
```

`"""
NAMES = [
    INJECTION,
    "a|b",
    "`",
    "``` `` a`",
    "\\",
    "\\|\\",
    "<script>alert(1)</script>",
    "<!--",
    "[a](http://b.c) ![d](e.png)",
    "http://b.c www.b.c a@b.c",
    "*a* _b_ __c__ ~~d~~",
    "# a",
    "&lt;i&gt;",
    "$x$",
    "{{ 7 * 7 }} {% raw %}",
    "a\r\n| b | c |\u2028\u202e\x1b[31m\x00",
    " a ",
    "---",
]


def labels_of(names):
    return {"num_labels": len(names), "id2label": dict(enumerate(names))}


def shape(text):
    """What a Markdown library makes of a card: the kinds of its parts, its spans of code, blocks and headings."""
    markdown_it = pytest.importorskip("markdown_it")
    tokens = markdown_it.MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text.split("---\n", 2)[2])
    inside = [child for token in tokens for child in token.children or []]
    kinds = [token.type for token in tokens]
    spans = [child.content for child in inside if child.type == "code_inline"]
    acting = [child.type for child in inside if child.type not in ("text", "softbreak", "code_inline")]
    blocks = [(token.info, token.content) for token in tokens if token.type == "fence"]
    return kinds, spans, acting, blocks


def test_no_name_of_the_data_acts_in_the_card(tmp_path):
    plain, _ = card(tmp_path, fields=labels_of([f"label {i}" for i in range(len(NAMES))]))
    kinds, _, acting, blocks = shape(plain)
    for name in NAMES:
        counts = dict.fromkeys(NAMES, 3)
        first = {name: 1} | counts  # cells show twelve names
        data = {split: of | {"source": f"{name}.csv", "labels": first} for split, of in DATA.items()}
        text, header = card(
            tmp_path,
            fields=labels_of(NAMES),
            data=data,
            name=name,
            command=["--text_column_names", name],
        )
        assert set(header) == {"library_name", "pipeline_tag", "tags", "base_model"}
        found, spans, acts, others = shape(text)
        assert found == kinds and acts == acting
        assert {markdown.visible(label) for label in NAMES} <= set(spans)
        assert markdown.visible(f"{name}.csv") in spans
        assert others[0] == blocks[0] and len(others) == len(blocks)
        assert text.isprintable() is False and all(line.isprintable() for line in text.splitlines())


def test_the_header_is_yaml_whatever_the_names_are(tmp_path):
    for name in NAMES:
        rows = ON_HUB | {"dataset_config_name": name}
        header = card(tmp_path, name=name, data=SETS, rows=rows, results=RESULTS)[1]
        (index,) = header["model-index"]
        assert index["name"] == name and index["results"][0]["dataset"]["config"] == name


def kept(log, step, metric):
    """What is said of a run of 4 epochs and 40 steps with such a log."""
    state = SimpleNamespace(
        best_model_checkpoint="there",
        best_global_step=step,
        best_metric=metric,
        epoch=4,
        global_step=40,
        log_history=log,
    )
    args = SimpleNamespace(
        do_train=True, load_best_model_at_end=True, metric_for_best_model="accuracy", greater_is_better=True
    )
    return describe_best(SimpleNamespace(state=state, args=args), {"accuracy": "accuracy"})


def test_the_run_says_which_stage_was_kept_only_if_the_first_was_measured_on_validation():
    start, later = {"step": 0, "start": {"accuracy": 0.7}}, [{"step": 20, "eval_accuracy": 0.8}]
    later.append({"step": 40, "eval_accuracy": 0.9})
    measured = {"step": 0, "eval_accuracy": 0.75}
    best = "Stage 2 was kept, at epoch 4: validation accuracy 0.900, 0.750 after stage 1."
    assert kept([start, measured, *later], 40, 0.9) == best
    worse = {"step": 0, "eval_accuracy": 0.95}
    first = "Stage 1 was kept: validation accuracy 0.950; training everything from there gave 0.900 at best."
    assert kept([start, worse, *later], 0, 0.95) == first
    # of many rows, the first stage has read some, and is not among those that may be kept
    assert kept([start, *later], 40, 0.9) == "Epoch 4 was kept: validation accuracy 0.900."
    # --eval_on_start in a run of one stage
    assert kept([measured, *later], 40, 0.9) == "Epoch 4 was kept: validation accuracy 0.900."
