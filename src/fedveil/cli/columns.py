"""The option that maps a table's column names."""

from collections.abc import Sequence
from typing import Annotated

import typer

from fedveil.errors import InvalidValue

__all__ = ["Columns", "read_columns"]

Columns = Annotated[
    list[str] | None,
    typer.Option(
        "--column", help='Name of a column in the table, such as path="Image Index"; may be repeated.'
    ),
]


def read_columns(given: Sequence[str] | None) -> dict[str, str]:
    """Column names by their meaning.

    >>> read_columns(["path=Image Index"])
    {'path': 'Image Index'}
    """
    from fedveil.data.options import COLUMNS

    found = {}
    for text in given or ():
        meaning, _, name = text.partition("=")
        if meaning not in COLUMNS or not name:
            raise InvalidValue(
                f"--column is {text}",
                f"it is MEANING=NAME, with one of {', '.join(COLUMNS)}",
                'write it as path="Image Index"',
            )
        found[meaning] = name
    return found
