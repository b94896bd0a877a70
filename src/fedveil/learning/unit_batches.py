"""Batches of whole units, divided so that one unit more or less changes few of them, for any cohort size.

A batch's sum in single precision depends on its content through rounding. If batches were filled one after the
other, omitting a unit would move all later units to other batches, and the change by rounding would grow with the
cohort. So the units themselves determine where a *run* of batches begins: about one in `EVERY` has a digest that
begins one. Batches are filled in order within a run, and never across its end. Omitting a unit therefore only
changes batches of its own run, and merges it with the previous one if the unit began it; the sum changes by the
rounding of about `EVERY` units, for a thousand units as for a million.

(Units with the same images and labels have the same digest. A long run of them is harmless: their batches are equal.)
"""

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from fedveil.errors import InvalidValue
from fedveil.learning.models.learner import Indices

__all__ = ["EVERY", "first_of_runs", "rows_by_units", "unit_batches"]

EVERY = 256
"""Units in a run, on average."""


def first_of_runs(
    read: Callable[[Indices], npt.NDArray[Any]], labels: Indices, groups: Indices, at_once: int
) -> npt.NDArray[np.bool_]:
    """Which units (U,) begin a run, by the digest of their images and labels.

    Args:
        read: images by row.
        labels: (n,) class codes, or (n, K) findings.
        groups: (n,) unit codes 0 .. U-1.
        at_once: images read at once.
    """
    order = np.argsort(groups, kind="stable")
    digests = [hashlib.blake2b(digest_size=8) for _ in range(int(groups.max()) + 1)]
    for start in range(0, len(order), at_once):
        rows = order[start : start + at_once]
        for row, image in zip(rows, read(rows), strict=True):
            digests[groups[row]].update(np.ascontiguousarray(image).tobytes() + bytes(labels[row : row + 1]))
    return np.array([int.from_bytes(digest.digest(), "little") % EVERY == 0 for digest in digests])


def unit_batches(sizes: Indices, first: npt.NDArray[np.bool_], limit: int) -> Iterator[slice]:
    """Divide units, in order, into batches of at most ``limit`` images; a larger unit is a separate batch.

    Args:
        sizes: (u,) images of each unit.
        first: (u,) whether a run begins with it.
        limit: images.

    >>> [(one.start, one.stop) for one in unit_batches(np.array([2, 2, 5, 1, 1]), np.array([0, 0, 0, 0, 1]) > 0, 4)]
    [(0, 2), (2, 3), (3, 4), (4, 5)]
    """
    begin, images = 0, 0
    for unit, (size, begins) in enumerate(zip(sizes.tolist(), first.tolist(), strict=True)):
        if unit > begin and (begins or images + size > limit):
            yield slice(begin, unit)
            begin, images = unit, 0
        images += size
    if begin < len(sizes):
        yield slice(begin, len(sizes))


def rows_by_units(
    groups: Indices, first: npt.NDArray[np.bool_], limit: int, units: Indices | None = None
) -> Iterator[Indices]:
    """Rows of the units that take part, in batches of whole units; see `unit_batches`.

    Args:
        groups: (n,) unit codes 0 .. U-1.
        first: (U,) whether a run begins with the unit.
        limit: rows in a batch; a larger unit is a separate batch.
        units: those that take part; all if None.

    Raises:
        InvalidValue: a unit is named twice, or does not exist.
    """
    sizes = np.bincount(groups)
    if units is None:
        chosen = np.arange(len(sizes))
    else:
        chosen = np.sort(np.asarray(units, dtype=np.int64))
        if len(np.unique(chosen)) != len(chosen) or ((chosen < 0) | (chosen >= len(sizes))).any():
            raise InvalidValue(
                "units were drawn twice, or do not exist",
                f"each of 0 .. {len(sizes) - 1} takes part at most once",
                "draw each unit at most once, from those that exist",
            )
    rows = np.flatnonzero(np.isin(groups, chosen))
    rows = rows[np.argsort(groups[rows], kind="stable")]
    ends = np.cumsum(sizes[chosen])
    for part in unit_batches(sizes[chosen], first[chosen], max(1, limit)):
        yield rows[ends[part.start] - sizes[chosen[part.start]] : ends[part.stop - 1]]
