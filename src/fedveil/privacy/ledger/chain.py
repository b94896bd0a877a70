"""An append-only file of JSON lines, each bound to the previous one, that survives a kill at any byte.

A line is one JSON object that names its place (``seq``, from 0) and the hash of the line before
(``previous``), and ends with the SHA-256 of its own bytes up to there (``hash``). A second small file, ``.head``,
names the newest line; a writer holds a lock on it. An append consists of two steps:

1. write the line to the end of the file, and wait until the disk has it;
2. write its place and hash into one of the head's two slots, alternately.

A kill during 1 leaves an incomplete last line which the head does not name: its append never returned, and the next
writer drops it. A kill during 2 leaves one slot incomplete and the other intact, and a file ahead of its head, which
is valid. A file *behind* its head was truncated or replaced, one with a wrong hash was edited: both are refused.
Rewriting file and head together cannot be detected here; receipts that others store, `Head`, detect it.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple, Self

from fedveil.errors import LedgerError

__all__ = ["Chain", "Contents", "Entry", "Head", "check_receipt", "read_chain", "restore_head"]

_START = "0" * 64
_HASH_START, _HASH_END = b',"hash":"', b'"}'
_SLOT_BYTES = 16 + 1 + 64 + 1 + 16 + 1
_flush = getattr(os, "fdatasync", os.fsync)


class Head(NamedTuple):
    """The place and hash of a newest line: a receipt for it and for all lines before it."""

    seq: int
    hash: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One line."""

    seq: int
    body: Mapping[str, Any]
    previous: str
    hash: str


@dataclass(frozen=True, slots=True)
class Contents:
    """Complete lines, their `length` in bytes, and `torn` bytes of an unfinished append."""

    entries: tuple[Entry, ...]
    length: int
    torn: int

    @property
    def head(self) -> Head:
        """The newest line's place and hash."""
        return Head(self.entries[-1].seq, self.entries[-1].hash)


def read_chain(path: Path) -> Contents:
    """All lines of `path`, checked against each other and against the head; takes no lock.

    Raises LedgerError if the file is missing, damaged, edited, or behind its head.
    """
    path = _file_of(path)
    try:
        # The head first: a writer may append in between, and only a file behind its head is refused.
        slots = _head_path(path).read_bytes() if _head_path(path).exists() else b""
        data = path.read_bytes()
    except OSError as error:
        raise _system_error(path, "read", error) from error
    return _check_head(path, _parse(path, data), slots)


def check_receipt(path: Path, contents: Contents, receipt: Head) -> None:
    """Raise LedgerError unless the file holds the line that `receipt` names."""
    known = contents.entries[receipt.seq : receipt.seq + 1] if receipt.seq >= 0 else ()
    if [entry.hash for entry in known] != [receipt.hash]:
        raise LedgerError(
            f"{path} does not hold line {receipt.seq} with hash {receipt.hash[:12]}...",
            "a receipt names it, so the ledger was rolled back, replaced or rewritten since",
            "restore the ledger and its .head file from a backup that is newer than the receipt",
        )


def restore_head(path: Path, receipt: Head) -> None:
    """Restore a lost head for a file that holds the line which `receipt` names; else raise LedgerError."""
    path = _file_of(path)
    with _open_head(path) as slots:
        try:
            contents = _parse(path, path.read_bytes())
            check_receipt(path, contents, receipt)
            slots.truncate(0)
            _write_slot(slots, contents.head)
            os.fsync(slots.fileno())
        except OSError as error:
            raise _system_error(path, "restored", error) from error


class Chain:
    """The one writer of a file; holds its lock until closed.

    `first` is the content of line 0 if there is neither file nor head yet; with None they must exist. Raises
    LedgerError if another process holds the lock, or the file is not valid.
    """

    def __init__(self, path: Path, first: Mapping[str, Any] | None = None) -> None:
        path = _file_of(path)
        if first is None and not path.exists():
            raise _missing(path)
        self.path = path
        self._process = os.getpid()
        self._slots = _open_head(path)
        self._file: FileIO | None = None
        try:
            self._open(first)
        except OSError as error:
            self.close()
            raise _system_error(path, "opened", error) from error
        except BaseException:
            self.close()
            raise

    def _open(self, first: Mapping[str, Any] | None) -> None:
        slots = _head_path(self.path).read_bytes()
        if not self.path.exists():
            if first is None or slots:
                raise _missing(self.path)
            _create(self.path, first)
        self._file = FileIO(self.path, "r+b")
        _lock(self._file, self.path)  # a hard link is another name of the file, with a separate head
        contents = _check_head(self.path, _parse(self.path, self._file.readall() or b""), slots)
        if contents.torn:
            self._cut(contents.length)
        self.entries, self._length = list(contents.entries), contents.length
        if _newest(slots) != contents.head:
            _write_slot(self._slots, contents.head)
            os.fsync(self._slots.fileno())

    @property
    def head(self) -> Head:
        """The newest line's place and hash."""
        return Head(self.entries[-1].seq, self.entries[-1].hash)

    def append(self, body: Mapping[str, Any]) -> Entry:
        """Add a line; when this returns, it is on disk. On any error the file is unchanged.

        Raises LedgerError if the disk is full or fails, or if another program has changed the file.
        """
        file = self._own_file()
        entry, line = _line(body, self.head.seq + 1, self.head.hash)
        try:
            _write_all(file, line, self._length)
            _flush(file.fileno())
        except BaseException as error:
            with suppress(
                OSError
            ):  # what cannot be truncated now is an incomplete line for the next process that opens the file
                self._cut(self._length)
            if isinstance(error, OSError):
                raise _system_error(self.path, "written", error) from error
            raise
        self.entries.append(entry)
        self._length += len(line)
        try:
            _write_slot(self._slots, self.head)
        except OSError as error:
            raise _system_error(_head_path(self.path), "written", error) from error
        return entry

    def _own_file(self) -> FileIO:
        if self._file is None or self._process != os.getpid():
            raise LedgerError(
                f"{self.path} is not open in this process",
                "only one process may write a ledger",
                "open the ledger again",
            )
        ours = os.fstat(self._file.fileno())
        with suppress(FileNotFoundError):
            named = self.path.stat()
            if (named.st_dev, named.st_ino, named.st_size) == (ours.st_dev, ours.st_ino, self._length):
                return self._file
        raise LedgerError(
            f"{self.path} was changed or replaced while it was open",
            "only the process that holds its lock may write to it",
            "stop the other program, then open the ledger again, which checks it",
        )

    def _cut(self, length: int) -> None:
        if self._file is not None:
            self._file.truncate(length)
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Release the lock, after syncing the head."""
        if self._file is not None:
            with suppress(OSError):  # the file itself is on disk; a head may be behind
                _flush(self._slots.fileno())
            if self._process == os.getpid():
                fcntl.flock(self._file.fileno(), fcntl.LOCK_UN)
            self._file.close()
            self._file = None
        if not self._slots.closed and self._process == os.getpid():
            fcntl.flock(self._slots.fileno(), fcntl.LOCK_UN)  # also if a forked child holds a copy
        self._slots.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _line(body: Mapping[str, Any], seq: int, previous: str) -> tuple[Entry, bytes]:
    whole = {**body, "seq": seq, "previous": previous}
    text = json.dumps(whole, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")
    digest = hashlib.sha256(text).hexdigest()
    line = text[:-1] + _HASH_START + digest.encode("ascii") + _HASH_END + b"\n"
    return Entry(seq, dict(body), previous, digest), line


def _parse(path: Path, data: bytes) -> Contents:
    entries: list[Entry] = []
    start, previous = 0, _START
    while (end := data.find(b"\n", start)) >= 0:
        entry = _parse_line(data[start:end], len(entries), previous)
        if entry is None:
            if not entries or end + 1 == len(data):
                break  # not a ledger; or an incomplete last line that was never acknowledged, else the head names it
            raise LedgerError(
                f"line {len(entries) + 1} of {path} does not match its hash or its place",
                "a ledger may only be appended to, so this one was edited or damaged",
                "restore the ledger and its .head file from a backup",
            )
        entries.append(entry)
        start, previous = end + 1, entry.hash
    if not entries:
        raise LedgerError(
            f"{path} does not begin with a ledger's first line",
            "it is not a ledger, or it is damaged",
            "check the path",
        )
    return Contents(tuple(entries), start, len(data) - start)


def _parse_line(line: bytes, seq: int, previous: str) -> Entry | None:
    hash_at = len(line) - len(_HASH_START) - 64 - len(_HASH_END)
    text = line[: max(hash_at, 0)] + b"}"
    digest = hashlib.sha256(text).hexdigest()
    if line != text[:-1] + _HASH_START + digest.encode("ascii") + _HASH_END:
        return None
    try:
        body = json.loads(text)
    except ValueError:
        return None
    if not isinstance(body, dict) or body.pop("seq", None) != seq or body.pop("previous", None) != previous:
        return None
    return Entry(seq, body, previous, digest)


def _check_head(path: Path, contents: Contents, slots: bytes) -> Contents:
    head = _newest(slots)
    if head is None and len(contents.entries) > 1:
        raise LedgerError(
            f"{_head_path(path)} is missing or damaged",
            "without it, missing lines of the ledger cannot be detected",
            "restore it from a backup together with the ledger, or from a receipt",
        )
    if head is not None and (
        head.seq >= len(contents.entries) or contents.entries[head.seq].hash != head.hash
    ):
        raise LedgerError(
            f"{path} does not hold line {head.seq + 1} as its .head file names it",
            "it was edited, truncated, replaced or rolled back to an older copy",
            "restore the ledger and its .head file from a backup",
        )
    return contents


def _create(path: Path, first: Mapping[str, Any]) -> None:
    """Line 0 is created atomically, under its final name."""
    unfinished = path.with_name(path.name + ".new")
    with FileIO(unfinished, "w") as file:
        _write_all(file, _line(first, 0, _START)[1], 0)
        os.fsync(file.fileno())
    unfinished.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _write_all(file: FileIO, data: bytes, offset: int) -> None:
    while data:
        written = os.pwrite(file.fileno(), data, offset)
        data, offset = data[written:], offset + written


def _head_path(path: Path) -> Path:
    return path.with_name(path.name + ".head")


def _file_of(path: Path) -> Path:
    """The file itself, for any link to it: two names of one file must have the same lock and head."""
    try:
        return path.resolve()
    except (OSError, RuntimeError) as error:
        reason = error if isinstance(error, OSError) else OSError(str(error))
        raise _system_error(path, "found", reason) from error


def _open_head(path: Path) -> FileIO:
    """The head's file, created if necessary, locked until closed."""
    try:
        slots = FileIO(os.open(_head_path(path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644), "r+b")
    except OSError as error:
        raise _system_error(path, "opened", error) from error
    try:
        _lock(slots, path)
    except BaseException:
        slots.close()
        raise
    return slots


def _lock(file: FileIO, path: Path) -> None:
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise LedgerError(
            f"{path} is held by another process or another open ledger",
            "only one at a time may charge it",
            "wait until the other study has ended, or stop it",
        ) from error
    except OSError as error:
        raise _system_error(path, "locked", error) from error


def _slot(head: Head) -> bytes:
    text = f"{head.seq:016d} {head.hash}"
    return f"{text} {hashlib.sha256(text.encode()).hexdigest()[:16]}\n".encode()


def _write_slot(slots: FileIO, head: Head) -> None:
    _write_all(slots, _slot(head), head.seq % 2 * _SLOT_BYTES)


def _newest(slots: bytes) -> Head | None:
    """The newest of the intact slots."""
    heads = []
    for start in (0, _SLOT_BYTES):
        seq, _, rest = slots[start : start + _SLOT_BYTES].decode("ascii", "replace").partition(" ")
        if seq.isdecimal() and _slot(head := Head(int(seq), rest[:64])) == slots[start : start + _SLOT_BYTES]:
            heads.append(head)
    return max(heads, default=None)


def _missing(path: Path) -> LedgerError:
    return LedgerError(
        f"{path} does not exist",
        "an existing ledger must be present, or its charges would be lost",
        "check the path, or restore the ledger from a backup",
    )


def _system_error(path: Path, verb: str, error: OSError) -> LedgerError:
    return LedgerError(
        f"{path} could not be {verb} ({error.strerror or error})",
        "a ledger must be on a disk that this process can write to, and nothing is released before the charge is there",
        "check that the folder exists, its permissions, and the free space",
    )
