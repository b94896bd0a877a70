"""Features centred and whitened by synthetic images: public constants instead of privately learned ones.

Frozen features of any medical images share a large mean and a few directions in which they vary most, such as
exposure; both mask the differences between classes. Learning them from patients costs budget. The built-in phantom
contains no patients and has similar mean and directions: they are computed from it, at no cost, and are the same at
every site.
"""

from functools import cached_property

import numpy as np
import numpy.typing as npt

from fedveil.data.image_store import ImageStack
from fedveil.data.options import Reading
from fedveil.data.phantom.patients import phantom
from fedveil.data.phantom.volumes import phantom_volumes
from fedveil.learning.encoders.extractor import FeatureExtractor, Features, Images
from fedveil.learning.released.class_statistics import SMALLEST_NORM

__all__ = ["Whitened"]

PATIENTS, SEED = 400, 1
"""Synthetic patients for the constants; different from those of the built-in set."""
VOLUMES = 200
"""Synthetic patients with volumes for the constants of pooled slices."""
BATCH = 64
"""Images that are whitened at once."""
LARGEST_DRAWN = 64
"""Largest number of pixels per side at which they are drawn; extractors enlarge them."""
SMALLEST_VARIANCE = 1e-12

Matrix = npt.NDArray[np.float64]


class Whitened:
    """An extractor whose features are centred and whitened with its features of the phantom's images.

    Let y be the inner features, each block scaled to unit length, m and S their mean and covariance on the phantom,
    and rho the mean of the eigenvalues of S. An image's features are

        x = (I + S / rho)^(-1/2) (y - m),

    which is symmetric (ZCA) whitening with a ridge (Kessy, Lewin and Strimmer 2018): directions that vary less on
    the phantom than the average direction are hardly changed, so that directions absent from the phantom are not
    amplified. It is symmetric because the order and sign of the axes may differ between processors, but the root of
    S does not.

    Args:
        inner: the extractor.
        image_size: pixels per side of its input images.
        channels: 1 for grey images, 3 for colour, as the extractor takes them; the phantom's grey is then repeated.
        slices: of volumes; the synthetic images are then volumes, too.
    """

    def __init__(
        self, inner: FeatureExtractor, image_size: int, channels: int, slices: int | None = None
    ) -> None:
        self._slices = slices
        self.inner, self._size, self._channels = inner, min(image_size, LARGEST_DRAWN), channels
        self.name = inner.name
        self.dimension = inner.dimension
        self.blocks: tuple[int, ...] = (inner.dimension,)
        self.key = f"whitened-1 {inner.key} by {self._size}"

    def __call__(self, images: Images) -> Features:
        """Map images (k, channels, h, w) in [0, 1] to features (k, dimension)."""
        return self._whiten(self._units(images)).astype(np.float32)

    def _units(self, images: Images) -> Matrix:
        """Each block scaled to unit length, rounded as `key` states: norms in single precision."""
        features, blocks = np.array(self.inner(images)), self.inner.blocks
        for block in np.split(features, np.cumsum(blocks)[:-1], axis=1):
            norms = np.linalg.norm(block, axis=1, keepdims=True)
            block /= np.maximum(norms, SMALLEST_NORM) * np.float32(np.sqrt(len(blocks)))
        return features.astype(np.float64)

    def _whiten(self, units: Matrix) -> Matrix:
        """In blocks of one size, so that an image's rounding does not depend on others; see `in_batches`."""
        mean, axes, shrinkage = self.constants
        result = units - mean
        for start in range(0, len(result), BATCH):
            block = result[start : start + BATCH]
            filled = np.concatenate([block, np.zeros((BATCH - len(block), self.dimension))])
            block -= ((filled @ axes.T * shrinkage) @ axes)[: len(block)]
        return result

    def _drawn(self) -> ImageStack:
        if self._slices is None:
            return phantom(self._size, patients=PATIENTS, seed=SEED).images
        return phantom_volumes(self._size, Reading(slices=self._slices), patients=VOLUMES, seed=SEED).images

    @cached_property
    def constants(self) -> tuple[Matrix, Matrix, Matrix]:
        """m; the axes (k, dimension) of S; and the fraction of a vector along each that is removed."""
        drawn = self._drawn()
        grey = drawn.read(np.arange(len(drawn)))
        units = self._units(np.repeat(grey, self._channels, axis=1))
        mean = units.mean(axis=0)
        _, lengths, axes = np.linalg.svd(units - mean, full_matrices=False)
        variances = lengths**2 / (len(units) - 1)
        ridge = max(float(variances.sum()) / self.dimension, SMALLEST_VARIANCE)
        return mean, axes, 1 - np.sqrt(ridge / (variances + ridge))
