"""The command `export` as users run it, and each snippet of the README that it writes, as it stands there (slow).

The tests in node and in a browser install transformers.js from npm, without the scripts of packages, which would fetch
binaries.
"""

import json
import re
import shutil
import subprocess
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from queue import Queue

import numpy as np
import pandas
import pytest
import torch
from transformers import AutoTokenizer, pipeline, set_seed

from lstmpool.configuration_lstmpool import LstmPoolConfig
from lstmpool.export import main
from lstmpool.modeling_lstmpool import LstmPoolForSequenceClassification
from lstmpool.predict import main as predict
from lstmpool.training.data.rows import read_splits
from lstmpool.training.flags.arguments import DataArguments
from lstmpool.training.output.run_record import RunRecord

from ..training_fixtures import run_python, save_backbone, sentences, write_csv


TEXTS = ["The parcel arrived two days late.", "Thank you, all is well."]  # of the card
TASKS = {
    "single": {"problem_type": "single_label_classification", "num_labels": 3},
    "several": {"problem_type": "multi_label_classification", "num_labels": 3},
    "numbers": {"problem_type": "regression", "num_labels": 2},
    "joint": {"num_labels": 3},
    "apart": {"num_labels": 3, "pair_encoding": "apart"},
}
PAIRS = ("joint", "apart")


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with a finished model of each kind, as training leaves them, and rows."""
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    folder = tmp_path_factory.mktemp("work")
    save_backbone(folder / "backbone")
    tokenizer = AutoTokenizer.from_pretrained(folder / "backbone")
    for name, fields in TASKS.items():
        set_seed(0)
        model = LstmPoolForSequenceClassification.from_backbone(
            str(folder / "backbone"),
            lstm_hidden_size=4,
            id2label=dict(enumerate("abc"[: fields["num_labels"]])),
            **fields,
        )
        torch.nn.init.normal_(model.classifier.weight)  # large enough for answers to differ
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        texts = 2 if name in PAIRS else 1
        (folder / name / "metrics.json").write_text(json.dumps({"data": {"train": {"texts_a_row": texts}}}))
    texts = [" ".join([text] * (1 + i % 9)) for i, text in enumerate(sentences(40))]
    write_csv(folder / "rows.csv", {"text": texts, "label": ["abc"[i % 3] for i in range(40)]})
    write_csv(folder / "pairs.csv", {"sentence1": texts, "sentence2": texts[::-1], "label": ["a"] * 40})
    return folder


@pytest.fixture
def here(work, monkeypatch):
    monkeypatch.chdir(work)
    return work


def exported(work, name, *words):
    """The export of the model `name`, made once."""
    folder = work / f"{name}-onnx"
    if not folder.exists():
        assert main([name, *words]) == 0
    return folder


def logits_in_torch(work, name, texts):
    model = LstmPoolForSequenceClassification.from_pretrained(work / name)
    tokenizer = AutoTokenizer.from_pretrained(work / name)
    pairs = texts[::-1] if name in PAIRS else None
    with torch.no_grad():
        return model(**tokenizer(texts, pairs, padding=True, truncation=True, return_tensors="pt")).logits.numpy()


def snippets(folder, language):
    return re.findall(rf"```{language}\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)


# ---------------------------------------------------------------------------------------------------------- in Python
@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_the_cards_snippet_gives_the_models_answers_without_torch(here, name, tmp_path):
    folder = exported(here, name)
    program = snippets(folder, "python")[0].replace("model_quantized", "model")  # whose logits are torch's
    shutil.copytree(folder, tmp_path / folder.name)
    blocked = "import sys; sys.modules['torch'] = sys.modules['transformers'] = sys.modules['lstmpool'] = None\n"
    done = run_python("-c", f"{blocked}{program}\nprint(logits.tolist())", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    *_, last = done.stdout.splitlines()
    expected = logits_in_torch(here, name, TEXTS)
    np.testing.assert_allclose(json.loads(last), expected, atol=1e-4)
    if name == "single":
        assert done.stdout.splitlines()[0] == str(["abc"[i] for i in expected.argmax(-1)])
    as_it_stands = run_python("-c", snippets(folder, "python")[0], cwd=tmp_path)
    assert as_it_stands.returncode == 0, as_it_stands.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", ["single", "apart"])
def test_predict_reads_the_folder_and_answers_as_the_model_does(here, name):
    folder = exported(here, name)
    rows = "pairs.csv" if name == "apart" else "rows.csv"
    tables = {}
    for engine, source in (("torch", name), ("onnx", folder.name), ("onnx_int8", folder.name)):
        output = here / f"{name}-{engine}.csv"
        words = [source, rows, f"--output={output}", "--scores", "--disable_tqdm", f"--engine={engine}", "--overwrite"]
        assert predict(words) == 0
        tables[engine] = pandas.read_csv(output)
    pandas.testing.assert_frame_equal(tables["torch"], tables["onnx"], rtol=1e-4, atol=1e-5)
    assert (tables["torch"]["prediction"] == tables["onnx_int8"]["prediction"]).mean() > 0.9
    assert not tables["torch"].equals(tables["onnx_int8"])  # or the float graph has answered


@pytest.mark.slow
def test_rows_are_answered_by_each_file_and_a_bad_one_is_not_kept(here, capsys, monkeypatch):
    words = ["single", "--test_file=rows.csv", "--output=measured"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "Rows: 40 rows of rows.csv; the model has accuracy 0." in out
    card = (here / "measured" / "README.md").read_text()
    assert "| same answers | accuracy |" in card and "| 100.0 % |" in card
    names = {path.name for path in (here / "measured" / "onnx").iterdir()}
    assert names == {"model.onnx", "model_quantized.onnx", "model_qint8_avx512_vnni.onnx"}
    assert len({path.read_bytes() for path in (here / "measured" / "onnx").glob("model_*")}) == 1

    monkeypatch.setattr("lstmpool.training.exporting.quantised.Rows.points_lost", lambda rows, graph: 1.01)
    assert main(words) == 2
    assert "measured exists already" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 0
    out = capsys.readouterr().out
    assert "model_quantized.onnx is not kept: on the rows it loses 1.01 points, more than --max_loss 1." in out
    assert [path.name for path in (here / "measured" / "onnx").iterdir()] == ["model.onnx"]
    assert "is not kept" in (here / "measured" / "README.md").read_text()
    assert main([*words, "--overwrite", "--max_loss=2"]) == 0
    assert len(list((here / "measured" / "onnx").iterdir())) == 3


@pytest.mark.slow
def test_without_rows_those_of_the_run_serve_as_long_as_they_are_the_same(here, capsys):
    config = LstmPoolConfig.from_pretrained("single")
    splits, _ = read_splits(DataArguments(), {"validation": "rows.csv"}, None, finished=config)  # as training did
    RunRecord.of({"validation_file": "own.csv"}, splits).write(here / "single")
    rows = (here / "rows.csv").read_text()
    for content, said in (("", "none with labels"), (rows, "40 rows of own"), (rows + "x,b\n", "none with labels")):
        (here / "own.csv").write_text(content)
        assert main(["single", "--output=own", "--quantize=none", "--overwrite"]) == 0
        assert f"Rows: {said}" in capsys.readouterr().out
    (here / "single" / "run.json").unlink()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["backbone"], "is a bert, not an LstmPool model"),
        (["single", "--output=single/onnx"], "must lie outside of the model's folder"),
        (
            ["single", "--output=refused", "--test_file=pairs.csv"],
            "single reads one text a row, found pairs. Name a file with",
        ),
        (
            ["joint", "--output=refused", "--test_file=rows.csv"],
            "joint reads pairs of texts a row, found one text.",
        ),
        (["nowhere", "--output=refused"], "there is no folder nowhere here, and no such model"),
    ],
)
def test_wrong_input_is_one_line_and_leaves_nothing(here, words, message, capsys):
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert message in error
    assert not (here / "refused").exists() and not (here / ".refused.unfinished").exists()


# ---------------------------------------------------------------------------------------------------- on an Endpoint
REQUESTS = [
    {"inputs": TEXTS[0]},
    {"inputs": [*TEXTS, "red " * 50]},  # the last one is cut
    {"inputs": TEXTS[1], "parameters": {"top_k": None}},
    {"inputs": TEXTS, "parameters": {"top_k": 2, "truncation": True}},
]
PAIR_REQUESTS = [
    {"inputs": {"text": TEXTS[0], "text_pair": TEXTS[1]}},
    {"inputs": [{"text": text, "text_pair": "red " * 50} for text in TEXTS], "parameters": {"top_k": None}},
]
HANDLED = """
import sys
for name in ("torch", "transformers", "lstmpool"):
    sys.modules[name] = None
import json
sys.path.insert(0, sys.argv[1])
from handler import EndpointHandler
handler = EndpointHandler(sys.argv[1])
print(json.dumps([handler(request) for request in json.loads(sys.argv[2])]))
"""


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (["a text"], r"expected a request such as {\"inputs\": \"a text\"}, found \['a text'\]"),
        ({"text": "x"}, "expected a request .* found {'text': 'x'}"),
        ({"inputs": []}, "expected a text, a pair of texts or a list of such, found none"),
        ({"inputs": None}, "expected a text, .*found None"),
        ({"inputs": 0}, "expected a text, .*found 0"),
        ({"inputs": True}, "expected a text, .*found True"),
        ({"inputs": ["x", 2.5]}, "expected a text, .*found 2.5"),
        ({"inputs": {"text_pair": "x"}}, "expected a text, .*found "),
        ({"inputs": [["x"] * 5000]}, r"expected a text, .{50,140} \.\.\.$"),
        ({"inputs": ["x", "red \ud83d"]}, r"half of a character in 'red \\ud83d'"),  # of an emoji, cut in JavaScript
        ({"inputs": "x", "parameters": 3}, "parameters: expected a dictionary, found 3"),
        ({"inputs": "x", "parameters": []}, r"parameters: expected a dictionary, found \[\]"),
        ({"inputs": "x", "parameters": {"topk": 1}}, "parameters: expected some of .*, found topk"),
        ({"inputs": "x", "parameters": {"function_to_apply": "relu"}}, "sigmoid, softmax, none, found 'relu'"),
        ({"inputs": "x", "parameters": {"top_k": 0}}, "top_k: expected a whole number from 1, .* found 0"),
        ({"inputs": "x", "parameters": {"top_k": "3"}}, "found '3'"),
        ({"inputs": "x", "parameters": {"top_k": True}}, "found True"),
    ],
)
def test_a_wrong_request_is_told_what_was_expected_and_found(request_, message):
    handler = handler_of_two()
    with pytest.raises(ValueError, match=message):
        handler(request_)


def test_a_request_may_name_functions_and_leave_out_a_pair_as_the_pipelines_do():
    handler = handler_of_two()
    assert handler({"inputs": "x", "parameters": {"function_to_apply": "NONE"}}) == [{"label": "b", "score": 2.0}]
    assert handler({"inputs": {"text": "x", "text_pair": None}, "parameters": None})["label"] == "b"
    handler.needs_pairs = True
    with pytest.raises(ValueError, match="this model reads pairs, such as .*; found a text"):
        handler({"inputs": {"text": "x", "text_pair": None}})


def handler_of_two():
    """A handler whose graph gives the logits 1 and 2."""
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    from lstmpool.training.exporting.handler import EndpointHandler

    handler = object.__new__(EndpointHandler)
    handler.labels, handler.needs_pairs, handler.applied = ["a", "b"], False, "softmax"
    handler._logits = lambda rows: np.array([[1.0, 2.0]] * len(rows))
    return handler


def flat(answers):
    """Labels and scores of nested answers, in order."""
    if isinstance(answers, dict):
        return [answers["label"]], [answers["score"]]
    parts = [flat(answer) for answer in answers]
    return [label for labels, _ in parts for label in labels], [score for _, scores in parts for score in scores]


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_the_handler_answers_as_the_pipeline_does_without_torch(here, name, tmp_path):
    assert main([name, f"--output={tmp_path / 'made'}", "--quantize=none", "--handler"]) == 0
    assert "handler.py" in (tmp_path / "made" / "README.md").read_text()
    assert (tmp_path / "made" / "requirements.txt").read_text().startswith("onnxruntime>=")
    requests = PAIR_REQUESTS if name in PAIRS else REQUESTS
    words = ["-I", "-c", HANDLED, str(tmp_path / "made"), json.dumps(requests)]
    done = run_python(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    classify = pipeline(
        "text-classification",
        model=LstmPoolForSequenceClassification.from_pretrained(name),
        tokenizer=AutoTokenizer.from_pretrained(name),
        device="cpu",
    )
    for request, found in zip(requests, json.loads(done.stdout), strict=True):
        parameters = {"truncation": True} | request.get("parameters", {})
        expected = classify(request["inputs"], **parameters)
        assert (type(found), len(found)) == (type(expected), len(expected))
        (labels, scores), (those, numbers) = flat(found), flat(expected)
        assert labels == those
        np.testing.assert_allclose(scores, numbers, atol=1e-4)
    assert not (here / f"{name}-onnx" / "handler.py").exists()  # only if asked for


# ------------------------------------------------------------------------------------------------------------- in node
@pytest.fixture(scope="module")
def node(tmp_path_factory):
    """A folder in which node finds transformers.js."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.fail("the card's snippet runs in node: install node and npm, or leave it out, with -k 'not node'")
    folder = tmp_path_factory.mktemp("node")
    install = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "@huggingface/transformers"]
    done = subprocess.run(install, cwd=folder, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, f"npm could not install transformers.js: {done.stderr}"
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_node_loads_the_folder_and_gives_the_same_logits(here, node, name):
    folder = exported(here, name)
    shutil.copytree(folder, node / folder.name, dirs_exist_ok=True)
    (program,) = snippets(folder, "js")
    program = program.replace('dtype: "q8"', 'dtype: "fp32"')
    (node / "program.mjs").write_text(f"{program}\nconsole.log(JSON.stringify(logits.tolist()));\n")
    done = subprocess.run(["node", "program.mjs"], cwd=node, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    *_, last = done.stdout.splitlines()
    np.testing.assert_allclose(json.loads(last), logits_in_torch(here, name, TEXTS), atol=1e-4)


# -------------------------------------------------------------------------------------------------------- in a browser
CHROMIUM = next(filter(shutil.which, ("chromium", "chromium-browser", "google-chrome")), None)
PAGE = """<!doctype html>
<script type="importmap">
{"imports": {"@huggingface/transformers": "/node_modules/@huggingface/transformers/dist/transformers.min.js"}}
</script>
<script type="module">
const refused = [];
addEventListener("securitypolicyviolation", (event) => refused.push(event.blockedURI));
let answer;
try {
    const { env } = await import("@huggingface/transformers");
    env.backends.onnx.wasm.wasmPaths = "/node_modules/onnxruntime-web/dist/";  // not from a CDN
    answer = await import("./program.mjs");
} catch (error) {
    answer = { error: error.stack };
}
await fetch("/answer", { method: "POST", body: JSON.stringify({ ...answer, refused }) });
</script>
"""


class Site(SimpleHTTPRequestHandler):
    """Serves a folder to pages that may ask nobody else, and keeps what they post."""

    answers: Queue

    def log_message(self, *args):
        pass

    def end_headers(self):
        self.send_header(
            "Content-Security-Policy", "default-src 'self' 'unsafe-inline' 'wasm-unsafe-eval' blob: data:"
        )
        super().end_headers()

    def do_POST(self):
        self.answers.put(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        self.send_response(200)
        self.end_headers()


def browsed(folder, seconds=300):
    """What `index.html` in the folder posts, from a headless Chromium that reaches this server alone."""
    site = type("Bound", (Site,), {"answers": Queue()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(site, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    flags += [
        "--proxy-server=http://127.0.0.1:9",
        "--proxy-bypass-list=127.0.0.1",
        f"--user-data-dir={folder}/profile",
    ]
    command = [CHROMIUM, *flags, f"http://127.0.0.1:{server.server_address[1]}/index.html"]
    browser = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        return site.answers.get(timeout=seconds)
    finally:
        browser.terminate()
        browser.wait(60)
        server.shutdown()
        server.server_close()


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium was found: install chromium")
@pytest.mark.parametrize("name", ["single", "apart"])
def test_a_browser_loads_the_folder_and_asks_no_other_host(here, node, name):
    shutil.copytree(exported(here, name), node / f"{name}-onnx", dirs_exist_ok=True)
    (program,) = snippets(node / f"{name}-onnx", "js")
    program = program.replace('dtype: "q8"', 'dtype: "fp32"')
    (node / "program.mjs").write_text(f"{program}\nexport const found = logits.tolist();\n")
    (node / "index.html").write_text(PAGE)
    answer = browsed(node)
    assert answer.get("refused") == [] and "error" not in answer, answer
    np.testing.assert_allclose(answer["found"], logits_in_torch(here, name, TEXTS), atol=1e-4)
