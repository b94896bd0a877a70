"""What attacks on the whole study reached, below the curve that its guarantee allows."""

import numpy as np

from fedveil.audit.result import AuditResult
from fedveil.report.figures.charts import Chart, diagonal, legend_line, unit_square
from fedveil.report.figures.drawing import DASHES, PAGE, canvas, inline_svg, plain_axes, style

__all__ = ["findings_chart"]

WHOLE = "study"


def findings_chart(audit: AuditResult) -> Chart | None:
    """The trade-off function with each attacker's measured curve, and its judged guesses as a point."""
    found = [one for one in audit.findings if one.release == WHOLE]
    if not found or not audit.allowed:
        return None
    with style():
        drawing = canvas()
        axes = drawing.add_subplot()
        plain_axes(
            axes,
            PAGE,
            x="Outsiders wrongly named (false-positive rate)",
            y="Participants found (true-positive rate)",
        )
        unit_square(axes)
        allowed = np.array([(0.0, 0.0), *audit.allowed])
        diagonal(axes, PAGE)
        if not np.isinf(audit.epsilon):
            axes.plot(allowed[:, 0], allowed[:, 1], color=PAGE.ink, linewidth=1.6)
        for number, one in enumerate(found, 1):
            curve = np.array([(0.0, 0.0), *one.curve, (1.0, 1.0)])
            axes.plot(curve[:, 0], curve[:, 1], color=PAGE.series[number], dashes=DASHES[number])
            axes.plot([one.false_positive_rate], [one.true_positive_rate], "o", color=PAGE.series[number])
        svg = inline_svg(drawing, "attacks")
    words = "; ".join(f"{one.attacker}: area {one.area:.2f}" for one in found)
    return Chart(
        "attacks",
        "What attackers reached, and what the guarantee allows",
        svg,
        f"True against false positives of attacks on the whole study. {words}. Chance is 0.5.",
        "The solid line is the whole trade-off function of the study's guarantee: no test can be above it, but for "
        "chance in few trials. Dots are the guesses that were judged; the dotted diagonal is random guessing.",
        tuple(legend_line(one.attacker, number) for number, one in enumerate(found, 1)),
    )
