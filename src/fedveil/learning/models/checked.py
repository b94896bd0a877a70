"""Checks of a cohort's columns before a linear head sees them."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from fedveil.errors import InvalidValue
from fedveil.learning.models.learner import Vector

__all__ = [
    "LARGEST_FEATURE",
    "LARGEST_WEIGHT",
    "checked_codes",
    "checked_features",
    "checked_findings",
    "checked_patients",
    "checked_weights",
]

LARGEST_FEATURE = 1e6
"""Larger values, like NaN, indicate broken features; the bound prevents overflow."""
LARGEST_WEIGHT = 1e6


def checked_findings(labels: npt.NDArray[Any], length: int, classes: int) -> npt.NDArray[Any]:
    """Labels (n, K) of 1, 0 and -1, or InvalidValue."""
    if labels.shape != (length, classes) or not np.isin(labels, (-1, 0, 1)).all():
        raise InvalidValue(
            f"labels have shape {labels.shape}",
            f"there must be {classes} findings for each of {length} images, each 1, 0, or -1 if unknown",
            "give one column per finding",
        )
    return labels


def checked_features(features: npt.NDArray[Any], dimension: int) -> npt.NDArray[Any]:
    """Features (n, dimension) of at most `LARGEST_FEATURE`, or InvalidValue."""
    if features.ndim != 2 or features.shape[1] != dimension or features.dtype.kind != "f":
        raise InvalidValue(
            f"features have shape {features.shape} and type {features.dtype}",
            f"this model takes floating-point numbers of shape (n, {dimension})",
            "use the extractor that the model was made for",
        )
    if not (np.abs(features) <= LARGEST_FEATURE).all():
        raise InvalidValue(
            "features hold values that are not finite, or larger than 1e6",
            "one image's features must be bounded",
            "check the images, and the normalisation of features",
        )
    return features


def checked_codes(what: str, codes: npt.NDArray[Any], length: int, count: int) -> npt.NDArray[np.int64]:
    """Codes (length,) in 0 .. count - 1, or InvalidValue."""
    result = np.asarray(codes)
    if result.shape != (length,) or result.dtype.kind not in "iu" or length == 0:
        raise InvalidValue(
            f"{what} codes have shape {result.shape} and type {result.dtype}",
            f"there must be one whole number for each of {length} images, at least one",
            "pass one column of codes",
        )
    if result.min() < 0 or result.max() >= count:
        raise InvalidValue(
            f"{what} codes reach from {result.min()} to {result.max()}",
            f"they must lie in 0 .. {count - 1}",
            "number them from 0 without gaps",
        )
    return result.astype(np.int64)


def checked_patients(patients: npt.NDArray[Any], length: int) -> npt.NDArray[np.int64]:
    """Patient codes (length,) from 0 without gaps, or InvalidValue."""
    codes = checked_codes("patient", patients, length, max(length, 1))
    if not np.bincount(codes).all():
        raise InvalidValue(
            "some patient codes have no image", "codes run from 0 without gaps", "renumber them"
        )
    return codes


def checked_weights(weights: npt.ArrayLike, shape: tuple[int, ...]) -> Vector:
    """Weights in [0, `LARGEST_WEIGHT`], or InvalidValue."""
    result = np.asarray(weights, dtype=np.float64)
    if result.shape != shape or not ((result >= 0) & (result <= LARGEST_WEIGHT)).all():
        raise InvalidValue(
            f"class_weights are {result}",
            f"there must be {math.prod(shape)} numbers in [0, {LARGEST_WEIGHT:g}]",
            "give one weight per class or finding",
        )
    return result
