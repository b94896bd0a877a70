"""Images to classify: a folder, one file, or a manifest of which only ``path`` is read."""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedveil.data.facts import ImageFacts
from fedveil.data.files import FileImages, probe
from fedveil.data.folders import SUFFIXES
from fedveil.data.stack import Indices
from fedveil.errors import DataError

__all__ = ["Unlabelled", "read_unlabelled"]

LUMINANCE = np.array([0.299, 0.587, 0.114], dtype=np.float32)
"""Rec. 601 weights, a public constant."""


@dataclass(frozen=True, slots=True, eq=False)
class Unlabelled:
    """Images by name, read with as many channels as the model has seen."""

    names: tuple[str, ...]
    images: FileImages
    channels: int

    def read(self, indices: Indices) -> npt.NDArray[np.float32]:
        """Float32 (k, channels, size, size) in [0, 1]; colour becomes grey, grey three equal channels."""
        pixels = self.images.read(indices)
        if pixels.shape[1] == self.channels:
            return pixels
        if self.channels == 1:
            grey: npt.NDArray[np.float32] = np.einsum("nchw,c->nhw", pixels, LUMINANCE)[:, None]
            return grey
        return np.repeat(pixels, self.channels, axis=1)


def read_unlabelled(source: str, image_size: int, channels: int, *, base: Path = Path()) -> Unlabelled:
    """The images that ``source`` names, relative to ``base``.

    Raises:
        DataError: there are none, or one of them cannot be read.
    """
    path = base / source
    if path.is_dir():
        files = sorted(f for f in path.rglob("*") if f.is_file() and f.suffix.lower() in SUFFIXES)
        names = [file.relative_to(path).as_posix() for file in files]
    elif path.suffix.lower() == ".csv":
        names = _manifest_paths(path)
        files = [path.parent / name for name in names]
    else:
        files, names = [path], [path.name]
    if not files:
        raise DataError(
            f"{source} holds no images", "there must be at least one to classify", "check the path"
        )
    facts: list[ImageFacts] = [probe(file) for file in files]
    return Unlabelled(tuple(names), FileImages(files, facts, image_size), channels)


def _manifest_paths(path: Path) -> list[str]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            if "path" not in (reader.fieldnames or ()):
                raise DataError(
                    f"{path} has no column path",
                    "a manifest names its images in it",
                    "name the column in line 1",
                )
            return [row["path"] for row in reader if row["path"]]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"{path} cannot be read ({error})", "it must be a UTF-8 CSV", "check the file"
        ) from None
