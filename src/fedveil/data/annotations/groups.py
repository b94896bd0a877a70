"""Public groups of an attribute's values: age bands, sexes, or the values as they are."""

from collections.abc import Mapping, Sequence

import numpy as np

from fedveil.data.annotations.columns import Codes, Column

__all__ = ["GROUPS", "declared", "grouped", "groups_of"]

BANDS = ("0-17", "18-39", "40-64", "65-79", "80+")
STARTS = (18, 40, 65, 80)
SEXES = ("female", "male")
OTHER = "other or unknown"
GROUPS: Mapping[str, tuple[str, ...]] = {"age": (*BANDS, OTHER), "sex": (*SEXES, OTHER)}
"""Attributes whose groups do not depend on any data."""
MOST = 12
"""Values of another attribute that are groups of their own, at most."""


def grouped(name: str, column: Column) -> tuple[Codes, tuple[str, ...]]:
    """Each image's group (n,), and the names of the groups.

    The groups of `GROUPS` are fixed beforehand. Those of any other attribute are the values that occur, which is for
    public data only; if there are more than `MOST`, the most frequent ones.

    >>> grouped("age", Column.of(["64.5", None, "old"]))[0].tolist(), grouped("view", Column.of(["PA", "AP"]))[1]
    ([2, 5, 5], ('AP', 'PA', 'other or unknown'))
    """
    if name in GROUPS:
        place, names = (_band if name == "age" else _sex), GROUPS[name]
        return np.array(column.map(place, len(names) - 1), dtype=np.int64)[column.codes], names
    used, counts = np.unique(column.codes[column.codes >= 0], return_counts=True)
    most = np.sort(used[np.argsort(-counts, kind="stable")[:MOST]])
    places = np.full(len(column.names) + 1, len(most), dtype=np.int64)
    places[most] = np.arange(len(most))
    return places[column.codes], (*column.names.take(most), OTHER)


def groups_of(name: str, values: Sequence[str] = ()) -> tuple[str, ...]:
    """The groups of a private release: those of `GROUPS`, or declared values; the last is everybody else.

    >>> groups_of("sex"), groups_of("scanner", ("A", "B"))
    (('female', 'male', 'other or unknown'), ('A', 'B', 'other or unknown'))
    """
    return GROUPS.get(name, (*values, OTHER))


def declared(name: str, column: Column, groups: Sequence[str]) -> Codes:
    """Each image's group (n,) among those of `groups_of`: a function of its own value alone.

    >>> declared("scanner", Column.of(["B", None, "C"]), ("A", "B", OTHER)).tolist()
    [1, 2, 2]
    """
    if name in GROUPS:
        return grouped(name, column)[0]
    known = {group: place for place, group in enumerate(groups[:-1])}
    places = column.map(lambda value: known.get(value.strip(), len(known)), len(known))
    return np.array(places, dtype=np.int64)[column.codes]


def _band(value: str) -> int:
    """The age band of any text."""
    try:
        age = float(value.strip())
    except ValueError:
        return len(BANDS)
    return sum(age >= start for start in STARTS) if 0 <= age < 150 else len(BANDS)


def _sex(value: str) -> int:
    """Female, male or other, for any text."""
    known = {"f": 0, "female": 0, "w": 0, "m": 1, "male": 1}
    return known.get(value.strip().lower(), len(SEXES))
