"""The whole trade-off function, against the independent implementation in riskcal (Kulynych et al. 2024)."""

import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution as pld
from riskcal import analysis

from fedveil.privacy import Mechanism, most_true_positives

RATES = np.concatenate([np.geomspace(1e-5, 0.1, 20), np.linspace(0.15, 0.95, 17)])


def theirs(mechanisms: list[Mechanism]) -> np.ndarray:
    """The largest true positive rates by riskcal, from privacy loss distributions of dp-accounting."""
    composed = None
    for one in mechanisms:
        loss = pld.from_gaussian_mechanism(
            one.noise_multiplier, sampling_prob=one.sampling_rate, value_discretization_interval=1e-3
        ).self_compose(one.steps)
        composed = loss if composed is None else composed.compose(loss)
    return 1 - np.array([analysis.get_beta_from_pld(composed, alpha=rate) for rate in RATES])


@pytest.mark.parametrize(
    "mechanisms",
    [
        [Mechanism(1.0, 1.0, steps=1)],
        [Mechanism(6.6, 0.2, steps=30), Mechanism(2.8, 1.0, steps=1), Mechanism(4.8, 1.0, steps=1)],
    ],
    ids=["one sum", "a study"],
)
def test_the_trade_off_function_of_gaussian_sums_is_that_of_riskcal(mechanisms):
    ours = most_true_positives(mechanisms, RATES)
    np.testing.assert_allclose(ours, theirs(mechanisms), atol=2e-3, rtol=1e-2)
    mu = float(np.sqrt(sum(one.steps / one.noise_multiplier**2 for one in mechanisms)))
    np.testing.assert_allclose(ours, 1 - analysis.get_beta_from_gdp(mu, RATES), atol=1e-9)


def test_of_sampled_sums_it_allows_what_riskcal_allows_and_little_more():
    """Ours follows from a grid of epsilon, each of which is a bound; theirs is computed from the loss itself."""
    mechanisms = [Mechanism(1.2, 1.0, steps=100, sampling_rate=0.05), Mechanism(5.0, 1.0, steps=1)]
    ours, others = most_true_positives(mechanisms, RATES), theirs(mechanisms)
    assert (ours >= others - 1e-3).all()
    assert (ours <= others + 0.02).all()
