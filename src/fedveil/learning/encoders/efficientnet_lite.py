"""EfficientNet-Lite as a frozen feature extractor, whose sizes are known without loading torch.

Tan & Le, "EfficientNet: rethinking model scaling for convolutional neural networks" (ICML 2019); the Lite
variants have no squeeze-and-excitation and ReLU6 for swish. Their public ImageNet weights come as Python packages, so
nothing is downloaded and nothing depends on private images.
"""

from fedveil.errors import InvalidValue
from fedveil.learning.encoders.device import Precision, narrowed
from fedveil.learning.encoders.extractor import Features, Images

__all__ = ["LAST_BLOCK", "SMALLEST", "WIDTHS", "EfficientNetLite"]

LAST_BLOCK = {0: 10, 1: 14, 2: 14}
"""Block of each variant, counted from 0, whose output is pooled unless another is asked for: the last at stride 16."""
SMALLEST = 16
WIDTHS = {
    0: (16, 24, 24, 40, 40, 80, 80, 80, 112, 112, 112, 192, 192, 192, 192, 320),
    1: (16, *(24,) * 3, *(40,) * 3, *(80,) * 4, *(112,) * 4, *(192,) * 5, 320),
    2: (16, *(24,) * 3, *(48,) * 3, *(88,) * 4, *(120,) * 4, *(208,) * 5, 352),
}
"""Number of output channels of each block, by variant."""


class EfficientNetLite:
    """Pooled activations from the middle of the network: mean and deviation of each channel, in two blocks.

    The spatial mean and standard deviation of each output channel of one block. These describe texture rather than
    objects, and separate medical images better than the last layer, which was trained on everyday objects; the rest
    of the network is removed.

    A grey image is fed as three equal channels. Batch norm uses the published ImageNet statistics (evaluation
    mode) and is folded into the convolutions, which halves the time and changes features only by rounding.

    Args:
        name: as in a study file.
        channels: of the images, 1 or 3.
        size: pixels per side that images are resampled to.
        variant: 0, 1 or 2.
        block: whose output is pooled, counted from 0; `LAST_BLOCK` if None.
        precision: of the network; features are float32.

    Raises:
        InvalidValue: the network has no such block.
    """

    def __init__(
        self,
        name: str,
        channels: int,
        size: int,
        variant: int = 0,
        block: int | None = None,
        precision: Precision = "float32",
    ) -> None:
        self.precision = precision
        self.name, self.channels, self.size, self.variant = name, channels, size, variant
        widths = WIDTHS[variant]
        self.block = LAST_BLOCK[variant] if block is None else block
        if not 0 <= self.block < len(widths):
            raise InvalidValue(
                f"features are {name!r}",
                f"EfficientNet-Lite{variant} has the blocks 0 to {len(widths) - 1}",
                f"write for example efficientnet-lite{variant}/{LAST_BLOCK[variant]}",
            )
        width = widths[self.block]
        self.blocks: tuple[int, ...] = (width, width)
        self.dimension = sum(self.blocks)
        place = "" if self.block == LAST_BLOCK[variant] else f"/{self.block}"
        self.key = narrowed(f"efficientnet-lite{variant}-5{place}@{self.size}x{channels}", precision)

    def __call__(self, images: Images) -> Features:
        """Map images (k, channels, h, w) in [0, 1] to features (k, 2 c): means, then deviations."""
        from fedveil.learning.encoders.efficientnet import (
            features_of,
        )  # here, since sizes are known without torch

        return features_of(
            images,
            variant=self.variant,
            block=self.block,
            size=self.size,
            channels=self.channels,
            precision=self.precision,
        )
