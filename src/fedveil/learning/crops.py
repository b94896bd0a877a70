"""Further views of an image for frozen features: crops, mirrored by chance, that a patient's gradient averages over.

The crops are public: they are seeded by the image's own content and the number of the view, so that they are the same
at every run, and features of them can be kept. Augmentation multiplicity after De et al. (2022, 2204.13650).
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

__all__ = ["crop", "crop_version"]

SMALLEST = 0.85
"""The smallest crop's part of an image's side."""


def crop_version(number: int, flip: bool) -> str:
    """Names a view in the keys of cached features."""
    return f"crop-1 {number} {'mirrored' if flip else 'upright'}"


def crop(
    images: npt.NDArray[np.float32], digests: Sequence[str], number: int, *, flip: bool
) -> npt.NDArray[np.float32]:
    """Cut a square of 85 to 100 % of the side out of each image, anywhere, and bring it back to full size.

    Args:
        images: (k, channels, size, size) in [0, 1].
        digests: a content hash an image; it seeds the crop.
        number: which of the views.
        flip: whether half of the crops are mirrored left to right.

    Returns:
        The same shape, in [0, 1].
    """
    if not len(images):
        return images
    draws = np.stack([np.random.default_rng([int(digest, 16), number]).random(4) for digest in digests])
    side = SMALLEST + (1 - SMALLEST) * draws[:, 0]
    down, right = ((1 - side) * (2 * draws[:, column] - 1) for column in (1, 2))
    across = np.where(flip & (draws[:, 3] < 0.5), -side, side)
    none = np.zeros_like(side)
    maps = np.stack([np.stack([across, none, right], axis=1), np.stack([none, side, down], axis=1)], axis=1)
    grid = torch.nn.functional.affine_grid(
        torch.from_numpy(maps.astype(np.float32)), list(images.shape), align_corners=False
    )
    cut = torch.nn.functional.grid_sample(
        torch.from_numpy(images), grid, padding_mode="border", align_corners=False
    )
    result: npt.NDArray[np.float32] = np.clip(cut.numpy(), 0, 1)
    return result
