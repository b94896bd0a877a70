"""Images in batches of one size, so that an image's results do not depend on the number of others.

The rounding of a matrix product depends on its number of rows, and the decision for an image may depend on the last
bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from fedveil.lazy import later
from fedveil.learning.models.learner import Indices

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
else:
    torch = later("torch")

__all__ = ["SIZE", "ImageSource", "Images", "InMemory", "batches", "filled", "filled_up"]

SIZE = 32
"""Images in a batch; smaller batches are padded with black ones."""
Images = npt.NDArray[np.float32]


class ImageSource(Protocol):
    """Images that are read when needed."""

    def read(self, indices: Indices) -> Images:
        """Images (k, channels, height, width) in [0, 1], or a frozen part's outputs for them."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class InMemory:
    """Images that have been read."""

    images: Images

    def read(self, indices: Indices) -> Images:
        """The chosen ones."""
        return self.images[indices]


def batches(count: int) -> Iterator[Indices]:
    """Indices 0 .. count-1, at most `SIZE` at once."""
    return (np.arange(start, min(start + SIZE, count)) for start in range(0, count, SIZE))


def filled(module: nn.Module, images: Images) -> Tensor:
    """A module's output for at most `SIZE` images, always computed in a batch of `SIZE`."""
    shown = np.zeros((SIZE, *images.shape[1:]), images.dtype)
    shown[: len(images)] = images
    result: Tensor = module(torch.from_numpy(shown))[: len(images)]
    return result


def filled_up(images: Tensor, labels: Tensor, members: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pad images to a multiple of `SIZE` with black ones, which have separate units; also return weights, 0 for those.

    If layers differ greatly in scale a gradient may be mostly rounding, and would change direction when one patient
    less moves an image to a fuller batch.
    """
    count = len(images)
    more = -count % SIZE
    weights = torch.cat([torch.ones(count), torch.zeros(more)])
    if not more:
        return images, labels, members, weights
    black = images.new_zeros(more, *images.shape[1:])
    others = int(members.max()) + 1 + torch.arange(more)
    return (
        torch.cat([images, black]),
        torch.cat([labels, labels.new_zeros(more, *labels.shape[1:])]),
        torch.cat([members, others]),
        weights,
    )
