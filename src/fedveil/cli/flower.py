"""Whether a tested version of Flower is installed."""

import re
from importlib.metadata import PackageNotFoundError, version

from fedveil.errors import InvalidValue

__all__ = ["need_flower"]


def need_flower() -> None:
    """Refuse to begin if Flower is missing or is not a version that the tests ran with."""
    from fedveil.deploy.flower import VERSIONS

    try:
        found = version("flwr")
    except PackageNotFoundError:
        found = "not installed"
    number = tuple(int(part) for part in re.findall(r"\d+", found)[:2])
    if not VERSIONS[0] <= number <= VERSIONS[1]:
        first, last = (".".join(map(str, one)) for one in VERSIONS)
        raise InvalidValue(
            f"Flower is {found}",
            f"messages between hospitals are carried by Flower {first} to {last}",
            'pip install "fedveil[flower]"',
        )
