"""Features of a volume: an extractor sees its slices one by one, and their features are pooled.

The pooled vector has three blocks for each block of the extractor: mean, standard deviation and maximum over slices.
The mean tells what a volume looks like, the maximum what occurs in few slices (multi-view pooling, Su et al.,
1505.00880).
"""

from dataclasses import dataclass

import numpy as np

from fedveil.errors import InvalidValue
from fedveil.learning.encoders.extractor import FeatureExtractor, Features, Images

__all__ = ["PooledSlices"]


@dataclass(frozen=True, slots=True)
class PooledSlices:
    """An extractor of grey images, applied to every slice of volumes.

    Args:
        inner: the extractor, for one channel.
        slices: of each volume.
    """

    inner: FeatureExtractor
    slices: int

    @property
    def name(self) -> str:
        """That of the extractor."""
        return self.inner.name

    @property
    def key(self) -> str:
        """Everything that decides the features."""
        return f"slices-1 {self.slices} {self.inner.key}"

    @property
    def blocks(self) -> tuple[int, ...]:
        """The extractor's blocks, three times."""
        return self.inner.blocks * 3

    @property
    def dimension(self) -> int:
        """Three times the extractor's."""
        return 3 * self.inner.dimension

    def __call__(self, images: Images) -> Features:
        """Map volumes (k, slices, h, w) in [0, 1] to features (k, dimension); each is pooled by itself."""
        if images.ndim != 4 or images.shape[1] != self.slices:
            raise InvalidValue(
                f"volumes have shape {images.shape}",
                f"they must be (k, {self.slices}, size, size)",
                "read them with the study's slices",
            )
        seen = self.inner(images.reshape(-1, 1, *images.shape[2:]))
        pooled = np.empty((len(images), 3, self.inner.dimension), np.float32)
        for target, rows in zip(pooled, seen.reshape(len(images), self.slices, -1), strict=True):
            target[0], target[1], target[2] = rows.mean(axis=0), rows.std(axis=0), rows.max(axis=0)
        return pooled.reshape(len(images), -1)
