"""The image itself as features: the baseline for other extractors."""

from dataclasses import dataclass
from typing import ClassVar

from fedveil.learning.encoders.extractor import Features, Images, checked, resized


@dataclass(frozen=True, slots=True)
class Pixels:
    """Intensities minus one half after resampling to ``size`` pixels a side."""

    name: str
    channels: int
    size: int

    default_size: ClassVar[int] = 28

    @property
    def key(self) -> str:
        """Name of the cached features."""
        return f"pixels-1@{self.size}x{self.channels}"

    @property
    def blocks(self) -> tuple[int, ...]:
        """One block."""
        return (self.dimension,)

    @property
    def dimension(self) -> int:
        """Number of values in the resampled image."""
        return self.channels * self.size**2

    def __call__(self, images: Images) -> Features:
        """Map images (k, channels, h, w) in [0, 1] to (k, dimension) in [-1/2, 1/2]."""
        pixels = resized(checked(images, self.channels), self.size) - 0.5
        features: Features = pixels.flatten(1).numpy()
        return features
