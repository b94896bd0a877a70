"""Where networks run, which is one setting of the process, and in which precision, which is part of a study.

What bounds a patient's contribution, and every sum, stays in float32 or better on every device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from fedveil.errors import InvalidValue
from fedveil.lazy import later

if TYPE_CHECKING:
    import torch
else:
    torch = later("torch")

__all__ = ["PRECISIONS", "Device", "Precision", "current", "halving", "narrowed", "use"]

Precision = Literal["float32", "bfloat16", "float16"]
PRECISIONS: tuple[str, ...] = get_args(Precision)


@dataclass(frozen=True, slots=True)
class Device:
    """A device of PyTorch."""

    torch: torch.device

    @classmethod
    def of(cls, name: str) -> Device:
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
        return cls(torch.device(name))


_current: Device | None = None


def current() -> Device:
    """The device of this process."""
    return _current or Device(torch.device("cpu"))


def use(device: Device) -> Device:
    """Set the device of this process; returns the one that was set before."""
    global _current
    before, _current = current(), device
    return before


def narrowed(key: str, precision: Precision) -> str:
    """A key of cached features, marked where they are not computed in float32."""
    return key if precision == "float32" else f"{key} {precision}"


def halving(
    function: Callable[[torch.Tensor], torch.Tensor], batch: torch.Tensor, precision: Precision = "float32"
) -> torch.Tensor:
    """Apply a frozen network to a batch on the device; if its memory does not suffice, to smaller and smaller parts.

    What comes back is float32, whatever the network computes in.

    Raises:
        InvalidValue: not even one image fits.
    """
    device = current().torch
    try:
        moved = batch.to(device)
        if precision == "float32":
            return function(moved)
        with torch.autocast(device.type, dtype=getattr(torch, precision)):
            return function(moved).float()
    except torch.OutOfMemoryError:
        if len(batch) == 1:
            raise InvalidValue(
                f"the memory of {device} does not suffice for one image",
                "a network needs room for its weights and its activations",
                "use a smaller network or image size, free the device, or use --device cpu",
            ) from None
    half = len(batch) // 2  # outside the handler, which would keep what did not fit alive
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return torch.cat([halving(function, part, precision) for part in (batch[:half], batch[half:])])
