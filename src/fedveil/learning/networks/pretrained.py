"""Networks that start from public weights: EfficientNet-Lite0 from its package, anything from timm."""

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from fedveil.errors import InvalidValue
from fedveil.learning.features.efficientnet import pretrained
from fedveil.learning.networks.batch_norm import fix_batch_norm, group_count, replace_batch_norm
from fedveil.learning.networks.layers import Residual, Scale, WeightStandardizedConv2d

__all__ = ["efficientnet_lite0_maps", "efficientnet_lite0", "split_frozen", "timm_network"]


_MIDDLE_BLOCKS = 11
"""Blocks up to the end of the stage with 112 channels, at a sixteenth of the resolution."""


def efficientnet_lite0_maps(classes: int, resolution: int, *, width: int = 64) -> nn.Sequential:
    """A small trained convolution on frozen maps of EfficientNet-Lite0: few parameters, so little noise.

    Images are resized to `resolution`. The maps are the last block's 320 channels and, averaged to the same
    size, the 112 channels of the stage before the last but one, whose textures tell radiographs apart. On
    them are trained a normalisation, a 3 x 3 convolution to `width` channels, and a linear head: 253,000
    numbers for two classes. All before is frozen, public, and the same for every image: see `split_frozen`.
    """
    source: Any = pretrained(resolution)
    units = [_unit(source._conv_stem, source._bn0), *(_block(block) for block in source._blocks)]
    maps = _Maps(nn.Sequential(*units[: 1 + _MIDDLE_BLOCKS]), nn.Sequential(*units[1 + _MIDDLE_BLOCKS :]))
    _fold(maps.eval())
    maps.requires_grad_(False)
    channels = sum(source._blocks[i]._project_conv.out_channels for i in (_MIDDLE_BLOCKS - 1, -1))
    return nn.Sequential(
        *_input(resolution),
        maps,
        _group_norm(channels),
        WeightStandardizedConv2d(channels, width, 3, padding=1, bias=False),
        _group_norm(width),
        nn.ReLU(),
        *_head(width, classes),
    )


def efficientnet_lite0(
    classes: int, resolution: int, *, trained_blocks: int = 2, group_norm: bool = False
) -> nn.Sequential:
    """EfficientNet-Lite0 with ImageNet weights: the last blocks, the last convolution and the head are trained.

    Images are resized to `resolution`. The frozen part has its batch norm folded into its convolutions. In the
    trained part batch norm keeps its published statistics as constants, or gives way to group norm.
    """
    source: Any = pretrained(resolution)
    blocks = list(source._blocks)
    if not 0 <= trained_blocks <= len(blocks):
        raise InvalidValue(
            f"trained_blocks is {trained_blocks}",
            f"EfficientNet-Lite0 has {len(blocks)} blocks",
            "give how many of them, from the last, are trained",
        )
    first = len(blocks) - trained_blocks
    frozen = nn.Sequential(
        _unit(source._conv_stem, source._bn0), *(_block(block) for block in blocks[:first])
    )
    trained = nn.Sequential(
        *(_block(block) for block in blocks[first:]), _unit(source._conv_head, source._bn1)
    )
    _fold(frozen.eval())
    (replace_batch_norm if group_norm else fix_batch_norm)(trained)
    frozen.requires_grad_(False)
    trained.requires_grad_(True)
    return nn.Sequential(
        *_input(resolution), frozen, trained, *_head(source._conv_head.out_channels, classes)
    )


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


class _Maps(nn.Module):
    """Maps of a middle stage, averaged to the size of the last ones, and the last ones."""

    def __init__(self, middle: nn.Module, last: nn.Module) -> None:
        super().__init__()
        self.middle, self.last = middle, last

    def forward(self, x: Tensor) -> Tensor:
        """Both kinds of maps, side by side."""
        middle = self.middle(x)
        last = self.last(middle)
        return torch.cat([functional.adaptive_avg_pool2d(middle, last.shape[2:]), last], 1)


def _input(resolution: int) -> list[nn.Module]:
    """What the published weights expect."""
    return [_Resize(resolution), Scale(127 / 255, 128 / 255, 3)]


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(group_count(channels), channels)


def _head(channels: int, classes: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)]


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


def timm_network(name: str, classes: int, channels: int) -> nn.Module:
    """A network from timm with its public weights, batch norm fixed, all parameters trained."""
    try:
        import timm
    except ImportError:
        raise InvalidValue(
            f"network is timm:{name}", "timm is not installed", 'install it: pip install "fedveil[timm]"'
        ) from None
    try:
        model: nn.Module = timm.create_model(name, pretrained=True, num_classes=classes, in_chans=channels)
    except Exception as error:  # noqa: BLE001 - timm and its hub raise many kinds
        raise InvalidValue(
            f"network is timm:{name}",
            f"timm could not build it with its public weights ({error})",
            "check the name with timm.list_models(pretrained=True), and that the weights are on this machine",
        ) from None
    return nn.Sequential(Scale(0.5, 0.25, channels), fix_batch_norm(model))
