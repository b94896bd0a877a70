"""The option that says where encoders and networks run, and where a site's own encoders are."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["DeviceName", "on_device", "with_encoders_of"]

DeviceName = Annotated[
    str, typer.Option("--device", help="Where encoders run: auto, cpu, cuda, cuda:NUMBER or mps.")
]


@contextmanager
def on_device(name: str) -> Iterator[None]:
    """Run encoders on this device.

    Raises:
        InvalidValue: there is no such device here.
    """
    if name == "cpu":  # the default must not wait for torch
        yield
        return
    from fedveil.learning.encoders.device import Device, use

    before = use(Device.of(name))
    try:
        yield
    finally:
        use(before)


@contextmanager
def with_encoders_of(folder: Path) -> Iterator[None]:
    """Use the encoders that were registered for a site, unless ``FEDVEIL_ENCODERS`` names others."""
    if os.environ.get("FEDVEIL_ENCODERS"):
        yield
        return
    os.environ["FEDVEIL_ENCODERS"] = str(folder.resolve() / "encoders")
    try:
        yield
    finally:
        del os.environ["FEDVEIL_ENCODERS"]
