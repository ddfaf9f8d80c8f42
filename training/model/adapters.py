"""LoRA trains small matrices inside a frozen backbone, and the pooler, classifier and linear skip beside them.

By itself, peft trains and saves the classifier alone, and leaves the pooler frozen and random. It also knows no
modules to adapt in this kind of model. `lora_config` names all. An adapter folder holds what was trained and the
model's config; `load_adapter` loads the backbone from where it was.

This module needs peft (the extra `peft`), and is imported only where adapters are asked for.
"""

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftConfig, PeftModel
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as DEFAULT_TARGETS
from torch import nn
from transformers import AutoConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lstmpool.configuration_lstmpool import OWN_FIELDS, LstmPoolConfig
from lstmpool.training.errors import InputError, did_you_mean, one_line
from lstmpool.training.flags.arguments import ModelArguments
from lstmpool.training.model.backbone import DAMAGED, Backbone, quiet_loading


ALL = "all-linear"


def lora_config(
    model: PreTrainedModel,
    r: int = 8,
    alpha: int = 16,
    dropout: float = 0.0,
    target_modules: list[str] | str | None = None,
) -> LoraConfig:
    """The config that peft needs: `peft.get_peft_model(model, lora_config(model))`.

    Args:
        model: an `LstmPoolForSequenceClassification`.
        r: the rank of the matrices.
        alpha: their output is multiplied by alpha / r.
        dropout: on their input, in training.
        target_modules: names of linear modules in the backbone, or the last parts of names, such as
            ["query", "value"]; "all-linear" for all of them. Unset: those that peft adapts in this backbone family.

    Raises:
        InputError: if a name matches no linear module of the backbone, or peft has no default for its family.
    """
    pooler = f"{model.base_model_prefix}.pooler"  # the whole name: a backbone may have a pooler, too
    targets = _targets(model, target_modules)
    adapted = [module for name, module in model.named_modules() if re.fullmatch(targets, name)]
    skip = ["linear_skip"] if getattr(model, "linear_skip", None) is not None else []
    return LoraConfig(
        r=r,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=targets,
        modules_to_save=[pooler, "classifier", *skip],
        fan_in_fan_out=all(isinstance(module, Conv1D) for module in adapted),  # as GPT-2's weights lie
    )


def load_adapter(name_or_path: str, backbone: str | None = None, trust_remote_code: bool = False) -> PeftModel:
    """Loads a trained adapter on its backbone, in float32 and eval mode.

    Args:
        name_or_path: the folder, or the name on the Hub, of an adapter that the command trained with `--peft`.
        backbone: where the backbone is, if it has moved: a folder, a name on the Hub, or package:NAME. For an adapter
            that was trained from `--init_from`: that model.
        trust_remote_code: whether to run code that comes with the backbone.

    Raises:
        InputError: if the backbone or the adapter cannot be loaded.
    """
    config = LstmPoolConfig.from_pretrained(name_or_path)
    damaged = f"the adapter {name_or_path} cannot be loaded"
    with one_line(damaged, *DAMAGED):
        saved = PeftConfig.from_pretrained(name_or_path)
    place = backbone or saved.base_model_name_or_path
    try:
        found = Backbone.find(
            ModelArguments(
                backbone=place,
                model_revision=(not backbone and saved.revision) or "main",
                trust_remote_code=trust_remote_code,
            )
        )
        if AutoConfig.from_pretrained(found.path, **found.loading).model_type == config.model_type:
            found = replace(found, flag="--init_from")
        with quiet_loading():
            model, _ = found.load_model({name: getattr(config, name) for name in OWN_FIELDS})
    except (OSError, ValueError) as error:
        raise InputError(
            f"the backbone of {name_or_path}, {place}, cannot be loaded: {error} Say where it is with "
            "load_adapter(..., backbone=...)."
        ) from None
    with _without_deprecation(), one_line(damaged, *DAMAGED):
        return PeftModel.from_pretrained(model, name_or_path).eval()


class AdapterModel(PeftModel):
    """A model in training. Its saves load without knowledge of this run: the config lies beside them."""

    backbone_name: str | None = None  # as the user typed it
    backbone_revision: str | None = None

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Saves `adapter_model.safetensors`, `adapter_config.json` and `config.json`. Takes peft's keywords."""
        kwargs["save_embedding_layers"] = False  # none is trained; peft would look up its size on the Hub
        super().save_pretrained(str(save_directory), **kwargs)
        if not kwargs.get("is_main_process", True):
            return
        saved = PeftConfig.from_pretrained(str(save_directory))
        saved.base_model_name_or_path = self.backbone_name
        saved.revision = self.backbone_revision
        saved.save_pretrained(str(save_directory))
        self.get_base_model().config.save_pretrained(save_directory)
        Path(save_directory, "README.md").unlink(missing_ok=True)  # peft's card names folders of this machine


def add_adapters(model: PreTrainedModel, args: ModelArguments, backbone: Backbone) -> AdapterModel:
    """Adds what `--peft` asks for: from now on adapters, pooler and classifier are trained and saved.

    Raises:
        InputError: as `lora_config` does.
    """
    config = lora_config(model, args.lora_rank, args.lora_alpha, args.lora_dropout, args.lora_target_modules)
    with _without_deprecation():
        adapted = AdapterModel(model, config)
    adapted.backbone_name = args.init_from or args.backbone
    adapted.backbone_revision = args.model_revision if backbone.on_hub and args.model_revision != "main" else None
    return adapted


@contextmanager
def _without_deprecation() -> Iterator[None]:
    """Silences a warning that is meant for the authors of peft 0.21."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        yield


def _targets(model: PreTrainedModel, wanted: list[str] | str | None) -> str:
    """A regular expression that matches the whole names of the adapted modules.

    It matches nothing outside the backbone. The names begin with the prefix of this kind of model, so the adapter
    cannot be put on a bare backbone by mistake.
    """
    backbone = model.base_model.backbone
    prefix = f"{model.base_model_prefix}.backbone."
    names = [name for name, module in backbone.named_modules() if isinstance(module, (nn.Linear, Conv1D))]
    known = sorted({_last(name) for name in names if not _last(name).isdigit()} or names)
    family = model.config.backbone_config.model_type
    if wanted is None:
        wanted = DEFAULT_TARGETS.get(family) or DEFAULT_TARGETS.get(backbone.config.model_type)
        if wanted is None:
            raise InputError(
                f"expected --lora_target_modules, found none, and peft has no default for {family} backbones. Name "
                f"some of {', '.join(known)}; or {ALL}."
            )
    chosen: set[str] = set()
    for one in [wanted] if isinstance(wanted, str) else wanted:
        if one == ALL:
            matches = names
        elif isinstance(wanted, str):  # a regular expression, as in peft
            matches = [name for name in names if re.fullmatch(one, prefix + name)]
        else:
            matches = [name for name in names if f".{name}".endswith(f".{one}")]
        if not matches:
            raise InputError(
                f"--lora_target_modules {one} matches no linear module of this {family} backbone."
                f"{did_you_mean(one, known)} Name some of {', '.join(known)}; or {ALL}."
            )
        chosen.update(matches)
    return _pattern([prefix + name for name in names if name in chosen], [name for name, _ in model.named_modules()])


def _pattern(chosen: list[str], names: list[str]) -> str:
    """An expression that matches the `chosen` of all `names`. It leaves layer numbers open if it then still does."""
    any_layer = sorted({re.sub(r"(?<=\\\.)\d+(?=\\\.)", r"\\d+", re.escape(name)) for name in chosen})
    short = "|".join(any_layer)
    fits = {name for name in names if re.fullmatch(short, name)}
    return short if fits == set(chosen) else "|".join(map(re.escape, chosen))


def _last(name: str) -> str:
    return name.rpartition(".")[2]
