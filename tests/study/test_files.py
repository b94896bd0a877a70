import os

import pytest

from fedveil.io import write_atomic


def test_a_file_is_as_readable_as_any_other_that_the_user_writes(tmp_path):
    before = os.umask(0o027)
    try:
        write_atomic(tmp_path / "report.html", lambda file: file.write(b"text"))
    finally:
        os.umask(before)
    assert (tmp_path / "report.html").stat().st_mode & 0o777 == 0o640


def test_what_cannot_be_finished_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "report.html"
    path.write_bytes(b"old")

    def fail(file):
        file.write(b"half")
        raise OSError(28, "no space left")

    with pytest.raises(OSError, match="no space left"):
        write_atomic(path, fail)
    assert [one.name for one in tmp_path.iterdir()] == ["report.html"]
    assert path.read_bytes() == b"old"
