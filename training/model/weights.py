"""Tells whether all weights of a model are numbers."""

from torch import nn


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
