"""Loads a model as a stranger does: in a fresh isolated process, from an empty directory, with an empty cache.

`lstmpool` cannot be imported there, so the code that runs is the code that came with the model. This file is the
program of that process, too, so it imports nothing of the project.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoTokenizer


PROBES = (
    "Yes.",
    "My parcel arrived with a cracked screen.",
    "The first delivery was late, the second went to the wrong address; who can tell me where the third one is now?",
    "I have written to you three times about this order and nobody has answered. " * 12,
)
TOKENS = 256  # a longer text is cut, so that a model which reads long texts is checked as fast
SECONDS = 1800
# All that the process gets of the environment. It runs code that came with a model, so it sees no secret: no key of a
# cloud, no home folder, and no token unless the repository is private.
KEPT = (
    *("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "SYSTEMROOT"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "all_proxy", "no_proxy"),
    *("HF_ENDPOINT", "HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_TELEMETRY", "HF_HUB_ETAG_TIMEOUT"),
)


class LoadError(Exception):
    """The model cannot be loaded, or is another one. The message is one line."""


def probe_batches(tokenizer: Any) -> list[list[str]]:
    """Each probe alone and, if the tokenizer can pad, all of them in one batch."""
    alone = [[text] for text in PROBES]
    return alone if tokenizer.pad_token is None else [*alone, list(PROBES)]


def probe_logits(model: torch.nn.Module, tokenizer: Any, pairs: bool = False) -> list[list[float]]:
    """Logits (rows, C) of the `probe_batches`.

    With `pairs`, and for a model that reads pairs apart, each probe stands beside another one of its batch.
    """
    pairs = pairs or getattr(model.config, "pair_encoding", "joint") == "apart"
    options = {"truncation": True, "max_length": min(tokenizer.model_max_length, TOKENS), "return_tensors": "pt"}
    rows = []
    for batch in probe_batches(tokenizer):
        with torch.no_grad():
            others = batch[::-1] if pairs else None
            logits = model(**tokenizer(batch, others, padding=len(batch) > 1, **options)).logits  # (B, C)
        rows += logits.double().tolist()
    return rows


def load_in_fresh_process(
    source: str, inside: Path, revision: str | None = None, token: str | None = None
) -> dict[str, Any]:
    """Loads a folder (without a network), or a `revision` of a repository on the Hub, through the auto classes.

    Args:
        source: the folder, or the name of the repository.
        inside: the folder in which the process has its home, its cache and its temporary files.
        revision: a commit, branch or tag; unset for a folder.
        token: for a private repository.

    Returns:
        `logits`, those of the probes, and `code`, the SHA-256 of each code file that ran, by its name.

    Raises:
        LoadError: if the model does not load, or lacks weights.
    """
    place = str(Path(source).resolve()) if revision is None else source
    words = [place, revision or "", str(torch.get_num_threads())]
    return run_alone(__file__, words, inside, revision is not None, token)


def run_alone(
    program: str | Path, words: list[str], inside: Path, from_hub: bool, token: str | None = None
) -> dict[str, Any]:
    """Runs a file of Python in an isolated process, in an empty folder, with little of the environment.

    Args:
        program: the file. Its first word is the path at which it writes its answer, as JSON.
        words: those that follow.
        inside: the folder in which the process has its home, its cache and its temporary files.
        from_hub: whether it may ask the Hub.
        token: for a private repository.

    Raises:
        LoadError: if it fails, with the last line that it says.
    """
    with tempfile.TemporaryDirectory(dir=inside, ignore_cleanup_errors=True) as own:
        answer = Path(own, "answer.json")
        empty = Path(own, "empty")
        empty.mkdir()
        try:
            done = subprocess.run(
                [sys.executable, "-I", str(program), str(answer), *words],
                cwd=empty,
                env=_environment(own, from_hub, token),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=SECONDS,
            )
        except subprocess.TimeoutExpired:
            raise LoadError(f"loading took more than {SECONDS} s") from None
        if done.returncode or not answer.is_file():
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            raise LoadError(lines[-1] if lines else f"the process ended with status {done.returncode}")
        return json.loads(answer.read_text(encoding="utf-8"))


def _environment(own: str, from_hub: bool, token: str | None) -> dict[str, str]:
    """The variables of a process that has the folder `own` to itself."""
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    kept |= {"HOME": own, "HF_HOME": str(Path(own, "hf")), "TMPDIR": own, "HF_HUB_OFFLINE": "0" if from_hub else "1"}
    return kept | ({"HF_TOKEN": token} if token else {})


def largest_difference(logits: list[list[float]], others: list[list[float]]) -> float:
    """The largest distance of two logits, as a share of the largest logit if that is over 1; inf for other shapes."""
    one = torch.tensor(logits)
    other = torch.tensor(others)
    if one.shape != other.shape:
        return float("inf")
    difference = ((one - other).abs().max() / one.abs().max().clamp(min=1)).item()
    return difference if difference == difference else float("inf")  # NaN: a logit is not a number


def _main(answer: str, source: str, revision: str, threads: str) -> None:
    sys.modules["lstmpool"] = None  # cannot be imported, installed or not
    torch.set_num_threads(int(threads))  # the order of a sum, and so its rounding, depends on it
    options = {"revision": revision} if revision else {}
    trusting = options | {"trust_remote_code": True}
    AutoConfig.from_pretrained(source, **trusting)
    tokenizer = AutoTokenizer.from_pretrained(source, **options)
    model, report = AutoModelForSequenceClassification.from_pretrained(source, output_loading_info=True, **trusting)
    wrong = {name: sorted(map(str, report[name])) for name in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    if wrong := {name: keys[:3] for name, keys in wrong.items() if keys}:
        raise LoadError(f"the weights are not those of the model: {wrong}")
    base = AutoModel.from_pretrained(source, **trusting).state_dict()
    for name, tensor in model.base_model.state_dict().items():
        if name not in base or not torch.equal(base[name], tensor):
            raise LoadError(f"AutoModel gives other weights than AutoModelForSequenceClassification: {name}")
    places = [Path(getattr(module, "__file__", None) or "") for module in list(sys.modules.values())]
    here = Path(sys.modules[type(model).__module__].__file__).parent  # where the library puts what came with the model
    files = [path for path in places if path.parent == here and path.name != "__init__.py"]
    code = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    text = json.dumps({"logits": probe_logits(model.eval(), tokenizer), "code": code})
    Path(answer).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    _main(*sys.argv[1:])
