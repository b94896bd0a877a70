"""Features of an encoder that is not built in, computed with the file that its spec names and with nothing else."""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from fedveil.errors import InvalidValue
from fedveil.learning.encoders.device import Device, Precision, current, narrowed
from fedveil.learning.encoders.external.processes import Failed, Processes
from fedveil.learning.encoders.external.runner import AT_ONCE
from fedveil.learning.encoders.external.spec import EncoderSpec
from fedveil.learning.encoders.extractor import Features, Images, checked, in_batches, note_failures

__all__ = ["External"]

log = logging.getLogger("fedveil.site")
_loading = threading.Lock()


@dataclass(frozen=True, slots=True)
class External:
    """An encoder by its spec; the file is read when the first features are computed, not before.

    It computes in `Processes` of its own, where it cannot do more than fail.

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
        processes = self._processes()
        processes.check()
        features = in_batches(self._attempt(processes), pixels, self.dimension, AT_ONCE)
        broken = ~np.isfinite(features).all(1)
        if broken.any():
            log.error("%s computed no finite features of %d images", self.name, broken.sum())
            note_failures(np.flatnonzero(broken).tolist())
            features[broken] = 0
        return features

    def _attempt(self, processes: Processes) -> Callable[[torch.Tensor], torch.Tensor]:
        """Features of one image; what is not finite stands for whatever the encoder does instead of computing."""

        def attempt(image: torch.Tensor) -> torch.Tensor:
            try:
                return processes(image)
            except Failed as error:
                log.error("%s fails on an image: %s", self.name, error)
                return torch.full((AT_ONCE, self.dimension), torch.nan)

        return attempt

    def check(self) -> None:
        """Load the encoder, without an image.

        Raises:
            InvalidValue: as when features are computed.
        """
        self._processes().check()

    def _processes(self) -> Processes:
        with _loading:
            return _computing(self.spec, self.precision, current())


@lru_cache(maxsize=2)
def _computing(spec: EncoderSpec, precision: Precision, device: Device) -> Processes:
    return Processes(spec, precision, device)
