"""What a notebook shows of a run: a small table, the notes, and two figures."""

import base64
import math
from html import escape

from fedveil.privacy import Guarantee
from fedveil.report import RunRecord, svg_result
from fedveil.report.formatting import at_most

__all__ = ["run_html"]


def run_html(record: RunRecord) -> str:
    """One piece of HTML without scripts; names from the data are escaped, and the figures hold none of them."""
    rows = [("study", record.study), ("guarantee", _guarantee(record.guarantee))]
    metrics = record.test or record.released
    if metrics is not None:
        rows += [
            ("AUROC", _interval(metrics.auroc, metrics.auroc_interval)),
            (
                "balanced accuracy",
                _interval(metrics.balanced_accuracy, metrics.balanced_accuracy_interval),
            ),
            ("Brier score, calibration error", f"{metrics.brier:.3f}, {metrics.calibration_error:.3f}"),
            ("judged on", f"{metrics.n:,} images"),
        ]
        if not math.isnan(metrics.quadratic_kappa):
            value = _interval(metrics.quadratic_kappa, metrics.quadratic_kappa_interval)
            rows.append(("quadratic weighted kappa", value))
    rows += [("hospitals", str(len(record.sites))), ("directory", str(record.path))]
    cells = "".join(
        f'<tr><th style="text-align:left">{escape(name)}</th><td style="text-align:left">{escape(value)}</td></tr>'
        for name, value in rows
    )
    notes = "".join(f"<li>{escape(note)}</li>" for note in record.notes)
    return f"<div><table>{cells}</table>{_figure(record)}{f'<ul>{notes}</ul>' if notes else ''}</div>"


def _guarantee(guarantee: Guarantee | None) -> str:
    if guarantee is None:
        return "none: a baseline without privacy"
    return (
        f"epsilon {at_most(guarantee.epsilon)}, delta {guarantee.delta:g} per {guarantee.unit}, "
        f"trust {guarantee.trust}"
    )


def _interval(value: float, interval: tuple[float, float]) -> str:
    low, high = interval
    spread = "" if math.isnan(low) else f" (95 % interval {low:.3f} to {high:.3f})"
    return f"{value:.3f}{spread}"


def _figure(record: RunRecord) -> str:
    """ROC and learning curve as an image that carries its own data."""
    drawn = svg_result(record)
    if drawn is None:
        return ""
    data = base64.b64encode(drawn).decode("ascii")
    return f'<img alt="ROC curve and learning curve" src="data:image/svg+xml;base64,{data}">'
