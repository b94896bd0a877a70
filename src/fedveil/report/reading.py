"""Reading the files of a run directory: errors name the file, the key and the rule."""

import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from fedveil.errors import StudyError
from fedveil.schema import Record, explain

__all__ = ["REMEDY", "read_json", "read_json_lines", "read_text"]

REMEDY = "finish the run with `fedveil run --resume`, or run the study again into a new directory"
R = TypeVar("R", bound=Record)


def read_text(path: Path) -> str:
    """A file's UTF-8 text; StudyError if it is missing, unreadable or not text."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise StudyError(
            f"{path.parent} holds no {path.name}", "a report needs a complete run directory", REMEDY
        ) from None
    except UnicodeDecodeError:
        raise StudyError(f"{path} is not UTF-8 text", "the file is damaged", REMEDY) from None
    except OSError as error:
        raise StudyError(
            f"{path} cannot be read ({error.strerror})",
            "a report reads every file of the run",
            "check the file's permissions",
        ) from None


def read_json(path: Path, schema: type[R]) -> R:
    """One JSON object of this schema."""
    return _object(read_text(path), path.name, schema)


def read_json_lines(path: Path, schema: type[R]) -> list[R]:
    """One JSON object of this schema per line."""
    lines = read_text(path).removesuffix("\n").split("\n")
    return [
        _object(line, f"{path.name} line {number}", schema)
        for number, line in enumerate(lines, 1)
        if line or len(lines) > 1
    ]


def _object(text: str, where: str, schema: type[R]) -> R:
    try:
        value: Any = json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        raise StudyError(f"{where} is not JSON", "the file is damaged or incomplete", REMEDY) from None
    if not isinstance(value, dict):
        raise StudyError(f"{where} is not a JSON object", "the file is damaged", REMEDY)
    try:
        return schema.model_validate(value)
    except ValidationError as error:
        raise explain(error, where, StudyError, REMEDY, schema) from None
