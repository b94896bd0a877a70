"""Training progress: test metrics by round, and the privacy spent so far."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from fedveil.report import formatting
from fedveil.report.figures.charts import Chart, legend_line
from fedveil.report.figures.drawing import DASHES, PAGE, Palette, canvas, inline_svg, plain_axes, style
from fedveil.study.results.schema import RoundLine

__all__ = ["METRICS", "draw_learning_curve", "evaluated", "learning_chart"]

METRICS = ("AUROC", "balanced accuracy")
FEW_ROUNDS = 12
"""Up to this many points of a curve have markers."""


def _values(rounds: tuple[RoundLine, ...]) -> NDArray[np.float64]:
    """Shape (metrics, rounds); NaN where a round was not evaluated."""
    return np.array([[record.auroc for record in rounds], [record.balanced_accuracy for record in rounds]])


def evaluated(rounds: tuple[RoundLine, ...]) -> list[int]:
    """Positions of the rounds that have a metric."""
    return np.flatnonzero(np.isfinite(_values(rounds)).any(axis=0)).tolist()


def draw_learning_curve(axes: Axes, rounds: tuple[RoundLine, ...], palette: Palette) -> None:
    """Both metrics by round, epsilon spent along the top, a triangle where a hospital dropped out.

    At least one round must be evaluated.
    """
    plain_axes(axes, palette, x="Round", y="On the test set")
    number, values = np.array([record.number for record in rounds], dtype=float), _values(rounds)
    for series, metric in enumerate(values):
        known = np.isfinite(metric)
        axes.plot(
            number[known],
            metric[known],
            color=palette.series[series],
            dashes=DASHES[series] or (None, None),
            marker="os"[series] if known.sum() <= FEW_ROUNDS else None,
            markersize=4.5,
        )
    axes.set_ylim(max(min(0.5, float(np.nanmin(values))) - 0.03, -0.015), 1.01)
    margin = max(float(np.ptp(number)) * 0.02, 0.5)
    axes.set_xlim(number.min() - margin, number.max() + margin)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    lost = [record.number for record in rounds if record.dropped]
    foot = axes.get_xaxis_transform()
    axes.plot(lost, [0.02] * len(lost), "v", transform=foot, markersize=5, color=palette.bad)
    spent = np.array([record.epsilon_spent for record in rounds])
    if np.isfinite(spent).all():
        _epsilon_axis(axes, number, spent, palette)


def _epsilon_axis(
    axes: Axes, number: NDArray[np.float64], spent: NDArray[np.float64], palette: Palette
) -> None:
    """Along the top: epsilon spent up to the rounds that have a tick below."""
    ticks = [tick for tick in axes.get_xticks() if number.min() <= tick <= number.max()]
    top = axes.secondary_xaxis("top")
    top.set_xticks(ticks, [formatting.at_most(float(np.interp(tick, number, spent)), 2) for tick in ticks])
    top.set_xlabel("Privacy spent so far (epsilon)", color=palette.muted, labelpad=6)
    top.tick_params(colors=palette.muted)
    top.spines["top"].set_visible(False)


def learning_chart(rounds: tuple[RoundLine, ...]) -> Chart | None:
    """The learning curve; None if no round was evaluated."""
    values, judged = _values(rounds), evaluated(rounds)
    if not judged:
        return None
    with style():
        drawing = canvas()
        draw_learning_curve(drawing.add_subplot(), rounds, PAGE)
        svg = inline_svg(drawing, "learning")
    lost = sum(bool(record.dropped) for record in rounds)
    number = f"{formatting.count(lost)} round{'s' if lost != 1 else ''}"
    drops = f" Triangles mark the {number} in which a hospital dropped out." if lost else ""
    ends = ", ".join(
        f"{name} {formatting.score(float(metric[judged[0]]))} after round {rounds[judged[0]].number} and "
        f"{formatting.score(float(metric[judged[-1]]))} after round {rounds[judged[-1]].number}"
        for name, metric in zip(METRICS, values, strict=True)
    )
    spent = [record.epsilon_spent for record in rounds]
    cost = f" Epsilon spent at the end: {formatting.at_most(spent[-1])}." if np.isfinite(spent).all() else ""
    along = "; along the top, the privacy spent so far" if cost else ""
    return Chart(
        "learning",
        "Learning curve",
        svg,
        f"Learning curve over {formatting.count(len(rounds))} rounds: {ends}.{cost}{drops}",
        f"Test metrics after each evaluated round{along}.{drops}",
        tuple(legend_line(name, k) for k, name in enumerate(METRICS) if np.isfinite(values[k]).any()),
    )
