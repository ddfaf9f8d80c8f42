"""The pages: how long the README may be, that links lead somewhere, and that snippets run as written.

And what recipes/demo/README.md promises of the demo's data.
"""

import re
import shutil
import subprocess
import sys
from collections import Counter

import pytest

from lstmpool.fields_lstmpool import DEFAULTS
from lstmpool.training.data.files import read_table
from lstmpool.training.docs import BEGIN, END, PAGE, fields_table, with_table
from lstmpool.training.model.adapters import AdapterModel, lora_config

from ..conftest import tiny_model, word_tokenizer
from ..training_fixtures import ROOT


README = ROOT / "README.md"
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "benchmarks").glob("*.md")),
    *sorted((ROOT / "study").glob("*.md")),
    *sorted((ROOT / "recipes").glob("**/*.md")),
]
LINK = re.compile(r"\]\(([^)\s]+)\)")  # of images, too


def without_code(text):
    """The page without its blocks of code, where a bracket is no link and a # no heading."""
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(text):
    """The anchors that GitHub gives to a page's headings: small letters, hyphens for spaces, no punctuation."""
    headings = re.findall(r"^#+ (.+)$", without_code(text), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def dead_links(page):
    """The page's links to files of this repository that are not there, or to headings that are not in them."""
    dead = []
    for target in LINK.findall(without_code(page.read_text(encoding="utf-8"))):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        if not file.exists() or (anchor and anchor not in anchors(file.read_text(encoding="utf-8"))):
            dead.append(target)
    return dead


def test_the_readme_is_one_sitting():
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 160
    assert len(text.split()) <= 1400


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page):
    assert dead_links(page) == []


def test_a_dead_link_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# What it's for\n[here](#what-its-for) [gone](#gone) [no file](no.md) ![no picture](no.png) "
        "[far](https://example.com)\n```\n[code](code.md)\n```\n"
    )
    assert dead_links(page) == ["#gone", "no.md", "no.png"]


def test_every_page_of_docs_is_linked_from_the_readme():
    linked = {target.partition("#")[0] for target in LINK.findall(README.read_text(encoding="utf-8"))}
    assert {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")} <= linked


def test_the_page_has_the_table_that_is_made_from_the_code():
    """If it does not: python -m lstmpool.training.docs"""
    page = PAGE.read_text(encoding="utf-8")
    assert page == with_table(page)


def test_the_table_has_a_row_for_each_field():
    rows = fields_table().splitlines()[2:]
    assert [row.split("`")[1] for row in rows] == list(DEFAULTS)
    assert all(row.count("|") == 4 and not row.endswith("|  |") for row in rows)
    assert "| `lstm_hidden_size` | Units of the LSTM or GRU per direction;" in fields_table()
    assert "| `layers` |" in fields_table() and "| all layers |" in fields_table()


def test_what_stands_around_the_table_stays():
    assert with_table(f"before\n{BEGIN}old\n{END}after\n") == f"before\n{BEGIN}{fields_table()}{END}after\n"
    with pytest.raises(ValueError, match="found at most one"):
        with_table("no comments")


WITH_SNIPPETS = [README, *sorted((ROOT / "docs").glob("*.md"))]
# Where a page names a backbone on the Hub, a tiny one stands in for it.
BACKBONE_ON_HUB = re.compile(r"\"[\w.-]+/[\w.-]*(?:MiniLM|bert)[\w.-]*\"")


def snippets_of(page):
    """The page's blocks of Python."""
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)


SNIPPETS = {
    f"{page.stem}-{number}": snippet
    for page in WITH_SNIPPETS
    for number, snippet in enumerate(snippets_of(page), start=1)
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The folders that the snippets name: a backbone, a finished model, one with exits, and an adapter."""
    work = tmp_path_factory.mktemp("pages")
    model = tiny_model(id2label={0: "late", 1: "broken", 2: "other"})
    model.lstmpool.backbone.save_pretrained(work / "backbone")
    model.save_pretrained(work / "outputs" / "demo")
    tiny_model(early_exit=True, exit_threshold=0.9).save_pretrained(work / "outputs" / "early")
    adapted = AdapterModel(model, lora_config(model))
    adapted.backbone_name = "backbone"
    adapted.save_pretrained(work / "outputs" / "adapter")
    for folder in (work / "backbone", *(work / "outputs").iterdir()):
        word_tokenizer().save_pretrained(folder)
    return work


def run_snippet(snippet, folders, work):
    """Runs it in a copy of the folders."""
    shutil.copytree(folders, work, dirs_exist_ok=True)
    words = [sys.executable, "-c", BACKBONE_ON_HUB.sub('"backbone"', snippet)]
    options = {"capture_output": True, "text": True, "stdin": subprocess.DEVNULL, "timeout": 240}
    done = subprocess.run(words, cwd=work, **options)
    assert done.returncode == 0, done.stderr[-3000:]


def test_there_is_a_snippet_on_the_first_screen():
    first_screen = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()[:12]
    assert "```python" in first_screen


@pytest.mark.parametrize("snippet", SNIPPETS.values(), ids=SNIPPETS)
def test_a_snippet_runs_as_written(snippet, folders, tmp_path):
    run_snippet(snippet, folders, tmp_path)


def test_what_trainer_saves_in_a_notebook_carries_its_code(folders, tmp_path):
    run_snippet(next(snippet for snippet in SNIPPETS.values() if "trainer.train()" in snippet), folders, tmp_path)
    saved = {path.name for path in (tmp_path / "outputs" / "notebook").iterdir() if path.is_file()}
    assert {"modeling_lstmpool.py", "configuration_lstmpool.py", "model.safetensors", "tokenizer.json"} <= saved


# ----------------------------------------------------------------------------------------------------- the demo's data
DEMO = ROOT / "recipes" / "demo"
ROWS = {split: read_table(DEMO / f"{split}.csv").to_list() for split in ("train", "validation", "test")}


def words(text):
    return set(re.findall(r"[a-z']+", text.lower()))


def test_eight_intents_of_forty_sentences_and_more():
    totals = Counter(row["label"] for rows in ROWS.values() for row in rows)
    assert len(totals) == 8
    assert min(totals.values()) >= 40
    for split, each in (("train", 32), ("validation", 16), ("test", 20)):
        assert Counter(row["label"] for row in ROWS[split]) == dict.fromkeys(totals, each)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_no_held_out_sentence_shares_more_than_half_its_words_with_one_of_training(split):
    by_label = {}
    for row in ROWS["train"]:
        by_label.setdefault(row["label"], []).append(words(row["text"]))
    for row in ROWS[split]:
        own = words(row["text"])
        assert max(len(own & other) for other in by_label[row["label"]]) / len(own) <= 0.5, row["text"]


def test_no_two_sentences_are_equal():
    texts = [re.sub(r"[^a-z0-9]", "", row["text"].lower()) for rows in ROWS.values() for row in rows]
    assert len(set(texts)) == len(texts)


def test_sentences_are_as_the_card_says():
    texts = [row["text"] for rows in ROWS.values() for row in rows]
    assert all(text.isascii() and 4 <= len(text.split()) <= 28 for text in texts)
    labels = sorted({row["label"] for rows in ROWS.values() for row in rows})
    card = (DEMO / "README.md").read_text()
    assert all(f"`{label}`" in card for label in labels)
