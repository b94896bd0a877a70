"""Layers that PyTorch lacks: weight-standardised convolution, batch norm with fixed statistics, public scaling."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = [
    "Centred",
    "FixedBatchNorm1d",
    "FixedBatchNorm2d",
    "FixedBatchNorm3d",
    "MeanAndDeviation",
    "Residual",
    "Scale",
    "ScaleShift",
    "WeightStandardizedConv2d",
]


class WeightStandardizedConv2d(nn.Conv2d):
    """Convolution with each filter centred and scaled to unit variance (Qiao et al., arXiv 1903.10520).

    Meant to be followed by a normalisation, which makes the filter's scale irrelevant. Together with group
    norm it makes private training of residual networks markedly better (De et al., arXiv 2204.13650).
    """

    eps = 1e-5

    def standardized(self) -> tuple[Tensor, Tensor]:
        """The filters u = (W - mean) c used, and c = 1 / sqrt(var + eps) of each, `(out_channels, 1, 1, 1)`."""
        variance, mean = torch.var_mean(self.weight, (1, 2, 3), correction=0, keepdim=True)
        scale = torch.rsqrt(variance + self.eps)
        return (self.weight - mean) * scale, scale

    def forward(self, x: Tensor) -> Tensor:
        """Convolve `(images, channels, height, width)` with the standardised filters."""
        y: Tensor = self._conv_forward(x, self.standardized()[0], self.bias)
        return y


class _Fixed(nn.Module):
    """Stays in evaluation mode, whatever the model around does."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.training = False

    def train(self, mode: bool = True) -> "_Fixed":  # noqa: ARG002 - training mode is what must not happen
        """Do nothing but stay in evaluation mode."""
        super().train(False)
        return self


class FixedBatchNorm1d(_Fixed, nn.BatchNorm1d):
    """Batch norm that always uses its stored, public statistics: it never looks at the batch."""


class FixedBatchNorm2d(_Fixed, nn.BatchNorm2d):
    """Batch norm that always uses its stored, public statistics: it never looks at the batch."""


class FixedBatchNorm3d(_Fixed, nn.BatchNorm3d):
    """Batch norm that always uses its stored, public statistics: it never looks at the batch."""


class MeanAndDeviation(nn.Module):
    """Mean and standard deviation over space of each channel, `(images, 2 * channels)`."""

    eps = 1e-6

    def forward(self, x: Tensor) -> Tensor:
        """All means, then all deviations; eps keeps the gradient finite where a channel is constant."""
        variance, mean = torch.var_mean(x, (2, 3), correction=0)
        return torch.cat([mean, (variance + self.eps).sqrt()], 1)


class Centred(nn.Module):
    """Blocks of features scaled to unit length, a public centre subtracted, and brought to one length again.

    Medical images share one large mean, in which the directions where classes differ drown. The centre is 0 until
    what a study releases about its classes sets it; see `fedveil.learning.released.class_statistics`.

    Attributes:
        blocks: lengths of consecutive blocks of features.
        length: of what comes out.
    """

    centre: Tensor

    def __init__(self, blocks: Sequence[int], length: float) -> None:
        super().__init__()
        self.blocks, self.length = list(blocks), length
        self.register_buffer("centre", torch.zeros(sum(self.blocks)))

    def unit(self, x: Tensor) -> Tensor:
        """Features `(images, features)` with all blocks of one length, 1 in total."""
        parts = [functional.normalize(part, dim=1) for part in torch.split(x, self.blocks, 1)]
        return torch.cat(parts, 1) / math.sqrt(len(parts))

    def forward(self, x: Tensor) -> Tensor:
        """Scale, centre, and scale again."""
        return self.length * self.unit(self.unit(x) - self.centre)


class ScaleShift(nn.Module):
    """Each channel times a trained number, plus another one unless ``bias`` is None: y_c = weight_c x_c + bias_c.

    Attributes:
        axis: of the channels, 1 or -1.
    """

    bias: nn.Parameter | None

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter | None, axis: int) -> None:
        super().__init__()
        self.weight, self.axis = weight, axis
        self.register_parameter("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """Scale and shift `(images, ...)`."""
        return self.applied(x, self.weight, self.bias)

    def applied(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The forward pass with other numbers."""
        shape = (-1, *(1,) * (x.ndim - 2)) if self.axis == 1 else (-1,)
        y = x * weight.view(shape)
        return y if bias is None else y + bias.view(shape)


class Residual(nn.Module):
    """Sum of two paths: `body(x) + shortcut(x)`."""

    def __init__(self, body: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.body, self.shortcut = body, shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Add the paths."""
        total: Tensor = self.body(x) + self.shortcut(x)
        return total


class Scale(nn.Module):
    """Public input scaling: `(x - mean) / std`, a grey image repeated to as many channels as are wanted.

    Constants are fixed in the source, never measured on anyone's images.
    """

    def __init__(self, mean: float, std: float, channels: int) -> None:
        super().__init__()
        self.mean, self.std, self.channels = mean, std, channels

    def forward(self, x: Tensor) -> Tensor:
        """Scale images `(images, channels, height, width)` with values in [0, 1]."""
        scaled = (x - self.mean) / self.std
        return scaled.expand(-1, self.channels, -1, -1) if x.shape[1] == 1 else scaled
