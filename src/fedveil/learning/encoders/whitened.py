"""Features centred and whitened by synthetic images: public numbers for what would have to be learned privately.

Frozen features of any medical images share a large mean and a few directions in which they vary most, such as
exposure; both swamp what tells classes apart. To learn them from patients costs budget. The built-in phantom shows
nobody, and much the same mean and directions: they are taken from it, for nothing, and the same at every site.
"""

from functools import cached_property

import numpy as np
import numpy.typing as npt

from fedveil.data.phantom.patients import phantom
from fedveil.learning.encoders.extractor import FeatureExtractor, Features, Images
from fedveil.learning.models.class_statistics import SMALLEST_NORM

__all__ = ["Whitened"]

PATIENTS, SEED = 400, 1
"""Synthetic patients that the constants are taken from; others than those of the built-in set."""
BATCH = 64
"""Images that are whitened at once."""
LARGEST_DRAWN = 64
"""Pixels a side that they are drawn at, at most; extractors enlarge them."""
SMALLEST_VARIANCE = 1e-12

Matrix = npt.NDArray[np.float64]


class Whitened:
    """An extractor whose features are centred and whitened by what it makes of the phantom's images.

    Let y be the inner features, each block brought to unit length, m and S their mean and covariance on the phantom,
    and rho the mean of the eigenvalues of S. An image's features are

        x = (I + S / rho)^(-1/2) (y - m),

    which is symmetric (ZCA) whitening with a ridge (Kessy, Lewin and Strimmer 2018): directions that vary less on the
    phantom than the average direction are left alone, so that nothing is blown up that it never showed. Symmetric,
    since the axes themselves may come out in any order and sign on another processor, but the root of S does not.

    Args:
        inner: the extractor.
        image_size: pixels a side of the images that it will be given.
        channels: 1 for grey images, 3 for colour, as the extractor takes them; the phantom's grey is then repeated.
    """

    def __init__(self, inner: FeatureExtractor, image_size: int, channels: int) -> None:
        self._inner, self._size, self._channels = inner, min(image_size, LARGEST_DRAWN), channels
        self.name = inner.name
        self.dimension = inner.dimension
        self.blocks: tuple[int, ...] = (inner.dimension,)
        self.key = f"whitened-1 {inner.key} by {self._size}"

    def __call__(self, images: Images) -> Features:
        """Map images (k, channels, h, w) in [0, 1] to features (k, dimension)."""
        return self._whiten(self._units(images)).astype(np.float32)

    def _units(self, images: Images) -> Matrix:
        """Each block brought to unit length, rounded as `key` has it: norms in single precision."""
        features, blocks = np.array(self._inner(images)), self._inner.blocks
        for block in np.split(features, np.cumsum(blocks)[:-1], axis=1):
            norms = np.linalg.norm(block, axis=1, keepdims=True)
            block /= np.maximum(norms, SMALLEST_NORM) * np.float32(np.sqrt(len(blocks)))
        return features.astype(np.float64)

    def _whiten(self, units: Matrix) -> Matrix:
        """In blocks of one size, so that an image is rounded alike whoever else is there; see `in_batches`."""
        mean, axes, shrinkage = self._constants
        result = units - mean
        for start in range(0, len(result), BATCH):
            block = result[start : start + BATCH]
            filled = np.concatenate([block, np.zeros((BATCH - len(block), self.dimension))])
            block -= ((filled @ axes.T * shrinkage) @ axes)[: len(block)]
        return result

    @cached_property
    def _constants(self) -> tuple[Matrix, Matrix, Matrix]:
        """m; the axes (k, dimension) of S; and how much of a vector along each is taken away."""
        drawn = phantom(self._size, patients=PATIENTS, seed=SEED).images
        grey = drawn.read(np.arange(len(drawn)))
        units = self._units(np.repeat(grey, self._channels, axis=1))
        mean = units.mean(axis=0)
        _, lengths, axes = np.linalg.svd(units - mean, full_matrices=False)
        variances = lengths**2 / (len(units) - 1)
        ridge = max(float(variances.sum()) / self.dimension, SMALLEST_VARIANCE)
        return mean, axes, 1 - np.sqrt(ridge / (variances + ridge))
