"""Which setting to choose, and what it would give: predicted from cohort sizes before anything is spent.

Accuracy is predicted by a `Reference`; noise is calibrated as in a run. Of the levels of trust that a consortium would
accept, the planner prefers the one that trusts others least.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from scipy.optimize import brentq
from scipy.special import ndtri

from fedveil.errors import InvalidValue
from fedveil.federation import default_min_honest
from fedveil.privacy import Guarantee, Mechanism, Trust, Unit, calibrate, epsilon
from fedveil.study.reference import Reference
from fedveil.study.settings import Study

__all__ = [
    "Candidate",
    "Change",
    "Recommendation",
    "Wishes",
    "recommend",
]

TRUSTS: tuple[Trust, ...] = ("site", "secure-aggregation", "server")
"""From the least trust in others to the most."""
LARGEST_EPSILON = 8.0
"""What the planner goes to where nobody set a limit."""
NEAR = 0.01
"""Less trust is preferred if it loses no more AUROC than this."""
NOTICEABLE = 0.003
"""A smaller gain of AUROC is not worth a change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What a consortium has and wants.

    Attributes:
        cohorts: training patients (or images, if they are the unit) of each hospital.
        unit: whom the guarantee protects.
        trusts: the levels of trust that would be accepted.
        epsilon: the largest epsilon.
        auroc: the smallest AUROC.
        risk: the most that an attacker may find at 1 % false positives.
        study: where everything else comes from: delta, rounds, clip norm, shares of the budget.
    """

    cohorts: tuple[int, ...]
    unit: Unit = "patient"
    trusts: tuple[Trust, ...] = TRUSTS
    epsilon: float | None = None
    auroc: float | None = None
    risk: float | None = None
    study: Study = field(default_factory=Study)

    def __post_init__(self) -> None:
        if not self.cohorts or min(self.cohorts) < 1:
            raise InvalidValue(
                f"cohorts are {', '.join(map(str, self.cohorts)) or 'none'}",
                "every hospital has a patient or more",
                "list the number of training patients of each hospital",
            )
        for name, low, high in (("epsilon", 0.0, math.inf), ("auroc", 0.5, 1.0), ("risk", 0.01, 1.0)):
            value = getattr(self, name)
            if value is not None and not low < value < high:
                raise InvalidValue(
                    f"{name} is {value:g}", f"it must lie between {low:g} and {high:g}", "choose another"
                )
        if not self.possible:
            raise InvalidValue(
                f"trust is {', '.join(self.trusts) or 'empty'} for {len(self.cohorts)} hospitals",
                "secure aggregation needs 3 or more",
                'accept trust "site" or "server" too',
            )

    @property
    def possible(self) -> tuple[Trust, ...]:
        """The accepted levels of trust that so many hospitals can have, least trust first."""
        enough = len(self.cohorts) >= 3
        return tuple(t for t in TRUSTS if t in self.trusts and (enough or t != "secure-aggregation"))

    @property
    def patients(self) -> int:
        """All hospitals together."""
        return sum(self.cohorts)

    @property
    def units(self) -> int:
        """Protected units."""
        return len(self.cohorts) if self.unit == "site" else self.patients

    @property
    def limit(self) -> float:
        """The largest epsilon that the wishes allow."""
        limits = [LARGEST_EPSILON] if self.epsilon is None and self.risk is None else []
        if self.epsilon is not None:
            limits.append(self.epsilon)
        if self.risk is not None:
            mu = float(ndtri(self.risk) - ndtri(0.01))
            limits.append(epsilon([Mechanism(1 / mu, 1.0, 1)], self.study.privacy.delta))
        return min(limits)

    def ratio(self, trust: Trust, target: float) -> float:
        """nu for a target epsilon."""
        privacy = self.study.privacy
        mu = 1 / calibrate(Guarantee(target, privacy.delta, self.unit, trust), steps=1).noise_multiplier
        left = math.sqrt(1 - privacy.statistics_share - privacy.calibration_share)
        return self.units * mu * left / self.factor(trust)

    def factor(self, trust: Trust) -> float:
        """f: the standard deviation of the noise in a sum over what the mechanism needs."""
        n = len(self.cohorts)
        match trust:
            case "site":
                return math.sqrt(n)
            case "secure-aggregation":
                return math.sqrt(n / default_min_honest(n))
            case _:
                return 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One level of trust at the epsilon that it needs, or at the limit if the target is out of reach."""

    trust: Trust
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
        reference: the task that accuracy was predicted from.
        candidates: every level of trust that would be accepted.
        chosen: the recommended one, or the best of those that fall short.
        no: why the answer is no; empty if it is yes.
        mechanism: the noise of training at the chosen setting.
        site_noise: standard deviation of the noise that one hospital adds to a sum.
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

    def explain(self) -> list[str]:
        """The arithmetic, line by line."""
        wishes, one, law = self.wishes, self.chosen, self.reference
        privacy = wishes.study.privacy
        mu = (
            1
            / calibrate(
                Guarantee(one.epsilon, privacy.delta, wishes.unit, one.trust), steps=1
            ).noise_multiplier
        )
        left = 1 - privacy.statistics_share - privacy.calibration_share
        n, h = len(wishes.cohorts), default_min_honest(len(wishes.cohorts))
        factors = {"site": f"sqrt({n})", "secure-aggregation": f"sqrt({n} / {h})", "server": "1"}
        score = float(ndtri(one.auroc))
        return [
            f"epsilon {one.epsilon:.3g} at delta {privacy.delta:g} is a Gaussian mechanism with mu = {mu:.4f}",
            f"training gets {left:.0%} of mu squared: mu = {mu * math.sqrt(left):.4f}; over "
            f"{self.mechanism.steps} rounds that is a noise multiplier of {self.mechanism.noise_multiplier:.2f}",
            f"trust {one.trust} enlarges noise by f = {factors[one.trust]} = {wishes.factor(one.trust):.3f}",
            f"nu = N mu / f = {wishes.units:,} x {mu * math.sqrt(left):.4f} / {wishes.factor(one.trust):.3f} "
            f"= {one.ratio:.1f}",
            f"{law.name}: D = {law.separation:.3f}, a = {law.patients:.3g}, b = {law.noise:.3g}, p = {law.power:.2f} "
            f"({law.runs} runs)",
            f"d = D / sqrt(1 + a / {wishes.patients:,} + (b / {one.ratio:.1f})^p) = {math.sqrt(2) * score:.3f}",
            f"AUROC = Phi(d / sqrt 2) = {one.auroc:.3f}; 95 % of runs between {one.interval[0]:.3f} and "
            f"{one.interval[1]:.3f}",
        ]


def recommend(wishes: Wishes, reference: Reference) -> Recommendation:
    """The least trust in others, and then the smallest epsilon, that meets the wishes; or a no with its reason.

    Where no AUROC is asked for, all of the epsilon is used, and less trust is preferred as long as it costs no more
    than 0.01 of AUROC. The answer is no where the target is out of reach, or where noise would take more than
    half of what the images allow above guessing.
    """
    candidates = tuple(_candidate(wishes, reference, trust) for trust in wishes.possible)
    best = max(candidates, key=lambda c: c.auroc)
    if wishes.auroc is not None:
        good = [c for c in candidates if c.reaches]
    else:
        good = [c for c in candidates if c.auroc >= best.auroc - NEAR]
    chosen = good[0] if good else best
    bare = reference.auroc(wishes.patients, math.inf)
    mechanism, site_noise = _noise(wishes, chosen)
    changes = _changes(wishes, reference, chosen)
    largest = max((change.gain for change in changes), default=0.0)
    helping = [c for c in changes if c.gain >= max(largest / 2, NOTICEABLE)]
    return Recommendation(
        wishes=wishes,
        reference=reference,
        candidates=candidates,
        chosen=chosen,
        no=_no(wishes, reference, chosen, bare),
        mechanism=mechanism,
        site_noise=site_noise,
        bare=bare,
        changes=changes,
        advice=helping[0] if helping else None,
    )


def _candidate(wishes: Wishes, reference: Reference, trust: Trust) -> Candidate:
    def gives(target: float) -> float:
        return reference.auroc(wishes.patients, wishes.ratio(trust, target))

    target, limit, smallest = wishes.auroc, wishes.limit, 1e-3
    reaches = target is None or gives(limit) >= target
    chosen = limit
    if target is not None and reaches:
        wanted = target
        if gives(smallest) >= wanted:
            chosen = smallest
        else:
            root = brentq(
                lambda log: gives(math.exp(log)) - wanted, math.log(smallest), math.log(limit), xtol=1e-4
            )
            # Upwards to two digits: the target is met, and the number can be typed.
            chosen = min(limit, _upwards(math.exp(root)))
    ratio = wishes.ratio(trust, chosen)
    return Candidate(
        trust=trust,
        epsilon=chosen,
        ratio=ratio,
        auroc=reference.auroc(wishes.patients, ratio),
        interval=reference.interval(wishes.patients, ratio),
        reaches=reaches,
    )


def _upwards(value: float) -> float:
    """The next number with two digits that is not smaller."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return math.ceil(value / unit - 1e-9) * unit


def _noise(wishes: Wishes, chosen: Candidate) -> tuple[Mechanism, float]:
    """Training's mechanism, given what the releases around it take, and one hospital's share of its noise."""
    privacy, rounds = wishes.study.privacy, wishes.study.training.rounds
    target = Guarantee(chosen.epsilon, privacy.delta, wishes.unit, chosen.trust)
    whole = calibrate(target, steps=1).noise_multiplier
    shares = [share for share in (privacy.statistics_share, privacy.calibration_share) if share > 0]
    spent = [Mechanism(whole / math.sqrt(share), 1.0, 1, unit=wishes.unit) for share in shares]
    mechanism = calibrate(target, steps=rounds, clip_norm=privacy.clip_norm, spent=spent)
    std = mechanism.noise_multiplier * mechanism.clip_norm
    share = {"site": 1.0, "secure-aggregation": default_min_honest(len(wishes.cohorts)) ** -0.5}
    return mechanism, std * share.get(chosen.trust, 0.0)


def _no(wishes: Wishes, reference: Reference, chosen: Candidate, bare: float) -> str:
    """Why not; empty if nothing speaks against it."""
    if wishes.auroc is not None and not chosen.reaches:
        ceiling = reference.auroc(1e12, math.inf)
        if wishes.auroc >= ceiling:
            return f"tasks like {reference.name} allow an AUROC of {ceiling:.3f} at most, with any number of patients"
        needed = _patients_needed(wishes, reference, chosen)
        more = f"; it would take about {needed:,} patients" if needed else ""
        return (
            f"at epsilon {wishes.limit:.3g} the best is {chosen.auroc:.3f}, with trust {chosen.trust}{more}"
        )
    if chosen.auroc - 0.5 < (bare - 0.5) / 2:
        protects = f" {wishes.units} hospitals hide one of them" if wishes.unit == "site" else ""
        return f"noise would take more than half of what the images allow:{protects or ' there are too few patients'}"
    return ""


def _patients_needed(wishes: Wishes, reference: Reference, chosen: Candidate) -> int | None:
    """With as many hospitals, each larger by the same factor; None if even a thousandfold does not do."""
    if wishes.unit == "site" or wishes.auroc is None:
        return None
    wanted = wishes.auroc

    def short(log: float) -> float:
        scale = math.exp(log)
        return reference.auroc(wishes.patients * scale, chosen.ratio * scale) - wanted

    if short(math.log(1000)) < 0:
        return None
    scale = math.exp(brentq(short, 0.0, math.log(1000), xtol=1e-4))
    return int(_upwards(wishes.patients * scale))


def _changes(wishes: Wishes, reference: Reference, chosen: Candidate) -> tuple[Change, ...]:
    """What could be changed, what costs patients nothing first."""
    n, mean = len(wishes.cohorts), round(wishes.patients / len(wishes.cohorts))
    more: Sequence[tuple[str, Wishes, Trust, float]] = [
        (
            f"{n // 2 + 1} more hospitals of {mean:,} patients",
            replace(wishes, cohorts=wishes.cohorts + (mean,) * (n // 2 + 1)),
            chosen.trust,
            chosen.epsilon,
        ),
        (
            "twice as many patients in each hospital",
            replace(wishes, cohorts=tuple(2 * c for c in wishes.cohorts)),
            chosen.trust,
            chosen.epsilon,
        ),
        (
            f"epsilon {2 * chosen.epsilon:.3g} instead of {chosen.epsilon:.3g}",
            wishes,
            chosen.trust,
            2 * chosen.epsilon,
        ),
    ]
    if wishes.unit == "site":
        more = [
            (
                "protect patients instead of whole hospitals",
                replace(wishes, unit="patient"),
                chosen.trust,
                chosen.epsilon,
            ),
            *more,
        ]
    if chosen.trust == "site" and n >= 3:
        more = [
            (
                "secure aggregation instead of all noise at each hospital",
                wishes,
                "secure-aggregation",
                chosen.epsilon,
            ),
            *more,
        ]
    found = []
    for what, changed, trust, target in more:
        auroc = reference.auroc(changed.patients, changed.ratio(trust, target))
        found.append(Change(what=what, auroc=auroc, gain=auroc - chosen.auroc))
    return tuple(found)
