"""A second, degraded view of an image: as another scanner, another positioning, another day might have given it.

Thresholds that are set on clean training images fail first where images come from elsewhere. The last release of a
study therefore takes each image's score together with that of its degraded view. The transformation is public, and
seeded by the image's own content, so that it is the same at every run.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

__all__ = ["VERSION", "degraded"]

VERSION = "degraded-1"
"""Names the transformation in the keys of cached features."""

GAMMA, CONTRAST, OFFSET = 0.25, 0.2, 0.08
"""Standard deviations: of the logarithms of gamma and contrast, and of the brightness offset."""
ZOOM, DEGREES, SHIFT = 0.06, 4.0, 0.04
"""Standard deviations: of the logarithm of the zoom, of the rotation, and of the shift in half image sides."""
NOISE = 0.01
"""Standard deviation of the pixel noise, where 1 is full scale."""


def degraded(images: npt.NDArray[np.float32], digests: Sequence[str]) -> npt.NDArray[np.float32]:
    """Change gamma, contrast, brightness, zoom, rotation and position, and add noise, at random.

    Args:
        images: (k, channels, size, size) in [0, 1].
        digests: a content hash an image; it seeds the changes.

    Returns:
        The same shape, in [0, 1].
    """
    if not len(images):
        return images
    generators = [np.random.default_rng(int(digest, 16)) for digest in digests]
    draws = np.stack([generator.normal(size=7) for generator in generators])
    noise = np.stack([generator.normal(0, NOISE, images.shape[1:]) for generator in generators])
    gamma = np.exp(GAMMA * draws[:, 0])[:, None, None, None]
    contrast = np.exp(CONTRAST * draws[:, 1])[:, None, None, None]
    offset = OFFSET * draws[:, 2][:, None, None, None]
    toned = np.clip((np.clip(images, 0, 1) ** gamma - 0.5) * contrast + 0.5 + offset, 0, 1)
    moved = _moved(torch.from_numpy(toned.astype(np.float32)), draws[:, 3:])
    result: npt.NDArray[np.float32] = np.clip(moved.numpy() + noise, 0, 1).astype(np.float32)
    return result


def _moved(images: torch.Tensor, draws: npt.NDArray[np.float64]) -> torch.Tensor:
    """Zoom, rotate and shift each image by its own draws (k, 4), bilinear, borders repeated."""
    zoom, angle = np.exp(ZOOM * draws[:, 0]), np.deg2rad(DEGREES * draws[:, 1])
    shift = SHIFT * draws[:, 2:]
    rows = [
        np.stack([np.cos(angle) * zoom, -np.sin(angle) * zoom, shift[:, 0]], axis=1),
        np.stack([np.sin(angle) * zoom, np.cos(angle) * zoom, shift[:, 1]], axis=1),
    ]
    maps = torch.from_numpy(np.stack(rows, axis=1).astype(np.float32))
    grid = torch.nn.functional.affine_grid(maps, list(images.shape), align_corners=False)
    return torch.nn.functional.grid_sample(images, grid, align_corners=False, padding_mode="border")
