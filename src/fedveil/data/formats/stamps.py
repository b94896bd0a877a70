"""Remembers the content hashes of files, so that a run need not read all images again to find that none changed.

**The rule.** A remembered hash is used only if the file's device, inode, size, modification time and change time are
all the ones that were seen before its content was read, to the nanosecond. Size and modification time alone would not
do: a program may write other content of the same size and set the time back. It cannot set the change time
(``st_ctime``), which the operating system moves at every write and every change of times. As timestamps are coarse, a
hash is remembered only if the file had been at rest for `SETTLED` seconds before it was examined, and has the same
stamp after it was read: a change in the same tick of the clock cannot hide (git has the same rule for its index). Where
there is no change time (Windows), every file is read. What remains is whoever sets the machine's clock back, writes to
the disk below the file system, or writes through a shared memory map, which does not move the times at once.

On demand all files are read: with ``FEDVEIL_FULL_HASHES=1``, and in ``fedveil data check``.

One file per way of hashing, in the folder ``digests`` of the cache: a checksum, then a row of fixed size per image.
It is replaced as a whole, so that two processes, a full disk or a kill cost only time.
"""

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from hashlib import blake2b
from pathlib import Path
from stat import S_ISDIR
from typing import Any

import numpy as np
import numpy.typing as npt

from fedveil.data.cache import cache_folder
from fedveil.io import write_atomic
from fedveil.parallel import cores

__all__ = ["file_digests", "full_hashes"]

SETTLED = 2.0
"""Seconds; the coarsest timestamps of a file system in use (FAT)."""

_CHECKSUM = 16
_STAMP = ("device", "inode", "size", "modified", "changed")
_ROW = np.dtype([("path", "S16"), *((name, "<u8") for name in _STAMP), ("digest", "S16")])
_full: ContextVar[bool] = ContextVar("full hashes", default=False)
log = logging.getLogger(__name__)
Table = npt.NDArray[np.void]


@contextmanager
def full_hashes() -> Iterator[None]:
    """Read every file, and trust nothing that is remembered, while this context is open."""
    token = _full.set(True)
    try:
        yield
    finally:
        _full.reset(token)


def file_digests(key: str, paths: Sequence[Path], digest: Callable[[Path], bytes]) -> list[str]:
    """The hashes of files, hexadecimal, in their order; `digest` reads a file and hashes it to 16 bytes.

    `key` names the way of hashing. Raises what `digest` raises, for the first such file.
    """
    place = cache_folder() / "digests" / f"{blake2b(key.encode(), digest_size=16).hexdigest()}.table"
    found = np.zeros(len(paths), _ROW)
    started = time.time_ns()
    found["path"] = [blake2b(os.fsencode(path.absolute()), digest_size=16).digest() for path in paths]
    stamps = np.array([_stamp(path) for path in paths], np.uint64).reshape(-1, len(_STAMP))
    for name, column in zip(_STAMP, stamps.T, strict=True):
        found[name] = column
    full = _full.get() or os.environ.get("FEDVEIL_FULL_HASHES", "") not in ("", "0")
    known = _remembered(_read(place), found) if not full else np.zeros(len(found), np.bool_)
    unknown = np.flatnonzero(~known).tolist()
    if unknown:
        with ThreadPoolExecutor(cores()) as pool:
            found["digest"][unknown] = list(pool.map(digest, [paths[row] for row in unknown]))
        _store(place, found[[row for row in unknown if _settled(found[row], paths[row], started)]])
    raw = found["digest"].tobytes()
    return [raw[start : start + 16].hex() for start in range(0, len(raw), 16)]


def _stamp(path: Path) -> tuple[int, ...]:
    """What identifies a file's content without reading it; zeros if it cannot be examined, which reading will tell.

    A folder has none: its own times do not move when a file in it is written anew.
    """
    try:
        found = path.stat()
    except OSError:
        return (0,) * len(_STAMP)
    if S_ISDIR(found.st_mode):
        return (0,) * len(_STAMP)
    numbers = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    return tuple(number % 2**64 for number in numbers)


def _settled(row: Any, path: Path, started: int) -> bool:
    """Whether a file had been at rest for a while when it was examined, and has not changed while it was read."""
    if sys.platform == "win32" or not row["changed"]:
        return False
    latest = max(int(row["changed"]), int(row["modified"]))
    return started - latest > SETTLED * 1e9 and _stamp(path) == tuple(int(row[name]) for name in _STAMP)


def _remembered(table: Table, found: Table) -> npt.NDArray[np.bool_]:
    """Which files are in the table with their stamps; fills in their hashes."""
    if not len(table) or not len(found):
        return np.zeros(len(found), np.bool_)
    places = np.minimum(np.searchsorted(table["path"], found["path"]), len(table) - 1)
    same = table["path"][places] == found["path"]
    for name in _STAMP:
        same &= table[name][places] == found[name]
    same &= found["changed"] != 0
    found["digest"][same] = table["digest"][places[same]]
    return np.asarray(same, np.bool_)


def _read(place: Path) -> Table:
    """The table, sorted by path; empty if there is none, or it is damaged."""
    try:
        content = place.read_bytes()
    except OSError:
        return np.zeros(0, _ROW)
    body = content[_CHECKSUM:]
    if blake2b(body, digest_size=_CHECKSUM).digest() != content[:_CHECKSUM] or len(body) % _ROW.itemsize:
        log.warning("%s is damaged: the images are read again", place)
        return np.zeros(0, _ROW)
    return np.frombuffer(body, _ROW)


def _store(place: Path, rows: Table) -> None:
    """Add rows, which replace earlier ones of the same files."""
    if not len(rows):
        return
    merged = np.concatenate([rows, _read(place)])
    body = merged[np.unique(merged["path"], return_index=True)[1]].tobytes()
    try:
        place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomic(place, lambda file: file.write(blake2b(body, digest_size=_CHECKSUM).digest() + body))
    except OSError as error:
        log.warning("hashes of images are not remembered for the next run: %s", error)
