"""The meaning of labels in a study: unusable labels, and the classes of the others.

Each label is judged independently, by the study's settings, never by the labels of other images.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fedveil.data.options import Options
from fedveil.errors import InvalidValue

__all__ = [
    "UNSURE",
    "Fault",
    "findings",
    "joined_labels",
    "label_faults",
    "mark",
    "resolved",
    "split_findings",
    "study_labels",
]

Codes = npt.NDArray[np.int64]
Findings = npt.NDArray[np.int8]
Labels = npt.NDArray[Any]
"""(n,) codes of classes, or (n, K) findings: 1, 0 or -1 for unknown."""
Fault = tuple[str, str, str]
"""What was found, the rule and the remedy."""

UNKNOWN = frozenset(("", "-1", "-1.0", "nan", "na", "n/a", "null", "unknown", "uncertain", "?"))
NOBODY_KNOWS = "an unknown label must not count as a class"
MARKS = "|;,/+&"
UNSURE = -1
"""In a matrix of findings: unknown."""
MARKED = {
    **dict.fromkeys(("1", "1.0", "true", "yes"), 1),
    **dict.fromkeys(("0", "0.0", "false", "no"), 0),
    **dict.fromkeys(UNKNOWN, UNSURE),
}
"""Cells in the column of one finding."""


def label_faults(
    labels: Labels, classes: tuple[str, ...], options: Options
) -> tuple[dict[int, Fault], dict[int, Fault]]:
    """Rows with an unusable label, and separately those with an unknown label."""
    if labels.ndim == 2:
        return _faulty_findings(labels, classes, options)
    wrong: dict[int, Fault] = {}
    unknown: dict[int, Fault] = {}
    for code, text in enumerate(classes):
        fault = _fault(text, options)
        if fault is not None:
            chosen = unknown if fault[1] == NOBODY_KNOWS else wrong
            chosen.update(dict.fromkeys((int(row) for row in np.flatnonzero(labels == code)), fault))
    return wrong, unknown


def _faulty_findings(
    labels: Labels, classes: tuple[str, ...], options: Options
) -> tuple[dict[int, Fault], dict[int, Fault]]:
    if not (options.positive or options.label_columns or options.task == "findings"):
        return {}, {}  # the whole source is refused, by `study_labels`
    counting = options.positive or options.classes or classes
    own = labels[:, [classes.index(name) for name in counting if name in classes]]
    unsure, marked = (own == UNSURE).any(axis=1), (own == 1).sum(axis=1)
    if options.positive:
        unsure &= marked == 0
    wrong: dict[int, Fault] = {}
    if options.positive is None and options.task != "findings":
        rows = np.flatnonzero((marked != 1) & ~unsure)
        wrong = {int(row): _several(int(marked[row]), classes) for row in rows}
    if options.unknown_labels == "unknown":
        return wrong, {}
    other = "set it to 0 or 1" if options.positive else 'set it to "unknown", 0 or 1'
    what = f"a {'positive ' if options.positive else ''}finding is blank or -1"
    fault = _unknown(what, f"{other} to keep them as such")
    return wrong, {int(row): fault for row in np.flatnonzero(unsure)}


def _several(marked: int, classes: Sequence[str]) -> Fault:
    return (
        f"{marked} of its findings are 1",
        "fedveil needs exactly one class per image unless the task is findings",
        f'set task = "findings", or positive to the findings that count, among {", ".join(classes)}',
    )


def _unknown(found: str, other: str = "or list it in data.classes") -> Fault:
    return (found, NOBODY_KNOWS, f'fill it in, set data.unknown_labels = "drop" to omit such images, {other}')


def _fault(text: str, options: Options) -> Fault | None:
    """Why a label is unusable; None if it is usable."""
    positive, classes = options.positive or (), options.classes or ()
    if options.task == "findings":  # what is unknown becomes -1 for each finding
        listed = split_findings(text, options.separator)
        doubts = (_misspelt(one, classes, "classes") or _contains(one, classes, options) for one in listed)
        return next(filter(None, doubts), None)
    if options.separator:
        findings = split_findings(text, options.separator)
        unsure = not findings or any(one.casefold() in UNKNOWN for one in findings)
        if unsure and not set(findings) & set(positive):
            return _unknown(f"label is {text or 'empty'}")
        return next(filter(None, (_misspelt(one, positive) for one in findings)), None)
    if text in positive or (not positive and text in classes):
        return None
    if text.strip().casefold() in UNKNOWN:
        return _unknown(f"label is {text or 'empty'}")
    if positive:
        return _misspelt(text, positive) or _contains(text, positive, options)
    if classes:
        return (
            f"the class {text} is unknown",
            f"the classes are {', '.join(classes)}",
            "correct it, or the setting classes",
        )
    return None


def _misspelt(text: str, known: Sequence[str], setting: str = "positive") -> Fault | None:
    meant = next((name for name in known if _letters(name) == _letters(text) and name != text), None)
    if meant is None or text in known:
        return None
    return (
        f"label is {text}",
        f"{setting} contains {meant}, which is spelt differently",
        f"use one spelling, or list both in {setting}",
    )


def _contains(text: str, known: Sequence[str], options: Options) -> Fault | None:
    """Whether a label that would count as none of the known names has one of them in it."""
    if text in known or "joined-labels" in options.accept:
        return None
    setting = "classes" if options.task == "findings" else "positive"
    for name in known:
        if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text, re.IGNORECASE):
            sign = next((sign for sign in MARKS if sign in text), "|")
            return (
                f"label is {text}",
                f"it contains {name} of {setting}, and would count as negative",
                f'set data.separator = "{sign}" if it lists several findings, name it in {setting}, or set '
                'data.accept = ["joined-labels"] if it is negative',
            )
    return None


def joined_labels(classes: Sequence[str], options: Options) -> Iterator[tuple[int, Fault]]:
    """Codes of labels that look like several findings, if no setting states how to read them."""
    if options.positive or options.classes or options.separator or "joined-labels" in options.accept:
        return
    known = set(classes)
    for code, text in enumerate(classes):
        for sign in MARKS:
            parts = split_findings(text, sign)
            if len(parts) > 1 and (any if sign == "|" else all)(part in known for part in parts):
                yield (
                    code,
                    (
                        f"label is {text}, which looks like {len(parts)} findings",
                        "fedveil needs exactly one class per image",
                        f'set data.separator = "{sign}" and either data.task = "findings" with data.classes, or '
                        'data.positive to the findings that count; or data.accept = ["joined-labels"] if it is one '
                        "class",
                    ),
                )
                break


def split_findings(text: str, separator: str) -> list[str]:
    """The findings that a label lists; without a separator it is one.

    >>> split_findings("Infiltration | Pneumonia|", "|"), split_findings("Pneumonia", "")
    (['Infiltration', 'Pneumonia'], ['Pneumonia'])
    """
    parts = text.split(separator) if separator else [text]
    return [part.strip() for part in parts if part.strip()]


def findings(labels: Codes, texts: Sequence[str], options: Options) -> tuple[Findings, tuple[str, ...]]:
    """One column of 1, 0 or -1 per finding, from labels that list findings.

    With ``task = "findings"`` the columns are those of ``classes``, and what a list says is unknown makes all that it
    does not name unknown. Otherwise the columns are the findings that occur.
    """
    lists = [split_findings(text, options.separator) for text in texts]
    public = options.task == "findings"
    names = (options.classes or ()) if public else tuple(sorted({name for one in lists for name in one}))
    table = np.zeros((len(lists), len(names)), np.int8)
    for row, listed in enumerate(lists):
        unsure = not listed or any(one.casefold() in UNKNOWN for one in listed)
        table[row] = [1 if name in listed else -int(unsure and public) for name in names]
    return table[labels], names


def mark(text: str) -> int | None:
    """The meaning of a cell in the column of one finding: 1, 0, -1 for unknown, or None for anything else.

    >>> [mark(text) for text in ("1.0", "0", "", "-1.0", "true", "2")]
    [1, 0, -1, -1, 1, None]
    """
    return MARKED.get(text.strip().casefold())


def resolved(labels: Findings, options: Options) -> Findings:
    """The findings with unknown ones as 0 or 1, if the study says so."""
    if options.unknown_labels not in (0, 1):
        return labels
    return np.where(labels == UNSURE, np.int8(options.unknown_labels), labels)


def study_labels(
    labels: Labels, classes: tuple[str, ...], options: Options
) -> tuple[Labels, tuple[str, ...]]:
    """Labels and classes of the study: merged by ``positive``, or in the order of ``classes``.

    Returns:
        (n,) int64 codes of classes, or for findings (n, K) int8 of 1, 0 and -1 for unknown.
    """
    if options.positive is not None:
        return _merged(labels, classes, options)
    if options.task == "findings" and labels.ndim == 1:
        raise InvalidValue(
            f"the labels are {', '.join(classes[:5])}",
            "findings are one 0/1 column each, or names in one label column of a table",
            'store one column per finding, or set task = "classes"',
        )
    if options.task == "grades" and options.classes is None and not all(map(str.isdecimal, classes)):
        raise InvalidValue(
            f"the grades are {', '.join(classes[:5])}",
            "grades other than numbers have no order of their own",
            "set data.classes to the grades in order",
        )
    if labels.ndim == 2 and options.classes is not None:
        labels = labels[:, [_position(one, classes, "classes") for one in options.classes]]
        classes = options.classes
    if options.task == "findings":
        return labels.astype(np.int8), classes
    if labels.ndim == 2 and not options.label_columns:
        raise InvalidValue(
            "an image can have several labels at once",
            "fedveil needs exactly one class per image unless the task is findings",
            f'set positive to the findings that count, among {", ".join(classes)}, or task = "findings"',
        )
    if labels.ndim == 2:  # each image has exactly one, see `label_faults`
        labels, options = (labels == 1).argmax(axis=1).astype(np.int64), replace(options, classes=None)
    if options.classes is None:
        return labels, classes
    order = np.full(len(classes), -1, np.int64)
    for code in np.unique(labels):  # a file may name classes of which it has no image
        order[code] = _position(classes[code], options.classes, "classes")
    return order[labels], options.classes


def _merged(labels: Labels, classes: tuple[str, ...], options: Options) -> tuple[Codes, tuple[str, ...]]:
    asked, study = options.positive or (), options.classes
    wanted = asked if study is None else _those_here(asked, classes, study, labels.ndim == 2)
    named = [_position(name, classes, "positive") for name in wanted]
    if not asked or (study is None and len(set(named)) == len(classes) and labels.ndim == 1):
        raise InvalidValue(
            f"positive names {len(named)} of the {len(classes)} classes",
            "it must name at least one class and leave at least one",
            f"choose among {', '.join(classes)}",
        )
    merged = np.asarray((labels[:, named] == 1).any(axis=1) if labels.ndim == 2 else np.isin(labels, named))
    if study is not None and len(study) == 2:
        return merged.astype(np.int64), study
    others = [name for code, name in enumerate(classes) if code not in named]
    negative = " or ".join(others) if labels.ndim == 1 and len(others) <= 3 else "other"
    return merged.astype(np.int64), (negative, "positive")


def _those_here(
    positive: Sequence[str], classes: tuple[str, ...], study: tuple[str, ...], several: bool
) -> Sequence[str]:
    """The positive classes that occur here; the others may be absent, since a hospital need not have every finding.

    All are required if no name here is one of the study's: a hospital with other names would take part with every
    label wrong. For lists of findings this does not apply, because the study does not name all findings.
    """
    if not several and {*positive, *study[0].split(" or ")}.isdisjoint(classes):
        return positive
    return [name for name in positive if name in classes]


def _letters(name: str) -> str:
    return "".join(filter(str.isalnum, name.casefold()))


def _position(name: str, classes: tuple[str, ...], setting: str) -> int:
    if name not in classes:
        raise InvalidValue(
            f"the class {name} is unknown",
            f"the classes are {', '.join(classes)}",
            f"correct it, or the setting {setting}",
        )
    return classes.index(name)
