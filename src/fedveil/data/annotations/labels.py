"""The meaning of labels in a study: unusable labels, and the classes of the others.

Each label is judged independently, by the study's settings, never by the labels of other images.
"""

import re
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from fedveil.data.options import Options
from fedveil.errors import InvalidValue

__all__ = ["UNSURE", "Fault", "findings", "joined_labels", "label_faults", "split_findings", "study_labels"]

Codes = npt.NDArray[np.int64]
Fault = tuple[str, str, str]
"""What was found, the rule and the remedy."""

UNKNOWN = frozenset(("", "-1", "-1.0", "nan", "na", "n/a", "null", "unknown", "uncertain", "?"))
NOBODY_KNOWS = "an unknown label must not count as a class"
MARKS = "|;,/+&"
UNSURE = -1
"""In a matrix of findings: unknown."""


def label_faults(
    labels: Codes, classes: tuple[str, ...], options: Options
) -> tuple[dict[int, Fault], dict[int, Fault]]:
    """Rows with an unusable label, and separately those with an unknown label."""
    if labels.ndim == 2:
        return {}, _unsure(labels, classes, options)
    wrong: dict[int, Fault] = {}
    unknown: dict[int, Fault] = {}
    for code, text in enumerate(classes):
        fault = _fault(text, options)
        if fault is not None:
            chosen = unknown if fault[1] == NOBODY_KNOWS else wrong
            chosen.update(dict.fromkeys((int(row) for row in np.flatnonzero(labels == code)), fault))
    return wrong, unknown


def _unknown(found: str) -> Fault:
    return (
        found,
        NOBODY_KNOWS,
        'fill it in, set data.unknown_labels = "drop" to omit such images, or list it in data.classes',
    )


def _fault(text: str, options: Options) -> Fault | None:
    """Why a label is unusable; None if it is usable."""
    positive, classes = options.positive or (), options.classes or ()
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


def _misspelt(text: str, positive: Sequence[str]) -> Fault | None:
    meant = next((name for name in positive if _letters(name) == _letters(text) and name != text), None)
    if meant is None or text in positive:
        return None
    return (
        f"label is {text}",
        f"positive contains {meant}, which is spelt differently",
        "use one spelling, or list both in positive",
    )


def _contains(text: str, positive: Sequence[str], options: Options) -> Fault | None:
    if "joined-labels" in options.accept:
        return None
    for name in positive:
        if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text, re.IGNORECASE):
            mark = next((mark for mark in MARKS if mark in text), "|")
            return (
                f"label is {text}",
                f"it contains the positive class {name}, and would count as negative",
                f'set data.separator = "{mark}" if it lists several findings, name it in positive, or set '
                'data.accept = ["joined-labels"] if it is negative',
            )
    return None


def _unsure(labels: Codes, classes: tuple[str, ...], options: Options) -> dict[int, Fault]:
    named = [classes.index(name) for name in options.positive or () if name in classes]
    own = labels[:, named]
    rows = np.flatnonzero((own == UNSURE).any(axis=1) & ~(own == 1).any(axis=1))
    return {int(row): _unknown("a positive finding is -1") for row in rows}


def joined_labels(classes: Sequence[str], options: Options) -> Iterator[tuple[int, Fault]]:
    """Codes of labels that look like several findings, if no setting states how to read them."""
    if options.positive or options.classes or options.separator or "joined-labels" in options.accept:
        return
    known = set(classes)
    for code, text in enumerate(classes):
        for mark in MARKS:
            parts = split_findings(text, mark)
            if len(parts) > 1 and (any if mark == "|" else all)(part in known for part in parts):
                yield (
                    code,
                    (
                        f"label is {text}, which looks like {len(parts)} findings",
                        "fedveil needs exactly one class per image",
                        f'set data.separator = "{mark}" and data.positive to the findings that count, or '
                        'data.accept = ["joined-labels"] if it is one class',
                    ),
                )
                break


def split_findings(text: str, separator: str) -> list[str]:
    """The findings that a label lists.

    >>> split_findings("Infiltration | Pneumonia|", "|")
    ['Infiltration', 'Pneumonia']
    """
    return [part.strip() for part in text.split(separator) if part.strip()]


def findings(
    labels: Codes, classes: tuple[str, ...], separator: str
) -> tuple[npt.NDArray[np.int64], tuple[str, ...]]:
    """One 0/1 column per finding, from labels that list findings."""
    lists = [split_findings(text, separator) for text in classes]
    names = tuple(sorted({name for one in lists for name in one}))
    table = np.array([[name in one for name in names] for one in lists], np.int64).reshape(-1, len(names))
    return table[labels], names


def study_labels(
    name: str, labels: Codes, classes: tuple[str, ...], options: Options
) -> tuple[Codes, tuple[str, ...]]:
    """Labels and classes of the study: merged by ``positive``, or in the order of ``classes``."""
    if options.positive is not None:
        return _merged(labels, classes, options)
    if labels.ndim == 2:
        raise InvalidValue(
            f"an image of {name} can have several labels at once",
            "fedveil needs exactly one class per image",
            f"set positive to the findings that count, among {', '.join(classes)}",
        )
    if options.classes is None:
        return labels, classes
    order = np.full(len(classes), -1, np.int64)
    for code in np.unique(labels):  # a file may name classes of which it has no image
        order[code] = _position(classes[code], options.classes, "classes")
    return order[labels], options.classes


def _merged(labels: Codes, classes: tuple[str, ...], options: Options) -> tuple[Codes, tuple[str, ...]]:
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
