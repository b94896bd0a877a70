"""A hospital with real images, from which one attacker gets all that leaves it: what the audits of planted faults run.

Each run is the product's own path: a fresh site with a ledger on disk admits the agreement, and answers every request
of a study. The claim is what stands in the ledger afterwards.
"""

import itertools
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from fedveil.audit.claims import MechanismClaim
from fedveil.data import Dataset
from fedveil.federation import Policy, Reply, Request, Site
from fedveil.learning import HeldOut, Learner
from fedveil.privacy import Budget, Ledger, Mechanism
from fedveil.study import Study
from fedveil.study.calibrate import make_agreement
from fedveil.study.pipeline import Task, make_task
from fedveil.study.progress import Silent

__all__ = ["DELTA", "EVERYTHING", "Asked", "Cohort", "Hospital"]

DELTA = 1e-4
STUDY = """
[study]
name = "audited"
[data]
source = "none"
classes = ["normal", "pneumonia"]
channels = 1
[model]
features = "precomputed"
dimension = 8
[training]
rounds = {rounds}
sampling_rate = {rate}
[privacy]
epsilon = 8.0
delta = 1e-4
trust = "site"
clip_norm = 0.1
statistics_share = {statistics}
calibration_share = 0.1
evaluation_share = {evaluation}
[federation]
max_units = 2000
"""


@dataclass(frozen=True)
class Cohort:
    """One hospital's patients: trained on, and held out.

    Attributes:
        trained: patients by number in the data.
        tested: likewise.
    """

    trained: tuple[int, ...]
    tested: tuple[int, ...] = ()


@lru_cache(maxsize=1)
def chest_images() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vectors (n, 8) of paediatric chest X-rays, class codes of two classes, patient codes.

    A vector holds the brightness of eight rectangles: few numbers, so that a few thousand runs show much.
    """
    folder = Path(os.environ["FEDVEIL_DATA"]) / "kermany_cxr"
    with np.load(folder / "kermany_cxr_28.npz") as file:
        vectors = file["images"].reshape(-1, 4, 7, 2, 14).mean(axis=(2, 4)).reshape(-1, 8) / 255
        return (
            vectors.astype(np.float32),
            (file["labels"] > 0).astype(np.int64),
            file["patient"].astype(np.int64),
        )


@lru_cache(maxsize=8)
def _task(rounds: int, rate: float, statistics: float, evaluation: float) -> Task:
    """A study's model over the images of the 200 patients who have most."""
    vectors, labels, patients = chest_images()
    most = np.argsort(-np.bincount(patients), kind="stable")[:200]
    rows = np.flatnonzero(np.isin(patients, most))
    study = Study.parse(STUDY.format(rounds=rounds, rate=rate, statistics=statistics, evaluation=evaluation))
    codes = np.searchsorted(np.sort(most), patients[rows])
    data = Dataset.from_features(vectors[rows], labels[rows], patients=codes, classes=("normal", "pneumonia"))
    return make_task(study, data, Silent())


@dataclass(frozen=True)
class Asked:
    """What the attacker asks of the hospital: a release, a round, the parameters sent with it."""

    release: str
    round: int = 1
    parameters: str = "start"


EVERYTHING = (
    Asked("statistics"),
    Asked("training"),
    Asked("calibration", parameters="line"),
    Asked("evaluation", parameters="line"),
)


class Hospital:
    """One hospital under an attacker who knows everything but one patient, and receives all that leaves it.

    Args:
        asked: requests, in order; the coordinator is the attacker, so it sends what parameters it likes.
        rounds: of training.
        rate: with which patients are sampled.
        statistics: share of the budget that class statistics have.
        evaluation: likewise.
    """

    def __init__(
        self,
        asked: Sequence[Asked] = EVERYTHING,
        *,
        rounds: int = 1,
        rate: float = 1.0,
        statistics: float = 0.2,
        evaluation: float = 0.1,
    ) -> None:
        self.task, self._asked = _task(rounds, rate, statistics, evaluation), tuple(asked)
        self.agreement = make_agreement(self.task.study, sites=("north",), model=self.task.model)
        self._folder = tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
        self._numbers = itertools.count()
        self._spent: set[tuple[Mechanism, ...]] = set()
        self._known: dict[Cohort, tuple[Learner, HeldOut | None]] = {}

    def __enter__(self) -> "Hospital":
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def answer(self, cohort: Cohort) -> np.ndarray:
        """All that leaves the hospital in one study, end to end; zeros for what it declines."""
        path = Path(self._folder.name) / f"ledger-{next(self._numbers)}.jsonl"
        with Ledger(path, Budget(100.0, DELTA)) as ledger:
            learner, held_out = self._units(cohort)
            site = Site("north", learner, Policy(), ledger, held_out=held_out)
            site.admit(self.agreement)
            answers = [
                site.handle(
                    Request(
                        study=self.agreement.digest,
                        release=one.release,
                        round=one.round,
                        attempt=attempt,
                        participants=("north",),
                        parameters=self._parameters(one),
                    )
                )
                for attempt, one in enumerate(self._asked, start=1)
            ]
            self._spent.add(tuple(charge.mechanism for charge in ledger.state.charges))
        path.unlink()
        return np.concatenate(
            [
                one.vector
                if isinstance(one, Reply)
                else np.zeros(self.agreement.release(asked.release).dimension)
                for one, asked in zip(answers, self._asked, strict=True)
            ]
        )

    def patients(self, label: int) -> list[int]:
        """Patients all of whose images have this label, those with most images first."""
        data = self.task.dataset
        counts = np.bincount(data.patients)
        alike = np.bincount(data.patients, data.labels == label) == counts
        return [int(one) for one in np.argsort(-counts, kind="stable") if alike[one]]

    def claim(self, cohort: Cohort) -> MechanismClaim:
        """What the ledger says that one such study costs a patient."""
        self.answer(cohort)
        (charged,) = self._spent  # the same whatever the cohort is
        return MechanismClaim(charged, DELTA)

    def _units(self, cohort: Cohort) -> tuple[Learner, HeldOut | None]:
        """The cohort behind the study's model, made once."""
        if cohort not in self._known:
            held_out = self.task.held_out(self._rows(cohort.tested))
            self._known[cohort] = self.task.learner(self._rows(cohort.trained)), held_out
        return self._known[cohort]

    def _rows(self, patients: Sequence[int]) -> np.ndarray:
        return np.flatnonzero(np.isin(self.task.dataset.patients, patients))

    def _parameters(self, asked: Asked) -> np.ndarray:
        """Parameters that the site accepts: an untrained head, with classes of any weight, or a head along a line."""
        release, model = self.agreement.release(asked.release), self.task.model
        if not release.parameters:
            return np.empty(0)
        line = np.linspace(-1, 1, model.trained)
        trained = line / np.linalg.norm(line) if asked.parameters == "line" else np.zeros(model.trained)
        before = np.full(release.parameters - model.parameters, 1 / model.classes)
        parameters = np.concatenate([before, model.join(None, trained)])
        if asked.parameters == "rare":  # weights of two classes, the second one of which is said to be rare
            parameters[model.features : model.features + 2] = 1 / (2 * np.array([0.95, 0.05]))
        return parameters
