"""What an attacker can do: against the figures of the papers, an attack that reaches the bound, and grids."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fedveil.privacy import Guarantee, Mechanism, calibrate, delta_at, epsilon, operational_risk


def guarantee(eps: float, delta: float = 1e-5) -> Guarantee:
    return Guarantee(eps, delta, "patient", "site")


@pytest.mark.parametrize(("eps", "percent"), [(1.0, 2.0), (3.0, 5.4), (8.0, 25.0)])
def test_published_figures_for_the_gaussian(eps: float, percent: float) -> None:
    mechanism = calibrate(guarantee(eps), steps=60)
    risk = operational_risk(guarantee(eps), [mechanism])
    assert 100 * risk.true_positive_rate == pytest.approx(percent, abs=0.5 if percent > 10 else 0.05)


def test_bound_from_epsilon_and_delta_alone() -> None:
    risk = operational_risk(guarantee(1.0))
    assert risk.true_positive_rate == pytest.approx(math.e * 0.01 + 1e-5)
    assert risk.advantage == pytest.approx((math.e - 1 + 2e-5) / (math.e + 1))
    strict = operational_risk(guarantee(8.0))
    assert strict.true_positive_rate == pytest.approx(1 - math.exp(-8) * (1 - 1e-5 - 0.01))


def test_the_best_attack_reaches_the_bound() -> None:
    mechanism = Mechanism(2.0, 1.0, 5)
    mu = math.sqrt(5) / 2
    draws = np.random.default_rng(1).normal(size=400_000)
    threshold = np.quantile(draws, 0.99)
    risk = operational_risk(guarantee(epsilon([mechanism], 1e-5)), [mechanism])
    assert np.mean(draws + mu > threshold) == pytest.approx(risk.true_positive_rate, abs=0.01)
    assert np.mean(draws + mu > mu / 2) - np.mean(draws > mu / 2) == pytest.approx(risk.advantage, abs=0.01)


@given(st.floats(0.01, 20), st.floats(1e-10, 1e-2))
def test_mechanisms_are_never_riskier_than_their_guarantee(eps: float, delta: float) -> None:
    mechanism = calibrate(guarantee(eps, delta), steps=10)
    known, allowed = (
        operational_risk(guarantee(eps, delta), [mechanism]),
        operational_risk(guarantee(eps, delta)),
    )
    assert 0 < known.advantage <= allowed.advantage * (1 + 1e-9)
    assert 0.01 < known.true_positive_rate <= allowed.true_positive_rate * (1 + 1e-9)
    assert allowed.true_positive_rate <= 1
    assert allowed.advantage <= 1


@pytest.mark.parametrize("mechanism", [Mechanism(3.4, 1.0, 300, 0.05), Mechanism(0.9, 1.0, 100, 0.1)])
def test_sampled_mechanisms_by_their_privacy_curve(mechanism: Mechanism) -> None:
    risk = operational_risk(guarantee(epsilon([mechanism], 1e-5)), [mechanism])
    curve = [(e, delta_at([mechanism], e)) for e in np.linspace(0, 12, 2000)]
    grid = min(min(math.exp(e) * 0.01 + d, 1 - math.exp(-e) * (0.99 - d)) for e, d in curve)
    assert risk.true_positive_rate == pytest.approx(grid, rel=2e-3)
    assert risk.true_positive_rate <= grid
    assert risk.advantage == pytest.approx(delta_at([mechanism], 0.0), rel=1e-9)


@settings(max_examples=20, deadline=None)
@given(st.floats(0.5, 100), st.integers(1, 50))
def test_curve_search_agrees_with_the_closed_form(noise: float, steps: int) -> None:
    plain = Mechanism(noise, 1.0, steps)
    searched = Mechanism(noise, 1.0, steps, epsilon_slack=1e-15)
    eps = max(epsilon([plain], 1e-5), 1e-3)
    exact, bound = operational_risk(guarantee(eps), [plain]), operational_risk(guarantee(eps), [searched])
    assert bound.advantage == pytest.approx(exact.advantage, rel=1e-6)
    assert bound.true_positive_rate == pytest.approx(exact.true_positive_rate, rel=1e-3)
    assert exact.true_positive_rate == pytest.approx(
        stats.norm.cdf(stats.norm.ppf(0.01) + math.sqrt(steps) / noise), rel=1e-9
    )


def test_without_privacy_everything_is_possible() -> None:
    risk = operational_risk(Guarantee(math.inf, 1e-5, "patient", "none"))
    assert (risk.advantage, risk.true_positive_rate) == (1.0, 1.0)
    assert "at most 100 in 100" in str(risk)


def test_words_round_upwards_and_name_the_unit() -> None:
    mechanism = calibrate(Guarantee(1.0, 1e-5, "site", "server"), steps=60)
    risk = operational_risk(Guarantee(1.0, 1e-5, "site", "server"), [mechanism])
    assert "at most 2 in 100" in str(risk)
    assert "55.4 times in 100" in str(risk)
    assert "100 sites" in str(risk)
    assert risk.to_dict()["in_words"] == str(risk)


def test_the_table_in_the_documentation_is_what_is_computed() -> None:
    page = Path(__file__).parents[2] / "docs" / "privacy.md"
    rows = re.findall(r"^\| (\d+) \| ([\d.]+) % \| ([\d.]+) % \|$", page.read_text(), re.MULTILINE)
    assert [row[0] for row in rows] == ["1", "3", "8"]
    for eps, found, right in rows:
        risk = operational_risk(guarantee(float(eps)), [calibrate(guarantee(float(eps)), steps=60)])
        assert f"at most {float(found):g} in 100" in str(risk)
        assert f"at most {float(right):g} times in 100" in str(risk)


def test_a_mixture_has_the_risk_of_its_epsilon_not_of_a_fixed_sequence() -> None:
    """A coordinator may repeat some of its requests, which costs no more epsilon and has another curve."""
    mixed = [Mechanism(20.0, 1.0, 1), Mechanism(8.0, 1.0, 60, 0.25)]
    stated = guarantee(1.0)
    assert operational_risk(stated, mixed) == operational_risk(stated)
    assert operational_risk(stated, mixed[1:]).advantage < operational_risk(stated).advantage
