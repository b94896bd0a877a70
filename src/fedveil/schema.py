"""What every typed file shares: the base of its schema, numbers as JSON holds them, and one explanation of misfits."""

import difflib
import math
from typing import Annotated, Any, TypeVar, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from fedveil.errors import FedveilError

__all__ = ["Cost", "Count", "Number", "Record", "explain"]

E = TypeVar("E", bound=FedveilError)
SHOWN = 60
"""Characters of a wrong value that a message quotes."""


class Record(BaseModel):
    """A JSON object of a file that fedveil wrote: frozen, strict, and tolerant of keys that other versions write."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore", populate_by_name=True)


def _nan(value: Any) -> Any:
    return math.nan if value is None else _infinite(value)


def _inf(value: Any) -> Any:
    return math.inf if value is None else _infinite(value)


def _infinite(value: Any) -> Any:
    """JSON has no infinity; some versions wrote it as text."""
    return math.inf if value in ("inf", "Infinity") else value


Number = Annotated[float, BeforeValidator(_nan)]
"""A float; null where it is not defined."""
Cost = Annotated[float, BeforeValidator(_inf)]
"""A float; null where nothing bounds it."""
Count = Annotated[int, Field(ge=0)]


def explain(error: ValidationError, where: str, make: type[E], remedy: str, model: type[BaseModel]) -> E:
    """Turn pydantic's first complaint into an error of found, rule and remedy.

    Args:
        error: of validating ``model``.
        where: the file, as a person knows it.
        make: which error.
        remedy: what helps against a wrong value.
        model: what was validated; its keys are suggested where one is unknown.
    """
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"])
    others = error.error_count() - 1
    more = f" ({others} more after this one)" if others else ""
    if first["type"] == "extra_forbidden":
        known = _known_keys(model, tuple(str(part) for part in first["loc"][:-1]))
        close = difflib.get_close_matches(str(first["loc"][-1]), known, 1, 0.6)
        instead = f"did you mean {close[0]}?" if close else f"use one of {', '.join(known)}"
        return make(f"{where}: {key} is not a known key", "unknown keys are refused", instead + more)
    rule = first["msg"].removeprefix("Value error, ")
    rule = rule[:1].lower() + rule[1:]
    if first["type"] == "missing":
        return make(f"{where} has no {key}", "it must be there", remedy + more)
    if not first["loc"]:
        return make(f"{where}: its values do not go together", rule, remedy + more)
    return make(f"{where}: {key} is {repr(first['input'])[:SHOWN]}", rule, remedy + more)


def _known_keys(model: Any, path: tuple[str, ...]) -> list[str]:
    for part in path:
        annotation = model.model_fields[part].annotation
        inner = [one for one in (annotation, *get_args(annotation)) if hasattr(one, "model_fields")]
        model = inner[0]
    return list(model.model_fields)
