"""Names of torchvision that timm imports and the networks under test never call.

A torchvision that fits torch's CPU build is not on every package index. timm's models need none of it: only its image
transforms and data sets do.
"""

import importlib.util
import sys
from types import ModuleType
from typing import Any

__all__ = ["install"]

MODULES = (
    "torchvision",
    "torchvision.datasets",
    "torchvision.models",
    "torchvision.models.feature_extraction",
    "torchvision.ops",
    "torchvision.ops.misc",
    "torchvision.transforms",
    "torchvision.transforms.functional",
    "torchvision.utils",
)


class _Constants(type):
    """Any attribute of such a class is a constant of its own, as in an enumeration."""

    def __getattr__(cls, name: str) -> str:
        if name.startswith("__"):
            raise AttributeError(name)
        return f"{cls.__name__}.{name}"


class _Module(ModuleType):
    """Any name in it is a class that nothing is an instance of."""

    __path__: list[str] = []  # noqa: RUF012 - what makes a module a package

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        made = _Constants(name, (), {})
        setattr(self, name, made)
        return made


def install() -> None:
    """Make `import torchvision` work where it is not installed; the real one is used where it is."""
    if importlib.util.find_spec("torchvision") is not None:
        return
    for name in MODULES:
        module = _Module(name)
        module.__spec__ = importlib.util.spec_from_loader(name, None)
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)
        sys.modules[name] = module
