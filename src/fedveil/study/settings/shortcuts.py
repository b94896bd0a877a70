"""A study from keywords: ``Study(epsilon=1.0, rounds=20)`` fills the tables of the study file's own schema.

A key that occurs in only one table needs no table. The list of such keys is derived from the schema.
"""

import difflib
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from fedveil.errors import StudyError

if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass
else:
    ModelMetaclass = type(BaseModel)

__all__ = ["ModelMetaclass", "nested"]

SITES: tuple[str, ...] = ("data", "sites")
"""The table whose count ``sites=5`` sets."""
Path = tuple[str, ...]


def nested(schema: type[BaseModel], values: Mapping[str, Any]) -> dict[str, Any]:
    """The tables that keywords stand for.

    Args:
        schema: the model of a whole study.
        values: tables by name, as mappings or models; and single keys, by a name that occurs in only one table.

    Raises:
        StudyError: a name is unknown, occurs in several tables, or is given twice.
    """
    places = _places(schema)
    tables: dict[str, Any] = {}
    for name, value in values.items():
        if name in schema.model_fields:
            tables[name] = _table(value)
    for name, value in values.items():
        if name in schema.model_fields:
            continue
        path = _only(name, places, schema)
        if path == SITES and not isinstance(value, Mapping | BaseModel):
            path = (*SITES, "count")
        _put(tables, path, _table(os.fspath(value) if isinstance(value, os.PathLike) else value))
    return tables


def _places(schema: type[BaseModel], path: Path = ()) -> dict[str, list[Path]]:
    """Every key and every inner table of the schema's tables, with the paths at which it occurs."""
    found: dict[str, list[Path]] = {}
    for name, place in _keys(schema, path):
        found.setdefault(name, []).append(place)
    return found


def _keys(schema: type[BaseModel], path: Path) -> Iterator[tuple[str, Path]]:
    for name, field in schema.model_fields.items():
        kind = field.annotation
        inner = kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None
        if path or inner is None:
            yield name, (*path, name)
        if inner is not None:
            yield from _keys(inner, (*path, name))


def _only(name: str, places: Mapping[str, list[Path]], schema: type[BaseModel]) -> Path:
    """The path of a key, if there is exactly one."""
    found = places.get(name, [])
    if len(found) == 1:
        return found[0]
    if found:
        where = " and ".join(".".join(path) for path in found)
        raise StudyError(
            f"{name} was given to Study",
            f"it could mean {where}",
            f"give the table, such as {found[0][0]}={{{name!r}: ...}}",
        )
    known = [*places, *schema.model_fields]
    close = difflib.get_close_matches(name, known, 1, 0.5)
    raise StudyError(
        f"{name} was given to Study",
        "it must be a table or a key of the study file",
        f"did you mean {close[0]}?" if close else "see the keys in docs/study.md",
    )


def _put(tables: dict[str, Any], path: Path, value: Any) -> None:
    """Set one key, unless its table sets it too."""
    table = tables
    for part in path[:-1]:
        inner = table.setdefault(part, {})
        if not isinstance(inner, dict):
            return  # no table at all: validation says so
        table = inner
    if path[-1] in table:
        raise StudyError(
            f"{path[-1]} was given to Study as a keyword and in its table {'.'.join(path[:-1])}",
            "a key has one value",
            "remove one of them",
        )
    table[path[-1]] = value


def _table(value: Any) -> Any:
    """A table as a new dictionary; any other value as it is."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", exclude_unset=True)
    return {key: _table(item) for key, item in value.items()} if isinstance(value, Mapping) else value
