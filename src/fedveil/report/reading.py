"""Typed access to the files of a run directory: what is damaged is named by file, key and rule."""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from fedveil.errors import FedveilError, StudyError

__all__ = ["REMEDY", "Fields", "read_json", "read_json_lines", "read_text"]

REMEDY = "finish the run with `fedveil run --resume`, or run the study again into a new directory"
T = TypeVar("T")


def read_text(path: Path) -> str:
    """A file's UTF-8 text; StudyError where it is missing, unreadable or not text."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise StudyError(
            f"{path.parent} holds no {path.name}", "a report is made from a complete run directory", REMEDY
        ) from None
    except UnicodeDecodeError:
        raise StudyError(f"{path} is not UTF-8 text", "the file is damaged", REMEDY) from None
    except OSError as error:
        raise StudyError(
            f"{path} cannot be read ({error.strerror})",
            "a report reads every file of the run",
            "check the file's permissions",
        ) from None


def read_json(path: Path) -> "Fields":
    """One JSON object."""
    return _object(read_text(path), path.name)


def read_json_lines(path: Path) -> list["Fields"]:
    """One JSON object a line."""
    lines = read_text(path).removesuffix("\n").split("\n")
    return [
        _object(line, f"{path.name} line {number}")
        for number, line in enumerate(lines, 1)
        if line or len(lines) > 1
    ]


def _object(text: str, where: str) -> "Fields":
    try:
        value = json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        raise StudyError(f"{where} is not JSON", "the file is damaged or half-written", REMEDY) from None
    if not isinstance(value, dict):
        raise StudyError(f"{where} is not a JSON object", "the file is damaged", REMEDY)
    return Fields(value, where)


@dataclass(frozen=True, slots=True)
class Fields:
    """A JSON object and where it stands (``result.json guarantee``), read key by key."""

    values: Mapping[str, Any]
    where: str

    def _wrong(self, key: str, rule: str) -> StudyError:
        found = (
            f"{self.where} has {key} = {str(self.values[key])[:60]!r}"
            if key in self.values
            else f"{self.where} has no {key}"
        )
        return StudyError(found, rule, REMEDY)

    def has(self, key: str) -> bool:
        """Whether the key is there and not null."""
        return self.values.get(key) is not None

    def text(self, key: str, default: str | None = None) -> str:
        """A string; `default` where it is absent or null."""
        value = self.values.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, str):
            raise self._wrong(key, "it must be a text")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A number, NaN and infinity included (also "inf" as text); `default` where it is absent or null."""
        value = self.values.get(key)
        if value is None and default is not None:
            return default
        if value in ("inf", "Infinity"):
            return math.inf
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong(key, "it must be a number")
        return float(value)

    def integer(self, key: str, default: int | None = None) -> int:
        """A whole number that is not negative; `default` where it is absent or null."""
        value = self.values.get(key)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise self._wrong(key, "it must be a whole number, 0 or more")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """True or false; `default` where it is absent or null."""
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self._wrong(key, "it must be true or false")
        return value

    def interval(self, key: str) -> tuple[float, float]:
        """A pair of numbers [low, high]; (NaN, NaN) where it is absent or null, or where an end is null."""
        value = self.values.get(key)
        if value is None:
            return (math.nan, math.nan)
        if not isinstance(value, list) or len(value) != 2:
            raise self._wrong(key, "it must be a pair [low, high]")
        ends = Fields({"0": value[0], "1": value[1]}, f"{self.where} {key}")
        return (ends.number("0", math.nan), ends.number("1", math.nan))

    def items(self, key: str) -> list[Any]:
        """A list; empty where it is absent or null."""
        value = self.values.get(key)
        if value is None:
            return []
        if not isinstance(value, list):
            raise self._wrong(key, "it must be a list")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of strings; empty where it is absent or null."""
        values = self.items(key)
        if not all(isinstance(value, str) for value in values):
            raise self._wrong(key, "it must be a list of texts")
        return tuple(values)

    def child(self, key: str) -> "Fields":
        """A JSON object."""
        value = self.values.get(key)
        if not isinstance(value, dict):
            raise self._wrong(key, "it must be a JSON object")
        return Fields(value, f"{self.where} {key}")

    def children(self, key: str) -> Iterator["Fields"]:
        """A list of JSON objects; empty where it is absent or null."""
        for index, value in enumerate(self.items(key)):
            if not isinstance(value, dict):
                raise self._wrong(key, "it must be a list of JSON objects")
            yield Fields(value, f"{self.where} {key}[{index}]")

    def named(self, key: str) -> Iterator[tuple[str, "Fields"]]:
        """A JSON object of JSON objects as (name, object); empty where it is absent or null."""
        if self.has(key):
            group = self.child(key)
            for name in group.values:
                yield name, group.child(name)

    def parse(self, make: Callable[[Any], T]) -> T:
        """This object through a lower layer's ``from_dict``; whatever that refuses is a damaged file."""
        try:
            return make(dict(self.values))
        except FedveilError as error:
            raise StudyError(f"{self.where}: {error.found}", error.rule, REMEDY) from None
        except (KeyError, TypeError, ValueError) as error:
            raise StudyError(
                f"{self.where} cannot be read ({error})", "the file is damaged", REMEDY
            ) from None
