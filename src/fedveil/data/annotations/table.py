"""From rows that name image files, of manifests and folders, to records."""

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from fedveil.data.annotations.records import Given, Problem, Records
from fedveil.data.formats.image_files import FileImages, probe
from fedveil.data.image_header import ImageFacts
from fedveil.data.options import Options, Reading
from fedveil.errors import DataError

__all__ = ["Row", "class_order", "file_problem", "file_records", "try_probe"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One image file: its path, its annotations, and their place."""

    path: Path
    name: str
    label: str
    place: str
    patient: str | None = None
    site: str | None = None
    split: int | None = None


def file_records(
    name: str, rows: Sequence[Row], options: Options, problems: Iterable[Problem], notes: Iterable[str]
) -> Records:
    """Reads every file's header; an unusable file becomes a problem and is left out.

    A column counts as given if every row has it. Without patients in the rows, DICOM's PatientID counts.
    """
    found = list(problems)
    usable: list[tuple[Row, ImageFacts]] = []
    probe_one = partial(try_probe, reading=options.reading)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for row, facts in zip(rows, pool.map(probe_one, (row.path for row in rows)), strict=True):
            if isinstance(facts, DataError):
                found.append(file_problem(row.place, row.path, facts))
            else:
                usable.append((row, facts))
    usable, patients, missing = _patients(name, usable, options)
    kept = [row for row, _ in usable]
    classes = class_order(row.label for row in kept)
    codes = {label: code for code, label in enumerate(classes)}
    return Records(
        name=name,
        images=FileImages(
            [row.path for row in kept], [facts for _, facts in usable], options.image_size, options.reading
        ),
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
    """An error about a file as a problem at ``place``, without naming the file twice."""
    found = error.found.removeprefix(f"{path}: ") if place == str(path) else error.found
    return Problem(place, found, error.rule, error.remedy, left_out=True)


def class_order(labels: Iterable[str]) -> tuple[str, ...]:
    """The distinct labels; numbers by value, anything else by alphabet.

    >>> class_order(["10", "9", "9"]), class_order(["normal", "bacteria"])
    (('9', '10'), ('bacteria', 'normal'))
    """
    distinct = set(labels)
    if all(label.isdecimal() for label in distinct):
        return tuple(sorted(distinct, key=lambda label: (len(label.lstrip("0")), label.lstrip("0"), label)))
    return tuple(sorted(distinct))


def try_probe(path: Path, reading: Reading) -> ImageFacts | DataError:
    """The content of the file's header, or the reason why the file is unusable."""
    try:
        return probe(path, reading)
    except DataError as error:
        return error


def _patients(
    name: str, usable: list[tuple[Row, ImageFacts]], options: Options
) -> tuple[list[tuple[Row, ImageFacts]], tuple[str, ...] | None, list[Problem]]:
    """The images whose patients are known, or all of them if no patient is named."""
    given = _column([row.patient for row, _ in usable])
    if given is not None or options.leave_out:  # then each image is judged by its own annotations alone
        return usable, given, []
    known = [(row, facts) for row, facts in usable if facts.patient is not None]
    if not known:
        return usable, None, []
    problems = [
        Problem(
            row.place,
            f"{len(known)} DICOM files of {name} name their patient, but {row.path} does not",
            "either every image or none must name its patient",
            "add a patient column that names them all",
            left_out=True,
        )
        for row, facts in usable
        if facts.patient is None
    ]
    return known, tuple(facts.patient or "" for _, facts in known), problems


def _column(values: list[str | None]) -> tuple[str, ...] | None:
    given = tuple(value for value in values if value is not None)
    return given if given and len(given) == len(values) else None


def _splits(values: list[int | None]) -> np.ndarray[tuple[int], np.dtype[np.int8]] | None:
    given = [value for value in values if value is not None]
    return np.array(given, np.int8) if given and len(given) == len(values) else None
