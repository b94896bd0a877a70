"""The study schema as text: the commented file that `fedveil init` writes, and the table in the docs."""

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from fedveil.study.settings.schema import Study
from fedveil.study.settings.toml import toml_value

__all__ = ["schema_rows", "study_page", "study_template"]


def schema_rows() -> Iterator[tuple[str, str, str]]:
    """Key, default and meaning of every setting, in the order of the file.

    >>> ("privacy.epsilon", "1.0") in {(key, default) for key, default, _ in schema_rows()}
    True
    """
    for path, model in _tables(Study(), ""):
        for name, field in type(model).model_fields.items():
            value = getattr(model, name)
            if not isinstance(value, BaseModel):
                default = "" if value is None else toml_value(_plain(value))
                yield f"{path}.{name}", default, field.description or ""


def study_template(values: dict[str, Any] | None = None) -> str:
    """A study file with every key, its default and its meaning; defaults are commented out.

    Args:
        values: settings to write uncommented, by dotted key.
    """
    chosen = values or {}
    lines = ["# A fedveil study. Every key has a default; remove the # from keys that you want to change."]
    table = ""
    for key, default, meaning in schema_rows():
        path, name = key.rsplit(".", 1)
        if path != table:
            lines += ["", f"[{path}]"]
            table = path
        setting = f"{name} = {toml_value(chosen[key])}" if key in chosen else f"# {name} = {default}"
        lines.append(f"{setting:<36} # {meaning}" if meaning else setting)
    return "\n".join(lines) + "\n"


def _tables(model: BaseModel, path: str) -> Iterator[tuple[str, BaseModel]]:
    if path:
        yield path, model
    for name in type(model).model_fields:
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            yield from _tables(value, f"{path}.{name}" if path else name)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def study_page() -> str:
    """The documentation of the study file, as Markdown."""
    lines = [
        "# The study file",
        "",
        "One TOML file describes one study. Every key has a default, so a study may be three lines long; a key that",
        "is unknown, of the wrong type or out of range is refused with the rule and the remedy. `fedveil init` writes",
        "a file with all of them. In a real federation a hospital approves the study by its digest.",
        "",
        "| key | default | meaning |",
        "|---|---|---|",
        *(
            f"| `{key}` | {f'`{default}`' if default else ''} | {meaning} |"
            for key, default, meaning in schema_rows()
        ),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    print(study_page())
