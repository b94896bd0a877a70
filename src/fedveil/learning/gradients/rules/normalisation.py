"""Normalisations that look at one image at a time: group, instance, layer, RMS, batch norm held fixed, and mere scales.

Each ends in y = weight * z + bias with z the normalised input, so a unit's gradients are sums of g * z and of g
over the positions that share an entry: as small as the parameters, and kept.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedveil.learning.gradients.contributions import Kept
from fedveil.learning.gradients.rules.arithmetic import exact
from fedveil.learning.gradients.tape import Tape, Unchanged
from fedveil.learning.networks.layers import ScaleShift

__all__ = [
    "fixed_batch_norm_rule",
    "group_norm_rule",
    "instance_norm_rule",
    "layer_norm_rule",
    "rms_norm_rule",
    "scale_shift_rule",
]


def group_norm_rule(module: nn.GroupNorm, tape: Tape, x: Tensor) -> Tensor:
    """`nn.GroupNorm`."""
    return _grouped(module, tape, x, module.num_groups, module.eps)


def instance_norm_rule(module: nn.InstanceNorm2d, tape: Tape, x: Tensor) -> Tensor:
    """`nn.InstanceNorm1d/2d/3d` without running statistics: group norm with one channel per group."""
    return _grouped(module, tape, x, x.shape[1], module.eps)


def _grouped(
    module: nn.GroupNorm | nn.InstanceNorm2d, tape: Tape, x: Tensor, groups: int, eps: float
) -> Tensor:
    tape.check_batch(module, x, folded=True)
    use = tape.use()
    weight = None if module.weight is None else module.weight.detach()
    bias = None if module.bias is None else module.bias.detach()

    def received(per_weight: Tensor, per_bias: Tensor) -> None:
        for parameter, gradient in ((module.weight, per_weight), (module.bias, per_bias)):
            target = tape.target(parameter)
            if target is not None:
                tape.add(Kept(target, use, 0, tape.batch.sum(gradient)))

    y: Tensor = _GroupNorm.apply(  # type: ignore[no-untyped-call]
        tape.anchor, exact(x), weight, bias, groups, eps, received
    )
    return y


class _GroupNorm(torch.autograd.Function):
    """Group norm whose backward pass hands over each image's parameter gradients.

    PyTorch's own kernel reduces over images, and computes on the way what is wanted here. Seen as one image of
    `images * channels` channels, the same batch makes it return every image's sums: no second pass.
    """

    @staticmethod
    def forward(
        ctx: Any,
        _anchor: Tensor,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        groups: int,
        eps: float,
        received: Any,
    ) -> Tensor:
        images, channels = x.shape[:2]
        x = x.contiguous()
        size = x[0, 0].numel()
        y, mean, rstd = torch.native_group_norm(x, weight, bias, images, channels, size, groups, eps)
        ctx.save_for_backward(x, mean, rstd, weight)
        ctx.groups, ctx.received = groups, received
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, rstd, weight = ctx.saved_tensors
        images, channels = x.shape[:2]
        wide = images * channels
        weights = x.new_ones(wide) if weight is None else weight.repeat(images)
        into, per_weight, per_bias = torch.ops.aten.native_group_norm_backward(
            gradients[0].contiguous().view(1, wide, -1),
            x.view(1, wide, -1),
            mean.view(1, -1),
            rstd.view(1, -1),
            weights,
            1,
            wide,
            x[0, 0].numel(),
            images * ctx.groups,
            (ctx.needs_input_grad[1], True, True),
        )
        ctx.received(per_weight.view(images, channels), per_bias.view(images, channels))
        into = into.view_as(x) if ctx.needs_input_grad[1] else None
        return None, into, None, None, None, None, None


def layer_norm_rule(module: nn.LayerNorm, tape: Tape, x: Tensor) -> Tensor:
    """`nn.LayerNorm` over the trailing axes of `(images, ..., *normalized_shape)`."""
    weight = None if module.weight is None else module.weight.detach()
    bias = None if module.bias is None else module.bias.detach()
    y = functional.layer_norm(x, module.normalized_shape, weight, bias, module.eps)

    def normalised(x: Tensor) -> Tensor:
        return functional.layer_norm(x, module.normalized_shape, eps=module.eps)

    return _trailing(module, tape, x, y, normalised)


def rms_norm_rule(module: nn.RMSNorm, tape: Tape, x: Tensor) -> Tensor:
    """`nn.RMSNorm` over the trailing axes."""
    weight = None if module.weight is None else module.weight.detach()
    y = functional.rms_norm(x, module.normalized_shape, weight, module.eps)

    def normalised(x: Tensor) -> Tensor:
        return functional.rms_norm(x, module.normalized_shape, eps=module.eps)

    return _trailing(module, tape, x, y, normalised)


def _trailing(module: nn.LayerNorm | nn.RMSNorm, tape: Tape, x: Tensor, y: Tensor, normalised: Any) -> Tensor:
    """Record an affine normalisation over trailing axes: every axis between them and the images is summed."""
    tape.check_batch(module, x, folded=True)
    captured, use = Unchanged(module, x), tape.use()
    shape = tuple(module.normalized_shape)

    def received(gradient: Tensor) -> None:
        g = exact(gradient)
        for parameter, scale in ((module.weight, True), (getattr(module, "bias", None), False)):
            target = tape.target(parameter)
            if target is not None:
                term = g * normalised(exact(captured.get())) if scale else g
                summed = term.reshape(tape.batch.images, -1, *shape).sum(1)
                tape.add(Kept(target, use, 0, tape.batch.sum(summed)))

    return tape.watch(y, received)


def fixed_batch_norm_rule(module: nn.BatchNorm2d, tape: Tape, x: Tensor) -> Tensor:
    """`nn.BatchNorm*` in evaluation mode: fixed public statistics, so images do not affect each other."""
    tape.check_batch(module, x, folded=True)
    captured, use = Unchanged(module, x), tape.use()
    weight = None if module.weight is None else module.weight.detach()
    bias = None if module.bias is None else module.bias.detach()
    mean, variance = module.running_mean, module.running_var

    def received(gradient: Tensor) -> None:
        g = exact(gradient)
        for parameter, scale in ((module.weight, True), (module.bias, False)):
            target = tape.target(parameter)
            if target is not None:
                z = (
                    functional.batch_norm(exact(captured.get()), mean, variance, eps=module.eps)
                    if scale
                    else None
                )
                term = g if z is None else g * z
                tape.add(Kept(target, use, 0, tape.batch.sum(term.flatten(2).sum(2) if g.ndim > 2 else term)))

    return tape.watch(functional.batch_norm(x, mean, variance, weight, bias, eps=module.eps), received)


def scale_shift_rule(module: ScaleShift, tape: Tape, x: Tensor) -> Tensor:
    """`ScaleShift`: z is the input itself."""
    tape.check_batch(module, x, folded=True)
    captured, use = Unchanged(module, x), tape.use()
    bias = None if module.bias is None else module.bias.detach()

    def received(gradient: Tensor) -> None:
        g = exact(gradient)
        for parameter, scale in ((module.weight, True), (module.bias, False)):
            target = tape.target(parameter)
            if target is not None:
                term = (g * exact(captured.get()) if scale else g).movedim(module.axis, 1)
                tape.add(
                    Kept(target, use, 0, tape.batch.sum(term.flatten(2).sum(2) if term.ndim > 2 else term))
                )

    return tape.watch(module.applied(x, module.weight.detach(), bias), received)
