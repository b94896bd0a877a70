"""Stores what was computed from an image, by the content of the image, so that it is computed once.

One folder per computation, named by a hash of its key; in it any number of files, each written atomically and never
changed: a checksum, then the digests of some images and a row of float32 for each. A file that fails its checksum is
deleted and its rows are computed again. Deleting any of it only costs time.
"""

import logging
import os
import tempfile
from collections.abc import Callable, Sequence
from hashlib import blake2b
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedveil.errors import InvalidValue

__all__ = ["FeatureCache", "cache_folder"]

DIGEST_SIZE = 16
HEADER = 16
"""Bytes of two numbers: of images in a file, and of features per image."""

ROWS_PER_FILE = 2048

Features = npt.NDArray[np.float32]
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


class FeatureCache:
    """Features on disk under ``folder`` (by default in :func:`cache_folder`), readable by this user only.

    Features of real images are as confidential as the images: the folder must be where images may be stored.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = cache_folder() / "features" if folder is None else folder

    def get_or_compute(
        self, key: str, digests: Sequence[str], compute: Callable[[npt.NDArray[np.int64]], Features]
    ) -> Features:
        """One row per image, in the order of ``digests``.

        ``key`` names the computation with its version. ``compute(indices)`` is called for unknown images, in batches
        that are stored immediately, so that an interrupted run loses at most one. If nothing can be stored (full
        disk, no permission) a warning is logged and the work continues.
        """
        folder = self._folder / blake2b(key.encode(), digest_size=DIGEST_SIZE).hexdigest()
        wanted = [bytes.fromhex(digest) for digest in digests]
        known = _read_all(folder, set(wanted))
        # Equal images are computed once.
        first = {digest: index for index, digest in reversed(list(enumerate(wanted))) if digest not in known}
        missing = np.array(sorted(first.values()), np.int64)
        for start in range(0, len(missing), ROWS_PER_FILE):
            batch = missing[start : start + ROWS_PER_FILE]
            rows = np.ascontiguousarray(compute(batch), dtype=np.float32)
            names = [wanted[index] for index in batch]
            known.update(zip(names, rows, strict=True))
            _write(folder, names, rows)
        return np.stack([known[digest] for digest in wanted]) if wanted else np.zeros((0, 0), np.float32)


def _read_all(folder: Path, wanted: set[bytes]) -> dict[bytes, Features]:
    known: dict[bytes, Features] = {}
    try:
        files = sorted(folder.glob("*.features"))
    except OSError:
        return known
    for file in files:
        if len(known) == len(wanted):
            break
        try:
            names, rows = _decode(file.read_bytes())
        except (OSError, ValueError) as error:
            log.warning("recomputing the content of %s: %s", file, error)
            _discard(file)
            continue
        known.update((name, row) for name, row in zip(names, rows, strict=True) if name in wanted)
    return known


def _decode(content: bytes) -> tuple[list[bytes], Features]:
    checksum, body = content[:32], content[32:]
    if blake2b(body, digest_size=32).digest() != checksum:
        raise ValueError("its checksum is wrong")
    images, width = (int(number) for number in np.frombuffer(body, "<u8", 2))
    ends = HEADER, HEADER + DIGEST_SIZE * images
    names = [body[start : start + DIGEST_SIZE] for start in range(*ends, DIGEST_SIZE)]
    return names, np.frombuffer(body, "<f4", images * width, ends[1]).reshape(images, width)


def _write(folder: Path, names: list[bytes], rows: Features) -> None:
    body = np.array(rows.shape, "<u8").tobytes() + b"".join(names) + rows.astype("<f4").tobytes()
    content = blake2b(body, digest_size=32).digest() + body
    temporary: Path | None = None
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle, name = tempfile.mkstemp(suffix=".tmp", dir=folder)
        temporary = Path(name)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        temporary.replace(folder / f"{content[:16].hex()}.features")
    except OSError as error:
        log.warning("features are not stored for the next run: %s", error)
        if temporary is not None:
            _discard(temporary)


def _discard(file: Path) -> None:
    try:
        file.unlink()
    except OSError as error:
        log.warning("%s cannot be deleted: %s", file, error)
