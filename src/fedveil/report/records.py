"""The content of a run directory, as values. `loader.py` makes them; the rest of this layer reads them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedveil.audit.result import AuditResult
from fedveil.privacy import Guarantee, Mechanism, Risk
from fedveil.report.figures.curves import confusion
from fedveil.report.statements import Statements
from fedveil.study.results.schema import (
    DataFacts,
    ModelMetrics,
    Provenance,
    Released,
    Result,
    RoundLine,
    SecureAggregation,
    SiteResult,
)

__all__ = ["Examples", "LedgerHead", "Predictions", "RunRecord"]


@dataclass(frozen=True, slots=True)
class Predictions:
    """Predictions on the test set: labels and predicted classes (n,) as indices, probabilities (n, K)."""

    classes: tuple[str, ...]
    labels: NDArray[np.int64]
    predicted: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    patients: int

    @property
    def confusion(self) -> NDArray[np.int64]:
        """Counts of true class (row) against predicted class (column)."""
        return confusion(self.labels, self.predicted, len(self.classes))


@dataclass(frozen=True, slots=True)
class LedgerHead:
    """The last entry of a site's ledger: its number and its hash, which covers all entries before it."""

    site: str
    seq: int
    hash: str


@dataclass(frozen=True, slots=True)
class Examples:
    """Test images with predictions: images uint8 (k, H, W) or (k, H, W, 3)."""

    images: NDArray[np.uint8]
    names: tuple[str, ...]
    labels: tuple[str, ...]
    predicted: tuple[str, ...]
    probability: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """Everything that a report shows: the run's result, and what its other files add.

    Attributes:
        path: the run directory.
        digest: SHA-256 of result.json, in hexadecimal: what a signature on the report refers to.
        result: as the run wrote it.
        recomputed_epsilon: epsilon of the releases at the guarantee's delta; NaN without privacy.
        risk: bounds on an attacker's success, recomputed; None without privacy.
        rounds: the log of training.
        predictions: of the test images; None without any.
        ledgers: the heads, in the order of `sites`; simulated sites only.
        provenance: software, machine and time of the run.
        examples: test images to show; None without any.
        audit: what attacks found; None without one.
        governance: who is responsible for the study, as its file states it: label and text.
        statements: the hospitals' signed statements; None if none was taken in.
    """

    path: Path
    digest: str
    result: Result
    recomputed_epsilon: float
    risk: Risk | None
    rounds: tuple[RoundLine, ...]
    predictions: Predictions | None
    ledgers: tuple[LedgerHead, ...]
    provenance: Provenance
    examples: Examples | None
    audit: AuditResult | None = None
    governance: tuple[tuple[str, str], ...] = ()
    statements: Statements | None = None

    @property
    def study(self) -> str:
        """The study's name."""
        return self.result.study

    @property
    def description(self) -> str:
        """The study's description."""
        return self.result.description

    @property
    def guarantee(self) -> Guarantee | None:
        """None if and only if the study states that it ran without privacy."""
        return None if self.result.guarantee.trust == "none" else self.result.guarantee

    @property
    def releases(self) -> tuple[Released, ...]:
        """What was released, with its mechanism; empty without privacy."""
        return self.result.releases if self.guarantee else ()

    @property
    def mechanisms(self) -> tuple[Mechanism, ...]:
        """The mechanisms whose composition the guarantee states: of a calibrated study, those of its dearest level.

        A level that was chosen in view of releases does not bound an attack beforehand.
        """
        if self.guarantee and self.result.calibrated is not None:
            return self.result.calibrated.mechanisms
        return tuple(release.mechanism for release in self.releases)

    @property
    def secure_aggregation(self) -> SecureAggregation | None:
        """How sums were masked; None if they were not."""
        return self.result.secure_aggregation if self.guarantee else None

    @property
    def sites(self) -> tuple[SiteResult, ...]:
        """The hospitals."""
        return self.result.sites

    @property
    def test(self) -> ModelMetrics | None:
        """Metrics on the test images; None without any."""
        return self.result.metrics.test

    @property
    def released(self) -> ModelMetrics | None:
        """Metrics from a noisy histogram of the hospitals' own held-out patients; None without one."""
        return self.result.metrics.released

    @property
    def baselines(self) -> dict[str, ModelMetrics]:
        """Metrics of the alternatives, by name."""
        return self.result.baselines

    @property
    def data(self) -> DataFacts | None:
        """The data set."""
        return self.result.data

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes of the run that qualify its numbers."""
        return self.result.notes

    @property
    def seconds(self) -> dict[str, float]:
        """Time by stage."""
        return self.result.seconds
