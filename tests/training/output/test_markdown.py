"""Names that would act in Markdown, shown as names. Where a Markdown library is installed, it reads the card."""

import pytest

from lstmpool.training.output import markdown

from .test_model_card import DATA, ON_HUB, RESULTS, SETS, card


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
