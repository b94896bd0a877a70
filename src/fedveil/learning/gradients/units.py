"""Units of images: batches ordered by unit, and Poisson samples of units."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedveil.errors import InvalidValue

__all__ = ["Bucket", "UnitBatch", "micro_batches", "poisson_sample"]


@dataclass(frozen=True, slots=True)
class Bucket:
    """Neighbouring units that all have the same number of images."""

    first_unit: int
    units: int
    first_image: int
    images_each: int

    @property
    def last_unit(self) -> int:
        """One past the bucket's last unit."""
        return self.first_unit + self.units

    @property
    def last_image(self) -> int:
        """One past the bucket's last image."""
        return self.first_image + self.units * self.images_each

    def rows(self, tensor: Tensor, each: int = 1) -> Tensor:
        """This bucket's part of a tensor with `each` rows an image, as `(units, images_each * each, ...)`."""
        part = tensor[self.first_image * each : self.last_image * each]
        return part.view(self.units, self.images_each * each, *tensor.shape[1:])


class UnitBatch:
    """Images ordered so that each unit's images are neighbours, units with few images first.

    `order` sorts a batch into this order, `counts[u]` is unit u's number of images, and `buckets` cuts the
    batch where that number changes, so that each part is a regular array.
    """

    def __init__(self, units: Tensor) -> None:
        _, member, count = torch.unique(units, return_inverse=True, return_counts=True)
        # Stable, so that a unit's images keep their order and repeated runs see the same batch.
        by_unit = torch.argsort(member, stable=True)
        self.order = by_unit[torch.argsort(count[member[by_unit]], stable=True)]
        self.counts = torch.sort(count).values
        self.units = len(self.counts)
        self.images = len(units)
        self.buckets = tuple(self._cut())

    def _cut(self) -> Iterator[Bucket]:
        each, how_many = torch.unique_consecutive(self.counts, return_counts=True)
        unit = image = 0
        for images_each, units in zip(each.tolist(), how_many.tolist(), strict=True):
            yield Bucket(unit, units, image, images_each)
            unit, image = unit + units, image + units * images_each

    def sum(self, per_image: Tensor) -> Tensor:
        """Sum rows `(images, ...)` over each unit's images: `(units, ...)`; also of several rows an image."""
        if len(per_image) != self.images:
            per_image = per_image.reshape(self.images, -1, *per_image.shape[1:]).sum(1)
        if self.units == self.images:
            return per_image
        return torch.cat([bucket.rows(per_image).sum(1) for bucket in self.buckets])

    def repeat(self, per_unit: Tensor) -> Tensor:
        """Give each image its unit's row, for the first `len(per_unit)` units: `(units, ...)` to `(images, ...)`."""
        if self.units == self.images:
            return per_unit
        return per_unit.repeat_interleave(self.counts[: len(per_unit)].to(per_unit.device), dim=0)


def micro_batches(units: Tensor, limit: int | None) -> Iterator[Tensor]:
    """Split a batch into parts of at most `limit` images, never within a unit: image indices of each part.

    A unit with more than `limit` images comes as a part of its own, larger than the limit; the caller adds up
    its gradient over pieces.
    """
    if limit is None or len(units) <= limit:
        if len(units):
            yield torch.arange(len(units), device=units.device)
        return
    batch = UnitBatch(units)
    first = last = 0
    for count in batch.counts.tolist():
        if last > first and last + count - first > limit:
            yield batch.order[first:last]
            first = last
        last += count
    yield batch.order[first:last]


def poisson_sample(units: int, rate: float, generator: np.random.Generator) -> NDArray[np.int64]:
    """Draw each of `units` units independently with probability `rate`: the sample that the accountant prices.

    The sample may be empty. Give a cryptographically strong generator: anyone who can predict the sample knows whose
    images were used, and amplification by sampling is lost (Steinke, arXiv 2210.00597).
    """
    if not 0 < rate <= 1:
        raise InvalidValue(
            f"sampling_rate is {rate}", "it must lie in (0, 1]", "give the fraction of patients in one step"
        )
    return np.flatnonzero(generator.random(units) < rate).astype(np.int64)
