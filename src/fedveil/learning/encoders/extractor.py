"""The interface of feature extractors, and the concatenation of several."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from fedveil.errors import InvalidValue
from fedveil.lazy import later

if TYPE_CHECKING:
    import torch
else:
    torch = later("torch")

log = logging.getLogger("fedveil.site")
Images: TypeAlias = npt.NDArray[np.float32]
"""(k, channels, size, size) in [0, 1]."""
Features: TypeAlias = npt.NDArray[np.float32]
"""(k, dimension)."""

BATCH = 16
"""Images that go through a network at once; larger batches exceed the processor's cache."""


_failed: ContextVar[set[int] | None] = ContextVar("failed", default=None)


class FeatureExtractor(Protocol):
    """A fixed, public function from an image to a vector, the same at every site.

    Nothing in it may depend on private images: weights and constants are published, so the features of one patient
    reveal nothing about another, and only learning *from* them needs a budget.

    """

    @property
    def name(self) -> str:
        """Its name in a study file, such as ``"efficientnet-lite0@96+scattering"``."""
        ...

    @property
    def key(self) -> str:
        """Name with size, channels and version: features cached under one key are interchangeable."""
        ...

    @property
    def blocks(self) -> tuple[int, ...]:
        """Lengths of the parts of the vector from different extractors; their sum is ``dimension``."""
        ...

    @property
    def dimension(self) -> int:
        """Length of the vector."""
        ...

    def __call__(self, images: Images) -> Features:
        """Map images (k, channels, size, size) in [0, 1] to features (k, dimension), both float32."""
        ...


@dataclass(frozen=True, slots=True)
class Concatenation:
    """Several extractors side by side, such as one network at two resolutions."""

    parts: tuple[FeatureExtractor, ...]

    @property
    def name(self) -> str:
        """The names of the parts, joined by ``+``."""
        return "+".join(part.name for part in self.parts)

    @property
    def key(self) -> str:
        """The keys of the parts, joined by ``+``."""
        return "+".join(part.key for part in self.parts)

    @property
    def blocks(self) -> tuple[int, ...]:
        """The lengths of all parts, in order."""
        return tuple(block for part in self.parts for block in part.blocks)

    @property
    def dimension(self) -> int:
        """The sum of the lengths of all parts."""
        return sum(self.blocks)

    def __call__(self, images: Images) -> Features:
        """Concatenate the features of all parts."""
        return np.concatenate([part(images) for part in self.parts], axis=1)


@contextmanager
def failures() -> Iterator[set[int]]:
    """Collect the rows of images that an encoder failed on, and whose features are zeros instead.

    A failure may pass, such as one of time or memory, so what it led to is not for the cache.
    """
    noted: set[int] = set()
    before = _failed.set(noted)
    try:
        yield noted
    finally:
        _failed.reset(before)


def note_failures(rows: Iterable[int]) -> None:
    """Report rows to the `failures` around this call, if there is one."""
    noted = _failed.get()
    if noted is not None:
        noted.update(rows)


def checked(images: Images, channels: int) -> torch.Tensor:
    """View images as a tensor after checking an extractor's requirements.

    An image with a pixel that is not finite becomes black: an error would concern all others of its batch too.

    Raises:
        InvalidValue: not float32 of shape (k, channels, size, size).
    """
    if images.dtype != np.float32 or images.ndim != 4 or images.shape[1] != channels:
        raise InvalidValue(
            f"images have shape {images.shape} and type {images.dtype}",
            f"an extractor for {channels} channel(s) needs float32 of shape (k, {channels}, size, size)",
            "read them with the channels that the study names",
        )
    broken: npt.NDArray[np.bool_] = np.logical_not(np.isfinite(images).all(axis=(1, 2, 3)))
    if broken.any():
        log.error("%d images hold values that are not finite and count as black", broken.sum())
        note_failures(np.flatnonzero(broken).tolist())
        images = np.where(broken[:, None, None, None], np.float32(0), images)
    return torch.from_numpy(np.ascontiguousarray(images))


def resized(images: torch.Tensor, size: int) -> torch.Tensor:
    """Resample (k, channels, h, w) to (k, channels, size, size), bilinear with antialiasing."""
    if images.shape[-2:] == (size, size):
        return images
    return torch.nn.functional.interpolate(
        images, size=(size, size), mode="bilinear", align_corners=False, antialias=True
    )


def in_batches(
    function: Callable[[torch.Tensor], torch.Tensor],
    images: torch.Tensor,
    dimension: int,
    length: int = BATCH,
) -> Features:
    """Apply a function from images to features (k, dimension) to batches, in parallel on torch's number of threads.

    Each batch stays on one thread. torch would split every single operation among threads, with a barrier each time,
    at which a busy core delays all others.

    The last batch is filled up with black images. The rounding of matrix products depends on their number of rows,
    so an image's features would otherwise depend, in the last bit, on the number of other images.
    """
    features = np.empty((len(images), dimension), dtype=np.float32)

    def work(start: int) -> None:
        batch = images[start : start + length]
        with torch.inference_mode():
            filled = torch.nn.functional.pad(batch, (0, 0) * 3 + (0, length - len(batch)))
            features[start : start + length] = function(filled)[: len(batch)].numpy()

    threads, starts = torch.get_num_threads(), range(0, len(images), length)
    if threads == 1 or len(starts) < 2:
        for start in starts:
            work(start)
        return features
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            list(pool.map(work, starts))
    finally:
        torch.set_num_threads(threads)  # the workers' setting also applies to later threads
    return features
