"""Networks trained from scratch: a small CNN, also of volumes, ResNet-18 and DenseNet-121, all with group norm."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from fedveil.learning.networks.batch_norm import group_count
from fedveil.learning.networks.layers import Residual, Scale, WeightStandardizedConv2d

__all__ = ["cnn", "cnn3d", "densenet121", "resnet18"]

Convolution = Callable[..., nn.Conv2d]


def cnn(classes: int, channels: int, *, standardize: bool = True) -> nn.Module:
    """Three convolutions of 32, 64 and 128 channels, each with group norm, ReLU and pooling; 94,000 parameters."""
    layers: list[nn.Module] = [_scale(channels)]
    inputs = channels
    for outputs in (32, 64, 128):
        layers += [
            _convolution(standardize)(inputs, outputs, 3, padding=1),
            *_activated(outputs),
            nn.MaxPool2d(2),
        ]
        inputs = outputs
    return nn.Sequential(*layers, *_head(inputs, classes))


def cnn3d(classes: int, slices: int) -> nn.Module:
    """Three convolutions of 8, 16 and 32 channels, each with group norm, ReLU and pooling; 18,000 parameters.

    It takes volumes `(k, slices, size, size)`. Channels end in their maximum: a small lesion is somewhere.
    """
    layers: list[nn.Module] = [Scale(0.5, 0.25, slices), nn.Unflatten(1, (1, slices))]
    inputs, depth = 1, slices
    for outputs in (8, 16, 32):
        along = 2 if depth >= 4 else 1  # few slices are not pooled away
        layers += [
            nn.Conv3d(inputs, outputs, 3, padding=1, bias=False),
            *_activated(outputs),
            nn.MaxPool3d((along, 2, 2)),
        ]
        inputs, depth = outputs, depth // along
    return nn.Sequential(*layers, nn.AdaptiveMaxPool3d(1), nn.Flatten(), nn.Linear(inputs, classes))


def resnet18(classes: int, channels: int, image_size: int, *, standardize: bool = True) -> nn.Module:
    """ResNet-18 (He et al., arXiv 1512.03385): eight blocks of two convolutions, 64 to 512 channels."""
    convolution = _convolution(standardize)
    layers: list[nn.Module] = [_scale(channels), *_stem(convolution, channels, image_size)]
    inputs = 64
    for outputs, stride in ((64, 1), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1)):
        body = nn.Sequential(
            convolution(inputs, outputs, 3, stride, 1),
            *_activated(outputs),
            convolution(outputs, outputs, 3, 1, 1),
            _norm(outputs),
        )
        shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            shortcut = nn.Sequential(convolution(inputs, outputs, 1, stride), _norm(outputs))
        layers += [Residual(body, shortcut), nn.ReLU()]
        inputs = outputs
    return nn.Sequential(*layers, *_head(inputs, classes))


def densenet121(classes: int, channels: int, image_size: int, *, standardize: bool = True) -> nn.Module:
    """DenseNet-121 (Huang et al., arXiv 1608.06993): 58 small layers, each of which sees all before it in its block."""
    convolution, growth = _convolution(standardize), 32
    layers: list[nn.Module] = [_scale(channels), *_stem(convolution, channels, image_size)]
    width = 64
    for block, depth in enumerate((6, 12, 24, 16)):
        for _ in range(depth):
            layers.append(_Dense(width, growth, convolution))
            width += growth
        if block < 3:
            layers += [*_normalised(width), convolution(width, width // 2, 1), nn.AvgPool2d(2)]
            width //= 2
    return nn.Sequential(*layers, *_normalised(width), *_head(width, classes))


class _Dense(nn.Module):
    """One layer of a dense block: its input, joined by `growth` new channels."""

    def __init__(self, inputs: int, growth: int, convolution: Convolution) -> None:
        super().__init__()
        self.new = nn.Sequential(
            *_normalised(inputs),
            convolution(inputs, 4 * growth, 1),
            *_activated(4 * growth),
            convolution(4 * growth, growth, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Append the new channels."""
        return torch.cat([x, self.new(x)], 1)


def _scale(channels: int) -> Scale:
    """From [0, 1] to about zero mean and unit variance, whatever the images."""
    return Scale(0.5, 0.25, channels)


def _convolution(standardize: bool) -> Convolution:
    """Convolutions without bias: a norm follows."""
    return partial(WeightStandardizedConv2d if standardize else nn.Conv2d, bias=False)


def _stem(convolution: Convolution, channels: int, image_size: int) -> list[nn.Module]:
    """The first layers, to 64 channels: they halve the resolution as often as the image size affords."""
    if image_size < 64:
        return [convolution(channels, 64, 3, 1, 1), *_activated(64)]
    if image_size < 128:
        return [convolution(channels, 64, 3, 2, 1), *_activated(64)]
    return [convolution(channels, 64, 7, 2, 3), *_activated(64), nn.MaxPool2d(3, 2, 1)]


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(group_count(channels), channels)


def _activated(channels: int) -> list[nn.Module]:
    """What follows a convolution."""
    return [_norm(channels), nn.ReLU()]


_normalised = _activated  # what precedes one, in a network that normalises first


def _head(width: int, classes: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes)]
