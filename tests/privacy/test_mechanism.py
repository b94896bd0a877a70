"""A mechanism is valid, priced by what it says, and protects the unit that it names."""

import math

import dp_accounting
import pytest
from dp_accounting.pld import PLDAccountant, privacy_loss_distribution
from hypothesis import given
from hypothesis import strategies as st

from fedveil.errors import InvalidValue
from fedveil.privacy import Guarantee, Mechanism, epsilon


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"sampling_rate": 1.4}, "sampling_rate is 1.4; it must be in (0, 1]"),
        ({"sampling_rate": 0.0}, "sampling_rate is 0.0"),
        ({"noise_multiplier": -0.1}, "noise_multiplier is -0.1"),
        ({"noise_multiplier": math.inf}, "noise_multiplier is inf"),
        ({"noise_multiplier": None}, "noise_multiplier is None"),
        ({"clip_norm": 0.0}, "clip_norm is 0.0"),
        ({"clip_norm": math.nan}, "clip_norm is nan"),
        ({"steps": 0}, "steps is 0"),
        ({"steps": 2.5}, "steps is 2.5"),
        ({"steps": math.inf}, "steps is inf"),
        ({"unit": "scan"}, "unit is 'scan'"),
        ({"epsilon_slack": -1e-9}, "epsilon_slack is -1e-09"),
        ({"delta_slack": 1.5}, "delta_slack is 1.5"),
    ],
)
def test_what_cannot_be_is_refused(change: dict[str, object], found: str) -> None:
    values: dict[str, object] = {"noise_multiplier": 1.0, "clip_norm": 1.0, "steps": 1}
    with pytest.raises(InvalidValue) as refusal:
        Mechanism(**(values | change))  # type: ignore[arg-type]
    assert str(refusal.value).startswith(found)


mechanisms = st.builds(
    Mechanism,
    noise_multiplier=st.floats(0, 1e6),
    clip_norm=st.floats(1e-6, 1e6),
    steps=st.integers(1, 10**6),
    sampling_rate=st.floats(1e-9, 1),
    unit=st.sampled_from(["patient", "image", "site"]),
    epsilon_slack=st.floats(0, 1),
    delta_slack=st.floats(0, 1),
)


@given(mechanisms)
def test_dict_and_back(mechanism: Mechanism) -> None:
    assert Mechanism.from_dict(mechanism.to_dict()) == mechanism


def test_unknown_kinds_and_fields_are_refused() -> None:
    values = Mechanism(1.0, 1.0, 1).to_dict()
    with pytest.raises(InvalidValue, match="kind of mechanism is 'laplace'"):
        Mechanism.from_dict(values | {"kind": "laplace"})
    with pytest.raises(InvalidValue, match="a mechanism was given as"):
        Mechanism.from_dict(values | {"colour": 1})


def test_event_is_what_the_accountants_know() -> None:
    gaussian = dp_accounting.GaussianDpEvent(2.0)
    assert Mechanism(2.0, 5.0, 7).event() == dp_accounting.SelfComposedDpEvent(gaussian, 7)
    sampled = dp_accounting.PoissonSampledDpEvent(0.1, gaussian)
    assert Mechanism(2.0, 5.0, 7, 0.1).event() == dp_accounting.SelfComposedDpEvent(sampled, 7)
    reference = PLDAccountant().compose(Mechanism(2.0, 5.0, 7).event()).get_epsilon(1e-5)
    assert epsilon([Mechanism(2.0, 5.0, 7)], 1e-5) == pytest.approx(reference, rel=1e-4)


def test_states_its_own_guarantee() -> None:
    mechanism = Mechanism(5.0, 1.0, 3, unit="site")
    guarantee = mechanism.guarantee(1e-4, "server")
    assert guarantee == Guarantee(epsilon([mechanism], 1e-4), 1e-4, "site", "server")
    assert mechanism.guarantee(1e-4, "none").epsilon == math.inf
    assert 0 < Mechanism(1e9, 1.0, 1).guarantee(1e-4, "site").epsilon < 1e-8
    with pytest.raises(InvalidValue, match="epsilon is inf"):
        Mechanism(0.0, 1.0, 1).guarantee(1e-4, "site")


def test_a_coarser_unit_protects_a_finer_one_at_half_the_noise() -> None:
    """One image less changes a patient's contribution by up to twice the clip norm: sensitivity 2, not 1."""
    by_patient = Mechanism(4.0, 1.0, 10)
    by_image = by_patient.for_unit("image")
    assert by_image == Mechanism(2.0, 1.0, 10, unit="image")
    replaced = privacy_loss_distribution.from_gaussian_mechanism(4.0, sensitivity=2.0).self_compose(10)
    assert epsilon([by_image], 1e-5) == pytest.approx(replaced.get_epsilon_for_delta(1e-5), rel=1e-3)
    assert Mechanism(4.0, 1.0, 1, unit="site").for_unit("patient").noise_multiplier == 2.0
    assert by_patient.for_unit("patient") is by_patient


@pytest.mark.parametrize(
    ("unit", "protected"), [("image", "patient"), ("image", "site"), ("patient", "site")]
)
def test_a_finer_unit_does_not_protect_a_coarser_one(unit: str, protected: str) -> None:
    with pytest.raises(InvalidValue, match=f"one {protected} has to be protected"):
        Mechanism(1.0, 1.0, 1, unit=unit).for_unit(protected)  # type: ignore[arg-type]


def test_sampling_by_a_coarser_unit_is_not_priced_for_a_finer_one() -> None:
    with pytest.raises(InvalidValue, match="samples by patient"):
        Mechanism(1.0, 1.0, 1, 0.5).for_unit("image")


def test_with_steps_changes_nothing_else() -> None:
    assert Mechanism(1.5, 2.0, 60, 0.3, "site").with_steps(4) == Mechanism(1.5, 2.0, 4, 0.3, "site")
