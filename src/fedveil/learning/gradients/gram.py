"""Norms of units' weight gradients from Gram matrices, without forming a gradient or unfolding a patch.

A unit's weight gradient is a sum over positions p of outer products, G = sum_p g_p a_p^T, so
||G||^2 = sum_pq <g_p, g_q> <a_p, a_q> (Goodfellow, arXiv 1510.01799). For a convolution a_p is the patch under
the kernel at p, and the inner product of two patches is a sum over kernel offsets d of inner products of raw
activations: the Gram matrix of patches is sum_d A[p + d, q + d] with A the Gram matrix of the activations.
On a grid with row pitch Q the shift by d is a shift of A's flat memory by (d_1 Q + d_2)(N + 1): a contiguous
slice. Sums over the axes' offsets separate, as in a box filter. One zero band per axis serves as the padding
of both sides, since a shift off one side wraps into it. Strides split the activations into phases.

Terms may cancel, and the rounding error is then much larger than the norm, which would let a unit exceed the clip
bound. Norms are therefore rounded *up*, by what the additions may have lost (Higham, Accuracy and Stability of
Numerical Algorithms, section 3.1): an error of at most n u S^2 with n additions in a row, u the unit roundoff and S
= sum_p |g_p| |a_p|, and S^2 <= sum_p |g_p|^2 sum_p |a_p|^2. Where S is large beside the norm, the factor that
follows is small enough to also cover what rounding does to the weighted product.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Axis", "lost", "matrix_norms", "patch_norms"]

# Gram matrices are made for few units at a time, so that they stay in the processor's cache.
_CHUNK_ENTRIES = {"cpu": 400_000, "cuda": 1 << 26}
# Additions in a row in PyTorch's sum over all pairs of positions, which adds up parts: with room to spare.
_SUM = 64


@dataclass(frozen=True, slots=True)
class Axis:
    """One spatial axis: output p under kernel tap i reads input p * stride + i * dilation - padding."""

    inputs: int
    outputs: int
    taps: int
    stride: int
    dilation: int
    padding: int

    def phases(self) -> dict[int, list[int]]:
        """Kernel offsets by phase r: output p reads entry p + offset of inputs r, r + stride, r + 2 stride, ..."""
        phases: dict[int, list[int]] = {}
        for tap in range(self.taps):
            offset, phase = divmod(tap * self.dilation - self.padding, self.stride)
            phases.setdefault(phase, []).append(offset)
        return phases

    def pitch(self) -> int:
        """Length of the axis with its zero band: every shift off either side lands inside the band."""
        pitch = self.outputs
        for phase, offsets in self.phases().items():
            entries = max(0, -(-(self.inputs - phase) // self.stride))
            pitch = max(pitch, entries + max(0, -min(offsets)), self.outputs + max(0, max(offsets)))
        return pitch


def matrix_norms(a: Tensor, g: Tensor, more: int = 0) -> Tensor:
    """Squared norms of sum_p g_p a_p^T, rounded up.

    `a` is `(units, positions, inputs)`, `g` `(units, positions, outputs)`. `more` is the longest run of additions
    behind what the caller is going to subtract.
    """
    (_, positions, inputs), outputs = a.shape, g.shape[2]
    if positions == 1 and not more:
        return a.square().sum((1, 2)) * g.square().sum((1, 2))  # one product: nothing cancels
    norms = [
        (torch.bmm(x, x.mT).mul_(torch.bmm(y, y.mT))).sum((1, 2)) for x, y in _chunks((a, g), positions**2)
    ]
    return torch.cat(norms) + lost(a, g, inputs + outputs + positions + more)


def patch_norms(a: Tensor, g: Tensor, axes: tuple[Axis, ...], more: int = 0) -> Tensor:
    """Squared norms of units' convolution weight gradients, rounded up.

    `a`: `(units, images, in_channels, *inputs)`, `g`: `(units, images, out_channels, *outputs)`, one group of
    channels. A unit's images are more positions of the same sum. `more` is as in `matrix_norms`.
    """
    if all(axis.taps == 1 and axis.padding == 0 for axis in axes):
        read = _at(a, [slice(0, axis.outputs * axis.stride, axis.stride) for axis in axes])
        return matrix_norms(_positions_last(read).mT, _positions_last(g).mT, more)
    pitches = tuple(axis.pitch() for axis in axes)
    positions = a.shape[1] * math.prod(pitches)
    norms = [_patch_norms(x, y, axes, pitches) for x, y in _chunks((a, g), positions**2)]
    additions = a.shape[2] + g.shape[2] + math.prod(axis.taps for axis in axes) + g[0, :, 0].numel()
    reads = math.prod(max(len(offsets) for offsets in axis.phases().values()) for axis in axes)
    return torch.cat(norms) + reads * lost(a, g, additions + more)


def lost(a: Tensor, g: Tensor, additions: int) -> Tensor:
    """What rounding may have taken from squared norms with so many `additions` in a row.

    `a` and `g` are `(units, ...)`, whatever the order of their entries.
    """
    scale = torch.finfo(a.dtype).eps / 2 * (additions + _SUM)
    return scale * a.flatten(1).square().sum(1) * g.flatten(1).square().sum(1)


def _patch_norms(a: Tensor, g: Tensor, axes: tuple[Axis, ...], pitches: tuple[int, ...]) -> Tensor:
    """`patch_norms` of one chunk of units, all Gram matrices at once."""
    outer = _gram(_on_grid(g, pitches))
    total = outer.new_zeros(len(outer))
    step = math.isqrt(outer.shape[1]) + 1  # one position further along both axes of the matrix
    for phases in itertools.product(*(axis.phases().items() for axis in axes)):
        read = _at(
            a, [slice(phase, None, axis.stride) for (phase, _), axis in zip(phases, axes, strict=True)]
        )
        inner = _gram(_on_grid(read, pitches))
        for k, (_, offsets) in enumerate(phases):
            unit = step * math.prod(pitches[k + 1 :])
            inner = _shifted_sum(inner, [offset * unit for offset in offsets])
        total += inner.mul_(outer).sum(1)
    return total


def _on_grid(x: Tensor, pitches: tuple[int, ...]) -> Tensor:
    """Lay `(units, images, channels, *spatial)` out as `(units, channels, positions)` on the zero-banded grid."""
    units, images, channels, *spatial = x.shape
    if tuple(spatial) == pitches:
        return _positions_last(x)
    grid = x.new_zeros(units, channels, images, *pitches)
    _at(grid, [slice(0, n) for n in spatial]).copy_(x.transpose(1, 2))
    return grid.flatten(2)


def _at(x: Tensor, slices: list[slice]) -> Tensor:
    """The last axes, sliced: a view."""
    for axis, part in enumerate(slices, x.ndim - len(slices)):
        x = x[(slice(None),) * axis + (part,)]
    return x


def _positions_last(x: Tensor) -> Tensor:
    """`(units, images, channels, *spatial)` as `(units, channels, images * spatial)`."""
    return x.transpose(1, 2).flatten(2)


def _gram(x: Tensor) -> Tensor:
    """Gram matrices of `(units, channels, positions)` as flat rows, `(units, positions * positions)`."""
    return torch.bmm(x.mT, x).flatten(1)


def _shifted_sum(x: Tensor, shifts: list[int]) -> Tensor:
    """sum over s of x[:, t + s], reading zeros outside: a sparse box filter along flat memory."""
    if shifts == [0]:
        return x
    n = x.shape[1]
    base, *others = sorted(shifts, key=abs)
    total = _shift(x, base)
    for shift in others:
        low, high = max(0, -shift), min(n, n - shift)
        if low < high:
            total[:, low:high] += x[:, low + shift : high + shift]
    return total


def _shift(x: Tensor, shift: int) -> Tensor:
    """x[:, t + shift], reading zeros outside, as a new tensor."""
    if shift == 0:
        return x.clone()
    shifted = torch.zeros_like(x)
    if abs(shift) < x.shape[1]:
        if shift > 0:
            shifted[:, :-shift] = x[:, shift:]
        else:
            shifted[:, -shift:] = x[:, :shift]
    return shifted


def _chunks(tensors: tuple[Tensor, Tensor], entries: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Both tensors a few units at a time, so that one chunk's Gram matrix has about the device's chunk size."""
    a, g = tensors
    size = max(1, _CHUNK_ENTRIES.get(a.device.type, 1 << 26) // entries)
    for first in range(0, len(a), size):
        yield a[first : first + size], g[first : first + size]
