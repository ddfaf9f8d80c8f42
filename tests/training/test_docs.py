import pytest

from lstmpool.fields_lstmpool import DEFAULTS
from lstmpool.training.docs import BEGIN, END, PAGE, fields_table, with_table


def test_the_page_has_the_table_that_is_made_from_the_code():
    """If it does not: python -m lstmpool.training.docs"""
    page = PAGE.read_text(encoding="utf-8")
    assert page == with_table(page)


def test_the_table_has_a_row_for_each_field():
    rows = fields_table().splitlines()[2:]
    assert [row.split("`")[1] for row in rows] == list(DEFAULTS)
    assert all(row.count("|") == 4 and not row.endswith("|  |") for row in rows)
    assert "| `lstm_hidden_size` | Units of the LSTM or GRU per direction;" in fields_table()
    assert "| `layers` |" in fields_table() and "| all layers |" in fields_table()


def test_what_stands_around_the_table_stays():
    assert with_table(f"before\n{BEGIN}old\n{END}after\n") == f"before\n{BEGIN}{fields_table()}{END}after\n"
    with pytest.raises(ValueError, match="found at most one"):
        with_table("no comments")
