"""How accuracy depends on privacy for one task and recipe, as a law whose few parameters are fitted to a sweep.

With step sizes as large as the noise allows (`fedveil.learning.step_size`), accuracy depends on privacy through
one number, ``nu = N mu / f``: N units, mu the part of the budget (in Gaussian differential privacy) left for the
model, f the factor by which trust enlarges the noise in a sum (1 for a trusted server, sqrt(n) where each of n
hospitals adds all of it, sqrt(n / h) where any h of them together do). In T noisy sums with noise multiplier z, each
over a share q of the units, units with equal contributions have the ratio

    nu = q N sqrt(T) / (z f),

which at q = 1 is N mu / f, since there mu = sqrt(T) / z. Sampled sums have less: the noise that sampling saves never
compensates for the units that it leaves out. In federated averaging T counts local steps, and each of n hospitals
adds all of the noise to each of them, at every trust level. The server averages n differences, whose steps each
hospital divided by its share q N / n of the units. One step at every hospital therefore moves the model by the sum
over hospitals of clipped sum plus noise, divided by q N. So the formula holds with f = sqrt(n). (If the unit is the
site, hospitals take steps without noise; then T counts rounds, N is n, and f is that of the trust level.)

For a linear score whose weights are noisy, noise multiplies the squared separation by 1 / (1 + (b / nu)^p), and
learning the weights from N patients adds a / N to the denominator:

    d^2 = D^2 / (1 + a / N + (b / nu)^p).

Noise also has a component along the direction in which the classes differ, which varies between runs. Over runs the
separation is approximately normal around d, with variance 2 s^2, ``s^2 = s_0^2 + s_1^2 / (1 + (nu / b)^2)``: s_0
where patients dominate, s_1 where noise dominates. A run's AUROC is Phi(separation / sqrt 2). The mean over runs is
not the AUROC of the mean separation; for a normal separation it is

    AUROC = E Phi(d / sqrt 2 + s g) = Phi(d / sqrt(2 (1 + s^2))),    g standard normal.

D, a, b, p, s_0 and s_1 belong to a task and a recipe: images, classes, features or network, and the way noise enters.
Balanced accuracy at the best threshold is Phi(d / 2) for normal scores of equal spread, a law of the same form, and
has six parameters of its own: thresholds are more sensitive to noise than rankings. For networks the law is
empirical and holds as well as it was measured to.
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

from fedveil.errors import InvalidValue, StudyError
from fedveil.lazy import later
from fedveil.learning.accuracy_law import law_score, law_variance
from fedveil.study.recipes import METRICS, Method, Metric, Recipe, metric_name
from fedveil.study.settings.schema import Study
from fedveil.sweeps.grid import Measurement

__all__ = ["Laws", "Reference", "collect", "references"]

special = later("scipy.special")
optimize = later("scipy.optimize")


Vector = npt.NDArray[np.float64]
PASSES = 3
"""Iterations of the fit: the variance of runs follows from one law, and weights the runs in the next."""
COARSE = 0.004
"""The smallest standard deviation of an accuracy used in weights: no test set is more precise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """How accuracy depends on patients and noise for one task and recipe; see the module's text for the law.

    Attributes:
        name: of the task.
        method: how the models were trained.
        network: what was trained.
        metric: what accuracy was measured by.
        image_size: pixels along each side of the images.
        separation: D, in standard deviations of the score.
        patients: a.
        noise: b, the nu at which noise halves the squared separation of infinitely many patients.
        power: p.
        spread: s_0.
        scatter: s_1.
        ratios: smallest and largest nu in the fit.
        sizes: smallest and largest number of patients in the fit.
        runs: number of runs in the fit.
    """

    name: str
    method: Method
    separation: float
    patients: float
    noise: float
    power: float
    spread: float
    scatter: float
    ratios: tuple[float, float]
    sizes: tuple[float, float]
    runs: int
    network: str = "linear"
    metric: Metric = "auroc"
    image_size: int = 64

    @property
    def recipe(self) -> Recipe:
        """What was trained, and how."""
        return Recipe(network=self.network, method=self.method)

    def expected(self, patients: float, ratio: float) -> float:
        """The expected accuracy: the mean over runs."""
        return float(special.ndtr(self._score(patients, ratio) / math.sqrt(1 + self._variance(ratio))))

    def interval(self, patients: float, ratio: float) -> tuple[float, float]:
        """The interval in which 95 % of single runs on this task are expected."""
        middle, half = self._score(patients, ratio), 1.96 * math.sqrt(self._variance(ratio))
        return float(special.ndtr(middle - half)), float(special.ndtr(middle + half))

    def explain(self, patients: float, ratio: float) -> list[str]:
        """The arithmetic of a prediction, line by line."""
        score, variance = self._score(patients, ratio), self._variance(ratio)
        low, high = self.interval(patients, ratio)
        return [
            f"{metric_name(self.metric)} on {self.name}, {self.recipe}, {self.runs} runs: "
            f"D = {self.separation:.3f}, a = {self.patients:.3g}, "
            f"b = {self.noise:.3g}, p = {self.power:.2f}, s = {self.spread:.2f} and {self.scatter:.2f}",
            f"d = D / sqrt(1 + a / {patients:,.0f} + (b / {ratio:.1f})^p) = {math.sqrt(2) * score:.3f}",
            f"{metric_name(self.metric)} = Phi(d / sqrt(2 (1 + {variance:.3f}))) = "
            f"{self.expected(patients, ratio):.3f}; "
            f"95 % of runs between {low:.3f} and {high:.3f}",
        ]

    def covers(self, patients: float, ratio: float) -> bool:
        """Whether a prediction lies within the range of the fit; predictions with more privacy are less certain."""
        return self.ratios[0] <= ratio and self.sizes[0] <= patients <= self.sizes[1]

    def _score(self, patients: float, ratio: float) -> float:
        """d / sqrt 2."""
        logs = np.log([self.separation, self.patients, self.noise, self.power])
        return float(_law(logs, np.array([patients]), np.array([ratio]))[0])

    def _variance(self, ratio: float) -> float:
        """s squared."""
        return float(law_variance(self.spread, self.scatter, self.noise, ratio))

    @classmethod
    def fit(
        cls,
        name: str,
        results: Iterable[Measurement],
        *,
        metric: Metric = "auroc",
        study: Study | None = None,
    ) -> Self:
        """Fit a law by weighted least squares to the accuracies of a sweep by one method.

        It needs several epsilons, and several numbers of patients are best. A run's weight is its inverse variance:
        its standard deviation follows from s and the slope of Phi.

        Args:
            name: of the task.
            results: of the sweep.
            metric: what to fit.
            study: the study that was swept, for its network and image size; default a linear head.

        Raises:
            InvalidValue: fewer than 8 settings were measured, or more than one method.
        """
        found, swept = list(results), study or Study()
        methods = sorted({m.setting.method for m in found})
        if len(found) < 8 or len(methods) > 1:
            raise InvalidValue(
                f"{len(found)} settings were measured by {', '.join(methods) or 'no method'}",
                "the fit of four parameters needs 8 or more settings, by one method",
                "sweep more epsilons and numbers of patients",
            )
        rows = [(m.patients, m.ratio, m.value(metric)) for m in found]
        patients, ratio, values = np.array(rows, dtype=float).T
        logs, spread, scatter = _fit(patients, ratio, values)
        separation, lack, noise, power = np.exp(logs).tolist()
        finite = ratio[np.isfinite(ratio)]
        return cls(
            name=name,
            method=methods[0],
            separation=separation,
            patients=lack,
            noise=noise,
            power=power,
            spread=spread,
            scatter=scatter,
            ratios=(float(finite.min()), float(finite.max())),
            sizes=(float(patients.min()), float(patients.max())),
            runs=len(found),
            network=swept.model.network,
            metric=metric,
            image_size=swept.data.image_size,
        )

    @classmethod
    def fit_each(cls, name: str, results: Iterable[Measurement], study: Study | None = None) -> "Laws":
        """The laws of every method that was swept; a sweep's baselines are not part of them."""
        by: dict[Method, list[Measurement]] = {}
        for one in results:
            if one.setting.arrangement != "federated":
                continue
            by.setdefault(one.setting.method, []).append(one)
        return collect(
            cls.fit(name, group, metric=metric, study=study) for group in by.values() for metric in METRICS
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The inverse of `to_dict`."""
        return cls(**(values | {"ratios": tuple(values["ratios"]), "sizes": tuple(values["sizes"])}))


def _fit(patients: Vector, ratio: Vector, values: Vector) -> tuple[Vector, float, float]:
    """Logarithms of D, a, b and p, with s_0 and s_1; see `Reference.fit`."""
    logs = np.log([max(2 * float(special.ndtri(min(values.max(), 0.9999))), 0.5), 30.0, 100.0, 1.5])
    low, high = np.log([0.05, 1e-3, 1e-3, 0.3]), np.log([20.0, 1e4, 1e5, 4.0])
    spread, scatter = 0.05, 0.3
    for _ in range(PASSES):
        variance = spread**2 + scatter**2 / (1 + (ratio / math.exp(logs[2])) ** 2)
        slope = np.exp(-np.square(_law(logs, patients, ratio)) / 2) / math.sqrt(2 * math.pi)
        doubt = np.sqrt(variance * slope**2 + COARSE**2)
        known = (patients, ratio, values, np.sqrt(1 + variance), doubt)
        logs = optimize.least_squares(_residuals, logs, bounds=(low, high), args=known).x
        off = special.ndtri(np.clip(values, 0.01, 0.9999)) - _law(logs, patients, ratio)
        spread, scatter = _scatter(off, ratio, math.exp(logs[2]))
    return logs, spread, scatter


def _law(logs: Vector, patients: Vector, ratio: Vector) -> Vector:
    """d / sqrt 2 for the logarithms of D, a, b and p."""
    separation, lack, noise, power = np.exp(logs)
    return law_score(separation, lack, noise, power, patients, ratio)


def _residuals(
    logs: Vector, patients: Vector, ratio: Vector, values: Vector, widened: Vector, doubt: Vector
) -> Vector:
    """Residuals, in standard deviations of a run."""
    result: Vector = (special.ndtr(_law(logs, patients, ratio) / widened) - values) / doubt
    return result


def _scatter(off: Vector, ratio: Vector, noise: float) -> tuple[float, float]:
    """Spread and scatter from single runs' residuals; see `Reference`."""
    quiet = ratio > 2 * noise
    floor = float(np.mean(off[quiet] ** 2)) if quiet.sum() >= 4 else 0.0
    weight = 1 / (1 + (ratio / noise) ** 2)
    rest = float(weight @ (off**2 - floor)) / max(float(weight @ weight), 1e-9)
    return math.sqrt(floor), math.sqrt(max(rest, 0.0))


Laws = dict[Recipe, dict[Metric, Reference]]
"""What is known about one task."""


def collect(laws: Iterable[Reference]) -> Laws:
    """By recipe and metric."""
    found: Laws = {}
    for law in laws:
        found.setdefault(law.recipe, {})[law.metric] = law
    return found


def references(path: Path | None = None) -> dict[str, Laws]:
    """The known laws by task name, from the built-in file or another one."""
    source = path or files("fedveil.planning").joinpath("references.json")
    try:
        values = json.loads(source.read_text(encoding="utf-8"))["references"]
        return {name: collect(Reference.from_dict(one) for one in laws) for name, laws in values.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StudyError(
            f"{source} cannot be read ({type(error).__name__})",
            "it must hold tasks as `python benchmarks/references.py` writes them",
            "write it again",
        ) from None
