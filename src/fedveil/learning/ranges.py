"""Ranges of released numbers for any data and noise, which decoders enforce and sites check.

Noise is unbounded, but values decoded from a noisy sum may be clipped to the range of the exact value. This is
post-processing: it costs nothing, and reduces the error. So every model that an honest coordinator sends is within
public ranges, and a site refuses any other before it is charged (`fedveil.learning.Model.check_parameters`):

* A class's mean features are a mean of vectors whose b blocks have length ``b^(-1/2)`` each, or are zero; the
midpoint between the classes' means, shrunk towards zero, has blocks no longer than that.
* Class sizes are clipped to [`FEWEST`, `LARGEST_COUNT`]. So each of K class frequencies is at least ``FEWEST / (K
  LARGEST_COUNT)``, and they sum to 1; loss weights are ``1 / (K frequency)``.
* Mean scores are means of vectors of length 1 at most.
"""

from collections.abc import Sequence

import numpy as np

from fedveil.errors import InvalidValue
from fedveil.learning.exact import bounded
from fedveil.learning.models.learner import Vector

__all__ = [
    "FEWEST",
    "LARGEST_COUNT",
    "bounded_blocks",
    "check_centre",
    "check_frequencies",
    "check_length",
    "class_sizes",
]

FEWEST = 10.0
"""A released class size is taken to be at least this, so that noise cannot reverse the sign of a rare class's mean."""
LARGEST_COUNT = 1e7
"""No study has more units of one class."""
ROUNDING = 1e-6
"""Relative tolerance for arithmetic between a decoder and a check."""


def class_sizes(released: Vector) -> Vector:
    """Class sizes (classes,) from noisy ones.

    >>> class_sizes(np.array([-3.0, 120.5]))
    array([ 10. , 120.5])
    """
    return np.clip(released, FEWEST, LARGEST_COUNT)


def bounded_blocks(vector: Vector, blocks: Sequence[int]) -> Vector:
    """The vector with each of b blocks cut to length ``b^(-1/2)``."""
    parts = np.split(vector, np.cumsum(blocks)[:-1])
    return np.concatenate([bounded(part, len(blocks) ** -0.5) for part in parts])


def check_centre(centre: Vector, blocks: Sequence[int]) -> None:
    """Refuse a centre that `bounded_blocks` does not make."""
    for block in np.split(centre, np.cumsum(blocks)[:-1]) if len(blocks) else ():
        check_length("a block of the centre", block, len(blocks) ** -0.5)


def check_length(what: str, vector: Vector, bound: float) -> None:
    """Refuse a vector that is longer than ``bound``, or not finite."""
    length = float(np.linalg.norm(vector))
    if not length <= bound * (1 + ROUNDING):
        raise _foreign(f"{what} has length {length:g}", f"the model's length never exceeds {bound:g}")


def check_frequencies(frequencies: Vector) -> None:
    """Refuse class frequencies that do not follow from class sizes."""
    least = FEWEST / (len(frequencies) * LARGEST_COUNT)
    proper = (frequencies >= least * (1 - ROUNDING)).all() and abs(frequencies.sum() - 1) <= ROUNDING
    if not proper:
        raise _foreign(
            f"class frequencies are {np.round(frequencies, 6).tolist()}",
            f"the model's frequencies are at least {least:g} and sum to 1",
        )


def _foreign(found: str, rule: str) -> InvalidValue:
    return InvalidValue(found, rule, "send the model of the study")
