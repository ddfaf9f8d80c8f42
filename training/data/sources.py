"""Finds where the rows of each split are: a file each, or a data set on the Hub or in a folder.

Data sets on the Hub keep what they declare, such as the names of their labels.
"""

import json
from pathlib import Path

from datasets import (
    Dataset,
    ReadInstruction,
    concatenate_datasets,
    get_dataset_split_names,
    load_dataset,
    load_dataset_builder,
)

from lstmpool.training.data.files import Wanted, every_column, is_folder, is_table, read_table
from lstmpool.training.errors import InputError, did_you_mean, one_line
from lstmpool.training.flags.arguments import SPLITS, DataArguments
from lstmpool.training.flags.rules import DATA_SOURCE, Flags, check


def named_splits(args: DataArguments) -> dict[str, str]:
    """For each of train, validation and test that has rows, the file or the data set's split that holds them.

    A data set on the Hub is only asked for the list of its splits, not for its rows.

    Raises:
        InputError: if both files and a data set are named, or a named split does not exist.
    """
    check(DATA_SOURCE, Flags(data=args))
    if args.dataset_name is None:
        return _given(args, "file")
    chosen = _given(args, "split_name")
    there = split_names(args)
    for split, name in chosen.items():
        if "[" in name and saved_splits(args.dataset_name) is not None:
            raise InputError(f"--{split}_split_name {name}: a folder of save_to_disk has only whole splits. Name one.")
        if _whole(name) not in there:
            hint = did_you_mean(name, there)
            raise InputError(f"--{split}_split_name {name}: {args.dataset_name} has {', '.join(there)}.{hint}")
    others = [split for split in SPLITS if split in there and split not in {*chosen, *chosen.values()}]
    for split, name in chosen.items():
        whole = _whole(name)
        if whole in others:
            raise InputError(
                f"--{split}_split_name {name} is a part of {whole}, all of which would be read too. Say which part "
                f"of it to read with --{whole}_split_name, such as {whole}[:90%]."
            )
    return {split: split for split in others} | chosen


def _given(args: DataArguments, ending: str) -> dict[str, str]:
    """The flags SPLIT_ENDING that were given, by split."""
    values = {split: getattr(args, f"{split}_{ending}") for split in SPLITS}
    return {split: value for split, value in values.items() if value is not None}


def _whole(name: str) -> str:
    """The split of which `name` is a part: train of train[:10%]."""
    return name.partition("[")[0]


def title_of(args: DataArguments, place: str) -> str:
    """What messages call the rows at `place`: a file's name without its folders, or a data set and its split."""
    if args.dataset_name is None:
        return Path(place).name
    if saved_splits(args.dataset_name) is not None:
        return place
    folder = Path(args.dataset_name)
    name = folder.name if is_folder(folder) else args.dataset_name  # a card names no folder of the machine
    return f"{name} {place}"


def read_rows(args: DataArguments, place: str, wanted: Wanted = every_column) -> tuple[Dataset, str]:
    """The rows at `place` (see `named_splits`), and what messages call their source.

    Args:
        args: which files or data set to read.
        place: a file, or a split of the data set.
        wanted: chooses the columns to read by the names of all.

    Raises:
        InputError: if they cannot be read, or there are none.
    """
    title = title_of(args, place)
    if args.dataset_name is None:
        return read_table(Path(place), wanted), title
    if saved_splits(args.dataset_name) is not None:
        return read_table(Path(args.dataset_name, place), wanted), title
    files = files_in(args)
    if files:
        return _parts(place, files, wanted), title
    try:
        table = load_dataset(args.dataset_name, args.dataset_config_name, split=place, revision=args.dataset_revision)
    except Exception as error:  # any kind: of the library, of the Hub's client or of a reader
        cause = str(error.__cause__ or error)[:300]  # the library's own message says little, or runs on for pages
        raise InputError(f"--dataset_name {args.dataset_name} cannot be loaded: {cause}") from None
    if len(table) == 0:
        raise InputError(f"--dataset_name {args.dataset_name}: its split {place} holds no rows.")
    return (table if wanted is every_column else table.select_columns(wanted(table.column_names))), title


def files_in(args: DataArguments) -> dict[str, list[str]]:
    """The files of each split in a folder of data files, if `read_table` reads all of them; else nothing.

    The library finds them, as it does for a data set on the Hub. It is not asked to read them, since it takes words
    such as NA for missing cells.
    """
    if not is_folder(Path(args.dataset_name)):
        return {}
    try:
        found = load_dataset_builder(args.dataset_name, args.dataset_config_name).config.data_files or {}
    except Exception as error:  # any kind, as above
        raise InputError(f"--dataset_name {args.dataset_name} cannot be read: {error}") from None
    files = {str(split): [str(file) for file in of_split] for split, of_split in found.items()}
    return files if all(is_table(Path(file)) for of_split in files.values() for file in of_split) else {}


def _parts(place: str, files: dict[str, list[str]], wanted: Wanted) -> Dataset:
    """The rows of a split or of parts of splits, such as train[:50%]."""
    tables = []
    for part in place.split("+"):
        split = _whole(part)
        of_split = [read_table(Path(file), wanted) for file in files[split]]
        with one_line(f"{split}: its {len(of_split)} files do not fit together", Exception):  # any kind, as above
            table = concatenate_datasets(of_split)
        with one_line(f"{part} is no part of {split}", ValueError, AssertionError):
            (rows,) = ReadInstruction.from_spec(part).to_absolute({split: len(table)})
        tables.append(table.select(range(rows.from_, rows.to)))
    table = concatenate_datasets(tables)
    if len(table) == 0:
        raise InputError(f"{place} holds no rows.")
    return table


def split_names(args: DataArguments) -> list[str]:
    name = args.dataset_name
    saved = saved_splits(name)
    if saved is not None:
        return saved
    is_there = is_folder(Path(name)) or Path(name).exists()
    if (Path(name) / "state.json").is_file():
        raise InputError(f"--dataset_name {name} is one split of a data set. Name it with --train_file.")
    if not is_there and (name.startswith((".", "~", "/")) or name.count("/") > 1):
        raise InputError(f"--dataset_name {name} is not a folder, and cannot be a name on the Hub (owner/name).")
    files = files_in(args)
    if files:
        return list(files)
    try:
        return get_dataset_split_names(name, args.dataset_config_name, revision=args.dataset_revision)
    except Exception as error:  # any kind, as above
        raise InputError(f"--dataset_name {name} cannot be found or read: {error}") from None


def saved_splits(folder: str) -> list[str] | None:
    """The names of the splits in a folder that `DatasetDict.save_to_disk` wrote; None for anything else."""
    if not is_folder(Path(folder)):
        return None
    broken = f"--dataset_name {folder} holds a dataset_dict.json that cannot be read"
    with one_line(broken, ValueError):
        try:
            written = json.loads(Path(folder, "dataset_dict.json").read_text(encoding="utf-8"))
        except OSError:
            return None
    splits = written.get("splits") if isinstance(written, dict) else None
    if not isinstance(splits, list) or not all(isinstance(split, str) for split in splits):
        raise InputError(f"{broken}: expected a list of splits.")
    return splits
