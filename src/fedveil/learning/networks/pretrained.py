"""Networks that start from public weights: EfficientNet-Lite0 from its package, anything from timm."""

from itertools import pairwise
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from fedveil.errors import InvalidValue
from fedveil.learning.features.efficientnet import pretrained
from fedveil.learning.networks.batch_norm import fix_batch_norm, replace_batch_norm
from fedveil.learning.networks.layers import Residual, Scale

__all__ = ["efficientnet_lite0", "timm_network"]


def efficientnet_lite0(
    classes: int, resolution: int, *, trained_blocks: int = 2, group_norm: bool = False
) -> nn.Module:
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
    head = nn.Linear(source._conv_head.out_channels, classes)
    pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(_Resize(resolution), Scale(127 / 255, 128 / 255, 3), frozen, trained, *pool, head)


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
