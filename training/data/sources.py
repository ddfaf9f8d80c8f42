"""Where the rows of each split come from: a file each, or a data set on the Hub or in a folder.

Hub data sets keep what they declare, such as the names of their labels.
"""

import json
from pathlib import Path

from datasets import Dataset, get_dataset_split_names, load_dataset

from lstmpool.training.data.files import read_table
from lstmpool.training.errors import InputError, did_you_mean
from lstmpool.training.flags.arguments import SPLITS, DataArguments
from lstmpool.training.flags.rules import DATA_SOURCE, Flags, check


def named_splits(args: DataArguments) -> dict[str, str]:
    """Which of train, validation and test there are rows for, and the file or the data set's split that holds them.

    Of a data set on the Hub, the list of its splits is asked for, not the rows.

    Raises:
        InputError: if both files and a data set are named, or a named split does not exist.
    """
    check(DATA_SOURCE, Flags(data=args))
    files = {split: path for split in SPLITS if (path := getattr(args, f"{split}_file")) is not None}
    chosen = {split: name for split in SPLITS if (name := getattr(args, f"{split}_split_name")) is not None}
    if args.dataset_name is None:
        return files
    there = _split_names(args)
    for split, name in chosen.items():
        if "[" in name and _saved(args.dataset_name) is not None:
            raise InputError(f"--{split}_split_name {name}: a folder of save_to_disk has whole splits alone.")
        if name.partition("[")[0] not in there:  # "train[:10%]" is a split, too
            hint = did_you_mean(name, there)
            raise InputError(f"--{split}_split_name {name}: {args.dataset_name} has {', '.join(there)}.{hint}")
    others = [split for split in SPLITS if split in there and split not in {*chosen, *chosen.values()}]
    for split, name in chosen.items():
        if name.partition("[")[0] in others:
            whole = name.partition("[")[0]
            raise InputError(
                f"--{split}_split_name {name} is a part of {whole}, all of which would be read, too. Name what is "
                f"to be read of it with --{whole}_split_name, such as {whole}[:90%]."
            )
    return {**{split: split for split in others}, **chosen}


def read_rows(args: DataArguments, split: str, place: str) -> tuple[Dataset, str]:
    """The rows of `split`, which are at `place` (see `named_splits`), and what to call their source in messages.

    Raises:
        InputError: if they cannot be read, or there are none.
    """
    if args.dataset_name is None:
        return read_table(Path(place)), Path(place).name
    if _saved(args.dataset_name) is not None:
        return read_table(Path(args.dataset_name, place)), place
    try:
        table = load_dataset(args.dataset_name, args.dataset_config_name, split=place, revision=args.dataset_revision)
    except Exception as error:  # the library's own kinds, those of the Hub's client and of every reader
        cause = str(error.__cause__ or error)[:300]  # the library's own words are few, or very many
        raise InputError(f"--dataset_name {args.dataset_name} cannot be loaded: {cause}") from None
    if len(table) == 0:
        raise InputError(f"--dataset_name {args.dataset_name}: its split {place} holds no rows.")
    return table, f"{args.dataset_name} {place}"


def _split_names(args: DataArguments) -> list[str]:
    name = args.dataset_name
    if (saved := _saved(name)) is not None:
        return saved
    if (Path(name) / "state.json").is_file():
        raise InputError(f"--dataset_name {name} is one split of a data set. Name it with --train_file.")
    if not Path(name).exists() and (name.startswith((".", "~", "/")) or name.count("/") > 1):
        raise InputError(f"--dataset_name {name} is no folder, and cannot be a name on the Hub (owner/name).")
    try:
        return get_dataset_split_names(name, args.dataset_config_name, revision=args.dataset_revision)
    except Exception as error:  # as above
        raise InputError(f"--dataset_name {name} cannot be found or read: {error}") from None


def _saved(folder: str) -> list[str] | None:
    """The splits in a folder that `DatasetDict.save_to_disk` wrote; None for any other."""
    try:
        return json.loads(Path(folder, "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
    except OSError:
        return None
    except (ValueError, KeyError):
        raise InputError(f"--dataset_name {folder} holds a dataset_dict.json that cannot be read.") from None
