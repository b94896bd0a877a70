"""From a `RunRecord` to one self-contained HTML page."""

import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from fedveil.errors import StudyError
from fedveil.io import write_atomic
from fedveil.privacy import gdp_mu
from fedveil.report import formatting, tables, wording
from fedveil.report.figures import accuracy, learning
from fedveil.report.figures.attacks import findings_chart
from fedveil.report.figures.calibration import calibration_chart
from fedveil.report.figures.charts import Chart
from fedveil.report.figures.images import example_images
from fedveil.report.figures.risk import attack_chart, icon_array
from fedveil.report.loader import load
from fedveil.report.records import RunRecord

__all__ = ["Card", "render", "write_report"]


@dataclass(frozen=True, slots=True)
class Card:
    """One key figure."""

    title: str
    value: str
    note: str
    level: str = ""


def write_report(run_directory: Path) -> Path:
    """Write ``report.html`` into a complete run directory, atomically, and return its path.

    Raises:
        StudyError: the run directory is incomplete or damaged, or cannot be written to.
    """
    path = run_directory / "report.html"
    page = render(load(run_directory)).encode()
    try:
        write_atomic(path, lambda file: file.write(page))
    except OSError as error:
        raise StudyError(
            f"{path} cannot be written ({error.strerror})",
            "the report must be written into its run directory",
            "free some space, or check the directory's permissions",
        ) from None
    return path


def render(record: RunRecord) -> str:
    """The page, a function of only the record."""
    return _environment().get_template("report.html.j2").render(_context(record))


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("fedveil.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "count": formatting.count,
        "moment": formatting.moment,
    }
    return environment


def _context(record: RunRecord) -> dict[str, Any]:
    guarantee, risk = record.guarantee, record.risk
    return {
        "record": record,
        "cards": _cards(record),
        "notices": wording.notices(record),
        "guarantee_line": wording.guarantee_line(guarantee, record.secure_aggregation) if guarantee else None,
        "protected": wording.protected(guarantee, record.secure_aggregation) if guarantee else (),
        "not_protected": wording.not_protected(record),
        "risk_chart": attack_chart(guarantee, record.mechanisms, risk) if guarantee and risk else None,
        "icons": icon_array(risk) if risk else None,
        "attacks": tables.audit_table(record.audit) if record.audit else None,
        "attacks_chart": findings_chart(record.audit) if record.audit else None,
        "accuracy": tables.accuracy_table(record),
        "by_class": tables.class_table(record),
        "by_subgroup": tables.subgroup_table(record),
        "by_released_subgroup": tables.released_subgroup_table(record),
        "confusion": tables.confusion_table(record),
        "charts": _test_charts(record),
        "calibration": calibration_chart(record.result.calibrated),
        "learning": learning.learning_chart(record.rounds),
        "drops": tables.drop_table(record),
        "statements": tables.statement_table(record.statements, tuple(site.name for site in record.sites)),
        "sites": tables.site_table(record),
        "class_shares": tables.class_shares(record),
        "ledgers": tables.ledger_table(record.ledgers),
        "releases": tables.release_table(record),
        "accounting": _accounting(record),
        "recomputed": formatting.at_most(record.recomputed_epsilon),
        "examples": example_images(record.examples),
        "seconds": _seconds(record),
    }


def _seconds(record: RunRecord) -> list[tuple[str, str, float]]:
    """Each stage with its time and its fraction of the longest, in [0, 1]; the total last."""
    stages = {name: value for name, value in record.seconds.items() if name != "total"}
    longest = max((value for value in stages.values() if value > 0), default=1.0)
    rows = [(name, formatting.duration(value), value / longest) for name, value in stages.items()]
    total = (
        [("total", formatting.duration(record.seconds["total"]), 0.0)] if "total" in record.seconds else []
    )
    return rows + total


def _accounting(record: RunRecord) -> str:
    """How the releases are priced: "exact", "sampled", or "slack" if integer noise approximates a Gaussian."""
    if any(mechanism.sampling_rate < 1 for mechanism in record.mechanisms):
        return "sampled"
    return "exact" if gdp_mu(record.mechanisms) is not None else "slack"


def _test_charts(record: RunRecord) -> tuple[Chart, ...]:
    if record.test is None or record.predictions is None:
        return ()
    found = (
        accuracy.roc_chart(record.predictions, record.test.auroc),
        accuracy.calibration_chart(record.predictions),
        accuracy.score_chart(record.predictions, record.test.threshold),
    )
    return tuple(chart for chart in found if chart is not None)


def _cards(record: RunRecord) -> tuple[Card, ...]:
    cards = [_guarantee_card(record)]
    test = record.test or record.released
    if test:
        noisy = "" if record.test else "\nby released histograms"
        cards.append(
            Card(
                "AUROC",
                formatting.score(test.auroc),
                _interval_note(formatting.interval(test.auroc_interval)) + noisy,
            )
        )
        cards.append(
            Card(
                "Balanced accuracy",
                formatting.percent(test.balanced_accuracy),
                _interval_note(formatting.interval(test.balanced_accuracy_interval, as_percent=True)) + noisy,
            )
        )
        if not math.isnan(test.quadratic_kappa):
            cards.append(
                Card(
                    "Quadratic kappa",
                    formatting.score(test.quadratic_kappa),
                    _interval_note(formatting.interval(test.quadratic_kappa_interval)),
                )
            )
    total = record.seconds.get("total", math.nan)
    made = max(len(record.rounds), 1)
    rounds = f"{formatting.count(made)} round{'s' if made != 1 else ''}"
    hospitals = f"{formatting.count(len(record.sites))} hospital{'s' if len(record.sites) != 1 else ''}"
    cards.append(Card("Time taken", formatting.duration(total), f"{hospitals}, {rounds}"))
    return tuple(cards)


def _interval_note(interval: str) -> str:
    return f"95{formatting.PERCENT} interval\n{interval}" if interval else ""


def _guarantee_card(record: RunRecord) -> Card:
    guarantee = record.guarantee
    if guarantee is None:
        return Card("Guarantee", "None", "this study ran without privacy", "danger")
    trust = wording.trust_name(guarantee, record.secure_aggregation)
    note = f"δ = {formatting.delta(guarantee.delta)} per {guarantee.unit}, {trust}"
    return Card("Guarantee", f"ε ≤ {formatting.at_most(guarantee.epsilon)}", note)
