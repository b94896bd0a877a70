"""Several views of an image that count as one image (augmentation multiplicity, De et al., 2204.13650)."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

from fedveil.errors import InvalidValue
from fedveil.lazy import later
from fedveil.learning.models.learner import Vector

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import functional
else:
    functional = later("torch.nn.functional")

__all__ = ["Views"]


class Views:
    """Several views of each image, the same for all images of a step: shifted by up to 1/16, and mirrored at random.

    They follow from the public parameters, so that a repeated step uses the same views, and no patient's view
    depends on other patients. One view is the image itself.

    Args:
        count: views of an image.
        flip: whether views are mirrored left to right.
    """

    def __init__(self, count: int = 1, *, flip: bool = True) -> None:
        if count < 1:
            raise InvalidValue(f"views is {count}", "it must be at least 1", "1 uses the unchanged images")
        self.count, self.flip = count, flip

    def draw(self, parameters: Vector, size: int) -> list[tuple[bool, int, int]]:
        """Mirrored or not, and the shift in pixels down and right, for each view of this step."""
        if self.count == 1:
            return [(False, 0, 0)]
        digest = hashlib.sha256(np.ascontiguousarray(parameters).tobytes()).digest()
        generator = np.random.default_rng(np.frombuffer(digest, dtype=np.uint32))
        most = max(1, size // 16)
        flips = generator.random(self.count) < (0.5 if self.flip else 0.0)
        shifts = generator.integers(-most, most + 1, (self.count, 2))
        return [(bool(flip), int(dy), int(dx)) for flip, (dy, dx) in zip(flips, shifts, strict=True)]

    @staticmethod
    def of(images: Tensor, view: tuple[bool, int, int]) -> Tensor:
        """One view of images (k, channels, height, width); the edge is repeated to fill the gap of a shift."""
        flip, dy, dx = view
        seen = images.flip(3) if flip else images
        if dy or dx:
            reach = max(abs(dy), abs(dx))
            height, width = images.shape[2:]
            padded = functional.pad(seen, (reach,) * 4, mode="replicate")
            seen = padded[:, :, reach - dy : reach - dy + height, reach - dx : reach - dx + width]
        return seen
