"""The output folder: checked before anything is loaded, given the code before training, filled at the end.

What is published is written under a temporary name and moved into place, so that a run cut off in the middle leaves
no half of a model. Checkpoints keep the optimizer; the folder's top level never holds anything pickled.
"""

import inspect
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_utils import get_last_checkpoint

from lstmpool import configuration_lstmpool, modeling_lstmpool
from lstmpool.training.arguments import TrainingArguments
from lstmpool.training.errors import InputError


CODE = [Path(inspect.getfile(module)) for module in (configuration_lstmpool, modeling_lstmpool)]
STAGING = ".unfinished"
# What a finished run leaves beside its checkpoints; --overwrite removes these and nothing else.
WRITTEN = {"README.md", "config.json", "metrics.json", *(path.name for path in CODE)} | set(
    "added_tokens.json chat_template.jinja merges.txt sentencepiece.bpe.model special_tokens_map.json spiece.model "
    "spm.model tokenizer.json tokenizer.model tokenizer_config.json training_args.bin vocab.json vocab.txt".split()
)


def check_output(args: TrainingArguments) -> None:
    """Refuses an output folder that holds another run, and turns `resume_from_checkpoint` into a folder.

    Raises:
        InputError: if the folder is taken, or there is no checkpoint to resume from.
    """
    folder = Path(args.output_dir)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--output_dir {folder} must be a folder, found a file.")
    if args.resume_from_checkpoint:
        args.resume_from_checkpoint = str(_checkpoint(folder, args.resume_from_checkpoint))
        return
    held = [path.name for path in _written(folder) if path.name == "config.json" or path.name not in WRITTEN]
    if held and not _is_ours(folder):
        raise InputError(f"--output_dir {folder} holds another kind of model ({held[0]}). Choose another folder.")
    if held and not args.overwrite:
        raise InputError(
            f"--output_dir {folder} holds a run already ({', '.join(held[:3])}). Choose another folder, continue that "
            "run with --resume_from_checkpoint last, or replace it with --overwrite."
        )


def prepare_output(args: TrainingArguments) -> None:
    """Empties the folder of the run that is replaced, and puts the model's code into it.

    The code comes first because whatever uploads the folder during training must find it there.
    """
    folder = Path(args.output_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not args.resume_from_checkpoint:
            for path in _written(folder):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        for path in CODE:
            shutil.copyfile(path, folder / path.name)
    except OSError as error:
        raise InputError(f"--output_dir {folder} cannot be written: {error}") from None


def write_output(
    folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, card: str, metrics: dict[str, Any]
) -> None:
    """Weights, config, code, tokenizer, README.md and metrics.json, ready for the Hub."""
    staging = folder / STAGING
    shutil.rmtree(staging, ignore_errors=True)
    model.save_pretrained(staging)
    _forget_source(tokenizer)
    tokenizer.save_pretrained(staging)
    (staging / "README.md").write_text(card, encoding="utf-8")
    text = json.dumps(_without_nan(metrics), indent=2, allow_nan=False)
    (staging / "metrics.json").write_text(text + "\n", encoding="utf-8")
    for path in sorted(staging.iterdir()):
        os.replace(path, folder / path.name)
    staging.rmdir()


def _forget_source(tokenizer: PreTrainedTokenizerBase) -> None:
    """The library saves how the tokenizer was loaded, too, which is not true of the published folder."""
    for key in ("is_local", "local_files_only", "trust_remote_code", "revision", "name_or_path"):
        tokenizer.init_kwargs.pop(key, None)


def _written(folder: Path) -> list[Path]:
    """What a run has left in the folder."""
    if not folder.is_dir():
        return []
    checkpoints = [path.parent for path in folder.glob("checkpoint-*/trainer_state.json")]
    weights = [path for pattern in ("*.safetensors", "*.safetensors.index.json") for path in folder.glob(pattern)]
    files = [folder / name for name in WRITTEN if (folder / name).is_file()]
    return sorted([*checkpoints, *weights, *files])


def _is_ours(folder: Path) -> bool:
    """Whether the folder's model is an LstmPool model, or there are only checkpoints of one."""
    for config in [folder / "config.json", *folder.glob("checkpoint-*/config.json")]:
        if config.is_file():
            try:
                return json.loads(config.read_text(encoding="utf-8")).get("model_type") == "lstmpool"
            except (ValueError, AttributeError):
                return False
    return False


def _checkpoint(folder: Path, named: str) -> Path:
    if named.lower() not in ("last", "true"):
        if not Path(named, "trainer_state.json").is_file():
            raise InputError(
                f"--resume_from_checkpoint {named} must be a checkpoint-* folder with trainer_state.json."
            )
        return Path(named)
    last = get_last_checkpoint(str(folder)) if folder.is_dir() else None
    if last is None:
        raise InputError(f"--resume_from_checkpoint {named}: {folder} holds no checkpoint-* folder. Leave it out.")
    return Path(last)


def _without_nan(value: Any) -> Any:
    """JSON knows no NaN: what is undefined becomes null."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
