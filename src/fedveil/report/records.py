"""What a run directory says, as values. `loader.py` makes them; everything else in this layer reads them."""

import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedveil.privacy import Guarantee, Mechanism, Risk
from fedveil.report.curves import confusion

__all__ = [
    "ClassMetrics",
    "DataFacts",
    "Examples",
    "LedgerHead",
    "Metrics",
    "Predictions",
    "Provenance",
    "Release",
    "Round",
    "RunRecord",
    "SecureAggregation",
    "SiteResult",
]

UNKNOWN = (math.nan, math.nan)


@dataclass(frozen=True, slots=True)
class Release:
    """Something that left the hospitals, and the mechanism that noised it."""

    what: str
    mechanism: Mechanism


@dataclass(frozen=True, slots=True)
class SecureAggregation:
    """Whether masks were really exchanged, and how many honest sites the noise relies on."""

    simulated: bool
    min_honest: int
    participants: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteResult:
    """One hospital. Cohort sizes are private: only simulated hospitals have them here, or models of their own."""

    name: str
    epsilon_spent: float
    epsilon_alone: float
    patients: int | None
    images: int | None
    class_counts: dict[str, int]
    personal_auroc: float
    personal_balanced_accuracy: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassMetrics:
    """One class against the rest; NaN where not defined."""

    name: str
    sensitivity: float
    specificity: float
    auroc: float
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """Test metrics of one model; NaN where not defined."""

    auroc: float
    balanced_accuracy: float
    accuracy: float
    brier: float
    n: int
    auroc_interval: tuple[float, float] = UNKNOWN
    balanced_accuracy_interval: tuple[float, float] = UNKNOWN
    threshold: float = math.nan
    majority_accuracy: float = math.nan
    majority_balanced_accuracy: float = math.nan
    confusion: NDArray[np.int64] | None = None
    per_class: tuple[ClassMetrics, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFacts:
    """The data set; counts are None where they are not known or not public."""

    name: str
    description: str
    synthetic: bool
    patients_known: bool
    classes: tuple[str, ...]
    images_train: int | None
    images_test: int | None
    patients_train: int | None
    patients_test: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One line of rounds.jsonl; NaN where a round was not evaluated."""

    number: int
    sites: tuple[str, ...]
    dropped: tuple[tuple[str, str], ...]
    epsilon_spent: float
    seconds: float
    auroc: float
    balanced_accuracy: float


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """With what, where and when the run was made."""

    fedveil: str
    python: str
    platform: str
    device: str
    started: str
    finished: str
    data_digest: str
    study_digest: str
    packages: dict[str, str] = field(default_factory=dict)


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
    """Everything that a report shows.

    Attributes:
        path: the run directory.
        digest: SHA-256 of result.json, in hexadecimal: what a signature on the report refers to.
        guarantee: None where trust is "none".
        releases: what was released, with its mechanism; empty without privacy.
        recomputed_epsilon: what the releases cost at the guarantee's delta; NaN without privacy.
        risk: what the releases allow an attacker, computed again; None without privacy.
        released: metrics from a noisy histogram of the hospitals' own held-out patients; None without one.
        ledgers: the heads, in the order of `sites`; simulated sites only.
    """

    path: Path
    digest: str
    study: str
    description: str
    guarantee: Guarantee | None
    releases: tuple[Release, ...]
    recomputed_epsilon: float
    risk: Risk | None
    secure_aggregation: SecureAggregation | None
    sites: tuple[SiteResult, ...]
    test: Metrics | None
    released: Metrics | None
    baselines: dict[str, Metrics]
    data: DataFacts | None
    notes: tuple[str, ...]
    seconds: dict[str, float]
    rounds: tuple[Round, ...]
    predictions: Predictions | None
    ledgers: tuple[LedgerHead, ...]
    provenance: Provenance
    examples: Examples | None

    @property
    def mechanisms(self) -> tuple[Mechanism, ...]:
        """The mechanisms of all releases; their composition is what the guarantee is about."""
        return tuple(release.mechanism for release in self.releases)
