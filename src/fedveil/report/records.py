"""What a run directory says, as values. `loader.py` makes them; everything else in this layer reads them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedveil.privacy import Guarantee, Mechanism, Risk
from fedveil.report.figures.curves import confusion
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
    """The test set as the model saw it: labels and predictions (n,) as indices, probabilities (n, K)."""

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
    """The last entry of a site's ledger: its number and the hash that chains all before it."""

    site: str
    seq: int
    hash: str


@dataclass(frozen=True, slots=True)
class Examples:
    """Test images with what the model said: images uint8 (k, H, W) or (k, H, W, 3)."""

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
        recomputed_epsilon: what the releases cost at the guarantee's delta; NaN without privacy.
        risk: what the releases allow an attacker, computed again; None without privacy.
        rounds: the log of training.
        predictions: of the test images; None without any.
        ledgers: the heads, in the order of `sites`; simulated sites only.
        provenance: with what the run was made.
        examples: test images to show; None without any.
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
        """None where the study ran without privacy, and only where it says so."""
        return None if self.result.guarantee.trust == "none" else self.result.guarantee

    @property
    def releases(self) -> tuple[Released, ...]:
        """What was released, with its mechanism; empty without privacy."""
        return self.result.releases if self.guarantee else ()

    @property
    def mechanisms(self) -> tuple[Mechanism, ...]:
        """The mechanisms of all releases; their composition is what the guarantee is about."""
        return tuple(release.mechanism for release in self.releases)

    @property
    def secure_aggregation(self) -> SecureAggregation | None:
        """How sums were masked; None where they were not."""
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
        """What the run has to say beside its numbers."""
        return self.result.notes

    @property
    def seconds(self) -> dict[str, float]:
        """Time by stage."""
        return self.result.seconds
