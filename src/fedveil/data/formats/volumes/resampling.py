"""A volume as the learner's input: oriented by its own geometry, then resampled to public numbers of voxels.

The patient's axes are those of DICOM (LPS): x to the left, y to the back, z to the head. NIfTI's are opposite in x and
y (RAS). A volume is turned so that its axes lie next to the patient's, without interpolation.
"""

from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np
import numpy.typing as npt

from fedveil.data.options import Reading
from fedveil.errors import DataError

__all__ = ["Geometry", "check_array", "oriented", "resampled", "resampling_weights"]

Pixels = npt.NDArray[np.float32]
Matrix = npt.NDArray[np.float64]

SPACINGS = (0.01, 1000.0)
"""Shortest and longest distance of voxels in mm that a header may state."""


@dataclass(frozen=True, slots=True, eq=False)
class Geometry:
    """Where a stored array lies: row i of ``steps`` (3, 3) is the step along stored axis i in mm (LPS)."""

    steps: Matrix

    @property
    def spacing(self) -> Matrix:
        """(3,) distances of voxels along the stored axes in mm."""
        lengths: Matrix = np.sqrt((self.steps**2).sum(axis=1))
        return lengths

    @property
    def is_valid(self) -> bool:
        """Whether the three steps are of a length in `SPACINGS`, and do not lie in one plane."""
        low, high = SPACINGS
        if not np.isfinite(self.steps).all() or not ((low <= self.spacing) & (self.spacing <= high)).all():
            return False
        return abs(float(np.linalg.det(self.steps / self.spacing[:, None]))) > 1e-3


def oriented(
    stored: npt.NDArray[Any], geometry: Geometry | None, axis: str
) -> tuple[npt.NDArray[Any], Matrix | None]:
    """A view (slices, height, width) of a stored array (3 axes), and the spacing along these axes.

    Without a geometry the stored axes count as slices from the feet to the head, rows to the back, columns to the left.
    Axial slices are seen from the feet, as radiologists see them: the front is up, the patient's right is left. In
    coronal and sagittal slices the head is up; they run from front to back, and from right to left.
    """
    spacing = None if geometry is None else geometry.spacing
    if geometry is not None:
        unit = geometry.steps / geometry.spacing[:, None]
        order = max(permutations(range(3)), key=lambda p: sum(abs(unit[p[i], i]) for i in range(3)))
        signs = [unit[order[i], i] for i in (2, 1, 0)]
        stored = stored.transpose(order[::-1])[tuple(slice(None, None, -1 if s < 0 else 1) for s in signs)]
        spacing = geometry.spacing[list(order[::-1])]
    axes = {"axial": (0, 1, 2), "coronal": (1, 0, 2), "sagittal": (2, 0, 1)}[axis]
    view = stored.transpose(axes)
    return view if axis == "axial" else view[:, ::-1], None if spacing is None else spacing[list(axes)]


def resampling_weights(count: int, wanted: int, step: float | None = None) -> Pixels:
    """Weights (wanted, count) that resample one axis: linear interpolation, antialiased, about the common centre.

    Args:
        count: voxels along the axis.
        wanted: voxels that there shall be.
        step: distance of the new voxels in units of the old; None covers the axis exactly. What lies outside of the
            volume is black if the step is given.
    """
    distance = count / wanted if step is None else step
    centres = (count - 1) / 2 + (np.arange(wanted) - (wanted - 1) / 2) * distance
    reach = max(distance, 1.0)
    nearest = np.rint(centres)[:, None] + np.arange(-np.ceil(reach) - 1, np.ceil(reach) + 2)
    whole = np.maximum(0, 1 - np.abs(nearest - centres[:, None]) / reach).sum(axis=1)
    weights = np.maximum(0, 1 - np.abs(np.arange(count) - centres[:, None]) / reach)
    total = weights.sum(axis=1) if step is None else whole
    result: Pixels = (weights / total[:, None]).astype(np.float32)
    return result


def resampled(
    view: npt.NDArray[Any], spacing: Matrix | None, size: int, reading: Reading, shades: Any
) -> Pixels:
    """Slices (reading.slices, size, size) in [0, 1] of a view (slices, height, width).

    Args:
        view: stored values, as `oriented` turns them.
        spacing: of the view in mm; needed if ``reading.spacing`` is set.
        size: height and width in pixels.
        reading: the study's number of slices and spacing.
        shades: maps stored values of one slice to [0, 1], in a new array.
    """
    wanted = (reading.slices or 1, size, size)
    steps: list[float | None] = [None, None, None]
    if reading.spacing is not None and spacing is not None:
        between, across = reading.spacing
        steps = [float(mm / own) for mm, own in zip((between, across, across), spacing, strict=True)]
    along, down, right = (
        resampling_weights(count, one, step)
        for count, one, step in zip(view.shape, wanted, steps, strict=True)
    )
    out = np.zeros(wanted, np.float32)
    for number, weights in enumerate(along.T):
        shaded = shades(view[number])  # each slice is checked, also one that is not seen
        if weights.any():
            small = down @ shaded @ right.T
            for target, weight in zip(out, weights, strict=True):
                if weight:
                    target += weight * small
    return np.clip(out, 0, 1, out=out)


def check_array(pixels: npt.NDArray[Any], reading: Reading | None) -> None:
    """Refuse an array that does not hold volumes (n, depth, height, width), or a spacing, which arrays do not state."""
    if pixels.ndim != 4 or 0 in pixels.shape[1:]:
        raise DataError(
            f"volumes have the shape {pixels.shape}",
            "with slices set it must be (n, depth, height, width), no side zero",
            "store one three-dimensional grey volume a row, or remove slices to read images",
        )
    if reading is not None and reading.spacing is not None:
        raise DataError(
            "spacing is set, and volumes are in an array",
            "an array does not say how far apart its voxels are",
            "remove spacing, or store NIfTI files",
        )
