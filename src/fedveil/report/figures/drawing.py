"""One style for every figure: drawn by matplotlib, shown as inline SVG with the page's theme.

For the page a figure is drawn in placeholder colours that become CSS variables, so that the same figure
works in light mode, dark mode and print; its text remains text, in the page's font. For a separate file it is drawn
in colours for white paper. Figures hold only fixed words and numbers: names from the data (classes, sites, files)
stay in the HTML around them, where they are escaped.
"""

import io
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

__all__ = ["DASHES", "PAGE", "PAPER", "SERIES", "Palette", "canvas", "inline_svg", "plain_axes", "style"]

SERIES = 6
"""How many series a figure can distinguish, by colour and dash."""

DASHES: tuple[tuple[float, ...], ...] = ((), (7, 3), (2, 3), (10, 3, 2, 3), (4, 2), (1.5, 2))
"""Line patterns in points, one per series, so that no figure relies on colour alone."""


@dataclass(frozen=True, slots=True)
class Palette:
    """The roles of colours in a figure."""

    ink: str
    muted: str
    grid: str
    bad: str
    series: tuple[str, ...]


PAGE = Palette("#0a0001", "#0a0002", "#0a0003", "#0a0004", tuple(f"#0a001{index}" for index in range(SERIES)))
"""Placeholders; `inline_svg` turns them into the CSS variables of the page."""

PAPER = Palette(
    "#1d2730",
    "#5b6874",
    "#dfe4e8",
    "#b3261e",
    ("#0b6aa8", "#c2570c", "#1b7f5c", "#8a4f9e", "#8f6b00", "#4a5560"),
)
"""Colours on white, for a figure outside the page; distinguishable under the common colour-vision deficiencies."""

_VARIABLES = {
    PAGE.ink: "var(--ink)",
    PAGE.muted: "var(--muted)",
    PAGE.grid: "var(--grid)",
    PAGE.bad: "var(--bad)",
    **{colour: f"var(--series-{index})" for index, colour in enumerate(PAGE.series)},
}
_LOCK = threading.Lock()
"""Guards matplotlib's global settings while a figure is drawn."""


@contextmanager
def style(*, text_as_paths: bool = False) -> Iterator[None]:
    """Settings in force while a figure is drawn and saved."""
    settings: dict[Any, Any] = {
        "svg.fonttype": "path" if text_as_paths else "none",
        "svg.hashsalt": "fedveil",
        "font.family": ["DejaVu Sans"],
        "font.size": 11,
        "axes.linewidth": 0.8,
        "lines.linewidth": 2.0,
        "lines.scale_dashes": False,
        "lines.solid_capstyle": "round",
        "xtick.major.size": 0.0,
        "ytick.major.size": 0.0,
        "xtick.major.pad": 5.0,
        "ytick.major.pad": 5.0,
        "figure.constrained_layout.use": True,
        "path.simplify": True,
    }
    with _LOCK, matplotlib.rc_context(settings):
        yield


def canvas(width: float = 5.0, height: float = 3.9) -> Canvas:
    """An empty, transparent drawing; inches of 72 CSS pixels."""
    drawing = Canvas(figsize=(width, height))
    drawing.patch.set_visible(False)
    return drawing


def plain_axes(axes: Axes, palette: Palette, *, x: str, y: str) -> None:
    """Axis titles, a light grid, no box."""
    axes.patch.set_visible(False)
    axes.set_xlabel(x, color=palette.muted, labelpad=6)
    axes.set_ylabel(y, color=palette.muted, labelpad=6)
    axes.tick_params(colors=palette.muted)
    axes.grid(visible=True, color=palette.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(palette.muted)


def inline_svg(drawing: Canvas, key: str) -> Markup:
    """The drawing as one `<svg>` element: themed, ids made unique by `key`, nothing is loaded from outside."""
    buffer = io.StringIO()
    drawing.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href=", "href=")
    referenced = set(re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', text))
    used = {one or other for one, other in referenced}
    text = re.sub(r' id="([^"]+)"', lambda m: f' id="{key}-{m[1]}"' if m[1] in used else "", text)
    text = text.replace('href="#', f'href="#{key}-').replace("url(#", f"url(#{key}-")
    text = re.sub(r" font-family: [^;\"]*;", "", text)
    text = re.sub(
        r"(\d+\.\d\d)\d+(?=[^<>]*>)", r"\1", text
    )  # only in tags: displayed numbers keep their digits
    text = re.sub(r' transform="rotate\(-0 [^)]*\)"', "", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    text = re.sub(
        r'width="[\d.]+pt" height="[\d.]+pt"', 'aria-hidden="true" focusable="false"', text, count=1
    )
    return Markup(re.sub(r"\s*\n\s*", "\n", text))
