"""Reads a manifest: CSV or TSV, one row per image, ``path,label`` and optionally ``patient,site,split``.

Paths are relative to the manifest. Text may be UTF-8, UTF-16 with a byte-order mark, or Windows-1252, each line
independently; columns may be separated by comma, semicolon, tab or bar, and have other names if the study maps them.
Every problem is reported by file and line.
"""

import codecs
import csv
import difflib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from fedveil.data.annotations.patients import patient_name
from fedveil.data.annotations.records import SPLIT_NAMES, Problem, Records
from fedveil.data.annotations.table import Row, file_records
from fedveil.data.options import COLUMNS, Options
from fedveil.errors import DataError

__all__ = ["TABLES", "read_manifest", "table_rows"]

TABLES = (".csv", ".tsv")
NEEDED, OPTIONAL = COLUMNS[:2], COLUMNS[2:]
SEPARATORS = ",;\t|"
USUAL = {
    "path": ("image index", "image", "file", "image id", "name", "dicom", "dcm", "jpg", "png"),
    "label": ("finding labels", "labels", "finding", "diagnosis", "dx", "class", "target"),
    "patient": ("patient", "subject"),
    "site": ("hospital", "centre", "center", "institution"),
    "split": (),
}
"""Common names, or beginnings of names, of a column in other tables."""


def read_manifest(path: Path, options: Options) -> Records:
    """The content of the manifest. Raises DataError only if no row can be read at all."""
    notes: list[str] = []
    problems: list[Problem] = []
    rows: list[Row] = []
    seen: dict[tuple[str, str | None], Row] = {}
    for row in table_rows(path, options.columns, notes):
        if isinstance(row, Problem):
            problems.append(row)
            continue
        # Each judged by itself, whether a patient's image counts must not depend on what another patient has.
        whose = patient_name(row.patient, options) if options.leave_out else None
        earlier = seen.setdefault((os.path.normpath(row.path), whose), row)
        if earlier is not row and not (options.leave_out and whose is None):
            found = f"{row.name} was listed before, at {earlier.place}"
            rule, remedy = "every image must be in one row only", "delete one of them"
            problems.append(Problem(row.place, found, rule, remedy, left_out=True))
            continue
        rows.append(row)
    return file_records(path.stem, rows, options, problems, notes)


def table_rows(
    path: Path, names: Mapping[str, str], notes: list[str], *, only_paths: bool = False
) -> Iterator[Row | Problem]:
    """The rows of a table with the column names in ``names``, or else the default names."""
    lines = _lines(path, _text(path, notes), names)
    first = next(lines, (1, []))
    if isinstance(first, Problem):
        raise DataError(f"{first.place}: {first.found}", first.rule, first.remedy)
    wanted = COLUMNS[:1] if only_paths else COLUMNS
    columns, extra = _columns(path, first, {name: names.get(name, name) for name in wanted})
    notes += [f"the column {name} is not used" for name in extra]
    for line in lines:
        if isinstance(line, Problem):
            yield line
        else:
            yield _row(path, f"{path}, line {line[0]}", line[1], len(first[1]), columns)


def _text(path: Path, notes: list[str]) -> str:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file", "a manifest must exist", "check the path") from None
    except OSError as error:
        raise DataError(
            f"{path}: it cannot be opened ({error.strerror})",
            "a manifest must be readable",
            "check its permissions",
        ) from None
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        text = content.decode("utf-16", errors="replace")
        if "\ufffd" in text.partition("\n")[0]:
            raise _not_text(path, "its first line is damaged")
        return _text_of(text)
    content = content.removeprefix(codecs.BOM_UTF8)
    if b"\0" in content.partition(b"\n")[0]:
        raise _not_text(path, "it holds zero bytes")
    try:
        return _text_of(content.decode("utf-8"))
    except UnicodeDecodeError:
        pass
    # Line by line: how one row is spelt must not change what others are called.
    lines = [_line(line) for line in content.split(b"\n")]
    others = sum(not is_utf8 for _, is_utf8 in lines)
    notes.append(f"{others} lines are not UTF-8 and were read as Windows-1252")
    return _text_of("\n".join(line for line, _ in lines))


def _text_of(decoded: str) -> str:
    """Without zero characters, which no path may hold: the row that has one names no file then."""
    return decoded.replace("\0", "\ufffd")


def _line(content: bytes) -> tuple[str, bool]:
    try:
        return content.decode("utf-8"), True
    except UnicodeDecodeError:
        return content.decode("cp1252", errors="replace"), False


def _not_text(path: Path, reason: str) -> DataError:
    return DataError(
        f"{path}: it is not text that can be read ({reason})",
        "a manifest must be a CSV file",
        "save it as CSV in UTF-8",
    )


def _lines(path: Path, text: str, names: Mapping[str, str]) -> Iterator[tuple[int, list[str]] | Problem]:
    """Line number and cells of every line that is not blank, the header first.

    A row is one line. Line breaks within quotes would make it depend on one stray quote of one patient whether the rows
    of all others are read.
    """
    start = text.lstrip("\r\n \t")
    header = start.splitlines()[0] if start else ""
    if header.lower().startswith("sep="):
        separator = header[4:5]
    else:
        # The separator is the one that yields most of the columns of a manifest.
        known = {*COLUMNS, *_names(list(names.values()))}
        separator = max(
            SEPARATORS, key=lambda mark: (len(known & set(_names(header.split(mark)))), header.count(mark))
        )
    for number, line in enumerate(re.split(r"\r\n|\n|\r", text), 1):
        if number == 1 and line.lower().startswith("sep="):
            continue
        try:
            cells = next(csv.reader([line], delimiter=separator or ","), [])
        except csv.Error as error:
            yield Problem(
                f"{path}, line {number}",
                f"it is not CSV ({error})",
                "a cell holds 131,072 characters at most",
                "shorten it",
                left_out=True,
            )
            continue
        if any(cell.strip() for cell in cells):
            yield number, [cell.strip() for cell in cells]


def _names(cells: list[str]) -> list[str]:
    return [cell.strip().strip('"').strip().lower() for cell in cells]


def _columns(
    path: Path, header: tuple[int, list[str]], asked: Mapping[str, str]
) -> tuple[dict[str, int], list[str]]:
    """Position of each used column, by its meaning, and the names of unused ones.

    ``asked`` is the name of each column.
    """
    names = _names(header[1])
    place = f"{path}, line {header[0]}"
    wanted = {name: _names([called])[0] for name, called in asked.items()}
    for name, called in wanted.items():
        if names.count(called) > 1:
            raise DataError(
                f"{place}: the column {called} occurs twice", "column names must differ", "rename one"
            )
        if called != name and called not in names:
            raise DataError(
                f"{place}: there is no column {asked[name]}, which data.columns names as {name}",
                f"the columns are {', '.join(names) or 'none'}",
                "correct data.columns",
            )
    missing = [name for name in NEEDED if name in wanted and wanted[name] not in names]
    if missing:
        guess = _guess(header[1], wanted)
        raise DataError(
            f"{place}: the columns are {', '.join(names) or 'none'}",
            f"a manifest needs {' and '.join(missing)}",
            f"map its columns: [data.columns] {guess}"
            if guess
            else "name them in the first line: path,label and optionally patient,site,split",
        )
    extra = [name for name in names if name not in wanted.values()]
    for name in extra:
        # A misspelt patient column would silently make every image a patient, and weaken the guarantee.
        meant = [
            column
            for column in OPTIONAL
            if column in wanted and wanted[column] not in names and _resembles(name, column)
        ]
        if meant:
            raise DataError(
                f"{place}: the column {name} is unknown",
                f"it looks like {meant[0]}, which would then count as missing",
                f'set {meant[0]} = "{header[1][names.index(name)]}" in [data.columns], or rename it otherwise',
            )
    return {name: names.index(called) for name, called in wanted.items() if called in names}, extra


def _guess(header: Sequence[str], wanted: Mapping[str, str]) -> str:
    """The lines of [data.columns] that would read a foreign table, if its names are known; paths and labels are needed.

    >>> _guess(["Image Index", "Finding Labels", "Patient ID"], {name: name for name in COLUMNS})
    'path = "Image Index", label = "Finding Labels", patient = "Patient ID"'
    """
    plain = [re.sub(r"[\s_-]+", " ", name).casefold() for name in header]
    found: dict[str, str] = {}
    for meaning in wanted:
        usual = USUAL[meaning]
        exact = [name for name in header if name.casefold() == wanted[meaning]]
        alike = [
            name
            for start in usual
            for name, text in zip(header, plain, strict=True)
            if text.replace("filename", "file").startswith(start) and name not in found.values()
        ]
        if exact or alike:
            found[meaning] = (exact or alike)[0]
    if not found.keys() >= {*NEEDED} & wanted.keys():
        return ""
    return ", ".join(f'{meaning} = "{name}"' for meaning, name in found.items() if meaning != name)


def _resembles(name: str, column: str) -> bool:
    return column in name or bool(difflib.get_close_matches(name, [column], cutoff=0.75))


def _row(manifest: Path, place: str, cells: list[str], width: int, columns: dict[str, int]) -> Row | Problem:
    if len(cells) != width:
        return Problem(
            place,
            f"it has {len(cells)} cells where the first line has {width}",
            "every row must have one cell per column",
            "quote cells that hold the separator, and remove line breaks within cells",
            left_out=True,
        )
    values = {name: cells[position] for name, position in columns.items()}
    # An empty label is an unknown one, which a study may leave out.
    empty = [name for name, value in values.items() if not value and name != "label"]
    if empty:
        return Problem(
            place,
            f"{' and '.join(empty)} is empty",
            "a column that exists must be filled",
            "fill it in every row",
            left_out=True,
        )
    split = values.get("split")
    if split is not None and split.lower() not in SPLIT_NAMES:
        rule = "it must be train, test or validation"
        return Problem(place, f"split is {split}", rule, "correct it", left_out=True)
    path = manifest.parent / values["path"]
    if "\\" in values["path"] and not os.path.exists(path):  # noqa: PTH110 - a name that is too long is no error here
        path = manifest.parent / values["path"].replace("\\", "/")
    return Row(
        path=path,
        name=values["path"],
        label=values.get("label", ""),
        place=place,
        patient=values.get("patient"),
        site=values.get("site"),
        split=None if split is None else SPLIT_NAMES[split.lower()],
    )
