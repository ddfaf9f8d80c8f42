"""Rows that were predicted wrongly, in errors.csv and in the terminal; and names and texts in Markdown."""

import csv

import numpy as np
import pytest

from lstmpool.training.data.rows import Split
from lstmpool.training.evaluation.label_issues import LabelIssues
from lstmpool.training.evaluation.results import Evaluation
from lstmpool.training.flags.arguments import TrainingFields
from lstmpool.training.output import markdown, wrong_rows
from lstmpool.training.output.wrong_rows import errors_of, label_issues_line, label_issues_of, shown_errors
from lstmpool.training.tasks.multi_label import MultiLabel
from lstmpool.training.tasks.regression import Regression
from lstmpool.training.tasks.single_label import SingleLabel


def of_splits(task, **by_split):
    """The evaluation and the splits of `name=(ids, texts, logits, labels)`; labels may be None."""
    splits, logits, targets = {}, {}, {}
    for name, (ids, texts, values, labels) in by_split.items():
        pairs = None
        if isinstance(texts[0], tuple):
            texts, pairs = map(list, zip(*texts, strict=True))
        splits[name] = Split(f"{name}.csv", texts, pairs, labels, ids)
        logits[name] = np.array(values)
        if labels is not None:
            targets[name] = np.array(labels)
    return Evaluation(task, logits, targets, {}, {}, {}), splits


def read(writers, folder):
    """The rows of the one file."""
    ((name, write),) = writers.items()
    assert name == "errors.csv"
    write(folder / name)
    with (folder / name).open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def table_of(task, folder, **by_split):
    head, *found = read(errors_of(*of_splits(task, **by_split), TrainingFields()), folder)
    return head, [[*row[:-1], float(row[-1])] for row in found]


ONE = {  # of one label: probabilities 0.6 for no and 0.9 for no, and so on
    "validation": (["v1", "v2"], ["a", "b"], np.log([[0.6, 0.4], [0.9, 0.1]]), [1, 0]),
    "test": ([7, 8, 9], ["c", "d", "e"], np.log([[0.2, 0.8], [0.05, 0.95], [0.7, 0.3]]), [0, 1, 1]),
}


def test_one_label_a_text_surest_first(tmp_path):
    head, found = table_of(SingleLabel(["no", "yes"]), tmp_path, **ONE)
    assert head == ["split", "id", "text", "truth", "prediction", "confidence"]
    assert found == [
        ["test", "7", "c", "no", "yes", pytest.approx(0.8)],
        ["test", "9", "e", "yes", "no", pytest.approx(0.7)],
        ["validation", "v1", "a", "yes", "no", pytest.approx(0.6)],
    ]


def test_of_several_labels_the_surest_wrong_decision_counts(tmp_path):
    def logits(*scores):
        return [np.log(score / (1 - score)) for score in scores]

    values = [logits(0.9, 0.2, 0.6), logits(0.55, 0.05, 0.1), logits(0.9, 0.1, 0.1)]
    labels = [[1, 0, 0], [1, 1, 0], [1, 0, 0]]  # c too much, at 0.6; b is missing, at 0.95; right
    head, found = table_of(MultiLabel(["a", "b", "c"]), tmp_path, test=([1, 2, 3], ["x", "y", "z"], values, labels))
    assert found == [
        ["test", "2", "y", "a|b", "a", pytest.approx(0.95)],
        ["test", "1", "x", "a", "a|c", pytest.approx(0.6)],
    ]


def test_numbers_have_the_largest_errors_in_standard_deviations(tmp_path, monkeypatch):
    """The targets are 0 and 2, and 10 and 30, whose standard deviations are 1 and 10."""
    of_test = (["p", "q"], ["x", "y"], [[0.5, 15.0], [2.0, 10.0]], [[0.0, 10.0], [2.0, 30.0]])
    head, found = table_of(Regression(["grammar", "tone"]), tmp_path, test=of_test)
    assert head[3:] == ["truth_grammar", "truth_tone", "prediction_grammar", "prediction_tone", "error"]
    assert found == [
        ["test", "q", "y", "2.0", "30.0", "2.0", "10.0", pytest.approx(1.0)],  # (0 + 20 / 10) / 2
        ["test", "p", "x", "0.0", "10.0", "0.5", "15.0", pytest.approx(0.5)],  # (0.5 + 5 / 10) / 2
    ]
    monkeypatch.setattr(wrong_rows, "MOST_NUMBERS", 1)
    assert [row[1] for row in table_of(Regression(["grammar", "tone"]), tmp_path, test=of_test)[1]] == ["q"]
    of_test = ([1, 2], ["x", "y"], [[3.0], [3.5]], [3.0, 3.0])  # targets without a spread
    head, found = table_of(Regression(["stars"]), tmp_path, test=of_test)
    assert head[3:] == ["truth", "prediction", "error"] and found == [["test", "2", "y", "3.0", "3.5", 0.5]]


def test_rows_without_labels_are_left_out_and_a_run_without_errors_has_a_head_alone(tmp_path):
    task = SingleLabel(["no", "yes"])
    assert errors_of(*of_splits(task, test=(*ONE["test"][:3], None)), TrainingFields()) == {}
    head, found = table_of(task, tmp_path, validation=ONE["validation"], test=(*ONE["test"][:3], None))
    assert [row[0] for row in found] == ["validation"]
    head, found = table_of(task, tmp_path, test=([1], ["x"], [[0.0, 1.0]], [1]))
    assert head[:2] == ["split", "id"] and found == []
    several = ([1], ["x"], [[1.0, -1.0]], [[1, 0]])
    assert table_of(MultiLabel(["a", "b"]), tmp_path, test=several)[1] == []
    exact = ([1], ["x"], [[1.5, -1.0]], [[1.5, -1.0]])
    assert table_of(Regression(["a", "b"]), tmp_path, test=exact)[1] == []


def test_both_texts_of_pairs_are_there_and_no_cell_runs_in_a_spreadsheet(tmp_path):
    task = SingleLabel(["=no", "yes"])
    pairs = of_splits(task, test=(["+a"], [("@SUM(1)", "=B")], [[1.0, 0.0]], [1]))
    safe = read(errors_of(*pairs, TrainingFields()), tmp_path)
    assert safe[0][:4] == ["split", "id", "text", "text_pair"]
    assert safe[1][:6] == ["test", "'+a", "'@SUM(1)", "'=B", "yes", "'=no"]
    raw = read(errors_of(*pairs, TrainingFields(raw_csv=True)), tmp_path)
    assert raw[1][:6] == ["test", "+a", "@SUM(1)", "=B", "yes", "=no"]


def test_rows_that_look_mislabelled_have_a_table_and_a_line(tmp_path):
    train = Split("t.csv", ["@a", "b", "c, d"], ["x", "=y", "z"], [0, 1, 1], ["i", "j", "-k"])
    issues = LabelIssues(np.array([2, 0]), np.array([0.05, 0.25]), np.array([0, 1]), 3, 5, "the judge")
    ((name, write),) = label_issues_of(issues, train, SingleLabel(["=no", "yes"]), TrainingFields()).items()
    assert name == "label_issues.csv"
    write(tmp_path / name)
    assert (tmp_path / name).read_text() == (
        "id,text,text_pair,label,suggested,quality\n'-k,\"c, d\",z,yes,'=no,0.05\ni,'@a,x,'=no,yes,0.25\n"
    )
    assert label_issues_line(issues) == (
        "Labels: 2 of 3 training rows that could be judged, of 5, look mislabelled, by the judge, which was fitted "
        "without the row. label_issues.csv lists them, the least likely label first."
    )
    none = LabelIssues(np.zeros(0, int), np.zeros(0), np.zeros((0, 2)), 3, 3, "the judge")
    several = Split("t.csv", ["a"], None, np.array([[1, 0]]), [1])
    ((_, write),) = label_issues_of(none, several, MultiLabel(["a", "b"]), TrainingFields()).items()
    write(tmp_path / "none.csv")
    assert (tmp_path / "none.csv").read_text() == "id,text,label,suggested,quality\n"
    assert label_issues_line(none).startswith("Labels: 0 of 3 training rows look mislabelled, by the judge")


def test_ten_are_shown_in_a_line_each_in_which_nothing_acts(monkeypatch):
    texts = ["\x1b[31mred\nline \u202e" + "z" * 5000, *["t"] * 11]
    values = [[np.log(40 - i), 0.0] for i in range(12)]  # 40 to 1 is the surest
    found = of_splits(SingleLabel(["no", "yes"]), test=(list(range(12)), texts, values, [1] * 12))
    title, first, *others = shown_errors(*found)
    assert title == "Predicted wrongly, surest first (10 of 12 in errors.csv):" and len(others) == 9
    text = '"\\x1b[31mred\\nline \\u202e' + "z" * 75 + '…"'
    assert first == f"  test 0: predicted no, true yes (confidence 0.976): {text}"
    pair = of_splits(MultiLabel(["a", "b"]), test=([1], [("x", "\x07y")], [[-3.0, -3.0]], [[1, 1]]))
    assert shown_errors(*pair)[1] == '  test 1: predicted no label, true a|b (confidence 0.953): "x" | "\\x07y"'
    numbers = of_splits(Regression(["g", "h"]), test=([1, 2], ["x", "y"], [[1.0, 2.0], [3, 4]], [[1, 2], [3, 8]]))
    assert shown_errors(*numbers) == [
        "Largest errors (1 of 1 in errors.csv):",
        '  test 2: g predicted 3, true 3; h predicted 4, true 8 (error 0.667): "y"',
    ]


def test_where_there_is_nothing_to_show_that_is_said():
    task = SingleLabel(["no", "yes"])
    assert shown_errors(*of_splits(task, test=([1], ["x"], [[0.0, 1.0]], [1]))) == ["No row was predicted wrongly."]
    unlabelled = of_splits(task, test=(*ONE["test"][:3], None))
    assert shown_errors(*unlabelled) == ["No validation or test row has a label, so there are no errors to show."]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("no", "no"),
        ("very_good, indeed", "`very_good, indeed`"),
        ("cancel_order", "cancel_order"),
        ("it's 3 o'clock", "it's 3 o'clock"),
        ("Größe 日本", "Größe 日本"),
        ("_a_", "`_a_`"),
        ("a|b", "`a|b`"),
        ("www.b.c", "`www.b.c`"),
        ("<b>", "`<b>`"),
        ("a`b", "``a`b``"),
        ("`a", "`` `a ``"),
        (" a ", "`  a  `"),
        ("a\nb\x1b\u202e", "`a\\nb\\x1b\\u202e`"),
        ("\udcff", "`\\udcff`"),
        ("", "` `"),
        ("❤\u200d🔥", "`❤\u200d🔥`"),
    ],
)
def test_a_name_is_plain_words_or_a_span_of_code(text, shown):
    assert markdown.name(text) == shown


@pytest.mark.parametrize(("text", "shown"), [("abc", "abc"), ("abcd", "ab…"), ("a\n", "a\\n"), ("a\nb", "a\\…")])
def test_a_long_text_is_cut_and_escapes_count(text, shown):
    assert markdown.short(text, 3) == shown


def test_a_block_of_code_is_ended_by_its_own_fence_alone():
    assert markdown.code_block("a\n```\nb", "python") == "````python\na\n```\nb\n````"
    assert markdown.code_block("a") == "```\na\n```"


def test_a_cell_stays_one_cell():
    assert markdown.table([["a", "b", "c"], ["`x|y`", "1\n2", "\\|"]]).splitlines() == [
        "| a | b | c |",
        "| --- | --- | ---: |",
        "| `x\\|y` | 1\\n2 | \\\\| |",
    ]


@pytest.mark.parametrize("text", ['a "b"\\', "a\nb\x1b\u202e", "日本😀", "\udcff", "{x} %s $"])
def test_a_literal_of_python_is_the_text_in_one_printable_line(text):
    literal = markdown.python_text(text)
    assert eval(literal) == text
    assert literal.startswith('"') and literal.isprintable()


@pytest.mark.parametrize(
    ("found", "judged", "start", "end"),
    [
        (2, 9, "Labels: 2 of 9 training rows look mislabelled, by ", "lists them, the least likely label first."),
        (1, 8, "Labels: 1 of 8 training rows that could be judged, of 9, looks mislabelled, by ", "label first."),
        (0, 9, "Labels: 0 of 9 training rows look mislabelled, by ", ". label_issues.csv is empty."),
        (0, 0, "Labels: none of 9 training rows could be judged: ", "no other row that its model was fitted to."),
    ],
)
def test_the_last_line_names_a_list_only_where_there_is_one(found, judged, start, end):
    rows = np.arange(found)
    line = label_issues_line(LabelIssues(rows, np.ones(found), rows, judged, 9, "a model"))
    assert line.startswith(start) and line.endswith(end)
