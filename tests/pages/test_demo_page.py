"""The page of recipes/space: what it computes, by hand, and the page in a browser, from which nothing leaves."""

import importlib.util
import json
import math
import os
import re
import shutil
import socket
import socketserver
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from lstmpool.modeling_lstmpool import LstmPoolForSequenceClassification
from lstmpool.pairs_lstmpool import pair_template

from ..conftest import tiny_model, word_tokenizer
from ..training_fixtures import ROOT, run_python


APP = ROOT / "recipes" / "space" / "app.py"
SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
LN3, LN9 = math.log(3), math.log(9)  # logits of 3/4 and 9/10
TEXTS = ["where is my order", "money back", "the parcel is broken and late please when", "you and we"]


@pytest.fixture(scope="module")
def app():
    spec = importlib.util.spec_from_file_location("page_to_try", APP)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def save_model(folder, **fields):
    """A model whose answers differ by text, with its tokenizer. Its labels need care in HTML and as examples."""
    model = tiny_model(id2label={0: "<b>late</b>", 1: "cancel_order", 2: "other"}, **fields)
    torch.manual_seed(1)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.4)
    model.save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


def rows_of(html):
    """The rows of a table: the class of each, and the texts of its cells."""
    rows = re.findall(r'<tr class="(\w*)">(.*?)</tr>', html)
    return [(state, re.findall(r"<td[^>]*>(?:<div[^>]*></div>)?(.*?)</td>", cells)) for state, cells in rows]


# ------------------------------------------------------------------------------------------------- what is computed
def test_scores_are_probabilities_or_numbers(app):
    logits = torch.tensor([[0.0, LN3], [LN9, 0.0]])
    torch.testing.assert_close(app.scores_of(logits, SINGLE), torch.tensor([[0.25, 0.75], [0.9, 0.1]]))
    torch.testing.assert_close(app.scores_of(logits, MULTI), torch.tensor([[0.5, 0.75], [0.9, 0.5]]))
    assert app.scores_of(logits, REGRESSION) is logits


def test_of_several_labels_the_least_sure_decision_counts(app):
    logits = torch.tensor([LN3, -LN9])
    assert app.sureness_of(logits, MULTI).item() == pytest.approx(0.75)
    assert app.sureness_of(torch.tensor([0.0, LN3]), SINGLE).item() == pytest.approx(0.75)


@pytest.mark.parametrize(("threshold", "stop"), [(0.8, 1), (0.9, 1), (0.95, 3), (0.0, 0), (2.0, 3), (None, 3)])
def test_a_text_stops_at_the_first_exit_that_is_sure_enough_else_at_the_highest_layer(app, threshold, stop):
    sureness = torch.tensor([0.5, 0.9, 0.85, 0.4], dtype=torch.float64)  # of the last, it does not matter
    assert app.stop_of(sureness, threshold) == stop


def test_the_answer_is_the_likeliest_label_or_all_that_are_more_likely_than_not(app):
    labels = ["a", "b", "c"]
    logits = torch.tensor([0.1, -1.0, 0.3])
    assert app.answer_of(logits, labels, SINGLE) == "c"
    assert app.answer_of(logits, labels, MULTI) == "a, c"
    assert app.answer_of(-logits.abs(), labels, MULTI) == "no label"


def test_examples_are_the_names_of_labels_and_nothing_else(app):
    assert app.examples_of(["late", "cancel_order"], 1) == [["late"], ["cancel order"]]
    assert app.examples_of(["a", "b", "c"], 2) == [["a", "b"], ["b", "c"], ["c", "a"]]
    assert app.examples_of([str(i) for i in range(77)], 1) == [[str(i)] for i in range(12)]


def test_all_labels_are_shown_the_highest_score_first_and_no_name_is_run(app):
    html = app.scores_table(torch.tensor([0.0, LN3, 0.0]), ["<b>late</b>", "b", "c"], SINGLE)
    assert rows_of(html) == [
        ("chosen", ["b", "", "60.0%"]),
        ("", ["&lt;b&gt;late&lt;/b&gt;", "", "20.0%"]),
        ("", ["c", "", "20.0%"]),
    ]
    assert 'style="width: 60.0%"' in html
    several = app.scores_table(torch.tensor([-LN9, LN3]), ["a", "b"], MULTI)
    assert rows_of(several) == [("chosen", ["b", "", "75.0%"]), ("", ["a", "", "10.0%"])]
    numbers = app.scores_table(torch.tensor([2.5, -12.3456]), ["a", "b"], REGRESSION)
    assert rows_of(numbers) == [("", ["a", "2.5"]), ("", ["b", "-12.35"])]


def test_each_layer_is_shown_with_its_answer_and_where_the_text_stops(app):
    reading = app.Reading(torch.tensor([[0.0, LN3], [LN9, 0.0], [0.0, 0.0]]), [2, 4, 6], 1)
    html = app.layers_table(reading, ["a", "b"], SINGLE, 0.8)
    assert rows_of(html) == [
        ("", ["2", "b", "", "75.0%"]),
        ("chosen", ["4", "a", "", "90.0%"]),
        ("unread", ["6", "a", "", "50.0%"]),
    ]
    assert "at least 80.0% sure, or at the highest: here at layer 4 of 6." in html
    assert "Its exits are off" in app.layers_table(reading, ["a", "b"], SINGLE, None)


# ------------------------------------------------------------------------------------------------------- with a model
@pytest.mark.parametrize("kind", [SINGLE, MULTI])
def test_it_says_what_the_model_says_and_stops_where_the_model_stops(app, tmp_path, kind):
    stops = set()
    for threshold in (0.4, 0.5, 0.6, 0.7):
        folder = save_model(tmp_path / str(threshold), early_exit=True, exit_threshold=threshold, problem_type=kind)
        reader = app.Reader(str(folder))
        model = LstmPoolForSequenceClassification.from_pretrained(folder).eval()
        for text in TEXTS:
            with torch.no_grad():
                expected = model(**word_tokenizer()(text, return_tensors="pt"))
            reading = reader.read(text)
            assert reading.layers == [1, 2, 3, 4] and reading.layers[reading.stop] == expected.exit_layers.item()
            torch.testing.assert_close(reading.logits[reading.stop], expected.logits[0])
            stops.add(reading.stop)
    assert len(stops) > 1


def test_a_model_without_exits_says_so_and_one_of_numbers_says_why(app, tmp_path):
    reader = app.Reader(str(save_model(tmp_path / "plain")))
    assert reader.name == "plain"
    told = app.told(reader, TEXTS[0])
    assert "Train with --early_exit to get them." in told and told.count("<table>") == 1
    assert "<h2>" in told and "<b>" not in told
    assert app.told(reader, "  ") == "<p>There is nothing to read yet.</p>"
    told = app.told(app.Reader(str(save_model(tmp_path / "numbers", problem_type=REGRESSION))), TEXTS[0])
    assert "not for numbers" in told and "--early_exit" not in told and "<h2>" not in told


def test_a_model_of_pairs_is_known_by_its_config_or_its_metrics(app, tmp_path):
    apart = save_model(tmp_path / "apart", pair_encoding="apart", pair_template=pair_template(word_tokenizer()))
    reader = app.Reader(str(apart))
    assert reader.texts == 2
    model = LstmPoolForSequenceClassification.from_pretrained(apart).eval()
    with torch.no_grad():
        expected = model(**word_tokenizer()(*TEXTS[:2], return_tensors="pt")).logits
    torch.testing.assert_close(reader.read(*TEXTS[:2]).logits, expected)
    joint = save_model(tmp_path / "joint")
    for content, texts in (('{"data": {"train": {"texts_a_row": 2}}}', 2), ('{"data": {}}', 1), ("[", 1), ("[]", 1)):
        (joint / "metrics.json").write_text(content)
        assert app.Reader(str(joint)).texts == texts


def test_space_json_names_the_model(app, tmp_path, monkeypatch):
    folder = save_model(tmp_path / "plain")
    monkeypatch.setattr(app, "__file__", str(tmp_path / "app.py"))
    (tmp_path / "space.json").write_text(json.dumps({"model": str(folder), "revision": None}))
    assert app.load([]).name == app.load([str(folder)]).name == "plain"


def test_a_wrong_folder_is_told_in_one_line(tmp_path):
    pytest.importorskip("gradio", reason="the extra demo-page is not installed")
    done = run_python(str(APP), "outputs/none", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr == (
        "error: expected the folder of a model that can be loaded: there is no folder outputs/none. "
        "Run python app.py FOLDER\n"
    )


def test_a_name_on_the_hub_is_not_loaded_in_place_of_a_folder(app, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(app, "Reader", None)
    for words, found in (
        (["outputs/none"], "there is no folder outputs/none"),
        (["a", "b"], "2 names"),
        ([], "0 names"),
    ):
        with pytest.raises(ValueError, match=found):
            app.load(words)


def test_a_model_of_another_kind_is_refused(app, tmp_path):
    config = BertConfig(vocab_size=40, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    BertForSequenceClassification(config).save_pretrained(tmp_path / "bert")
    word_tokenizer().save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match="holds a model of the kind bert, which is not lstmpool"):
        app.load([str(tmp_path / "bert")])


def test_a_text_that_is_cut_is_told(app, tmp_path):
    reader = app.Reader(str(save_model(tmp_path / "plain")))
    reader.tokenizer.model_max_length = 4
    assert "too long: its first 4 tokens are read" in app.told(reader, "a b c d e f")
    assert "too long" not in app.told(reader, "a")


def test_of_equal_scores_one_label_is_the_answer(app):
    table = app.scores_table(torch.tensor([1.0, 2.0, 2.0]), ["a", "b", "c"], "single_label_classification")
    assert table.count('class="chosen"') == 1 and table.index("b</td>") < table.index("c</td>")


# ------------------------------------------------------------------------------------------------------ in a browser
# Runs the page, and writes down each connection to another host that it tries to make, and each name that it looks up.
SERVER = """
import runpy, sys

def hook(event, args):
    if event == "socket.connect" and isinstance(args[1], tuple):
        host = args[1][0]
    elif event == "socket.getaddrinfo":
        host = args[0]
    else:
        return
    if host not in ("127.0.0.1", None):
        print(event, host, file=open(log, "a"), flush=True)
        raise OSError("no network here")

log, *sys.argv = sys.argv[1:]
sys.addaudithook(hook)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


AUTOFILL = "content-autofill.googleapis.com"  # Chromium asks it about the boxes of any page


class Recorder(socketserver.ThreadingTCPServer):
    """Stands in for the world: a proxy that answers nothing, and keeps the first line of each request."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), None)
        self.asked = []

    def finish_request(self, request, client_address):
        line = request.makefile("rb").readline().decode()
        if AUTOFILL not in line:
            self.asked.append(line)


@pytest.fixture
def world():
    with Recorder() as recorder:
        threading.Thread(target=recorder.serve_forever, daemon=True).start()
        yield recorder
        recorder.shutdown()


@pytest.fixture
def served(tmp_path):
    """The page of a model with exits, served as a user serves it: its address, the model, and what it asked for."""
    pytest.importorskip("gradio", reason="the extra demo-page is not installed")
    folder, log = save_model(tmp_path / "model", early_exit=True, exit_threshold=0.6), tmp_path / "asked.txt"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    dropped = re.compile(r"GRADIO_|.*_PROXY$", re.IGNORECASE)
    env = {name: value for name, value in os.environ.items() if not dropped.match(name)}
    env |= {"GRADIO_SERVER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-c", SERVER, str(log), str(APP), str(folder)]
    with open(tmp_path / "said.txt", "w") as said:
        process = subprocess.Popen(words, env=env, cwd=tmp_path, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
    try:
        end = time.monotonic() + 240
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < end, (tmp_path / "said.txt").read_text()
                time.sleep(0.2)
        yield SimpleNamespace(address=f"http://127.0.0.1:{port}/", folder=folder, log=log)
    finally:
        process.terminate()
        process.wait(30)


@pytest.mark.slow
def test_a_visitor_reads_a_text_and_nothing_leaves_the_machine(app, served, world):
    playwright = pytest.importorskip("playwright.sync_api", reason="the extra page-test is not installed")
    chromium = shutil.which("chromium") or pytest.skip("there is no chromium")
    reader = app.Reader(str(served.folder))
    with playwright.sync_playwright() as driver:
        # --no-sandbox: Chromium wants it of root. What the browser asks on its own account finds no host, and what a
        # page asks goes to the proxy, unless it is for this machine.
        alone = ["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"]
        browser = driver.chromium.launch(executable_path=chromium, args=alone)
        proxy = {"server": f"http://127.0.0.1:{world.server_address[1]}", "bypass": "127.0.0.1"}
        page = browser.new_page(viewport={"width": 360, "height": 800}, proxy=proxy)
        page.set_default_timeout(60_000)
        wrong, asked = [], []
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(served.address)
        box = page.get_by_label("Text", exact=True)

        def check(text):
            """That the page shows what the model says of the text."""
            reading = reader.read(text)
            html = app.told(reader, text)
            page.get_by_role(
                "heading", name=app.answer_of(reading.logits[reading.stop], reader.labels, SINGLE)
            ).wait_for()
            cells = [cell for _, row in rows_of(html) for cell in row if cell.endswith("%")]
            playwright.expect(page.locator("tr[class] .number")).to_have_text(cells)
            assert len(cells) == 3 + 4  # labels, and layers
            stops = page.locator("table").nth(1).locator("tr.chosen td").first
            playwright.expect(stops).to_have_text(str(reading.layers[reading.stop]))

        box.fill(TEXTS[0])
        page.get_by_role("button", name="Read it").click()
        check(TEXTS[0])
        box.fill(TEXTS[2])
        box.press("Enter")
        check(TEXTS[2])
        page.get_by_text("cancel order", exact=True).click()
        playwright.expect(box).to_have_value("cancel order")
        check("cancel order")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360  # not sidewards
        assert wrong == []
        assert [url for url in asked if not url.startswith((served.address, "data:"))] == []
        assert world.asked == [] and not served.log.exists()
        page.evaluate("fetch('http://example.invalid/').catch(() => 0)")
        assert world.asked == ["GET http://example.invalid/ HTTP/1.1\r\n"]  # so a request would have been seen
        browser.close()
