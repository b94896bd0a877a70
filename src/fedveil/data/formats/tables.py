"""Tables as rows of texts: CSV, TSV, Parquet, Excel, or columns in memory.

CSV and TSV may be UTF-8, UTF-16 with a byte-order mark, or Windows-1252, each line independently; columns may be
separated by comma, semicolon, tab or bar.
"""

import codecs
import csv
import re
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedveil.data.annotations.records import Problem
from fedveil.errors import DataError

__all__ = ["TABLES", "Line", "Sheet", "cell_text", "frame_sheet", "known_names", "names_of", "read_sheet"]

TABLES = (".csv", ".tsv", ".parquet", ".xlsx")
SEPARATORS = ",;\t|"
LARGEST_SHEET = 2**30
"""Bytes that an Excel file may hold after decompression."""
Line = tuple[int, list[str]]
"""The number of a line, and its cells."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Sheet:
    """A table: its name in errors, the folder that its paths start from, its header and its rows, read once."""

    name: str
    base: Path
    header: Line
    rows: Iterator[Line | Problem]
    word: str = "line"

    def place(self, number: int) -> str:
        """Names a row in errors."""
        return f"{self.name}, {self.word} {number}"


def read_sheet(path: Path, known: Iterable[str], notes: list[str]) -> Sheet:
    """The table in a file; ``known`` are names of columns that help to tell the separator.

    Raises:
        DataError: no row can be read at all, or the package for the format is missing.
    """
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        rows = _parquet(path)
    elif suffix == ".xlsx":
        rows = _excel(path)
    else:
        rows = _lines(path, _text(path, notes), known)
    try:
        header = next(rows, (1, []))
    except DataError:
        raise
    except Exception as error:  # noqa: BLE001 - a damaged file makes the libraries raise nearly anything
        raise _damaged(path, error) from None
    if isinstance(header, Problem):
        raise DataError(f"{header.place}: {header.found}", header.rule, header.remedy)
    word = "row" if suffix in (".parquet", ".xlsx") else "line"
    return Sheet(name=str(path), base=path.parent, header=header, rows=_whole(path, rows), word=word)


def frame_sheet(frame: Any, base: Path) -> Sheet:
    """The table of a DataFrame, or of a mapping of columns; the header is line 1."""
    header = [str(name) for name in getattr(frame, "columns", frame)]
    columns = [[cell_text(value) for value in frame[name]] for name in getattr(frame, "columns", frame)]
    lengths = {len(column) for column in columns}
    if len(lengths) > 1:
        raise DataError(
            f"the table has columns of the lengths {', '.join(map(str, sorted(lengths)))}",
            "every row must have one cell per column",
            "give columns of one length",
        )
    rows = (
        (number, [cell.strip() for cell in cells])
        for number, cells in enumerate(zip(*columns, strict=True), 2)
    )
    return Sheet(name="the table", base=base.absolute(), header=(1, header), rows=iter(rows))


def cell_text(value: Any) -> str:
    """One entry as text; empty if missing.

    >>> [cell_text(value) for value in (3, 3.0, np.int64(3), "a", None, float("nan"), True)]
    ['3', '3', '3', 'a', '', '', '1']
    """
    if _missing(value):
        return ""
    if isinstance(value, bool | np.bool_):
        return str(int(value))
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return str(value)


def names_of(cells: Sequence[str]) -> list[str]:
    """Column names as they are compared: without quotes, spaces around, and letter case."""
    return [cell.strip().strip('"').strip().lower() for cell in cells]


def _missing(value: Any) -> bool:
    """None, NaN, or a table library's missing value, which equals nothing and is neither true nor false."""
    try:
        return value is None or bool(value != value)
    except TypeError:
        return True


def _whole(path: Path, rows: Iterator[Line | Problem]) -> Iterator[Line | Problem]:
    try:
        yield from rows
    except DataError:
        raise
    except Exception as error:  # noqa: BLE001 - see `read_sheet`
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> DataError:
    text = " ".join(str(error).split())[:200] or type(error).__name__
    return DataError(
        f"{path}: it cannot be read ({text})", "a table must be whole", "write it again, or save it as CSV"
    )


def _missing_package(path: Path, package: str, extra: str) -> DataError:
    return DataError(
        f"{path}: {package} is not installed",
        f"it is needed to read {path.suffix} tables",
        f'pip install "fedveil[{extra}]", or save the table as CSV',
    )


def _check_exists(path: Path) -> None:
    try:
        with path.open("rb"):
            return
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file", "a manifest must exist", "check the path") from None
    except OSError as error:
        raise DataError(
            f"{path}: it cannot be opened ({error.strerror})",
            "a manifest must be readable",
            "check its permissions",
        ) from None


def _parquet(path: Path) -> Iterator[Line | Problem]:
    """Rows of a Parquet file, numbered from 1."""
    _check_exists(path)
    try:
        from pyarrow import parquet
    except ImportError:
        raise _missing_package(path, "pyarrow", "tables") from None
    with parquet.ParquetFile(path) as file:
        yield 0, [str(name) for name in file.schema_arrow.names]
        number = 0
        for batch in file.iter_batches(batch_size=16384):
            for cells in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                number += 1
                yield number, [cell_text(cell).strip() for cell in cells]


def _excel(path: Path) -> Iterator[Line | Problem]:
    """Rows of the first sheet of an Excel file, numbered as there; the first row that is not blank is the header."""
    _check_exists(path)
    try:
        import openpyxl
    except ImportError:
        raise _missing_package(path, "openpyxl", "tables") from None
    with zipfile.ZipFile(path) as archive:
        size = sum(member.file_size for member in archive.infolist())
    if size > LARGEST_SHEET:
        raise DataError(
            f"{path}: it holds {size / 2**20:.0f} MiB after decompression",
            f"an Excel table may hold {LARGEST_SHEET // 2**20} MiB",
            "save it as CSV or Parquet",
        )
    with warnings.catch_warnings():  # openpyxl warns about styles and extensions, without naming the file
        warnings.simplefilter("ignore")
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
    width = 0
    try:
        for number, values in enumerate(book.worksheets[0].iter_rows(values_only=True), 1):
            cells = [cell_text(value).strip() for value in values]
            if not any(cells):
                continue
            while len(cells) > width and not cells[-1]:
                cells.pop()
            width = width or len(cells)
            yield number, cells + [""] * (width - len(cells))
    finally:
        book.close()


def _text(path: Path, notes: list[str]) -> str:
    _check_exists(path)
    content = path.read_bytes()
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


def _lines(path: Path, text: str, names: Iterable[str]) -> Iterator[Line | Problem]:
    """Line number and cells of every line that is not blank, the header first.

    A row is one line. Line breaks within quotes would make it depend on one stray quote of one patient whether the rows
    of all others are read.
    """
    start = text.lstrip("\r\n \t")
    header = re.split(r"[\r\n]", start, maxsplit=1)[0]
    if header.lower().startswith("sep="):
        separator = header[4:5]
    else:
        # The separator is the one that yields most of the columns of a manifest.
        known = set(names_of(list(names)))
        separator = max(
            SEPARATORS, key=lambda mark: (len(known & set(names_of(header.split(mark)))), header.count(mark))
        )
    for number, match in enumerate(re.finditer(r"([^\r\n]*)(?:\r\n|\n|\r|$)", text), 1):
        line = match.group(1)
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


def known_names(columns: Mapping[str, str | Sequence[str]]) -> Iterator[str]:
    """All column names in a mapping."""
    for named in columns.values():
        yield from [named] if isinstance(named, str) else named
