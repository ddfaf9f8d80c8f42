"""What `standardize_layers` needs before the first step: the mean and scale of each feature of each layer.

They come from the layer states of the training rows, of the backbone as it is then. All processes compute the same.
The model keeps them in its buffers, so a run that goes on has them from its checkpoint.
"""

import torch

from lstmpool.training.errors import InputError
from lstmpool.training.model.trainable_parts import trained_pooler
from lstmpool.training.runs.stages import read_states
from lstmpool.training.runs.state import State


def standardize_layers(state: State) -> None:
    """Fits the model's `LayerStandardization` to the training rows, or to those that stage 1 reads, and says so.

    Raises:
        InputError: if the layer states cannot be read, or are no finite numbers; see `read_states`.
    """
    standardization = trained_pooler(state.model).standardization
    try:
        states, rows = read_states(state)
    except InputError as error:
        raise InputError(
            f"--standardize_layers needs layer states: {error} Or train without: --standardize_layers False."
        ) from None
    standardization.fit(torch.from_numpy(states))
    total = len(state.inputs["train"])
    of = f"{total:,} rows" if len(rows) == total else f"{len(rows):,} of {total:,} rows"
    print(f"Layers standardised: mean and scale of each feature from the layer states of {of}.", flush=True)
