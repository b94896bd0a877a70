"""What a consortium has and would accept, and what noise each way to train under it needs.

A `Way` is whom to protect, whom to trust and how to train. Its noise follows from cohort sizes and an epsilon alone, by
the calibration that a run uses, so nothing of a patient is needed.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from scipy.special import ndtri

from fedveil.errors import InvalidValue
from fedveil.federation import default_min_honest
from fedveil.privacy import Guarantee, Mechanism, Trust, Unit, calibrate, epsilon
from fedveil.study.grid import Method, calibration_share
from fedveil.study.settings import Study

__all__ = ["METHODS", "TRUSTS", "UNITS", "Way", "Wishes"]

TRUSTS: tuple[Trust, ...] = ("site", "secure-aggregation", "server")
"""From the least trust in others to the most."""
UNITS: tuple[Unit, ...] = ("site", "patient", "image")
"""From the most that is protected to the least."""
METHODS: tuple[Method, ...] = ("gradient", "one-shot")
"""What the references know."""
LARGEST_EPSILON = 8.0
"""What the planner goes to where nobody set a limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way to train: whom the guarantee protects, whom one trusts, and how."""

    unit: Unit
    trust: Trust
    method: Method


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What a consortium has and wants.

    Attributes:
        cohorts: training patients of each hospital.
        images: training images of a patient, on average; what the unit "image" counts.
        units: whom the guarantee may protect.
        trusts: the levels of trust that would be accepted.
        methods: the methods that would be accepted.
        epsilon: the largest epsilon.
        auroc: the smallest AUROC.
        risk: the most that an attacker may find at 1 % false positives.
        study: where everything else comes from: delta, rounds, clip norm, shares of the budget.
    """

    cohorts: tuple[int, ...]
    images: float = 1.0
    units: tuple[Unit, ...] = ("patient",)
    trusts: tuple[Trust, ...] = TRUSTS
    methods: tuple[Method, ...] = METHODS
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
        bounds = {
            "epsilon": (0.0, math.inf),
            "auroc": (0.5, 1.0),
            "risk": (0.01, 1.0),
            "images": (1 - 1e-9, math.inf),
        }
        for name, (low, high) in bounds.items():
            value = getattr(self, name)
            if value is not None and not low < value < high:
                raise InvalidValue(
                    f"{name} is {value:g}", f"it must lie between {low:g} and {high:g}", "choose another"
                )
        if self.study.model.network != "linear" or self.study.training.sampling_rate < 1:
            raise InvalidValue(
                "the study trains a network or samples",
                "the planner knows linear heads that everyone's data trains in every round",
                "leave model.network and training.sampling_rate out",
            )
        if not any(True for _ in self.ways()):
            raise InvalidValue(
                f"unit {', '.join(self.units)}, trust {', '.join(self.trusts)} and method {', '.join(self.methods)} do "
                f"not go together for {len(self.cohorts)} hospitals",
                "secure aggregation needs 3 or more hospitals, and one-shot protects patients or images",
                "accept more of each",
            )

    def ways(self) -> Iterator[Way]:
        """What is accepted and possible: most protection first, then least trust."""
        enough = len(self.cohorts) >= 3
        for unit in (one for one in UNITS if one in self.units):
            for trust in (one for one in TRUSTS if one in self.trusts):
                for method in (one for one in METHODS if one in self.methods):
                    masks = trust == "secure-aggregation"
                    if (enough or not masks) and not (unit == "site" and method == "one-shot"):
                        yield Way(unit=unit, trust=trust, method=method)

    @property
    def patients(self) -> int:
        """All hospitals together."""
        return sum(self.cohorts)

    def count(self, unit: Unit) -> float:
        """N: how many units there are."""
        match unit:
            case "site":
                return len(self.cohorts)
            case "patient":
                return self.patients
            case "image":
                return self.images * self.patients

    @property
    def honest(self) -> int:
        """Noise shares that an adversary does not know, under secure aggregation."""
        return self.study.federation.min_honest or default_min_honest(len(self.cohorts))

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

    def mu(self, way: Way, target: float) -> float:
        """mu of the Gaussian mechanism that epsilon and delta allow in total."""
        return 1 / calibrate(self._guarantee(way, target), steps=1).noise_multiplier

    def shares(self, way: Way) -> tuple[float, ...]:
        """Parts of mu squared for what is released beside the sums that the model is made from."""
        privacy = self.study.privacy
        statistics = 0.0 if way.method == "one-shot" else privacy.statistics_share
        beside = (calibration_share(self.study, way.method), privacy.evaluation_share, privacy.personal_share)
        return tuple(share for share in (statistics, *beside) if share > 0)

    def ratio(self, way: Way, target: float) -> float:
        """nu at a target epsilon: see `fedveil.study.reference`."""
        left = math.sqrt(1 - sum(self.shares(way)))
        return self.count(way.unit) * self.mu(way, target) * left / self.factor(way.trust)

    def factor(self, trust: Trust) -> float:
        """f: the standard deviation of the noise in a sum over what the mechanism needs."""
        n = len(self.cohorts)
        match trust:
            case "site":
                return math.sqrt(n)
            case "secure-aggregation":
                return math.sqrt(n / self.honest)
            case _:
                return 1.0

    def mechanism(self, way: Way, target: float) -> Mechanism:
        """The sums that the model is made from: rounds of training, or one of statistics."""
        once, mu = way.method == "one-shot", self.mu(way, target)
        spent = [Mechanism(1 / (mu * math.sqrt(share)), 1.0, 1, unit=way.unit) for share in self.shares(way)]
        return calibrate(
            self._guarantee(way, target),
            steps=1 if once else self.study.training.rounds,
            clip_norm=1.0 if once else self.study.privacy.clip_norm,
            spent=spent,
        )

    def site_noise(self, way: Way, target: float) -> float:
        """Standard deviation of the noise that one hospital adds to such a sum."""
        share = {"site": 1.0, "secure-aggregation": 1 / math.sqrt(self.honest)}
        return self.mechanism(way, target).noise_std * share.get(way.trust, 0.0)

    def settings(self, way: Way, target: float) -> dict[str, dict[str, object]]:
        """The keys of a study file that choose this way."""
        mechanism = self.mechanism(way, target)
        training: dict[str, object] = {"method": way.method}
        privacy: dict[str, object] = {
            "unit": way.unit,
            "trust": way.trust,
            "epsilon": target,
            "delta": self.study.privacy.delta,
        }
        if way.method == "gradient":
            training |= {"rounds": mechanism.steps, "sampling_rate": mechanism.sampling_rate}
            privacy |= {"clip_norm": mechanism.clip_norm}
        return {"training": training, "privacy": privacy}

    def _guarantee(self, way: Way, target: float) -> Guarantee:
        return Guarantee(target, self.study.privacy.delta, way.unit, way.trust)
