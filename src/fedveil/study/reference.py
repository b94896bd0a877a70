"""How accuracy depends on privacy for one task, as a law with four numbers that a sweep fixes.

Under a rule that steps as far as the noise allows (`fedveil.study.rules`), accuracy depends on privacy through one
number, ``nu = N mu / f``: N units, mu what the budget leaves for training in Gaussian-DP's measure, f the factor by
which trust enlarges the noise in a sum (1 for a trusted server, sqrt(n) where each of n hospitals adds all of it,
sqrt(n / h) where any h of them together do). A linear score whose weights carry noise keeps the part
1 / (1 + (b / nu)^p) of its squared separation; that the weights are learned from N patients costs it a / N more:

    d^2 = D^2 / (1 + a / N + (b / nu)^p),    AUROC = Phi(d / sqrt 2).

D, a, b and p belong to a task: its images, classes and features.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from scipy.optimize import least_squares
from scipy.special import ndtr, ndtri

from fedveil.errors import InvalidValue, StudyError
from fedveil.study.grid import Measurement

__all__ = ["Reference", "references"]

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """How accuracy depends on patients and noise for one task; see the module's text for the law.

    Attributes:
        name: of the task.
        separation: D, in standard deviations of the score.
        patients: a.
        noise: b, the nu at which noise takes as much as everything else.
        power: p.
        spread: standard deviation of single runs around the law where noise is small, in units of d / sqrt 2.
        scatter: what adds to it where noise is all there is: then chance decides which way the weights point.
        ratios: smallest and largest nu that it was fitted on.
        sizes: smallest and largest number of patients that it was fitted on.
        runs: how many runs.
    """

    name: str
    separation: float
    patients: float
    noise: float
    power: float
    spread: float
    scatter: float
    ratios: tuple[float, float]
    sizes: tuple[float, float]
    runs: int

    def auroc(self, patients: float, ratio: float) -> float:
        """The expected AUROC."""
        return float(ndtr(self._score(np.array([patients]), np.array([ratio]))[0]))

    def interval(self, patients: float, ratio: float) -> tuple[float, float]:
        """Where 95 % of single runs on this task are expected."""
        middle = float(self._score(np.array([patients]), np.array([ratio]))[0])
        half = 1.96 * math.sqrt(self.spread**2 + self.scatter**2 / (1 + (ratio / self.noise) ** 2))
        return float(ndtr(middle - half)), float(ndtr(middle + half))

    def covers(self, patients: float, ratio: float) -> bool:
        """Whether a prediction lies within what the law was fitted on; more privacy than that is less certain."""
        return self.ratios[0] <= ratio and self.sizes[0] <= patients <= self.sizes[1]

    def _score(self, patients: Vector, ratio: Vector) -> Vector:
        return _law(np.log([self.separation, self.patients, self.noise, self.power]), patients, ratio)

    @classmethod
    def fit(cls, name: str, results: Iterable[Measurement]) -> Self:
        """Least squares on the AUROC of a sweep with several epsilons, and best with several numbers of patients."""
        found = list(results)
        if len(found) < 8:
            raise InvalidValue(
                f"{len(found)} settings were measured",
                "four numbers are fitted to them, which needs 8 or more",
                "sweep more epsilons and numbers of patients",
            )
        patients = np.array([m.patients for m in found], dtype=float)
        ratio, auroc = np.array([m.ratio for m in found]), np.array([m.auroc for m in found])

        def residuals(logs: Vector) -> Vector:
            result: Vector = ndtr(_law(logs, patients, ratio)) - auroc
            return result

        start = np.log([max(2 * float(ndtri(auroc.max())), 0.5), 30.0, 100.0, 1.5])
        low, high = np.log([0.05, 1e-3, 1e-3, 0.3]), np.log([20.0, 1e4, 1e5, 4.0])
        fitted = least_squares(residuals, start, bounds=(low, high), loss="soft_l1", f_scale=0.02).x
        off = ndtri(np.clip(auroc, 0.01, 0.9999)) - _law(fitted, patients, ratio)
        spread, scatter = _scatter(off, ratio, float(np.exp(fitted[2])))
        finite = ratio[np.isfinite(ratio)]
        return cls(
            name=name,
            separation=float(np.exp(fitted[0])),
            patients=float(np.exp(fitted[1])),
            noise=float(np.exp(fitted[2])),
            power=float(np.exp(fitted[3])),
            spread=spread,
            scatter=scatter,
            ratios=(float(finite.min()), float(finite.max())),
            sizes=(float(patients.min()), float(patients.max())),
            runs=len(found),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The inverse of `to_dict`."""
        return cls(**(values | {"ratios": tuple(values["ratios"]), "sizes": tuple(values["sizes"])}))


def _law(logs: Vector, patients: Vector, ratio: Vector) -> Vector:
    """d / sqrt 2 for the logarithms of D, a, b and p."""
    separation, lack, noise, power = np.exp(logs)
    lost = 1 + lack / patients + (noise / np.maximum(ratio, 1e-9)) ** power
    result: Vector = separation / np.sqrt(2 * lost)
    return result


def _scatter(off: Vector, ratio: Vector, noise: float) -> tuple[float, float]:
    """Spread and scatter from single runs' distances to the law; see `Reference`."""
    quiet = ratio > 2 * noise
    floor = float(np.mean(off[quiet] ** 2)) if quiet.sum() >= 4 else 0.0
    weight = 1 / (1 + (ratio / noise) ** 2)
    rest = float(weight @ (off**2 - floor)) / max(float(weight @ weight), 1e-9)
    return math.sqrt(floor), math.sqrt(max(rest, 0.0))


def references(path: Path | None = None) -> dict[str, Reference]:
    """The tasks that fedveil knows, or those of another file, by name."""
    source = path or files("fedveil.study").joinpath("references.json")
    try:
        values = json.loads(source.read_text(encoding="utf-8"))
        return {name: Reference.from_dict(one) for name, one in values["references"].items()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StudyError(
            f"{source} cannot be read ({type(error).__name__})",
            "it holds tasks as `fedveil recommend --fit` writes them",
            "write it again",
        ) from None
