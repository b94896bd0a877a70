"""The least epsilon of a sweep that keeps the accuracy, and how uncertain it is over repeats."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from fedveil.lazy import later
from fedveil.privacy import Trust
from fedveil.sweeps.grid import NO_PRIVACY, Measurement, Setting

__all__ = ["TOLERANCE", "Knee", "knees"]

optimize = later("scipy.optimize")

TOLERANCE = 0.01
RESAMPLES = 400
FEWEST = 3
"""Repeats that an interval needs."""
Vector = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Knee:
    """The least swept epsilon whose mean AUROC is within the tolerance of that without privacy.

    Attributes:
        setting: what was held fixed; its epsilon is the least one, `NO_PRIVACY` if no swept epsilon is within.
        low: 2.5 % quantile of the least epsilon over resampled repeats; NaN for fewer than 3 repeats.
        high: 97.5 % quantile; infinite if resampled repeats often reach no epsilon.
        at: the least epsilon; the largest swept one if none is within.
        auroc: mean there.
        bare: mean without privacy.
        runs: repeats of each epsilon.
        tolerance: the accepted loss.
    """

    setting: Setting
    low: float
    high: float
    at: float
    auroc: float
    bare: float
    runs: int
    tolerance: float = TOLERANCE

    @property
    def epsilon(self) -> float:
        """The least epsilon; infinite if none is within the tolerance."""
        return self.setting.epsilon

    @property
    def trust(self) -> Trust:
        """Who could see an un-noised sum."""
        return self.setting.trust


def knees(results: Iterable[Measurement], tolerance: float = TOLERANCE) -> list[Knee]:
    """One per trust, number of hospitals and other swept setting, in the order of the results.

    Mean accuracy is made non-decreasing in epsilon (isotonic regression), so that a chance dip between two epsilons
    decides nothing. Its uncertainty over repeats is that of the bootstrap: repeats are drawn with replacement, with
    all their epsilons. Settings without a measurement without privacy are left out.
    """
    federated = [one for one in results if one.setting.arrangement == "federated"]
    private: dict[Setting, dict[int, dict[float, float]]] = {}
    bare: dict[Setting, dict[int, float]] = {}
    for one in federated:
        if one.setting.trust == "none" or math.isinf(one.setting.epsilon):
            bare.setdefault(_held(one.setting), {})[one.setting.seed] = one.auroc
        else:
            key = replace(_held(one.setting), trust=one.setting.trust)
            private.setdefault(key, {}).setdefault(one.setting.seed, {})[one.setting.epsilon] = one.auroc
    found = []
    for key, runs in private.items():
        known = bare.get(_held(key))
        if known:  # a sweep may not have finished its settings without privacy
            found.append(_knee(key, runs, known, tolerance))
    return found


def _held(setting: Setting) -> Setting:
    """The setting without epsilon, trust and seed."""
    return replace(setting, epsilon=NO_PRIVACY, trust="none", seed=0)


def _knee(
    key: Setting, runs: dict[int, dict[float, float]], bare: dict[int, float], tolerance: float
) -> Knee:
    level = float(np.mean(list(bare.values())))
    most = max(len(values) for values in runs.values())
    runs = {seed: values for seed, values in runs.items() if len(values) == most}  # others are unfinished
    epsilons = sorted(set.intersection(*(set(values) for values in runs.values())))
    table = np.array([[values[one] for one in epsilons] for values in runs.values()])
    without = np.array([bare.get(seed, level) for seed in runs])
    place = _least(table.mean(axis=0), float(without.mean()), tolerance)
    low, high = _interval(table, without, epsilons, tolerance)
    return Knee(
        setting=replace(key, epsilon=epsilons[place] if place < len(epsilons) else NO_PRIVACY),
        low=low,
        high=high,
        at=epsilons[min(place, len(epsilons) - 1)],
        auroc=float(table.mean(axis=0)[min(place, len(epsilons) - 1)]),
        bare=float(without.mean()),
        runs=len(table),
        tolerance=tolerance,
    )


def _least(means: Vector, bare: float, tolerance: float) -> int:
    """The index of the first epsilon within the tolerance; their number if there is none."""
    rising = optimize.isotonic_regression(means).x
    enough = np.flatnonzero(rising >= bare - tolerance - 1e-12)
    return int(enough[0]) if len(enough) else len(means)


def _interval(
    table: Vector, bare: Vector, epsilons: Sequence[float], tolerance: float
) -> tuple[float, float]:
    """Quantiles of the least epsilon over resampled repeats."""
    count = len(table)
    if count < FEWEST:
        return math.nan, math.nan
    generator = np.random.default_rng(0)
    drawn = generator.integers(count, size=(RESAMPLES, count))
    values = np.append(epsilons, math.inf)
    found = np.sort(
        [values[_least(table[rows].mean(axis=0), float(bare[rows].mean()), tolerance)] for rows in drawn]
    )
    low, high = found[int(0.025 * RESAMPLES)], found[math.ceil(0.975 * RESAMPLES) - 1]
    return float(low), float(high)
