"""Batches of whole units, cut so that one unit more or less changes few of them, however large the cohort is.

A batch's sum in single precision is rounded by what is in it. Were batches filled one after the other, a unit that is
left out would move all units behind it into other batches, and what rounding does to a sum would grow with the cohort.
So where a *run* of batches begins follows from the units themselves: about one in `EVERY` has a digest that begins one.
Batches are filled in order within a run, and never across its end. A unit that is left out therefore changes batches of
its own run only, and joins it with the one before where it began one; the sum moves by the rounding of about `EVERY`
units, whether there are a thousand or a million.

(Units with the same images and labels have the same digest. A long run of them is no trouble: their batches are alike.)
"""

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from fedveil.learning.models.learner import Indices

__all__ = ["EVERY", "first_of_runs", "row_batches", "unit_batches"]

EVERY = 256
"""Units in a run, on average."""


def first_of_runs(
    read: Callable[[Indices], npt.NDArray[Any]], labels: Indices, groups: Indices, at_once: int
) -> npt.NDArray[np.bool_]:
    """Which units (U,) begin a run, as their images and labels say.

    Args:
        read: images by row.
        labels: (n,) class codes.
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
    """Cut units, in order, into batches of at most ``limit`` images; a larger unit is a batch of its own.

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


def row_batches(
    groups: Indices, units: Indices, first: npt.NDArray[np.bool_], limit: int
) -> Iterator[Indices]:
    """The images of some units, whole units at a time, in order, cut by `unit_batches`.

    Args:
        groups: (n,) unit codes 0 .. U-1, all of which occur.
        units: (u,) those that take part, in ascending order.
        first: (U,) whether a run begins with a unit.
        limit: images.
    """
    rows = np.flatnonzero(np.isin(groups, units))
    rows = rows[np.argsort(groups[rows], kind="stable")]
    sizes = np.unique(groups[rows], return_counts=True)[1]
    ends = np.cumsum(sizes)
    for part in unit_batches(sizes, first[units], limit):
        yield rows[ends[part.start] - sizes[part.start] : ends[part.stop - 1]]
