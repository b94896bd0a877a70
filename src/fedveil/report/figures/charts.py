"""A figure on the page: an SVG, an equivalent text, a caption, a legend; and shared axes."""

from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from fedveil.report.figures.drawing import DASHES, Palette
from fedveil.report.formatting import PERCENT

__all__ = ["Chart", "LegendEntry", "diagonal", "legend_line", "unit_square"]


@dataclass(frozen=True, slots=True)
class LegendEntry:
    """One series: its name (escaped by the page), its colour's number, its dash, "line" or "square"."""

    label: str
    series: int
    dash: str = ""
    shape: str = "line"


@dataclass(frozen=True, slots=True)
class Chart:
    """A figure as the page shows it. `alt` describes the drawing in words."""

    key: str
    title: str
    svg: Markup
    alt: str
    caption: str
    legend: tuple[LegendEntry, ...] = ()


def legend_line(label: str, series: int) -> LegendEntry:
    """The legend entry of a line drawn with its series' dash."""
    return LegendEntry(label, series, " ".join(f"{length:g}" for length in DASHES[series]))


def unit_square(axes: Axes) -> None:
    """Both axes from 0 to 100 %."""
    for axis, limits in ((axes.xaxis, axes.set_xlim), (axes.yaxis, axes.set_ylim)):
        limits(-0.015, 1.015)
        axis.set_ticks(np.linspace(0, 1, 6))
        axis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=PERCENT))


def diagonal(axes: Axes, palette: Palette) -> None:
    """The dotted line of random guessing, or of perfect calibration."""
    axes.plot([0, 1], [0, 1], color=palette.muted, linewidth=1, dashes=(1.5, 3))
