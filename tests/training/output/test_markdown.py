"""Names and texts in Markdown: shown as they are, and without an effect."""

import pytest

from lstmpool.training.output import markdown


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
