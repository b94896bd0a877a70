"""A trained model as one module, from images to class probabilities, for programs that do not have fedveil.

It computes what `TrainedModel.probabilities` computes, of built-in encoders and of every network. The encoder is in
single precision and the head in double, as here, so that both agree to some 1e-6. Images have the study's size:
resampling to an encoder's resolution is a product with two fixed matrices.
"""

import copy
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from fedveil.errors import InvalidValue
from fedveil.learning.encoders import Concatenation, FeatureExtractor, Precomputed, Whitened
from fedveil.learning.encoders.efficientnet import folded_network
from fedveil.learning.encoders.efficientnet_lite import EfficientNetLite
from fedveil.learning.encoders.pixels import Pixels
from fedveil.learning.models.findings import FindingsHead
from fedveil.learning.models.grades import GradesHead
from fedveil.learning.models.learner import Vector
from fedveil.learning.models.linear_head import ClassHead
from fedveil.learning.models.network import NetworkModel
from fedveil.learning.released.class_statistics import SMALLEST_NORM

__all__ = ["whole_head", "whole_network"]


def whole_head(
    extractor: FeatureExtractor, head: ClassHead | FindingsHead, parameters: Vector, image_size: int
) -> nn.Module:
    """Encoder and linear head: images (k, channels, size, size) in [0, 1], or embeddings (k, d), to probabilities.

    Raises:
        InvalidValue: the encoder is not one that can be written as a module.
    """
    return nn.Sequential(_encoder(extractor, image_size), _Head(head, parameters)).eval()


def whole_network(model: NetworkModel, parameters: Vector) -> nn.Module:
    """A trained network: images (k, channels, size, size) in [0, 1] to probabilities of classes or findings, (k, K)."""
    with model.loaded(parameters):
        return _Network(copy.deepcopy(model.module), parameters[: model.classes], model.findings).eval()


def _encoder(extractor: FeatureExtractor, image_size: int) -> nn.Module:
    if isinstance(extractor, Whitened):
        return _Whitened(_encoder(extractor.inner, image_size), extractor)
    if isinstance(extractor, Concatenation):
        return _Beside([_encoder(part, image_size) for part in extractor.parts])
    if isinstance(extractor, EfficientNetLite) and extractor.precision == "float32":
        return _Convolved(extractor, image_size)
    if isinstance(extractor, Pixels):
        return nn.Sequential(_Resampled(image_size, extractor.size), _Shifted(), nn.Flatten())
    if isinstance(extractor, Precomputed):
        return nn.Identity()
    raise InvalidValue(
        f"the model's features are {extractor.name}",
        "an export holds networks, and linear heads on efficientnet-lite in float32, pixels or embeddings",
        "use `fedveil predict`, which every model works with",
    )


class _Resampled(nn.Module):
    """Bilinear resampling with antialiasing, as a product with a fixed matrix along each side."""

    rows: Tensor

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        ends = torch.eye(before).reshape(before, 1, before, 1).expand(-1, -1, -1, 2)
        self.same = before == after
        scaled = nn.functional.interpolate(
            ends, size=(after, 2), mode="bilinear", align_corners=False, antialias=True
        )
        self.register_buffer("rows", scaled[:, 0, :, 0].T.contiguous())

    def forward(self, images: Tensor) -> Tensor:
        return images if self.same else self.rows @ images @ self.rows.T


class _Shifted(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images - 0.5


class _Convolved(nn.Module):
    """Mean and standard deviation over space of an EfficientNet-Lite's channels."""

    def __init__(self, extractor: EfficientNetLite, image_size: int) -> None:
        super().__init__()
        place = extractor.variant, extractor.block, extractor.size, extractor.channels, torch.device("cpu")
        self.resample = _Resampled(image_size, extractor.size)
        self.network = copy.deepcopy(folded_network(*place)).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]

    def forward(self, images: Tensor) -> Tensor:
        maps = self.network(self.resample(images) * (255 / 128) - 127 / 128)
        means = maps.mean((2, 3), keepdim=True)
        deviations = ((maps - means) ** 2).mean((2, 3)).sqrt()
        return torch.cat([means.flatten(1), deviations], dim=1)


class _Beside(nn.Module):
    def __init__(self, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([part(images) for part in self.parts], dim=1)


class _Units(nn.Module):
    """Blocks of a vector scaled to equal length, and the whole to length 1."""

    def __init__(self, blocks: Sequence[int]) -> None:
        super().__init__()
        self.blocks = list(blocks)

    def forward(self, features: Tensor) -> Tensor:
        parts = torch.split(features, self.blocks, dim=1)
        scaled = [
            part / ((part**2).sum(1, keepdim=True).sqrt().clamp(min=SMALLEST_NORM) * math.sqrt(len(parts)))
            for part in parts
        ]
        return torch.cat(scaled, dim=1)


class _Whitened(nn.Module):
    """The encoder's features, whitened with its constants; see `Whitened`."""

    mean: Tensor
    change: Tensor

    def __init__(self, inner: nn.Module, extractor: Whitened) -> None:
        super().__init__()
        mean, axes, shrinkage = extractor.constants
        self.inner, self.units = inner, _Units(extractor.inner.blocks)
        self.register_buffer("mean", torch.from_numpy(mean))
        self.register_buffer("change", torch.from_numpy(np.eye(len(mean)) - (axes.T * shrinkage) @ axes))

    def forward(self, images: Tensor) -> Tensor:
        units: Tensor = self.units(self.inner(images)).double()
        return ((units - self.mean) @ self.change).float()


class _Head(nn.Module):
    """Class probabilities of a linear head, from raw features."""

    centre: Tensor
    weights: Tensor
    offset: Tensor
    numbers: Tensor

    def __init__(self, head: ClassHead | FindingsHead, parameters: Vector) -> None:
        super().__init__()
        centre, numbers, shift, trained = head.split(parameters)
        self.findings, self.units = isinstance(head, FindingsHead), _Units(head.blocks)
        weights, offset = head.head.weights(trained).T, -shift
        if self.findings:
            offset = offset + np.log(numbers / (1 - numbers))
        elif isinstance(head, GradesHead):
            slopes = head.slopes(parameters)
            weights, offset = weights * slopes, -head.means(parameters) * slopes / 2
        held = {"centre": centre, "weights": weights, "offset": offset, "numbers": numbers}
        for name, values in held.items():
            self.register_buffer(name, torch.from_numpy(np.ascontiguousarray(values)))

    def forward(self, features: Tensor) -> Tensor:
        view = self.units(self.units(features.double()) - self.centre)
        logits = view @ self.weights + self.offset
        if self.findings:
            return torch.sigmoid(logits).float()
        if logits.shape[1] == 1:
            logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
        weighed = torch.softmax(logits, dim=1) / self.numbers
        return (weighed / weighed.sum(1, keepdim=True)).float()


class _Network(nn.Module):
    """Class probabilities of a network with its offsets of the logits."""

    offset: Tensor

    def __init__(self, module: nn.Module, offset: Vector, findings: bool) -> None:
        super().__init__()
        self.module, self.findings = module, findings
        self.register_buffer("offset", torch.from_numpy(offset.copy()))

    def forward(self, images: Tensor) -> Tensor:
        logits = self.module(images).double() + self.offset
        return (torch.sigmoid(logits) if self.findings else torch.softmax(logits, dim=1)).float()
