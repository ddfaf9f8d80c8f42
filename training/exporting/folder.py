"""The exported folder: a plain config, the tokenizer's files and the record, written beside its place and then moved.

Stock clients know nothing of `model_type: lstmpool`. So the config is the backbone's, with the labels, and the name of
a class that classifies. Such a config beside this model's own weights would load as a backbone with a random head. The
export therefore lies in a folder of its own, which holds no weights but those in the graphs.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_MAPPING_NAMES,
)

from lstmpool.configuration_lstmpool import LstmPoolConfig
from lstmpool.families_lstmpool import stack_config
from lstmpool.training.errors import InputError
from lstmpool.training.exporting.options import Request
from lstmpool.training.exporting.quantised import OF_COLUMNS, Graph, Rows
from lstmpool.training.output.folder import forget_source
from lstmpool.training.output.found import EXPORT_RECORD, GRAPHS, HANDLER, REQUIREMENTS, read_export
from lstmpool.training.predicting.model import Finished
from lstmpool.training.writing import digests_of, saving, settle


CLASSIFIES = "ForSequenceClassification"
AT_THE_TOP = ("hidden_size", "num_hidden_layers", "max_position_embeddings")  # Text Embeddings Inference reads them
PRIVATE = ("_name_or_path", "auto_map", "dtype", "torch_dtype", "transformers_version")
TOKENIZER = "tokenizer.json"


# -------------------------------------------------------------------------------------------------------- the place
def check_output(request: Request) -> None:
    """Raises InputError if the folder may not be written: it is there, lies in the model's, or has no folder above."""
    output = request.output
    model = Path(request.model).resolve()
    place = output.resolve()
    if model.is_dir() and (place.is_relative_to(model) or model.is_relative_to(place)):
        raise InputError(
            f"--output {output} must lie outside of the model's folder: beside its weights, the config of an export "
            "would load as another model. Name another place."
        )
    if not output.parent.is_dir():
        raise InputError(f"--output {output} cannot be written: there is no folder {output.parent}. Make it first.")
    if not os.path.lexists(output):
        return
    is_empty = output.is_dir() and not any(output.iterdir())
    if output.is_symlink() or not output.is_dir() or (not is_empty and read_export(output) is None):
        raise InputError(f"{output} is there, and is no export of this command. Name another place with --output.")
    if not is_empty and not request.options.overwrite:
        raise InputError(f"{output} exists already. Choose another --output, or add --overwrite.")


@contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """Gives an empty folder beside `output`. When the block ends, it takes the place of `output`.

    If the block raises, `output` stays as it was. What a kill has left is removed by the next export to `output`.
    """
    unfinished = output.with_name(f".{output.name}.unfinished")
    replaced = output.with_name(f".{output.name}.replaced")
    for left in (unfinished, replaced):
        shutil.rmtree(left, ignore_errors=True)
    try:
        with saving(output):
            (unfinished / GRAPHS).mkdir(parents=True)
            yield unfinished
            settle(unfinished)
            if output.exists():
                os.replace(output, replaced)
            os.replace(unfinished, output)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)


# ------------------------------------------------------------------------------------------------------- the contents
def plain_config(config: LstmPoolConfig, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The backbone's config, as a stock client reads it: with the labels, and a class that classifies."""
    backbone = stack_config(config.backbone_config)
    found = {name: value for name, value in backbone.to_dict().items() if name not in PRIVATE}
    family = backbone.model_type
    known = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.get(family)
    bare = MODEL_MAPPING_NAMES.get(family, family.title())
    stem = (bare if isinstance(bare, str) else bare[0]).removesuffix("Model")
    for name in AT_THE_TOP:
        if found.get(name) is None:
            value = getattr(backbone, name, None)  # some families have another name for it
            found[name] = tokenizer.model_max_length if value is None else value
    return found | {
        "model_type": family,
        "architectures": [known if isinstance(known, str) else f"{stem}{CLASSIFIES}"],
        "id2label": {str(i): name for i, name in config.id2label.items()},
        "label2id": {name: i for i, name in config.id2label.items()},
        "problem_type": config.problem_type,
    }


def write_config(folder: Path, config: LstmPoolConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Writes `plain_config`."""
    text = json.dumps(plain_config(config, tokenizer), indent=2)  # unsorted, or label 10 would precede 2
    (folder / "config.json").write_text(text + "\n", encoding="utf-8")


def write_record(folder: Path, model: Finished, graphs: list[Graph], rows: Rows | None) -> None:
    """Writes what the folder is made from, and digests of what lies in it: call it when all but the card is there.

    `predict.py` reads it, `--overwrite` knows the folder by it, and it is published only if they still match.
    """
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    settings = {name: model.settings[name] for name in OF_COLUMNS if model.settings.get(name) is not None}
    record = {
        "made_from": model.digest(),
        "problem_type": model.task.problem_type,
        "labels": model.task.names,
        "reads_pairs": model.reads_pairs,
        "settings": settings,
        "rows": None if rows is None else {"title": rows.title, rows.task.headline: rows.metric},  # the model's own
        "files": [asdict(graph) for graph in graphs],
        "digests": digests_of(folder, [path.relative_to(folder).as_posix() for path in paths]),
    }
    (folder / EXPORT_RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def write_handler(folder: Path) -> None:
    """Writes the code by which an Inference Endpoint answers, and what it needs there."""
    shutil.copyfile(Path(__file__).with_name(HANDLER), folder / HANDLER)
    needed = [f"{name}>={version(name)}" for name in ("onnxruntime", "tokenizers")]
    (folder / REQUIREMENTS).write_text("\n".join([*needed, "numpy"]) + "\n", encoding="utf-8")


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, title: str) -> None:
    """Raises InputError for a tokenizer that is not a `tokenizer.json`, the only one that stock clients read."""
    if not tokenizer.is_fast:
        raise InputError(
            f"{title} cannot be exported: its {type(tokenizer).__name__} is written in Python, and clients without "
            f"Python read only a {TOKENIZER}. Use it with torch."
        )


def write_tokenizer(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Writes the tokenizer, which cuts texts where training did and pads a batch to its longest row."""
    forget_source(tokenizer)
    tokenizer.save_pretrained(folder)
    path = str(folder / TOKENIZER)
    alone = Tokenizer.from_file(path)
    alone.enable_truncation(tokenizer.model_max_length, direction=tokenizer.truncation_side)
    alone.enable_padding(
        direction=tokenizer.padding_side,
        pad_id=tokenizer.pad_token_id,
        pad_type_id=tokenizer.pad_token_type_id,
        pad_token=tokenizer.pad_token,
    )
    alone.save(path)
