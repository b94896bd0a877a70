"""What one image counts for in a sum over units."""

import numpy as np

from fedveil.learning.learner import Indices, Vector

__all__ = ["image_shares"]


def image_shares(groups: Indices, units: Indices | None = None) -> Vector:
    """Each image's share in its unit, (n,): they sum to 1 within a unit that takes part, and are 0 in the others.

    Args:
        groups: (n,) unit codes 0 .. U-1.
        units: those that take part; all where None.
    """
    shares: Vector = 1 / np.bincount(groups)[groups]
    return shares if units is None else shares * np.isin(groups, units)
