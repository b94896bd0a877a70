"""Writing TOML, which the standard library can only read."""

from typing import Any

__all__ = ["to_toml", "toml_value"]


def to_toml(tables: dict[str, Any]) -> str:
    """A document of plain values and tables, in the order given.

    >>> to_toml({"a": {"b": 1, "c": {"d": "x"}}})
    '[a]\\nb = 1\\n\\n[a.c]\\nd = "x"\\n'
    """
    lines: list[str] = []
    _write_table(lines, "", tables)
    return "\n".join(lines).lstrip("\n") + "\n"


def _write_table(lines: list[str], prefix: str, table: dict[str, Any]) -> None:
    if prefix:
        lines.append(f"\n[{prefix}]")
    for key, value in table.items():
        if not isinstance(value, dict):
            lines.append(f"{key} = {toml_value(value)}")
    for key, value in table.items():
        if isinstance(value, dict):
            _write_table(lines, f"{prefix}.{key}" if prefix else key, value)


def toml_value(value: Any) -> str:
    """One TOML value.

    >>> toml_value([1.0, "a"])
    '[1.0, "a"]'
    """
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            escaped = value.replace("\\", "\\\\").replace('"', '\\"')
            return '"' + "".join(c if c.isprintable() else f"\\U{ord(c):08X}" for c in escaped) + '"'
        case list():
            return "[" + ", ".join(toml_value(item) for item in value) + "]"
        case _:
            return repr(value)
