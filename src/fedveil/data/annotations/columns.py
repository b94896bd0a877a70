"""Columns of texts in numpy arrays: a million names hold no Python object each."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeVar, final, overload

import numpy as np
import numpy.typing as npt

__all__ = ["TEXT", "Column", "Names", "missing_column", "numbers", "taken"]

Codes = npt.NDArray[np.int64]
Rows = Sequence[int] | npt.NDArray[np.integer[Any]]
TEXT: Any = np.dtypes.StringDType()
"""The type of arrays of texts."""
Value = TypeVar("Value")


@final
class Names(Sequence[str]):
    """Texts in one array of variable width (16 bytes each, and what is longer than 15 bytes).

    Behaves as a tuple of strings: entries, equality with any sequence of texts, iteration.

    >>> names = Names(["a", "b", "a"])
    >>> names[1], names == ("a", "b", "a"), names.take([2, 0])
    ('b', True, Names('a', 'a'))
    """

    __slots__ = ("array",)

    def __init__(self, texts: Iterable[str] | npt.NDArray[Any]) -> None:
        if not isinstance(texts, Names | np.ndarray):
            texts = texts if isinstance(texts, Sequence) else list(texts)
        held = texts.array if isinstance(texts, Names) else np.asarray(texts, dtype=TEXT)
        self.array: npt.NDArray[Any] = held.reshape(-1)

    def __len__(self) -> int:
        return len(self.array)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> "Names": ...
    def __getitem__(self, index: int | slice) -> "str | Names":
        return Names(self.array[index]) if isinstance(index, slice) else str(self.array[index])

    def __iter__(self) -> Iterator[str]:
        return iter(self.array)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Names | tuple | list) or len(other) != len(self):
            return False
        return bool((self.array == Names(other).array).all())

    def __hash__(self) -> int:
        return hash(tuple(self.array[:100]))

    def __repr__(self) -> str:
        shown = [repr(text) for text in self.array[:5]] + ["..."] * (len(self) > 5)
        return f"Names({', '.join(shown)})"

    def take(self, rows: Rows) -> "Names":
        """Only these entries, in that order."""
        return Names(self.array[np.asarray(rows, dtype=np.int64)])


@final
@dataclass(frozen=True, slots=True, eq=False)
class Column:
    """One text per image, stored once per distinct text: ``names[codes[i]]``, or none where ``codes[i]`` is -1.

    ``names`` are sorted and differ; some may be unused.
    """

    codes: Codes
    names: Names

    @classmethod
    def of(cls, texts: Iterable[str | None]) -> Self:
        """The column of these texts; None where there is none.

        >>> column = Column.of(["b", None, "a", "b"])
        >>> column.codes.tolist(), column.names, column[0], column.complete
        ([1, -1, 0, 1], Names('a', 'b'), 'b', False)
        """
        seen: dict[str | None, int] = {None: -1}
        codes = np.fromiter((seen.setdefault(text, len(seen) - 1) for text in texts), np.int64)
        names = [text for text in seen if text is not None]
        order = sorted(range(len(names)), key=names.__getitem__)
        rank = np.full(len(names) + 1, -1, np.int64)  # the last entry is that of the code -1
        rank[order] = np.arange(len(names))
        return cls(rank[codes], Names([names[code] for code in order]))

    @classmethod
    def of_array(cls, texts: npt.NDArray[Any]) -> Self:
        """The column of an array of texts, all of which are given."""
        names, codes = np.unique(texts, return_inverse=True)
        return cls(codes.astype(np.int64), Names(names))

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, row: int) -> str | None:
        code = self.codes[row]
        return None if code < 0 else self.names[int(code)]

    def __iter__(self) -> Iterator[str | None]:
        return (None if code < 0 else self.names[code] for code in self.codes.tolist())

    def texts(self) -> npt.NDArray[Any]:
        """Every text (n,), "" where there is none."""
        found: npt.NDArray[Any] = np.append(self.names.array, np.array([""], dtype=TEXT))[self.codes]
        return found

    @property
    def complete(self) -> bool:
        """Whether every image has a text."""
        return bool((self.codes >= 0).all())

    def take(self, rows: Rows) -> "Column":
        """Only these images, in that order; the names stay."""
        return Column(self.codes[np.asarray(rows, dtype=np.int64)], self.names)

    def compact(self) -> "Column":
        """The same texts without unused names."""
        used, codes = np.unique(self.codes, return_inverse=True)
        missing = int(len(used) > 0 and used[0] < 0)
        return Column(codes.astype(np.int64) - missing, self.names.take(used[missing:]))

    def map(self, change: Callable[[str], Value], missing: Value) -> list[Value]:
        """``change`` of each distinct text, then ``missing``: index it with the codes."""
        return [*(change(name) for name in self.names), missing]

    def renamed(self, change: Callable[[str], str]) -> "Column":
        """The texts after ``change``, which depends on one text alone; equal ones become one."""
        inner = Column.of(change(name) for name in self.names)
        codes = np.append(inner.codes, -1)[self.codes]
        return Column(codes, inner.names)


def taken(columns: Mapping[str, Column], rows: Rows) -> dict[str, Column]:
    """Every column for only these images."""
    return {name: column.take(rows) for name, column in columns.items()}


def numbers(count: int, prefix: str = "", start: int = 0) -> Names:
    """The prefix and a number for each image.

    >>> numbers(2, "i-", 1)
    Names('i-1', 'i-2')
    """
    return Names(np.strings.add(prefix, np.arange(start, start + count).astype(TEXT)))


def missing_column(count: int) -> Column:
    """A column of ``count`` images without a text."""
    return Column(np.full(count, -1, np.int64), Names(()))
