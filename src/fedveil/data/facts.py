"""What a file's header says about the image in it, and the error for a file that cannot be used."""

from dataclasses import dataclass
from pathlib import Path

from fedveil.errors import DataError

__all__ = ["ImageFacts", "unusable"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFacts:
    """Size in pixels as stored, 1 or 3 channels, the stored kind of pixels, the patient if the file tells."""

    width: int
    height: int
    channels: int
    mode: str
    patient: str | None = None


def unusable(path: Path, found: str, rule: str, remedy: str) -> DataError:
    """An error about one file, which it names first."""
    return DataError(f"{path}: {found}", rule, remedy)
