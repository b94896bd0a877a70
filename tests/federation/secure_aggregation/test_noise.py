"""The whole way: noisy whole numbers through masks, drop-outs and recovery to a decoded sum."""

import math

import numpy as np
import pytest

from fedveil.privacy import Mechanism, secure_generator
from fedveil.privacy.accounting.integer import IntegerMechanism

DIMENSION = 20_000
SITES = 7


@pytest.fixture(scope="module")
def box(federation):
    return federation(SITES, rounds=12)


def integer_mechanism(box):
    return IntegerMechanism.fit(
        Mechanism(noise_multiplier=3.0, clip_norm=0.5, steps=12),
        dimension=DIMENSION,
        sites=SITES,
        shares=box.session.min_honest,
        units=1000,
    )


def contributions(sites):
    generator = np.random.default_rng(5)
    return {site: generator.normal(0, 0.1, DIMENSION).astype(np.float32) for site in sites}


@pytest.mark.parametrize(
    ("round_number", "lost", "late"), [(1, 0, 0), (2, 1, 0), (3, 2, 0), (4, 0, 2), (5, 1, 1)]
)
def test_noise_holds_under_dropout(box, round_number, lost, late):
    """Any survivors that may open the sum carry at least the noise that was priced, and exactly their shares.

    The noise in the decoded sum is measured: over 20,000 coordinates the ratio of variances has a relative standard
    deviation of sqrt(2 / 20,000) = 0.01.
    """
    mechanism = integer_mechanism(box)
    survivors = box.sites[lost:]
    exact = contributions(survivors)
    words = {site: mechanism.encode(exact[site], secure_generator()) for site in survivors}
    total = mechanism.decode(box.run(round_number, words, silent=survivors[:late]))
    noise = total - np.sum([exact[site].astype(np.float64) for site in survivors], axis=0)
    priced = mechanism.mechanism.noise_std**2
    assert np.var(noise) / priced == pytest.approx(len(survivors) / mechanism.shares, rel=0.06)
    assert abs(noise.mean()) < 6 * noise.std() / math.sqrt(DIMENSION)
    # Honest shares alone, when one survivor knows and takes away its own:
    assert np.var(noise) * (len(survivors) - box.session.colluding) / len(survivors) > 0.94 * priced


def test_sites_draw_their_shares_independently(box):
    """The same sum, noised twice or by two sites, has nothing in common but itself."""
    mechanism, zero = integer_mechanism(box), np.zeros(DIMENSION)
    drawn = [mechanism.decode(mechanism.encode(zero, secure_generator())) for _ in range(3)]
    correlations = np.corrcoef(drawn)[np.triu_indices(3, 1)]
    assert np.abs(correlations).max() < 6 / math.sqrt(DIMENSION)


def test_the_sum_that_leaves_is_the_sum_of_what_was_encoded(box):
    """Masks and recovery add nothing: the decoded sum is that of the words, to the bit."""
    mechanism = integer_mechanism(box)
    words = {
        site: mechanism.encode(vector, secure_generator())
        for site, vector in contributions(box.sites).items()
    }
    total = box.run(6, words)
    expected = np.sum(list(words.values()), axis=0, dtype=np.uint32)
    np.testing.assert_array_equal(total, expected)
