"""What one use of a layer adds to each unit's gradient: its squared norm, and its weighted sum over units.

Book-keeping (Bu et al., arXiv 2210.00038): one backward pass leaves a contribution for every use of every
parameter. Their squared norms add up to the squared norm of each unit's gradient; once that has been turned
into clip factors, each contribution adds its weighted sum into the flat vector. A contribution holds either
the units' gradients themselves (`Kept`, where they are no larger than what they were computed from), or the
activations and output gradients (`Deferred`), of which one ordinary weight-gradient product makes the sum.
"""

import abc
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fedveil.learning.gradients.parameters import Target

__all__ = ["Contribution", "Deferred", "Kept", "merge_shared"]

_BLOCK = 1024


class Contribution(abc.ABC):
    """Gradients of units `first_unit` to `last_unit` (exclusive) with respect to one target.

    `use` numbers the use of the layer that it comes from: two uses of one parameter must be added before
    their norm is taken.
    """

    def __init__(self, target: Target, use: int, first_unit: int, last_unit: int) -> None:
        self.target, self.use = target, use
        self.first_unit, self.last_unit = first_unit, last_unit

    @abc.abstractmethod
    def squared_norms(self) -> Tensor:
        """Squared L2 norm of each unit's gradient, `(units,)`."""

    @abc.abstractmethod
    def gradients(self) -> Tensor:
        """Each unit's gradient, `(units, target.size)`."""

    @abc.abstractmethod
    def weighted_sum(self, factors: Tensor) -> Tensor:
        """Sum over units of factor times gradient; `factors` is `(units,)`, the result has `target.size` entries."""


class Kept(Contribution):
    """Gradients that are held unit by unit, `(units, *target.shape)`."""

    def __init__(self, target: Target, use: int, first_unit: int, gradients: Tensor) -> None:
        super().__init__(target, use, first_unit, first_unit + len(gradients))
        self._gradients = gradients.flatten(1)
        self._squared_norms = _squared_norms(self._gradients)

    def squared_norms(self) -> Tensor:
        """Squared L2 norm of each unit's gradient."""
        return self._squared_norms

    def gradients(self) -> Tensor:
        """Each unit's gradient."""
        return self._gradients

    def weighted_sum(self, factors: Tensor) -> Tensor:
        """Sum over units of factor times gradient."""
        return factors @ self._gradients


def _squared_norms(x: Tensor) -> Tensor:
    """Squared norms of rows, in double precision.

    PyTorch adds a row's squares up one after the other, which in single precision loses the fourth digit of a norm of
    a million entries: it is let do so with a thousand at a time.
    """
    count = x.shape[1] // _BLOCK
    blocks = x[:, : count * _BLOCK].reshape(len(x), count, _BLOCK)
    rest = torch.linalg.vector_norm(x[:, count * _BLOCK :], dim=1).double()
    total: Tensor = torch.linalg.vector_norm(blocks, dim=2).double().square().sum(1) + rest.square()
    return total


class Deferred(Contribution):
    """Gradients that are never formed: norms from Gram matrices, the weighted sum from one product."""

    def __init__(
        self,
        target: Target,
        use: int,
        units: int,
        *,
        norms: Callable[[], Tensor],
        gradients: Callable[[], Tensor],
        product: Callable[[Tensor], Tensor],
    ) -> None:
        super().__init__(target, use, 0, units)
        self._norms, self._form, self._product = norms, gradients, product

    def squared_norms(self) -> Tensor:
        """Squared L2 norm of each unit's gradient."""
        return self._norms()

    def gradients(self) -> Tensor:
        """Each unit's gradient, formed after all: only where a parameter is used more than once."""
        return self._form().flatten(1)

    def weighted_sum(self, factors: Tensor) -> Tensor:
        """Sum over units of factor times gradient."""
        return self._product(factors).flatten()


def merge_shared(contributions: Sequence[Contribution], units: int) -> list[Contribution]:
    """Replace contributions of several uses of the same parameter by their sum, unit by unit.

    The norm of a unit's gradient is that of the *sum* over all uses: adding squared norms of the parts
    would miss their inner products.
    """
    merged: list[Contribution] = []
    for group in _overlapping(contributions):
        if len({c.use for c in group}) == 1:
            merged.extend(group)
            continue
        start, stop = min(c.target.start for c in group), max(c.target.stop for c in group)
        first = group[0].gradients()
        total = torch.zeros(units, stop - start, dtype=first.dtype, device=first.device)
        for c in group:
            columns = slice(c.target.start - start, c.target.stop - start)
            total[c.first_unit : c.last_unit, columns] += c.gradients()
        merged.append(Kept(Target(start, (stop - start,), group[0].target.layer), -1, 0, total))
    return merged


def _overlapping(contributions: Sequence[Contribution]) -> list[list[Contribution]]:
    """Group contributions whose ranges overlap, directly or through others."""
    groups: list[list[Contribution]] = []
    reach = -1
    for c in sorted(contributions, key=lambda c: c.target.start):
        if c.target.start < reach:
            groups[-1].append(c)
        else:
            groups.append([c])
        reach = max(reach, c.target.stop)
    return groups
