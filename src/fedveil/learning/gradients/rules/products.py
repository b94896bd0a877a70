"""One trainable weight whose gradient is a sum of products: the part that linear and convolution rules share."""

from collections.abc import Callable

import torch
from torch import Tensor

from fedveil.learning.gradients.contributions import Deferred, Kept
from fedveil.learning.gradients.parameters import Target
from fedveil.learning.gradients.rules.arithmetic import Cost
from fedveil.learning.gradients.tape import Tape
from fedveil.learning.gradients.units import Bucket

__all__ = ["record_weight"]


def record_weight(
    tape: Tape,
    target: Target,
    use: int,
    cost: Cost,
    *,
    norms: Callable[[Bucket], Tensor],
    gradients: Callable[[Bucket], Tensor],
    product: Callable[[Tensor, int], Tensor],
) -> None:
    """Record a weight's gradients: Gram norms for the buckets where they are cheaper, kept gradients elsewhere.

    `norms(bucket)`: squared norms `(units,)`; `gradients(bucket)`: `(units, *shape)`; `product(factors, images)`:
    the gradient of the first `images` images together, each weighted by its entry of `factors`.
    """
    batch = tape.batch
    deferred = cost.deferred(batch)
    for bucket in batch.buckets[len(deferred) :]:
        tape.add(Kept(target, use, bucket.first_unit, gradients(bucket)))
    if not deferred:
        return
    images, units = deferred[-1].last_image, deferred[-1].last_unit

    def weighted(factors: Tensor) -> Tensor:
        return product(batch.repeat(factors), images)

    tape.add(
        Deferred(
            target,
            use,
            units,
            norms=lambda: torch.cat([norms(bucket) for bucket in deferred]),
            gradients=lambda: torch.cat([gradients(bucket) for bucket in deferred]),
            product=weighted,
        )
    )
