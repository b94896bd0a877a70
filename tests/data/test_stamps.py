"""Hashes that are remembered by a file's stamps: no changed image may pass for an old one."""

import logging
import os
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedveil.data.formats import image_files, stamps
from fedveil.data.formats.image_files import FileImages, probe
from fedveil.data.image_store import OddImages
from fedveil.errors import DataError


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("FEDVEIL_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("FEDVEIL_FULL_HASHES", raising=False)


@pytest.fixture
def settled(monkeypatch):
    """Files are at rest as soon as they are written; otherwise each test would wait for two seconds."""
    monkeypatch.setattr(stamps, "SETTLED", -1.0)


@pytest.fixture
def read(monkeypatch):
    """The names of the files that are read."""
    names = []
    original = image_files._content
    monkeypatch.setattr(image_files, "_content", lambda path: (names.append(path.name), original(path))[1])
    return names


def bitmap(path, value):
    """Uncompressed, so that any two have the same size."""
    Image.fromarray(np.full((9, 9), value, np.uint8)).save(path, "BMP")


@pytest.fixture
def paths(tmp_path):
    found = [tmp_path / f"{number}.bmp" for number in range(4)]
    for number, path in enumerate(found):
        bitmap(path, 10 * number)
    return found


def digests(paths, size=8):
    return FileImages(paths, [probe(path) for path in paths], size).digest(np.arange(len(paths)))


def test_unchanged_files_are_read_once(paths, read, settled):
    first = digests(paths)
    assert sorted(read) == [path.name for path in paths]
    read.clear()
    assert digests(paths) == first
    assert digests(paths[::-1] + paths[:1]) == [*first[::-1], first[0]]
    assert read == []


def test_other_ways_of_reading_have_their_own_hashes(paths, settled):
    assert not set(digests(paths)) & set(digests(paths, size=9))


def change_in_place(path, stat):
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\xff")


def change_by_replacing(path, stat):
    other = path.with_suffix(".new")
    bitmap(other, 200)
    other.replace(path)


@pytest.mark.parametrize("change", [change_in_place, change_by_replacing])
def test_a_changed_image_of_the_same_size_and_time_is_hashed_again(paths, settled, change):
    """What a stamp of size and modification time alone would miss."""
    before = digests(paths)
    stat = paths[1].stat()
    time.sleep(0.02)  # at least one tick of the file system's clock
    change(paths[1], stat)
    os.utime(paths[1], ns=(stat.st_atime_ns, stat.st_mtime_ns))
    changed = paths[1].stat()
    assert (changed.st_size, changed.st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)
    after = digests(paths)
    assert [one != other for one, other in zip(before, after, strict=True)] == [False, True, False, False]


def test_files_that_were_just_written_are_not_remembered(paths, read):
    digests(paths)
    read.clear()
    digests(paths)
    assert len(read) == 4


def test_a_file_that_changes_while_it_is_read_is_not_remembered(paths, settled, monkeypatch):
    original = image_files._content

    def overtaken(path):
        content = original(path)
        if path == paths[2]:
            change_in_place(path, None)
        return content

    monkeypatch.setattr(image_files, "_content", overtaken)
    stale = digests(paths)
    monkeypatch.setattr(image_files, "_content", original)
    assert [one == other for one, other in zip(stale, digests(paths), strict=True)] == [
        True,
        True,
        False,
        True,
    ]


def test_all_are_read_on_demand(paths, read, settled, monkeypatch):
    digests(paths)
    read.clear()
    with stamps.full_hashes():
        digests(paths)
    assert len(read) == 4
    monkeypatch.setenv("FEDVEIL_FULL_HASHES", "1")
    digests(paths)
    assert len(read) == 8


@pytest.mark.parametrize("damage", [b"", b"short", None])
def test_a_damaged_table_is_read_over(paths, tmp_path, read, settled, damage, caplog):
    first = digests(paths)
    (table,) = (tmp_path / "cache" / "digests").iterdir()
    content = bytearray(table.read_bytes())
    content[-1] ^= 1
    table.write_bytes(content if damage is None else damage)
    read.clear()
    with caplog.at_level(logging.WARNING):
        assert digests(paths) == first
    assert len(read) == 4
    assert "damaged" in caplog.text


def test_a_full_disk_costs_the_table_but_not_the_run(paths, settled, monkeypatch, caplog):
    def full(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with caplog.at_level(logging.WARNING):
        assert len(set(digests(paths))) == 4
    assert "No space left on device" in caplog.text


def test_one_unreadable_file_does_not_make_all_be_read_one_by_one(paths, read, settled):
    images = FileImages(paths, [probe(path) for path in paths], 8)
    paths[3].unlink()
    with pytest.raises(DataError, match="no such file"):
        images.digest(np.arange(4))
    found = OddImages(images).digest(np.arange(4))
    assert found[:3] == images.digest(np.arange(3))
    assert len(set(found)) == 4


def test_rest_is_judged_before_any_file_is_read(paths, monkeypatch):
    """A long reading of other files is no rest of this one: it may have changed within the tick of its stamp."""
    monkeypatch.setattr(stamps, "SETTLED", 0.5)
    original, names = image_files._content, []
    monkeypatch.setattr(image_files, "_content", lambda path: (time.sleep(0.6), original(path))[1])
    digests(paths)
    monkeypatch.setattr(image_files, "_content", lambda path: (names.append(path.name), original(path))[1])
    digests(paths)
    assert sorted(names) == [path.name for path in paths]
