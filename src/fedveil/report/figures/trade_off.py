"""A sweep's results as lines: accuracy against epsilon, or against the success of an attacker.

Every figure varies epsilon and one other axis; the rest is fixed at the study's own setting, or near it.
"""

import math
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_args

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, NullLocator
from scipy.stats import t as student

from fedveil.errors import StudyError
from fedveil.report import formatting
from fedveil.report.figures.drawing import DASHES, SERIES, Palette, plain_axes
from fedveil.study import Arrangement, RunDirectory, Study
from fedveil.sweeps import NAMED, Measurement, Paid, read_measurements, read_payment

__all__ = [
    "AXES",
    "METRICS",
    "TRUST",
    "Axis",
    "Level",
    "Panel",
    "Point",
    "Sweep",
    "cell",
    "draw",
    "held_words_of",
    "load_sweep",
    "points_of",
]

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
"""Repeats that an interval needs: from two it would fill the figure."""
APART = 0.13
"""Ticks of risk closer than this fraction of the axis would overlap; only the first is labelled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """What a figure's lines differ in: an attribute of `Setting`, a title, and names for its values."""

    name: str
    title: str
    label: Callable[[Any], str]


def _alike(alpha: float) -> str:
    if alpha == NAMED:
        return "as in the data"
    return "all alike" if math.isinf(alpha) else f"Dirichlet {alpha:g}"


AXES = (
    Axis(name="trust", title="by trust level", label=lambda value: TRUST[value]),
    Axis(name="sites", title="by number of hospitals", label=lambda value: f"{value} hospitals"),
    Axis(
        name="alpha",
        title="by similarity of hospitals",
        label=_alike,
    ),
    Axis(name="method", title="by training method", label=lambda value: METHODS[value]),
    Axis(name="unit", title="by privacy unit", label=lambda value: f"per {value}"),
    Axis(
        name="patients",
        title="by number of patients",
        label=lambda value: "all patients" if value is None else f"{formatting.count(value)} patients",
    ),
)


NO_MATTER: dict[str, tuple[str, ...]] = {
    "federated": (),
    "pooled": ("trust", "sites", "alpha"),
    "alone": ("trust",),
}
"""Axes that have no effect on an arrangement."""
NAME = 13
"""Characters in a line of a level's name."""
LINE_HEIGHT = 0.055
"""Height of a line of a level's name, as a fraction of the figure's height."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """The mean over repeats at one x, with its interval; low and high are NaN for fewer repeats than `FEWEST`."""

    x: float
    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """A level without privacy, drawn as a line across a figure: its name and its value."""

    label: str
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One figure's content: named lines over epsilon or risk, and the level without privacy.

    `held` states the fixed settings in words. A figure of alternatives has several `levels` in place of `bare`.
    """

    axis: Axis
    metric: str
    risk: bool
    lines: tuple[tuple[str, tuple[Point, ...]], ...]
    bare: float
    bare_at: str
    held: str
    levels: tuple[Level, ...] = ()
    suffix: str = ""

    @property
    def key(self) -> str:
        """A name for files and ids."""
        against = "risk" if self.risk else "epsilon"
        return f"{self.metric}-{against}-{self.axis.name}{self.suffix}".replace("_", "-")


@dataclass(frozen=True, slots=True)
class Sweep:
    """A sweep's study and results."""

    study: Study
    results: tuple[Measurement, ...]
    paid: Paid | None = None

    def values(self, name: str) -> list[Any]:
        """The swept values of one axis, in ascending order if it has one, without settings that have no privacy.

        For arrangements, every one with results; for other axes, only federated training.
        """
        if name == "arrangement":
            seen = {m.setting.arrangement for m in self.results}
            return [value for value in get_args(Arrangement) if value in seen]
        found = list(dict.fromkeys(getattr(m.setting, name) for m in self._private()))
        if name in ("trust", "unit", "method"):
            order = [*TRUST, "patient", "image", *METHODS]
            return sorted(found, key=lambda value: order.index(value) if value in order else len(order))
        return sorted(found, key=lambda value: math.inf if value is None else value)

    def _private(self) -> list[Measurement]:
        return [m for m in self.results if m.setting.trust != "none" and m.setting.arrangement == "federated"]

    def held(self, varied: str = "") -> dict[str, Any]:
        """The value of each axis while another varies: the study's own, or the middle of the swept values.

        The number of hospitals matters most under the weakest trust, so trust is fixed there when it varies.
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
        """The results whose settings have these values; federated ones unless an arrangement is given.

        Values without an effect may differ: trust if there is no privacy, the number of hospitals if images are pooled.
        """
        wanted = {"arrangement": "federated"} | wanted
        no_matter = NO_MATTER[wanted["arrangement"]]
        return [
            m
            for m in self.results
            if all(
                getattr(m.setting, name) == value
                or name in no_matter
                or (name == "trust" and m.setting.trust == "none")
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
            lines.append((axis.label(value), points_of(found, metric, risk)))
        bare = [getattr(m, metric) for m in self.at(**held) if m.setting.trust == "none"]
        return Panel(
            axis=axis,
            metric=metric,
            risk=risk,
            lines=tuple(lines),
            bare=float(np.mean(bare)) if bare else math.nan,
            bare_at="" if axis.name == "trust" else axis.label(held[axis.name]),
            held=self.held_words(axis.name),
        )

    def panels(self) -> tuple[list[Panel], list[Panel]]:
        """Every figure that this sweep has results for: against epsilon, and against risk."""
        varied = [axis for axis in AXES if len(self.values(axis.name)) > 1] or [AXES[0]]
        against_epsilon = [self.panel(axis, "auroc") for axis in varied]
        against_epsilon.append(self.panel(varied[0], "balanced_accuracy"))
        return against_epsilon, [self.panel(axis, "auroc", risk=True) for axis in varied]

    def held_words(self, varied: str = "") -> str:
        """The fixed settings in words, without those that a figure varies."""
        return held_words_of(self.held(varied), varied)


def held_words_of(held: dict[str, Any], varied: str = "") -> str:
    """The fixed settings in words, without those that a figure varies."""
    return ", ".join(axis.label(held[axis.name]) for axis in AXES if axis.name != varied)


def load_sweep(directory: Path) -> Sweep:
    """Read the finished settings of a sweep.

    Raises:
        StudyError: there is no sweep, or none of its settings with privacy is finished.
    """
    results = tuple(read_measurements(directory))
    found = Sweep(RunDirectory(directory).study(), results, read_payment(directory))
    if not any(m.setting.trust != "none" and m.setting.arrangement == "federated" for m in results):
        raise StudyError(
            f"{directory} holds no finished setting with privacy",
            "the page shows accuracy against privacy",
            "continue with `fedveil sweep --resume`",
        )
    return found


def points_of(results: Iterable[Measurement], metric: str, risk: bool) -> tuple[Point, ...]:
    """One point per epsilon, the mean over repeats."""
    groups: dict[float, list[Measurement]] = {}
    for one in results:
        groups.setdefault(one.setting.epsilon, []).append(one)
    points = []
    for epsilon, group in sorted(groups.items()):
        x = float(np.mean([one.true_positive_rate for one in group])) if risk else epsilon
        points.append(_mean(x, [getattr(one, metric) for one in group]))
    return tuple(points)


def cell(point: Point) -> str:
    """The mean, with its interval if there is one."""
    spread = formatting.interval((point.low, point.high))
    return f"{formatting.score(point.mean)} ({spread})" if spread else formatting.score(point.mean)


def _mean(x: float, values: Sequence[float]) -> Point:
    mean, n = float(np.mean(values)), len(values)
    if n < FEWEST:
        return Point(x=x, mean=mean, low=math.nan, high=math.nan)
    half = float(student.ppf(0.975, n - 1) * np.std(values, ddof=1) / math.sqrt(n))
    return Point(x=x, mean=mean, low=max(0.0, mean - half), high=min(1.0, mean + half))


def draw(axes: Axes, panel: Panel, palette: Palette) -> None:
    """Draw a panel's lines, bands and the level without privacy; ticks are at the swept values."""
    x = "Attack success at most, at 1 % false alarms" if panel.risk else "Epsilon (smaller is more private)"
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
    for level in panel.levels:
        axes.axhline(level.value, color=palette.muted, linewidth=1, dashes=(1.5, 3))
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
    bare = [panel.bare] if math.isfinite(panel.bare) else [level.value for level in panel.levels]
    axes.set_ylim(math.floor(20 * min(lowest, *bare, 1.0) - 0.2) / 20, 1.0)
    if panel.levels:
        _name_levels(axes, panel.levels, palette)


def _name_levels(axes: Axes, levels: Sequence[Level], palette: Palette) -> None:
    """Label each level in the right margin of the figure, in order, with a thin line to each.

    Labels of close levels move down, or up if there is no room below. Numbers are given in the caption, because
    figures on the page show only two decimals.
    """
    low, high = axes.get_ylim()
    names = [textwrap.fill(f"no privacy: {level.label}", NAME) for level in levels]
    halves = [LINE_HEIGHT * (high - low) * (name.count("\n") + 1) / 2 for name in names]
    places = [level.value for level in levels]
    for index in range(1, len(places)):
        places[index] = min(places[index], places[index - 1] - halves[index - 1] - halves[index])
    floor = low
    for index in reversed(range(len(places))):
        places[index] = max(places[index], floor + halves[index])
        floor = places[index] + halves[index]
    for level, name, place in zip(levels, names, places, strict=True):
        axes.annotate(
            name,
            xy=(1.0, level.value),
            xycoords=axes.get_yaxis_transform(),
            xytext=(1.03, place),
            textcoords=axes.get_yaxis_transform(),
            color=palette.muted,
            fontsize=9,
            va="center",
            arrowprops={
                "arrowstyle": "-",
                "color": palette.muted,
                "linewidth": 0.7,
                "shrinkA": 0,
                "shrinkB": 0,
            },
        )
