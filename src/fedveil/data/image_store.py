"""Images as the learner's input: float32 in [0, 1], square, grey or RGB, read when requested, each by itself.

Every constant here is public: pixels are divided by the maximum of their bit depth, never by a maximum, mean or
standard deviation of images, and size, channels and window are settings.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, final

import numpy as np
import numpy.typing as npt
from PIL import Image

from fedveil.data.formats.volumes.resampling import check_array, oriented, resampled
from fedveil.data.options import Reading
from fedveil.data.windows import FILE, FULL, apply_window, full_scale, is_hounsfield, limits, type_scale
from fedveil.errors import DataError, InvalidValue

__all__ = [
    "OUTSIDE",
    "ArrayImages",
    "ImageStack",
    "Indices",
    "OddImages",
    "brought_to",
    "full_scale",
    "resize",
    "resized",
    "type_scale",
]

log = logging.getLogger("fedveil.site")

Indices = Sequence[int] | npt.NDArray[np.integer[Any]]
Pixels = npt.NDArray[np.float32]

LUMINANCE = np.array([0.299, 0.587, 0.114], dtype=np.float32)
"""Rec. 601 weights, a public constant."""

PREPROCESSING = "fedveil-images-2"
"""Names the arithmetic from stored values to pixels; a change of it must not find features cached before."""

DIGEST_BYTES = 16

OUTSIDE = (
    "its pixels hold NaN, infinity or values outside of [0, 1]",
    "floating point pixels must lie in [0, 1], because scaling by the images' own range would leak it",
    "divide them by a constant chosen in advance, store uint8 or uint16, or give a window",
)
"""The error for an image that `ArrayImages.outside` names: found, rule, remedy."""


UNHASHED = ("its content could not be hashed", "an image must be readable", "see the message before this one")


class ImageStack(ABC):
    """A sequence of images of one shape, ``planes`` x ``size`` x ``size``, that need not be in memory.

    The planes of an image are its channels. With ``reading.slices`` an image is a volume, and they are its grey slices.
    """

    @abstractmethod
    def __len__(self) -> int: ...

    @property
    @abstractmethod
    def channels(self) -> int:
        """1 for grey or 3 for colour; every image is converted to it."""

    @property
    @abstractmethod
    def size(self) -> int:
        """Height and width in pixels."""

    @property
    @abstractmethod
    def reading(self) -> Reading:
        """How stored values map to shades, and the requested channels."""

    @property
    def planes(self) -> int:
        """Channels of an image, or slices of a volume."""
        return self.reading.slices or self.channels

    @abstractmethod
    def read(self, indices: Indices) -> Pixels:
        """The requested images, in that order: float32 ``(k, planes, size, size)`` in [0, 1]."""

    @abstractmethod
    def digest(self, indices: Indices) -> list[str]:
        """One hexadecimal content hash per image, over everything that :meth:`read` depends on."""

    def replaced(self, indices: Indices) -> npt.NDArray[np.bool_]:
        """For each of these images whether it was unreadable when last read, and a black one was given instead."""
        return np.zeros(len(indices), bool)

    def subset(self, indices: Indices) -> "ImageStack":
        """Only these images, in that order, without copying a pixel."""
        return _Selection(self, np.asarray(indices, dtype=np.int64))


class _Around(ImageStack):
    """Other images, of the same shape, read in the same way."""

    def __init__(self, base: ImageStack) -> None:
        self._base = base

    def __len__(self) -> int:
        return len(self._base)

    @property
    def channels(self) -> int:
        """Those of the other images."""
        return self._base.channels

    @property
    def size(self) -> int:
        """Height and width in pixels."""
        return self._base.size

    @property
    def reading(self) -> Reading:
        """That of the other images."""
        return self._base.reading


@final
class _Selection(_Around):
    def __init__(self, base: ImageStack, rows: npt.NDArray[np.int64]) -> None:
        super().__init__(base)
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, indices: Indices) -> Pixels:
        return self._base.read(self._rows[np.asarray(indices, dtype=np.int64)])

    def digest(self, indices: Indices) -> list[str]:
        return self._base.digest(self._rows[np.asarray(indices, dtype=np.int64)])

    def replaced(self, indices: Indices) -> npt.NDArray[np.bool_]:
        return self._base.replaced(self._rows[np.asarray(indices, dtype=np.int64)])

    def subset(self, indices: Indices) -> ImageStack:
        return _Selection(self._base, self._rows[np.asarray(indices, dtype=np.int64)])


@final
class OddImages(_Around):
    """Images in which an unreadable one is replaced by a black one.

    For a hospital that has approved a study: one damaged file must not decide whether the others are in its sums.
    What could not be hashed is black until it can be: nothing may be computed from pixels under another's hash.
    """

    def __init__(self, base: ImageStack) -> None:
        super().__init__(base)
        self._black: set[int] = set()
        self._unhashed: set[int] = set()

    def read(self, indices: Indices) -> Pixels:
        """The images, or black ones instead; never an error, and always finite."""
        rows = {int(index) for index in indices}
        try:
            if rows & self._unhashed:
                raise DataError(*UNHASHED)
            pixels = self._finite(indices)
            self._black -= rows
            return pixels
        except Exception:  # noqa: BLE001 - whatever is wrong with one image stays with that image
            none = np.empty((0, self.planes, self.size, self.size), np.float32)
            return np.concatenate([none, *(self._one(int(index)) for index in indices)])

    def digest(self, indices: Indices) -> list[str]:
        """Their content hashes, or one common hash for unreadable ones."""
        try:
            found = self._base.digest(indices)
            self._unhashed -= {int(index) for index in indices}
            return found
        except Exception:  # noqa: BLE001 - see `read`
            if len(indices) == 1:
                return [self._digest(int(indices[0]))]
            half = len(indices) // 2  # each half as a whole: few images are unreadable
            return [*self.digest(indices[:half]), *self.digest(indices[half:])]

    def _one(self, index: int) -> Pixels:
        try:
            if index in self._unhashed:
                raise DataError(*UNHASHED)
            pixels = self._finite([index])
            self._black.discard(index)
            return pixels
        except Exception as error:  # noqa: BLE001 - see above
            self._black.add(index)
            log.error("an image counts as black: %s", error)
            return np.zeros((1, self.planes, self.size, self.size), np.float32)

    def replaced(self, indices: Indices) -> npt.NDArray[np.bool_]:
        """For each whether it was given as black."""
        return np.array([int(index) in self._black for index in indices], bool)

    def _finite(self, indices: Indices) -> Pixels:
        pixels = self._base.read(indices)
        if not np.isfinite(pixels).all():
            raise DataError(*OUTSIDE)
        return pixels

    def _digest(self, index: int) -> str:
        try:
            found = self._base.digest([index])[0]
            self._unhashed.discard(index)
            return found
        except Exception as error:  # noqa: BLE001 - see above
            self._unhashed.add(index)
            log.error("an image counts as black: %s", error)
            black = f"{PREPROCESSING} black {self.planes} {self.size}".encode()
            return blake2b(black, digest_size=DIGEST_BYTES).hexdigest()


@final
class ArrayImages(ImageStack):
    """Images in one array, ``(n, height, width)`` or ``(n, height, width, 1 or 3)``.

    Volumes are ``(n, depth, height, width)``. Stored unchanged (uint8, uint16 or float in [0, 1]; any numbers with a
    window); scaled and resized when read. The array's type and shape are those of the whole set and public; so is its
    number of channels if ``reading`` names none.
    """

    def __init__(self, pixels: npt.NDArray[Any], size: int, reading: Reading | None = None) -> None:
        volumes = reading is not None and reading.slices is not None
        if pixels.ndim == 4 + volumes and pixels.shape[-1] == 1:
            pixels = pixels[..., 0]
        if volumes:
            check_array(pixels, reading)
        elif (
            pixels.ndim not in (3, 4) or (pixels.ndim == 4 and pixels.shape[3] != 3) or 0 in pixels.shape[1:]
        ):
            raise DataError(
                f"images have the shape {pixels.shape}",
                "it must be (n, height, width) for grey or (n, height, width, 3) for colour, no side zero",
                "store one two-dimensional image a row; for volumes set data.slices",
            )
        self._reading = reading or Reading()
        self._window = _array_window(pixels, self._reading)
        if not self._window:
            type_scale(pixels.dtype)
        self._pixels, self._size = pixels, check_size(size)

    def __len__(self) -> int:
        return len(self._pixels)

    @property
    def channels(self) -> int:
        """1 or 3, by the setting or else by the shape of the array."""
        return self.reading.channels or (1 if self._pixels.ndim == 3 or self.reading.slices else 3)

    @property
    def size(self) -> int:
        """Height and width after resizing."""
        return self._size

    @property
    def reading(self) -> Reading:
        """As given."""
        return self._reading

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Height, width and, in colour, 3 before resizing; of volumes depth, height, width."""
        return self._pixels.shape[1:]

    def stored(self, indices: Indices) -> npt.NDArray[Any]:
        """The stored images, neither scaled nor resized."""
        return self._pixels[np.asarray(indices, dtype=np.int64)]

    def outside(self) -> npt.NDArray[np.int64]:
        """Indices of unreadable images: floats outside of [0, 1] without a window, or NaN."""
        if not np.issubdtype(self._pixels.dtype, np.floating) or not self._pixels.size:
            return np.empty(0, np.int64)
        axes = tuple(range(1, self._pixels.ndim))
        low, high = self._pixels.min(axis=axes), self._pixels.max(axis=axes)
        fits = np.isfinite(low) & np.isfinite(high)
        if not self._window:
            fits &= (low >= 0) & (high <= 1)
        return np.flatnonzero(~fits)

    def read(self, indices: Indices) -> Pixels:
        """Scaled by the type's full scale or the window, converted to the requested channels, then resized."""
        chosen = self.stored(indices)
        if self._reading.slices:
            return self._slices(chosen)
        chosen = self._shades(chosen)
        planes = chosen[:, None] if chosen.ndim == 3 else chosen.transpose(0, 3, 1, 2)
        if planes.shape[1] == self.channels:
            return resize(planes, self._size)
        return np.stack([resized(plane, self.channels, self._size) for plane in planes])

    def _shades(self, stored: npt.NDArray[Any]) -> Pixels:
        if self._window:
            return apply_window(stored.astype(np.float32), *self._window)
        shades: Pixels = stored.astype(np.float32) / np.float32(full_scale(stored))
        return shades

    def _slices(self, volumes: npt.NDArray[Any]) -> Pixels:
        """Each volume by itself; arrays do not say how they lie."""
        out = np.empty((len(volumes), self.planes, self._size, self._size), np.float32)
        for target, volume in zip(out, volumes, strict=True):
            view, spacing = oriented(volume, None, self._reading.axis)
            target[...] = resampled(view, spacing, self._size, self._reading, self._shades)
        return out

    def digest(self, indices: Indices) -> list[str]:
        """Hashes of the stored values, their type and shape, and the size to read them at."""
        shape = f"{self._pixels.dtype.str} {self._pixels.shape[1:]} {self._size}"
        key = f"{PREPROCESSING} {shape} {self.channels} {self._window} {self._reading.volume_key}"
        start = blake2b(key.encode(), digest_size=DIGEST_BYTES)
        digests = []
        for index in np.asarray(indices, dtype=np.int64):
            image = start.copy()
            image.update(np.ascontiguousarray(self._pixels[index]).data)
            digests.append(image.hexdigest())
        return digests


def _array_window(pixels: npt.NDArray[Any], reading: Reading) -> tuple[float, float] | None:
    """The window that applies to stored values of this type; bytes and colour are already shades."""
    shades = pixels.dtype in (np.uint8, np.bool_) or (pixels.ndim == 4 and not reading.slices)
    if shades or reading.window in (FILE, FULL):
        return None
    if is_hounsfield(reading.window) and pixels.dtype == np.uint16:
        raise DataError(
            f"pixels are of the type uint16, and the window is {reading.window}",
            "that window is for Hounsfield units, which are negative too",
            "store int16 or floats in Hounsfield units, or give window = [centre, width] in stored values",
        )
    return limits(reading.window)


def brought_to(image: Pixels, channels: int) -> Pixels:
    """An image ``(1 or 3, height, width)`` converted to the requested number of channels, independently of others.

    Grey becomes three equal channels, colour its luminance; three equal channels become one of them, so that grey
    stored as colour gives the same result as grey.
    """
    if image.shape[0] == channels:
        return image
    if image.shape[0] == 1:
        return np.repeat(image, channels, axis=0)
    if all(np.array_equal(image[0], plane) for plane in image[1:]):
        return image[:1]
    grey: Pixels = LUMINANCE[0] * image[:1]
    for weight, plane in zip(LUMINANCE[1:], image[1:], strict=True):
        grey += weight * plane
    return np.clip(grey, 0, 1, out=grey)


def resized(image: Pixels, channels: int, size: int) -> Pixels:
    """`brought_to` and `resize` of one image ``(1 or 3, height, width)``; grey is resized once for all channels."""
    if image.shape[0] == 3 and all(np.array_equal(image[0], plane) for plane in image[1:]):
        image = image[:1]
    few = brought_to(image, 1) if channels == 1 else image
    return brought_to(resize(few[None], size)[0], channels)


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
    """The image size, if valid."""
    if not 8 <= size <= 1024:
        raise InvalidValue(
            f"image_size is {size}", "it must lie between 8 and 1024 pixels", "64 suits most studies"
        )
    return size
