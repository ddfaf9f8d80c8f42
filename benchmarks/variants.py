"""The models to compare on one backbone with random weights: the bare one, what users would pick, and this project.

    backbone   AutoModel without its pooler: (B, T) -> the CLS vector of the last layer
    stock      AutoModelForSequenceClassification
    naive      output_hidden_states=True, the CLS slices of all layers stacked, a BiLSTM, a linear head
    weighted   the WeightedLayerPooling of sentence-transformers over all layers, CLS, a linear head
    lstmpool   this project, all layers read
    lstmpool, two thirds   the same with `layers` ending at two thirds of the depth

The comparison favours the naive code in one point: its backbone has no pooler, which nothing would read.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForSequenceClassification, BertConfig, PretrainedConfig

from lstmpool.configuration_lstmpool import LstmPoolConfig
from lstmpool.modeling_lstmpool import LstmPoolForSequenceClassification


TWO_THIRDS = "lstmpool, two thirds"
VARIANTS = ("backbone", "stock", "naive", "weighted", "lstmpool", TWO_THIRDS)
LABELS = 2


@dataclass(frozen=True)
class Cell:
    """A cell of the grid, written "6x384/inference/32x128": layers x hidden size, mode, batch x tokens."""

    shape: str
    mode: str  # inference, training or compiled (inference with a compiled backbone)
    batch: int
    tokens: int

    @classmethod
    def parse(cls, text: str) -> "Cell":
        """The cell that `text` names. Raises ValueError for a text of another form."""
        try:
            shape, mode, sizes = text.split("/")
            batch, tokens = map(int, sizes.split("x"))
            layers, hidden = map(int, shape.split("x"))
        except ValueError:
            raise ValueError(f"a cell is written like 6x384/inference/32x128, got {text!r}.") from None
        if mode not in ("inference", "training", "compiled") or min(batch, tokens, layers, hidden) < 1:
            raise ValueError(f"a cell's mode is inference, training or compiled, its sizes above 0; got {text!r}.")
        return cls(shape, mode, batch, tokens)

    def columns(self) -> dict[str, str]:
        """The columns of the CSV that say which cell it is."""
        return {"shape": self.shape, "mode": self.mode, "batch": str(self.batch), "tokens": str(self.tokens)}

    def config(self, **fields: Any) -> BertConfig:
        """The config of a backbone of this shape."""
        layers, hidden = map(int, self.shape.split("x"))
        return backbone_config(layers, hidden, **fields)


def backbone_config(layers: int, hidden: int, **fields: Any) -> BertConfig:
    """A BERT of this depth and width, with 12 heads like the MiniLM of 6 x 384 and BERT-base."""
    sizes = {
        "num_attention_heads": 12,
        "num_labels": LABELS,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
    }
    return BertConfig(**sizes | fields)


def _logits(output: Any) -> Tensor:
    return output.logits  # (B, C)


def _first_token(output: Any) -> Tensor:
    return output.last_hidden_state[:, 0]  # (B, H)


def _as_it_is(output: Tensor) -> Tensor:
    return output


@dataclass
class Variant:
    """A model, its backbone, and the function that turns its output into (B, n), from which a loss is made."""

    model: nn.Module
    backbone: nn.Module
    read: Callable[[Any], Tensor] = _logits

    def __call__(self, inputs: dict[str, Tensor]) -> Tensor:
        return self.read(self.model(**inputs))

    def on(self, device: str, dtype: torch.dtype) -> "Variant":
        """The same variant on a device, in a number type."""
        return replace(self, model=self.model.to(device=device, dtype=dtype))


class Naive(nn.Module):
    """The code found in notebooks: it keeps every layer's (B, T, H) until the last layer has run."""

    def __init__(self, config: PretrainedConfig):
        super().__init__()
        self.backbone = AutoModel.from_config(config, add_pooling_layer=False)
        self.lstm = nn.LSTM(config.hidden_size, 256, batch_first=True, bidirectional=True)
        self.dropout = nn.Dropout(0.1)
        self.classifier = nn.Linear(512, LABELS)

    def forward(self, **inputs: Tensor) -> Tensor:
        hidden_states = self.backbone(**inputs, output_hidden_states=True).hidden_states
        cls_per_layer = torch.stack([hidden[:, 0] for hidden in hidden_states[1:]], dim=1)  # (B, L, H)
        outputs, _ = self.lstm(cls_per_layer)  # (B, L, 512)
        return self.classifier(self.dropout(outputs[:, -1]))


class Weighted(nn.Module):
    """The layer pooling of sentence-transformers, which weighs the states of all tokens."""

    def __init__(self, config: PretrainedConfig):
        from sentence_transformers.sentence_transformer.modules import WeightedLayerPooling  # the extra `bench`

        super().__init__()
        self.backbone = AutoModel.from_config(config, add_pooling_layer=False)
        self.pooling = WeightedLayerPooling(config.hidden_size, config.num_hidden_layers, layer_start=1)
        self.dropout = nn.Dropout(0.1)
        self.classifier = nn.Linear(config.hidden_size, LABELS)

    def forward(self, **inputs: Tensor) -> Tensor:
        outputs = self.backbone(**inputs, output_hidden_states=True)
        features = {"all_layer_embeddings": outputs.hidden_states, "token_embeddings": outputs.last_hidden_state}
        pooled = self.pooling(features)["token_embeddings"][:, 0]  # (B, H)
        return self.classifier(self.dropout(pooled))


def build(name: str, config: PretrainedConfig, layers: list[int] | None = None) -> Variant:
    """One of `VARIANTS` with random weights. `layers` are those that this project reads; unset: all.

    Raises:
        ValueError: for another name.
    """
    if name == "backbone":
        model = AutoModel.from_config(config, add_pooling_layer=False)
        return Variant(model, model, _first_token)
    if name == "stock":
        model = AutoModelForSequenceClassification.from_config(config)
        return Variant(model, model.base_model)
    if name in ("naive", "weighted"):
        model = Naive(config) if name == "naive" else Weighted(config)
        return Variant(model, model.backbone, _as_it_is)
    if name not in ("lstmpool", TWO_THIRDS):
        raise ValueError(f"expected one of {', '.join(VARIANTS)}, got {name!r}.")
    if name == TWO_THIRDS:
        layers = list(range(1, config.num_hidden_layers * 2 // 3 + 1))
    fields = {"layers": layers, "num_labels": config.num_labels, "token_pooling": "cls"}
    model = LstmPoolForSequenceClassification(LstmPoolConfig(backbone_config=config, **fields))
    return Variant(model, model.lstmpool.backbone)


def random_inputs(cell: Cell, device: str = "cpu") -> dict[str, Tensor]:
    """A batch of texts of `cell.tokens` tokens each, without padding."""
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(1000, 30000, (cell.batch, cell.tokens), generator=generator).to(device)  # (B, T)
    if device == "meta":  # the library would ask whether the mask hides anything, which a meta tensor cannot say
        return {"input_ids": input_ids}
    return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}


def inference(variant: Variant, inputs: dict[str, Tensor]) -> None:
    """Runs a forward without gradients."""
    with torch.inference_mode():
        variant(inputs)


def training(variant: Variant, inputs: dict[str, Tensor]) -> None:
    """Runs a forward and a backward."""
    labels = torch.zeros(len(inputs["input_ids"]), dtype=torch.long, device=inputs["input_ids"].device)
    F.cross_entropy(variant(inputs).float(), labels).backward()


def prepare(variant: Variant, cell: Cell, inputs: dict[str, Tensor]) -> Callable[[], None]:
    """The step to measure in this cell, as a function. Puts the model into the cell's mode."""
    variant.model.train(cell.mode == "training")
    if cell.mode == "compiled":
        variant.backbone.compile()
    step = training if cell.mode == "training" else inference
    return partial(step, variant, inputs)
