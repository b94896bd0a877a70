"""Packages whose names are imported on first use, so that a command loads only what it runs (PEP 562)."""

import ast
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

__all__ = ["later", "on_first_use"]


def on_first_use(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of a package that lists its names under ``if TYPE_CHECKING:``.

    The block is read from the package's own source, so type checkers and the interpreter see one list.
    """
    module = sys.modules[package]
    places = _places(Path(str(module.__file__)))

    def lookup(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(places[name]), name)
        setattr(module, name, value)
        return value

    return lookup, lambda: sorted({*vars(module), *places})


def _places(source: Path) -> dict[str, str]:
    """The module of each name that the block of a package imports."""
    body = ast.parse(source.read_text("utf-8")).body
    block = next(node for node in body if isinstance(node, ast.If))
    return {
        alias.name: str(node.module)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


class _Later:
    """A module that is imported when one of its names is first used."""

    def __init__(self, module: str) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        value = getattr(import_module(self._module), name)
        setattr(self, name, value)  # found without this method from now on
        return value


def later(module: str) -> Any:
    """A module of another project that takes long to import, loaded when it is first used."""
    return _Later(module)
