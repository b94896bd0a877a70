"""A small real federation for tests: a learner over plain vectors, ledgers on disk, sites in process."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from fedveil.federation import (
    Agreement,
    Answer,
    Declined,
    InProcess,
    Message,
    Release,
    Request,
    Site,
    default_min_honest,
)
from fedveil.federation.queries import GradientQuery
from fedveil.privacy import Guarantee, IntegerMechanism, Ledger, Mechanism, Trust

DIMENSION = 6


@dataclass
class VectorLearner:
    """Units are rows; a unit's contribution is its row, clipped."""

    rows: np.ndarray
    seen: list[np.ndarray | None] = field(default_factory=list)
    broken: bool = False

    @property
    def units(self) -> int:
        return len(self.rows)

    @property
    def dimension(self) -> int:
        return self.rows.shape[1]

    def check_parameters(self, parameters: np.ndarray, *, judged: bool = False) -> None:
        """Any parameters are those of some vector."""

    def statistics(
        self, parameters: np.ndarray, units: np.ndarray | None = None, *, plain: bool = False
    ) -> np.ndarray:
        return np.array([len(self.rows) / 2, len(self.rows) / 2])

    def contribution(
        self, parameters: np.ndarray, *, clip_norm: float, units: np.ndarray | None = None
    ) -> np.ndarray:
        if self.broken:
            raise RuntimeError(f"patient Jane Doe has a broken image, pixel sum {self.rows.sum()}")
        self.seen.append(units)
        rows = self.rows if units is None else self.rows[units]
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        return (rows * np.minimum(1, clip_norm / np.maximum(norms, 1e-300))).sum(axis=0)


def make_agreement(
    trust: Trust = "site",
    sites: int = 5,
    rounds: int = 4,
    noise: float = 8.0,
    sampling_rate: float = 1.0,
    min_sites: int = 3,
    **changes: object,
) -> Agreement:
    noise = 0.0 if trust == "none" else noise
    mechanism = Mechanism(noise_multiplier=noise, clip_norm=1.0, steps=rounds, sampling_rate=sampling_rate)
    integer = None
    if trust == "secure-aggregation":
        shares = int(changes.get("min_honest") or default_min_honest(sites))  # type: ignore[call-overload]
        integer = IntegerMechanism.fit(mechanism, dimension=DIMENSION, sites=sites, shares=shares, units=1000)
        mechanism = integer.mechanism
    target = Guarantee(float("inf") if trust == "none" else 50.0, 1e-5, "patient", trust)
    values: dict[str, object] = {
        "name": "toy",
        "settings": {"seed": 1},
        "sites": tuple(f"site-{number}" for number in range(1, sites + 1)),
        "target": target,
        "releases": (
            Release(
                query=GradientQuery(),
                mechanism=mechanism,
                dimension=DIMENSION,
                parameters=DIMENSION,
                integer=integer,
            ),
        ),
        "min_sites": min_sites,
    }
    return Agreement(**(values | changes))  # type: ignore[arg-type]


@dataclass
class Federation:
    agreement: Agreement
    sites: dict[str, Site]
    learners: dict[str, VectorLearner]
    ledgers: dict[str, Ledger]

    silent: set[str] = field(default_factory=set)

    @property
    def transport(self) -> "Line":
        return Line(list(self.sites.values()), self.silent)


class Line(InProcess):
    """A transport on which the sites in ``silent`` decline every round, whoever is in it at the time."""

    def __init__(self, sites: list[Site], silent: set[str]) -> None:
        super().__init__(sites)
        self._silent = silent

    def exchange(self, requests: Mapping[str, Message]) -> Mapping[str, Answer]:
        answers: dict[str, Answer] = {}
        for site, one in requests.items():
            if site in self._silent and isinstance(one, Request):
                asked = {name: getattr(one, name) for name in ("study", "release", "round", "attempt")}
                answers[site] = Declined(site=site, code="failed", **asked)
            else:
                answers |= super().exchange({site: one})
        return answers


def ask(agreement, **changes):
    values = {
        "study": agreement.digest,
        "release": "training",
        "round": 1,
        "attempt": 1,
        "participants": agreement.sites,
        "parameters": np.zeros(DIMENSION),
    }
    return Request(**(values | changes))
