"""Weight-standardised convolution: what the convolution uses is each filter, centred and scaled.

With filters W_o of K entries, c_o = 1 / sqrt(var(W_o) + eps) and u_o = (W_o - mean(W_o)) c_o, a gradient G_o
with respect to u_o becomes c_o (G_o - mean(G_o) - u_o <G_o, u_o> / K) with respect to W_o. Its squared norm is

    c_o^2 (||G_o||^2 - <G_o, 1>^2 / K - <G_o, u_o>^2 (2 - ||u_o||^2 / K) / K):

<G_o, u_o> is the inner product of the layer's output and output gradient, <G_o, 1> that of a box filter of
the input and the output gradient, and Gram matrices give the first term. Nothing is instantiated.
"""

import torch
from torch import Tensor
from torch.nn import functional

from fedveil.learning.gradients.rules.arithmetic import exact
from fedveil.learning.gradients.rules.convolution import (
    Geometry,
    PlainWeight,
    padded,
    record_bias,
    record_convolution,
)
from fedveil.learning.gradients.tape import Tape, Unchanged
from fedveil.learning.networks.layers import WeightStandardizedConv2d

__all__ = ["standardised_convolution_rule"]


def standardised_convolution_rule(module: WeightStandardizedConv2d, tape: Tape, x: Tensor) -> Tensor:
    """`WeightStandardizedConv2d`."""
    tape.check_batch(module, x)
    captured, use = Unchanged(module, x), tape.use()
    with torch.no_grad():
        filters, scale = module.standardized()
    bias = None if module.bias is None else module.bias.detach()
    outputs: list[Unchanged] = []

    def received(gradient: Tensor) -> None:
        record_bias(tape, module, use, gradient)
        target = tape.target(module.weight)
        if target is None:
            return
        a, geometry = padded(module, exact(captured.get()), exact(filters))
        g = exact(gradient)
        y = outputs[0].intact()
        if y is None or y.dtype != g.dtype:
            y = functional.conv2d(a, geometry.weight, None, *geometry.settings)
        elif bias is not None:
            y = y - bias.view(-1, 1, 1)
        record_convolution(tape, target, use, geometry, a, g, _Standardised(tape, geometry, scale, a, g, y))

    y = tape.watch(module._conv_forward(x, filters, bias), received)
    outputs.append(Unchanged(module, y))
    return y


class _Standardised(PlainWeight):
    """The chain rule from the filters that are used to the filters that are trained."""

    def __init__(
        self, tape: Tape, geometry: Geometry, scale: Tensor, a: Tensor, g: Tensor, y: Tensor
    ) -> None:
        self._filters, self._scale = geometry.weight, scale
        self._fan_in = geometry.weight[0].numel()
        self._channels, self._positions = a.shape[1], g[0, 0].numel()
        g, groups = g.flatten(2), geometry.groups
        channels = _grouped(a, groups).sum(2)
        box = a.new_ones(groups, 1, *geometry.weight.shape[2:])
        boxed = functional.conv2d(channels, box, None, *geometry.settings).flatten(2)
        with_one = (_grouped(g, groups) * boxed[:, :, None]).sum(3).flatten(1)
        with_filter = (g * y.flatten(2)).sum(2)
        per_entry = self._filters.square().flatten(1).mean(1)
        removed = tape.batch.sum(with_one).square() + tape.batch.sum(with_filter).square() * (2 - per_entry)
        self._excess = (removed * scale.flatten().square()).sum(1) / self._fan_in

    def additions(self, images_each: int) -> int:
        """Twice what one unit's sums add up, since a relative error of a square is doubled."""
        return 2 * (self._fan_in + self._channels + 2 * images_each * self._positions)

    def scale_outputs(self, g: Tensor) -> Tensor:
        """Output gradients `(units, images, channels, ...)` times c_o."""
        return g * self._scale.view(-1, 1, 1)

    def excess(self, first_unit: int, last_unit: int) -> Tensor | float:
        """What the Gram norms of scaled output gradients count too much, for each unit."""
        return self._excess[first_unit:last_unit]

    def pull_back(self, gradients: Tensor) -> Tensor:
        """Gradients `(..., *weight.shape)` with respect to the trained filters."""
        axes = (-3, -2, -1)
        along = (gradients * self._filters).mean(axes, keepdim=True)
        return (gradients - gradients.mean(axes, keepdim=True) - self._filters * along) * self._scale


def _grouped(x: Tensor, groups: int) -> Tensor:
    """`(images, channels, ...)` as `(images, groups, channels / groups, ...)`."""
    return x.reshape(x.shape[0], groups, x.shape[1] // groups, *x.shape[2:])
