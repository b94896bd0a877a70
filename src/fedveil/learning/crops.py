"""Further views of an image for frozen features: crops, mirrored by chance, that a patient's gradient averages over.

The crops are public: they are seeded by the image's own pixels and the number of the view, so that they are the same
at every run, and features of them can be kept. Augmentation multiplicity after De et al. (2022, 2204.13650).
"""

import numpy as np
import numpy.typing as npt
import torch

from fedveil.learning.seeds import pixel_seed

__all__ = ["crop", "crop_version"]

SMALLEST = 0.85
"""The smallest crop's part of an image's side."""


def crop_version(number: int, flip: bool) -> str:
    """Names a view in the keys of cached features."""
    return f"crop-2 {number} {'mirrored' if flip else 'upright'}"


def crop(images: npt.NDArray[np.float32], number: int, *, flip: bool) -> npt.NDArray[np.float32]:
    """Cut a square of 85 to 100 % of the side out of each image, anywhere, and bring it back to full size.

    Args:
        images: (k, channels, size, size) in [0, 1].
        number: which of the views.
        flip: whether half of the crops are mirrored left to right.

    Returns:
        The same shape, in [0, 1].
    """
    return np.stack([_crop(image, number, flip) for image in images]) if len(images) else images


def _crop(image: npt.NDArray[np.float32], number: int, flip: bool) -> npt.NDArray[np.float32]:
    draws = np.random.default_rng([pixel_seed(image), number]).random(4)
    side = SMALLEST + (1 - SMALLEST) * draws[0]
    down, right = (1 - side) * (2 * draws[1:3] - 1)
    across = -side if flip and draws[3] < 0.5 else side
    maps = torch.tensor([[[across, 0, right], [0, side, down]]], dtype=torch.float32)
    grid = torch.nn.functional.affine_grid(maps, [1, *image.shape], align_corners=False)
    cut = torch.nn.functional.grid_sample(
        torch.from_numpy(image)[None], grid, padding_mode="border", align_corners=False
    )
    result: npt.NDArray[np.float32] = np.clip(cut[0].numpy(), 0, 1)
    return result
