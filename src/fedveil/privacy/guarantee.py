"""Guarantees: epsilon and delta always together with unit, adjacency and trust."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

from fedveil.errors import InvalidValue

__all__ = ["Adjacency", "Guarantee", "Trust", "Unit", "check_choice", "check_delta", "check_number"]

Unit = Literal["patient", "image", "site"]
Trust = Literal["site", "secure-aggregation", "server", "none"]
Adjacency = Literal["add-or-remove-one"]

_PROTECTED: dict[str, str] = {
    "patient": "any one patient with all of their images",
    "image": "any one image (not a patient with several)",
    "site": "any one hospital with all of its patients",
}
_AGAINST: dict[str, str] = {
    "site": "it holds against everyone outside the hospital, the server and the other hospitals included",
    "secure-aggregation": (
        "it holds against the server and the other hospitals, who see only sums over hospitals, "
        "as long as they do not share their knowledge"
    ),
    "server": "it holds against everyone who sees the model, but not against the server, which is trusted",
}


@dataclass(frozen=True, slots=True)
class Guarantee:
    """(epsilon, delta)-differential privacy, with everything that defines the meaning of the two numbers.

    For every two data sets D, D' that differ by adding or removing one ``unit``, and every set S of
    outcomes that are visible to parties whom ``trust`` does not cover,
    P[M(D) in S] <= exp(epsilon) P[M(D') in S] + delta (Dwork et al. 2006).

    >>> guarantee = Guarantee(1.0, 1e-5, "patient", "site")
    >>> print(guarantee)
    Adding or removing any one patient with all of their images makes no outcome more than 2.72 times as \
likely (epsilon 1), give or take a probability of 1 in 100,000 (delta 1e-05); it holds against everyone \
outside the hospital, the server and the other hospitals included.

    Raises InvalidValue if a number is out of range, or if only one of an infinite epsilon and the trust "none" is
    given.
    """

    epsilon: float
    delta: float
    unit: Unit
    trust: Trust
    adjacency: Adjacency = "add-or-remove-one"

    def __post_init__(self) -> None:
        check_choice("unit", self.unit, get_args(Unit))
        check_choice("trust", self.trust, get_args(Trust))
        check_choice("adjacency", self.adjacency, get_args(Adjacency))
        epsilon = check_number("epsilon", self.epsilon)
        object.__setattr__(self, "epsilon", epsilon)
        object.__setattr__(self, "delta", check_delta(self.delta))
        if not epsilon > 0:
            raise InvalidValue(
                f"epsilon is {epsilon:g}",
                "it must be greater than 0",
                "1 is strong protection, 3 to 8 are weaker",
            )
        if math.isinf(epsilon) != (self.trust == "none"):
            raise InvalidValue(
                f'epsilon is {epsilon:g} with trust "{self.trust}"',
                'epsilon must be infinite if and only if trust is "none"',
                'give a finite epsilon, or set trust "none" for a baseline without privacy',
            )

    def __str__(self) -> str:
        protected = _PROTECTED[self.unit]
        if self.trust == "none":
            return (
                f"No privacy: what leaves the hospital may reveal {protected}; it serves only as a baseline."
            )
        return (
            f"Adding or removing {protected} makes no outcome more than {_factor(self.epsilon)} times "
            f"as likely (epsilon {self.epsilon:.4g}), give or take a probability of 1 in "
            f"{1 / self.delta:,.0f} (delta {self.delta:.4g}); {_AGAINST[self.trust]}."
        )

    def to_dict(self) -> dict[str, Any]:
        """The guarantee as plain numbers and strings, for JSON."""
        return {
            "epsilon": self.epsilon,
            "delta": self.delta,
            "unit": self.unit,
            "adjacency": self.adjacency,
            "trust": self.trust,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`; raises InvalidValue on anything else."""
        try:
            return cls(**values)
        except TypeError as error:
            raise InvalidValue(
                f"a guarantee was given as {dict(values)}",
                "it must have epsilon, delta, unit, adjacency and trust",
                "give exactly these",
            ) from error


def check_delta(delta: float, units: int | None = None) -> float:
    """Return `delta`, or raise InvalidValue unless 0 < delta < 1 and delta <= 1/units.

    With delta above 1/units a mechanism that publishes one random unit completely would be allowed.
    """
    delta = check_number("delta", delta)
    if not 0 < delta < 1:
        raise InvalidValue(
            f"delta is {delta:g}", "it must lie in (0, 1)", "give at most 1 over the number of units"
        )
    if units is None:
        return delta
    if units < 1:
        raise InvalidValue(f"there are {units} units", "there must be at least one", "check the cohort")
    if delta > 1 / units:
        raise InvalidValue(
            f"delta is {delta:g} for {units} units",
            f"above 1/{units} = {1 / units:.2g} it would allow publishing one unit's data outright",
            f"give a delta of {10.0 ** -math.ceil(math.log10(units)):.0e} or less",
        )
    return delta


def check_number(name: str, value: object) -> float:
    """Return `value` as a float (infinity allowed), or raise InvalidValue if it is not a number."""
    try:
        number = math.nan if isinstance(value, bool | str | bytes) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if math.isnan(number):
        raise InvalidValue(f"{name} is {value!r}", "it must be a number", "give a number")
    return number


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise InvalidValue unless `value` is one of `choices`."""
    if value not in choices:
        known = ", ".join(f'"{choice}"' for choice in choices)
        raise InvalidValue(f"{name} is {value!r}", f"it must be one of {known}", "choose one of these")


def _factor(epsilon: float) -> str:
    return f"{math.exp(epsilon):,.2f}" if epsilon < 6 else f"{math.exp(min(epsilon, 700)):,.3g}"
