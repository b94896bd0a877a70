"""Formatting of numbers: sensible digits, units, and never a privacy figure better than the exact value.

A bound that protects people (epsilon, delta, an attacker's chances) is rounded *up*; a measurement (AUROC,
seconds) is rounded to the nearest digit; an undefined value (NaN) is a dash.
"""

import math
from datetime import datetime
from decimal import ROUND_CEILING, Decimal

__all__ = [
    "PERCENT",
    "at_most",
    "chance",
    "count",
    "delta",
    "duration",
    "factor",
    "interval",
    "moment",
    "percent",
    "plain",
    "score",
]

UNDEFINED = "—"
INFINITE = "∞"
NARROW_SPACE = "\N{NARROW NO-BREAK SPACE}"
PERCENT = NARROW_SPACE + "%"
"""The sign with its space: a number is never separated from its unit by a line break."""
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def at_most(value: float, digits: int = 4) -> str:
    """A bound with `digits` significant digits, rounded up from the decimal that the float prints as.

    >>> at_most(0.9999), at_most(0.99991), at_most(2.6), at_most(12.34561), at_most(float("inf"))
    ('0.9999', '1', '2.6', '12.35', '∞')
    """
    if math.isnan(value):
        return UNDEFINED
    if math.isinf(value):
        return INFINITE
    return _plain(_ceiling(value, digits))


def _ceiling(value: float, digits: int) -> Decimal:
    exact = Decimal(repr(float(value)))
    if not exact:
        return Decimal(0)
    return exact.quantize(Decimal(1).scaleb(exact.adjusted() - digits + 1), rounding=ROUND_CEILING)


def _plain(value: Decimal) -> str:
    """Without exponent and trailing zeros; thousands are separated."""
    text = f"{value:,f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def delta(value: float) -> str:
    """A probability, or a huge ratio, as a power of ten, two significant digits, rounded up.

    >>> delta(1e-5), delta(3.51e-6), delta(9.99e-6), delta(0.0)
    ('10⁻⁵', '3.6 × 10⁻⁶', '10⁻⁵', '0')
    """
    if math.isnan(value):
        return UNDEFINED
    rounded = _ceiling(value, 2)
    if not rounded:
        return "0"
    exponent = rounded.adjusted()
    power = "10" + str(exponent).translate(_SUPERSCRIPTS)
    mantissa = _plain(rounded.scaleb(-exponent))
    return power if mantissa == "1" else f"{mantissa} × {power}"


def chance(value: float) -> str:
    """A small probability as "1 in N", N rounded down so that the probability is never understated.

    >>> chance(1e-5), chance(1.5e-5), chance(0.0)
    ('1 in 100,000', '1 in 66,666', '0')
    """
    if math.isnan(value):
        return UNDEFINED
    if value <= 0:
        return "0"
    return f"1 in {int(1 / Decimal(repr(float(value)))):,}"


def factor(epsilon: float) -> str:
    """The largest ratio of probabilities, exp(epsilon), rounded up.

    >>> factor(1.0), factor(0.9999), factor(50.0), factor(1000.0)
    ('2.72', '2.72', '5.2 × 10²¹', '∞')
    """
    if epsilon > 600:
        return INFINITE
    ratio = math.exp(epsilon)
    return at_most(ratio, 3) if ratio < 1e6 else delta(ratio)


def percent(value: float, *, bound: bool = False) -> str:
    """A fraction as a percentage with one decimal; a `bound` is rounded up.

    >>> percent(0.8123).replace(NARROW_SPACE, " "), percent(0.02011, bound=True).replace(NARROW_SPACE, " ")
    ('81.2 %', '2.1 %')
    """
    if math.isnan(value):
        return UNDEFINED
    tenths = math.ceil(round(value * 1000, 9)) if bound else round(value * 1000)
    return f"{tenths / 10:.1f}{PERCENT}"


def score(value: float) -> str:
    """A metric in [0, 1] with three decimals.

    >>> score(0.95249), score(float("nan"))
    ('0.952', '—')
    """
    return UNDEFINED if math.isnan(value) else f"{value:.3f}"


def interval(bounds: tuple[float, float], *, as_percent: bool = False) -> str:
    """A 95 % interval, "lo–hi"; empty if undefined.

    >>> interval((0.9, 0.95))
    '0.900–0.950'
    """
    low, high = bounds
    if math.isnan(low) or math.isnan(high):
        return ""
    if as_percent:
        return f"{percent(low).removesuffix(PERCENT)}–{percent(high)}"
    return f"{score(low)}–{score(high)}"


def plain(value: float, digits: int = 4) -> str:
    """A setting or a measurement with `digits` significant digits, to the nearest.

    >>> plain(28.5), plain(1.0), plain(0.123456), plain(123456.0)
    ('28.5', '1', '0.1235', '123,456')
    """
    if math.isnan(value):
        return UNDEFINED
    if math.isinf(value):
        return INFINITE
    if abs(value) >= 10**digits:
        return f"{value:,.0f}"
    return _plain(Decimal(f"{value:.{digits}g}"))


def count(value: int) -> str:
    """A whole number with thousands separators.

    >>> count(5840)
    '5,840'
    """
    return f"{value:,}"


def duration(seconds: float) -> str:
    """A time span in its two largest units.

    >>> [duration(value).replace(NARROW_SPACE, " ") for value in (0.0123, 14.22, 125, 3720)]
    ['0.012 s', '14.2 s', '2 min 5 s', '1 h 2 min']
    """
    if math.isnan(seconds):
        return UNDEFINED
    if seconds < 60:
        return f"{plain(seconds, 3 if seconds >= 10 else 2)}{NARROW_SPACE}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}{NARROW_SPACE}min {rest}{NARROW_SPACE}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}{NARROW_SPACE}h {minutes}{NARROW_SPACE}min"


def moment(text: str) -> str:
    """An ISO 8601 time in a readable form, to the minute; anything else unchanged.

    >>> moment("2026-11-23T20:14:17+00:00"), moment("yesterday")
    ('23 November 2026, 20:14 UTC', 'yesterday')
    """
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        return text
    zone = when.tzname() or ""
    return f"{when.day} {when:%B %Y, %H:%M} {zone}".rstrip()
