"""Whether the tested version of Flower is installed."""

from importlib.metadata import PackageNotFoundError, version

from fedveil.errors import InvalidValue

__all__ = ["need_flower"]


def need_flower() -> None:
    """Refuse to begin if Flower is missing or is not the tested version."""
    try:
        found = version("flwr")
    except PackageNotFoundError:
        found = "not installed"
    if not found.startswith("1.41."):
        raise InvalidValue(
            f"Flower is {found}",
            "messages between hospitals are carried by Flower 1.41",
            'pip install "fedveil[flower]"',
        )
