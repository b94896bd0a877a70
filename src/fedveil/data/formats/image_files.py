"""Image files, decoded when requested: PNG, JPEG, TIFF, BMP, WebP and DICOM; grey and colour; 8 and 16 bit."""

import os
import threading
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from hashlib import blake2b
from io import BytesIO
from pathlib import Path
from typing import Any, final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from fedveil.data.annotations.columns import Names
from fedveil.data.formats.dicom import is_dicom, probe_dicom, read_dicom
from fedveil.data.formats.stamps import file_digests
from fedveil.data.formats.volumes.files import probe_volume, read_volume, volume_files
from fedveil.data.formats.volumes.nifti import is_nifti
from fedveil.data.image_header import Headers, ImageFacts, check_finite, check_pixels, is_folder, unusable
from fedveil.data.image_store import (
    DIGEST_BYTES,
    PREPROCESSING,
    ImageStack,
    Indices,
    check_size,
    full_scale,
    resized,
)
from fedveil.data.options import Reading
from fedveil.data.windows import FILE, FULL, apply_window, is_hounsfield, limits
from fedveil.errors import DataError

__all__ = ["FORMATS", "FileImages", "probe", "read_image"]

FORMATS = {
    "PNG": (".png",),
    "JPEG": (".jpg", ".jpeg"),
    "TIFF": (".tif", ".tiff"),
    "BMP": (".bmp",),
    "WEBP": (".webp",),
}
PHOTOMETRIC, BITS_PER_SAMPLE, WHITE_IS_ZERO = 262, 258, 0
LARGE = 4_000_000
"""Number of pixels above which images are decoded one at a time."""
Pixels = npt.NDArray[np.float32]
PillowImage = Image.Image
_one_large = threading.Lock()


@final
class FileImages(ImageStack):
    """Images in files; each is decoded again whenever it is read, with one thread per core.

    If ``reading`` names no channels, those of the first file apply, whose header is then public.
    """

    def __init__(
        self,
        paths: Sequence[Path] | Names,
        facts: Sequence[ImageFacts] | Headers,
        size: int,
        reading: Reading | None = None,
    ) -> None:
        self.paths = paths if isinstance(paths, Names) else Names([str(path) for path in paths])
        self.facts = facts if isinstance(facts, Headers) else Headers.of(facts)
        self._reading = reading or Reading()
        grey = 1 if self._reading.slices else None
        self._channels = (
            self._reading.channels or grey or (int(self.facts.channels[0]) if len(self.facts) else 1)
        )
        self._size = check_size(size)

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def channels(self) -> int:
        """1 or 3, by the setting or else by the first file; all images are converted to it."""
        return self._channels

    @property
    def size(self) -> int:
        """Height and width after resizing."""
        return self._size

    @property
    def reading(self) -> Reading:
        """As given."""
        return self._reading

    def read(self, indices: Indices) -> Pixels:
        """Decoded, scaled, converted to the requested channels, resized; a DataError names an unreadable file."""
        out = np.empty((len(indices), self.planes, self._size, self._size), np.float32)

        def decode(target: Pixels, row: int) -> None:
            pixels, path = int(np.prod(self.facts.sizes[row], dtype=np.int64)), self.path(row)
            with _in_turn(LARGE + 1 if self.reading.slices else pixels):
                if self.reading.slices:
                    target[...] = read_volume(path, self.reading, self._size)
                else:
                    target[...] = resized(read_image(path, self.reading), self._channels, self._size)
                check_finite(path, target)

        with _reading, ThreadPoolExecutor(os.cpu_count()) as pool:
            for _ in pool.map(decode, out, indices):
                pass
        return out

    def path(self, row: int) -> Path:
        """The file of an image."""
        return Path(self.paths[row])

    def subset(self, indices: Indices) -> "FileImages":
        """Only these images, converted to the same channels."""
        reading = replace(self.reading, channels=self._channels)
        return FileImages(self.paths.take(indices), self.facts.take(indices), self._size, reading)

    def digest(self, indices: Indices) -> list[str]:
        """Hashes of the files' bytes, and of the size, channels and window to read them at.

        A file that has not changed since it was hashed is not read again; `fedveil.data.formats.stamps` has the rule.
        """
        key = f"{PREPROCESSING} file {self._channels} {self._size} {self.reading.window} {self.reading.volume_key}"
        start = blake2b(key.encode(), digest_size=DIGEST_BYTES)

        def content_hash(path: Path) -> bytes:
            file = start.copy()
            for part in volume_files(path) if self.reading.slices else [path]:
                file.update(blake2b(_content(part)).digest() if self.reading.slices else _content(part))
            return file.digest()

        return file_digests(key, [self.path(int(index)) for index in indices], content_hash)


def probe(path: Path, reading: Reading | None = None) -> ImageFacts:
    """The content of the file's header; refuses anything but a single image, without decoding the pixels."""
    settings = reading or Reading()
    if settings.slices:
        with _reading:
            return probe_volume(path, settings)
    if is_nifti(path) or is_folder(path):
        raise unusable(
            path,
            "it cannot be opened as an image: it is " + ("a folder" if is_folder(path) else "a volume"),
            "an image is one file of two dimensions",
            "set data.slices to read volumes",
        )
    with _opened(path) as file:
        start = file.read(132)
    _check_not_empty(path, start)
    with _reading:
        if is_dicom(path, start):
            return probe_dicom(path, settings)
        with _opened(path) as file, _damage_named(path), Image.open(file, formats=list(FORMATS)) as image:
            _check(path, image, settings)
            mode = f"{image.format} {image.mode}"
            return ImageFacts(width=image.width, height=image.height, channels=_channels(image), mode=mode)


def read_image(path: Path, reading: Reading | None = None) -> Pixels:
    """The image at its stored size, upright, float32 ``(1 or 3, height, width)`` in [0, 1].

    Values are divided by the maximum of their bit depth; those of more than 8 bit may be scaled by the window
    instead. Transparent pixels are black, palettes are colour.
    """
    settings = reading or Reading()
    content = _content(path)
    _check_not_empty(path, content)
    with _reading:
        if is_dicom(path, content[:132]):
            return read_dicom(path, content, settings)
        with _damage_named(path), Image.open(BytesIO(content), formats=list(FORMATS)) as image:
            _check(path, image, settings)
            negative = image.mode.startswith("I;16") and _tag(image, PHOTOMETRIC) == WHITE_IS_ZERO
            bits = _tag(image, BITS_PER_SAMPLE) or 16
            upright = ImageOps.exif_transpose(image)
            window = _window(settings, upright.mode)
            if upright.mode.startswith("I;16"):
                grey = np.asarray(upright).astype(np.float32)[None]
                grey = apply_window(grey, *window) if window else grey / np.float32(2**bits - 1)
                return np.float32(1) - grey if negative else grey
            return _planes(upright, window)


def _planes(image: PillowImage, window: tuple[float, float] | None) -> Pixels:
    if image.mode in ("F", "I") and window:
        floats = np.array(image, np.float32)
        if not np.isfinite(floats).all():
            full_scale(floats)
        return apply_window(floats, *window)[None]
    if image.mode == "F":
        full_scale(floats := np.asarray(image, np.float32))
        return floats[None]
    if image.mode == "I":
        raise DataError(
            "its pixels are 32 bit or signed integers",
            "the value of white must be known without reading the image",
            "store 8 or 16 bit or floats in [0, 1], or give window = [centre, width]",
        )
    grey, alpha = _channels(image) == 1, image.has_transparency_data
    mode = ("L" if grey else "RGB") + ("A" if alpha else "")
    pixels = np.asarray(image.convert(mode))
    if pixels.ndim == 2:
        return pixels[None].astype(np.float32) / np.float32(255)
    depth = pixels.shape[2] - alpha
    planes = np.empty((depth, *pixels.shape[:2]), np.float32)
    for plane, stored in zip(planes, pixels.transpose(2, 0, 1), strict=False):
        np.divide(stored, np.float32(255), out=plane)
        if alpha:
            plane *= pixels[..., -1] / np.float32(255)
    return planes


def _window(reading: Reading, mode: str) -> tuple[float, float] | None:
    """The window that applies to pixels of a mode; those of 8 bit are already shades."""
    deep = mode in ("I", "F") or mode.startswith("I;16")
    if not deep or reading.window in (FILE, FULL):
        return None
    if is_hounsfield(reading.window):
        raise DataError(
            f"its pixels are of {'16 bit' if mode.startswith('I;16') else '32 bit'}, the window is {reading.window}",
            "that window is for Hounsfield units, which only DICOM files state",
            "give window = [centre, width] in stored values",
        )
    return limits(reading.window)


def _channels(image: PillowImage) -> int:
    return 1 if image.mode in ("1", "L", "LA", "I", "F") or image.mode.startswith("I;16") else 3


def _tag(image: PillowImage, tag: int) -> int | None:
    """A TIFF tag's first value, or None for other formats."""
    value = getattr(image, "tag_v2", {}).get(tag)
    first = value[0] if isinstance(value, tuple) else value
    return None if first is None else int(first)


def _check_not_empty(path: Path, content: bytes) -> None:
    if not content:
        raise unusable(
            path, "it is empty (0 bytes)", "an image must hold pixels", "copy it again, or leave it out"
        )


def _check(path: Path, image: PillowImage, reading: Reading) -> None:
    check_pixels(path, *image.size, reading.max_megapixels)
    _window(reading, image.mode)
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        raise unusable(
            path,
            f"it is animated or holds several images ({frames} frames)",
            "an image must be single",
            "save the relevant one",
        )


@contextmanager
def _in_turn(pixels: int) -> Iterator[None]:
    """Decode large images one at a time, so that parallel decoding does not exhaust the memory."""
    with ExitStack() as stack:
        if pixels > LARGE:
            stack.enter_context(_one_large)
        yield


class _Libraries:
    """Library settings while any thread is reading.

    Libraries warn without naming the file: relevant warnings become errors that name it, others are silenced.
    Pillow's own pixel limit is disabled, since ours is checked first.
    """

    def __init__(self) -> None:
        self._lock, self._users = threading.Lock(), 0
        self._kept: warnings.catch_warnings[None] | None = None
        self._limit: int | None = None

    def __enter__(self) -> None:
        with self._lock:
            self._users += 1
            if self._users == 1:
                self._limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
                self._kept = warnings.catch_warnings()
                self._kept.__enter__()
                warnings.filterwarnings("ignore", category=UserWarning)
                warnings.filterwarnings("ignore", category=RuntimeWarning)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0 and self._kept is not None:
                self._kept.__exit__(None, None, None)
                Image.MAX_IMAGE_PIXELS = self._limit


_reading = _Libraries()


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """Turns Pillow's errors on a damaged file into an error that names the file."""
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
            "a file must be PNG, JPEG, TIFF, BMP, WebP or DICOM, with an intact header",
            "convert or repair it, or leave it out",
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
