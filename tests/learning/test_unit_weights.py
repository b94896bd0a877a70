"""What one image counts for in its unit."""

import numpy as np

from fedveil.learning.unit_weights import image_shares


def test_shares_sum_to_one_within_a_unit_that_takes_part():
    groups = np.array([0, 0, 0, 1, 2, 2])
    np.testing.assert_allclose(np.bincount(groups, image_shares(groups)), [1, 1, 1])
    np.testing.assert_allclose(np.bincount(groups, image_shares(groups, np.array([0, 2]))), [1, 0, 1])
