"""EfficientNet-Lite0 from its package: a network that starts from public weights."""

from itertools import pairwise
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from fedveil.errors import InvalidValue
from fedveil.learning.encoders.efficientnet import pretrained
from fedveil.learning.networks.batch_norm import fix_batch_norm
from fedveil.learning.networks.layers import Centred, MeanAndDeviation, Residual, Scale
from fedveil.learning.step_size import HEAD_LENGTH

__all__ = ["efficientnet_lite0", "split_frozen"]


_BLOCKS = 11
"""Blocks that are used: up to the end of the stage with 112 channels, at a sixteenth of the resolution."""


def efficientnet_lite0(
    classes: int, resolution: int, *, trained_blocks: int = 1, weights: bool = True
) -> nn.Sequential:
    """EfficientNet-Lite0 with ImageNet weights up to its 11th block, and a linear head: few parameters are tuned.

    Images are resized to `resolution`. The blocks behind, which were trained to name animals, are left out. In the
    last `trained_blocks` blocks the convolutions keep their weights, and batch norm its published statistics: what is
    tuned is each channel's scale and shift, 2,912 numbers a block, since noise grows with their number (Bu et
    al., arXiv 2210.00036). The head takes mean and deviation over space of each channel, `Centred` in the middle
    between the classes. Batch norm of the frozen part is folded into its convolutions.
    """
    source: Any = pretrained(resolution, weights=weights)
    if not 0 <= trained_blocks <= _BLOCKS:
        raise InvalidValue(
            f"trained_blocks is {trained_blocks}",
            f"{_BLOCKS} of EfficientNet-Lite0's blocks are used",
            "give how many of them, from the last, are tuned",
        )
    blocks = [_block(block) for block in source._blocks[:_BLOCKS]]
    first = _BLOCKS - trained_blocks
    frozen = nn.Sequential(_unit(source._conv_stem, source._bn0), *blocks[:first])
    _fold(frozen.eval())
    tuned = fix_batch_norm(nn.Sequential(*blocks[first:]))
    for module in [*frozen.modules(), *tuned.modules()]:
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(isinstance(module, nn.BatchNorm2d))
    channels = source._blocks[_BLOCKS - 1]._project_conv.out_channels
    head = nn.Linear(2 * channels, classes, bias=False)
    nn.init.zeros_(head.weight)  # every class equally likely: no random head shakes the public weights below
    centred = Centred((channels, channels), HEAD_LENGTH)
    return nn.Sequential(*_input(resolution), frozen, tuned, MeanAndDeviation(), centred, head)


def split_frozen(network: nn.Sequential) -> tuple[nn.Sequential, nn.Sequential]:
    """Cut a network before its first trained layer: `rest(frozen(images))` is `network(images)`.

    What the frozen part makes of an image never changes: compute it once, train `rest` on it. Both parts
    share their parameters with the network.
    """
    layers = list(network)
    first = next((i for i, layer in enumerate(layers) if any(p.requires_grad for p in layer.parameters())), 0)
    while first and not any(True for _ in layers[first - 1].parameters()):
        first -= (
            1  # layers without parameters next to the cut may be random or resize: they stay with the rest
        )
    return nn.Sequential(*layers[:first]).eval(), nn.Sequential(*layers[first:])


def _input(resolution: int) -> list[nn.Module]:
    """What the published weights expect."""
    return [_Resize(resolution), Scale(127 / 255, 128 / 255, 3)]


class _Resize(nn.Module):
    """Bilinear resizing to a square."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """Resize `(images, channels, height, width)`."""
        if x.shape[2:] == (self.size, self.size):
            return x
        return functional.interpolate(x, (self.size, self.size), mode="bilinear", antialias=True)


def _unit(convolution: Any, norm: nn.Module, activation: bool = True) -> nn.Sequential:
    """Convolution, norm and ReLU6, with the package's static padding as ordinary layers."""
    plain = nn.Conv2d(
        convolution.in_channels,
        convolution.out_channels,
        convolution.kernel_size,
        tuple(convolution.stride),
        groups=convolution.groups,
        bias=False,
    )
    plain.weight = convolution.weight
    layers: list[nn.Module] = [plain, norm]
    padding = convolution.static_padding
    if isinstance(padding, nn.ZeroPad2d):
        left, right, top, bottom = padding.padding
        if left == right == top == bottom:
            plain.padding = (top, left)
            plain._reversed_padding_repeated_twice = [left, left, top, top]
        else:
            layers.insert(0, padding)
    return nn.Sequential(*layers, *([nn.ReLU6()] if activation else []))


def _block(block: Any) -> nn.Module:
    """An inverted bottleneck: expand, convolve each channel, project; a shortcut where shapes agree."""
    arguments = block._block_args
    layers = [] if arguments.expand_ratio == 1 else [_unit(block._expand_conv, block._bn0)]
    layers += [
        _unit(block._depthwise_conv, block._bn1),
        _unit(block._project_conv, block._bn2, activation=False),
    ]
    body = nn.Sequential(*layers)
    same = np.ravel(arguments.stride)[0] == 1 and arguments.input_filters == arguments.output_filters
    return Residual(body, nn.Identity()) if block.id_skip and same else body


def _fold(module: nn.Module) -> None:
    """Fold each batch norm into the convolution before it."""
    for parent in list(module.modules()):
        for (name, convolution), (norm_name, norm) in pairwise(list(parent.named_children())):
            if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(parent, name, fuse_conv_bn_eval(convolution, norm))
                setattr(parent, norm_name, nn.Identity())
