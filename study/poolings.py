"""The layer poolings that the study compares, one entry each. CONTRIBUTING.md says how to add one.

An entry makes a module from layer states (B, L, H) to (B, D). Most are the model's own. The others are controls: if
the LSTM does not beat them, neither the order of the layers nor their number explains what it gains.
"""

import copy
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from lstmpool.configuration_lstmpool import LstmPoolConfig
from lstmpool.pooling_lstmpool import POOLING_CLASSES, LayerPooling, RecurrentPooling


Build = Callable[[LstmPoolConfig, int], LayerPooling]  # from the model's config and the seed of the run


class LastMlpPooling(LayerPooling):
    """One hidden layer over the top layer alone, with as many parameters as the LSTM.

    Both are counted with their classifiers. So what the LSTM gains over this pooling is not a matter of size.
    """

    def __init__(self, config: LstmPoolConfig):
        super().__init__(config)
        units = config.lstm_hidden_size
        directions = 1 + config.lstm_bidirectional
        labels = config.num_labels
        lstm = 4 * units * (config.hidden_size + units + 2) * directions + units * directions * labels
        self.output_size = max(1, round(lstm / (config.hidden_size + 1 + labels)))
        self.dense = nn.Linear(config.hidden_size, self.output_size)

    def pool(self, layer_states: Tensor) -> Tensor:
        return F.gelu(self.dense(layer_states[:, -1]))


class LowerPooling(LayerPooling):
    """One layer alone, `below` the top one, or the lowest if there are fewer.

    It asks whether the LSTM gains by reading all layers, or because the top one is not the best.
    """

    def __init__(self, config: LstmPoolConfig, below: int):
        super().__init__(config)
        self.place = max(0, len(config.layers) - 1 - below)

    def pool(self, layer_states: Tensor) -> Tensor:
        return layer_states[:, self.place]


class SideBySidePooling(LayerPooling):
    """All layers side by side; only the classifier is trained."""

    def __init__(self, config: LstmPoolConfig):
        super().__init__(config)
        self.output_size = len(config.layers) * config.hidden_size

    def pool(self, layer_states: Tensor) -> Tensor:
        return layer_states.flatten(1)


class ShuffledPooling(RecurrentPooling):
    """The LSTM over the layers in an order that the run's seed draws.

    It reads the same layers without their order. Another layer stands last, too, where the output is read.
    """

    def __init__(self, config: LstmPoolConfig, seed: int):
        super().__init__(config)
        layers = len(config.layers)
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(layers, generator=generator)
        while layers > 1 and order.equal(torch.arange(layers)):
            order = torch.randperm(layers, generator=generator)
        self.register_buffer("order", order)  # (L,)

    def pool(self, layer_states: Tensor) -> Tensor:
        return super().pool(layer_states[:, self.order])


class ScrambledPooling(RecurrentPooling):
    """The LSTM over what much public code gives it: a reshape where a transpose was meant.

    Each of its L steps holds H / L features of all layers, interleaved, instead of one layer.
    """

    def pool(self, layer_states: Tensor) -> Tensor:
        return super().pool(scramble(layer_states))


def scramble(layer_states: Tensor) -> Tensor:
    """(B, L, H) as `torch.stack(cls_per_layer, dim=-1).view(-1, L, H)` gives it."""
    return torch.stack(layer_states.unbind(1), dim=-1).reshape(layer_states.shape)


def own(kind: Callable[[LstmPoolConfig], LayerPooling] | None = None, **fields) -> Build:
    """An entry: the pooling that a config with these `fields` names, or what `kind` makes of such a config."""

    def build(config: LstmPoolConfig, seed: int) -> LayerPooling:
        config = copy.deepcopy(config)
        for name, value in fields.items():
            setattr(config, name, value)
        config.resolve()
        return (kind or POOLING_CLASSES[config.layer_pooling])(config)

    return build


def shuffled(config: LstmPoolConfig, seed: int) -> LayerPooling:
    return own(partial(ShuffledPooling, seed=seed), layer_pooling="lstm")(config, seed)


POOLINGS: dict[str, Build] = {
    "last": own(layer_pooling="last"),
    "last_mlp": own(LastMlpPooling),
    "weighted": own(layer_pooling="weighted"),
    "attention": own(layer_pooling="attention"),
    "max": own(layer_pooling="max"),
    "concat": own(layer_pooling="concat"),
    "concat_linear": own(SideBySidePooling),
    "gru": own(layer_pooling="gru"),
    "lstm": own(layer_pooling="lstm"),  # the seed's: the output at the last step
    "lstm_final": own(layer_pooling="lstm", lstm_readout="final"),
    "lstm_mean": own(layer_pooling="lstm", lstm_readout="mean"),
    "lstm_norm": own(layer_pooling="lstm", layer_norm=True),
    "lstm_shuffled": shuffled,
    "lstm_scrambled": own(ScrambledPooling, layer_pooling="lstm"),
    "below_1": own(partial(LowerPooling, below=1)),
    "below_2": own(partial(LowerPooling, below=2)),
    "below_3": own(partial(LowerPooling, below=3)),
    "below_4": own(partial(LowerPooling, below=4)),
    "below_5": own(partial(LowerPooling, below=5)),
}
# A run's seed draws a part of these. The best setting of one draw may not suit another, so several are tuned.
DRAWN = {"lstm_shuffled"}
# The LSTM's variants and controls are not ranked: one pooling that stands there six times pushes the others apart.
UNRANKED = {"lstm_final", "lstm_mean", "lstm_norm", "lstm_shuffled", "lstm_scrambled"}
# The six highest layers. If a backbone has fewer, its lowest one stands for several.
SINGLE_LAYERS = ("last", "below_1", "below_2", "below_3", "below_4", "below_5")
# The single layer with the best validation score counts as a pooling of its own, under this name.
BEST_LAYER = "best_layer"


def put_pooling(model: PreTrainedModel, build: Build, seed: int) -> list[nn.Parameter]:
    """Gives `model` a new pooler and classifier, with the model's own initialisation; returns their parameters."""
    torch.manual_seed(seed)
    pooler = build(model.config, seed)
    classifier = nn.Linear(pooler.output_size, model.config.num_labels)
    for module in (pooler, classifier):
        module.apply(model._init_weights)
    model.lstmpool.pooler = pooler
    model.classifier = classifier
    return [*pooler.parameters(), *classifier.parameters()]
