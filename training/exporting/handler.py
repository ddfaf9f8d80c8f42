"""Answers the requests of an Inference Endpoint as the pipeline for text classification does, without torch.

    {"inputs": "a text"}                                            -> [{"label": ..., "score": ...}]
    {"inputs": ["a text", "another"]}                               -> one such entry a text
    {"inputs": {"text": "a text", "text_pair": "its pair"}}         -> {"label": ..., "score": ...}
    {"inputs": ["a text"], "parameters": {"top_k": 3}}              -> for each text a list, the highest score first

Scores are probabilities, or the numbers of a regression. `"top_k": null` gives all labels. Long texts are cut where
training did. This file needs nothing but ONNX Runtime, tokenizers and numpy.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from tokenizers import Tokenizer


GRAPH = "onnx/model.onnx"  # an int8 file of the folder is faster, and a little off
ROWS = 32  # in a batch
LONGEST_TOLD = 80  # characters of a wrong request in a message
PARAMETERS = {"top_k", "function_to_apply", "truncation"}


class EndpointHandler:
    """The graph and the tokenizer in one folder."""

    def __init__(self, path: str = ""):
        """Loads them from the folder `path`."""
        folder = Path(path)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        record = json.loads((folder / "export.json").read_text(encoding="utf-8"))
        self.labels = list(config["id2label"].values())
        self.applied = _applied(config.get("problem_type"), len(self.labels))
        self.needs_pairs = bool(record.get("reads_pairs"))
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))  # cuts long texts, pads short ones
        self.session = onnxruntime.InferenceSession(str(folder / GRAPH), providers=["CPUExecutionProvider"])
        self.names = [one.name for one in self.session.get_inputs()]

    def __call__(self, data: dict[str, Any]) -> Any:
        """The answers to the `inputs` of a request. Raises ValueError for a request of another form."""
        if not isinstance(data, dict) or "inputs" not in data:
            raise ValueError(f'expected a request such as {{"inputs": "a text"}}, found {_short(data)}')
        inputs, parameters = data["inputs"], _checked(data.get("parameters"))
        is_alone = not isinstance(inputs, list) or _is_one_pair(inputs)
        rows = [_row(each) for each in ([inputs] if is_alone else inputs)]
        if not rows:
            raise ValueError("inputs: expected a text, a pair of texts or a list of such, found none")
        if self.needs_pairs and not all(isinstance(row, tuple) for row in rows):
            raise ValueError(
                'inputs: this model reads pairs, such as {"text": "one", "text_pair": "other"}; found a text'
            )
        applied = (parameters.get("function_to_apply") or self.applied).lower()
        scores = SCORES[applied](self._logits(rows))  # (B, C)
        if "top_k" in parameters:
            answers = [self._ranked(row, parameters["top_k"]) for row in scores]
            return answers[0] if is_alone else answers
        answers = [self._ranked(row, 1)[0] for row in scores]
        return answers[0] if is_alone and not isinstance(inputs, str) else answers

    def _logits(self, rows: list[Any]) -> np.ndarray:
        """(B, C)"""
        parts = []
        for start in range(0, len(rows), ROWS):
            tokens = self.tokenizer.encode_batch(rows[start : start + ROWS])
            columns = {
                "input_ids": [row.ids for row in tokens],
                "attention_mask": [row.attention_mask for row in tokens],
                "token_type_ids": [row.type_ids for row in tokens],
            }
            inputs = {name: np.array(columns[name], dtype=np.int64) for name in self.names}
            parts += self.session.run(["logits"], inputs)
        return np.concatenate(parts)

    def _ranked(self, scores: np.ndarray, top_k: int | None) -> list[dict[str, Any]]:
        """The labels of the highest scores, the highest first."""
        order = np.argsort(-scores, kind="stable")[:top_k]
        return [{"label": self.labels[i], "score": float(scores[i])} for i in order]


def _applied(problem_type: str | None, labels: int) -> str:
    """What makes scores of logits."""
    if problem_type == "regression":
        return "none"
    return "sigmoid" if problem_type == "multi_label_classification" or labels == 1 else "softmax"


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits))


def _softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def _none(logits: np.ndarray) -> np.ndarray:
    return logits


SCORES = {"sigmoid": _sigmoid, "softmax": _softmax, "none": _none}


def _checked(parameters: Any) -> dict[str, Any]:
    """The parameters of a request. Raises ValueError for those that have no meaning here."""
    parameters = {} if parameters is None else parameters
    if not isinstance(parameters, dict):
        raise ValueError(f"parameters: expected a dictionary, found {_short(parameters)}")
    if unknown := sorted(set(parameters) - PARAMETERS):
        raise ValueError(f"parameters: expected some of {sorted(PARAMETERS)}, found {', '.join(unknown)}")
    applied, top_k = parameters.get("function_to_apply"), parameters.get("top_k")
    if applied is not None and str(applied).lower() not in SCORES:
        raise ValueError(f"function_to_apply: expected one of {', '.join(SCORES)}, found {_short(applied)}")
    if top_k is not None and (type(top_k) is not int or top_k < 1):
        raise ValueError(f"top_k: expected a whole number from 1, or null for all labels, found {_short(top_k)}")
    return parameters


def _short(found: Any) -> str:
    """What was found, in a message."""
    text = repr(found)
    return text if len(text) <= LONGEST_TOLD else f"{text[:LONGEST_TOLD]} ..."


def _is_one_pair(inputs: Any) -> bool:
    """Whether this is [["one", "other"]], an older form of a pair."""
    return isinstance(inputs, list) and len(inputs) == 1 and isinstance(inputs[0], list)


def _row(given: Any) -> Any:
    """A text, or a pair of them as a tuple."""
    if isinstance(given, list) and len(given) == 1 and isinstance(given[0], list):
        given = given[0]
    if isinstance(given, dict):
        text, other = given.get("text"), given.get("text_pair")
        given = text if other is None else [text, other]
    is_pair = isinstance(given, list) and len(given) == 2 and all(isinstance(each, str) for each in given)
    if not isinstance(given, str) and not is_pair:
        raise ValueError(f"inputs: expected a text, or a dictionary of text and text_pair, found {_short(given)}")
    if any("\ud800" <= letter <= "\udfff" for letter in "".join(given)):
        raise ValueError(f"inputs: expected Unicode, found half of a character in {_short(given)}")
    return tuple(given) if is_pair else given
