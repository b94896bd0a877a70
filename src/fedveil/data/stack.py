"""Images as the learner sees them: float32 in [0, 1], square, grey or RGB, read when they are asked for.

Every constant here is public: pixels are divided by what their bit depth can hold, never by a maximum, mean
or standard deviation of anybody's images, so preprocessing one image depends on that image alone.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, final

import numpy as np
import numpy.typing as npt
from PIL import Image

from fedveil.errors import DataError, InvalidValue

__all__ = ["ArrayImages", "ImageStack", "Indices", "full_scale", "in_memory", "resize"]

Indices = Sequence[int] | npt.NDArray[np.integer[Any]]
Pixels = npt.NDArray[np.float32]

PREPROCESSING = "fedveil-images-1"
"""Names the arithmetic from stored values to pixels; a change of it must not find features cached before."""

DIGEST_BYTES = 16


class ImageStack(ABC):
    """A sequence of images of one shape, ``channels`` x ``size`` x ``size``, that need not be in memory."""

    @abstractmethod
    def __len__(self) -> int: ...

    @property
    @abstractmethod
    def channels(self) -> int:
        """1 where every image is grey, otherwise 3."""

    @property
    @abstractmethod
    def size(self) -> int:
        """Height and width in pixels."""

    @abstractmethod
    def read(self, indices: Indices) -> Pixels:
        """The images asked for, in that order: float32 ``(k, channels, size, size)`` in [0, 1]."""

    @abstractmethod
    def digest(self, indices: Indices) -> list[str]:
        """One hexadecimal content hash an image, over all that :meth:`read` depends on."""

    def subset(self, indices: Indices) -> "ImageStack":
        """These images only, in that order, without copying a pixel."""
        return _Selection(self, np.asarray(indices, dtype=np.int64))


@final
class _Selection(ImageStack):
    def __init__(self, base: ImageStack, rows: npt.NDArray[np.int64]) -> None:
        self._base, self._rows = base, rows

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def channels(self) -> int:
        return self._base.channels

    @property
    def size(self) -> int:
        return self._base.size

    def read(self, indices: Indices) -> Pixels:
        return self._base.read(self._rows[np.asarray(indices, dtype=np.int64)])

    def digest(self, indices: Indices) -> list[str]:
        return self._base.digest(self._rows[np.asarray(indices, dtype=np.int64)])

    def subset(self, indices: Indices) -> ImageStack:
        return _Selection(self._base, self._rows[np.asarray(indices, dtype=np.int64)])


@final
class ArrayImages(ImageStack):
    """Images held in one array, ``(n, height, width)`` or ``(n, height, width, 1 or 3)``.

    Stored as they came (uint8, uint16 or float in [0, 1]); scaled and resized when read.
    """

    def __init__(self, pixels: npt.NDArray[Any], size: int) -> None:
        if pixels.ndim == 4 and pixels.shape[3] == 1:
            pixels = pixels[..., 0]
        if pixels.ndim not in (3, 4) or (pixels.ndim == 4 and pixels.shape[3] != 3) or 0 in pixels.shape[1:]:
            raise DataError(
                f"images have the shape {pixels.shape}",
                "it must be (n, height, width) for grey or (n, height, width, 3) for colour, no side zero",
                "store one two-dimensional image a row",
            )
        self._scale = full_scale(pixels)
        self._pixels, self._size = pixels, check_size(size)

    def __len__(self) -> int:
        return len(self._pixels)

    @property
    def channels(self) -> int:
        """1 or 3, by the shape of the array."""
        return 1 if self._pixels.ndim == 3 else 3

    @property
    def size(self) -> int:
        """Height and width after resizing."""
        return self._size

    @property
    def stored_shape(self) -> tuple[int, int]:
        """Height and width before resizing."""
        return self._pixels.shape[1], self._pixels.shape[2]

    def stored(self, indices: Indices) -> npt.NDArray[Any]:
        """The images as they came, neither scaled nor resized."""
        return self._pixels[np.asarray(indices, dtype=np.int64)]

    def read(self, indices: Indices) -> Pixels:
        """Scaled by the type's full scale, then resized."""
        chosen = self.stored(indices).astype(np.float32)
        chosen /= np.float32(self._scale)
        planes = chosen[:, None] if chosen.ndim == 3 else chosen.transpose(0, 3, 1, 2)
        return resize(planes, self._size)

    def digest(self, indices: Indices) -> list[str]:
        """Hashes of the stored values, their type and shape, and the size to read them at."""
        shape = f"{self._pixels.dtype.str} {self._pixels.shape[1:]} {self._size}"
        start = blake2b(f"{PREPROCESSING} {shape} ".encode(), digest_size=DIGEST_BYTES)
        digests = []
        for index in np.asarray(indices, dtype=np.int64):
            image = start.copy()
            image.update(np.ascontiguousarray(self._pixels[index]).data)
            digests.append(image.hexdigest())
        return digests


def in_memory(images: ImageStack, batch: int = 256) -> ArrayImages:
    """All images, decoded once, for a learner that reads them many times (4 bytes a pixel and channel)."""
    pixels = np.empty((len(images), images.size, images.size, images.channels), np.float32)
    for start in range(0, len(images), batch):
        rows = np.arange(start, min(start + batch, len(images)))
        pixels[rows] = images.read(rows).transpose(0, 2, 3, 1)
    return ArrayImages(pixels, images.size)


def full_scale(pixels: npt.NDArray[Any]) -> float:
    """The value that means white, by the type alone: 255, 65535, or 1 for floats (which must lie in [0, 1]).

    >>> full_scale(np.zeros((1, 2, 2), np.uint16))
    65535.0
    """
    if pixels.dtype in (np.uint8, np.uint16):
        return float(np.iinfo(pixels.dtype).max)
    if pixels.dtype == np.bool_:
        return 1.0
    if not np.issubdtype(pixels.dtype, np.floating):
        raise DataError(
            f"pixels are of the type {pixels.dtype}",
            "what means white must be known without looking at the images",
            "store uint8, uint16, or floats in [0, 1]",
        )
    if not np.isfinite(pixels).all():
        raise DataError(
            "pixels hold NaN or infinity", "every pixel must be a number", "remove or repair those images"
        )
    if pixels.size and (pixels.min() < 0 or pixels.max() > 1):
        raise DataError(
            f"floating point pixels reach from {pixels.min():g} to {pixels.max():g}",
            "they must lie in [0, 1], since scaling by what the images hold would leak it",
            "divide them by a constant that you know beforehand, or store uint8 or uint16",
        )
    return 1.0


def resize(planes: Pixels, size: int) -> Pixels:
    """Squash ``(k, channels, height, width)`` to a square: Lanczos-3, antialiased, cut to [0, 1]."""
    count, channels, height, width = planes.shape
    if (height, width) == (size, size):
        return np.ascontiguousarray(planes)
    out = np.empty((count, channels, size, size), np.float32)
    for image, target in zip(planes.reshape(-1, height, width), out.reshape(-1, size, size), strict=True):
        squashed = Image.fromarray(np.ascontiguousarray(image)).resize((size, size), Image.Resampling.LANCZOS)
        target[...] = np.asarray(squashed)
    return np.clip(out, 0.0, 1.0, out=out)


def check_size(size: int) -> int:
    """The image size, if it is one that can be used."""
    if not 8 <= size <= 1024:
        raise InvalidValue(
            f"image_size is {size}", "it must lie between 8 and 1024 pixels", "64 suits most studies"
        )
    return size
