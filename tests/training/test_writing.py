import os

import pytest

from lstmpool.training.writing import write_text, writing


def test_a_file_takes_its_place_once_it_is_whole(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("of before")
    with writing(path) as unfinished:
        unfinished.write_text("new")
        assert unfinished == tmp_path / ".table.csv.unfinished"
        assert path.read_text() == "of before"
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["table.csv"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_writing_that_fails_leaves_what_was_there(tmp_path, error):
    path = tmp_path / "table.csv"
    path.write_text("of before")
    with pytest.raises(error), writing(path) as unfinished:
        unfinished.write_text("half")
        raise error
    assert path.read_text() == "of before"
    assert os.listdir(tmp_path) == ["table.csv"]


def test_what_a_kill_has_left_is_removed_before_the_file_is_written(tmp_path):
    (tmp_path / ".table.csv.unfinished").write_text("half of an earlier one")
    with writing(tmp_path / "table.csv") as unfinished:
        assert not unfinished.exists()
        unfinished.write_text("new")
    assert os.listdir(tmp_path) == ["table.csv"]


def test_text_is_written_as_utf_8(tmp_path):
    write_text(tmp_path / "run.json", "größer\n")
    assert (tmp_path / "run.json").read_bytes() == "größer\n".encode()
    assert os.listdir(tmp_path) == ["run.json"]
