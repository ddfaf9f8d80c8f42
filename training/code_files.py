"""The code that travels with every model: the files at the root whose names end in `_lstmpool.py`."""

import inspect
from pathlib import Path

from transformers import PreTrainedModel

from lstmpool import modeling_lstmpool


def code_beside(path: str | Path) -> list[Path]:
    """The code files in the folder of one of them, by name."""
    return sorted(Path(path).parent.glob("*_lstmpool.py"))


def code_of(model: PreTrainedModel) -> list[Path]:
    """The files of a model's own code: the installed ones, or those of the folder that it was loaded from."""
    return code_beside(inspect.getfile(type(model)))


CODE = code_beside(modeling_lstmpool.__file__)  # of the installed release
