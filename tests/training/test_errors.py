"""Messages for the user: one short line each."""

import pytest

from lstmpool.training.errors import LONGEST, InputError, one_line


def test_an_error_of_the_outside_becomes_one_line():
    with (
        pytest.raises(InputError, match=r"^x\.csv cannot be read: no room\. Free some\.$"),
        one_line("x.csv cannot be read", remedy="Free some."),
    ):
        raise OSError("no\nroom.")


def test_a_bug_stays_a_bug():
    with pytest.raises(ValueError, match="bug"), one_line("x"):
        raise ValueError("bug")
    with pytest.raises(InputError, match=r"^x: odd\.$"), one_line("x", ValueError):
        raise ValueError("odd")


def test_a_message_is_short_and_keeps_its_end():
    message = str(InputError("begin " + "x" * 20_000_000 + " remedy"))
    assert len(message) <= LONGEST + 20
    assert message.startswith("begin")
    assert message.endswith("remedy")


def test_control_characters_do_not_reach_the_terminal():
    assert str(InputError("a\x1b[31mb\u200bc\ud83d")) == "a\\x1b[31mb\\u200bc\\ud83d"
