"""The old place of `hub/folder.py`, which the README of an earlier release names."""

from lstmpool.training.hub.folder import prepare_output_dir


__all__ = ["prepare_output_dir"]
