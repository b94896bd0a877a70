"""What the guarantee allows the best attacker, as a curve and as a hundred dots.

For any test of "took part" against "did not", (epsilon, delta) privacy under adding or removing one unit
bounds the true-positive rate at false-positive rate a by

    min(exp(epsilon) a + delta, 1 - exp(-epsilon) (1 - delta - a))

(Kairouz, Oh and Viswanath 2015, theorem 2.1), for *every* pair (epsilon, delta) that the releases satisfy.
The pairs of a Gaussian mechanism together give Phi(Phi^-1(a) + mu) (Dong, Roth and Su 2022, definition
2.6). `fedveil.privacy.operational_risk` gives the same bounds at the one rate that is quoted in the text.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedveil.lazy import later
from fedveil.privacy import Guarantee, Mechanism, Risk, delta_at, gdp_mu, is_mixture
from fedveil.report import formatting
from fedveil.report.figures.charts import Chart, diagonal, unit_square
from fedveil.report.figures.drawing import PAGE, canvas, inline_svg, plain_axes, style
from fedveil.report.formatting import PERCENT

__all__ = ["Icons", "attack_chart", "attack_curve", "icon_array"]

special = later("scipy.special")

Floats = NDArray[np.float64]
PROFILE_POINTS = 25
"""Number of pairs (epsilon, delta) that bound a curve without closed form; fewer are valid too, but looser."""


def attack_curve(rates: Floats, guarantee: Guarantee, mechanisms: Sequence[Mechanism]) -> Floats:
    """The largest true-positive rate of any attack at each false-positive rate, both in [0, 1].

    Of a mixture of which some releases sample, no curve holds for requests in any order: epsilon and delta alone do.
    """
    released = [mechanism.for_unit(guarantee.unit) for mechanism in mechanisms]
    mu = gdp_mu(released)
    if mu is not None:
        exact: Floats = special.ndtr(np.where(rates > 0, special.ndtri(rates) + mu, -np.inf))
        return exact
    if is_mixture(released):
        return _bound(rates, guarantee.epsilon, guarantee.delta)
    epsilons = np.linspace(0, 2 * guarantee.epsilon, PROFILE_POINTS).tolist()
    bounds = np.stack([_bound(rates, e, delta_at(released, e)) for e in epsilons])
    least: Floats = bounds.min(axis=0)
    return least


def _bound(rates: Floats, epsilon: float, delta: float) -> Floats:
    low = math.exp(min(epsilon, 700.0)) * rates + delta
    high = 1 - math.exp(-epsilon) * (1 - delta - rates)
    return np.minimum(np.minimum(low, high), 1.0)


def attack_chart(guarantee: Guarantee, mechanisms: Sequence[Mechanism], risk: Risk) -> Chart:
    """The best attack's ROC curve, with the point that `risk` quotes marked on it."""
    rates = np.concatenate([np.linspace(0, 0.02, 41), np.linspace(0.02, 1, 141)[1:]])
    curve = attack_curve(rates, guarantee, mechanisms)
    marked, allowed = risk.true_positive_rate, risk.false_positive_rate
    found, wrong = formatting.percent(marked, bound=True), f"{100 * allowed:g}{PERCENT}"
    with style():
        drawing = canvas()
        axes = drawing.add_subplot()
        plain_axes(
            axes,
            PAGE,
            x="Outsiders wrongly named (false-positive rate)",
            y="Participants found (true-positive rate)",
        )
        unit_square(axes)
        axes.fill_between(rates, rates, curve, color=PAGE.series[1], alpha=0.14, linewidth=0)
        diagonal(axes, PAGE)
        axes.plot(rates, curve, color=PAGE.series[1])
        axes.plot([allowed], [marked], "o", markersize=7, color=PAGE.series[1], markeredgecolor=PAGE.ink)
        axes.annotate(
            f"{found} found at {wrong} wrongly named",
            (allowed, marked),
            xytext=(0.16, 0.035 if marked < 0.3 else 0.12),
            color=PAGE.ink,
            va="center",
            arrowprops={"arrowstyle": "-", "color": PAGE.muted, "linewidth": 0.8, "shrinkB": 5},
        )
        svg = inline_svg(drawing, "risk")
    alt = (
        f"The best attack that the guarantee allows, as a ROC curve: where {wrong} of outsiders are wrongly "
        f"named, at most {found} of participants are found. Guessing finds {wrong}."
    )
    caption = (
        "No attack on the releases can be above the line; the dotted diagonal is random guessing, the shaded "
        "band is the most that the releases can add to it."
    )
    return Chart("risk", "The best attack that the guarantee allows", svg, alt, caption)


@dataclass(frozen=True, slots=True)
class Icons:
    """A hundred participants, each "guess" (found by guessing), "added" (by the release) or "hidden"."""

    states: tuple[str, ...]
    added: int
    alt: str
    caption: str


def icon_array(risk: Risk) -> Icons:
    """Of a hundred participants, how many an attacker finds who wrongly names one in a hundred outsiders."""
    guessed = round(100 * risk.false_positive_rate)
    found = min(100, max(guessed, math.ceil(round(100 * risk.true_positive_rate, 6))))
    states = ("guess",) * guessed + ("added",) * (found - guessed) + ("hidden",) * (100 - found)
    caption = (
        f"The largest number of participants that an attacker finds who may wrongly name {guessed} in "
        "100 non-participants. Numbers are rounded up to whole people."
    )
    alt = (
        f"Of 100 participants the attacker finds at most {found}: {guessed} by guessing and "
        f"{found - guessed} because of the release. {100 - found} stay hidden."
    )
    return Icons(states, found - guessed, alt, caption)
