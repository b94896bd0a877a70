"""What one image counts for in a sum over units, and the sum that tells how well a model does so far."""

import numpy as np
import numpy.typing as npt

from fedveil.learning.evaluation import decide
from fedveil.learning.exact import on_grid
from fedveil.learning.learner import Indices, Vector

__all__ = ["hits", "image_shares"]


def image_shares(groups: Indices, units: Indices | None = None) -> Vector:
    """Each image's share in its unit, (n,): they sum to 1 within a unit that takes part, and are 0 in the others.

    They are cut to the grid of `fedveil.learning.exact`, so their sum within a unit is at most 1, and any sum of shares
    is exact. A share in a unit of n images is short by less than n 2^-32 of itself.

    Args:
        groups: (n,) unit codes 0 .. U-1.
        units: those that take part; all where None.
    """
    shares = on_grid(1 / np.bincount(groups)[groups])
    return shares if units is None else shares * np.isin(groups, units)


def hits(
    probabilities: Vector,
    labels: npt.NDArray[np.int64],
    groups: Indices,
    priors: Vector,
    units: Indices | None = None,
) -> Vector:
    """Sum over the units the share of its images whose class is predicted right; exact, so it stays in the hospital.

    Predictions are those under equal class frequencies. A unit contributes one number in [0, 1], however many images
    it has.

    Args:
        probabilities: (n, classes) under the class frequencies of training.
        labels: (n,) class codes.
        groups: (n,) unit codes 0 .. U-1.
        priors: (classes,) those frequencies; public.
        units: those that take part; all where None.

    Returns:
        float64 (1,).

    >>> hits(np.array([[0.9, 0.1], [0.4, 0.6], [0.7, 0.3]]), np.array([0, 0, 1]), np.array([0, 0, 1]), np.ones(2))
    array([0.5])
    """
    right = decide(probabilities, priors) == labels
    return np.array([image_shares(groups, units) @ right])
