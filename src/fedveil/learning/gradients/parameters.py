"""The trainable parameters of a network as one flat vector, and where each lies in it."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedveil.errors import InvalidValue

__all__ = ["Layout", "Target", "dimension", "flatten_parameters", "load_flat", "trainable_parameters"]


@dataclass(frozen=True, slots=True)
class Target:
    """A contiguous range of the flat vector: one parameter, or some of its leading rows."""

    start: int
    shape: tuple[int, ...]
    layer: int

    @property
    def size(self) -> int:
        """Number of entries."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def stop(self) -> int:
        """One past the last entry."""
        return self.start + self.size

    def rows(self, first: int, last: int) -> "Target":
        """The part that holds rows `first` to `last` (exclusive) of the parameter's first axis."""
        row = self.size // self.shape[0]
        return Target(self.start + first * row, (last - first, *self.shape[1:]), self.layer)


class Layout:
    """Where each trainable parameter of a model lies in the flat vector.

    Parameters come in the order of `model.named_parameters()`; a shared one comes once. A *layer*, the group
    that per-layer clipping bounds together, is the module that holds a parameter under its first name.
    """

    def __init__(self, model: nn.Module) -> None:
        self.parameters = trainable_parameters(model)
        self._targets: dict[int, Target] = {}
        self._names: dict[int, str] = {}
        layers: dict[str, int] = {}
        start = 0
        for name, parameter in self.parameters.items():
            layer = layers.setdefault(name.rpartition(".")[0], len(layers))
            self._targets[id(parameter)] = Target(start, tuple(parameter.shape), layer)
            self._names[id(parameter)] = name
            start += parameter.numel()
        self.dimension = start
        self.layers = len(layers)

    def target(self, parameter: Tensor | None) -> Target | None:
        """The range of `parameter`, or None where it is frozen or absent."""
        return None if parameter is None else self._targets.get(id(parameter))

    def targets(self) -> Iterator[Target]:
        """Every parameter's range, in order."""
        return iter(self._targets.values())


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that require a gradient, by name; a shared one once, under its first name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def dimension(model: nn.Module) -> int:
    """Length of the flat vector: how many numbers of the model are trained."""
    return sum(p.numel() for p in trainable_parameters(model).values())


def flatten_parameters(model: nn.Module) -> Tensor:
    """A copy of the trainable parameters as one vector of shape `(dimension,)`.

    Frozen parameters and buffers (batch-norm statistics among them) are never part of it.
    """
    parts = [p.detach().reshape(-1) for p in trainable_parameters(model).values()]
    return torch.cat(parts) if parts else torch.zeros(0)


def load_flat(model: nn.Module, vector: Tensor | NDArray[np.floating]) -> None:
    """Write a vector as `flatten_parameters` returns it into the model's trainable parameters, in place."""
    flat = torch.as_tensor(vector)
    size = dimension(model)
    if flat.shape != (size,):
        raise InvalidValue(
            f"the parameter vector has shape {tuple(flat.shape)}",
            f"this network trains {size} numbers",
            "give the vector that flatten_parameters returned for the same network",
        )
    start = 0
    with torch.no_grad():
        for parameter in trainable_parameters(model).values():
            stop = start + parameter.numel()
            parameter.copy_(flat[start:stop].view_as(parameter))
            start = stop
