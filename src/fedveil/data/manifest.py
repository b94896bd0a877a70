"""Reads a manifest: CSV, one row an image, ``path,label`` and optionally ``patient,site,split``.

Paths are relative to the manifest. Text may be UTF-8, UTF-16 with a byte-order mark, or Windows-1252; columns
may be separated by comma, semicolon, tab or bar. Every problem is told by file and line.
"""

import codecs
import csv
import difflib
import io
import os
from collections.abc import Iterator
from pathlib import Path

from fedveil.data.records import SPLIT_NAMES, Problem, Records
from fedveil.data.table import Row, file_records
from fedveil.errors import DataError

__all__ = ["read_manifest"]

NEEDED = ("path", "label")
OPTIONAL = ("patient", "site", "split")
SEPARATORS = ",;\t|"


def read_manifest(path: Path, image_size: int) -> Records:
    """Everything the manifest holds. Raises DataError only where no row can be read at all."""
    notes: list[str] = []
    lines = _lines(path, _text(path, notes))
    first = next(lines, (1, []))
    columns, extra = _columns(path, first)
    notes += [f"the column {name} is not used" for name in extra]
    problems: list[Problem] = []
    rows: list[Row] = []
    seen: dict[str, str] = {}
    for line, cells in lines:
        place = f"{path}, line {line}"
        row = _row(path, place, cells, len(first[1]), columns)
        if isinstance(row, Problem):
            problems.append(row)
            continue
        earlier = seen.setdefault(os.path.normpath(row.path), place)
        if earlier != place:
            problems.append(
                Problem(
                    place,
                    f"{row.name} was listed before, at {earlier}",
                    "every image stands in one row",
                    "delete one of them",
                )
            )
        rows.append(row)  # the second, too: one row must not decide over another
    return file_records(path.stem, rows, image_size, problems, notes)


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
    marked = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        if not marked and b"\0" in content:
            raise UnicodeError("it holds zero bytes")
        return content.decode("utf-16" if marked else "utf-8-sig")
    except UnicodeDecodeError as error:
        if marked:
            raise _not_text(path, str(error)) from None
        notes.append("it is not UTF-8 and was read as Windows-1252")
        return content.decode("cp1252", errors="replace")
    except UnicodeError as error:
        raise _not_text(path, str(error)) from None


def _not_text(path: Path, reason: str) -> DataError:
    return DataError(
        f"{path}: it is not text that can be read ({reason})",
        "a manifest is a CSV file",
        "save it as CSV in UTF-8",
    )


def _lines(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """Line number and cells of every line that is not blank, the header first."""
    start = text.lstrip("\r\n \t")
    header = start.splitlines()[0] if start else ""
    if header.lower().startswith("sep="):
        separator = header[4:5]
    else:
        # The separator is the one that finds most of the columns a manifest can have.
        separator = max(
            SEPARATORS, key=lambda mark: len({*NEEDED, *OPTIONAL} & set(_names(header.split(mark))))
        )
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator or ",")
    line = 1
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells) and not (line == 1 and header.lower().startswith("sep=")):
                yield line, [cell.strip() for cell in cells]
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"{path}, line {line}: it is not CSV ({error})",
            "a manifest is a CSV file",
            "save it again as CSV",
        ) from None


def _names(cells: list[str]) -> list[str]:
    return [cell.strip().strip('"').strip().lower() for cell in cells]


def _columns(path: Path, header: tuple[int, list[str]]) -> tuple[dict[str, int], list[str]]:
    """Position of each column that counts, and the names of those that do not."""
    names = _names(header[1])
    place = f"{path}, line {header[0]}"
    for name in (*NEEDED, *OPTIONAL):
        if names.count(name) > 1:
            raise DataError(f"{place}: the column {name} occurs twice", "a column has one name", "rename one")
    missing = [name for name in NEEDED if name not in names]
    if missing:
        raise DataError(
            f"{place}: the columns are {', '.join(names) or 'none'}",
            f"a manifest needs {' and '.join(missing)}",
            "name them in the first line: path,label and optionally patient,site,split",
        )
    extra = [name for name in names if name not in (*NEEDED, *OPTIONAL)]
    for name in extra:
        # A misspelt patient column would quietly make every image a patient, and the guarantee weaker.
        meant = [column for column in OPTIONAL if column not in names and _resembles(name, column)]
        if meant:
            raise DataError(
                f"{place}: the column {name} is unknown",
                f"it looks like {meant[0]}, which would then be taken for missing",
                f"rename it to {meant[0]}, or to something else if it is not meant",
            )
    return {name: names.index(name) for name in (*NEEDED, *OPTIONAL) if name in names}, extra


def _resembles(name: str, column: str) -> bool:
    return column in name or bool(difflib.get_close_matches(name, [column], cutoff=0.75))


def _row(manifest: Path, place: str, cells: list[str], width: int, columns: dict[str, int]) -> Row | Problem:
    if len(cells) != width:
        return Problem(
            place,
            f"it has {len(cells)} cells where the first line has {width}",
            "every row has one cell a column",
            "quote cells that hold the separator",
        )
    values = {name: cells[position] for name, position in columns.items()}
    empty = [name for name, value in values.items() if not value]
    if empty:
        return Problem(
            place,
            f"{' and '.join(empty)} is empty",
            "a column that exists must be filled",
            "fill it in every row",
        )
    split = values.get("split")
    if split is not None and split.lower() not in SPLIT_NAMES:
        return Problem(place, f"split is {split}", "it must be train, test or validation", "correct it")
    path = manifest.parent / values["path"]
    if "\\" in values["path"] and not path.exists():
        path = manifest.parent / values["path"].replace("\\", "/")
    return Row(
        path=path,
        name=values["path"],
        label=values["label"],
        place=place,
        patient=values.get("patient"),
        site=values.get("site"),
        split=None if split is None else SPLIT_NAMES[split.lower()],
    )
