"""The layer states of a frozen backbone, computed once for each split and kept on disk.

A frozen backbone says the same of a text in every epoch, and in every run with the same weights and settings. So it
runs once, over batches of texts of like length, and what it gives goes to an Arrow file that is read through a memory
map: by the next run with the same texts in the same order, too, and by several processes at once. The file's name is a
digest of all that it depends on. No file is ever removed.
"""

import hashlib
import shutil
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import torch
from datasets import Dataset
from filelock import FileLock, Timeout
from huggingface_hub.constants import HF_HOME
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel
from transformers.data.data_collator import DataCollator

from lstmpool.training.data.order import by_length
from lstmpool.training.errors import InputError
from lstmpool.training.writing import writing


CACHE = Path(HF_HOME) / "lstmpool"  # beside the library's own caches, and so never in an output folder
DTYPES = {"float32": np.float32, "float16": np.float16}


class StatesCollator:
    """Batches of cached rows: `layer_states` (B, L, H) in float32, and `labels` where there are any."""

    def __init__(self, layers: int, hidden: int):
        self.shape = (-1, layers, hidden)

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        states = np.stack([row["layer_states"] for row in rows])  # (B, L * H)
        batch = {"layer_states": torch.from_numpy(states.astype(np.float32)).view(self.shape)}
        if "labels" in rows[0]:
            labels = np.array([row["labels"] for row in rows])
            batch["labels"] = torch.from_numpy(labels.astype(np.float32 if labels.dtype.kind == "f" else np.int64))
        return batch


def cached_states(
    model: PreTrainedModel,
    tokens: Dataset,
    collator: DataCollator,
    batch_size: int,
    dtype: str = "float32",
    folder: Path | None = None,
    title: str = "texts",
) -> Dataset:
    """The rows of `tokens` with `layer_states` (L * H) in the place of the tokens' columns; `labels` stay.

    Args:
        model: whose backbone runs, on the device where it is, in eval mode.
        tokens: the tokenizer's columns, and `labels` where there are any.
        collator: pads a batch of rows.
        dtype: of the file, "float32" or "float16", which takes half the disk.
        folder: of the files; unset, `CACHE`.
        title: of the progress bar.

    Raises:
        InputError: if the folder cannot be written, its disk has no room, or `dtype` cannot hold the states.
    """
    folder = folder or CACHE
    labels = tokens["labels"][:] if "labels" in tokens.column_names else None
    tokens = tokens.remove_columns("labels") if labels is not None else tokens
    ordered, order = by_length(tokens)
    path = folder / f"layer_states-{_digest(model, ordered, dtype)}.arrow"
    try:
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            with _lock(path, title):
                if not path.exists():
                    _write(path, model, ordered, collator, batch_size, dtype, title)
        states = Dataset.from_file(str(path))
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError(f"the layer cache in {folder} cannot be written or read: {error}") from None
    if labels is not None:  # before the rows are put into their order, for which the column would be copied to memory
        states = states.add_column("labels", [labels[i] for i in order])
    return states.select(np.argsort(order)).with_format("numpy")


def _lock(path: Path, title: str) -> AbstractContextManager:
    """Of two processes, also on two machines that share the folder, one writes; the other one waits."""
    lock = FileLock(f"{path}.lock")
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        print(f"Layer states of {title}: another process computes them. Waiting for it.", flush=True)
        return lock.acquire()


@torch.no_grad()
def _write(
    path: Path,
    model: PreTrainedModel,
    tokens: Dataset,
    collator: DataCollator,
    batch_size: int,
    dtype: str,
    title: str,
) -> None:
    """Fills the file, which takes its place once it is whole. The caller holds its lock."""
    base, width = model.base_model.eval(), len(model.config.layers) * model.config.hidden_size
    kind = pyarrow.list_(pyarrow.from_numpy_dtype(DTYPES[dtype]), width)
    schema = pyarrow.schema({"layer_states": kind})
    with writing(path) as unfinished:  # which removes what a kill has left, so that its room counts as free
        _check_room(path.parent, len(tokens) * width * np.dtype(DTYPES[dtype]).itemsize, dtype, title)
        with pyarrow.OSFile(str(unfinished), "wb") as file, pyarrow.ipc.new_stream(file, schema) as writer:
            for start in tqdm(range(0, len(tokens), batch_size), desc=f"layer states of {title}", leave=False):
                rows = [tokens[i] for i in range(start, min(start + batch_size, len(tokens)))]
                batch = {name: value.to(base.device) for name, value in collator(rows).items()}
                states = base(**batch).layer_states.flatten(1)  # (B, L * H)
                flat = _cast(states.float().cpu().numpy().ravel(), dtype)
                column = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(flat), width)
                writer.write_batch(pyarrow.record_batch([column], schema=schema))


def _check_room(folder: Path, needed: int, dtype: str, title: str) -> None:
    """Raises InputError if the disk has fewer than the `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        half = "--layer_cache float16, which takes half of that, or " if dtype == "float32" else ""
        raise InputError(
            f"the layer states of {title} take {needed / 1e9:,.3f} GB in {folder}, found {free / 1e9:,.3f} GB free. "
            f"Free some, where old *.arrow files there may be deleted; give {half}--layer_cache no; or set HF_HOME "
            "to a folder on another disk."
        )


def _cast(states: np.ndarray, dtype: str) -> np.ndarray:
    """Refuses what would become infinite, which training would take for divergence."""
    with np.errstate(over="ignore"):
        cast = states.astype(DTYPES[dtype])
    lost = np.isfinite(states) & ~np.isfinite(cast)
    if lost.any():
        raise InputError(
            f"--layer_cache {dtype} holds numbers up to {np.finfo(DTYPES[dtype]).max:.0f}, found "
            f"{states[lost][0]:.0f}. Give --layer_cache float32."
        )
    return cast


def _digest(model: PreTrainedModel, tokens: Dataset, dtype: str) -> str:
    """Of the backbone's weights and config, of what is read from it, of the tokens in their order, and of the form."""
    config, digest = model.config, hashlib.blake2b(digest_size=16)
    backbone = {name: value for name, value in config.backbone_config.to_dict().items() if not name.startswith("_")}
    backbone.pop("transformers_version", None)
    said = [dtype, config.layers, config.token_readout, backbone, sorted(tokens.column_names)]
    digest.update(repr(said).encode())
    for name, tensor in model.base_model.backbone.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    for name in sorted(tokens.column_names):
        for row in tokens[name]:
            digest.update(np.asarray(row, dtype=np.int64))
            digest.update(b"|")
    return digest.hexdigest()
