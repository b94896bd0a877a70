"""From columns that name image files, of manifests and folders, to records of readable files."""

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np

from fedveil.data.annotations.columns import Column, Names
from fedveil.data.annotations.labels import Codes
from fedveil.data.annotations.records import Problem, Records, without_lost_classes
from fedveil.data.formats.image_files import FileImages, probe
from fedveil.data.image_header import Headers, ImageFacts
from fedveil.data.options import Options, Reading
from fedveil.errors import DataError

__all__ = ["class_codes", "class_order", "file_problem", "listed_files", "probed", "try_probe"]

TOGETHER = 32
"""Files that one thread reads in turn."""
BATCH = 4096
"""Files whose headers are in memory as objects at the same time."""


def listed_files(paths: Names, options: Options) -> FileImages:
    """Images in files whose headers `probed` has yet to read."""
    none = Headers(
        sizes=np.zeros((len(paths), 2), np.int32),
        channels=np.zeros(len(paths), np.int8),
        modes=Column(np.zeros(len(paths), np.int64), Names(("",))),
        patients=Column(np.full(len(paths), -1, np.int64), Names(())),
    )
    return FileImages(paths, none, options.image_size, options.reading)


def probed(records: Records, options: Options) -> Records:
    """Reads every file's header; an unusable file becomes a problem and is left out.

    Without patients in the table, DICOM's PatientID counts.
    """
    files = records.images
    assert isinstance(files, FileImages)
    kept: list[int] = []
    found = list(records.problems)

    def usable() -> Iterator[ImageFacts]:
        for row, facts in enumerate(_probed(files, options.reading)):
            if isinstance(facts, DataError):
                found.append(file_problem(records.place(row), files.path(row), facts))
            else:
                kept.append(row)
                yield facts

    headers = Headers.of(usable())
    rows = np.array(kept, dtype=np.int64)
    images = FileImages(files.paths.take(rows), headers, options.image_size, options.reading)
    usable_records = records.subset(rows)
    return _with_patients(
        replace(without_lost_classes(usable_records, records.labels), images=images, problems=tuple(found)),
        headers.patients,
        options,
    )


def _probed(files: FileImages, reading: Reading) -> Iterator[ImageFacts | DataError]:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(files), BATCH):
            rows = range(start, min(start + BATCH, len(files)))
            parts = [rows[first : first + TOGETHER] for first in range(0, len(rows), TOGETHER)]
            for found in pool.map(lambda part: [try_probe(files.path(row), reading) for row in part], parts):
                yield from found


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


def class_codes(labels: Column) -> tuple[Codes, tuple[str, ...]]:
    """Codes into the labels that occur, in the order of `class_order`."""
    column = labels.compact()
    classes = class_order(column.names)
    place = {name: code for code, name in enumerate(classes)}
    order = np.array([place[name] for name in column.names], dtype=np.int64)
    return order[column.codes], classes


def try_probe(path: Path, reading: Reading) -> ImageFacts | DataError:
    """The content of the file's header, or the reason why the file is unusable."""
    try:
        return probe(path, reading)
    except DataError as error:
        return error


def _with_patients(records: Records, identifiers: Column, options: Options) -> Records:
    """The images whose patients are known, or all of them if no patient is named.

    Where each image is judged by its own annotations alone, none is left out here.
    """
    if records.patients is not None:
        return records
    known = identifiers.codes >= 0
    if options.leave_out or known.all():
        return replace(records, patients=identifiers if len(known) else None)
    if not known.any():
        return records
    images = records.images
    assert isinstance(images, FileImages)
    problems = [
        Problem(
            records.place(int(row)),
            f"{known.sum()} DICOM files of {records.name} name their patient, but {images.path(int(row))} does not",
            "either every image or none must name its patient",
            "add a patient column that names them all",
            left_out=True,
        )
        for row in np.flatnonzero(~known)
    ]
    rows = np.flatnonzero(known)
    return replace(
        without_lost_classes(records.subset(rows), records.labels),
        images=images.subset(rows),
        patients=identifiers.take(rows),
        problems=(*records.problems, *problems),
    )
