"""Decides which parts of the backbone are trained, from which weights and how fast; tells whether all are numbers."""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from lstmpool.capture_lstmpool import layer_lists
from lstmpool.configuration_lstmpool import LstmPoolConfig
from lstmpool.training.errors import InputError
from lstmpool.training.flags.arguments import ModelArguments
from lstmpool.training.flags.later_rules import WITH_LAYERS
from lstmpool.training.flags.rules import Flags, check
from lstmpool.training.flags.training_arguments import TrainingArguments


# Of the new layers, those that start at weights which fit already: they learn at the backbone's rate, not the head's.
START_FITTED = ("linear_skip",)


def check_layers(args: ModelArguments, config: LstmPoolConfig) -> None:
    """Raises InputError if `args` freeze or re-initialise more layers than there are, or do both to one layer."""
    check(WITH_LAYERS, Flags(args, layers=config.layers[-1]))


def prepare_layers(model: PreTrainedModel, args: ModelArguments) -> None:
    """Freezes and re-initialises what `args` name. It must run before the optimizer is made.

    Raises:
        InputError: if the backbone's layers cannot be told apart.
    """
    backbone, total = model.base_model.backbone, model.config.layers[-1]
    if args.reinit_layers:
        for layer in stack_of(model)[1][total - args.reinit_layers :]:
            _initialise_again(backbone, layer)
    if args.freeze_backbone:
        backbone.requires_grad_(False)
        backbone.register_forward_pre_hook(_switch_to_eval)
    if args.freeze_embeddings or args.freeze_layers:
        for module in _embeddings(model):
            module.requires_grad_(False)
    if args.freeze_layers:
        stack_of(model)[1][: args.freeze_layers].requires_grad_(False)


def learning_rates(model: PreTrainedModel, args: TrainingArguments) -> dict[str, float]:
    """The peak learning rate of each trained parameter, by its name.

    `args.layerwise_lr_decay` slows each layer against the one above it, and the embeddings most. Whatever lies above
    the layers, such as a final norm, learns as fast as the top layer. Raises InputError as `stack_of` does.
    """
    decay = args.layerwise_lr_decay
    head = args.head_learning_rate
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    rates = dict.fromkeys(names, args.learning_rate)
    if decay != 1:
        prefix, stack = stack_of(model)
        backbone = f"{model.base_model_prefix}.backbone."
        below = {id(p) for module in _embeddings(model) for p in module.parameters()}
        steps = {name: len(stack) for name, parameter in model.named_parameters() if id(parameter) in below}
        for layer in range(len(stack)):
            start = f"{backbone}{prefix}.{layer}."
            steps |= {name: len(stack) - 1 - layer for name in names if name.startswith(start)}
        rates |= {name: args.learning_rate * decay ** steps[name] for name in names if name in steps}
    if head is not None:
        rates |= {name: head for name in names if _learns_at_head_rate(name)}
    return rates


def _learns_at_head_rate(name: str) -> bool:
    """Whether a parameter of this name belongs to a new layer that starts at random weights."""
    parts = name.split(".")
    return "backbone" not in parts and not any(part in START_FITTED for part in parts)


def trained_head(model: PreTrainedModel) -> nn.Linear:
    """The classifier that is trained and saved. With adapters, that is peft's copy of the model's own."""
    return _trained(model, model.classifier)


def trained_skip(model: PreTrainedModel) -> nn.Linear | None:
    """The linear map beside the classifier that is trained and saved, as `trained_head`; None if there is none."""
    skip = getattr(model, "linear_skip", None)
    return None if skip is None else _trained(model, skip)


def trained_pooler(model: PreTrainedModel) -> nn.Module:
    """The layer pooling that is trained and saved, as `trained_head`."""
    return _trained(model, model.lstmpool.pooler)


def _trained(model: PreTrainedModel, module: nn.Module) -> Any:
    copies = getattr(module, "modules_to_save", None)
    return module if copies is None else copies[model.active_adapter]


def switch_off_dropout(backbone: nn.Module) -> None:
    """From now on, `backbone` gives the same in training as in evaluation. Its config stays as it is.

    Modules hold the probability of dropout as the `p` of a `Dropout`, or as a number under a name with "drop" in it.
    """
    for part in backbone.modules():
        if isinstance(part, nn.modules.dropout._DropoutNd):
            part.p = 0.0
        for name, value in vars(part).items():
            if "drop" in name and isinstance(value, float):
                setattr(part, name, 0.0)


def not_finite(model: nn.Module) -> str:
    """The name of the first weight tensor that holds NaN or infinity; empty if there is none.

    In buffers, infinity may be meant, as in a mask. NaN never is.
    """
    weights = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point():
            continue
        wrong = ~tensor.isfinite() if name in weights else tensor.isnan()
        if wrong.any():
            return name
    return ""


def stack_of(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """The backbone's list of layers, lowest first, and its name in the backbone.

    Raises:
        InputError: if no list has that length, or more than one does.
    """
    backbone, name = model.base_model.backbone, model.base_model.layer_stack
    if name is None:
        count = model.config.num_hidden_layers
        raise InputError(
            f"--freeze_layers, --reinit_layers and --layerwise_lr_decay need a backbone whose {count} layers are one "
            f"list, found {len(layer_lists(backbone, count))} in {type(backbone).__name__}. Leave them out."
        )
    return name, backbone.get_submodule(name)


def _embeddings(model: PreTrainedModel) -> list[nn.Module]:
    """The input embeddings, with all that shares a module with them, such as positions and a norm."""
    backbone = model.base_model.backbone
    inputs = backbone.get_input_embeddings()
    for child in backbone.children():
        holds_layers = any(isinstance(module, nn.ModuleList) and len(module) for module in child.modules())
        if not holds_layers and any(module is inputs for module in child.modules()):
            return [child]
    return [inputs]


def _switch_to_eval(module: nn.Module, inputs: Any) -> None:
    """A hook before each forward. Trainer calls train() at every step, but dropout would change the frozen states."""
    module.eval()


def _initialise_again(backbone: PreTrainedModel, layer: nn.Module) -> None:
    for part in [*layer.parameters(), *layer.buffers(), *layer.modules()]:
        part._is_hf_initialized = False  # the library leaves weights with this mark alone
    with torch.no_grad():
        for module in layer.modules():
            backbone._init_weights(module)
