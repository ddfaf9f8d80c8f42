from decimal import Decimal

import pytest

from lstmpool.training.errors import InputError
from lstmpool.training.output.terminal import describe_task
from lstmpool.training.tasks.cells import sorted_names
from lstmpool.training.tasks.inference import infer_task, task_of_model
from lstmpool.training.tasks.multi_label import MultiLabel
from lstmpool.training.tasks.regression import Regression
from lstmpool.training.tasks.single_label import SingleLabel

from ...conftest import tiny_config


def infer(*values, problem_type=None, known=None):
    return infer_task({"label": list(values)}, problem_type, known)


@pytest.mark.parametrize(
    ("values", "kind", "names"),
    [
        (["no", "yes", "no"], SingleLabel, ["no", "yes"]),
        ([10, 2, 1], SingleLabel, ["1", "2", "10"]),
        (["10", "2", "-1"], SingleLabel, ["-1", "2", "10"]),
        ([True, False], SingleLabel, ["False", "True"]),
        (["1", "2", "x"], SingleLabel, ["1", "2", "x"]),
        (["1.5", "2"], Regression, ["label"]),
        ([1.0, 2.0], Regression, ["label"]),
        ([["b"], [], ["a", "b"]], MultiLabel, ["a", "b"]),
        (["b|a", "b"], MultiLabel, ["a", "b"]),
        (["very good", "bad"], SingleLabel, ["bad", "very good"]),
        (["--1", "3"], SingleLabel, ["3", "--1"]),
        (["9" * 5000, "3"], SingleLabel, ["3", "9" * 5000]),
        (["1_1", "1_2"], SingleLabel, ["1_1", "1_2"]),
        (["infinity", "nan", "-inf"], SingleLabel, ["-inf", "infinity", "nan"]),
        (["\uff11\uff12", "\uff11.\uff15"], SingleLabel, ["\uff11\uff12", "\uff11.\uff15"]),
        (["1e5", "2e3", "4"], SingleLabel, ["4", "1e5", "2e3"]),
        (["0x10", "0x11"], SingleLabel, ["0x10", "0x11"]),
        (["0.5", "1e-05", " -2 ", ".5", "2."], Regression, ["label"]),
        (["1e-05", "2"], Regression, ["label"]),
        ([Decimal("1.5"), Decimal("2")], Regression, ["label"]),
        (["NA", "None", "null", "N/A"], SingleLabel, ["N/A", "NA", "None", "null"]),
        (["['joy', 'love']", "['anger']", "[]", ""], MultiLabel, ["anger", "joy", "love"]),
        (['["a, \\"b", "c"]', '["c"]'], MultiLabel, ['a, "b', "c"]),
        (["('joy', 'love')", "{'anger'}"], MultiLabel, ["anger", "joy", "love"]),
        (["[1, 2]", "[2]"], MultiLabel, ["1", "2"]),
        (["[CLS]", "(other)"], SingleLabel, ["(other)", "[CLS]"]),
        ([[0, 1], [1, 0], [1, 1]], MultiLabel, ["0", "1"]),
        (["[0, 1, 1]", "[0, 0, 0]"], MultiLabel, ["0", "1", "2"]),
    ],
)
def test_the_task_is_read_off_the_labels(values, kind, names):
    task = infer(*values)
    assert (type(task), task.names) == (kind, names)
    assert "label" in task.evidence


def test_names_do_not_depend_on_the_order_of_the_rows():
    values = ["d", "a", "c", "b", "a"]
    assert infer(*values).config_fields == infer(*reversed(values)).config_fields
    assert infer(*values).config_fields["id2label"] == {0: "a", 1: "b", 2: "c", 3: "d"}
    assert infer(*values).config_fields["label2id"] == {"a": 0, "b": 1, "c": 2, "d": 3}


def test_names_that_the_data_set_declares_keep_their_order():
    assert infer("neg", "pos", known=["pos", "neg", "mixed"]).names == ["pos", "neg", "mixed"]
    assert type(infer("0.5", "1.5", known=["1.5", "0.5"])) is SingleLabel


def test_the_user_may_name_the_task():
    assert infer(0, 1, 5, problem_type=Regression.problem_type).encode({"label": [0, "5"]}, "file") == [0.0, 5.0]
    multi = infer("b a", "", "c", problem_type=MultiLabel.problem_type)
    assert multi.names == ["a", "b", "c"]
    assert multi.encode({"label": ["c a", ""]}, "file") == [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]


def test_several_columns_are_targets_of_one_regression():
    columns = {"grammar": ["3", "2.5"], "cohesion": ["1", "4"]}
    task = infer_task(columns)
    assert (type(task), task.names) == (Regression, ["grammar", "cohesion"])
    assert task.encode(columns, "file") == [[3.0, 1.0], [2.5, 4.0]]


def test_labels_become_numbers():
    assert infer("b", "a").encode({"label": ["a", "b", "b"]}, "file") == [0, 1, 1]


@pytest.mark.parametrize(
    ("train", "values", "message"),
    [
        (["yes", "no"], ["yes", "yess"], "file.*row 2: label 'yess' does not occur in training. Did you mean 'yes'"),
        ([["a"], ["b"]], [["a"], ["c"]], "row 2: label 'c' does not occur"),
        (["1.5", "2"], ["1", "nan"], "row 2: expected a number, found nothing"),
        (["1.5", "2"], ["1", "two"], "row 2: expected a number, found 'two'"),
        ([1.5, 2.0], [1.0, float("inf")], "row 2: expected a number, found inf"),
        (["yes", "no"], ["yes", ""], "row 2: the label is missing"),
        (["yes", "no"], ["yes", None], "row 2: the label is missing"),
        ([["a"]], [["a"], None], "row 2: expected a list of labels, found None"),
    ],
)
def test_wrong_labels_are_told_with_their_row(train, values, message):
    with pytest.raises(InputError, match=message):
        infer(*train).encode({"label": values}, "file")


def test_labels_that_fit_no_task():
    with pytest.raises(InputError, match="at least two labels .* only 'x'"):
        infer("x", "x")
    with pytest.raises(InputError, match="training row 1: expected one label, found the list"):
        infer(["a"], problem_type=SingleLabel.problem_type)
    with pytest.raises(InputError, match="one label column for single_label"):
        infer_task({"a": ["x"], "b": ["y"]}, SingleLabel.problem_type)
    with pytest.raises(InputError, match="training row 2.*missing"):
        infer("x", None, "y")


def test_several_labels_in_one_string_are_separated_alike_in_all_rows():
    multi = infer("New York|x", "New York", "", problem_type=MultiLabel.problem_type)
    assert multi.names == ["New York", "x"]
    assert multi.encode({"label": ["x|New York", "New York"]}, "file") == [[1.0, 1.0], [1.0, 0.0]]


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ([0, 1, 0], r"found zeros and ones, \[0, 1, 0\]. Give each its own column"),
        ([1.0, 0.0, 0.0], "found zeros and ones"),
        ([0.5, 2.0], "found decimal numbers, .* name all with --label_column_name a,b"),
        ([["a"], ["b"]], "expected the name of a label, found"),
    ],
)
def test_lists_that_are_no_lists_of_names_are_refused(cell, message):
    with pytest.raises(InputError, match=f"training row 2: .*{message}"):
        infer(["a"], cell)


def test_vectors_of_zeros_and_ones_have_a_place_for_each_label():
    for rows in ([[0, 1], [1, 0]], [[False, True], [True, False]], [[0.0, 1.0], [1.0, 0.0]], ["[0, 1]", "[1, 0]"]):
        assert infer(*rows).encode({"label": rows}, "file") == [[0.0, 1.0], [1.0, 0.0]]
    for cells in (["0|1", "1|0"], ["0 1", "1 0"]):
        task = infer_task({"labels": cells})
        assert "zeros and ones, one for each label" in task.evidence
        assert task.encode({"labels": cells}, "file") == [[0.0, 1.0], [1.0, 0.0]]
    task = infer_task({"labels": ["0 1", "1", "2 1"]})  # numbers of labels
    assert task.encode({"labels": ["0 1", "1 2"]}, "file") == [[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]]
    task = infer([0, 1, 1], [0, 0, 0])
    assert "vectors of 3 zeros and ones" in task.evidence
    assert task.encode({"label": [[1, 1, 1]]}, "file") == [[1.0, 1.0, 1.0]]
    for wrong in ([0, 1], [0, 1, 2], ["x", "y", "z"], None):
        with pytest.raises(InputError, match="file, column 'label', row 2: expected 3 zeros and ones, as in training"):
            task.encode({"label": [[0, 0, 0], wrong]}, "file")
    kept = tiny_config(num_labels=2, id2label={0: "x", 1: "y"}, problem_type=MultiLabel.problem_type)
    assert task_of_model(kept, {"label": [[0, 1]]}).encode({"label": [[0, 1]]}, "file") == [[0.0, 1.0]]


@pytest.mark.parametrize(
    "cell",
    [
        *("['joy' 'love']", "[joy, love]", "['joy', None]", "['joy']", "[0 1]", "[0. 1.]"),
        *("array(['joy'], dtype=object)", "{'joy': 1, 'love': 0}"),
    ],
)
def test_text_like_a_list_is_refused_beside_other_cells(cell):
    with pytest.raises(InputError, match="column 'label', training row 2: .* is like a list.* as a|b.*single_label"):
        infer("joy", cell)
    assert infer("joy", cell, problem_type=SingleLabel.problem_type).names == sorted(["joy", cell])


@pytest.mark.parametrize(
    "cell", ["1,5", "1 000", "1.000,5", "50%", "50 %", "$5", "5\u20ac", "\u22121", "1'000", "1\u202f000"]
)
@pytest.mark.parametrize("other", ["3", "3.5"])
def test_numbers_as_people_write_them_are_refused_with_the_remedy(cell, other):
    with pytest.raises(InputError, match=r"column 'label', training row 2: expected a number such as 1.5 .*single_l"):
        infer(other, cell, "nan")
    assert infer(other, cell, problem_type=SingleLabel.problem_type).names == sorted_names({other, cell})
    with pytest.raises(InputError, match="row 2: expected a number, found .* Write it as 1.5 or 1000"):
        infer(other, cell, problem_type=Regression.problem_type).encode({"label": [other, cell]}, "file")


def test_a_regression_that_was_asked_for_takes_every_number_of_ascii():
    task = infer("x", problem_type=Regression.problem_type)
    assert task.encode({"label": ["1e5", "2E-3", 7]}, "file") == [1e5, 2e-3, 7.0]
    for word in ("1_1", "infinity", "0x10", "\uff11"):
        with pytest.raises(InputError, match="row 1: expected a number, found"):
            task.encode({"label": [word]}, "file")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (["a", "b"], "holds one name or whole number a row; --problem_type"),
        (["1.5", "2"], "holds decimal numbers, such as 1.5; --problem_type"),
        (["0.0", "1.0"], "such as 0.0, all of them whole (if they are classes, say --problem_type single_label"),
        (["a", "a,b"], "; 1 with commas, such as 'a,b' in row 2 (several labels are written a|b)"),
        (["a", "a; b"], "; 1 with semicolons, such as 'a; b' in row 2 (several labels are written a|b)"),
        (["1.5"] * 9 + ["two"], "; all but 1 of 10 are numbers, the first other is 'two' in row 10; --problem_type"),
        (["a", "NA"], "; 'NA' in row 2 is read as a name, not as a missing label; --problem_type"),
        ([["a"], ["b"]], "holds lists; --problem_type"),
    ],
)
def test_the_line_about_the_task_names_what_was_seen_and_the_flag(values, words):
    line, outputs = describe_task(infer(*values)).splitlines()
    assert words in line
    assert line.endswith("; --problem_type sets another.")
    assert outputs.startswith("Outputs: ")


def test_a_task_that_was_named_is_not_looked_for():
    assert describe_task(infer("a", "b", problem_type=SingleLabel.problem_type)).startswith(
        "Task: single_label_classification, because --problem_type says so.\n"
    )


@pytest.mark.parametrize(
    ("values", "warning"),
    [
        (
            ["pos", "neg", "neg", "Pos", "pos"],
            "training row 4: label 'Pos' looks like 'pos' (2 rows, the first is row 1)",
        ),
        (["pos", "pos\u200b", "neg"], "training row 2: label 'pos\\u200b' looks like 'pos'"),
        (["caf\u00e9", "cafe\u0301", "x"], r"training row 2: label 'cafe\u0301' looks like 'caf\xe9'"),
        (["a b", "a\u00a0b", "x"], "label 'a\\xa0b' looks like 'a b'"),
        (["a b", "a_b", "x"], "label 'a_b' looks like 'a b'"),
        (["a-b", "a\u2010b", "x"], "label 'a\u2010b' looks like 'a-b'"),
        (["\u2764", "\u2764\ufe0f", "x"], r"label '\u2764\ufe0f' looks like '\u2764'"),
        (
            ["cancel", "cancle", "cancel", "x"],
            "training row 2: label 'cancle' occurs once, and resembles 'cancel' (2 rows",
        ),
        (["status", "Sttus", "status", "x"], "label 'Sttus' occurs once, and resembles 'status'"),
        (["new order|old", "new ordr", "new order|old"], "label 'new ordr' occurs once, and resembles 'new order'"),
    ],
)
def test_names_that_may_be_one_are_named(values, warning):
    task = infer(*values)
    assert len(task.warnings) == 1 and warning in task.warnings[0]
    *_, said = describe_task(task).splitlines()
    assert said.startswith("Warning: column 'label', training row ") and said.isprintable()


@pytest.mark.parametrize(
    "values",
    [
        ["cat", "dog", "cat", "dog"],
        ["1", "2", "10", "100"],
        ["step 1", "step 2", "step 2"],
        ["positive", "negative", "negative"],
        ["cancel", "cancle", "cancel", "cancle"],
        ["-1", "0", "1"],
        ["A", "A-", "A+", "B", "B-"],
        [f"name {a}{b}" for a in "abcdefgh" for b in "abc"],
    ],
)
def test_other_names_are_not(values):
    assert infer(*values).warnings == ()


def test_warnings_are_few_and_quick():
    values = [f"{prefix}name {i}" for i in range(2_000) for prefix in ("", "\u200b")]
    assert len(infer(*values).warnings) == 6
    assert infer(*values).warnings[-1] == "column 'label': 1995 more labels look like others."


@pytest.mark.parametrize("name", ["a\nb", "a\x1bb", "a\x00", "a\u2028b", "\u202eab", "a\x7f"])
def test_control_characters_in_names_are_refused(name):
    for values in (["a", name], [["a"], [name]], ["a|b", f"c|{name}"]):
        with pytest.raises(InputError, match="column 'label', training row 2: the label .* holds control characters"):
            infer(*values)
    with pytest.raises(InputError, match="names that the data set declares: the label .* control characters"):
        infer("a", known=["a", name])


def test_names_that_nobody_can_see_are_missing_and_texts_are_no_names():
    with pytest.raises(InputError, match="training row 2: the label is missing"):
        infer("a", "\u200b")
    with pytest.raises(InputError, match="training row 2: the label has 10001 characters.*--label_column_name"):
        infer("a", "b" * 10_001)


def test_lists_of_the_numbers_of_labels_are_names():
    assert infer([0, 1], [1], [], [2.0]).encode({"label": [[1, 0], [0]]}, "file") == [[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]]


@pytest.mark.parametrize("cell", ["x, y", '["x", "y"]'])
def test_lists_written_as_text_are_refused(cell):
    with pytest.raises(InputError, match="row 2: expected names separated by spaces or by |"):
        infer("x", cell, problem_type=MultiLabel.problem_type)


def test_a_column_called_labels_holds_several_in_one_string():
    task = infer_task({"labels": ["joy love", "", "anger"]})
    assert (type(task), task.names) == (MultiLabel, ["anger", "joy", "love"])
    assert "separated by spaces, such as 'joy love'" in task.evidence
    for empty in ("", None):  # an empty cell of a CSV, as the two common readers give it
        assert task.encode({"labels": ["love joy", empty]}, "file") == [[0.0, 1.0, 1.0], [0.0, 0.0, 0.0]]
    assert type(infer_task({"labels": ["joy", "anger"]})) is SingleLabel
    assert infer_task({"labels": ["joy love", None]}).names == ["joy", "love"]


def test_columns_of_zeros_and_ones_are_labels_each():
    columns = {"toxic": ["0", "1", "1"], "threat": ["0", "0", "1"]}
    task = infer_task(columns)
    assert (type(task), task.names) == (MultiLabel, ["toxic", "threat"])
    assert task.encode(columns, "file") == [[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]]
    assert type(infer_task({"a": [0, 1], "b": [0, 2]})) is Regression
    with pytest.raises(InputError, match="column 'threat', row 2: expected 0 or 1, as in training, found 0.5"):
        task.encode({"toxic": ["0", "1"], "threat": ["1", "0.5"]}, "file")
    assert type(infer_task(columns, problem_type=Regression.problem_type)) is Regression
    with pytest.raises(InputError, match="several of zeros and ones for multi_label_classification, found a, b"):
        infer_task({"a": ["x"], "b": ["y"]}, problem_type=MultiLabel.problem_type)


def test_a_finished_model_says_what_its_columns_are():
    numbers = tiny_config(num_labels=2, id2label={0: "grammar", 1: "cohesion"}, problem_type=Regression.problem_type)
    columns = {"cohesion": ["2"], "grammar": ["1"]}  # in whichever order they are named
    assert task_of_model(numbers, columns).encode(columns, "file") == [[1.0, 2.0]]
    for wrong in ({"grammar": ["1"]}, {"g": ["1"], "c": ["2"]}):
        with pytest.raises(InputError, match="file: expected the label columns grammar, cohesion, found g"):
            task_of_model(numbers, wrong).encode(wrong, "file")
    one = tiny_config(num_labels=1, id2label={0: "stars"}, problem_type=Regression.problem_type)
    assert task_of_model(one, {"score": ["1"]}).encode({"score": ["1"]}, "file") == [1.0]
    classes = tiny_config(num_labels=2, id2label={0: "x", 1: "y"})
    with pytest.raises(InputError, match="expected the label columns x, y, found a, b"):
        task_of_model(classes, {"a": [0], "b": [1]}).encode({"a": [0], "b": [1]}, "file")
