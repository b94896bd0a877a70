"""What an audit of an unknown mechanism finds, what it must not find, and what it refuses."""

import numpy as np
import pytest

from fedveil.audit.claims import EpsilonClaim, MechanismClaim
from fedveil.audit.mechanisms.neighbours import Neighbours, default_neighbours
from fedveil.audit.mechanisms.search import audit_mechanism
from fedveil.errors import InvalidValue
from fedveil.privacy import Mechanism

NEVER = 1 - 1e-6
"""Confidence at which a sound mechanism is called unsound once in a million runs of these tests."""
GAUSSIAN = MechanismClaim((Mechanism(1.0, 1.0, steps=1),), 1e-5)
rng = np.random.default_rng()


def clipped(vectors):
    return [v * min(1.0, 1 / max(np.linalg.norm(v), 1e-300)) for v in vectors]


def gaussian(vectors, std=1.0):
    return np.sum(clipped(vectors), axis=0) + rng.normal(0, std, 8)


def laplace(vectors):
    return {"patients": len(vectors) + rng.laplace(0, 1)}


def without_clipping(vectors):
    return np.sum(vectors, axis=0) + rng.normal(0, 1, 8)


def divided_by_a_private_count(vectors):
    return (np.sum(clipped(vectors), axis=0) + rng.normal(0, 1, 8)) / len(vectors)


def one_number_of_many_is_exact(vectors):
    noisy = rng.normal(0, 1, 300)
    noisy[170] = len(vectors)
    return noisy


def the_same_noise_twice(vectors):
    noise = rng.normal(0, 1, 8)
    return [np.sum(clipped(vectors), axis=0) + noise, noise]


def noise_that_depends_on_the_data(vectors):
    return rng.normal(0, len(vectors), 8)


def nothing_but_noise(vectors):
    return rng.normal(0, 1, 4)


@pytest.mark.parametrize(
    ("mechanism", "claim"), [(gaussian, GAUSSIAN), (laplace, (1.0, 0.0)), (nothing_but_noise, (0.0, 0.0))]
)
def test_a_sound_mechanism_is_not_refuted(mechanism, claim) -> None:
    found = audit_mechanism(mechanism, claim, runs=500, confidence=NEVER)
    assert not found.violated, str(found)
    assert "proves nothing" in str(found)


@pytest.mark.parametrize(
    "mechanism",
    [
        without_clipping,
        divided_by_a_private_count,
        one_number_of_many_is_exact,
        the_same_noise_twice,
        noise_that_depends_on_the_data,
    ],
)
def test_an_unsound_mechanism_is_refuted_by_default_inputs(mechanism) -> None:
    found = audit_mechanism(mechanism, (1.0, 1e-5), runs=800)
    assert found.violated, str(found)
    assert found.epsilon > 1


def test_half_the_noise_is_found_against_the_whole_curve_of_a_gaussian() -> None:
    assert audit_mechanism(lambda v: gaussian(v, 0.5), GAUSSIAN, runs=1500).violated


def test_a_bound_comes_near_the_epsilon_that_is_there() -> None:
    found = audit_mechanism(laplace, (1.0, 0.0), runs=6000)
    assert 0.6 < found.epsilon < 1.2


def test_what_judges_had_no_part_in_choosing() -> None:
    """With outputs that chose the test judging it too, most of these would be false alarms."""
    pairs = default_neighbours(4)[:1]
    found = [audit_mechanism(nothing_but_noise, (0.0, 0.0), neighbours=pairs, runs=200) for _ in range(12)]
    assert sum(one.violated for one in found) < 4  # more than that once in 400 000 times, at 1 % each


def test_a_mechanism_without_noise_is_refuted_and_called_constant() -> None:
    found = audit_mechanism(lambda v: len(v), (1.0, 1e-5), runs=200)
    assert found.violated
    assert found.constant
    assert "no noise" in str(found)


def test_inputs_of_ones_own_need_not_be_vectors() -> None:
    pairs = [Neighbours("a row more", {"rows": [1]}, {"rows": [1, 2]})]
    found = audit_mechanism(
        lambda s: sum(s["rows"]) + rng.normal(0, 0.1), (1.0, 1e-5), neighbours=pairs, runs=200
    )
    assert found.violated
    assert found.to_dict()["neighbours"] == "a row more"


def test_a_mechanism_may_change_its_input() -> None:
    def emptied(vectors):
        count = len(vectors)
        vectors.clear()
        return count + rng.laplace(0, 1)

    assert not audit_mechanism(emptied, (1.0, 0.0), runs=200, confidence=NEVER).violated


def failing(vectors):
    raise RuntimeError("no patients")


def of_another_shape(vectors):
    return rng.normal(size=len(vectors))


def sometimes_nan(vectors):
    return [np.nan, 1.0]


@pytest.mark.parametrize(
    ("mechanism", "words"),
    [
        (failing, "RuntimeError: no patients"),
        (of_another_shape, "as many in every run"),
        (sometimes_nan, "all finite"),
        (lambda v: 1.0, "depends on nothing"),
        (lambda v: None, "must be numbers"),
        (lambda v: [], "at least one number"),
    ],
)
def test_what_cannot_be_audited_is_refused(mechanism, words) -> None:
    with pytest.raises(InvalidValue, match=words):
        audit_mechanism(mechanism, (1.0, 1e-5), runs=200)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"claim": (float("inf"), 1e-5)}, "nothing to refute"),
        ({"claim": (1.0, 1.0)}, "claimed delta"),
        ({"runs": 10}, "at least 200"),
        ({"confidence": 1.0}, "confidence"),
        ({"seconds": 1e-9}, "seconds"),
        ({"neighbours": []}, "at least one pair"),
        ({"dimension": 0}, "dimension"),
        ({"bound": -1.0}, "bound"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes, words) -> None:
    with pytest.raises(InvalidValue, match=words):
        audit_mechanism(gaussian, **{"claim": (1.0, 1e-5), **changes})


def test_default_inputs_differ_by_one_vector() -> None:
    for pair in default_neighbours(5, bound=2.0):
        assert len(pair.second) == len(pair.first) + 1
        assert all(np.array_equal(a, b) for a, b in zip(pair.first, pair.second, strict=False))


def test_a_claim_of_nothing_is_refuted_by_any_difference() -> None:
    found = audit_mechanism(laplace, EpsilonClaim(0.0, 0.0), runs=4000)
    assert found.violated
