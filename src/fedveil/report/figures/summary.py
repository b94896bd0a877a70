"""One figure that summarises a run, for a README or a slide: ROC curve and learning curve."""

import io
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from fedveil.errors import InvalidValue, StudyError
from fedveil.io import write_atomic
from fedveil.report import formatting
from fedveil.report.figures.accuracy import class_rocs, draw_roc
from fedveil.report.figures.drawing import PAPER, canvas, style
from fedveil.report.figures.learning import METRICS, draw_learning_curve, evaluated
from fedveil.report.loader import load
from fedveil.report.records import RunRecord
from fedveil.report.wording import trust_name
from fedveil.study.results.schema import ModelMetrics

__all__ = ["figure_result", "svg_result"]

FORMATS = (".svg", ".png")


def svg_result(record: RunRecord) -> bytes | None:
    """A run's ROC curve and learning curve on white as one SVG file; None if there are no test images."""
    if record.test is None or record.predictions is None:
        return None
    with style(text_as_paths=True):
        file = io.BytesIO()
        _draw(record, record.test).savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def figure_result(run_directory: Path, path: Path) -> Path:
    """Draw a run's ROC curve and learning curve on white into `path` (.svg or .png), and return it.

    Raises:
        InvalidValue: `path` has another suffix.
        StudyError: the run directory is incomplete or damaged, has no test set, or `path` cannot be written.
    """
    if path.suffix not in FORMATS:
        raise InvalidValue(
            f"the figure's file name is {path.name}",
            "a figure must be written as SVG or PNG",
            "end it in .svg or .png",
        )
    record = load(run_directory)
    if record.test is None or record.predictions is None:
        raise StudyError(
            f"{run_directory} has no test metrics",
            "the figure shows the accuracy on a test set",
            "run a study whose data has a test set",
        )
    with style(text_as_paths=True):
        drawing = _draw(record, record.test)
        try:
            write_atomic(
                path,
                lambda file: drawing.savefig(
                    file,
                    format=path.suffix[1:],
                    dpi=200,
                    metadata={"Date": None} if path.suffix == ".svg" else None,
                ),
            )
        except OSError as error:
            raise StudyError(
                f"{path} cannot be written ({error.strerror})",
                "the figure must be written to the given path",
                "check the directory and the free space",
            ) from None
    return path


def _draw(record: RunRecord, test: ModelMetrics) -> Canvas:
    drawing = canvas(9.6, 4.0)
    drawing.patch.set_visible(True)
    drawing.patch.set_facecolor("white")
    drawing.suptitle(_title(record), color=PAPER.ink, fontsize=12.5, fontweight="bold", x=0.012, ha="left")
    left, right = drawing.subplots(1, 2)
    _roc(left, record, test)
    if evaluated(record.rounds):
        draw_learning_curve(right, record.rounds, PAPER)
        lines = right.get_lines()[: len(METRICS)]
        right.legend(lines, METRICS, loc="lower right", frameon=False, labelcolor=PAPER.ink)
    else:
        right.set_axis_off()
    return drawing


def _roc(axes: Axes, record: RunRecord, test: ModelMetrics) -> None:
    if record.predictions is not None:
        draw_roc(axes, class_rocs(record.predictions), PAPER)
    interval = formatting.interval(test.auroc_interval)
    text = f"AUROC {formatting.score(test.auroc)}" + (
        f"\n95{formatting.PERCENT} interval {interval}" if interval else ""
    )
    axes.text(0.97, 0.05, text, ha="right", va="bottom", color=PAPER.ink)


def _title(record: RunRecord) -> str:
    sites = f"{formatting.count(len(record.sites))} hospitals"
    if record.guarantee is None:
        return f"{sites}, no privacy"
    epsilon, delta = formatting.at_most(record.guarantee.epsilon), formatting.delta(record.guarantee.delta)
    trust = trust_name(record.guarantee, record.secure_aggregation)
    return f"{sites}, ε ≤ {epsilon} and δ = {delta} per {record.guarantee.unit}, {trust}"
