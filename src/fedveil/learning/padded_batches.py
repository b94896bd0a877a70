"""Images in batches of one size, so that nobody's numbers depend on how many others there are.

How a matrix product rounds depends on how many rows it has, and what is decided for an image may depend on the last
bit.
"""

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fedveil.learning.models.learner import Indices

__all__ = ["ImageSource", "Images", "batches", "filled", "filled_up"]

SIZE = 32
"""Images in a batch; fewer are filled up with black ones."""
Images = npt.NDArray[np.float32]


class ImageSource(Protocol):
    """Images that are read when they are needed."""

    def read(self, indices: Indices) -> Images:
        """Images (k, channels, height, width) in [0, 1], or what the frozen part of a network makes of them."""
        ...


def batches(count: int) -> Iterator[Indices]:
    """Indices 0 .. count-1, at most `SIZE` at once."""
    return (np.arange(start, min(start + SIZE, count)) for start in range(0, count, SIZE))


def filled(module: nn.Module, images: Images) -> Tensor:
    """What a module makes of at most `SIZE` images, shown among as many in any case."""
    shown = np.zeros((SIZE, *images.shape[1:]), images.dtype)
    shown[: len(images)] = images
    result: Tensor = module(torch.from_numpy(shown))[: len(images)]
    return result


def filled_up(images: Tensor, labels: Tensor, members: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Fill images up to a multiple of `SIZE` with black ones, which have units of their own; and weights, 0 for those.

    Where layers differ much in scale a gradient may be hardly more than rounding, and an image that one patient less
    moves from a batch of its own into a full one would turn.
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
        torch.cat([labels, labels.new_zeros(more)]),
        torch.cat([members, others]),
        weights,
    )
