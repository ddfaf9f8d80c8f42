"""A folder as it goes to the Hub: which of its files are published, and whether they are fit to be.

Only the files that are listed here are published: a stranger's machine reads them. What else lies in the folder, such
as predictions, logs and checkpoints, may be private. Pickles are never published.
"""

import difflib
import hashlib
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import metadata_load
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel

from lstmpool.configuration_lstmpool import LstmPoolConfig
from lstmpool.fields_lstmpool import PROBLEM_TYPES
from lstmpool.training.code_files import CODE, code_of
from lstmpool.training.errors import InputError, as_line, one_line
from lstmpool.training.output.found import EXPORT_RECORD, FLOAT, HANDLER, REQUIREMENTS
from lstmpool.training.output.lock import HOLDER, LOCK


# What is published besides the code, the weights and the images that the model card shows.
PUBLISHED = {
    "README.md",
    "LICENSE",
    "config.json",
    "metrics.json",
    # of tokenizers
    "added_tokens.json",
    "bpe.codes",
    "chat_template.jinja",
    "dict.txt",
    "entity_vocab.json",
    "merges.txt",
    "normalizer.json",
    "sentencepiece.bpe.model",
    "source.spm",
    "special_tokens_map.json",
    "spiece.model",
    "spm.model",
    "target.spm",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
}
PUBLISHED |= {path.name for path in CODE}
# Of a folder that `export.py` has written: at its top, and in its folder of graphs.
OF_MODEL = {"metrics.json"} | {path.name for path in CODE}
PUBLISHED_EXPORT = (PUBLISHED - OF_MODEL) | {EXPORT_RECORD, HANDLER, REQUIREMENTS}
PUBLISHED_GRAPHS = {
    FLOAT,
    "model_qint8_arm64.onnx",
    "model_qint8_avx512_vnni.onnx",
    "model_quantized.onnx",
    "model_quint8_avx2.onnx",
}
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
IMAGE = re.compile(r"!\[[^\]]*\]\(([\w.-]+\.(?:png|svg|jpg))\)")
HEADER = {"library_name": "transformers", "pipeline_tag": "text-classification"}
PATH = re.compile(r"~?/\w|[A-Za-z]:[\\/]")  # of a file, from the root or the home folder
IGNORED = "/training_args.bin"
RELATIVE_IMPORT = re.compile(r"^from \.(\w+) import", re.MULTILINE)


class UnfitFolder(InputError):
    """The folder is not fit to be published. Each of the `problems` is one line."""

    def __init__(self, problems: list[str]):
        super().__init__(" ".join(problems))
        self.problems = [as_line(problem) for problem in problems]


@dataclass(frozen=True)
class CodeFile:
    """A code file: its SHA-256, that of the installed release, and the lines in which they differ."""

    name: str
    sha256: str
    released: str
    difference: list[str]

    @property
    def is_released(self) -> bool:
        """Whether it is the installed release's, to the byte."""
        return self.sha256 == self.released


def prepare_output_dir(model: PreTrainedModel, folder: str | Path) -> None:
    """Makes each push of the library's `Trainer` load by itself. Call it before `train()`.

    During training, `Trainer` copies weights and config into `args.output_dir` and uploads that, without the model's
    code. This function adds the code, and a `.gitignore` that keeps the pickled `training_args.bin` off the Hub.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for path in code_of(model):
        shutil.copyfile(path, folder / path.name)
    path = folder / ".gitignore"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    if IGNORED not in text.splitlines():
        text += "\n" if text and not text.endswith("\n") else ""
        path.write_text(f"{text}{IGNORED}\n", encoding="utf-8")


def choose_files(folder: Path, known: set[str] | None = None) -> tuple[list[str], list[str]]:
    """The names of the files in a folder that are published, and of those that are left out.

    `known`: names that may be published. Unset: those of a model, its weights, and the images that its card shows.
    """
    if known is None:
        card = folder / "README.md"
        images = set(IMAGE.findall(card.read_text(encoding="utf-8", errors="replace"))) if card.is_file() else set()
        known = PUBLISHED | images | _weights(folder)
    paths = [path for path in folder.iterdir() if path.name not in (LOCK, HOLDER)]
    names = sorted(path.name + ("/" if path.is_dir() and not path.is_symlink() else "") for path in paths)
    return [name for name in names if name in known], [name for name in names if name not in known]


def copy_files(folder: Path, copy: Path, known: set[str] | None = None) -> list[str]:
    """Copies the files that are published into `copy`, and returns the names of those that are left out.

    `known`: as `choose_files` takes it.

    Raises:
        InputError: if one of them is a link, which may lead to any file of this machine, or cannot be read.
    """
    with one_line(f"{folder} cannot be read"):
        published, left_out = choose_files(folder, known)
        for name in published:
            shutil.copyfile(folder / name, copy / name, follow_symlinks=False)
    if links := [path.name for path in sorted(copy.iterdir()) if path.is_symlink()]:
        raise InputError(
            f"expected files, found links in {folder}: {', '.join(links)}. Links are not followed. Put the files "
            "themselves there."
        )
    _forget_paths(copy)
    return left_out


def _forget_paths(folder: Path) -> None:
    """Takes paths of this or another machine out of the configs. A library left them there, and nothing reads them."""
    for name in ("config.json", "tokenizer_config.json"):
        config = read_json(folder / name)
        if config is None:
            continue
        paths = []
        for part in (config, config.get("backbone_config")):
            if isinstance(part, dict):
                paths += [(part, key) for key, value in part.items() if _is_path(value)]
        for part, key in paths:
            del part[key]
        if paths:
            (folder / name).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and PATH.match(value) is not None


def check_files(folder: Path) -> list[str]:
    """What is wrong with a folder of files to publish: one line each, with the remedy."""
    wrong = check_pickles(folder)
    remedy = "Save the model again with save_pretrained."
    missing = [name for name in code_needed(folder) if not (folder / name).is_file()]
    wrong += [f"{name}, code of the model, not found. {remedy}" for name in missing]
    config = read_json(folder / "config.json")
    if config is None:
        return [*wrong, "config.json must be there and be JSON. Save the model with save_pretrained."]
    if config.get("model_type") != LstmPoolConfig.model_type:
        return [*wrong, f"config.json must say model_type 'lstmpool', found {config.get('model_type')!r}."]
    return wrong + _check_config(config) + _check_references(folder) + _check_weights(folder) + check_card(folder)


def check_pickles(folder: Path) -> list[str]:
    """A line for each file in the folder that is a pickle, by whatever name."""
    paths = sorted(path for path in folder.iterdir() if path.is_file())
    return [f"{path.name} is a pickle or an archive. Remove it." for path in paths if _is_pickle(path)]


def code_needed(folder: Path) -> list[str]:
    """The names of the code files that a model in the folder needs, whether or not they are there.

    A folder that an earlier release saved needs other files than one of today.
    """
    waiting = {f"{place.partition('.')[0]}.py" for place in LstmPoolConfig().auto_map.values()}
    needed = set()
    while waiting:
        name = waiting.pop()
        needed.add(name)
        path = folder / name
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        waiting |= {f"{module}.py" for module in RELATIVE_IMPORT.findall(text)} - needed
    return sorted(needed)


def compare_code(folder: Path) -> list[CodeFile]:
    """Compares the folder's code files, which must be there, with those of the installed release."""
    installed = {path.name: path.read_bytes() for path in CODE}
    found = []
    for name in code_needed(folder):
        path = folder / name
        mine, theirs = path.read_bytes(), installed.get(name, b"")
        texts = [data.decode("utf-8", "replace").splitlines() for data in (theirs, mine)]
        lines = difflib.unified_diff(*texts, f"installed/{path.name}", f"folder/{path.name}", lineterm="", n=1)
        hashes = [hashlib.sha256(data).hexdigest() for data in (mine, theirs)]
        found.append(CodeFile(path.name, *hashes, list(lines)))
    return found


def _weights(folder: Path) -> set[str]:
    """The names of the weights: one file, or an index and the parts that it names."""
    index = read_json(folder / INDEX) if (folder / INDEX).is_file() else None
    if (folder / WEIGHTS).is_file() or not index:
        return {WEIGHTS}
    parts = index.get("weight_map")
    return {INDEX, *(map(str, parts.values()) if isinstance(parts, dict) else [])}


def _check_config(config: dict[str, Any]) -> list[str]:
    wrong, expected = [], LstmPoolConfig().auto_map
    of_0_1_0 = expected | {"AutoConfig": "configuration_lstmpool.LstmPoolConfig"}
    if config.get("auto_map") not in (expected, of_0_1_0):
        wrong.append(
            f"config.json must have the auto_map {json.dumps(expected)}, found {json.dumps(config.get('auto_map'))}. "
            "Save the model again with save_pretrained."
        )
    found = config.get("problem_type")
    if found not in PROBLEM_TYPES:
        wrong.append(
            f"config.json must have a problem_type, one of {', '.join(PROBLEM_TYPES)}, found {found!r}. Set "
            "model.config.problem_type and save again."
        )
    id2label = config.get("id2label")
    names = list(id2label.values()) if isinstance(id2label, dict) else []
    if not names or any(re.fullmatch(r"LABEL_\d+", str(name)) for name in names):
        wrong.append(
            f"config.json must name its labels in id2label, found {', '.join(map(str, names[:3])) or 'none'}. Set "
            "model.config.id2label and label2id and save again."
        )
    return wrong


def _check_references(folder: Path) -> list[str]:
    """What is wrong with references to code: `owner/name--module.Class` names code in another repository."""
    wrong = []
    for path in (folder / "config.json", folder / "tokenizer_config.json"):
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        if found := re.findall(r'"([\w.-]+/[\w.-]+--[\w.]+)"', text):
            wrong.append(f"{path.name} points to code in another repository, {found[0]}. Save it with its own code.")
    return wrong


def _check_weights(folder: Path) -> list[str]:
    names = _weights(folder)
    if missing := sorted(name for name in names if not (folder / name).is_file()):
        return [f"the weights must be safetensors; {', '.join(missing)} not found. Save again with save_pretrained."]
    for name in sorted(names - {INDEX}):
        try:
            with safe_open(folder / name, "pt") as file:
                file.keys()
        except (SafetensorError, OSError) as error:
            return [f"{name} is not a whole safetensors file: {error}. Save again with save_pretrained."]
    return []


def check_card(folder: Path, expected: dict[str, str] | None = None) -> list[str]:
    """What is wrong with the header of the model card, as far as this machine can tell. A push asks the Hub, too.

    `expected`: what it must say; unset, what that of a model says.
    """
    path = folder / "README.md"
    expected = HEADER if expected is None else expected
    header = ", ".join(f"{key}: {value}" for key, value in expected.items())
    lines = f"the lines ---, {header}, ---"
    if not path.is_file():
        return [f"README.md, the model card, not found. Write one that begins with {lines}."]
    try:
        header = metadata_load(path)
    except UnicodeDecodeError as error:
        return [f"README.md must be UTF-8, found the byte {error.object[error.start]:#x}. Save it as UTF-8."]
    except yaml.YAMLError as error:
        return [f"the header of README.md is not valid YAML: {error}"]
    except (ValueError, RecursionError):  # a list or a text, where a dictionary belongs; lists in lists without end
        header = None
    if header is None:
        return [f"README.md must begin with a header such as {lines}, found none."]
    return [
        f"the header of README.md must have {key}: {value}, found {header.get(key)!r}."
        for key, value in expected.items()
        if header.get(key) != value
    ]


def _is_pickle(path: Path) -> bool:
    """Judges by content: torch's archives are zip files, a pickle begins with its protocol. No text does either."""
    with path.open("rb") as file:
        start = file.read(4)
    return start == b"PK\x03\x04" or (start[:1] == b"\x80" and start[1:2] <= b"\x05" and path.suffix != ".safetensors")


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file, or None if there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
