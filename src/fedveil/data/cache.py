"""Stores what was computed from an image, by the content of the image, so that it is computed once.

One folder per computation, named by a hash of its key; in it any number of numpy files, each written atomically and
never changed: rows of an image's digest and its float32 features, named by a hash of the file's bytes. A file that
differs from its name is deleted and its rows are computed again. Deleting any of it only costs time.

Plain npy, because a store needs no more: rows are found by digest and read whole. Arrow and zarr would add a dependency
and a format with versions; neither offers what matters here, that two processes, a full disk or a kill at any moment
leave only whole files. Two processes that compute the same rows write the same file, or rows twice, which is harmless.
Files are memory-mapped, and pages are given back after each read: memory does not grow with the number of images.
"""

import hashlib
import io
import logging
import mmap
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, final

import numpy as np
import numpy.typing as npt

from fedveil.errors import InvalidValue

__all__ = ["FeatureCache", "StoredRows", "cache_folder"]

DIGEST_SIZE = 16
ROWS_PER_FILE, BYTES_PER_FILE = 2048, 1 << 26
ABANDONED = 86_400
"""Seconds after which an unfinished file belongs to no living process."""

Features = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]
log = logging.getLogger(__name__)


def cache_folder() -> Path:
    """``FEDVEIL_CACHE``, or ``fedveil`` in ``XDG_CACHE_HOME``, or ``~/.cache/fedveil``."""
    own, shared = os.environ.get("FEDVEIL_CACHE"), os.environ.get("XDG_CACHE_HOME")
    if own:
        return Path(own)
    if shared and Path(shared).is_absolute():
        return Path(shared) / "fedveil"
    try:
        return Path.home() / ".cache" / "fedveil"
    except RuntimeError:  # a container's user has no entry in the system's list of users
        raise InvalidValue(
            "this user has no home directory",
            "computed features are stored in one",
            "set FEDVEIL_CACHE to a folder",
        ) from None


@final
class StoredRows:
    """Features (n, d), float32, that stay in their files until they are asked for: ``rows[indices]`` copies some."""

    def __init__(self, digests: npt.NDArray[np.bytes_]) -> None:
        self._names, self._which = np.unique(digests, return_inverse=True)
        self._part = np.full(len(self._names), -1, np.int32)
        self._row = np.zeros(len(self._names), np.int32)
        self._parts: list[npt.NDArray[np.void]] = []

    def __len__(self) -> int:
        return len(self._which)

    @property
    def shape(self) -> tuple[int, int]:
        """n and d; d is 0 as long as there are no rows."""
        return len(self), self._parts[0]["features"].shape[1] if self._parts else 0

    def __getitem__(self, rows: Indices | slice) -> Features:
        """A copy of some rows, in the given order."""
        wanted = self._which[rows]
        found = np.empty((len(wanted), self.shape[1]), np.float32)
        owner = self._part[wanted]
        for number in np.unique(owner):
            mine, part = owner == number, self._parts[number]
            found[mine] = part["features"][self._row[wanted[mine]]]
            _give_back(part)
        return found

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        del copy
        return self[:].astype(np.float32 if dtype is None else dtype, copy=False)

    @property
    def missing(self) -> npt.NDArray[np.bool_]:
        """For each row whether it is not there yet."""
        return self._part[self._which] < 0

    def keep(self, images: Indices, rows: Features) -> None:
        """Take rows for these images alone: others with the same digest have their own."""
        if len(images):
            self._which[images] = len(self._part) + np.arange(len(images))
            self._part = np.append(self._part, np.full(len(images), len(self._parts), np.int32))
            self._row = np.append(self._row, np.arange(len(images), dtype=np.int32))
            self._parts.append(_part(np.zeros(len(images), f"S{DIGEST_SIZE}"), rows))

    def add(self, part: npt.NDArray[np.void]) -> None:
        """Take the rows of a file that are wanted and missing."""
        if not len(self._names):
            return
        places = np.minimum(np.searchsorted(self._names, part["digest"]), len(self._names) - 1)
        new = (self._names[places] == part["digest"]) & (self._part[places] < 0)
        if new.any():
            self._part[places[new]] = len(self._parts)
            self._row[places[new]] = np.flatnonzero(new)
            self._parts.append(part)


class FeatureCache:
    """Features on disk under ``folder`` (by default in :func:`cache_folder`), readable by this user only.

    Features of real images are as confidential as the images: the folder must be where images may be stored.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = cache_folder() / "features" if folder is None else folder

    def views(
        self,
        keys: Sequence[str],
        digests: Sequence[str],
        compute: Callable[[Indices, Sequence[int]], Sequence[Features]],
        row_bytes: int = 4096,
        failed: Callable[[Indices], npt.NDArray[np.bool_]] | None = None,
    ) -> list[StoredRows]:
        """For each of several computations on the same images one row per image, in the order of ``digests``.

        ``keys`` name the computations with their versions. ``compute(indices, which)`` is called for unknown images
        and returns an array for each of the computations in ``which``, so that an image is read once for all of them.
        It is called with batches, smaller if a row has more than about ``row_bytes``, that are stored immediately, so
        that an interrupted run loses at most one. If nothing can be stored (full disk, no permission) a warning is
        logged and the work continues.

        ``failed(indices)`` says after that for which images it failed. Their rows are not stored, since the next run
        may succeed, and are theirs alone: an equal image is computed by itself.
        """
        wanted = np.frombuffer(bytes.fromhex("".join(digests)), f"S{DIGEST_SIZE}")
        folders = [self._folder / blake2b(key.encode(), digest_size=DIGEST_SIZE).hexdigest() for key in keys]
        stores = [StoredRows(wanted) for _ in keys]
        for folder, store in zip(folders, stores, strict=True):
            _read_all(folder, store)
        count = max(1, min(ROWS_PER_FILE, BYTES_PER_FILE // row_bytes))
        while True:
            tasks = list(_lacking(wanted, stores, count))
            if not tasks:
                return stores
            for batch, which in tasks:
                found = compute(batch, which)
                sure = np.ones(len(batch), bool) if failed is None else ~failed(batch)
                for view, rows in zip(which, found, strict=True):
                    if sure.any():
                        stores[view].add(_write(folders[view], wanted[batch[sure]], rows[sure]))
                    stores[view].keep(batch[~sure], rows[~sure])


def _lacking(
    wanted: npt.NDArray[np.bytes_], stores: Sequence[StoredRows], count: int
) -> Iterator[tuple[Indices, list[int]]]:
    """Batches of images, with the computations that they lack; of equal images one at a time."""
    lacking = np.array([store.missing for store in stores]).reshape(len(stores), -1)
    left = np.flatnonzero(lacking.any(axis=0))
    first = left[np.sort(np.unique(wanted[left], return_index=True)[1])]
    patterns, group = np.unique(lacking[:, first], axis=1, return_inverse=True)
    for number, pattern in enumerate(patterns.T):
        images = first[group.reshape(-1) == number]
        for start in range(0, len(images), count):
            yield images[start : start + count], np.flatnonzero(pattern).tolist()


def _read_all(folder: Path, store: StoredRows) -> None:
    try:
        files = sorted(folder.glob("*.npy"))
        for unfinished in folder.glob("*.tmp"):
            if time.time() - unfinished.stat().st_mtime > ABANDONED:
                unfinished.unlink()
    except OSError:
        return
    for file in files:
        if not store.missing.any():
            break
        try:
            store.add(_mapped(file))
        except (OSError, ValueError) as error:
            log.warning("recomputing the content of %s: %s", file, error)
            _discard(file)


def _mapped(path: Path) -> npt.NDArray[np.void]:
    with path.open("rb") as file:
        if hashlib.file_digest(file, _hash).hexdigest() != path.stem:
            raise ValueError("its content is not what its name says")
    return np.load(path, mmap_mode="r", allow_pickle=False)  # type: ignore[no-any-return]


def _hash() -> "hashlib._Hash":
    return blake2b(digest_size=DIGEST_SIZE)  # type: ignore[return-value]


def _write(folder: Path, names: npt.NDArray[np.bytes_], rows: Features) -> npt.NDArray[np.void]:
    """Store rows; they are read from the file from then on, and from memory if there is none."""
    part = _part(names, rows)
    content = io.BytesIO()
    np.save(content, part, allow_pickle=False)
    path = folder / f"{blake2b(content.getbuffer(), digest_size=DIGEST_SIZE).hexdigest()}.npy"
    temporary: Path | None = None
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle, name = tempfile.mkstemp(suffix=".tmp", dir=folder)
        temporary = Path(name)
        with os.fdopen(handle, "wb") as file:
            file.write(content.getbuffer())
        temporary.replace(path)
        return np.load(path, mmap_mode="r", allow_pickle=False)  # type: ignore[no-any-return]
    except (OSError, ValueError) as error:
        log.warning("features are not stored for the next run: %s", error)
        if temporary is not None:
            _discard(temporary)
    return part


def _part(names: npt.NDArray[np.bytes_], rows: Features) -> npt.NDArray[np.void]:
    part = np.empty(len(rows), [("digest", names.dtype), ("features", "<f4", rows.shape[1:])])
    part["digest"], part["features"] = names, rows
    return part


def _give_back(part: npt.NDArray[np.void]) -> None:
    """Drop a mapped file's pages from this process; they stay in the system's cache while there is room."""
    mapped = getattr(part, "_mmap", None)
    if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)


def _discard(file: Path) -> None:
    try:
        file.unlink(missing_ok=True)
    except OSError as error:
        log.warning("%s cannot be deleted: %s", file, error)
