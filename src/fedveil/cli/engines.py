"""Whether a tested version of what carries messages is installed."""

import re
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from fedveil.errors import InvalidValue

if TYPE_CHECKING:
    from fedveil.deploy.carrier import Engine

__all__ = ["need_engine", "need_flower"]

_PACKAGES = {"flower": ("Flower", "flwr"), "nvflare": ("NVFlare", "nvflare")}


def need_engine(engine: "Engine") -> None:
    """Refuse to begin if an engine is missing or is not a version that the tests ran with."""
    name, package = _PACKAGES[engine]
    versions = import_module(f"fedveil.deploy.{engine}").VERSIONS
    try:
        found = version(package)
    except PackageNotFoundError:
        found = "not installed"
    number = tuple(int(part) for part in re.findall(r"\d+", found)[:2])
    if not versions[0] <= number <= versions[1]:
        words = dict.fromkeys(".".join(map(str, one)) for one in versions)
        raise InvalidValue(
            f"{name} is {found}",
            f"messages between hospitals are carried by {name} {' to '.join(words)}",
            f'pip install "fedveil[{engine}]"',
        )


def need_flower() -> None:
    """The same for Flower."""
    need_engine("flower")
