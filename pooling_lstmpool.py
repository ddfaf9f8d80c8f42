"""The poolings: from a layer's tokens to one vector, and from the layers' vectors to one vector a text.

    a layer's (B, T, H) -> `pool_tokens` -> (B, H);  `layer_states` (B, L, S) -> a `LayerPooling` -> (B, D)

B batch, T tokens, L layers read, H backbone hidden size, S width of a layer's vector (H, or 4 H for pairs that are
read apart), D pooled size.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .configuration_lstmpool import LstmPoolConfig


LEAST_SPREAD = 0.01  # of a feature, as a share of its layer's root mean square


def pool_tokens(hidden: Tensor, attention_mask: Tensor, how: str) -> Tensor:
    """(B, H) from a layer's `hidden` (B, T, H): the "first" or "last" token that `attention_mask` (B, T) keeps, or the
    "mean" or "max" of all that it keeps. A copy that does not hold on to `hidden`; zeros for a row without tokens."""
    kept = (attention_mask != 0).to(hidden.device)  # (B, T)
    if kept.size(1) > hidden.size(1):  # a layer over blocks of tokens
        kept = F.adaptive_max_pool1d(kept.float(), hidden.size(1)) > 0
    hidden = hidden[:, : kept.size(1)]  # long attention fills a text up to whole blocks
    if how == "mean":  # in float32: a sum over tokens leaves the range of float16
        total = hidden.masked_fill(~kept[..., None], 0).sum(1, dtype=torch.float32)
        return (total / kept.sum(1, keepdim=True).clamp(min=1)).to(hidden.dtype)
    if how == "max":
        vectors = hidden.masked_fill(~kept[..., None], torch.finfo(hidden.dtype).min).amax(1)
    else:
        index = kept.int().argmax(1) if how == "first" else kept.size(1) - 1 - kept.int().flip(1).argmax(1)
        vectors = hidden[torch.arange(hidden.size(0), device=hidden.device), index]
    # what a backbone makes of padding alone depends on how much of it there is, and may be NaN
    return vectors.masked_fill(~kept.any(1, keepdim=True), 0)


def mean_and_scale(layer_states: Tensor) -> tuple[Tensor, Tensor]:
    """What is taken from each feature of `layer_states` (N, L, S), and what divides it then, (L, S) each.

    The scale is the standard deviation. One below `LEAST_SPREAD` of its layer's root mean square counts as that: half
    precision could not tell it from rounding, and one step of training would move it by many times as much. In a layer
    of zeros it is 1.
    """
    mean = layer_states.mean(0)
    size = layer_states.square().mean((0, 2)).sqrt()  # (L,)
    scale = torch.maximum(layer_states.std(0, correction=0), LEAST_SPREAD * size[:, None])
    scale[scale == 0] = 1
    return mean, scale


class LayerStandardization(nn.Module):
    """Centres and scales each feature of each layer by the buffers `mean` and `scale`, (L, S) each.

    They are 0 and 1 until `fit` sets them. They stay in float32, whatever the model is cast to or loaded in: of a mean
    that is large beside its scale, half precision would leave little.
    """

    def __init__(self, config: LstmPoolConfig):
        super().__init__()
        shape = (len(config.layers), config.state_size)
        # with a dtype of its own, which the library keeps when it loads a model in another one
        self.register_buffer("mean", torch.zeros(shape, dtype=torch.float32))
        self.register_buffer("scale", torch.ones(shape, dtype=torch.float32))

    @torch.no_grad()
    def fit(self, layer_states: Tensor) -> None:
        """Takes the mean and scale of `layer_states` (N, L, S), those of the training rows; see `mean_and_scale`.

        Raises ValueError if they have another shape, or hold NaN or infinity.
        """
        expected = tuple(self.mean.shape)
        if layer_states.shape[1:] != expected or not len(layer_states):
            raise ValueError(
                f"layer_states must be (rows, layers, width) = (1 or more, {expected[0]}, {expected[1]}), got "
                f"{tuple(layer_states.shape)}. Take them from this model."
            )
        mean, scale = mean_and_scale(layer_states.float())
        if not (mean.isfinite() & scale.isfinite()).all():
            wrong = int((~layer_states.isfinite()).sum())
            raise ValueError(
                f"layer_states must be finite numbers whose squares are finite, too, found {wrong} of "
                f"{layer_states.numel()} that are NaN or infinite. Compute them in float32, or leave these rows out."
            )
        device = self.mean.device
        self.mean, self.scale = mean.to(device), scale.to(device)

    def forward(self, layer_states: Tensor) -> Tensor:
        """(B, L, S), in the dtype of `layer_states`."""
        standardised = (layer_states - self.mean) / self.scale  # in float32 at least: autocast leaves both as they are
        return standardised.to(layer_states.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LayerStandardization:
        # `to`, `half` and the like end here
        before = {"mean": self.mean, "scale": self.scale}
        super()._apply(fn, recurse)
        for name, tensor in before.items():
            moved = getattr(self, name)
            if moved.dtype != torch.float32:
                setattr(self, name, tensor.to(moved.device, torch.float32))
        return self


class LayerPooling(nn.Module):
    """Base of the poolings: layer states (B, L, S), lowest layer first, to (B, D), where D is `output_size`."""

    def __init__(self, config: LstmPoolConfig):
        super().__init__()
        self.standardization = LayerStandardization(config) if config.standardize_layers else nn.Identity()
        self.layer_norm = nn.LayerNorm(config.state_size) if config.layer_norm else nn.Identity()
        self.output_size: int = config.state_size

    def forward(self, layer_states: Tensor) -> Tensor:
        return self.pool(self.layer_norm(self.standardization(layer_states)))


class TopLSTM(nn.LSTM):
    """The output of an LSTM at the highest layer. There the backward direction has taken one step, its first, and no
    other is computed; the values, and the parameters, are those of `nn.LSTM`."""

    def forward(self, layer_states: Tensor) -> Tensor:
        if not self.bidirectional or layer_states.device.type not in ("cpu", "meta"):
            # elsewhere both directions are one fused kernel, for which all weights lie in one block
            return super().forward(layer_states)[0][:, -1]
        self.check_input(layer_states, None)
        start = layer_states.new_zeros(1, layer_states.size(0), self.hidden_size)
        weights = [self.weight_ih_l0, self.weight_hh_l0, self.bias_ih_l0, self.bias_hh_l0]
        outputs, _, _ = torch.lstm(layer_states, (start, start), weights, True, 1, 0.0, self.training, False, True)
        # from a state of zero, which leaves the recurrent weights no effect, and a gradient of zero: without one,
        # DistributedDataParallel would wait for it
        bias = self.bias_ih_l0_reverse + self.bias_hh_l0_reverse + 0 * self.weight_hh_l0_reverse[:, 0]
        i, _, g, o = F.linear(layer_states[:, -1], self.weight_ih_l0_reverse, bias).chunk(4, dim=-1)
        backward = o.sigmoid() * (i.sigmoid() * g.tanh()).tanh()
        return torch.cat([outputs[:, -1], backward], dim=-1)  # (B, D)


class RecurrentPooling(LayerPooling):
    """An LSTM or GRU reads the layers in order; `config.lstm_readout` says what is taken from it."""

    def __init__(self, config: LstmPoolConfig):
        super().__init__(config)
        self.units, self.readout = config.lstm_hidden_size, config.lstm_readout
        net = {"lstm": TopLSTM if self.readout == "last" else nn.LSTM, "gru": nn.GRU}[config.layer_pooling]
        self.rnn = net(config.state_size, self.units, batch_first=True, bidirectional=config.lstm_bidirectional)
        self.output_size = self.units * (1 + config.lstm_bidirectional)

    def pool(self, layer_states: Tensor) -> Tensor:
        if isinstance(self.rnn, TopLSTM):
            return self.rnn(layer_states)
        outputs, _ = self.rnn(layer_states)  # (B, L, D)
        if self.readout == "last":
            return outputs[:, -1]
        if self.readout == "mean":
            return outputs.mean(1)
        # the backward direction has read every layer only when it is back at the lowest
        return torch.cat([outputs[:, -1, : self.units], outputs[:, 0, self.units :]], dim=-1)


class AttentionPooling(LayerPooling):
    """A learned query decides, text by text, how much each layer counts."""

    def __init__(self, config: LstmPoolConfig):
        super().__init__(config)
        self.query = nn.Linear(config.state_size, 1, bias=False)

    def pool(self, layer_states: Tensor) -> Tensor:
        return (self.query(layer_states).softmax(1) * layer_states).sum(1)


class WeightedPooling(LayerPooling):
    """One learned weight a layer, the same for every text, as in ELMo (https://arxiv.org/abs/1802.05365)."""

    def __init__(self, config: LstmPoolConfig):
        super().__init__(config)
        self.layer_weights = nn.Parameter(torch.zeros(len(config.layers)))

    def pool(self, layer_states: Tensor) -> Tensor:
        return (self.layer_weights.softmax(0)[:, None] * layer_states).sum(1)


class MaxPooling(LayerPooling):
    def pool(self, layer_states: Tensor) -> Tensor:
        return layer_states.amax(1)


class LastPooling(LayerPooling):
    def pool(self, layer_states: Tensor) -> Tensor:
        return layer_states[:, -1]


class ConcatPooling(LayerPooling):
    """One hidden layer over all layers side by side, with as many parameters as the LSTM would have."""

    def __init__(self, config: LstmPoolConfig):
        super().__init__(config)
        inputs, units = len(config.layers) * config.state_size, config.lstm_hidden_size
        lstm_parameters = 4 * units * (config.state_size + units + 2) * (1 + config.lstm_bidirectional)
        self.output_size = max(1, round(lstm_parameters / (inputs + 1)))
        self.dense = nn.Linear(inputs, self.output_size)

    def pool(self, layer_states: Tensor) -> Tensor:
        return F.gelu(self.dense(layer_states.flatten(1)))


class LinearSkip(nn.Linear):
    """A linear model of all layers' vectors beside the deep one, as in Wide & Deep (https://arxiv.org/abs/1606.07792).

    It starts at zero: a fresh model is as one without it. The vectors are centred and scaled by the buffers `mean` and
    `scale` first, in full precision: of features that hardly differ between texts, autocast would leave little.
    """

    def __init__(self, config: LstmPoolConfig):
        self.layers = 1 if config.layer_pooling == "last" else len(config.layers)  # that are read, from the top
        super().__init__(self.layers * config.state_size, config.num_labels, bias=False)
        self.register_buffer("mean", torch.zeros(self.in_features))
        self.register_buffer("scale", torch.ones(self.in_features))

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)  # without a random number, so the layers made after it start as without it

    def forward(self, layer_states: Tensor) -> Tensor:
        vectors = layer_states[:, -self.layers :].flatten(1).to(self.weight.dtype)  # (B, L, S) -> (B, L * S)
        with torch.autocast(vectors.device.type, enabled=False):
            return super().forward((vectors - self.mean) / self.scale)  # (B, C)


POOLING_CLASSES = {
    "lstm": RecurrentPooling,
    "gru": RecurrentPooling,
    "attention": AttentionPooling,
    "weighted": WeightedPooling,
    "max": MaxPooling,
    "concat": ConcatPooling,
    "last": LastPooling,
}
