"""A sweep's results as lines: accuracy against epsilon, or against what an attacker could do with it.

Every figure varies epsilon and one more thing; the rest is held at the study's own setting, or near it.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, NullLocator
from scipy.stats import t as student

from fedveil.errors import StudyError
from fedveil.report import formatting
from fedveil.report.drawing import DASHES, SERIES, Palette, plain_axes
from fedveil.study import Measurement, RunDirectory, Study, read_measurements

__all__ = ["AXES", "METRICS", "Axis", "Panel", "Point", "Sweep", "draw", "load_sweep"]

TRUST = {
    "site": "each hospital adds all its noise",
    "secure-aggregation": "secure aggregation",
    "server": "trusted server",
}
METHODS = {
    "gradient": "rounds of gradients",
    "averaging": "rounds of local steps",
    "one-shot": "one round of class means",
}
METRICS = {"auroc": "AUROC", "balanced_accuracy": "Balanced accuracy"}
FEWEST = 3
"""Repeats that an interval takes: from two alone it would fill the figure and tell nothing."""
APART = 0.13
"""Ticks of risk that are nearer than this part of the axis would overlap; the first of them is labelled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """What a figure's lines differ in: an attribute of `Setting`, a title, and how its values are called."""

    name: str
    title: str
    label: Callable[[Any], str]


AXES = (
    Axis(name="trust", title="by whom one has to trust", label=lambda value: TRUST[value]),
    Axis(name="sites", title="by number of hospitals", label=lambda value: f"{value} hospitals"),
    Axis(
        name="alpha",
        title="by how alike hospitals are",
        label=lambda value: "all alike" if math.isinf(value) else f"Dirichlet {value:g}",
    ),
    Axis(name="method", title="by how the model is trained", label=lambda value: METHODS[value]),
    Axis(name="unit", title="by whom the guarantee protects", label=lambda value: f"per {value}"),
    Axis(
        name="patients",
        title="by number of patients",
        label=lambda value: "all patients" if value is None else f"{formatting.count(value)} patients",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """The mean over repeats at one x, with its interval; low and high are NaN for fewer repeats than `FEWEST`."""

    x: float
    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One figure's content: named lines over epsilon or risk, and the level without privacy with what it is held at."""

    axis: Axis
    metric: str
    risk: bool
    lines: tuple[tuple[str, tuple[Point, ...]], ...]
    bare: float
    bare_at: str

    @property
    def key(self) -> str:
        """A name for files and ids."""
        return f"{self.metric}-{'risk' if self.risk else 'epsilon'}-{self.axis.name}".replace("_", "-")


@dataclass(frozen=True, slots=True)
class Sweep:
    """A sweep's study and results."""

    study: Study
    results: tuple[Measurement, ...]

    def values(self, name: str) -> list[Any]:
        """What was swept along one axis, in ascending order where it has one; settings without privacy left out."""
        found = list(dict.fromkeys(getattr(m.setting, name) for m in self._private()))
        if name in ("trust", "unit", "method"):
            order = [*TRUST, "patient", "image", *METHODS]
            return sorted(found, key=lambda value: order.index(value) if value in order else len(order))
        return sorted(found, key=lambda value: math.inf if value is None else value)

    def _private(self) -> list[Measurement]:
        return [m for m in self.results if m.setting.trust != "none"]

    def held(self, varied: str = "") -> dict[str, Any]:
        """Where each axis is held while another varies: at the study's own value, or the middle of what was swept.

        How many hospitals there are matters most where one trusts them least, so trust is held there then.
        """
        sites = self.study.data.sites
        own = {
            "trust": self.study.privacy.trust,
            "unit": self.study.privacy.unit,
            "sites": sites.count,
            "alpha": math.inf if sites.scheme == "iid" else sites.alpha,
            "method": self.study.training.method,
            "patients": None,
        }
        held = {}
        for name, value in own.items():
            found = self.values(name)
            held[name] = value if value in found else found[len(found) // 2]
        if varied == "sites":
            held["trust"] = self.values("trust")[0]
        return held

    def at(self, **wanted: Any) -> list[Measurement]:
        """The results whose settings have these values; whom one trusts is no matter where there is no privacy."""
        return [
            m
            for m in self.results
            if all(
                getattr(m.setting, name) == value or (name == "trust" and m.setting.trust == "none")
                for name, value in wanted.items()
            )
        ]

    def panel(self, axis: Axis, metric: str, *, risk: bool = False) -> Panel:
        """The lines of one figure."""
        held = self.held(axis.name)
        values = self.values(axis.name)[:SERIES]
        lines = []
        for value in values:
            found = [m for m in self.at(**(held | {axis.name: value})) if m.setting.trust != "none"]
            lines.append((axis.label(value), _points(found, metric, risk)))
        bare = [getattr(m, metric) for m in self.at(**held) if m.setting.trust == "none"]
        return Panel(
            axis=axis,
            metric=metric,
            risk=risk,
            lines=tuple(lines),
            bare=float(np.mean(bare)) if bare else math.nan,
            bare_at="" if axis.name == "trust" else axis.label(held[axis.name]),
        )

    def panels(self) -> tuple[list[Panel], list[Panel]]:
        """Every figure that this sweep has something to show in: against epsilon, and against risk."""
        varied = [axis for axis in AXES if len(self.values(axis.name)) > 1] or [AXES[0]]
        against_epsilon = [self.panel(axis, "auroc") for axis in varied]
        against_epsilon.append(self.panel(varied[0], "balanced_accuracy"))
        return against_epsilon, [self.panel(axis, "auroc", risk=True) for axis in varied]

    def held_words(self, varied: str = "") -> str:
        """What is held where, in words; what a figure varies is left out."""
        held = self.held(varied)
        return ", ".join(axis.label(held[axis.name]) for axis in AXES if axis.name != varied)


def load_sweep(directory: Path) -> Sweep:
    """Read what a sweep has finished so far.

    Raises:
        StudyError: there is no sweep, or none of its settings with privacy is finished.
    """
    found = Sweep(RunDirectory(directory).study(), tuple(read_measurements(directory)))
    if not any(m.setting.trust != "none" for m in found.results):
        raise StudyError(
            f"{directory} holds no finished setting with privacy",
            "the page shows accuracy against privacy",
            "go on with `fedveil sweep --resume`",
        )
    return found


def _points(results: Iterable[Measurement], metric: str, risk: bool) -> tuple[Point, ...]:
    groups: dict[float, list[Measurement]] = {}
    for one in results:
        groups.setdefault(one.setting.epsilon, []).append(one)
    points = []
    for epsilon, group in sorted(groups.items()):
        x = float(np.mean([one.true_positive_rate for one in group])) if risk else epsilon
        points.append(_mean(x, [getattr(one, metric) for one in group]))
    return tuple(points)


def _mean(x: float, values: Sequence[float]) -> Point:
    mean, n = float(np.mean(values)), len(values)
    if n < FEWEST:
        return Point(x=x, mean=mean, low=math.nan, high=math.nan)
    half = float(student.ppf(0.975, n - 1) * np.std(values, ddof=1) / math.sqrt(n))
    return Point(x=x, mean=mean, low=max(0.0, mean - half), high=min(1.0, mean + half))


def draw(axes: Axes, panel: Panel, palette: Palette) -> None:
    """Draw a panel's lines, bands and the level without privacy; ticks lie at what was swept."""
    x = "Most an attacker finds at 1 % false alarms" if panel.risk else "Epsilon (smaller is more private)"
    plain_axes(axes, palette, x=x, y=f"{METRICS[panel.metric]} on the test set")
    for series, (_, points) in enumerate(panel.lines):
        values = np.array([[getattr(p, field.name) for field in fields(Point)] for p in points]).reshape(
            -1, 4
        )
        colour = palette.series[series]
        axes.plot(
            values[:, 0],
            values[:, 1],
            color=colour,
            dashes=DASHES[series] or (None, None),
            marker="o",
            markersize=4,
        )
        if np.isfinite(values[:, 2]).any():
            axes.fill_between(values[:, 0], values[:, 2], values[:, 3], color=colour, alpha=0.15, linewidth=0)
    if math.isfinite(panel.bare):
        axes.axhline(panel.bare, color=palette.muted, linewidth=1, dashes=(1.5, 3))
    ticks = sorted({point.x for _, points in panel.lines for point in points})
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.set_xscale("log")
    axes.xaxis.set_minor_locator(NullLocator())
    if panel.risk:
        kept, gap = ticks[:1], APART * math.log(ticks[-1] / ticks[0])
        for tick in ticks[1:]:
            kept += [tick] if math.log(tick / kept[-1]) > gap else []
        axes.set_xticks(kept, [formatting.percent(tick, bound=True) for tick in kept])
    else:
        axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
    lowest = min(point.mean for _, points in panel.lines for point in points)
    axes.set_ylim(
        math.floor(20 * min(lowest, panel.bare if math.isfinite(panel.bare) else 1) - 0.2) / 20, 1.0
    )
