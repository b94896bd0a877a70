"""Where networks run, and in which precision; one setting of the process, made before anything is computed.

What bounds a patient's contribution, and every sum, stays in float32 or better on every device.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from fedveil.errors import InvalidValue

__all__ = ["PRECISIONS", "Device", "Precision", "current", "halving", "narrowed", "use"]

Precision = Literal["float32", "bfloat16", "float16"]
PRECISIONS: tuple[str, ...] = get_args(Precision)


@dataclass(frozen=True, slots=True)
class Device:
    """A device of PyTorch and the precision of frozen networks on it."""

    torch: torch.device
    precision: Precision = "float32"

    @classmethod
    def of(cls, name: str, precision: Precision = "float32") -> "Device":
        """The device of this name: auto, cpu, cuda, cuda:NUMBER or mps.

        Raises:
            InvalidValue: there is no such device here.
        """
        kinds = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
        if name == "auto":
            name = next((kind for kind in ("cuda", "mps") if kinds[kind]), "cpu")
        kind, _, number = name.partition(":")
        if kind not in kinds or (number and (kind != "cuda" or not number.isdecimal())):
            raise InvalidValue(
                f"device is {name[:40]!r}",
                "it must be auto, cpu, cuda, cuda:NUMBER or mps",
                "choose one of them",
            )
        count = torch.cuda.device_count() if kind == "cuda" else 1
        if not kinds[kind] or int(number or 0) >= count:
            found = (
                f"{torch.cuda.device_count()} CUDA devices" if torch.cuda.is_available() else "no CUDA device"
            )
            raise InvalidValue(
                f"device is {name!r}",
                f"PyTorch finds {found} here" if kind == "cuda" else f"PyTorch finds no {kind} here",
                "use --device auto, or check the driver and that this is a build of PyTorch for the device",
            )
        return cls(torch.device(name), precision)


_current = Device(torch.device("cpu"))


def current() -> Device:
    """The device of this process."""
    return _current


def use(device: Device) -> Device:
    """Set the device of this process; returns the one that was set before."""
    global _current
    before, _current = _current, device
    return before


def narrowed(key: str) -> str:
    """A key of cached features, marked where they are not computed in float32."""
    return key if _current.precision == "float32" else f"{key} {_current.precision}"


def halving(function: Callable[[torch.Tensor], torch.Tensor], batch: torch.Tensor) -> torch.Tensor:
    """Apply a frozen network to a batch on the device; if its memory does not suffice, to smaller and smaller parts.

    Raises:
        InvalidValue: not even one image fits.
    """
    device = current()
    try:
        moved = batch.to(device.torch)
        if device.precision == "float32":
            return function(moved)
        with torch.autocast(device.torch.type, dtype=getattr(torch, device.precision)):
            return function(moved).float()
    except torch.OutOfMemoryError:
        if len(batch) == 1:
            raise InvalidValue(
                f"the memory of {device.torch} does not suffice for one image",
                "a network needs room for its weights and its activations",
                "use a smaller network or image size, free the device, or use --device cpu",
            ) from None
    half = len(batch) // 2  # outside the handler, which would keep what did not fit alive
    if device.torch.type == "cuda":
        torch.cuda.empty_cache()
    return torch.cat([halving(function, batch[:half]), halving(function, batch[half:])])
