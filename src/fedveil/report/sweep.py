"""From a sweep to what people read: accuracy against privacy, as figures, a table and one self-contained page.

Every figure varies epsilon and one more thing; the rest is held at the study's own setting, or near it, and the caption
says where. Bands are 95 % intervals of the mean over repeats (Student's t), where there are repeats.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, NullLocator
from scipy.stats import t as student

from fedveil.errors import StudyError
from fedveil.report import formatting
from fedveil.report.charts import Chart, legend_line
from fedveil.report.drawing import DASHES, PAGE, PAPER, SERIES, Palette, canvas, inline_svg, plain_axes, style
from fedveil.report.tables import Table
from fedveil.study import Measurement, RunDirectory, Setting, Study, read_measurements
from fedveil.study.files import write_atomic

__all__ = ["figure_trade_off", "write_sweep"]

TRUST = {
    "site": "each hospital adds all its noise",
    "secure-aggregation": "secure aggregation",
    "server": "trusted server",
}
METRICS = {"auroc": "AUROC", "balanced_accuracy": "Balanced accuracy"}
NEAR = 0.01
"""Of the AUROC without privacy: what the page calls close to it."""


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
    Axis(name="unit", title="by whom the guarantee protects", label=lambda value: f"per {value}"),
    Axis(
        name="patients",
        title="by number of patients",
        label=lambda value: "all patients" if value is None else f"{formatting.count(value)} patients",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """The mean over repeats at one x, with its interval; low and high are NaN for a single run."""

    x: float
    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One figure's content: named lines over epsilon or risk, and the levels without privacy."""

    axis: Axis
    metric: str
    risk: bool
    lines: tuple[tuple[str, tuple[Point, ...]], ...]
    bare: float

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
        if name in ("trust", "unit"):
            order = [*TRUST, "patient", "image"]
            return sorted(found, key=lambda value: order.index(value) if value in order else len(order))
        return sorted(found, key=lambda value: math.inf if value is None else value)

    def _private(self) -> list[Measurement]:
        return [m for m in self.results if m.setting.trust != "none"]

    def held(self) -> dict[str, Any]:
        """Where each axis is held while another varies: at the study's own value, or the middle of what was swept."""
        sites = self.study.data.sites
        own = {
            "trust": self.study.privacy.trust,
            "unit": self.study.privacy.unit,
            "sites": sites.count,
            "alpha": math.inf if sites.scheme == "iid" else sites.alpha,
            "patients": None,
        }
        held = {}
        for name, value in own.items():
            found = self.values(name)
            held[name] = value if value in found else found[len(found) // 2]
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
        held = self.held()
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
        )

    def panels(self) -> list[Panel]:
        """Every figure that this sweep has something to show in."""
        varied = [axis for axis in AXES if len(self.values(axis.name)) > 1] or [AXES[0]]
        panels = [self.panel(axis, "auroc") for axis in varied]
        panels.append(self.panel(varied[0], "balanced_accuracy"))
        panels.append(self.panel(varied[0], "auroc", risk=True))
        return panels


def write_sweep(directory: Path) -> Path:
    """Write ``sweep.html`` and the figures of a sweep's finished settings; return the page's path.

    Raises:
        StudyError: there is no sweep, or none of its settings with privacy is finished.
    """
    found = _load(directory)
    (directory / "figures").mkdir(exist_ok=True)
    for panel in found.panels():
        _save([panel], found, directory / "figures" / f"{panel.key}.svg")
    path, page = directory / "sweep.html", render(found).encode()
    write_atomic(path, lambda file: file.write(page))
    return path


def figure_trade_off(directory: Path, path: Path) -> Path:
    """Draw the first two figures of a sweep side by side on white into ``path`` (.svg), and return it."""
    found = _load(directory)
    _save(found.panels()[:2], found, path)
    return path


def render(found: Sweep) -> str:
    """The page, a function of the results alone."""
    environment = Environment(
        loader=PackageLoader("fedveil.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    charts = [_chart(panel, found) for panel in found.panels()]
    return environment.get_template("sweep.html.j2").render(
        study=found.study.study.name,
        description=found.study.study.description,
        source=Path(found.study.data.source).name,
        synthetic=found.study.data.source == "phantom",
        models=formatting.count(len(found.results)),
        repeats=_repeats(found),
        held=_held_words(found),
        findings=_findings(found),
        accuracy=charts[:-1],
        risk=charts[-1],
        risk_table=_risk_table(found),
        tables=[_accuracy_table(found, metric) for metric in METRICS],
        settings=_settings_table(found),
    )


def _load(directory: Path) -> Sweep:
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
    if n < 2:
        return Point(x=x, mean=mean, low=math.nan, high=math.nan)
    half = float(student.ppf(0.975, n - 1) * np.std(values, ddof=1) / math.sqrt(n))
    return Point(x=x, mean=mean, low=max(0.0, mean - half), high=min(1.0, mean + half))


def _draw(axes: Axes, panel: Panel, palette: Palette) -> None:
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
        kept = [x for k, x in enumerate(ticks) if k == 0 or x > 1.3 * ticks[k - 1]]
        axes.set_xticks(kept, [formatting.percent(x, bound=True) for x in kept])
    else:
        axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
    lowest = min(point.mean for _, points in panel.lines for point in points)
    axes.set_ylim(
        math.floor(20 * min(lowest, panel.bare if math.isfinite(panel.bare) else 1) - 0.2) / 20, 1.0
    )


def _chart(panel: Panel, found: Sweep) -> Chart:
    with style():
        drawing = canvas()
        _draw(drawing.add_subplot(), panel, PAGE)
        svg = inline_svg(drawing, panel.key)
    against, metric = "risk" if panel.risk else "epsilon", METRICS[panel.metric]
    ends = "; ".join(
        f"{name} from {formatting.score(points[0].mean)} at the smallest to {formatting.score(points[-1].mean)} at the "
        f"largest {against}"
        for name, points in panel.lines
        if points
    )
    bare = (
        f" Thin grey line: without privacy, {formatting.score(panel.bare)}."
        if math.isfinite(panel.bare)
        else ""
    )
    return Chart(
        panel.key,
        f"{metric} against {against}, {panel.axis.title}",
        svg,
        f"{metric} against {against}: {ends}.{bare}",
        f"Held: {_held_words(found, panel.axis.name)}.{bare}",
        tuple(legend_line(name, series) for series, (name, _) in enumerate(panel.lines)),
    )


def _save(panels: Sequence[Panel], found: Sweep, path: Path) -> None:
    """Figures side by side on white, for use outside the page."""
    with style(text_as_paths=True):
        drawing = canvas(5.0 * len(panels), 4.2)
        drawing.patch.set_visible(True)
        drawing.patch.set_facecolor("white")
        for number, panel in enumerate(panels, 1):
            axes = drawing.add_subplot(1, len(panels), number)
            _draw(axes, panel, PAPER)
            axes.set_title(_held_words(found, panel.axis.name), color=PAPER.muted, fontsize=9, loc="left")
            axes.legend(
                axes.get_lines()[: len(panel.lines)],
                [name for name, _ in panel.lines],
                loc="lower right",
                frameon=False,
                fontsize=9.5,
                labelcolor=PAPER.ink,
            )
        write_atomic(path, lambda file: drawing.savefig(file, format="svg", metadata={"Date": None}))


def _held_words(found: Sweep, varied: str = "") -> str:
    """What is held where, in words; what a figure varies is left out."""
    held = found.held()
    words = [axis.label(held[axis.name]) for axis in AXES if axis.name != varied]
    return ", ".join(words)


def _repeats(found: Sweep) -> int:
    return len({m.setting.seed for m in found.results})


def _findings(found: Sweep) -> list[str]:
    """For each level of trust: the smallest epsilon swept whose AUROC is close to that without privacy."""
    panel = found.panel(AXES[0], "auroc")
    if not math.isfinite(panel.bare):
        return []
    text = [f"Without privacy the AUROC is {formatting.score(panel.bare)}."]
    for name, points in panel.lines:
        near = [point for point in points if point.mean >= panel.bare - NEAR]
        best = max(points, key=lambda point: point.mean)
        end = (
            f"the smallest epsilon within {NEAR:g} of that is {near[0].x:g} (AUROC {formatting.score(near[0].mean)})."
            if near
            else f"no epsilon comes within {NEAR:g} of that; the best is {formatting.score(best.mean)} at {best.x:g}."
        )
        text.append(f"{name[0].upper()}{name[1:]}: {end}")
    return text


def _cell(point: Point) -> str:
    spread = formatting.interval((point.low, point.high))
    return f"{formatting.score(point.mean)} ({spread})" if spread else formatting.score(point.mean)


def _accuracy_table(found: Sweep, metric: str) -> Table:
    panel = found.panel(AXES[0], metric)
    columns = [{point.x: point for point in points} for _, points in panel.lines]
    rows = [
        (f"{x:g}", *(_cell(column[x]) if x in column else formatting.UNDEFINED for column in columns))
        for x in sorted(set().union(*columns))
    ]
    if math.isfinite(panel.bare):
        rows.append(("no privacy", *(formatting.score(panel.bare) for _ in columns)))
    caption = f"{METRICS[metric]} ({_held_words(found, 'trust')})"
    return Table(caption, ("Epsilon", *(name for name, _ in panel.lines)), tuple(rows))


def _risk_table(found: Sweep) -> Table:
    """What each epsilon allows an attacker, in words of one hundred."""
    held = found.held()
    worst = {
        one.setting.epsilon: one for one in found.at(unit=held["unit"]) if one.setting.trust == held["trust"]
    }
    rows = tuple(
        (
            f"{epsilon:g}",
            f"{formatting.percent(one.true_positive_rate, bound=True)}",
            f"{formatting.percent((1 + one.advantage) / 2, bound=True)}",
        )
        for epsilon, one in sorted(worst.items())
    )
    return Table(
        f"At most, per {held['unit']}",
        ("Epsilon", "Found at 1 in 100 false alarms", "Right about who took part"),
        rows,
    )


def _settings_table(found: Sweep) -> Table:
    names = [field.name for field in fields(Setting) if field.name != "seed"]
    rows = []
    for name in names:
        values = found.values(name)
        axis = next((axis for axis in AXES if axis.name == name), None)
        rows.append((name, ", ".join(axis.label(v) if axis else f"{v:g}" for v in values)))
    return Table("What was swept", ("Setting", "Values"), tuple(rows), text=2)
