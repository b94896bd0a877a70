"""The option that maps a table's column names."""

from collections.abc import Sequence
from typing import Annotated

import typer

from fedveil.errors import InvalidValue

__all__ = ["Columns", "Preset", "read_columns"]

Preset = Annotated[
    str, typer.Option("--preset", help="A well-known table, which names its columns, such as nih-cxr14.")
]
Columns = Annotated[
    list[str] | None,
    typer.Option(
        "--column", help='Name of a column in the table, such as path="Image Index"; may be repeated.'
    ),
]


def read_columns(given: Sequence[str] | None) -> dict[str, str | Sequence[str]]:
    """Column names by their meaning; several of label hold one finding each.

    >>> read_columns(["path=Image Index"]), read_columns(["label=Edema", "label=Mass"])
    ({'path': 'Image Index'}, {'label': ('Edema', 'Mass')})
    """
    from fedveil.data.options import COLUMNS

    found: dict[str, str | Sequence[str]] = {}
    for text in given or ():
        meaning, _, name = text.partition("=")
        if meaning not in COLUMNS or not name:
            raise InvalidValue(
                f"--column is {text}",
                f"it is MEANING=NAME, with one of {', '.join(COLUMNS)}",
                'write it as path="Image Index"',
            )
        earlier = found.get(meaning, ())
        several = (earlier,) if isinstance(earlier, str) else tuple(earlier)
        found[meaning] = (*several, name) if meaning == "label" and several else name
    return found
