"""The first stage of a run: the linear path starts at a linear model of the frozen backbone's layers.

The backbone runs once over the training rows, or over `MOST_ROWS` of them drawn by class. Its layer states lie in a
file meanwhile, whose name is a digest of all that it depends on: so the folds of a cross-validation, the trials of a
search and a run that goes on share it. `forget_states` removes it when the command is done. The second stage trains
everything from there.

The stage is repeated if the run is killed in it, and gives the same weights: it takes seconds for a thousand rows.
"""

import time
from pathlib import Path

import numpy as np
from transformers import set_seed

from lstmpool.training.data.holdout import draw_by_class
from lstmpool.training.loop.measuring import same_random_numbers
from lstmpool.training.model.layer_cache import CACHE, cached_states
from lstmpool.training.model.linear_start import LinearStart, fit_start, summed_loss
from lstmpool.training.runs.state import State
from lstmpool.training.tasks.task import SCORED, LossSettings


MOST_ROWS = 20_000  # whose layer states are taken
MOST_BYTES = 2 * 10**9  # that their file may take
FOLDER = CACHE / "first_stage"
FORGOTTEN_AFTER = 7 * 24 * 60 * 60  # seconds: what a run that was killed has left, and no one came back for
