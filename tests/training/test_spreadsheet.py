"""Cells that a spreadsheet would run as a formula."""

import pytest

from lstmpool.training.spreadsheet import guard, unguard


@pytest.mark.parametrize(
    "cell", ["=1+1", "+x", "-x", "@SUM(A1)", "\t=1", "\r=1", "-1 dog", "--1", "'=1", "'-1", "''@x"]
)
def test_a_formula_gets_an_apostrophe_that_is_taken_off_again(cell):
    assert guard(cell) == "'" + cell
    assert unguard(guard(cell)) == cell


@pytest.mark.parametrize("cell", ["", "dog", "-1", "+1.5", "-.5e-3", "1-1", "'tis", "a=b"])
def test_other_cells_stay(cell):
    assert guard(cell) == cell
    assert unguard(cell) == cell
