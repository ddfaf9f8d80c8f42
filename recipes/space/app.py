"""A page to try a model of lstmpool on: the scores of a text, and what the model says after each of its layers.

    python app.py FOLDER        # on this machine; it runs the code that lies in the folder
    python app.py               # on the Hub: `space.json` beside this file names the model and its commit

L layers after which the model can answer, C labels; `kind` is the `problem_type` of its config.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import cached_file


os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # before gradio is imported, which `page` does

MULTI, REGRESSION = "multi_label_classification", "regression"
LONGEST = 512  # tokens, where a tokenizer does not say where to cut
MOST_EXAMPLES = 12
NO_EXITS = "This model has no exits, so it reads every text to its highest layer. Train with --early_exit to get them."
NO_SURENESS = "This model reads every text to its highest layer: exits are for classes and labels, not for numbers."
CSS = """
.lstmpool table {width: 100%; border-collapse: collapse; border: 0; margin: 0; line-height: 1.4}
.lstmpool tr {border: 0; border-bottom: 1px solid var(--border-color-primary)}
.lstmpool td, .lstmpool th {border: 0; padding: 0.35rem 0.5rem; text-align: left; overflow-wrap: anywhere}
.lstmpool th, .lstmpool p {font-weight: 400; color: var(--body-text-color); opacity: 0.7; overflow-wrap: normal}
.lstmpool .bar {width: 30%}
.lstmpool .bar div {height: 0.55rem; border-radius: 0.3rem; background: var(--color-accent)}
.lstmpool .number {width: 4rem; text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums}
.lstmpool .chosen {font-weight: 600} .lstmpool .unread {opacity: 0.45}
.lstmpool h2, .lstmpool h3 {margin: 1rem 0 0.2rem; overflow-wrap: anywhere}
"""


def scores_of(logits: Tensor, kind: str) -> Tensor:
    """The scores (..., C) of `logits` (..., C): probabilities, or the numbers of a regression."""
    if kind == REGRESSION:
        return logits
    return logits.float().sigmoid() if kind == MULTI else logits.float().softmax(-1)


def sureness_of(logits: Tensor, kind: str) -> Tensor:
    """How sure `logits` (..., C) are, from 0 to 1, (...): of several labels, the decision that is the least sure."""
    return logits.float().abs().sigmoid().amin(-1) if kind == MULTI else logits.float().softmax(-1).amax(-1)


def stop_of(sureness: Tensor, threshold: float | None) -> int:
    """The place in `sureness` (L,) at which a text is answered: the first that is sure enough, else the last."""
    sure = [] if threshold is None else (sureness[:-1] >= threshold).nonzero()
    return int(sure[0]) if len(sure) else len(sureness) - 1


def answer_of(logits: Tensor, labels: list[str], kind: str) -> str:
    """What the model says with `logits` (C,): the likeliest label, or all that are more likely than not."""
    if kind != MULTI:
        return labels[int(logits.argmax())]
    return ", ".join(label for label, logit in zip(labels, logits, strict=True) if logit > 0) or "no label"


def examples_of(labels: list[str], texts: int) -> list[list[str]]:
    """Rows of one text, or of two, made of the labels' names alone."""
    words = [label.replace("_", " ") for label in labels]
    return [[words[i], words[(i + 1) % len(words)]][:texts] for i in range(min(len(words), MOST_EXAMPLES))]


class Reading(NamedTuple):
    """What a model says of a text: the `logits` (L, C) after some `layers`, and the place of the one it stops at."""

    logits: Tensor
    layers: list[int]
    stop: int


class Reader:
    """A model with its tokenizer, from a folder or a commit on the Hub. It runs the code that comes with it."""

    def __init__(self, model: str, revision: str | None = None):
        options = {"revision": revision, "trust_remote_code": True}
        self.model = AutoModelForSequenceClassification.from_pretrained(model, **options).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(model, **options)
        config = self.model.config
        if config.model_type != "lstmpool":
            raise ValueError(f"{model} holds a model of the kind {config.model_type}, which is not lstmpool")
        if self.tokenizer.model_max_length > 10**6:
            positions = getattr(config.backbone_config, "max_position_embeddings", None) or LONGEST
            self.tokenizer.model_max_length = min(positions - 2, LONGEST)  # RoBERTa and its kin use two less
        self.name = f"{model} at commit {revision[:7]}" if revision else Path(model).resolve().name
        self.kind = config.problem_type
        self.labels = [config.id2label[i] for i in range(config.num_labels)]
        self.texts = 2 if getattr(config, "pair_encoding", None) == "apart" else _texts_a_row(model, revision)
        self.threshold = getattr(config, "exit_threshold", None)  # models of the first release have none
        config.exit_threshold = None  # or a run would not give all layers

    def cuts(self, *texts: str) -> bool:
        """Whether the model reads only the beginning of a text, or of a pair of texts."""
        whole = self.tokenizer(*texts, verbose=False)
        return len(whole["input_ids"]) > self.tokenizer.model_max_length

    @torch.no_grad()
    def read(self, *texts: str) -> Reading:
        """What the model says of a text, or of a pair of texts."""
        found = self.model(**self.tokenizer(*texts, truncation=True, return_tensors="pt"))
        layers = self.model.config.layers
        if getattr(self.model, "exits", None) is None:
            return Reading(found.logits, layers[-1:], 0)
        logits = torch.cat([self.model.exits(found.layer_states)[0], found.logits])  # (L, C)
        return Reading(logits, layers, stop_of(sureness_of(logits, self.kind), self.threshold))


def _texts_a_row(model: str, revision: str | None) -> int:
    """How many texts the model was trained to read together: 2 if its metrics.json says so."""
    try:
        metrics = json.loads(Path(cached_file(model, "metrics.json", revision=revision)).read_text(encoding="utf-8"))
        return 2 if next(iter(metrics["data"].values()))["texts_a_row"] == 2 else 1
    except (OSError, ValueError, LookupError, TypeError, AttributeError, StopIteration):
        return 1


def load(words: list[str]) -> Reader:
    """The model in the folder that is named or, if there are no words, that of `space.json`.

    Raises:
        OSError, ValueError, SafetensorError: if there is none that can be loaded.
    """
    record = Path(__file__).with_name("space.json")
    if not words and record.is_file():
        return Reader(**json.loads(record.read_text(encoding="utf-8")))
    if len(words) != 1:
        raise ValueError(f"found {len(words)} names")
    if not Path(words[0]).is_dir():  # on the Hub, such a name may be a stranger's, whose code would run
        raise ValueError(f"there is no folder {words[0]}")
    return Reader(words[0])


def scores_table(logits: Tensor, labels: list[str], kind: str) -> str:
    """HTML: all labels and their scores, the highest first; a regression's numbers in the order of its targets."""
    scores = scores_of(logits, kind).tolist()
    if kind == REGRESSION:
        rows = [_row("", [label], f"{score:.4g}") for label, score in zip(labels, scores, strict=True)]
    else:
        order = logits.argsort(descending=True, stable=True).tolist()
        chosen = logits > 0 if kind == MULTI else torch.arange(len(logits)) == logits.argmax()
        rows = [_row("chosen" if chosen[i] else "", [labels[i]], f"{scores[i]:.1%}", scores[i]) for i in order]
    return f"<table>{''.join(rows)}</table>"


def layers_table(reading: Reading, labels: list[str], kind: str, threshold: float | None) -> str:
    """HTML: what the model says after each layer, how sure it is, and where it stops."""
    if len(reading.layers) == 1:
        return f"<h3></h3><p>{NO_SURENESS if kind == REGRESSION else NO_EXITS}</p>"
    rule = "Its exits are off: it reads every text to its highest layer."
    if threshold is not None:
        here = f"here at layer {reading.layers[reading.stop]} of {reading.layers[-1]}"
        rule = f"It stops at the first layer that is at least {threshold:.1%} sure, or at the highest: {here}."
    rows = ['<tr><th>layer</th><th>says</th><th class="bar"></th><th class="number">sure</th></tr>']
    for place, (layer, logits) in enumerate(zip(reading.layers, reading.logits, strict=True)):
        state = ""
        if place >= reading.stop:
            state = "chosen" if place == reading.stop else "unread"
        sure = float(sureness_of(logits, kind))
        rows.append(_row(state, [str(layer), answer_of(logits, labels, kind)], f"{sure:.1%}", sure))
    return f"<h3>Layer by layer</h3><p>{rule}</p><table>{''.join(rows)}</table>"


def _row(state: str, words: list[str], number: str, filled: float | None = None) -> str:
    cells = [f"<td>{escape(word)}</td>" for word in words]
    if filled is not None:
        cells.append(f'<td class="bar"><div style="width: {filled:.1%}"></div></td>')
    return f'<tr class="{state}">{"".join(cells)}<td class="number">{number}</td></tr>'


def told(reader: Reader, *texts: str) -> str:
    """HTML: all that the page says of a text, or of a pair of texts."""
    if not all(text.strip() for text in texts):
        return "<p>There is nothing to read yet.</p>"
    reading, labels, kind = reader.read(*texts), reader.labels, reader.kind
    logits = reading.logits[reading.stop]
    title = "" if kind == REGRESSION else f"<h2>{escape(answer_of(logits, labels, kind))}</h2>"
    if reader.cuts(*texts):
        title += f"<p>The text is too long: its first {reader.tokenizer.model_max_length} tokens are read.</p>"
    return title + scores_table(logits, labels, kind) + layers_table(reading, labels, kind, reader.threshold)


def page(reader: Reader) -> Any:
    """The page, as `gr.Blocks`."""
    import gradio as gr

    names = ["Text"] if reader.texts == 1 else ["First text", "Second text"]
    with gr.Blocks(title=f"Try {reader.name}", analytics_enabled=False) as blocks:
        gr.HTML(f"<h1>Try {escape(reader.name)}</h1>")
        boxes = [gr.Textbox(label=name) for name in names]
        button = gr.Button("Read it", variant="primary")
        result = gr.HTML(elem_classes="lstmpool", render=False)
        read = {"fn": lambda *texts: told(reader, *texts), "inputs": boxes, "outputs": result}
        rows = examples_of(reader.labels, reader.texts)
        gr.Examples(rows, label="Or try the name of a label", run_on_click=True, cache_examples=False, **read)
        result.render()
        gr.on([button.click, *(box.submit for box in boxes)], **read)
    return blocks


if __name__ == "__main__":
    if importlib.util.find_spec("gradio") is None:
        sys.exit('error: expected gradio, found none. Install it: pip install "lstmpool[demo-page]"')
    try:
        reader = load(sys.argv[1:])
    except (OSError, ValueError, SafetensorError) as error:
        found = str(error).rstrip(".")
        sys.exit(f"error: expected the folder of a model that can be loaded: {found}. Run python app.py FOLDER")
    from gradio.themes import Default

    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["monospace"]}  # of the machine: none is fetched
    page(reader).launch(theme=Default(**fonts), css=CSS, footer_links=[], ssr_mode=False)
