"""What an attacker is: it gets a study and its effort, and returns what it measured. Final classes implement it."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from fedveil.audit.claims import Claim, EpsilonClaim, MechanismClaim
from fedveil.audit.evidence import Evidence
from fedveil.audit.statistics import Vector
from fedveil.errors import InvalidValue, StudyError
from fedveil.federation import Agreement
from fedveil.io import write_atomic, write_json
from fedveil.privacy import Mechanism
from fedveil.study import Hospitals, Prepared, Progress
from fedveil.study.pipeline import Task

__all__ = ["STUDY", "Attacker", "Attempt", "Setup", "Trials", "claim_of", "roc"]

STUDY = "study"
"""Name of the whole study where a release is named otherwise."""
POINTS = 60
"""Points of a measured curve that are kept."""


class Trials:
    """Scores of finished trials on disk, so that an interrupted audit goes on where it was.

    Args:
        folder: holds one file per finished piece of work.
        about: plain values that determine what is measured; another audit's files are refused.
    """

    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
        self._folder = folder
        digest = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()
        manifest = folder / "audit.json"
        if manifest.exists() and json.loads(manifest.read_text())["digest"] != digest:
            raise StudyError(
                f"{folder} holds the trials of another audit",
                "an interrupted audit goes on with the same study, data, settings and installed code",
                "repeat it as it was, choose another --out, or delete the folder",
            )
        folder.mkdir(
            mode=0o700, parents=True, exist_ok=True
        )  # of one's own images it is as confidential as they
        if not manifest.exists():
            write_json(manifest, {"digest": digest, **about})

    def get(self, name: str, make: Callable[[], npt.ArrayLike]) -> npt.NDArray[Any]:
        """The array of that name, from the disk or made and stored."""
        path = self._folder / f"{name.replace(' ', '-')}.npy"
        if path.exists():
            found: npt.NDArray[Any] = np.load(path, allow_pickle=False)
            return found
        made = np.asarray(make())
        write_atomic(path, lambda file: np.save(file, made, allow_pickle=False))
        return made


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Setup:
    """A study under attack.

    Attributes:
        prepared: its data.
        task: its model.
        agreement: what sites admit.
        confidence: with which all bounds of the audit hold together.
        attempts: the most attempts that all its attackers together make, known before any trial.
        trials: executions of each world that a white-box attacker makes; None for what takes seconds.
        sessions: worlds of each kind in which rounds run through the whole protocol.
        canaries: in one run.
        references: models that the black-box attacker trains.
        store: of finished trials.
        progress: told of finished pieces of work.
        hospitals: who trains; simulated ones by default.
    """

    prepared: Prepared
    task: Task
    agreement: Agreement
    confidence: float
    attempts: int
    trials: int | None
    sessions: int
    canaries: int
    references: int
    store: Trials
    progress: Progress
    hospitals: Hospitals | None = None

    @property
    def significance(self) -> float:
        """Of each attempt, when it is planned and when it is judged: a union bound over all of them."""
        return (1 - self.confidence) / max(1, self.attempts)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Attempt:
    """What one attack on one release, or on the whole study, measured.

    Attributes:
        attacker: its name.
        release: name of the release, or `STUDY`.
        claim: what is stated about it; a family.
        plain: the same as epsilon and delta alone.
        evidence: guesses.
        curve: (points, 2) measured false and true positive rates at all thresholds, not to be judged.
        area: under that curve.
        executions: how often the code was run.
        what: the attack in words.
        covered: which of the stated rounds were attacked; empty for all.
    """

    attacker: str
    release: str
    claim: Claim
    plain: EpsilonClaim
    evidence: Evidence
    curve: Vector
    area: float
    executions: int
    what: str
    covered: str = ""


class Attacker(ABC):
    """An attack on a study."""

    name: ClassVar[str]

    def most(self, agreement: Agreement) -> int:  # noqa: ARG002
        """The largest number of attempts that `attack` can return for this agreement: one, unless a class says more."""
        return 1

    @abstractmethod
    def attack(self, setup: Setup) -> list[Attempt]:
        """Attack what it can; an empty list if there is nothing for it.

        Raises:
            InvalidValue: there are too few trials or canaries to contradict the claim, however successful they are.
        """


def claim_of(mechanisms: tuple[Mechanism, ...], delta: float) -> tuple[Claim, EpsilonClaim]:
    """The whole trade-off function that mechanisms state, and epsilon and delta alone.

    Without noise nothing is stated: bounds are then measured against epsilon 1.
    """
    if any(one.noise_multiplier == 0 for one in mechanisms):
        return EpsilonClaim(1.0, delta), EpsilonClaim(1.0, delta)
    claim = MechanismClaim(mechanisms, delta)
    return claim, EpsilonClaim(max(claim.epsilon(), 1e-9), delta)


def check_enough(setup: Setup, found: int, needed: int, what: str, option: str) -> None:
    """Refuse an attack that cannot contradict the claim even if it is always right."""
    if found < needed:
        raise InvalidValue(
            f"the audit has {found} {what}",
            f"at {100 * setup.confidence:g} % confidence of all bounds together it takes {needed} to contradict this "
            "epsilon, even for an attacker who is never wrong",
            f"give {option} {needed} or more, or a lower confidence",
        )


def roc(without: Vector, within: Vector) -> tuple[Vector, float]:
    """The measured curve, thinned out, and the area under it (ties count half)."""
    thresholds = np.unique(np.concatenate([without, within]))[::-1]
    if len(thresholds) > POINTS:
        thresholds = np.quantile(thresholds, np.linspace(1, 0, POINTS))
    low, high = np.sort(without), np.sort(within)
    false = 1 - np.searchsorted(low, thresholds, side="left") / len(low)
    true = 1 - np.searchsorted(high, thresholds, side="left") / len(high)
    below = np.searchsorted(low, within, side="left") + np.searchsorted(low, within, side="right")
    return np.stack([false, true], axis=1), float(below.mean() / (2 * len(low)))
