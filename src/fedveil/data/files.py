"""Image files, decoded when they are asked for: PNG, JPEG, TIFF and DICOM; grey and colour; 8 and 16 bit."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from hashlib import blake2b
from io import BytesIO
from pathlib import Path
from typing import Any, final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from fedveil.data.dicom import is_dicom, probe_dicom, read_dicom
from fedveil.data.facts import ImageFacts, unusable
from fedveil.data.stack import (
    DIGEST_BYTES,
    PREPROCESSING,
    ImageStack,
    Indices,
    check_size,
    full_scale,
    resize,
)
from fedveil.errors import DataError

__all__ = ["FileImages", "probe", "read_image"]

FORMATS = ("PNG", "JPEG", "TIFF")
PHOTOMETRIC, BITS_PER_SAMPLE, WHITE_IS_ZERO = 262, 258, 0
Pixels = npt.NDArray[np.float32]
PillowImage = Image.Image


@final
class FileImages(ImageStack):
    """Images in files; each is decoded anew whenever it is read, by as many threads as there are cores."""

    def __init__(self, paths: Sequence[Path], facts: Sequence[ImageFacts], size: int) -> None:
        self.paths, self.facts = tuple(paths), tuple(facts)
        self._channels = max((fact.channels for fact in facts), default=1)
        self._size = check_size(size)

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def channels(self) -> int:
        """3 if any of the files is in colour; grey ones are then read as three equal channels."""
        return self._channels

    @property
    def size(self) -> int:
        """Height and width after resizing."""
        return self._size

    def read(self, indices: Indices) -> Pixels:
        """Decoded, scaled by the bit depth, resized; a DataError names the file that cannot be."""
        out = np.empty((len(indices), self._channels, self._size, self._size), np.float32)

        def decode(target: Pixels, path: Path) -> None:
            image = read_image(path)
            if (image == image[:1]).all():  # grey, though perhaps stored as colour: resize one plane for all
                image = image[:1]
            target[...] = resize(image[None], self._size)[0]

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for _ in pool.map(decode, out, (self.paths[index] for index in indices)):
                pass
        return out

    def digest(self, indices: Indices) -> list[str]:
        """Hashes of the files' bytes, and of the size and channels to read them at."""
        start = blake2b(
            f"{PREPROCESSING} file {self._channels} {self._size} ".encode(), digest_size=DIGEST_BYTES
        )
        digests = []
        for index in indices:
            file = start.copy()
            file.update(_content(self.paths[index]))
            digests.append(file.hexdigest())
        return digests


def probe(path: Path) -> ImageFacts:
    """What the file's header says; refuses what is no single image, without decoding the pixels."""
    with _opened(path) as file:
        start = file.read(132)
    if not start:
        raise unusable(
            path, "it is empty (0 bytes)", "an image must hold pixels", "copy it again, or leave it out"
        )
    if is_dicom(path, start):
        return probe_dicom(path)
    with _opened(path) as file, _damage_named(path), Image.open(file, formats=FORMATS) as image:
        _check_single(path, image)
        mode = f"{image.format} {image.mode}"
        return ImageFacts(width=image.width, height=image.height, channels=_channels(image), mode=mode)


def read_image(path: Path) -> Pixels:
    """The image at its stored size, upright, float32 ``(1 or 3, height, width)`` in [0, 1].

    Values are divided by what their bit depth can hold. Transparent pixels are black, palettes are colour.
    """
    content = _content(path)
    if not content:
        raise unusable(
            path, "it is empty (0 bytes)", "an image must hold pixels", "copy it again, or leave it out"
        )
    if is_dicom(path, content[:132]):
        return read_dicom(path, content)
    with _damage_named(path), Image.open(BytesIO(content), formats=FORMATS) as image:
        _check_single(path, image)
        negative = image.mode.startswith("I;16") and _tag(image, PHOTOMETRIC) == WHITE_IS_ZERO
        bits = _tag(image, BITS_PER_SAMPLE) or 16
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I;16"):
            grey = np.asarray(upright).astype(np.float32)[None] / np.float32(2**bits - 1)
            return np.float32(1) - grey if negative else grey
        return _planes(upright)


def _planes(image: PillowImage) -> Pixels:
    if image.mode == "F":
        full_scale(floats := np.asarray(image, np.float32))
        return floats[None]
    if image.mode == "I":
        raise DataError(
            "its pixels are 32 bit or signed integers",
            "what means white must be known without looking at the image",
            "store 8 or 16 bit, or floats in [0, 1]",
        )
    grey, alpha = _channels(image) == 1, image.has_transparency_data
    mode = ("L" if grey else "RGB") + ("A" if alpha else "")
    pixels = np.asarray(image.convert(mode), np.float32) / np.float32(255)
    planes: Pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return planes[:-1] * planes[-1:] if alpha else planes


def _channels(image: PillowImage) -> int:
    return 1 if image.mode in ("1", "L", "LA", "I", "F") or image.mode.startswith("I;16") else 3


def _tag(image: PillowImage, tag: int) -> int | None:
    """A TIFF tag's first value, or None for other formats."""
    value = getattr(image, "tag_v2", {}).get(tag)
    first = value[0] if isinstance(value, tuple) else value
    return None if first is None else int(first)


def _check_single(path: Path, image: PillowImage) -> None:
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        raise unusable(
            path,
            f"it is animated or holds several images ({frames} frames)",
            "an image must be single",
            "save the one that counts",
        )
    if 0 in image.size:
        raise unusable(
            path, f"it is {image.size[0]} x {image.size[1]} pixels", "no side may be zero", "leave it out"
        )


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """Turns whatever a damaged file makes Pillow raise into an error that names the file."""
    try:
        yield
    except DataError as error:
        if error.found.startswith(str(path)):
            raise
        raise unusable(path, error.found, error.rule, error.remedy) from None
    except UnidentifiedImageError:
        raise unusable(
            path,
            "it is not an image that can be read",
            "a file must be PNG, JPEG, TIFF or DICOM, with an intact header",
            "convert or repair it, or leave it out",
        ) from None
    except Image.DecompressionBombError:
        raise unusable(
            path, "it is larger than 179 megapixels", "it would not fit in memory", "save it smaller"
        ) from None
    except Exception as error:  # noqa: BLE001 - a damaged file makes Pillow raise nearly anything
        raise unusable(
            path, f"it is damaged ({error})", "an image must be whole", "copy it again, or leave it out"
        ) from None


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with path.open("rb") as file:
            yield file
    except FileNotFoundError:
        raise unusable(path, "there is no such file", "every image must exist", "correct the path") from None
    except (IsADirectoryError, PermissionError, OSError) as error:
        raise unusable(
            path,
            f"it cannot be opened ({error.strerror})",
            "every image must be a readable file",
            "correct it",
        ) from None


def _content(path: Path) -> bytes:
    with _opened(path) as file:
        content: bytes = file.read()
    return content
