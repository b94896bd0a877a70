"""Accuracy and risk against epsilon as a small chart of characters."""

from collections.abc import Sequence

from rich.table import Table

from fedveil.cli.output.tables import format_epsilon
from fedveil.planning import CurvePoint

__all__ = ["accuracy_chart"]

WIDTH = 24
"""Characters of a bar; the whole chart fits 80 columns."""


def accuracy_chart(curve: Sequence[CurvePoint], chosen: float, metric: str) -> Table:
    """One row per epsilon: the expected accuracy, its interval, a bar of both, and an attack's success.

    Args:
        curve: in ascending order of epsilon.
        chosen: the recommended epsilon, which is marked.
        metric: the metric's name.
    """
    table = Table("", "epsilon", metric, "95 % of runs", "", "found", box=None, pad_edge=False)
    low = min(point.predicted.low for point in curve)
    high = max(point.predicted.high for point in curve)
    for point in curve:
        one = point.predicted
        bar = _bar(one.low, one.expected, one.high, low, high)
        table.add_row(
            ">" if point.epsilon == chosen else "",
            format_epsilon(point.epsilon),
            f"{one.expected:.3f}",
            f"{one.low:.3f} to {one.high:.3f}",
            bar,
            f"{point.true_positive_rate:.1%}",
            style="bold" if point.epsilon == chosen else "",
        )
    return table


def _bar(low: float, middle: float, high: float, first: float, last: float) -> str:
    """The interval as dashes and the expected value as a dot, between the first and the last value of the axis.

    >>> _bar(0.6, 0.8, 1.0, 0.6, 1.0)
    '-----------o------------'
    """
    scale = (WIDTH - 1) / max(last - first, 1e-9)
    places = [int((value - first) * scale) for value in (low, middle, high)]
    dashes = ["-" if places[0] <= place <= places[2] else " " for place in range(WIDTH)]
    dashes[places[1]] = "o"
    return "".join(dashes).rstrip()
