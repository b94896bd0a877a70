"""A second, degraded view of an image: as from another scanner, another positioning, another day.

Thresholds set on clean training images are the first to fail on images from elsewhere. The last release of a
study therefore takes each image's score together with that of its degraded view. The transformation is public, and
seeded by the image's own pixels, so that it is the same in every run, and independent of other images.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fedveil.lazy import later
from fedveil.learning.seeds import pixel_seed

if TYPE_CHECKING:
    import torch
else:
    torch = later("torch")

__all__ = ["VERSION", "degraded"]

VERSION = "degraded-2"
"""Identifies the transformation in the keys of cached features."""

GAMMA, CONTRAST, OFFSET = 0.25, 0.2, 0.08
"""Standard deviations: of the logarithms of gamma and contrast, and of the brightness offset."""
ZOOM, DEGREES, SHIFT = 0.06, 4.0, 0.04
"""Standard deviations: of the logarithm of the zoom, of the rotation, and of the shift in half image sides."""
NOISE = 0.01
"""Standard deviation of the pixel noise, where 1 is full scale."""


def degraded(images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Change gamma, contrast, brightness, zoom, rotation and position, and add noise, at random.

    Each image is changed independently, so the result is bit-identical for any other images.

    Args:
        images: (k, channels, size, size) in [0, 1].

    Returns:
        The same shape, in [0, 1].
    """
    return np.stack([_degraded(image) for image in images]) if len(images) else images


def _degraded(image: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    generator = np.random.default_rng(pixel_seed(image))
    draws = generator.normal(size=7)
    noise = generator.normal(0, NOISE, image.shape)
    gamma, contrast, offset = np.exp(GAMMA * draws[0]), np.exp(CONTRAST * draws[1]), OFFSET * draws[2]
    toned = np.clip((np.clip(image, 0, 1) ** gamma - 0.5) * contrast + 0.5 + offset, 0, 1)
    moved = _moved(torch.from_numpy(toned.astype(np.float32)), draws[3:])
    result: npt.NDArray[np.float32] = np.clip(moved.numpy() + noise, 0, 1).astype(np.float32)
    return result


def _moved(image: torch.Tensor, draws: npt.NDArray[np.float64]) -> torch.Tensor:
    """Zoom, rotate and shift an image by its draws (4,), bilinear, borders repeated."""
    zoom, angle = np.exp(ZOOM * draws[0]), np.deg2rad(DEGREES * draws[1])
    across, down = SHIFT * draws[2:]
    rows = [
        [np.cos(angle) * zoom, -np.sin(angle) * zoom, across],
        [np.sin(angle) * zoom, np.cos(angle) * zoom, down],
    ]
    maps = torch.tensor([rows], dtype=torch.float32)
    grid = torch.nn.functional.affine_grid(maps, [1, *image.shape], align_corners=False)
    moved = torch.nn.functional.grid_sample(image[None], grid, align_corners=False, padding_mode="border")
    return moved[0]
