"""Which setting to choose, and what it would give: predicted from cohort sizes before anything is spent.

Accuracy is predicted by a `Reference` for each method; noise is calibrated as in a run. Of what a consortium would
accept, the planner prefers to protect most, then to trust others least, as long as that costs little accuracy.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from scipy.optimize import brentq

from fedveil.errors import InvalidValue
from fedveil.privacy import Mechanism, check_delta
from fedveil.study.grid import Method
from fedveil.study.reference import Reference
from fedveil.study.toml import toml_value
from fedveil.study.wishes import Way, Wishes

__all__ = ["Candidate", "Change", "Recommendation", "recommend"]

NEAR = 0.01
"""More protection and less trust are preferred if they lose no more AUROC than this together."""
NOTICEABLE = 0.003
"""A smaller gain of AUROC is not worth a change."""
SMALLEST_EPSILON = 1e-3

Laws = Mapping[Method, Reference]


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One way at the epsilon that it needs, or at the limit if the target is out of reach."""

    way: Way
    epsilon: float
    ratio: float
    auroc: float
    interval: tuple[float, float]
    reaches: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Something that would help, and the AUROC that it would give."""

    what: str
    auroc: float
    gain: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Recommendation:
    """What to do.

    Attributes:
        wishes: what was asked for.
        reference: the law that the chosen way's accuracy was predicted by.
        candidates: every way that would be accepted.
        chosen: the recommended one, or the best of those that fall short.
        no: why the answer is no; empty if it is yes.
        mechanism: the noise of the sums that the model is made from.
        site_noise: standard deviation of the noise that one hospital adds to such a sum.
        bare: the AUROC expected without privacy.
        changes: what would help, cheapest first.
        advice: the cheapest change that helps at least half as much as the best; None if none is noticeable.
    """

    wishes: Wishes
    reference: Reference
    candidates: tuple[Candidate, ...]
    chosen: Candidate
    no: str
    mechanism: Mechanism
    site_noise: float
    bare: float
    changes: tuple[Change, ...]
    advice: Change | None

    @property
    def note(self) -> str:
        """How far the prediction reaches."""
        law, ratio = self.reference, self.chosen.ratio
        beyond = (
            ""
            if law.covers(self.wishes.patients, ratio)
            else " This setting lies beyond what that was fitted on, so take it as a rough guess."
        )
        return (
            f"predicted from {law.runs} runs on {law.name}; images and classes that are harder or easier than those "
            f"give other numbers.{beyond}"
        )

    def study_lines(self) -> str:
        """The lines of a study file that choose this setting."""
        tables = self.wishes.settings(self.chosen.way, self.chosen.epsilon)
        return "\n".join(
            line
            for table, keys in tables.items()
            for line in (f"[{table}]", *(f"{key} = {toml_value(value)}" for key, value in keys.items()))
        )

    def explain(self) -> list[str]:
        """The arithmetic, line by line."""
        wishes, one, way = self.wishes, self.chosen, self.chosen.way
        mu, n = wishes.mu(way, one.epsilon), len(wishes.cohorts)
        left = 1 - sum(wishes.shares(way))
        factors = {
            "site": f"sqrt({n})",
            "secure-aggregation": f"sqrt({n} / {wishes.honest})",
            "server": "1",
        }
        units, factor = wishes.count(way.unit), wishes.factor(way.trust)
        return [
            f"epsilon {one.epsilon:.3g} at delta {wishes.study.privacy.delta:g} is a Gaussian mechanism with "
            f"mu = {mu:.4f}",
            f"{way.method} gets {left:.0%} of mu squared: mu = {mu * math.sqrt(left):.4f}; over "
            f"{self.mechanism.steps} round{'s' * (self.mechanism.steps > 1)} that is a noise multiplier of "
            f"{self.mechanism.noise_multiplier:.2f}",
            f"trust {way.trust} enlarges noise by f = {factors[way.trust]} = {factor:.3f}",
            f"nu = N mu / f = {units:,.0f} x {mu * math.sqrt(left):.4f} / {factor:.3f} = {one.ratio:.1f}",
            *self.reference.explain(wishes.patients, one.ratio),
        ]


def recommend(wishes: Wishes, laws: Laws) -> Recommendation:
    """The most protection, then the least trust in others, that meets the wishes; or a no with its reason.

    Where no AUROC is asked for, all of the epsilon is used, and more protection and less trust are preferred as long as
    they cost no more than 0.01 of AUROC. Of the methods the better one is chosen. The answer is no where the target is
    out of reach, or where noise would take more than half of what the images allow above guessing.

    Args:
        wishes: what is there and what would be accepted.
        laws: how accuracy depends on noise, for each method that is known.

    Raises:
        InvalidValue: no accepted method is known, or delta is larger than one over the number of units.
    """
    wishes = _with_known(wishes, laws)
    for unit in wishes.units:
        if unit != "site":
            check_delta(wishes.study.privacy.delta, math.ceil(wishes.count(unit)))
    candidates = tuple(_candidate(wishes, laws[way.method], way) for way in wishes.ways())
    chosen = _choose(wishes, candidates)
    law = laws[chosen.way.method]
    bare = max(laws[method].auroc(wishes.patients, math.inf) for method in wishes.methods)
    changes = _changes(wishes, laws, chosen)
    largest = max((change.gain for change in changes), default=0.0)
    helping = [c for c in changes if c.gain >= max(largest / 2, NOTICEABLE)]
    return Recommendation(
        wishes=wishes,
        reference=law,
        candidates=candidates,
        chosen=chosen,
        no=_no(wishes, law, chosen, bare),
        mechanism=wishes.mechanism(chosen.way, chosen.epsilon),
        site_noise=wishes.site_noise(chosen.way, chosen.epsilon),
        bare=bare,
        changes=changes,
        advice=helping[0] if helping else None,
    )


def _with_known(wishes: Wishes, laws: Laws) -> Wishes:
    """The wishes without methods of which nothing was measured."""
    known = tuple(method for method in wishes.methods if method in laws)
    if not known:
        raise InvalidValue(
            f"method is {', '.join(wishes.methods)}",
            f"accuracy was measured by {', '.join(laws)}",
            "accept that, or fit a sweep of your own",
        )
    return replace(wishes, methods=known)


def _candidate(wishes: Wishes, law: Reference, way: Way) -> Candidate:
    def gives(target: float) -> float:
        return law.auroc(wishes.patients, wishes.ratio(way, target))

    wanted, limit = wishes.auroc, wishes.limit
    reaches = wanted is None or gives(limit) >= wanted
    chosen = limit
    if wanted is not None and reaches:
        low, high = math.log(min(SMALLEST_EPSILON, limit)), math.log(limit)
        if gives(math.exp(low)) >= wanted:
            chosen = math.exp(low)
        else:
            root = brentq(lambda log: gives(math.exp(log)) - wanted, low, high, xtol=1e-4)
            # Upwards to two digits: the target is met, and the number can be typed.
            chosen = min(limit, _upwards(math.exp(root)))
    ratio = wishes.ratio(way, chosen)
    return Candidate(
        way=way,
        epsilon=chosen,
        ratio=ratio,
        auroc=law.auroc(wishes.patients, ratio),
        interval=law.interval(wishes.patients, ratio),
        reaches=reaches,
    )


def _choose(wishes: Wishes, candidates: tuple[Candidate, ...]) -> Candidate:
    """The first unit and trust that will do, by the method that needs the least epsilon or gives the most for it."""
    best = max(candidates, key=lambda c: c.auroc)
    if wishes.auroc is not None:
        good = [c for c in candidates if c.reaches]
    else:
        good = [c for c in candidates if c.auroc >= best.auroc - NEAR]
    if not good:
        return best
    first = good[0].way
    alike = [c for c in good if (c.way.unit, c.way.trust) == (first.unit, first.trust)]
    return min(alike, key=lambda c: (c.epsilon, -c.auroc))


def _upwards(value: float) -> float:
    """The next number with two digits that is not smaller."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return round(math.ceil(value / unit - 1e-9) * unit, 12)


def _no(wishes: Wishes, law: Reference, chosen: Candidate, bare: float) -> str:
    """Why not; empty if nothing speaks against it."""
    if wishes.auroc is not None and not chosen.reaches:
        ceiling = law.auroc(1e12, math.inf)
        if wishes.auroc >= ceiling:
            return (
                f"tasks like {law.name} allow an AUROC of {ceiling:.3f} at most, with any number of patients"
            )
        needed = _patients_needed(wishes, law, chosen)
        more = f"; it would take about {needed:,} patients" if needed else ""
        return f"at epsilon {wishes.limit:.3g} the best is {chosen.auroc:.3f}, with trust {chosen.way.trust}{more}"
    if chosen.auroc - 0.5 < (bare - 0.5) / 2:
        site = chosen.way.unit == "site"
        why = (
            f"one of {len(wishes.cohorts)} hospitals cannot be hidden"
            if site
            else "there are too few patients"
        )
        return f"noise would take more than half of what the images allow: {why}"
    return ""


def _patients_needed(wishes: Wishes, law: Reference, chosen: Candidate) -> int | None:
    """With as many hospitals, each larger by the same factor; None if even a thousandfold does not do."""
    if chosen.way.unit == "site" or wishes.auroc is None:
        return None
    wanted = wishes.auroc

    def short(log: float) -> float:
        scale = math.exp(log)
        return law.auroc(wishes.patients * scale, chosen.ratio * scale) - wanted

    if short(math.log(1000)) < 0:
        return None
    scale = math.exp(brentq(short, 0.0, math.log(1000), xtol=1e-4))
    return int(_upwards(wishes.patients * scale))


def _changes(wishes: Wishes, laws: Laws, chosen: Candidate) -> tuple[Change, ...]:
    """What could be changed, what costs patients nothing first; each with the method that is best then."""
    n, mean = len(wishes.cohorts), round(wishes.patients / len(wishes.cohorts))
    way, target = chosen.way, chosen.epsilon
    more: list[tuple[str, Wishes, Way, float]] = []
    if way.trust == "site" and n >= 3:
        masked = replace(way, trust="secure-aggregation")
        more.append(("secure aggregation instead of all noise at each hospital", wishes, masked, target))
    if way.unit == "site":
        more.append(
            ("protect patients instead of whole hospitals", wishes, replace(way, unit="patient"), target)
        )
    added = replace(wishes, cohorts=wishes.cohorts + (mean,) * (n // 2 + 1))
    doubled = replace(wishes, cohorts=tuple(2 * c for c in wishes.cohorts))
    more += [
        (f"{n // 2 + 1} more hospitals of {mean:,} patients", added, way, target),
        ("twice as many patients in each hospital", doubled, way, target),
        (f"epsilon {2 * target:.3g} instead of {target:.3g}", wishes, way, 2 * target),
    ]
    found = []
    for what, changed, other, spent in more:
        methods = ("gradient",) if other.unit == "site" else wishes.methods
        auroc = max(
            laws[m].auroc(changed.patients, changed.ratio(replace(other, method=m), spent)) for m in methods
        )
        found.append(Change(what=what, auroc=auroc, gain=auroc - chosen.auroc))
    return tuple(found)
