"""The finished model that predicts: one folder, an adapter on its backbone, or the folds of a cross-validation, or
the runs of several seeds.

Folds and seeds are ensembles, as in training: their probabilities, or numbers, are averaged.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.data.data_collator import pad_without_fast_tokenizer_warning
from transformers.utils import ADAPTER_CONFIG_NAME

from lstmpool.configuration_lstmpool import LstmPoolConfig
from lstmpool.training.data.order import lengths_of
from lstmpool.training.data.rows import encode_rows
from lstmpool.training.errors import InputError, did_you_mean, one_line, tokenizing
from lstmpool.training.model.backbone import LONGEST, WEIGHTS, Backbone, quiet_loading
from lstmpool.training.model.token_limits import TokenLimits
from lstmpool.training.output.found import Members
from lstmpool.training.output.run_record import RunRecord
from lstmpool.training.predicting.rows import Chunk
from lstmpool.training.tasks.inference import task_of_model
from lstmpool.training.tasks.task import Task
from lstmpool.training.writing import digests_of


# Files of a folder on which predictions depend.
OF_MODEL = ("config.json", ADAPTER_CONFIG_NAME, *WEIGHTS, "tokenizer*", "vocab*", "merges.txt", "*.model")
NO_LIMIT = 10**9  # tokens; a tokenizer that says more does not know where to cut


@dataclass(frozen=True)
class Finished:
    """A finished model, whose weights are not loaded yet.

    Args:
        title: as the user typed it.
        members: where each of its models is; several are an ensemble.
        config: of the first member.
        task: what the outputs mean.
        settings: what it was trained with, as its `run.json` says; empty if there is none.
        reads_pairs: whether a row is a pair of texts; None if that is not known.
    """

    title: str
    members: list[Backbone]
    config: LstmPoolConfig
    task: Task
    settings: dict[str, Any] = field(default_factory=dict)
    reads_pairs: bool | None = None

    @classmethod
    def find(cls, name: str, revision: str = "main", trust_remote_code: bool = False) -> "Finished":
        """Finds the model `name`, a folder or a name on the Hub, and reads its config.

        Raises:
            InputError: if there is none, it is of another kind, or its run was cut off.
        """
        loading = {"trust_remote_code": trust_remote_code, "revision": revision}
        folder = Path(name)
        if not folder.is_dir():
            places = [Backbone("--init_from", name, name, True, loading)]
            _check_name(name)
        else:
            places = [Backbone("--init_from", str(each), str(each), False, loading) for each in _folders(folder)]
        configs = [_config_of(place) for place in places]
        tasks = [task_of_model(config, {}) for config in configs]
        for place, task in zip(places, tasks, strict=True):
            if (task.problem_type, task.names) != (tasks[0].problem_type, tasks[0].names):
                raise InputError(f"{place.title} has other outputs than {places[0].title}: they are no ensemble.")
        first = Path(places[0].path)
        record = RunRecord.read(first)
        settings = record.settings if record else {}
        texts = places[0].texts_a_row(configs[0])
        return cls(name, places, configs[0], tasks[0], settings, None if texts is None else texts == 2)

    def digest(self) -> dict[str, str]:
        """What tells these models from others: a digest by file, or the commit on the Hub."""
        found = {}
        for place in self.members:
            if place.on_hub:
                found[place.title] = place.identity()
                continue
            folder = Path(place.path)
            names = sorted({path.name for pattern in OF_MODEL for path in folder.glob(pattern) if path.is_file()})
            with one_line(f"{folder} cannot be read"):
                found |= {f"{folder.name}/{file}": digest for file, digest in digests_of(folder, names).items()}
        return found

    def load(self, use_cpu: bool, bf16: bool) -> "Predictor":
        """Loads the weights onto the device of this process. Raises InputError if they cannot be loaded."""
        device = _device(use_cpu)
        models = [_load(place, self.task).to(device) for place in self.members]
        tokenizer = _without_flag(self.members[0].load_tokenizer, None)
        limit = tokenizer.init_kwargs.get("model_max_length") or NO_LIMIT
        if LONGEST < limit < NO_LIMIT:
            tokenizer.model_max_length = limit  # where training cut, which is what the command saves
        return Predictor(self.title, models, tokenizer, self.task, device, bf16)


def _folders(folder: Path) -> list[Path]:
    """The folder of the model, or those of the folds or seeds."""
    if (folder / "config.json").is_file():
        return [folder]
    record = RunRecord.read(folder)
    members = []
    for name in Members.within(folder).names():
        of_member = RunRecord.read(folder / name)
        if of_member is None or not of_member.finished:
            raise InputError(f"{folder / name} is not finished. Give the command that has made {folder} once more.")
        members.append(folder / name)
    if members:
        return members
    if record is not None and not record.finished:
        raise InputError(f"{folder} holds a run that was cut off. Give its command once more, or name a checkpoint.")
    inner = [path.name for path in sorted(folder.iterdir()) if (path / "config.json").is_file()]
    hint = f" Did you mean one of its folders: {', '.join(inner[:3])}?" if inner else ""
    raise InputError(f"expected the folder of a finished model, found no config.json in {folder}.{hint}")


def _check_name(name: str) -> None:
    """Raises InputError for a name that is no folder, and cannot be one on the Hub either."""
    path = Path(name)
    near = did_you_mean(path.name, [each.name for each in path.parent.glob("*") if each.is_dir()])
    if path.is_file():
        raise InputError(f"expected the folder of a finished model, found the file {name}. Name its folder.")
    if name.startswith((".", "~", "/")) or name.count("/") > 1 or near:
        raise InputError(f"expected the folder of a finished model, found nothing at {name}.{near}")


def _config_of(place: Backbone) -> LstmPoolConfig:
    """The config of a finished model. Raises InputError for one of another kind."""
    try:
        return place.load_config()
    except InputError as error:
        message = str(error).removeprefix("--init_from ")
        if "Use --backbone" in message:
            message = message.removesuffix(" Use --backbone.") + " Train one on it, with train_trainer.py --backbone."
        elif place.on_hub:
            message = f"there is no folder {place.title} here, and no such model on the Hub could be read: {message}"
        raise InputError(message) from None


def _without_flag(load: Any, *words: Any) -> Any:
    """What `load` gives. Its errors name the model without the flag that training knows it by."""
    try:
        return load(*words)
    except InputError as error:
        raise InputError(str(error).removeprefix("--init_from ")) from None


def _load(place: Backbone, task: Task) -> PreTrainedModel:
    folder = Path(place.path)
    if not place.on_hub and (folder / ADAPTER_CONFIG_NAME).is_file():
        with one_line(f"{folder} is an adapter", ImportError, remedy='Install it: pip install ".[peft]"'):
            from lstmpool.training.model.adapters import load_adapter  # peft may not be installed
        adapted = load_adapter(str(folder), trust_remote_code=place.loading["trust_remote_code"])
        return adapted.get_base_model().eval()  # it holds the adapters, and is a model of ours
    with quiet_loading():
        model, is_new = _without_flag(place.load_model, task.config_fields)
    if is_new:
        raise InputError(f"{place.title}: its classifier does not have the labels of its config.")
    return model.eval()


def _device(use_cpu: bool) -> torch.device:
    """The accelerator of this process, if there is one."""
    kind = None if use_cpu else torch.accelerator.current_accelerator(check_available=True)
    if kind is None:
        return torch.device("cpu")
    return torch.device(kind.type, int(os.environ.get("LOCAL_RANK", "0")) % torch.accelerator.device_count())


class Predictor:
    """Loaded models, which give the logits of texts."""

    def __init__(
        self,
        title: str,
        models: list[PreTrainedModel] | list[Callable[..., Any]],  # or what is called, and gives logits, as they do
        tokenizer: PreTrainedTokenizerBase,
        task: Task,
        device: torch.device,
        bf16: bool,
    ):
        self.title = title
        self.models = models
        self.tokenizer = tokenizer
        self.task = task
        self.device = device
        self.bf16 = bf16
        self.limits = TokenLimits.of(models[0]) if isinstance(models[0], PreTrainedModel) else None

    def logits(self, chunk: Chunk, batch_size: int, batch_tokens: int) -> np.ndarray:
        """The logits (N, C) of the N rows of a chunk, in their order.

        Args:
            chunk: the texts, or pairs of texts.
            batch_size: rows in a batch at most.
            batch_tokens: tokens in a batch at most, unless one text has more.

        Raises:
            InputError: if the model cannot read them, or gives no numbers.
        """
        tokens = self._tokens(chunk)
        lengths = lengths_of(tokens)
        order = np.argsort(-lengths, kind="stable")
        columns = tokens.with_format("arrow")
        parts = []  # for each batch, (K, B, C) of the K models
        for rows in batches(lengths[order], batch_size, batch_tokens):
            parts.append(self._of_batch(columns[order[rows]].to_pydict()))
        of_models = torch.cat(parts, dim=1).double().cpu().numpy()  # (K, N, C)
        found = of_models[0] if len(of_models) == 1 else self.task.mean_logits(of_models)
        logits = np.empty_like(found)
        logits[order] = found
        if not np.isfinite(logits).all():
            raise InputError(
                f"{chunk.where}: expected numbers from {self.title}, found NaN or infinity. Leave out --bf16."
            )
        return logits

    def _tokens(self, chunk: Chunk) -> Dataset:
        """The tokenizer's columns."""
        columns = [pyarrow.array(column, pyarrow.large_string()) for column in (chunk.texts, chunk.pairs) if column]
        rows = pyarrow.RecordBatch.from_arrays(columns, ["text", "pair"][: len(columns)])
        with tokenizing(chunk.where):
            table = encode_rows(rows, tokenizer=self.tokenizer, pads=False)
        tokens = Dataset(table.drop_columns("was_cut"), fingerprint="of a chunk")
        if self.limits is not None:  # of a graph nobody knows them
            self.limits.check(tokens, self.tokenizer, f"{self.title}, {chunk.where}")
        return tokens

    def _of_batch(self, columns: dict[str, list[Any]]) -> torch.Tensor:
        """The logits of each of K models, (K, B, C)."""
        batch = pad_without_fast_tokenizer_warning(self.tokenizer, columns, padding=True, return_tensors="pt")
        batch = batch.to(self.device)
        with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            return torch.stack([model(**batch).logits.float() for model in self.models])


def batches(lengths: np.ndarray, batch_size: int, batch_tokens: int) -> Iterator[slice]:
    """Slices of rows, which are sorted from the longest to the shortest, so that no batch is larger than asked for."""
    start = 0
    while start < len(lengths):
        rows = max(1, min(batch_size, batch_tokens // max(int(lengths[start]), 1)))
        yield slice(start, start + rows)
        start += rows
