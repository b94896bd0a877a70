"""The content of image files' headers, and the errors for an unusable file."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from fedveil.data.annotations.columns import Column
from fedveil.errors import DataError

__all__ = ["Headers", "ImageFacts", "check_finite", "check_pixels", "is_folder", "unusable"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFacts:
    """Size in pixels as stored, 1 or 3 channels, the stored kind of pixels, the patient if the file names one."""

    width: int
    height: int
    channels: int
    mode: str
    patient: str | None = None


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Headers:
    """The same for n files, as columns: ``sizes`` is (n, 2), width and height."""

    sizes: npt.NDArray[np.int32]
    channels: npt.NDArray[np.int8]
    modes: Column
    patients: Column

    @classmethod
    def of(cls, facts: Iterable[ImageFacts]) -> Self:
        """The columns; each entry of ``facts`` may be let go once it was seen."""
        sizes: list[tuple[int, int]] = []
        channels, patients = bytearray(), list[str | None]()

        def seen() -> Iterable[str]:
            for one in facts:
                sizes.append((one.width, one.height))
                channels.append(one.channels)
                patients.append(one.patient)
                yield one.mode

        modes = Column.of(seen())
        return cls(
            sizes=np.array(sizes, np.int32).reshape(-1, 2),
            channels=np.frombuffer(bytes(channels), np.int8),
            modes=modes,
            patients=Column.of(patients),
        )

    def __len__(self) -> int:
        return len(self.channels)

    def take(self, rows: Sequence[int] | npt.NDArray[np.integer[Any]]) -> "Headers":
        """Only these files, in that order."""
        chosen = np.asarray(rows, dtype=np.int64)
        return Headers(
            sizes=self.sizes[chosen],
            channels=self.channels[chosen],
            modes=self.modes.take(chosen),
            patients=self.patients.take(chosen),
        )


def unusable(path: Path, found: str, rule: str, remedy: str) -> DataError:
    """An error about one file, which it names first."""
    return DataError(f"{path}: {found}", rule, remedy)


def check_finite(path: Path, pixels: npt.NDArray[np.float32]) -> None:
    """Refuse an image that became NaN or infinity, whatever in its file led to that."""
    if not np.isfinite(pixels).all():
        raise unusable(
            path,
            "its pixels become NaN or infinity",
            "every pixel must be a number in [0, 1]",
            "correct the values in its header, or leave it out",
        )


def check_pixels(path: Path, width: int, height: int, max_megapixels: float) -> None:
    """Refuse an image without pixels, or with more than the limit."""
    if width < 1 or height < 1:
        raise unusable(path, f"it is {width} x {height} pixels", "no side may be zero", "leave it out")
    if width * height > max_megapixels * 1e6:
        raise unusable(
            path,
            f"it is {width} x {height} pixels, {width * height / 1e6:.1f} megapixels",
            f"an image of more than {max_megapixels:g} would fill the memory",
            "save it smaller, or increase data.max_megapixels",
        )


def is_folder(path: Path) -> bool:
    """Whether there is such a folder; a path that cannot be one, such as a name that is too long, is none."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False
