"""Sums in which one unit's contribution does not depend, not even in the last bit, on other units.

Floating-point addition rounds, so a sum depends on its order, and matrix products, ``einsum``, ``add.reduceat`` and
``sum`` choose their order by the number of rows, their place in memory or the number of threads. If terms cancel,
the result may be pure rounding error; after clipping it may be as long as the bound. Two constructions exclude this.

**Within an image or a unit: elementwise operations in a fixed order.** IEEE 754 rounds each sum, product, quotient
and root independently, so an elementwise operation on arrays gives each entry the same result as for that entry
alone, for any shapes. `first_sums` consists of such operations, in an order that follows from the number of terms.
With one column per image (or unit) the result for it is a function of that column. (Columns, not rows, because the
added terms are then contiguous for all of them.)

**Over units: no rounding at all.** Let q be the power of two with ``2^-33 bound < q <= 2^-32 bound``. `on_grid` cuts
every entry of a contribution towards zero to a multiple of q. That shortens it, so its norm stays within the bound, by
less than q in each entry. Entries are at most ``bound < 2^33 q``; so any partial sum over at most `MOST` = 2^20 units
is a multiple of q, smaller than ``2^53 q``, which double precision holds exactly. Hence the sum is the same in any
order, also by a matrix product with ones and zeros, and one unit more or less changes it by exactly that unit's
contribution. (Beyond 2^20 units sums round, by at most ``n 2^-53`` of the sum of the lengths of n units.)
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from fedveil.lazy import later
from fedveil.learning.models.learner import Vector

__all__ = ["MOST", "SHORTER", "bounded", "first_sums", "grid", "lengths", "on_grid", "softmax"]

special = later("scipy.special")

MOST = 1 << 20
"""Units over which sums are exact."""
SHORTER = 1 - 1e-12
"""Fraction of a bound that vectors are scaled to; rounding may add far less to their norm than the remainder."""
_BITS = 32


def first_sums(values: Vector) -> Vector:
    """Sums over the first axis, in a tree of elementwise additions; ``values`` are overwritten.

    The relative error is at most ``ceil(log2 d) 2^-53`` of the sum of absolute values, with d the axis' length.

    >>> first_sums(np.array([[1.0, 4.0], [2.0, 5.0], [3.0, 6.0]]))
    array([ 6., 15.])
    """
    count = len(values)
    if count == 0:
        return np.zeros(values.shape[1:])
    while count > 1:
        half = (count + 1) // 2
        values[: count - half] += values[half:count]
        count = half
    result: Vector = values[0]
    return result


def lengths(rows: npt.NDArray[Any]) -> Vector:
    """L2 norms (n,) of rows (n, d) in double precision, each independently; see `first_sums`."""
    columns = rows.T.astype(np.float64, order="C")
    columns *= columns
    result: Vector = np.sqrt(first_sums(columns))
    return result


def softmax(logits: Vector) -> Vector:
    """Probabilities (n, classes) from logits (n, classes), each row by itself.

    e^x is ``expit(x) / expit(-x)``, with scipy's logistic function, a loop over scalars. NumPy's own exponential is
    vectorised, and IEEE 754 does not specify its rounding: the last entries of an array may be rounded differently.
    """
    below = (logits - logits.max(axis=1, keepdims=True)).T
    powers = special.expit(below) / special.expit(-below)
    result: Vector = (powers / first_sums(powers.copy())).T
    return result


def bounded(vector: Vector, bound: float) -> Vector:
    """The vector, scaled down to the bound if it is longer; zero if it is not finite."""
    norm = float(np.linalg.norm(vector))
    if not math.isfinite(norm):
        return np.zeros_like(vector)
    return vector if norm <= bound * SHORTER else vector * (bound * SHORTER / norm)


def grid(bound: float) -> float:
    """q for contributions of norm at most ``bound``; see the module's text."""
    return math.ldexp(1.0, math.frexp(bound)[1] - 1 - _BITS)


def on_grid(values: Vector, bound: float = 1.0) -> Vector:
    """Cut entries towards zero to multiples of the grid for ``bound``. Division and product by q are exact.

    >>> on_grid(np.array([0.5, 1e-12, -0.75]))
    array([ 0.5 ,  0.  , -0.75])
    """
    step = grid(bound)
    result: Vector = np.trunc(values / step)
    result *= step
    return result
