"""The content of an image file's header, and the errors for an unusable file."""

from dataclasses import dataclass
from pathlib import Path

from fedveil.errors import DataError

__all__ = ["ImageFacts", "check_pixels", "unusable"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFacts:
    """Size in pixels as stored, 1 or 3 channels, the stored kind of pixels, the patient if the file names one."""

    width: int
    height: int
    channels: int
    mode: str
    patient: str | None = None


def unusable(path: Path, found: str, rule: str, remedy: str) -> DataError:
    """An error about one file, which it names first."""
    return DataError(f"{path}: {found}", rule, remedy)


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
