"""The README of an exported folder: what it is made from, what its files give, and a snippet for each client.

The tests run each snippet in Python and for transformers.js as it stands here, up to the two that the card marks.
"""

import json
import shlex
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from lstmpool.fields_lstmpool import MULTI, REGRESSION
from lstmpool.training.exporting.graph import OPSET, TOLERANCE
from lstmpool.training.exporting.quantised import Graph, Rows
from lstmpool.training.output import markdown
from lstmpool.training.output.found import GRAPHS
from lstmpool.training.tasks.task import Task


EXAMPLES = ("The parcel arrived two days late.", "Thank you, all is well.")
DECIDED = {  # in Python, by the problem type; `logits` (B, C)
    REGRESSION: ["for row in logits:", "    print(dict(zip(labels, row.tolist())))"],
    MULTI: ["for row in logits:", "    print([label for label, logit in zip(labels, row) if logit > 0])"],
}
ONE = ["print([labels[i] for i in logits.argmax(-1)])"]
DECIDED_IN_JS = {
    REGRESSION: "console.log(logits.tolist());  // a pipeline would apply a softmax to them",
    MULTI: "console.log(logits.sigmoid().tolist());  // a label is given above one half",
}
ONE_IN_JS = "console.log(logits.tolist().map((row) => labels[row.indexOf(Math.max(...row))]));"


FULL_DEPTH = "The model has exits by depth. The graphs have none: they read every text to the highest layer."

HANDLER_TOLD = (
    "`handler.py` answers as the pipeline for text classification does, by the float graph, and needs what "
    '`requirements.txt` names. A request is `{"inputs": ["a text"], "parameters": {"top_k": null}}`; of a pair, '
    '`{"inputs": {"text": "one", "text_pair": "other"}}`.'
)


@dataclass(frozen=True)
class Contents:
    """What the card tells.

    Args:
        name: of the exported folder.
        source: the model's folder or name on the Hub, without the folders of the machine.
        family: the backbone's `model_type`.
        task: what is predicted.
        reads_pairs: whether a row is a pair of texts.
        graphs: the files, the float one first.
        float_bytes: of the float32 weights in torch.
        rows: on which the files were measured; None if on none.
        left_out: a sentence on each file that was not kept.
        exits: whether the model has exits by depth, which the graphs lack.
        handler: whether the folder has code for an Inference Endpoint.
    """

    name: str
    source: str
    family: str
    task: Task
    reads_pairs: bool
    graphs: list[Graph]
    float_bytes: int
    rows: Rows | None = None
    left_out: list[str] = field(default_factory=list)
    exits: bool = False
    handler: bool = False


def card(contents: Contents) -> str:
    """The whole README, with the header that the Hub reads."""
    parts = [
        "\n".join(["---", *_header(contents), "---"]),
        f"# {markdown.name(contents.name)}",
        _about(contents),
        *[FULL_DEPTH] * contents.exits,
        "## Files",
        markdown.table(file_table(contents.graphs, contents.rows), words=2),
        *_about_table(contents),
        "## ONNX Runtime and tokenizers",
        "Nothing else is needed, torch neither: `pip install onnxruntime tokenizers numpy`.",
        markdown.code_block(python_snippet(contents), "python"),
        "## transformers.js",
        "In node or a browser, `npm install @huggingface/transformers`. The folder lies in the working directory; on "
        "the Hub, leave out the lines with `env` and give the repository's name.",
        markdown.code_block(javascript_snippet(contents), "js"),
        "## optimum (not run by this project's tests)",
        "optimum wants an environment of its own, with an older transformers: `pip install optimum[onnxruntime]`.",
        markdown.code_block(_optimum_snippet(contents), "python"),
        "## Text Embeddings Inference (not run by this project's tests)",
        "As its source says, it serves a graph with an output `logits` and such a config; it reads `onnx/model.onnx`.",
        markdown.code_block(_tei_snippet(contents), "bash"),
    ]
    if contents.handler:
        parts += [
            "## Inference Endpoints (this project's tests run the handler, and no Endpoint)",
            HANDLER_TOLD,
        ]
    return "\n\n".join(parts) + "\n"


def _header(contents: Contents) -> list[str]:
    tags = ["onnx", "lstmpool", "text-classification", contents.family]
    return [
        "library_name: transformers.js",
        "pipeline_tag: text-classification",
        "tags:",
        *(f"- {json.dumps(tag)}" for tag in tags),
    ]


def _about(contents: Contents) -> str:
    answers = {REGRESSION: "numbers, with nothing left to apply", MULTI: "one a label, which is given above 0"}
    meaning = answers.get(contents.task.problem_type, "one a label, of which the largest wins")
    per_row = "a pair of texts" if contents.reads_pairs else "a text"
    source, family = markdown.code(contents.source), markdown.name(contents.family)
    return (
        f"ONNX graphs of {source}, an LSTM over the layers of a {family} (lstmpool). They run without that model's "
        f"code, and without torch. A row is {per_row}. The output `logits` has {len(contents.task.names)} columns: "
        f"{meaning}. "
        f"`config.json` calls the model a {family} so that stock clients read it; no weights for that class are here."
    )


def file_table(graphs: list[Graph], rows: Rows | None) -> list[list[str]]:
    """The files with their sizes and what was measured, the names of the columns first."""
    measured = rows is not None
    has_answers = measured and not rows.task.has_numbers
    head = ["file", "for", "MB", "largest difference of a logit"]
    head += ["same answers"] * has_answers + ([rows.task.titles[rows.task.headline]] if measured else [])
    table = [head]
    for graph in graphs:
        same = f"; the bytes of {graph.same_as}" if graph.same_as else ""
        line = [f"`{GRAPHS}/{graph.name}`", f"{graph.for_whom}{same}", f"{graph.bytes / 1e6:,.1f}"]
        line.append(f"{graph.difference:.1g}")
        if has_answers:
            line.append(f"{100 * graph.agreement:.1f} %")
        if measured:
            line.append(f"{graph.metric:.4f}")
        table.append(line)
    return table


def _about_table(contents: Contents) -> list[str]:
    lines = [
        f"The float32 weights take {contents.float_bytes / 1e6:,.1f} MB in torch. The differences are those from "
        "torch on probe texts, short, long, empty and padded on either side, as a share of the largest logit or of 1; "
        f"the float file is refused above {TOLERANCE:g}. Opset {OPSET}, {_versions()}."
    ]
    rows = contents.rows
    if rows is None:
        lines.append("The files were compared on no rows with labels (`--test_file`).")
    else:
        title = rows.task.titles[rows.task.headline]
        shared = (
            "" if rows.task.has_numbers else " *Same answers* is the share of rows to which a file answers as it does."
        )
        lines.append(f"{rows.title}: the model in torch has {title} {rows.metric:.4f}.{shared}")
    if any(graph.weights != "float32" for graph in contents.graphs):
        lines.append(
            "An int8 file quantises activations with one scale a batch, so its logits depend a little on the rest of "
            "the batch."
        )
    return lines + contents.left_out


def _versions() -> str:
    return ", ".join(f"{name} {version(name)}" for name in ("lstmpool", "torch", "transformers", "onnxruntime"))


# ------------------------------------------------------------------------------------------------------- the snippets
def python_snippet(contents: Contents) -> str:
    """A program that prints the answers to two texts, or pairs of texts."""
    texts = f"[{', '.join(map(markdown.python_text, EXAMPLES))}]"
    rows = "texts"
    lines = []
    if contents.reads_pairs:
        lines = [f"others = [{', '.join(map(markdown.python_text, EXAMPLES[::-1]))}]"]
        rows = "list(zip(texts, others))"
    return "\n".join(
        [
            "import json",
            "",
            "import numpy as np",
            "import onnxruntime",
            "from tokenizers import Tokenizer",
            "",
            f"folder = {markdown.python_text(contents.name)}",
            'tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")  # cuts long texts, pads short ones',
            f'session = onnxruntime.InferenceSession(f"{{folder}}/{GRAPHS}/{_file(contents)}")',
            'with open(f"{folder}/config.json", encoding="utf-8") as file:',
            '    labels = list(json.load(file)["id2label"].values())',
            "",
            f"texts = {texts}",
            *lines,
            f"rows = tokenizer.encode_batch({rows})",
            "columns = {",
            '    "input_ids": [row.ids for row in rows],',
            '    "attention_mask": [row.attention_mask for row in rows],',
            '    "token_type_ids": [row.type_ids for row in rows],',
            "}",
            "names = [one.name for one in session.get_inputs()]",
            '(logits,) = session.run(["logits"], {name: np.array(columns[name], dtype=np.int64) for name in names})',
            *DECIDED.get(contents.task.problem_type, ONE),
        ]
    )


def _file(contents: Contents) -> str:
    """The int8 file that runs anywhere, if there is one."""
    names = [graph.name for graph in contents.graphs]
    return "model_quantized.onnx" if "model_quantized.onnx" in names else names[0]


def javascript_snippet(contents: Contents) -> str:
    """The same for transformers.js."""
    texts = json.dumps(EXAMPLES)
    pair = f", text_pair: {json.dumps(EXAMPLES[::-1])}" if contents.reads_pairs else ""
    needs_labels = contents.task.problem_type not in DECIDED_IN_JS
    labels = ["const labels = Object.values(model.config.id2label);"] * needs_labels
    return "\n".join(
        [
            'import { AutoModelForSequenceClassification, AutoTokenizer, env } from "@huggingface/transformers";',
            "",
            "env.allowRemoteModels = false;",
            "env.allowLocalModels = true;  // off in browsers",
            'env.localModelPath = "./";',
            f"const name = {json.dumps(contents.name)};",
            "const tokenizer = await AutoTokenizer.from_pretrained(name);",
            f'const options = {{ dtype: "{_dtype(contents)}" }};',
            "const model = await AutoModelForSequenceClassification.from_pretrained(name, options);",
            *labels,
            f"const tokens = tokenizer({texts}, {{ padding: true, truncation: true{pair} }});",
            "const { logits } = await model(tokens);",
            DECIDED_IN_JS.get(contents.task.problem_type, ONE_IN_JS),
        ]
    )


def _dtype(contents: Contents) -> str:
    return "q8" if _file(contents) == "model_quantized.onnx" else "fp32"


def _optimum_snippet(contents: Contents) -> str:
    pair = ", others" if contents.reads_pairs else ""
    folder = markdown.python_text(contents.name)
    return "\n".join(
        [
            "from optimum.onnxruntime import ORTModelForSequenceClassification",
            "from transformers import AutoTokenizer",
            "",
            f'model = ORTModelForSequenceClassification.from_pretrained({folder}, subfolder="{GRAPHS}", '
            f'file_name="{_file(contents)}")',
            f"tokenizer = AutoTokenizer.from_pretrained({folder})",
            f'logits = model(**tokenizer(texts{pair}, padding=True, truncation=True, return_tensors="pt")).logits',
        ]
    )


def _tei_snippet(contents: Contents) -> str:
    return "\n".join(
        [
            "docker run -p 8080:80 -v $PWD:/data ghcr.io/huggingface/text-embeddings-inference:cpu-latest \\",
            f"    --model-id {shlex.quote(f'/data/{contents.name}')}",
            "curl 127.0.0.1:8080/predict -H 'Content-Type: application/json' "
            f"-d '{json.dumps({'inputs': _tei_inputs(contents)})}'",
        ]
    )


def _tei_inputs(contents: Contents) -> Any:
    return [list(EXAMPLES)] if contents.reads_pairs else EXAMPLES[0]
