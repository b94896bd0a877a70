"""The ledger's file: killed at every byte, edited at every byte, cut, swapped, full disks."""

import os
import resource
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedveil.errors import LedgerError
from fedveil.privacy.ledger import chain as chain_module
from fedveil.privacy.ledger.chain import Chain, Head, read_chain, restore_head

FIRST = {"kind": "budget", "text": "début"}


@pytest.fixture(autouse=True)
def no_disk_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of files are made here; what a disk loses is not what these tests are about."""
    monkeypatch.setattr(chain_module, "_flush", lambda _: None)
    monkeypatch.setattr(os, "fsync", lambda _: None)


def head_path(path: Path) -> Path:
    return path.with_name(path.name + ".head")


def made(path: Path, lines: int) -> tuple[bytes, bytes]:
    """A chain of a first line and `lines` more: its bytes, and those of its head."""
    with Chain(path, FIRST) as chain:
        for number in range(lines):
            chain.append({"kind": "charge", "number": number})
    return path.read_bytes(), head_path(path).read_bytes()


def put(path: Path, data: bytes, head: bytes | None) -> None:
    path.write_bytes(data)
    head_path(path).unlink(missing_ok=True)
    if head is not None:
        head_path(path).write_bytes(head)


def numbers(path: Path) -> list[int]:
    return [entry.body["number"] for entry in read_chain(path).entries[1:]]


@pytest.fixture(scope="module")
def histories(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[bytes, bytes]]:
    """(file, head) after the opening and after each of five appends, of one and the same chain."""
    path = tmp_path_factory.mktemp("history") / "ledger.jsonl"
    states = [made(path, 0)]
    for number in range(5):
        with Chain(path) as chain:
            chain.append({"kind": "charge", "number": number})
        states.append((path.read_bytes(), head_path(path).read_bytes()))
    return states


def test_lines_are_read_back_in_order(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    made(path, 5)
    contents = read_chain(path)
    assert [entry.seq for entry in contents.entries] == list(range(6))
    assert contents.entries[0].body == FIRST
    assert numbers(path) == list(range(5))
    assert all(a.hash == b.previous for a, b in zip(contents.entries, contents.entries[1:], strict=False))
    assert contents.torn == 0


@pytest.mark.parametrize("before", [0, 1, 4])
def test_kill_at_every_byte_of_an_append(
    tmp_path: Path, histories: list[tuple[bytes, bytes]], before: int
) -> None:
    """Step 1, the line, cut at each byte; step 2, the head's slot, overwritten up to each byte."""
    path = tmp_path / "a.jsonl"
    (data, head), (data_after, head_after) = histories[before], histories[before + 1]
    crashes = [(data_after[:cut], head, before) for cut in range(len(data), len(data_after))]
    for cut in range(max(len(head), len(head_after)) + 1):
        crashes.append((data_after, head_after[:cut] + head[cut:], before + 1))
    for file, slots, lines in crashes:
        put(path, file, slots)
        assert len(numbers(path)) == lines
        assert path.read_bytes() == file
        with Chain(path) as chain:
            chain.append({"kind": "charge", "number": 99})
        assert numbers(path) == [*range(lines), 99]
        assert read_chain(path).torn == 0


def test_kill_at_every_byte_of_the_opening(tmp_path: Path, histories: list[tuple[bytes, bytes]]) -> None:
    path = tmp_path / "a.jsonl"
    data, head = histories[0]
    for cut in range(len(data) + 1):
        unfinished = path.with_name(path.name + ".new")
        path.unlink(missing_ok=True)
        head_path(path).write_bytes(b"")
        unfinished.write_bytes(data[:cut])
        made(path, 0)
        assert len(read_chain(path).entries) == 1
    for cut in range(len(head) + 1):
        put(path, data, head[:cut])
        made(path, 2)
        assert numbers(path) == [0, 1]


def test_every_shorter_file_is_refused(tmp_path: Path, histories: list[tuple[bytes, bytes]]) -> None:
    path = tmp_path / "a.jsonl"
    data, head = histories[-1]
    for cut in range(0, len(data), 3):
        put(path, data[:cut], head)
        with pytest.raises(LedgerError):
            read_chain(path)
        with pytest.raises(LedgerError):
            Chain(path, FIRST)
        assert path.read_bytes() == data[:cut]


@settings(deadline=None)
@given(st.data())
def test_every_edited_byte_is_refused(
    tmp_path_factory: pytest.TempPathFactory, histories: list[tuple[bytes, bytes]], draw: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("edit") / "a.jsonl"
    data, head = histories[-1]
    place = draw.draw(st.integers(0, len(data) - 1))
    value = draw.draw(st.integers(0, 255).filter(lambda byte: byte != data[place]))
    put(path, data[:place] + bytes([value]) + data[place + 1 :], head)
    with pytest.raises(LedgerError):
        read_chain(path)
    with pytest.raises(LedgerError):
        Chain(path)


def test_lines_removed_swapped_or_repeated_are_refused(
    tmp_path: Path, histories: list[tuple[bytes, bytes]]
) -> None:
    path = tmp_path / "a.jsonl"
    data, head = histories[-1]
    lines = data.splitlines(keepends=True)
    for edited in (
        lines[:2] + lines[3:],
        lines[1:],
        [lines[0], lines[2], lines[1], *lines[3:]],
        [*lines[:3], lines[2], *lines[3:]],
        [],
    ):
        put(path, b"".join(edited), head)
        with pytest.raises(LedgerError):
            Chain(path)


def test_older_copies_of_the_file_are_refused_and_a_newer_file_is_not(
    tmp_path: Path, histories: list[tuple[bytes, bytes]]
) -> None:
    path = tmp_path / "a.jsonl"
    for of_file, (data, _) in enumerate(histories):
        for of_head, (_, head) in enumerate(histories):
            put(path, data, head)
            if of_file < of_head:
                with pytest.raises(LedgerError, match="rolled back"):
                    read_chain(path)
            else:
                assert len(numbers(path)) == of_file


def test_another_chain_under_this_head_is_refused(
    tmp_path: Path, histories: list[tuple[bytes, bytes]]
) -> None:
    """Every line of it is in order; only the head tells that it is not the one that was written here."""
    with Chain(tmp_path / "b.jsonl", {"kind": "budget", "text": "another"}) as chain:
        for number in range(7):
            chain.append({"kind": "charge", "number": number})
    assert numbers(tmp_path / "b.jsonl") == list(range(7))
    path = tmp_path / "a.jsonl"
    put(path, (tmp_path / "b.jsonl").read_bytes(), histories[-1][1])
    with pytest.raises(LedgerError, match="rolled back to an older copy"):
        read_chain(path)
    with pytest.raises(LedgerError, match="rolled back to an older copy"):
        Chain(path)


def test_a_lost_head_is_refused_until_a_receipt_restores_it(
    tmp_path: Path, histories: list[tuple[bytes, bytes]]
) -> None:
    path = tmp_path / "a.jsonl"
    data, _ = histories[-1]
    for head in (None, b"", b"garbage\xff" * 40):
        put(path, data, head)
        with pytest.raises(LedgerError, match="missing or damaged"):
            read_chain(path)
        with pytest.raises(LedgerError, match="missing or damaged"):
            Chain(path)
        receipt = Head(3, chain_hash(data, 3))
        with pytest.raises(LedgerError, match="a receipt names it"):
            restore_head(path, Head(9, receipt.hash))
        with pytest.raises(LedgerError, match="a receipt names it"):
            restore_head(path, Head(-1, chain_hash(data, 5)))
        restore_head(path, receipt)
        assert numbers(path) == list(range(5))


def chain_hash(data: bytes, seq: int) -> str:
    return data.splitlines()[seq][-66:-2].decode()


def test_a_lost_file_is_refused_where_its_head_remains(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    made(path, 1)
    path.unlink()
    with pytest.raises(LedgerError, match="does not exist"):
        Chain(path, FIRST)
    head_path(path).write_bytes(b"torn")
    with pytest.raises(LedgerError, match="does not exist"):
        Chain(path, FIRST)
    with pytest.raises(LedgerError):
        read_chain(path)


@pytest.mark.parametrize("content", [b"", b"\n", b"path,label\nx.png,1\n", b"\x00" * 300])
def test_files_that_are_no_ledger_are_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "study.toml"
    path.write_bytes(content)
    with pytest.raises(LedgerError, match="it is not a ledger"):
        Chain(path, FIRST)
    assert path.read_bytes() == content


def test_without_a_first_line_nothing_is_made(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="does not exist"):
        Chain(tmp_path / "a.jsonl")
    assert not list(tmp_path.iterdir())
    with pytest.raises(LedgerError, match="could not be opened"):
        Chain(tmp_path / "no" / "a.jsonl", FIRST)


def test_only_one_writer_at_a_time_and_readers_any_time(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with Chain(path, FIRST) as chain:
        with pytest.raises(LedgerError, match="held by another"):
            Chain(path)
        chain.append({"kind": "charge", "number": 0})
        assert numbers(path) == [0]
    with Chain(path) as chain:
        assert chain.head == read_chain(path).head
    with pytest.raises(LedgerError, match="not open"):
        chain.append({"kind": "charge", "number": 1})


def test_a_change_behind_the_writers_back_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with Chain(path, FIRST) as chain:
        with path.open("ab") as file:
            file.write(b"x")
        with pytest.raises(LedgerError, match="changed or replaced"):
            chain.append({"kind": "charge"})
    with Chain(path) as chain:
        path.rename(tmp_path / "moved.jsonl")
        with pytest.raises(LedgerError, match="changed or replaced"):
            chain.append({"kind": "charge"})


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    body = {"kind": "charge", "number": 3, "text": "x" * 200}
    made(path, 3)
    data = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Chain(path) as chain:
        for room in range(0, 400, 23):
            try:
                resource.setrlimit(resource.RLIMIT_FSIZE, (len(data) + room, hard))
                with pytest.raises(LedgerError, match=r"could not be written \(File too large\)"):
                    chain.append(body)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            assert path.read_bytes() == data
        chain.append(body)
    assert numbers(path) == [0, 1, 2, 3]


def test_a_disk_too_full_to_begin_leaves_no_ledger(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50, hard))
        with pytest.raises(LedgerError, match="could not be opened"):
            Chain(path, FIRST)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not path.exists()
    made(path, 1)
    assert numbers(path) == [0]


def test_a_failing_disk_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jsonl"
    made(path, 2)
    data = path.read_bytes()

    def fails(_: int) -> None:
        raise OSError(5, "Input/output error")

    with Chain(path) as chain:
        with monkeypatch.context() as patched:
            patched.setattr(chain_module, "_flush", fails)
            with pytest.raises(LedgerError, match="Input/output error"):
                chain.append({"kind": "charge", "number": 2})
        assert path.read_bytes() == data
        chain.append({"kind": "charge", "number": 2})
    assert numbers(path) == [0, 1, 2]


def test_an_interrupt_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jsonl"
    made(path, 1)

    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    with Chain(path) as chain:
        with monkeypatch.context() as patched:
            patched.setattr(chain_module, "_flush", interrupted)
            with pytest.raises(KeyboardInterrupt):
                chain.append({"kind": "charge", "number": 1})
        chain.append({"kind": "charge", "number": 1})
    assert numbers(path) == [0, 1]


def test_a_line_that_lies_whole_but_wrong_at_the_end_is_dropped_unless_the_head_knows_it(
    tmp_path: Path, histories: list[tuple[bytes, bytes]]
) -> None:
    """A power cut may leave blocks of zeros before the end of a line that was never acknowledged."""
    path = tmp_path / "a.jsonl"
    (data, head), (data_after, head_after) = histories[2], histories[3]
    lost = data + bytes(60) + data_after[len(data) + 60 :]
    put(path, lost, head)
    assert read_chain(path).torn == len(data_after) - len(data)
    with Chain(path):
        assert path.read_bytes() == data
    put(path, lost, head_after)
    with pytest.raises(LedgerError, match="rolled back"):
        Chain(path)


@pytest.mark.parametrize("link", ["symbolic", "hard"])
def test_two_names_of_one_file_have_one_lock(tmp_path: Path, link: str) -> None:
    path, other = tmp_path / "ledger.jsonl", tmp_path / "elsewhere" / "other.jsonl"
    made(path, 1)
    other.parent.mkdir()
    if link == "symbolic":
        other.symlink_to(path)
    else:
        os.link(path, other)
        head_path(other).write_bytes(head_path(path).read_bytes())
    with Chain(path), pytest.raises(LedgerError, match="held by another process"):
        Chain(other)
    with Chain(other) as chain:
        with pytest.raises(LedgerError, match="held by another process"):
            Chain(path)
        chain.append({"kind": "charge", "number": 1})
    assert numbers(path) == numbers(other) == [0, 1]


def test_a_link_to_a_ledger_knows_the_ledgers_head(tmp_path: Path) -> None:
    """Lines that are cut from the file are missed under its other name too."""
    path, other = tmp_path / "ledger.jsonl", tmp_path / "other.jsonl"
    made(path, 3)
    other.symlink_to(path)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    with pytest.raises(LedgerError, match="rolled back"):
        read_chain(other)
