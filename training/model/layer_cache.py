"""The layer states of a frozen backbone, computed once for each split and kept on disk.

A frozen backbone gives the same states for a text in every epoch, and in every run with the same weights and settings.
So it runs once, over batches of texts of similar length, and its states go to an Arrow file. Trainer reads the file
through a memory map, and so do other processes and later runs with the same texts in the same order. The file's name
is a digest of all that it depends on. Its last bytes, behind Arrow's own end, are a digest of those before. So a file
that the disk has damaged is found, and made again. No other file is ever removed.
"""

import hashlib
import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

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

from lstmpool.fields_lstmpool import APART
from lstmpool.training.data.order import by_length
from lstmpool.training.errors import InputError
from lstmpool.training.writing import DIGEST_SIZE, digest_of, writing


CACHE = Path(HF_HOME) / "lstmpool"  # beside the library's own caches, so never in an output folder
FIRST_STAGE = "first_stage"  # a folder in it; what is there goes when its command is done
KEPT_FOR = 7 * 24 * 60 * 60  # seconds: what a command that was killed has left, and nobody went on with
DTYPES = {"float32": np.float32, "float16": np.float16}
SEAL = b"blake2b "  # begins the last bytes of a file; the digest of all before follows
SEAL_SIZE = len(SEAL) + 2 * DIGEST_SIZE


class CachedStates(NamedTuple):
    """Rows with their layer states, and whether these were computed now, and not read from disk."""

    rows: Dataset
    computed: bool


class StatesCollator:
    """Makes batches of cached rows: `layer_states` (B, L, S) in float32, and `labels` where there are any."""

    def __init__(self, layers: int, width: int):
        self.shape = (-1, layers, width)

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        states = np.stack([row["layer_states"] for row in rows])  # (B, L * S)
        batch = {"layer_states": torch.from_numpy(states.astype(np.float32)).view(self.shape)}
        if "labels" in rows[0]:
            labels = np.array([row["labels"] for row in rows])
            dtype = np.float32 if labels.dtype.kind == "f" else np.int64
            batch["labels"] = torch.from_numpy(labels.astype(dtype))
        return batch


def cached_states(
    model: PreTrainedModel,
    tokens: Dataset,
    collator: DataCollator,
    batch_size: int,
    dtype: str = "float32",
    folder: Path | None = None,
    title: str = "texts",
    quiet: bool = False,
) -> CachedStates:
    """The rows of `tokens` with `layer_states` (L * S) in place of the tokenizer's columns; `labels` stay.

    Args:
        model: its backbone runs, in eval mode, on the device where it is.
        tokens: the tokenizer's columns, and `labels` where there are any.
        collator: pads a batch of rows.
        batch_size: rows in a batch of the backbone.
        dtype: of the file: "float32", or "float16", which takes half the disk.
        folder: where the file lies; unset, `CACHE`.
        title: names the rows in the progress bar and in messages.
        quiet: whether there is no progress bar.

    Raises:
        InputError: if the folder cannot be written, its disk has no room, or `dtype` cannot hold the states.
    """
    folder = folder or CACHE
    labels = None
    if "labels" in tokens.column_names:
        labels = tokens.with_format("arrow")["labels"][:]  # as lists, those of many names would fill the memory
        tokens = tokens.remove_columns("labels")
    ordered, order = by_length(tokens)
    path = folder / f"layer_states-{_digest(model, ordered, dtype)}.arrow"
    try:
        write = partial(_write, path, model, ordered, collator, batch_size, dtype, title, quiet)
        computed = _make_whole(path, title, write)
        states = Dataset.from_file(str(path))
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError(f"the layer cache in {folder} cannot be written or read: {error}") from None
    if labels is not None:  # added before `select`: on selected rows, `add_column` copies all states to memory
        states = states.add_column("labels", labels.take(pyarrow.array(order)))
    return CachedStates(states.select(np.argsort(order)).with_format("numpy"), computed)


def states_folder(output_dir: str) -> Path:
    """Where the layer states of the runs of a command lie. They are large, and nobody's business afterwards."""
    name = hashlib.blake2b(str(Path(output_dir).resolve()).encode(), digest_size=8).hexdigest()
    return CACHE / FIRST_STAGE / name


def forget_states(folder: Path) -> None:
    """Removes the layer states of a command's runs, and what others have left that were killed long ago."""
    shutil.rmtree(folder, ignore_errors=True)
    for left in folder.parent.glob("*"):
        with suppress(OSError):  # another command may remove it meanwhile
            if time.time() - left.stat().st_mtime > KEPT_FOR:
                shutil.rmtree(left, ignore_errors=True)


def damage(path: Path) -> str:
    """Says what keeps a file of the cache from being whole; empty if it is whole."""
    if not path.is_file():
        return "is missing"
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - SEAL_SIZE))
        seal = file.read()
    if len(seal) < SEAL_SIZE or not seal.startswith(SEAL):
        return "was cut off, or comes from an earlier release: it does not end with a digest"
    if seal != _seal(path, left_out=SEAL_SIZE):
        return "is damaged: its bytes have another digest than they had when they were written"
    return ""


def _make_whole(path: Path, title: str, write: Callable[[], None]) -> bool:
    """Calls `write` unless the file is whole, or another process makes it meanwhile. Returns whether it did."""
    if not damage(path):
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    with _lock(path, title):
        wrong = damage(path)
        if wrong and path.exists():
            print(f"{path} {wrong}. It is made again.", flush=True)
        if wrong:
            write()
        return bool(wrong)


def _seal(path: Path, left_out: int = 0) -> bytes:
    """What a file with these bytes must end with."""
    return SEAL + digest_of(path, left_out).encode("ascii")


def _lock(path: Path, title: str) -> AbstractContextManager:
    """Lets one process write and others wait, also on other machines that share the folder."""
    lock = FileLock(f"{path}.lock")
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        print(f"Layer states of {title}: another process is computing them. Waiting for it.", flush=True)
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
    quiet: bool,
) -> None:
    """Writes the file, which takes its place once it is whole. The caller holds its lock."""
    base = model.base_model.eval()
    width = len(model.config.layers) * model.config.state_size
    column_type = pyarrow.list_(pyarrow.from_numpy_dtype(DTYPES[dtype]), width)
    schema = pyarrow.schema({"layer_states": column_type})
    with writing(path) as unfinished:  # this first removes what a killed run left, so its room counts as free
        _check_room(path.parent, len(tokens) * width * np.dtype(DTYPES[dtype]).itemsize, dtype, title)
        with pyarrow.OSFile(str(unfinished), "wb") as file, pyarrow.ipc.new_stream(file, schema) as writer:
            starts = range(0, len(tokens), batch_size)
            for start in tqdm(starts, desc=f"layer states of {title}", leave=False, disable=quiet):
                rows = [tokens[i] for i in range(start, min(start + batch_size, len(tokens)))]
                batch = {name: value.to(base.device) for name, value in collator(rows).items()}
                states = base(**batch).layer_states.flatten(1)  # (B, L * S)
                flat = _cast(states.float().cpu().numpy().ravel(), dtype)
                column = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(flat), width)
                writer.write_batch(pyarrow.record_batch([column], schema=schema))
        seal = _seal(unfinished)
        with unfinished.open("ab") as file:
            file.write(seal)


def _check_room(folder: Path, needed: int, dtype: str, title: str) -> None:
    """Raises InputError if the disk has fewer than the `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        half = "--layer_cache float16, which takes half as much, or " if dtype == "float32" else ""
        other = "" if folder.parent.name == FIRST_STAGE else f" give {half}--layer_cache no;"
        raise InputError(
            f"the layer states of {title} take {needed / 1e9:,.3f} GB in {folder}, found {free / 1e9:,.3f} GB free. "
            f"Free some space: old *.arrow files there may be deleted;{other} or set HF_HOME to a folder on another "
            "disk."
        )


def _cast(states: np.ndarray, dtype: str) -> np.ndarray:
    """Casts `states`. Raises InputError if a number would become infinite, which would look like divergence."""
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
    """A digest of the backbone's weights and config, what is read and how, the tokens in order, and `dtype`."""
    config = model.config
    backbone = {name: value for name, value in config.backbone_config.to_dict().items() if not name.startswith("_")}
    backbone.pop("transformers_version", None)
    settings = [dtype, config.layers, config.token_readout, backbone, sorted(tokens.column_names)]
    if config.pair_encoding == APART:
        settings.append([APART, config.pair_template])
    digest = hashlib.blake2b(digest_size=16)
    digest.update(repr(settings).encode())
    for name, tensor in model.base_model.backbone.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    for name in sorted(tokens.column_names):
        for row in tokens[name]:
            digest.update(np.asarray(row, dtype=np.int64))
            digest.update(b"|")
    return digest.hexdigest()
