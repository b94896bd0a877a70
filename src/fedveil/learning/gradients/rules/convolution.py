"""Convolutions in one, two and three dimensions, transposed, grouped, depthwise, with any padding mode."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedveil.learning.gradients.contributions import Kept
from fedveil.learning.gradients.gram import Axis, patch_norms
from fedveil.learning.gradients.parameters import Target
from fedveil.learning.gradients.rules.arithmetic import Cost, exact
from fedveil.learning.gradients.rules.products import record_weight
from fedveil.learning.gradients.tape import Tape, Unchanged
from fedveil.learning.gradients.units import Bucket

__all__ = [
    "Geometry",
    "PlainWeight",
    "convolution_rule",
    "padded",
    "record_bias",
    "record_convolution",
    "transposed_convolution_rule",
]

# Units whose gradients one grouped convolution makes side by side: as many as keep about this many entries.
_GROUPED_ENTRIES = 16 * 64 * 64 * 9

_Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
_Transposed = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d


@dataclass(frozen=True, slots=True)
class Geometry:
    """How a convolution's weight meets its input; padding with zeros only."""

    weight: Tensor
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    transposed: bool = False
    output_padding: tuple[int, ...] = ()

    @property
    def settings(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], int]:
        """Stride, padding, dilation and groups, as `torch.nn.functional.conv2d` takes them."""
        return self.stride, self.padding, self.dilation, self.groups

    def weight_gradient(self, a: Tensor, g: Tensor, parallel: int = 1) -> Tensor:
        """Gradient of the weight from inputs `a` and output gradients `g`, both `(images, channels, *spatial)`.

        `parallel` > 1: the channels of that many independent convolutions side by side; their gradients come
        one after the other along the first axis.
        """
        weight = (
            self.weight if parallel == 1 else self.weight.repeat(parallel, *(1,) * (self.weight.ndim - 1))
        )
        gradient: Tensor = torch.ops.aten.convolution_backward(
            g,
            a,
            weight,
            None,
            self.stride,
            self.padding,
            self.dilation,
            self.transposed,
            self.output_padding or (0,) * len(self.stride),
            self.groups * parallel,
            (False, True, False),
        )[1]
        return gradient

    def unit_gradients(self, a: Tensor, g: Tensor) -> Tensor:
        """Each unit's gradient `(units, *weight.shape)`; `a` and `g` are `(units, images, channels, *spatial)`."""
        at_once = max(1, _GROUPED_ENTRIES // self.weight.numel())
        parts = []
        for first in range(0, len(a), at_once):
            wide_a, wide_g = (x[first : first + at_once].transpose(0, 1).flatten(1, 2) for x in (a, g))
            parts.append(self.weight_gradient(wide_a, wide_g, parallel=min(at_once, len(a) - first)))
        return torch.cat(parts).view(len(a), *self.weight.shape)

    def axes(self, wide: Tensor, narrow: Tensor) -> tuple[Axis, ...]:
        """The spatial axes of the sum that makes the weight gradient; its positions are those of `narrow`."""
        sizes = (
            wide.shape[2:],
            narrow.shape[2:],
            self.weight.shape[2:],
            self.stride,
            self.dilation,
            self.padding,
        )
        return tuple(Axis(*axis) for axis in zip(*sizes, strict=True))


class PlainWeight:
    """The chain rule from the weight that a convolution uses to the parameter that is trained: here the same."""

    def additions(self, images_each: int) -> int:  # noqa: ARG002
        """Longest run of additions behind `excess`, whose rounding errors the norms make up for.

        It follows from the unit's own number of images: nobody's norm may depend on who else is in the batch.
        """
        return 0

    def scale_outputs(self, g: Tensor) -> Tensor:
        """Output gradients as the Gram matrices take them."""
        return g

    def excess(self, first_unit: int, last_unit: int) -> Tensor | float:  # noqa: ARG002
        """What the Gram norms count too much, for each unit."""
        return 0.0

    def pull_back(self, gradients: Tensor) -> Tensor:
        """Gradients with respect to the parameter, from gradients with respect to the weight used."""
        return gradients


def convolution_rule(module: _Convolution, tape: Tape, x: Tensor) -> Tensor:
    """`nn.Conv1d`, `nn.Conv2d`, `nn.Conv3d`, also on several rows for each image."""
    each = tape.check_batch(module, x, folded=True)
    weight = module.weight.detach()
    bias = None if module.bias is None else module.bias.detach()
    captured, use = Unchanged(module, x), tape.use()

    def received(gradient: Tensor) -> None:
        record_bias(tape, module, use, gradient)
        target = tape.target(module.weight)
        if target is not None:
            a, geometry = padded(module, exact(captured.get()), exact(weight))
            record_convolution(tape, target, use, geometry, a, exact(gradient), PlainWeight(), each)

    return tape.watch(module._conv_forward(x, weight, bias), received)


def transposed_convolution_rule(
    module: _Transposed, tape: Tape, x: Tensor, output_size: list[int] | None = None
) -> Tensor:
    """`nn.ConvTranspose1d`, `nn.ConvTranspose2d`, `nn.ConvTranspose3d`."""
    tape.check_batch(module, x)
    dims = len(module.kernel_size)
    weight = module.weight.detach()
    bias = None if module.bias is None else module.bias.detach()
    captured, use = Unchanged(module, x), tape.use()
    stride, padding, dilation = (
        _integers(module.stride),
        _integers(module.padding),
        _integers(module.dilation),
    )
    extra = module._output_padding(
        x, output_size, list(stride), list(padding), list(module.kernel_size), dims, list(dilation)
    )
    geometry = Geometry(exact(weight), stride, padding, dilation, module.groups, True, _integers(extra))

    def received(gradient: Tensor) -> None:
        record_bias(tape, module, use, gradient)
        target = tape.target(module.weight)
        if target is not None:
            a, g = exact(captured.get()), exact(gradient)
            record_convolution(tape, target, use, geometry, a, g, PlainWeight())

    convolve: Callable[..., Tensor] = getattr(functional, f"conv_transpose{dims}d")
    y = convolve(x, weight, bias, stride, padding, geometry.output_padding, module.groups, dilation)
    return tape.watch(y, received)


def padded(module: _Convolution, x: Tensor, weight: Tensor) -> tuple[Tensor, Geometry]:
    """The input as a convolution that pads with zeros sees it, and that convolution."""
    pads = list(module._reversed_padding_repeated_twice)
    symmetric = module.padding_mode == "zeros" and pads[::2] == pads[1::2]
    padding = tuple(pads[::-2]) if symmetric else (0,) * len(module.kernel_size)
    if not symmetric:
        x = functional.pad(
            x, pads, mode="constant" if module.padding_mode == "zeros" else module.padding_mode
        )
    return x, Geometry(weight, _integers(module.stride), padding, _integers(module.dilation), module.groups)


def record_convolution(
    tape: Tape,
    target: Target,
    use: int,
    geometry: Geometry,
    a: Tensor,
    g: Tensor,
    chain: PlainWeight,
    each: int = 1,
) -> None:
    """Record the weight of a convolution with inputs `a` and output gradients `g`, `(rows, channels, *spatial)`.

    There are `each` rows for each image, which are more positions of the same sum.
    """
    # A transposed convolution's weight gradient is a convolution's with the two sides exchanged.
    wide, narrow = (g, a) if geometry.transposed else (a, g)
    axes, groups = geometry.axes(wide, narrow), geometry.groups

    def norms(bucket: Bucket) -> Tensor:
        x, y = bucket.rows(wide, each), chain.scale_outputs(bucket.rows(narrow, each))
        more = chain.additions(bucket.images_each)
        by_group = patch_norms(_by_group(x, groups), _by_group(y, groups), axes, more)
        total = by_group.view(bucket.units, groups).sum(1)
        return total - chain.excess(bucket.first_unit, bucket.last_unit)

    def gradients(bucket: Bucket) -> Tensor:
        return chain.pull_back(geometry.unit_gradients(bucket.rows(a, each), bucket.rows(g, each)))

    def product(factors: Tensor, first: int) -> Tensor:
        rows = factors if each == 1 else factors.repeat_interleave(each)
        scaled = g[: first * each] * rows.view(-1, *(1,) * (g.ndim - 1))
        return chain.pull_back(geometry.weight_gradient(a[: first * each], scaled))

    entries = geometry.weight.numel()
    cost = Cost(
        positions=each * math.prod(axis.pitch() for axis in axes),
        channels=math.prod(len(axis.phases()) for axis in axes) * wide.shape[1] + narrow.shape[1],
        matrices=groups,
        product=each * narrow[0, 0].numel() * entries,
        entries=entries,
    )
    record_weight(tape, target, use, cost, norms=norms, gradients=gradients, product=product)


def record_bias(tape: Tape, module: nn.Module, use: int, gradient: Tensor) -> None:
    """Record a convolution's bias: the sum of the output gradient over positions."""
    target = tape.target(getattr(module, "bias", None))
    if target is not None:
        tape.add(Kept(target, use, 0, tape.batch.sum(exact(gradient).flatten(2).sum(2))))


def _by_group(x: Tensor, groups: int) -> Tensor:
    """`(units, images, channels, ...)` as `(units * groups, images, channels / groups, ...)`."""
    if groups == 1:
        return x
    units, images, channels, *spatial = x.shape
    return x.reshape(units, images, groups, channels // groups, *spatial).transpose(1, 2).flatten(0, 1)


def _integers(value: tuple[int, ...] | list[int] | str) -> tuple[int, ...]:
    """A setting of one integer an axis."""
    return tuple(int(v) for v in value)
