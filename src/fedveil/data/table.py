"""Rows that name image files, as manifests and folders give them, turned into records."""

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedveil.data.facts import ImageFacts
from fedveil.data.files import FileImages, probe
from fedveil.data.records import Given, Problem, Records
from fedveil.errors import DataError

__all__ = ["Row", "class_order", "file_problem", "file_records"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One image file: where it is, what it shows, and where that is written."""

    path: Path
    name: str
    label: str
    place: str
    patient: str | None = None
    site: str | None = None
    split: int | None = None


def file_records(
    name: str, rows: Sequence[Row], image_size: int, problems: Iterable[Problem], notes: Iterable[str]
) -> Records:
    """Looks into every file's header; a file that cannot be used becomes a problem and is left out.

    A column counts as given where every row has it. Without patients in the rows, DICOM's PatientID counts.
    """
    found = list(problems)
    usable: list[tuple[Row, ImageFacts]] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for row, facts in zip(rows, pool.map(_try_probe, (row.path for row in rows)), strict=True):
            if isinstance(facts, DataError):
                found.append(file_problem(row.place, row.path, facts))
            else:
                usable.append((row, facts))
    kept = [row for row, _ in usable]
    patients, missing = _patients(name, usable)
    classes = class_order(row.label for row in kept)
    codes = {label: code for code, label in enumerate(classes)}
    return Records(
        name=name,
        images=FileImages([row.path for row in kept], [facts for _, facts in usable], image_size),
        labels=np.array([codes[row.label] for row in kept], np.int64),
        classes=classes,
        image_names=tuple(row.name for row in kept),
        place=lambda index: kept[index].place,
        patients=patients,
        sites=_column([row.site for row in kept]),
        splits=_splits([row.split for row in kept]),
        problems=(*found, *missing),
        notes=tuple(notes),
        rows=tuple(
            Given(
                patient=facts.patient if row.patient is None else row.patient, site=row.site, split=row.split
            )
            for row, facts in usable
        ),
    )


def file_problem(place: str, path: Path, error: DataError) -> Problem:
    """An error about a file as a problem at ``place``, which does not name the file twice."""
    found = error.found.removeprefix(f"{path}: ") if place == str(path) else error.found
    return Problem(place, found, error.rule, error.remedy)


def class_order(labels: Iterable[str]) -> tuple[str, ...]:
    """The distinct labels; numbers by value, anything else by alphabet.

    >>> class_order(["10", "9", "9"]), class_order(["normal", "bacteria"])
    (('9', '10'), ('bacteria', 'normal'))
    """
    distinct = set(labels)
    if all(label.isdecimal() for label in distinct):
        return tuple(sorted(distinct, key=lambda label: (int(label), label)))
    return tuple(sorted(distinct))


def _try_probe(path: Path) -> ImageFacts | DataError:
    try:
        return probe(path)
    except DataError as error:
        return error


def _patients(
    name: str, usable: list[tuple[Row, ImageFacts]]
) -> tuple[tuple[str, ...] | None, list[Problem]]:
    given = _column([row.patient for row, _ in usable])
    if given is not None:
        return given, []
    identifiers = [facts.patient for _, facts in usable]
    known = [identifier for identifier in identifiers if identifier is not None]
    if not known or len(known) == len(identifiers):
        return (tuple(known) or None), []
    first = usable[identifiers.index(None)][0]
    return None, [
        Problem(
            first.place,
            f"{len(known)} DICOM files of {name} say whose they are, but {first.path} does not",
            "either every image names its patient, or none does",
            "add a patient column that names them all",
        )
    ]


def _column(values: list[str | None]) -> tuple[str, ...] | None:
    given = tuple(value for value in values if value is not None)
    return given if given and len(given) == len(values) else None


def _splits(values: list[int | None]) -> np.ndarray[tuple[int], np.dtype[np.int8]] | None:
    given = [value for value in values if value is not None]
    return np.array(given, np.int8) if given and len(given) == len(values) else None
