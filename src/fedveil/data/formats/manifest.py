"""Reads a manifest: a table of one row per image, ``path,label`` and optionally ``patient,site,split``.

Paths are relative to the manifest. Columns may have other names if the study maps them, and one column may hold all
labels or several one finding each. Every problem is reported by file and line.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedveil.data.annotations.columns import Column, Names
from fedveil.data.annotations.labels import Fault, Labels, mark
from fedveil.data.annotations.patients import patient_key
from fedveil.data.annotations.presets import Preset
from fedveil.data.annotations.records import SPLIT_NAMES, Problem, Records
from fedveil.data.annotations.table import class_codes, listed_files, probed
from fedveil.data.formats.headers import Header, read_header
from fedveil.data.formats.tables import Sheet, known_names, read_sheet
from fedveil.data.options import COLUMNS, Options

__all__ = ["listed", "read_manifest", "sheet_records"]

KNOWN_SUFFIX = re.compile(r"\.(png|jpe?g|tiff?|bmp|webp|dcm|dicom|nii|nii\.gz)$", re.IGNORECASE)


def read_manifest(path: Path, options: Options) -> Records:
    """The content of the manifest. Raises DataError only if no row can be read at all."""
    notes: list[str] = []
    sheet = read_sheet(path, (*COLUMNS, *known_names(options.columns)), notes)
    return sheet_records(sheet, path.stem, options, notes)


def sheet_records(sheet: Sheet, name: str, options: Options, notes: list[str]) -> Records:
    """The records of a table's rows; each row is judged independently."""
    header = read_header(sheet, options, notes)
    found = _Found(header)
    for row in _Reader.of(sheet, header, options).rows(found.problems):
        found.add(row)
    records = found.records(sheet, name, options, notes)
    return probed(_without_repeats(records, options), options)


def listed(path: Path, options: Options) -> Iterator[tuple[str, Path, str] | Problem]:
    """Name, file and place of each row of a table of which only the paths are needed."""
    notes: list[str] = []
    sheet = read_sheet(path, (*COLUMNS, *known_names(options.columns)), notes)
    header = read_header(sheet, options, notes, only_paths=True)
    problems: list[Problem] = []
    for row in _Reader.of(sheet, header, options).rows(problems):
        yield row.name, Path(row.path), sheet.place(row.number)
    yield from problems


@dataclass(frozen=True, slots=True)
class _Row:
    number: int
    name: str
    path: str
    label: str
    marks: bytes
    patient: str | None
    site: str | None
    split: int
    attributes: tuple[str | None, ...]


@dataclass(slots=True)
class _Found:
    """Columns that grow by one entry per row; texts that recur are held once."""

    header: Header
    numbers: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    marks: bytearray = field(default_factory=bytearray)
    splits: bytearray = field(default_factory=bytearray)
    texts: list[list[str | None]] = field(default_factory=lambda: [[], [], []])
    attributes: list[list[str | None]] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    same: dict[str | None, str | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.attributes = [[] for _ in self.header.attributes]

    def add(self, row: _Row) -> None:
        self.numbers.append(row.number)
        self.names.append(row.name)
        self.paths.append(row.name if row.path == row.name else row.path)
        self.marks += row.marks
        self.splits.append(row.split & 0xFF)
        for column, text in zip(
            (*self.texts, *self.attributes), (row.label, row.patient, row.site, *row.attributes), strict=True
        ):
            column.append(self.same.setdefault(text, text))

    def records(self, sheet: Sheet, name: str, options: Options, notes: list[str]) -> Records:
        numbers = np.array(self.numbers, dtype=np.int64)
        labels: Labels
        if self.header.findings:
            classes = self.header.findings
            labels = np.frombuffer(bytes(self.marks), np.int8).reshape(-1, len(classes))
        else:
            labels, classes = class_codes(Column.of(self.texts[0]))
        columns = [Column.of(texts) for texts in (*self.texts[1:], *self.attributes)]
        patients, sites, *attributes = columns
        splits = np.frombuffer(bytes(self.splits), np.int8)
        return Records(
            name=name,
            images=listed_files(Names(self.paths), options),
            labels=labels,
            classes=classes,
            image_names=Names(self.names),
            place=lambda row: sheet.place(int(numbers[row])),
            patients=patients if self.header.names_patients else None,
            sites=sites if self.header.site is not None else None,
            splits=splits if self.header.split is not None else None,
            attributes=dict(zip(self.header.attributes, attributes, strict=True)),
            problems=tuple(self.problems),
            notes=tuple(notes),
        )


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads one row after another, each by itself."""

    sheet: Sheet
    header: Header
    table: Preset
    filled: tuple[tuple[str, int], ...]

    @classmethod
    def of(cls, sheet: Sheet, header: Header, options: Options) -> "_Reader":
        return cls(sheet, header, options.table, tuple(header.filled.items()))

    def rows(self, problems: list[Problem]) -> Iterator[_Row]:
        """The usable rows; the others become problems."""
        for line in self.sheet.rows:
            row = line if isinstance(line, Problem) else self._row(*line)
            if isinstance(row, Problem):
                problems.append(row)
            else:
                yield row

    def _row(self, number: int, cells: list[str]) -> _Row | Problem:
        header = self.header
        fault = self._cell_fault(cells)
        if fault is not None:
            return self._problem(number, fault)
        split = "" if header.split is None else cells[header.split].lower()
        marks = [mark(cells[position]) for position in header.marks]
        if None in marks:
            place = marks.index(None)
            found = f"{header.findings[place]} is {cells[header.marks[place]]}"
            rule = "a finding is 1 or 0, or blank, -1 or uncertain if unknown"
            return self._problem(number, (found, rule, "correct it, or name one column of labels"))
        name = cells[header.path]
        patient: str | None = None if header.patient is None else cells[header.patient]
        if header.in_path is not None:
            within = header.in_path.search(name)
            if within is None:
                rule = f"the patient is the part of the path that matches {header.in_path.pattern}"
                remedy = "correct it, or name a patient column"
                return self._problem(number, (f"{name} names no patient", rule, remedy))
            patient = within.group()
        return _Row(
            number=number,
            name=name,
            path=self._path(name),
            label="" if header.label is None else cells[header.label],
            marks=bytes(one & 0xFF for one in marks if one is not None),
            patient=patient,
            site=None if header.site is None else cells[header.site],
            split=SPLIT_NAMES[split] if split else -1,
            attributes=tuple(cells[position] or None for position in header.attributes.values()),
        )

    def _problem(self, number: int, fault: Fault) -> Problem:
        return Problem(self.sheet.place(number), *fault, left_out=True)

    def _cell_fault(self, cells: list[str]) -> Fault | None:
        """Why the row cannot be read, whatever its label."""
        width = len(self.sheet.header[1])
        if len(cells) != width:
            return (
                f"it has {len(cells)} cells where the first line has {width}",
                "every row must have one cell per column",
                "quote cells that hold the separator, and remove line breaks within cells",
            )
        # An empty label is an unknown one, which a study may leave out; an attribute may be missing.
        empty = [name for name, position in self.filled if not cells[position]]
        if empty:
            rule = "a column that exists must be filled"
            return (f"{' and '.join(empty)} is empty", rule, "fill it in every row")
        split = None if self.header.split is None else cells[self.header.split]
        if split is not None and split.lower() not in SPLIT_NAMES:
            return (f"split is {split}", "it must be train, test or validation", "correct it")
        return None

    def _path(self, name: str) -> str:
        """The file that a row names: the first that exists, or else as it stands."""
        file = name + self.table.suffix if self.table.suffix and not KNOWN_SUFFIX.search(name) else name
        places = [os.path.join(self.sheet.base, folder, file) for folder in self.table.folders]  # noqa: PTH118
        if "\\" in file:
            places += [place.replace("\\", "/") for place in places]
        if len(places) == 1:
            return places[0]
        # A name that is too long is no error here.
        return next((place for place in places if os.path.exists(place)), places[0])  # noqa: PTH110


def _without_repeats(records: Records, options: Options) -> Records:
    """One row per image; every further one is a problem, or is left out if it says the same and that is accepted.

    Each judged by itself, whether a patient's image counts must not depend on what another patient has: then only rows
    of the same patient are compared, and an image without a patient with none.
    """
    files = records.images.paths  # type: ignore[attr-defined]
    whose = records.patients
    if options.leave_out and whose is None:
        return records
    keys = np.array([os.path.normpath(path) for path in files], dtype=files.array.dtype)
    if options.leave_out and whose is not None:
        same = whose if "similar-patients" in options.accept else whose.renamed(patient_key)
        owners = np.array(same.map(lambda text: text, ""), dtype=keys.dtype)[same.codes]
        keys = np.strings.add(np.strings.add(owners, "\n"), keys)
    _, first, group = np.unique(keys, return_index=True, return_inverse=True)
    earlier = first[group]
    repeats = np.flatnonzero(earlier != np.arange(len(keys)))
    if not len(repeats):
        return records
    said = _annotations(records)
    accepted = np.zeros(len(repeats), dtype=np.bool_)
    if "repeated-rows" in options.accept:
        accepted = (said[repeats] == said[earlier[repeats]]).all(axis=1)
    problems = [
        Problem(
            records.place(int(row)),
            f"{records.image_names[row]} was listed before, at {records.place(int(earlier[row]))}",
            "every image must be in one row only",
            'delete one of them, or set data.accept = ["repeated-rows"] if they say the same',
            left_out=True,
        )
        for row in repeats[~accepted]
    ]
    keep = np.setdiff1d(np.arange(len(keys)), repeats)
    left = [f"{accepted.sum()} rows repeat an image with the same annotations"] if accepted.any() else []
    return replace(
        records.subset(keep), problems=(*records.problems, *problems), notes=(*records.notes, *left)
    )


def _annotations(records: Records) -> npt.NDArray[np.int64]:
    """Label, patient, site and split of each row as numbers (n, k)."""
    columns = [column.codes for column in (records.patients, records.sites) if column is not None]
    columns += [] if records.splits is None else [records.splits.astype(np.int64)]
    return np.column_stack([records.labels.astype(np.int64), *columns])
