"""A guarantee is whole, valid, and readable."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedveil.errors import InvalidValue
from fedveil.privacy import Guarantee, check_delta

TRUSTS = ["site", "secure-aggregation", "server"]


@pytest.mark.parametrize("unit", ["patient", "image", "site"])
@pytest.mark.parametrize("trust", TRUSTS)
def test_prints_as_one_plain_sentence_that_names_everything(unit: str, trust: str) -> None:
    text = str(Guarantee(1.0, 1e-5, unit, trust))  # type: ignore[arg-type]
    assert text.endswith(".")
    assert ". " not in text
    assert "epsilon 1)" in text
    assert "delta 1e-05" in text
    assert "2.72 times" in text
    assert "1 in 100,000" in text
    assert {"patient": "one patient", "image": "one image", "site": "one hospital"}[unit] in text
    assert {
        "site": "everyone outside",
        "secure-aggregation": "share their knowledge",
        "server": "not against the server",
    }[trust] in text


def test_a_baseline_says_that_it_protects_nobody() -> None:
    assert str(Guarantee(math.inf, 1e-5, "patient", "none")).startswith("No privacy")


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"epsilon": 0.0}, "epsilon is 0"),
        ({"epsilon": -1.0}, "epsilon is -1"),
        ({"epsilon": math.nan}, "epsilon is nan"),
        ({"epsilon": "1"}, "epsilon is '1'"),
        ({"epsilon": True}, "epsilon is True"),
        ({"epsilon": math.inf}, 'epsilon is inf with trust "site"'),
        ({"trust": "none"}, 'epsilon is 1 with trust "none"'),
        ({"delta": 0.0}, "delta is 0"),
        ({"delta": 1.0}, "delta is 1"),
        ({"unit": "person"}, "unit is 'person'"),
        ({"trust": "nobody"}, "trust is 'nobody'"),
        ({"adjacency": "replace-one"}, "adjacency is 'replace-one'"),
    ],
)
def test_what_means_nothing_is_refused(change: dict[str, object], found: str) -> None:
    values: dict[str, object] = {"epsilon": 1.0, "delta": 1e-5, "unit": "patient", "trust": "site"}
    with pytest.raises(InvalidValue) as refusal:
        Guarantee(**(values | change))  # type: ignore[arg-type]
    assert str(refusal.value).startswith(found)


@given(st.floats(1e-9, 1e6), st.floats(1e-300, 1.0, exclude_max=True))
def test_dict_and_back(epsilon: float, delta: float) -> None:
    guarantee = Guarantee(epsilon, delta, "site", "server")
    assert Guarantee.from_dict(guarantee.to_dict()) == guarantee
    assert str(guarantee)


def test_unknown_fields_are_refused() -> None:
    with pytest.raises(InvalidValue, match="a guarantee was given as"):
        Guarantee.from_dict({"epsilon": 1.0})


def test_delta_must_be_small() -> None:
    assert check_delta(1e-5, 100_000) == 1e-5
    with pytest.raises(InvalidValue, match="delta is 1e-05 for 100001 units"):
        check_delta(1e-5, 100_001)
    with pytest.raises(InvalidValue, match="give a delta of 1e-03 or less"):
        check_delta(0.5, 200)
    with pytest.raises(InvalidValue, match="there are 0 units"):
        check_delta(1e-5, 0)


@given(st.integers(1, 10**9), st.floats(1e-12, 0.99))
def test_no_accepted_delta_lets_one_unit_be_published(units: int, delta: float) -> None:
    try:
        accepted = check_delta(delta, units)
    except InvalidValue:
        assert delta > 1 / units
    else:
        assert accepted * units <= 1 + 1e-12
