"""Features of an encoder that is not built in, computed with the file that its spec names and with nothing else."""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import cast

import numpy as np
import torch

from fedveil.errors import InvalidValue
from fedveil.learning.encoders.device import Device, Precision, current, halving, narrowed
from fedveil.learning.encoders.external.exported_graph import ExportedGraph
from fedveil.learning.encoders.external.onnx_graph import OnnxGraph
from fedveil.learning.encoders.external.pooling import pooled
from fedveil.learning.encoders.external.spec import EncoderSpec
from fedveil.learning.encoders.external.store import Store
from fedveil.learning.encoders.external.timm_module import TimmModule
from fedveil.learning.encoders.extractor import (
    Features,
    Images,
    checked,
    in_batches,
    note_failures,
    resized,
)

__all__ = ["AT_ONCE", "External", "Runner", "load_runner", "vectors"]

log = logging.getLogger("fedveil.site")
Runner = Callable[[torch.Tensor], torch.Tensor]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet: what encoders of colour images expect where nothing else is said; grey ones 0.5 and 0.25."""
AT_ONCE = 1
"""Images that an encoder sees. In larger batches a network may round, or compute, by what else is in the batch."""
_loading = threading.Lock()


@dataclass(frozen=True, slots=True)
class External:
    """An encoder by its spec; the file is read when the first features are computed, not before.

    An encoder sees one image at a time, so that none can depend on others, whatever it does. An image on which it
    fails, or for which it returns another shape or a number that is not finite, gets features of 0: one image must not
    decide what becomes of all others.

    Args:
        spec: pinned by `register`.
        channels: of the images, 1 or 3.
        precision: of the encoder; features are float32.
    """

    spec: EncoderSpec
    channels: int
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        if not self.spec.is_pinned:
            raise InvalidValue(
                f"features are {self.spec.features!r}, and the encoder's hash and length are not known",
                "a study states them before anything is computed",
                "start from the study file on a machine that holds the encoder, which fills them in",
            )
        if self.channels > int(self.spec.input_channels or 0):
            raise InvalidValue(
                f"{self.spec.features} takes grey images",
                "the study's images have 3 channels",
                "set data.channels = 1, or use an encoder for colour",
            )

    @property
    def name(self) -> str:
        """As in a study file."""
        return self.spec.features

    @property
    def key(self) -> str:
        """Everything that decides its features."""
        # Before version 2 networks of timm saw 16 images at a time.
        said = " ".join(f"{key}={value}" for key, value in self.spec.to_dict().items() if key != "name")
        name = self.spec.name if self.spec.kind == "timm" else ""
        version = 2 if self.spec.kind == "timm" else 1
        return narrowed(f"external-{version} {name} {said} x{self.channels}", self.precision)

    @property
    def blocks(self) -> tuple[int, ...]:
        """Lengths of the vector's parts."""
        return self.spec.lengths

    @property
    def dimension(self) -> int:
        """Length of the vector."""
        return self.spec.dimension

    def __call__(self, images: Images) -> Features:
        """Map images (k, channels, h, w) in [0, 1] to features (k, dimension).

        Raises:
            InvalidValue: the encoder is not registered here, was altered, or differs from the study's.
        """
        pixels = checked(images, self.channels)
        if not len(pixels):
            return np.zeros((0, self.dimension), np.float32)
        with _loading:
            runner = _stored(self.spec, current())
        features = in_batches(self._attempt(runner), pixels, self.dimension, AT_ONCE)
        broken = ~np.isfinite(features).all(1)
        if broken.any():
            log.error("%s computed no finite features of %d images", self.name, broken.sum())
            note_failures(np.flatnonzero(broken).tolist())
            features[broken] = 0
        return features

    def _attempt(self, runner: Runner) -> Runner:
        """`vectors` of one image; what is not finite stands for whatever the encoder does instead of computing."""
        function = vectors(runner, self.spec, self.precision)

        def attempt(image: torch.Tensor) -> torch.Tensor:
            try:
                return function(image)
            except Exception as error:  # noqa: BLE001 - an encoder may come from anyone, and fail on what it likes
                log.error("%s fails on an image: %s", self.name, error)
                return torch.full((AT_ONCE, self.dimension), torch.nan)

        return attempt

    def check(self) -> None:
        """Load the encoder, without an image.

        Raises:
            InvalidValue: as when features are computed.
        """
        with _loading:
            _stored(self.spec, current())


def vectors(
    runner: Runner, spec: EncoderSpec, precision: Precision = "float32"
) -> Callable[[torch.Tensor], torch.Tensor]:
    """The function from images (k, channels, h, w) in [0, 1] to pooled features (k, dimension)."""
    channels, size = int(spec.input_channels or 1), int(spec.input_size or 1)
    mean = torch.tensor(spec.mean or (MEAN if channels == 3 else (0.5,))).reshape(1, -1, 1, 1)
    std = torch.tensor(spec.std or (STD if channels == 3 else (0.25,))).reshape(1, -1, 1, 1)

    def function(batch: torch.Tensor) -> torch.Tensor:
        pixels = (resized(batch, size).expand(-1, channels, -1, -1) - mean) / std
        found = pooled(halving(runner, pixels, precision), spec.pooling, spec.prefix or 0).cpu()
        if spec.lengths and found.shape != (len(batch), spec.dimension):
            raise InvalidValue(
                f"{spec.features} returns the shape {tuple(found.shape)}",
                f"the study states {spec.dimension:,} features for an image",
                "register the encoder that the study was made with",
            )
        return found

    return function


def load_runner(content: bytes, spec: EncoderSpec) -> tuple[Runner, EncoderSpec]:
    """What runs an encoder's file, and the spec completed by it.

    Raises:
        InvalidValue: the file is not acceptable.
    """
    loaders = {"timm": TimmModule.load, "onnx": OnnxGraph.load, "exported": ExportedGraph.load}
    runner, spec = loaders[spec.kind](content, spec)
    return cast(Runner, runner), spec


@lru_cache(maxsize=2)
def _stored(spec: EncoderSpec, device: Device) -> Runner:
    runner, _ = load_runner(Store().read(spec.sha256, spec.features), spec)
    if isinstance(runner, TimmModule | ExportedGraph):
        runner.to(device.torch)
    return runner
