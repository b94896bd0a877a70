"""The stored values that map to black and white: a public scale, the same for every image of a study.

A window [centre, width] maps values v to (v - centre) / width + 1/2, cut to [0, 1] (DICOM PS3.3, C.11.2.1.3.2).
"""

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from fedveil.errors import DataError, InvalidValue

__all__ = [
    "FILE",
    "FULL",
    "HOUNSFIELD",
    "Window",
    "apply_window",
    "check_window",
    "full_scale",
    "is_hounsfield",
    "limits",
    "type_scale",
]

Window = str | tuple[float, float]
Float = TypeVar("Float", np.float32, np.float64)

FILE, FULL = "file", "full range"
"""The window of each file if it has one, otherwise the full range; and always the full range of the bits."""

HOUNSFIELD = {
    "lung": (-600.0, 1500.0),
    "mediastinum": (50.0, 350.0),
    "abdomen": (50.0, 400.0),
    "bone": (400.0, 1800.0),
    "brain": (40.0, 80.0),
}
"""Usual centre and width of CT windows in Hounsfield units (https://radiopaedia.org/articles/windowing-ct)."""


def check_window(window: object) -> Window:
    """The window, if valid.

    >>> check_window([40, 400])
    (40.0, 400.0)
    """
    if isinstance(window, str) and window in (FILE, FULL, *HOUNSFIELD):
        return window
    if isinstance(window, Sequence) and not isinstance(window, str) and len(window) == 2:
        centre, width = (float(one) if isinstance(one, int | float) else np.nan for one in window)
        if np.isfinite([centre, width]).all() and width > 0:
            return centre, width
    raise InvalidValue(
        f"window is {window!r}",
        f"it must be [centre, width] with a positive width, or one of {', '.join((FILE, FULL, *HOUNSFIELD))}",
        'choose one, such as window = [40, 400] or window = "lung"',
    )


def is_hounsfield(window: Window) -> bool:
    """Whether the window is for the values of a CT scanner only."""
    return window in HOUNSFIELD


def limits(window: Window) -> tuple[float, float] | None:
    """Centre and width, if the window itself defines them.

    >>> limits("lung"), limits("file")
    ((-600.0, 1500.0), None)
    """
    return HOUNSFIELD.get(window) if isinstance(window, str) else window


def apply_window(values: npt.NDArray[Float], centre: float, width: float) -> npt.NDArray[Float]:
    """Map values to [0, 1], in place.

    >>> apply_window(np.array([0.0, 40.0, 300.0]), 40, 400).tolist()
    [0.4, 0.5, 1.0]
    """
    np.subtract(values, centre - width / 2, out=values)
    np.divide(values, width, out=values)
    return np.clip(values, 0, 1, out=values)


def type_scale(dtype: np.dtype[Any]) -> float:
    """The value of white, by the type alone: 255, 65535, or 1 for floats.

    >>> type_scale(np.dtype(np.uint16))
    65535.0
    """
    if dtype in (np.uint8, np.uint16):
        return float(np.iinfo(dtype).max)
    if dtype == np.bool_ or np.issubdtype(dtype, np.floating):
        return 1.0
    raise DataError(
        f"pixels are of the type {dtype}",
        "the value of white must be known without reading the images",
        "store uint8, uint16 or floats in [0, 1], or give window = [centre, width]",
    )


def full_scale(pixels: npt.NDArray[Any]) -> float:
    """The value of white, as in `type_scale`, after checking that no pixel exceeds it."""
    scale = type_scale(pixels.dtype)
    if not np.issubdtype(pixels.dtype, np.floating):
        return scale
    if not np.isfinite(pixels).all():
        raise DataError(
            "pixels hold NaN or infinity", "every pixel must be a number", "remove or repair those images"
        )
    if pixels.size and (pixels.min() < 0 or pixels.max() > 1):
        raise DataError(
            f"floating point pixels reach from {pixels.min():g} to {pixels.max():g}",
            "they must lie in [0, 1], because scaling by the images' own range would leak it",
            "divide them by a constant chosen in advance, store uint8 or uint16, or give a window",
        )
    return scale
