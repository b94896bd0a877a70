"""Names of torchvision that timm imports and the networks under test never call.

A torchvision that fits torch's CPU build is not on every package index. timm's models need none of it: only its image
transforms and data sets do.
"""

import importlib.util
import sys
from types import ModuleType
from typing import Any

MODULES = (
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


for _name in MODULES:
    _module = _Module(_name)
    _module.__spec__ = importlib.util.spec_from_loader(_name, None)
    _parent, _, _child = _name.rpartition(".")
    setattr(sys.modules[_parent], _child, _module)
    sys.modules[_name] = _module
