"""Checks that a backbone can read what its tokenizer makes: an id, a position or a segment that it lacks ends training
with an IndexError, on a GPU with a failed assertion that names nothing.

The limits are those of the embeddings that the model has, not of numbers in a config, which families read differently:
of RoBERTa's 514 positions, 512 are for tokens. Modules without weights, on the meta device, have these sizes too.
"""

import inspect
from copy import deepcopy
from dataclasses import dataclass

import pyarrow
import pyarrow.compute
import torch
from datasets import Dataset
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from lstmpool.configuration_lstmpool import LstmPoolConfig
from lstmpool.families_lstmpool import Families, stack_config
from lstmpool.modeling_lstmpool import LstmPoolModel
from lstmpool.training.errors import InputError


POSITION_TABLES = ("position_embeddings", "embed_positions", "positions_embed", "wpe")
# Families whose positions have no module, but end at this entry of their config. Those of others never end.
FIXED = {"codegen": "max_position_embeddings", "ctrl": "max_position_embeddings", "gptj": "max_position_embeddings"}
FIXED |= {"mpt": "max_seq_len"}
REMEDY = "Save the tokenizer that the backbone was trained with into the backbone's folder"


@dataclass(frozen=True)
class TokenLimits:
    """How many ids, positions and segments a backbone knows; None: any number, or that is not known."""

    ids: int | None
    positions: int | None
    segments: int | None

    @classmethod
    def of_config(cls, config: LstmPoolConfig) -> "TokenLimits | None":
        """The limits of the model that `config` describes, without its weights; None if its code is not the library's.

        That code comes with the weights, and may do anything where it is given none.
        """
        if not type(config.backbone_config).__module__.startswith("transformers."):
            return None
        with torch.device("meta"):
            model = LstmPoolModel(deepcopy(config))
        return cls.of(model)

    @classmethod
    def of(cls, model: PreTrainedModel) -> "TokenLimits":
        """The limits of a model that is loaded."""
        backbone = model.base_model.backbone
        text_config = stack_config(model.config.backbone_config)
        positions, segments = [], []
        for name, module in backbone.named_modules():
            if name.rpartition(".")[2] in POSITION_TABLES and hasattr(module, "weight"):
                positions.append(len(module.weight) - _first_position(module, text_config))
            if name.endswith("token_type_embeddings") and hasattr(module, "weight"):
                segments.append(len(module.weight))
        if text_config.model_type in FIXED:
            positions.append(getattr(text_config, FIXED[text_config.model_type]))
        if "token_type_ids" not in inspect.signature(backbone.forward).parameters:
            segments = []  # they never reach the backbone
        return cls(_number_of_ids(backbone), min(positions, default=None), min(segments, default=None))

    def check(self, rows: Dataset, tokenizer: PreTrainedTokenizerBase, where: str) -> None:
        """Checks the columns that the tokenizer has made, and the token that batches are padded with.

        Args:
            rows: the columns.
            tokenizer: what made them.
            where: begins the message.

        Raises:
            InputError: if the backbone cannot read them.
        """
        ids = _flat(rows, "input_ids")
        if ids.null_count:
            raise InputError(
                f"{where}: expected an id for every token, found words without one: the tokenizer has no unk_token. "
                f"{REMEDY}."
            )
        lengths = pyarrow.compute.list_value_length(rows.data.column("input_ids"))
        shortest, longest = pyarrow.compute.min_max(lengths).values()
        used = [value.as_py() for value in pyarrow.compute.min_max(ids).values() if value.is_valid]
        for token in used:
            self._check_id(token, f"{where}: the tokenizer gives", tokenizer)
        if shortest != longest:
            self._check_id(tokenizer.pad_token_id, f"{where}: the tokenizer pads with", tokenizer)
        if self.positions is not None and longest.is_valid and longest.as_py() > self.positions:
            raise InputError(
                f"{where}: the backbone reads texts of up to {self.positions} tokens, found one of {longest}, because "
                f"the tokenizer cuts at {tokenizer.model_max_length}. Give --max_seq_length {self.positions}."
            )
        self._check_segments(rows, where)

    def _check_id(self, token: int | None, gives: str, tokenizer: PreTrainedTokenizerBase) -> None:
        if token is None or self.ids is None or 0 <= token < self.ids:
            return
        raise InputError(
            f"{gives} the id {token} ({tokenizer.convert_ids_to_tokens(max(token, 0))!r}), and the backbone knows the "
            f"ids 0 to {self.ids - 1}: the two do not belong together. {REMEDY}."
        )

    def _check_segments(self, rows: Dataset, where: str) -> None:
        if self.segments is None or "token_type_ids" not in rows.column_names:
            return
        highest = pyarrow.compute.max(_flat(rows, "token_type_ids")).as_py()
        if highest is not None and highest >= self.segments:
            raise InputError(
                f"{where}: the tokenizer numbers the texts of a pair up to {highest} (token_type_ids), and the "
                f"backbone knows 0 to {self.segments - 1}. {REMEDY}, or join the two texts with "
                "--text_column_delimiter."
            )


def _first_position(table: nn.Module, text_config: PretrainedConfig) -> int:
    """The row of a table of positions that a text's first token has."""
    if getattr(table, "padding_idx", None) is not None:
        return table.padding_idx + 1
    if text_config.model_type in Families.OFFSET_POSITIONS:
        return 2
    return getattr(table, "offset", 0)


def _number_of_ids(backbone: PreTrainedModel) -> int | None:
    try:
        weight = getattr(backbone.get_input_embeddings(), "weight", None)
    except NotImplementedError:  # CANINE hashes its ids
        return None
    return None if weight is None else len(weight)


def _flat(rows: Dataset, column: str) -> pyarrow.ChunkedArray:
    """All numbers of a column of lists."""
    return pyarrow.compute.list_flatten(rows.data.column(column))
