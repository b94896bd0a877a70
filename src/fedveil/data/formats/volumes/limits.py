"""How large a volume may be."""

from collections.abc import Sequence
from pathlib import Path

from fedveil.data.image_header import check_pixels, unusable
from fedveil.data.options import Reading

__all__ = ["LARGEST_IMAGES", "LONGEST", "check_voxels"]

LARGEST_IMAGES = 4
"""A volume may hold as many voxels as this many of the largest images: 120 million unless a setting allows more."""

LONGEST = 8192
"""Largest number of voxels along one axis."""


def check_voxels(path: Path, shape: Sequence[int], reading: Reading) -> None:
    """Refuse a volume (3 axes) with an empty axis, or with more voxels than the limit, before it is decoded."""
    if min(shape) < 1:
        raise unusable(path, f"its shape is {tuple(shape)}", "no axis may be empty", "leave it out")
    first, second, third = sorted(shape)
    if third > LONGEST:
        raise unusable(
            path, f"its shape is {tuple(shape)}", f"no axis may be longer than {LONGEST}", "leave it out"
        )
    check_pixels(path, third, second, reading.max_megapixels)
    if first * second * third > LARGEST_IMAGES * reading.max_megapixels * 1e6:
        raise unusable(
            path,
            f"it holds {first * second * third / 1e6:.1f} million voxels",
            f"a volume of more than {LARGEST_IMAGES * reading.max_megapixels:g} million would fill the memory",
            "save it smaller, or increase data.max_megapixels",
        )
