"""What is computed from images, each by itself: whatever is wrong with one of them stays with that one.

If the whole computation were abandoned, one patient's presence would decide whether all others are in a sum.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedveil.data import Dataset, FeatureCache
from fedveil.data.cache import StoredRows
from fedveil.data.image_store import OUTSIDE
from fedveil.errors import DataError
from fedveil.learning import ImageSource
from fedveil.learning.encoders import failures
from fedveil.parallel import ahead
from fedveil.study.progress import Progress

__all__ = ["Change", "Readable", "Rows", "Stored", "computed"]

BATCH, BATCH_BYTES = 256, 1 << 24
"""Images, and bytes of pixels, that are read and passed through an extractor at a time. Larger batches take memory, and
the time of the system that provides it."""
log = logging.getLogger("fedveil.site")
Indices = npt.NDArray[np.int64]
Pixels = npt.NDArray[np.float32]
Change = Callable[[Pixels], Pixels]
"""From images (k, channels, size, size) to rows (k, length), each from its image alone."""


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """A subset of the images of a source."""

    source: ImageSource
    rows: Indices

    def read(self, indices: Indices) -> Pixels:
        """The chosen ones among them."""
        return self.source.read(self.rows[indices])


@dataclass(frozen=True, slots=True, eq=False)
class Readable:
    """Images in which an unreadable one is replaced by a black one.

    A file may have a valid header and damaged content, or become damaged between two rounds. If the whole sum were
    abandoned, one patient's presence would decide whether all others are in it.
    """

    source: ImageSource
    shape: tuple[int, int, int]

    def read(self, indices: Indices) -> Pixels:
        """The images, or black ones instead."""
        try:
            return self._finite(indices)
        except Exception:  # noqa: BLE001 - whatever is wrong with one image stays with that image
            return np.concatenate([self._one(index) for index in indices])

    def _finite(self, indices: Indices) -> Pixels:
        pixels = self.source.read(indices)
        if not np.isfinite(pixels).all():
            raise DataError(*OUTSIDE)
        return pixels

    def _one(self, index: np.int64) -> Pixels:
        try:
            return self._finite(np.array([index]))
        except Exception as error:  # noqa: BLE001 - see above
            log.error("an image counts as black: %s", error)
            return np.zeros((1, *self.shape), np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class Stored:
    """The output of a network's frozen part for every image, of some shape."""

    values: StoredRows
    shape: tuple[int, ...]

    def read(self, indices: Indices) -> Pixels:
        """Some of them, in that shape."""
        return self.values[indices].reshape(len(indices), *self.shape)


def computed(
    views: Mapping[str, Change],
    dataset: Dataset,
    progress: Progress,
    row_bytes: int = 4096,
    lengths: Sequence[int] | None = None,
) -> list[StoredRows]:
    """For each view, by its key, one row per image, from the cache or from its pixels.

    An image is decoded once for all views, in a thread that is one batch ahead of the network. Decoding takes threads
    rather than processes: Pillow and numpy release the interpreter's lock, and no pixels are copied between processes.

    An image that a view fails on gets a row of zeros, which is not stored, nor are the rows of unreadable images.

    ``lengths`` of the rows are known where the views have just seen a black image without failing.

    Raises:
        FedveilError: a view fails on a black image too, or images that are not `OddImages` cannot be read.
    """
    images, changes = dataset.images, list(views.values())
    digests = images.digest(np.arange(len(dataset)))
    if not len(images):
        return FeatureCache().views(list(views), [], lambda *_: [])
    black = np.zeros((1, images.planes, images.size, images.size), np.float32)
    # What concerns no image, such as missing weights, raises here, however much is in the cache.
    known = [change(black).shape[1] for change in changes] if lengths is None else lengths
    count = max(8, min(BATCH, BATCH_BYTES // (4 * images.planes * images.size**2)))
    failed = np.zeros(len(images), bool)

    def rows_of(rows: Indices, which: Sequence[int]) -> list[Pixels]:
        batches = [rows[start : start + count] for start in range(0, len(rows), count)]
        parts: list[list[Pixels]] = [[] for _ in which]
        for batch, decoded in zip(batches, ahead(images.read, batches), strict=True):
            failed[batch] = images.replaced(batch)
            for part, view in zip(parts, which, strict=True):
                found, wrong = _each(changes[view], decoded, known[view])
                failed[batch] |= wrong
                part.append(found)
            progress.advance(len(batch))
        return [np.concatenate(part) for part in parts]

    return FeatureCache().views(list(views), digests, rows_of, row_bytes, lambda rows: failed[rows])


def _each(change: Change, images: Pixels, length: int) -> tuple[Pixels, npt.NDArray[np.bool_]]:
    """Rows (k, length) of these images, and for each whether it failed and is zeros."""
    try:
        return _whole(change, images, length)
    except Exception as error:  # noqa: BLE001 - whatever is wrong with one image stays with that image
        if len(images) == 1:
            log.error("an image has no features and counts as zeros: %s", error)
            return np.zeros((1, length), np.float32), np.ones(1, bool)
    found = [_each(change, image[None], length) for image in images]
    return np.concatenate([rows for rows, _ in found]), np.concatenate([wrong for _, wrong in found])


def _whole(change: Change, images: Pixels, length: int) -> tuple[Pixels, npt.NDArray[np.bool_]]:
    with failures() as noted:
        rows = change(images)
    if rows.shape != (len(images), length):
        raise ValueError(f"the rows have the shape {rows.shape} instead of {(len(images), length)}")
    return rows, np.isin(np.arange(len(images)), list(noted))
