"""Describes a source and lists all problems in it, by file and line, not only the first."""

import os
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import numpy.typing as npt

from fedveil.data.annotations.columns import Column
from fedveil.data.annotations.labels import study_labels
from fedveil.data.annotations.records import SPLITS, Problem, Records, find_problems
from fedveil.data.annotations.table import file_problem
from fedveil.data.embeddings import Embeddings
from fedveil.data.formats.image_files import FileImages
from fedveil.data.formats.stamps import full_hashes
from fedveil.data.image_store import ArrayImages
from fedveil.data.load import read_records
from fedveil.data.options import Options, Settings
from fedveil.errors import DataError, InvalidValue

__all__ = ["CheckReport", "Count", "check"]

FAINT = 0.1
"""An image that uses a smaller fraction of its range of shades is probably scaled wrongly."""


@dataclass(frozen=True, slots=True)
class Count:
    """Numbers of images, and of their patients, of one class in one split at one site ("" if none is named)."""

    site: str
    split: str
    label: str
    images: int
    patients: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckReport:
    """The content of a source; ``sizes`` and ``modes`` are pairs of a description and a number of images."""

    source: str
    images: int
    patients: int
    patients_known: bool
    images_per_patient: tuple[int, float, int]
    """Minimum, median and maximum."""
    counts: tuple[Count, ...]
    sizes: tuple[tuple[str, int], ...]
    modes: tuple[tuple[str, int], ...]
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether a study can use the source unchanged."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"ok": self.ok, **asdict(self)}

    def __str__(self) -> str:
        least, median, most = self.images_per_patient
        lines = [
            f"{self.source}: {self.images} images of {self.patients} patients, "
            f"{least} to {most} each (median {median:g})"
        ]
        for count in self.counts:
            where = " / ".join(part for part in (count.site, count.split, count.label) if part)
            lines.append(f"  {where}: {count.images} images, {count.patients} patients")
        for title, pairs in (("sizes", self.sizes), ("kinds", self.modes)):
            if pairs:
                lines.append(f"  {title}: " + ", ".join(f"{what} ({number})" for what, number in pairs))
        lines += [f"note: {note}" for note in self.notes]
        lines += [f"problem: {problem}" for problem in self.problems] or ["no problems"]
        return "\n".join(lines)


def check(source: str, *, base: Path | None = None, **settings: Unpack[Settings]) -> CheckReport:
    """Reads all that :func:`fedveil.data.load` would, and decodes every image. Never raises DataError."""
    try:
        options = Options.of(settings)
        records = read_records(source, options, base or Path())
    except (DataError, InvalidValue) as error:
        place, separator, found = error.found.partition(": ")
        said = (place, found) if separator else (source, error.found)
        return _nothing(source, Problem(*said, error.rule, error.remedy))
    sizes, modes = _facts(records)
    owners = np.unique(_owners(records), return_counts=True)[1]
    numbers = owners if len(owners) else np.zeros(1, np.int64)
    undecodable, decoded = _decoded(records)
    return CheckReport(
        source=source,
        images=len(records.images),
        patients=len(owners),
        patients_known=records.patients is not None,
        images_per_patient=(int(numbers.min()), float(np.median(numbers)), int(numbers.max())),
        counts=_counts(records, options),
        sizes=tuple(sizes.most_common()),
        modes=tuple(modes.most_common()),
        problems=(*find_problems(records, options), *undecodable),
        notes=(*records.notes, *_notes(records, options), *decoded),
    )


def _nothing(source: str, problem: Problem) -> CheckReport:
    return CheckReport(
        source=source,
        images=0,
        patients=0,
        patients_known=False,
        images_per_patient=(0, 0.0, 0),
        counts=(),
        sizes=(),
        modes=(),
        problems=(problem,),
        notes=(),
    )


def _facts(records: Records) -> tuple[Counter[str], Counter[str]]:
    images = records.images
    if isinstance(images, FileImages):
        sizes, times = np.unique(images.facts.sizes, axis=0, return_counts=True)
        modes = images.facts.modes
        return (
            Counter({f"{width} x {height}": int(n) for (width, height), n in zip(sizes, times, strict=True)}),
            Counter({name: int((modes.codes == code).sum()) for code, name in enumerate(modes.names)}),
        )
    if isinstance(images, ArrayImages) and len(images):
        *depth, height, width = images.stored_shape[: 3 if images.reading.slices else 2]
        kind = f"{depth[0]} slices" if depth else "colour" if images.stored_shape[2:] else "grey"
        mode = f"{images.stored([0]).dtype} {kind}"
        return Counter({f"{width} x {height}": len(images)}), Counter({mode: len(images)})
    if isinstance(images, Embeddings):
        return Counter({f"{images.dimension} numbers": len(images)}), Counter({"embedding": len(images)})
    return Counter(), Counter()


def _owners(records: Records) -> npt.NDArray[np.int64]:
    return np.arange(len(records.images)) if records.patients is None else records.patients.codes


def _counts(records: Records, options: Options) -> tuple[Count, ...]:
    """By site, split and class; for findings, the images that have each."""
    try:
        labels, classes = study_labels(records.labels, records.classes, options)
    except InvalidValue:
        return ()
    if labels.ndim == 1:
        rows, codes = np.arange(len(labels)), labels
    else:
        rows, codes = np.nonzero(labels == 1)
    count = len(records.images)
    sites = np.zeros(count, np.int64) if records.sites is None else records.sites.codes
    splits = np.full(count, -1) if records.splits is None else records.splits
    columns = np.stack([sites[rows], splits[rows], codes, _owners(records)[rows]], axis=1)
    keys, images = np.unique(columns[:, :3], axis=0, return_counts=True)
    _, patients = np.unique(np.unique(columns, axis=0)[:, :3], axis=0, return_counts=True)
    found = [
        Count(
            "" if records.sites is None else records.sites.names[site],
            "" if split < 0 else SPLITS[split],
            classes[code],
            int(n),
            int(m),
        )
        for (site, split, code), n, m in zip(keys, images, patients, strict=True)
    ]
    return tuple(sorted(found, key=lambda one: (one.site, one.split, classes.index(one.label))))


def _decoded(records: Records) -> tuple[list[Problem], list[str]]:
    """Files with a valid header but damaged pixels, and notes on the pixel values."""
    images = records.images
    rows = range(len(images))
    look = partial(_reach, images.read)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(look, rows))
    problems = [
        file_problem(records.place(row), images.path(row), one)
        for row, one in zip(rows, found, strict=True)
        if isinstance(one, DataError) and isinstance(images, FileImages)
    ]
    faint = [row for row, one in zip(rows, found, strict=True) if isinstance(one, float) and one < FAINT]
    notes = []
    if faint:
        notes.append(
            f"{len(faint)} images use less than a tenth of their range of shades, which loses details; the first is "
            f"{records.place(faint[0])}. Set data.window to the values that map to black and white"
        )
    return problems, notes


def _reach(read: Callable[[list[int]], npt.NDArray[np.float32]], row: int) -> float | DataError:
    """The fraction of the range of shades that nearly all pixels of an image use, except for burnt-in markers."""
    try:
        low, high = np.percentile(read([row]), (1, 99))
    except DataError as error:
        return error
    return float(high - low)


def _notes(records: Records, options: Options) -> list[str]:
    notes = []
    if records.patients is None:
        notes.append(
            "no patients are named: each image counts as one patient, and the guarantee covers single images"
        )
    if records.splits is None:
        notes.append("there is no split: a study holds out some patients for its test")
    return notes + _other_channels(records, options) + _renamed(records) + _copies(records)


def _other_channels(records: Records, options: Options) -> list[str]:
    """Images that are converted to another number of channels."""
    images = records.images
    if not isinstance(images, FileImages) or not len(images):
        return []
    names = {1: "grey", 3: "colour"}
    others = np.flatnonzero(images.facts.channels != images.channels)
    if not len(others):
        return []
    notes = [
        f"{len(others)} images are converted to {names[images.channels]}; the first is {records.place(others[0])}"
    ]
    if options.reading.channels is None:
        notes.insert(
            0,
            f"data.channels is not set: {images.channels} ({names[images.channels]}) is taken from the first image",
        )
    return notes


def _renamed(records: Records) -> list[str]:
    """Patients whose PatientID in DICOM files differs from the table."""
    if records.patients is None or not isinstance(records.images, FileImages):
        return []
    told, patients = records.images.facts.patients, records.patients
    known = np.flatnonzero(told.codes >= 0)
    others = known[told.texts()[known] != patients.texts()[known]]
    if not len(others):
        return []
    return [
        f"the PatientID of {len(others)} files differs from the patient in the table, which takes precedence; "
        f"the first is {records.place(others[0])}"
    ]


def _copies(records: Records) -> list[str]:
    """Images with the same content as an earlier one: not an error, but often a mistake."""
    with full_hashes():
        digests = Column.of(records.images.digest(np.arange(len(records.images))))
    _, first, group = np.unique(digests.codes, return_index=True, return_inverse=True)
    original = first[group]
    copies = np.flatnonzero(original != np.arange(len(original)))
    if not len(copies):
        return []
    columns = {
        "patient": None if records.patients is None else records.patients.codes,
        "site": None if records.sites is None else records.sites.codes,
        "split": records.splits,
    }
    across = [
        f"{(column[copies] != column[original[copies]]).sum()} under another {name}"
        for name, column in columns.items()
        if column is not None
    ]
    said = f" ({', '.join(across)})" if across else ""
    notes = [
        f"{len(copies)} images are copies of another{said}; "
        f"the first is {records.place(copies[0])}, a copy of {records.place(original[copies[0]])}"
    ]
    labels = records.labels.reshape(len(original), -1)
    torn = copies[(labels[copies] != labels[original[copies]]).any(axis=1)]
    if len(torn):
        notes.append(
            f"{len(torn)} copies have another label than their original; "
            f"the first is {records.place(torn[0])}, a copy of {records.place(original[torn[0]])}"
        )
    return notes
