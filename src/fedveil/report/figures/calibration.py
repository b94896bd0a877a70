"""What a calibrated study's pilot predicted at every level, and the level that the rule picked."""

import numpy as np
from matplotlib.ticker import NullLocator

from fedveil.report import formatting
from fedveil.report.figures.charts import Chart
from fedveil.report.figures.drawing import PAGE, canvas, inline_svg, plain_axes, style
from fedveil.study.results.schema import Calibrated

__all__ = ["calibration_chart"]


def calibration_chart(found: Calibrated | None) -> Chart | None:
    """Predicted AUROC against epsilon with its interval, the picked level marked; None for a fixed epsilon."""
    if found is None or not found.levels:
        return None
    values = np.array([[one.epsilon, one.expected, one.low, one.high] for one in found.levels])
    epsilon, expected, low, high = values.T
    chosen = found.levels[min(found.level, len(found.levels)) - 1]
    with style():
        drawing = canvas()
        axes = drawing.add_subplot()
        plain_axes(axes, PAGE, x="Epsilon (smaller is more private)", y="AUROC that the pilot predicts")
        axes.fill_between(epsilon, low, high, color=PAGE.series[0], alpha=0.15, linewidth=0)
        axes.plot(epsilon, expected, color=PAGE.series[0], marker="o", markersize=4)
        axes.plot(
            [chosen.epsilon],
            [chosen.expected],
            "o",
            markersize=9,
            color=PAGE.series[0],
            markeredgecolor=PAGE.ink,
        )
        axes.axhline(found.bare.expected, color=PAGE.muted, linewidth=1, dashes=(1.5, 3))
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
        shown = epsilon[:: 1 if len(epsilon) < 8 else 2]
        axes.set_xticks(shown, [f"{tick:g}" for tick in shown])
        axes.set_ylim(max(0.0, float(low.min()) - 0.03), 1.0)
        svg = inline_svg(drawing, "calibration")
    picked = (
        f"The rule picked epsilon {chosen.epsilon:g}, where it predicts {formatting.score(chosen.expected)} "
        f"({formatting.interval((chosen.low, chosen.high))}); without privacy {formatting.score(found.bare.expected)}."
    )
    within = "" if found.within else f" No level is predicted to lose at most {found.tolerance:g}."
    return Chart(
        "calibration",
        "AUROC against epsilon, as the pilot predicts it",
        svg,
        f"{picked}{within}",
        f"{picked}{within} Band: 95 % of runs are expected in it. Dotted: without privacy. The guarantee is that of "
        f"the largest epsilon, {found.maximum:g}.",
    )
