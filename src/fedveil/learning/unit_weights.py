"""The weight of one image in a sum over units."""

import numpy as np

from fedveil.learning.exact import on_grid
from fedveil.learning.models.learner import Indices, Vector

__all__ = ["image_shares"]


def image_shares(groups: Indices, units: Indices | None = None) -> Vector:
    """Each image's share in its unit, (n,): they sum to 1 within a unit that takes part, and are 0 in the others.

    They are rounded down to the grid of `fedveil.learning.exact`, so their sum within a unit is at most 1, and any
    sum of shares is exact. A share in a unit of n images is short by less than n 2^-32 of itself.

    Args:
        groups: (n,) unit codes 0 .. U-1.
        units: those that take part; all if None.
    """
    shares = on_grid(1 / np.bincount(groups)[groups])
    return shares if units is None else shares * np.isin(groups, units)
