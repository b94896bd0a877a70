"""The tables of a run: rows of text, not yet escaped."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from fedveil.audit.result import AuditResult, Finding
from fedveil.federation.queries import title_of
from fedveil.privacy import Mechanism
from fedveil.report import formatting
from fedveil.report.figures.drawing import SERIES
from fedveil.report.formatting import UNDEFINED
from fedveil.report.records import LedgerHead, RunRecord
from fedveil.report.statements import StatementRecord, Statements
from fedveil.study.results.schema import ModelMetrics, OwnMetrics, SubgroupResult

__all__ = [
    "Confusion",
    "Share",
    "Table",
    "accuracy_table",
    "audit_table",
    "class_shares",
    "class_table",
    "confusion_table",
    "drop_table",
    "ledger_table",
    "release_table",
    "released_subgroup_table",
    "site_table",
    "statement_table",
    "subgroup_table",
]

BASELINES = {
    "no_privacy": "The same study without privacy",
    "pooled": "All images in one place, same guarantee",
    "pooled_no_privacy": "All images in one place, without privacy",
    "alone": "Each hospital alone, same guarantee (mean)",
    "alone_no_privacy": "Each hospital alone, without privacy (mean)",
}


OF_GROUP = ("AUROC", "AUROC minus all others", "Balanced accuracy")
ACCURACY = ("Model", "AUROC", "Balanced accuracy", "Accuracy", "Brier score", "Calibration error")


@dataclass(frozen=True, slots=True)
class Table:
    """A caption, column heads and rows named by their first column; `text` columns are left-aligned."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    text: int = 1
    code: bool = False


@dataclass(frozen=True, slots=True)
class Share:
    """One class's share of a hospital's images."""

    label: str
    count: int
    series: int


@dataclass(frozen=True, slots=True)
class Confusion:
    """Counts of true class (row) by predicted class (column), with each cell's fraction of its row in [0, 1]."""

    classes: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    shares: tuple[tuple[float, ...], ...]


def _with_interval(value: str, interval: str) -> str:
    return f"{value} ({interval})" if interval else value


def _metric_row(name: str, metrics: ModelMetrics) -> tuple[str, ...]:
    return (
        name,
        _with_interval(formatting.score(metrics.auroc), formatting.interval(metrics.auroc_interval)),
        _with_interval(
            formatting.percent(metrics.balanced_accuracy),
            formatting.interval(metrics.balanced_accuracy_interval, as_percent=True),
        ),
        formatting.percent(metrics.accuracy),
        formatting.score(metrics.brier),
        formatting.score(metrics.calibration_error),
    )


def accuracy_table(record: RunRecord) -> Table | None:
    """This study against its baselines and against always predicting the most frequent class."""
    noisy = "This study, on patients that hospitals hold out (noisy)"
    released = [] if record.released is None else [_metric_row(noisy, record.released)]
    if record.test is None:
        caption = (
            f"Accuracy from released histograms; 95{formatting.PERCENT} intervals in brackets, noise included"
        )
        return _accuracy(caption, released, record) if released else None
    rows = [_metric_row("This study", record.test), *released]
    rows += [
        _metric_row(BASELINES.get(name, name.replace("_", " ")), metrics)
        for name, metrics in record.baselines.items()
    ]
    majority = record.test.majority.accuracy, record.test.majority.balanced_accuracy
    if not all(map(math.isnan, majority)):
        rows.append(
            (
                "Always the most frequent class",
                formatting.score(0.5),
                formatting.percent(majority[1]),
                formatting.percent(majority[0]),
                UNDEFINED,
                UNDEFINED,
            )
        )
    caption = f"Accuracy on {_test_size(record.test, record)}; 95{formatting.PERCENT} intervals in brackets"
    return _accuracy(caption, rows, record)


def _accuracy(caption: str, rows: Sequence[tuple[str, ...]], record: RunRecord) -> Table:
    """The table of these rows, with one more column if classes are grades."""
    if record.data is None or record.data.task != "grades":
        return Table(caption, ACCURACY, tuple(rows))
    cells = _kappas(record, len(rows))
    head = (*ACCURACY, "Quadratic weighted kappa")
    return Table(caption, head, tuple((*row, cell) for row, cell in zip(rows, cells, strict=True)))


def _kappas(record: RunRecord, rows: int) -> list[str]:
    """The cells of one more column of `accuracy_table`, where classes are grades."""
    models = [
        record.test,
        *([] if record.released is None else [record.released]),
        *record.baselines.values(),
    ]
    cells = [
        _with_interval(
            formatting.score(one.quadratic_kappa), formatting.interval(one.quadratic_kappa_interval)
        )
        for one in models
        if one is not None
    ]
    return cells + [formatting.score(0.0)] * (rows - len(cells))


def _test_size(test: ModelMetrics, record: RunRecord) -> str:
    size = f"{formatting.count(test.n)} test images"
    if record.predictions is None or (record.data and not record.data.patients_known):
        return size
    return f"{size} of {formatting.count(record.predictions.patients)} patients"


def class_table(record: RunRecord) -> Table | None:
    """Each class against the rest."""
    if record.test is None or not record.test.per_class:
        return None
    rows = tuple(
        (
            entry.name,
            formatting.percent(entry.sensitivity),
            formatting.percent(entry.specificity),
            formatting.score(entry.auroc),
            formatting.count(entry.n),
        )
        for entry in record.test.per_class
    )
    if record.data and record.data.task == "findings":
        columns = ("Finding", "Sensitivity", "Specificity", "AUROC", "Test images with it")
        return Table("By finding", columns, rows)
    return Table("By class", ("Class", "Sensitivity", "Specificity", "AUROC", "Test images"), rows)


def subgroup_table(record: RunRecord) -> Table | None:
    """Each group of the attributes that the data carries, and its gap to all other test images."""
    if record.test is None or not record.test.subgroups:
        return None
    rows = tuple(
        (
            entry.attribute,
            entry.group,
            formatting.count(entry.n),
            formatting.count(entry.patients),
            *_of_group(entry),
        )
        for entry in record.test.subgroups
    )
    head = ("Attribute", "Group", "Images", "Patients", *OF_GROUP)
    caption = f"By subgroup; 95{formatting.PERCENT} intervals over patients in brackets"
    return Table(caption, head, rows, text=2)


def released_subgroup_table(record: RunRecord) -> Table | None:
    """The same for patients that hospitals hold out, as noisy histograms tell it."""
    if record.released is None or not record.released.subgroups:
        return None
    rows = tuple(
        (
            entry.attribute,
            entry.group,
            formatting.count(max(round(entry.units), 0)),
            *_of_group(entry),
        )
        for entry in record.released.subgroups
    )
    head = ("Attribute", "Group", "Units, estimated", *OF_GROUP)
    caption = (
        f"By subgroup of held-out patients, released with noise; 95{formatting.PERCENT} intervals include it"
    )
    return Table(caption, head, rows, text=2)


def _of_group(entry: SubgroupResult) -> tuple[str, str, str]:
    """What a subgroup's accuracy is, with intervals, under `OF_GROUP`."""
    return (
        _with_interval(formatting.score(entry.auroc), formatting.interval(entry.auroc_interval)),
        _gap(entry.auroc_gap, entry.auroc_gap_interval),
        _with_interval(
            formatting.percent(entry.balanced_accuracy),
            formatting.interval(entry.balanced_accuracy_interval, as_percent=True),
        ),
    )


def _gap(value: float, bounds: tuple[float, float]) -> str:
    """A difference with its sign and interval."""
    if math.isnan(value):
        return UNDEFINED
    interval = "" if any(map(math.isnan, bounds)) else f"{bounds[0]:+.3f} to {bounds[1]:+.3f}"
    return _with_interval(f"{value:+.3f}", interval).replace("-", "\N{MINUS SIGN}")


def confusion_table(record: RunRecord) -> Confusion | None:
    """The confusion matrix of the test set."""
    if record.predictions is None:
        return None
    counts = record.predictions.confusion
    shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    return Confusion(
        record.predictions.classes,
        tuple(map(tuple, counts.tolist())),
        tuple(map(tuple, shares.round(4).tolist())),
    )


def site_table(record: RunRecord) -> Table | None:
    """What each hospital spent, and the epsilon of its own noise alone; empty columns are omitted."""
    if not record.sites:
        return None
    missed = Counter(lost.site for entry in record.rounds for lost in entry.dropped)
    columns: list[tuple[str, list[str]]] = [("Hospital", [site.name for site in record.sites])]
    for title, sizes in (
        ("Patients", [site.patients for site in record.sites]),
        ("Images", [site.images for site in record.sites]),
    ):
        if any(size is not None for size in sizes):
            columns.append((title, [UNDEFINED if size is None else formatting.count(size) for size in sizes]))
    columns += [
        ("ε spent", [formatting.at_most(site.epsilon_spent) for site in record.sites]),
        ("ε if all others collude", [formatting.at_most(site.epsilon_alone) for site in record.sites]),
        ("Rounds missed", [formatting.count(missed[site.name]) for site in record.sites]),
    ]
    own = [site.personal or OwnMetrics() for site in record.sites]
    if not all(math.isnan(one.auroc) for one in own):
        columns += [
            ("AUROC of its own model", [formatting.score(one.auroc) for one in own]),
            (
                "Balanced accuracy of its own model",
                [formatting.percent(one.balanced_accuracy) for one in own],
            ),
        ]
    return Table(
        "What each hospital spent",
        tuple(title for title, _ in columns),
        tuple(zip(*(cells for _, cells in columns), strict=True)),
    )


def class_shares(record: RunRecord) -> tuple[tuple[str, tuple[Share, ...]], ...]:
    """Each hospital's class distribution; empty if it is unknown, or has too many classes to distinguish."""
    classes = list(dict.fromkeys(name for site in record.sites for name in site.class_counts))
    if record.data and set(classes) <= set(record.data.classes):
        classes = list(record.data.classes)
    if not 2 <= len(classes) <= SERIES:
        return ()
    return tuple(
        (
            site.name,
            tuple(Share(name, site.class_counts.get(name, 0), series) for series, name in enumerate(classes)),
        )
        for site in record.sites
        if any(site.class_counts.values())
    )


def ledger_table(heads: tuple[LedgerHead, ...]) -> Table | None:
    """The last entry of each hospital's ledger; its hash depends on every entry before it."""
    if not heads:
        return None
    rows = tuple((head.site, formatting.count(head.seq), head.hash) for head in heads)
    return Table("Ledger heads", ("Hospital", "Last entry", "SHA-256"), rows, text=3, code=True)


def release_table(record: RunRecord) -> Table | None:
    """Everything that was released, with the mechanism that added its noise."""
    if not record.releases:
        return None
    return Table(
        "Releases",
        ("Release", "Unit", "Releases made", "Sampling rate", "Noise multiplier z", "Clip norm C"),
        tuple(_release_row(release.what, release.mechanism) for release in record.releases),
        text=2,
    )


def _release_row(what: str, mechanism: Mechanism) -> tuple[str, ...]:
    return (
        title_of(what),
        mechanism.unit,
        formatting.count(mechanism.steps),
        "all, each time" if mechanism.sampling_rate == 1 else formatting.plain(mechanism.sampling_rate),
        formatting.plain(mechanism.noise_multiplier),
        formatting.plain(mechanism.clip_norm),
    )


def drop_table(record: RunRecord) -> Table | None:
    """Which hospital dropped out of which round, and why."""
    rows = tuple(
        (formatting.count(r.number), lost.site, lost.reason) for r in record.rounds for lost in r.dropped
    )
    return Table("Drop-outs", ("Round", "Hospital", "Reason"), rows, text=3) if rows else None


def audit_table(audit: AuditResult) -> Table:
    """Lower bounds that attacks proved, beside what is stated."""
    confidence = f"{100 * audit.confidence:g}{formatting.PERCENT}"
    return Table(
        f"Lower bounds on epsilon; all of them together hold at {confidence} confidence",
        ("Attacker", "What", "Stated, at most", "Proved", "Without assumptions", "Contradicted"),
        tuple(_finding_row(one) for one in audit.findings),
        text=2,
    )


def _finding_row(one: Finding) -> tuple[str, ...]:
    return (
        one.attacker,
        one.subject,
        UNDEFINED if math.isinf(one.epsilon) else formatting.at_most(one.epsilon),
        *one.proved,
        "yes" if one.contradicted else "no",
    )


def statement_table(found: Statements | None, sites: tuple[str, ...]) -> Table | None:
    """One row for each hospital of the study, in the study's order; one without a valid statement says so."""
    if found is None:
        return None
    by_site = {one.site: one for one in found.valid}
    none = ("none that is valid", *[UNDEFINED] * 6)
    return Table(
        "What each hospital states, signed with its own key",
        (
            "Hospital",
            "Statement",
            "Decision",
            "Charges",
            "ε of this study",
            "ε of all studies",
            "Made",
            "Signed by",
        ),
        tuple((site, *(_statement_row(by_site[site]) if site in by_site else none)) for site in sites),
        text=3,
    )


def _statement_row(one: StatementRecord) -> tuple[str, ...]:
    return (
        "valid; answers came later" if one.early else "valid",
        one.decision,
        formatting.count(one.charges),
        formatting.at_most(one.epsilon),
        f"{formatting.at_most(one.spent)} of {formatting.plain(one.budget)}",
        formatting.moment(one.made),
        one.signer + (" (renewed since)" if one.former else ""),
    )
