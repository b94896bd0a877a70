"""What rules share: exact arithmetic, and the choice between Gram matrices and instantiated gradients."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.backends import cudnn

from fedveil.learning.gradients.units import Bucket, UnitBatch

__all__ = ["Cost", "exact", "exact_products"]

# What touching one entry costs, of a Gram matrix or of a unit's gradient (written once, read twice), in
# multiply-adds of a matrix product; measured on an AVX-512 core. Speed depends on them, results do not.
_GRAM_ENTRY = 128
_KEPT_ENTRY = 200


def exact(x: Tensor) -> Tensor:
    """At least single precision: norm and sum must be of the *same* gradient, also under autocast.

    Norms computed from half-precision products could be off by more than the clip bound tolerates.
    """
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


@contextmanager
def exact_products(device: torch.device) -> Iterator[None]:
    """Products of single-precision numbers are made in single precision, whatever the caller has set.

    Autocast around the caller, TF32 (what cuDNN does unless told otherwise) or bfloat16 would make a norm and the
    product that it bounds differ in the third digit. The settings belong to the process, and are restored.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    convolutions = cudnn.flags(
        enabled=cudnn.enabled,
        benchmark=cudnn.benchmark,
        deterministic=cudnn.deterministic,
        allow_tf32=False,
    )
    try:
        with torch.autocast(device.type, enabled=False), convolutions:
            yield
    finally:
        torch.set_float32_matmul_precision(before)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What one image's weight gradient costs in a layer, to choose how its norm is computed.

    `positions`: rows of the Gram matrices; `channels`: multiply-adds per entry of them; `matrices`: how many
    there are; `product`: multiply-adds of the weight gradient; `entries`: its size.
    """

    positions: int
    channels: int
    matrices: int
    product: int
    entries: int

    def deferred(self, batch: UnitBatch) -> tuple[Bucket, ...]:
        """The leading buckets whose norms are cheaper from Gram matrices than from instantiated gradients.

        A unit of n images costs (n positions)^2 entries of Gram matrices and, once clip factors are known, its
        share of one weighted product; or n products now (in small batches, so somewhat slower), kept for the
        weighted sum (mixed ghost clipping, Bu et al., arXiv 2205.10683). Buckets come in order of n, so the
        choice changes once. A gradient is kept only where it is of the size of the activations it replaces.
        """
        chosen = []
        for bucket in batch.buckets:
            n = bucket.images_each
            gram = (n * self.positions) ** 2 * (self.channels + self.matrices * _GRAM_ENTRY)
            kept = _KEPT_ENTRY * self.entries + n * self.product // 4
            if gram > kept and self.entries <= 4 * n * self.positions * self.channels:
                break
            chosen.append(bucket)
        return tuple(chosen)
