"""Figures of the test set: ROC curve, calibration, distribution of scores."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from fedveil.report import formatting
from fedveil.report.figures import curves
from fedveil.report.figures.charts import Chart, LegendEntry, diagonal, legend_line, unit_square
from fedveil.report.figures.drawing import (
    DASHES,
    PAGE,
    SERIES,
    Palette,
    canvas,
    inline_svg,
    plain_axes,
    style,
)
from fedveil.report.formatting import PERCENT
from fedveil.report.records import Predictions

__all__ = ["calibration_chart", "class_rocs", "draw_roc", "roc_chart", "score_chart"]


def class_rocs(predictions: Predictions) -> list[tuple[str, curves.Roc]]:
    """One curve for two classes (the second is the positive one); with more, one per class against the rest.

    A class that has no test image, or all of them, has no curve.
    """
    names = predictions.classes
    indices = [1] if len(names) == 2 else range(len(names))
    found = [
        (names[k], curves.roc(predictions.labels == k, predictions.probabilities[:, k])) for k in indices
    ]
    return [(name, curve) for name, curve in found if curve is not None]


def draw_roc(axes: Axes, rocs: list[tuple[str, curves.Roc]], palette: Palette) -> tuple[LegendEntry, ...]:
    """ROC curves: distinct styles while there are few, otherwise thin ones behind their mean."""
    plain_axes(axes, palette, x="False-positive rate", y="True-positive rate")
    diagonal(axes, palette)
    unit_square(axes)
    if len(rocs) < SERIES:
        for series, (_, curve) in enumerate(rocs):
            _draw(axes, curve, palette.series[series], dashes=DASHES[series] or (None, None))
        if len(rocs) == 1:
            x, y = rocs[0][1].false_positive_rate, rocs[0][1].true_positive_rate
            axes.fill_between(x, y, color=palette.series[0], alpha=0.08, linewidth=0)
        return tuple(legend_line(name, series) for series, (name, _) in enumerate(rocs))
    for _, curve in rocs:
        _draw(axes, curve, palette.series[5], linewidth=0.7, alpha=0.6)
    _draw(axes, curves.mean_roc([curve for _, curve in rocs]), palette.series[0])
    return (LegendEntry(f"mean of {len(rocs)} classes", 0), LegendEntry("one class against the rest", 5))


def _draw(axes: Axes, curve: curves.Roc, colour: str, **style: object) -> None:
    axes.plot(curve.false_positive_rate, curve.true_positive_rate, color=colour, **style)  # type: ignore[arg-type]


def roc_chart(predictions: Predictions, auroc: float) -> Chart | None:
    """The ROC curve of the test set, with the AUROC as the result states it; None if it has only one class."""
    rocs = class_rocs(predictions)
    if not rocs:
        return None
    with style():
        drawing = canvas()
        legend = draw_roc(drawing.add_subplot(), rocs, PAGE)
        svg = inline_svg(drawing, "roc")
    if len(predictions.classes) == 2:
        positive, curve = rocs[0]
        what, legend = f"{positive} from {predictions.classes[0]}", ()
        found = formatting.percent(curve.at(0.1))
        reading = f" At 10{PERCENT} false alarms it detects {found} of the {positive} images."
    else:
        what, reading = f"each of {len(rocs)} classes from the rest", ""
    return Chart(
        "roc",
        "ROC curve",
        svg,
        f"ROC curve, separating {what}. Area under the curve {formatting.score(auroc)}.{reading}",
        f"How well the model separates {what}; the dotted diagonal is random guessing.{reading}",
        legend,
    )


def _event(predictions: Predictions) -> tuple[NDArray[np.bool_], NDArray[np.float64], str]:
    """What a probability refers to: the positive class; with more than two classes, the likeliest one."""
    if len(predictions.classes) == 2:
        positive = f"probability of {predictions.classes[1]}"
        return predictions.labels == 1, predictions.probabilities[:, 1], positive
    likeliest = predictions.probabilities.argmax(axis=1)
    highest = predictions.probabilities.max(axis=1)
    return likeliest == predictions.labels, highest, "probability of the likeliest class"


def calibration_chart(predictions: Predictions) -> Chart:
    """Predicted probability against observed frequency, in ten bins."""
    event, probability, what = _event(predictions)
    found = curves.reliability(event, probability)
    with style():
        drawing = canvas()
        axes = drawing.add_subplot()
        plain_axes(axes, PAGE, x="Predicted probability", y="Observed frequency")
        unit_square(axes)
        diagonal(axes, PAGE)
        axes.vlines(found.predicted, found.low, found.high, color=PAGE.series[0], linewidth=1.6, alpha=0.55)
        axes.plot(found.predicted, found.observed, color=PAGE.series[0], marker="o", markersize=5)
        svg = inline_svg(drawing, "calibration")
    pairs = "; ".join(
        f"{formatting.percent(predicted)} predicted, {formatting.percent(observed)} observed"
        for predicted, observed in zip(found.predicted, found.observed, strict=True)
    )
    caption = (
        f"The model’s {what}, in bins of 10{PERCENT}, against the observed frequency; on the dotted "
        f"line they agree. Bars are 95{PERCENT} intervals that treat images as "
        f"independent. Mean distance from the line (expected calibration error): "
        f"{formatting.score(found.error)}."
    )
    return Chart("calibration", "Calibration", svg, f"Calibration curve of the {what}: {pairs}.", caption)


def score_chart(predictions: Predictions, threshold: float) -> Chart:
    """Score distributions of the two groups that a decision separates, above and below the axis."""
    event, probability, what = _event(predictions)
    two = len(predictions.classes) == 2
    names = predictions.classes[::-1] if two else ("right", "wrong")
    groups = (probability[event], probability[~event])
    shown = threshold if two and 0 <= threshold <= 1 else None
    with style():
        drawing = canvas()
        axes = drawing.add_subplot()
        plain_axes(axes, PAGE, x="Probability", y="Share of the group’s images")
        _mirrored(axes, curves.histogram(groups[0]), curves.histogram(groups[1]))
        if shown is not None:
            axes.axvline(shown, color=PAGE.ink, linewidth=1.2, dashes=(3, 2))
        svg = inline_svg(drawing, "scores")
    cut = "" if shown is None else f" The dashed line is the decision threshold, {formatting.score(shown)}."
    sizes = [formatting.count(len(group)) for group in groups]
    where = f"{names[0]} ({sizes[0]} images) above the axis, {names[1]} ({sizes[1]} images) below"
    medians = "".join(
        f" Median {formatting.score(float(np.median(group)))}: {name}."
        for name, group in zip(names, groups, strict=True)
        if len(group)
    )
    legend = tuple(LegendEntry(name, series, shape="square") for series, name in enumerate(names))
    return Chart(
        "scores",
        "Score distribution",
        svg,
        f"Histogram of the {what}; {where}.{medians}{cut}",
        f"The {what}; {where}.{cut}",
        legend,
    )


def _mirrored(axes: Axes, above: NDArray[np.float64], below: NDArray[np.float64]) -> None:
    left = np.arange(len(above)) / len(above)
    for heights, colour in ((above, PAGE.series[0]), (-below, PAGE.series[1])):
        axes.bar(left, heights, width=0.92 / len(above), align="edge", color=colour, linewidth=0)
    axes.axhline(0, color=PAGE.ink, linewidth=0.8)
    reach = max(float(above.max()), float(below.max()), 0.05) * 1.12
    axes.set_xlim(-0.01, 1.01)
    axes.set_ylim(-reach, reach)
    axes.spines["bottom"].set_visible(False)
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=PERCENT))
    axes.yaxis.set_major_formatter(lambda value, _: f"{abs(100 * value):.0f}{PERCENT}")
