import math
from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from fedveil.report import formatting

POSITIVE = st.floats(1e-9, 1e9)
SUPERSCRIPTS = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")


def exact(value: float) -> Fraction:
    """The decimal that a float prints as, exactly."""
    return Fraction(repr(value))


def read(printed: str) -> Fraction:
    """A printed number, plain or as a power of ten."""
    mantissa, _, power = printed.replace(",", "").rpartition(" × ")
    digits = power.removeprefix("10").translate(SUPERSCRIPTS)
    if set(power) & set("⁻⁰¹²³⁴⁵⁶⁷⁸⁹"):
        return Fraction(mantissa or 1) * Fraction(10) ** int(digits)
    return Fraction(power)


@given(POSITIVE, st.integers(1, 6))
def test_a_bound_is_never_printed_below_the_truth(value: float, digits: int) -> None:
    printed = Fraction(formatting.at_most(value, digits).replace(",", ""))
    assert exact(value) <= printed < exact(value) * (1 + 10 * Fraction(1, 10**digits))


def test_an_epsilon_just_below_its_target_does_not_gain_digits() -> None:
    assert formatting.at_most(0.9999) == "0.9999"
    assert formatting.at_most(0.99990001) == "1"
    assert formatting.at_most(0.0) == "0"


@given(st.floats(1e-30, 0.9))
def test_delta_is_never_printed_below_the_truth(value: float) -> None:
    assert exact(value) <= read(formatting.delta(value)) <= exact(value) * Fraction(12, 10)


@given(st.floats(1e-12, 1.0))
def test_one_in_n_never_understates_a_chance(value: float) -> None:
    assert Fraction(1, int(formatting.chance(value).removeprefix("1 in ").replace(",", ""))) >= exact(value)


@given(st.floats(0, 50))
def test_the_factor_is_never_printed_below_exp_epsilon(epsilon: float) -> None:
    assert read(formatting.factor(epsilon)) >= exact(math.exp(epsilon))


@given(st.floats(0, 1))
def test_a_percentage_bound_is_rounded_up_and_a_measurement_to_the_nearest(share: float) -> None:
    bound = float(formatting.percent(share, bound=True).removesuffix(formatting.PERCENT))
    nearest = float(formatting.percent(share).removesuffix(formatting.PERCENT))
    assert 100 * share - 1e-6 <= bound <= 100 * share + 0.1 + 1e-6
    assert abs(nearest - 100 * share) <= 0.05 + 1e-6


def test_what_is_not_defined_is_a_dash() -> None:
    nan = math.nan
    texts = [f(nan) for f in (formatting.at_most, formatting.delta, formatting.chance, formatting.percent)]
    texts += [formatting.score(nan), formatting.plain(nan), formatting.duration(nan)]
    assert texts == [formatting.UNDEFINED] * 7
    assert formatting.interval((nan, 0.5)) == ""


def test_infinity_is_a_sign_and_not_an_error() -> None:
    assert formatting.at_most(math.inf) == formatting.factor(math.inf) == formatting.plain(math.inf) == "∞"
