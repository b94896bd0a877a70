"""Which encoder, layer and size suit private training: compared by cross-validation on public images.

Every candidate trains the same study, five simulated hospitals under the study's own guarantee, on half of the
patients and is judged on the other half, and the other way round. The images must be public: none of these trainings
is charged to anybody.
"""

import statistics
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fedveil.data import Dataset
from fedveil.errors import InvalidValue
from fedveil.study.progress import Progress, Silent
from fedveil.study.results.run_directory import RunDirectory
from fedveil.study.settings.schema import Study
from fedveil.study.simulation import Simulated, run

__all__ = ["CANDIDATES", "Scanned", "scan"]

CANDIDATES = (
    "efficientnet-lite0",
    "efficientnet-lite0/5",
    "efficientnet-lite0/8",
    "efficientnet-lite0/13",
    "efficientnet-lite0@96",
    "efficientnet-lite0@96/8",
    "efficientnet-lite0@96/13",
    "efficientnet-lite0@128/13",
    "efficientnet-lite0@96/8+efficientnet-lite0@96/13",
    "scattering",
)
"""What is compared unless candidates are named."""
UNUSED = 2
"""The code in a data set's split of images that are neither trained on nor tested on."""
SMALLEST = 40
"""Patients below which halves say nothing."""


@dataclass(frozen=True, slots=True)
class Scanned:
    """A candidate's accuracy on patients that it was not trained on.

    Attributes:
        features: as in a study file.
        auroc: mean over folds and seeds.
        balanced_accuracy: likewise.
        standard_error: of the mean AUROC, over runs.
    """

    features: str
    auroc: float
    balanced_accuracy: float
    standard_error: float


def scan(
    dataset: Dataset,
    study: Study,
    candidates: Sequence[str] = CANDIDATES,
    *,
    seeds: int = 2,
    progress: Progress | None = None,
) -> Iterator[Scanned]:
    """Yield the accuracy of each candidate, as soon as it is known.

    Args:
        dataset: public images with labels; its training patients are used, never its test patients.
        study: the guarantee and everything but the features.
        candidates: features as in a study file.
        seeds: trainings per half.
        progress: told of stages and rounds.

    Raises:
        InvalidValue: there are too few patients, or a candidate is impossible.
    """
    folds = list(_folds(dataset))
    for features in candidates:
        changed = study.with_changes({"model": {"features": features}, "report": {"examples": 0}})
        found = [
            _measured(fold, changed.with_changes({"study": {"seed": seed}}), progress or Silent())
            for fold in folds
            for seed in range(seeds)
        ]
        aurocs = [auroc for auroc, _ in found]
        error = statistics.stdev(aurocs) / len(aurocs) ** 0.5
        balanced = statistics.mean(value for _, value in found)
        yield Scanned(features, statistics.mean(aurocs), balanced, error)


def _folds(dataset: Dataset) -> Iterator[Dataset]:
    """The training images twice, each time with half of the patients for testing."""
    patients = dataset.patients[dataset.train]
    known, codes = np.unique(patients, return_inverse=True)
    if len(known) < SMALLEST:
        raise InvalidValue(
            f"{dataset.name} has {len(known)} training patients",
            f"a comparison needs at least {SMALLEST}",
            "use a larger public set",
        )
    half = np.random.default_rng(5).permutation(len(known))[codes] % 2
    for number in (0, 1):
        split = np.full(len(dataset), UNUSED, np.int8)
        split[dataset.train] = half == number
        yield replace(dataset, split=split, sites=None, site_names=())


def _measured(fold: Dataset, study: Study, progress: Progress) -> tuple[float, float]:
    with _scratch() as folder:
        directory = RunDirectory.create(folder / "run", study)
        metrics = run(directory, Simulated(dataset=fold), progress=progress)["metrics"]["test"]
    return metrics["auroc"], metrics["balanced_accuracy"]


@contextmanager
def _scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="fedveil-scan-") as name:
        yield Path(name)
