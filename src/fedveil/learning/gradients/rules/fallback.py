"""Layers without a rule: samplers that their owner registered with Opacus, and else one unit after the other.

The fallback is correct for every layer that treats images one by one, whatever it computes inside: it runs the layer
once per unit, with a copy of its parameters for each, and lets autograd do the rest. It is slow. A trial (`calls`)
determines which arguments are split by unit; the others are passed unchanged.
"""

import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from fedveil.errors import InvalidValue
from fedveil.learning.gradients.contributions import Kept
from fedveil.learning.gradients.rules.arithmetic import exact
from fedveil.learning.gradients.tape import Rule, Tape, Unchanged
from fedveil.learning.gradients.trial.calls import BATCH_FIRST, Leaf, Leaves, brief, cure

__all__ = ["registered_rule", "unit_by_unit_rule"]

Sampler = Callable[..., Mapping[nn.Parameter, Tensor]]


def registered_rule(module: nn.Module) -> Rule | None:
    """A rule around the sampler that a user registered with Opacus for exactly this type of layer.

    Opacus' own samplers are left out: they differ in which axis is the images. A user who registered one has
    imported Opacus; it is never imported here.
    """
    opacus: Any = sys.modules.get("opacus.grad_sample")
    sampler: Sampler | None = opacus and opacus.GradSampleModule.GRAD_SAMPLERS.get(type(module))
    owner = getattr(sampler, "__module__", "")
    if sampler is None or owner.startswith("opacus.") or any(True for _ in module.children()):
        return None

    def rule(module: nn.Module, tape: Tape, *inputs: Tensor) -> Tensor:
        for x in inputs:
            tape.check_batch(module, x)
        captured, use = [Unchanged(module, x) for x in inputs], tape.use()
        frozen = {name: p.detach() for name, p in module.named_parameters()}

        def received(gradient: Tensor) -> None:
            activations = [x.get() for x in captured]
            for parameter, gradients in sampler(module, activations, gradient).items():
                target = tape.target(parameter)
                if target is not None:
                    _require_rows(module, gradients, (tape.batch.images, *parameter.shape))
                    tape.add(Kept(target, use, 0, tape.batch.sum(exact(gradients))))

        y: Tensor = _run(module, tape, frozen, inputs, {})
        return tape.watch(y, received)

    return rule


def unit_by_unit_rule(module: nn.Module, tape: Tape, *args: Any, **kwargs: Any) -> Any:
    """Any module, with everything inside it, run once for each unit."""
    batch, use, call = tape.batch, tape.use(), tape.current
    assert call is not None
    assert call.results is not None
    values, structure = tree_flatten((args, kwargs))
    parts: list[list[Any]] = []
    for bucket in batch.buckets:
        for unit in range(bucket.first_unit, bucket.last_unit):
            first = bucket.first_image + (unit - bucket.first_unit) * bucket.images_each
            mine = [
                _of_unit(leaf, value, first, bucket.images_each)
                for leaf, value in zip(call.arguments.leaves, values, strict=True)
            ]
            parameters = {name: _own(tape, p, use, unit) for name, p in module.named_parameters()}
            outputs = tree_flatten(_run(module, tape, parameters, *tree_unflatten(mine, structure)))
            call.results.require(*outputs, bucket.images_each)
            parts.append(outputs[0])
    return _joined(call.results, parts)


class _Bare(nn.Module):
    """A module without the rule that stands in for its forward pass, and without hooks, which have run already."""

    def __init__(self, inner: nn.Module, original: Callable[..., Any]) -> None:
        super().__init__()
        self.inner = inner
        self._original = original

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The module's own forward pass."""
        return self._original(*args, **kwargs)


def _run(
    module: nn.Module,
    tape: Tape,
    parameters: dict[str, Tensor],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """The module's own forward pass with other parameters."""
    bare = _Bare(module, tape.originals[module])
    try:
        return torch.func.functional_call(
            bare, {f"inner.{name}": p for name, p in parameters.items()}, args, kwargs
        )
    except InvalidValue:
        raise
    except Exception as error:
        raise InvalidValue(
            f"a {type(module).__name__} layer cannot be run by patient ({type(error).__name__}: {brief(error)})",
            "a layer without a rule of its own runs on one patient's images at a time",
            cure(module, "let it take any number of images, and find them only in its arguments"),
        ) from error


def _own(tape: Tape, parameter: nn.Parameter, use: int, unit: int) -> Tensor:
    """A unit's own copy of a parameter (no memory is copied), whose gradient is recorded as that unit's."""
    target = tape.target(parameter)
    if target is None:
        return parameter.detach()

    def received(gradient: Tensor) -> None:
        dense = gradient.to_dense() if gradient.layout != torch.strided else gradient
        tape.add(Kept(target, use, unit, exact(dense)[None]))

    own: Tensor = _Own.apply(tape.anchor, parameter.detach(), received)  # type: ignore[no-untyped-call]
    return own


class _Own(torch.autograd.Function):
    """Identity whose output belongs to the graph and whose backward pass hands the gradient over."""

    @staticmethod
    def forward(ctx: Any, _anchor: Tensor, parameter: Tensor, received: Callable[[Tensor], None]) -> Tensor:
        ctx.received = received
        return parameter.view_as(parameter)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, None]:
        ctx.received(gradients[0])
        return None, None, None


def _of_unit(leaf: Leaf, value: Any, first: int, count: int) -> Any:
    """A unit's part of what is known to be the images; anything else as it is."""
    if leaf.axis is None:
        return value
    mine = value.narrow(leaf.axis, first, count)
    return mine.contiguous() if value.is_contiguous() else mine


def _joined(results: Leaves, parts: list[list[Any]]) -> Any:
    """Join the units' outputs along the axis that is the images."""
    joined: list[Any] = []
    for leaf, values in zip(results.leaves, zip(*parts, strict=True), strict=True):
        if leaf.axis is not None:
            joined.append(torch.cat(values, leaf.axis))
            continue
        if leaf.shape is not None and any(value.requires_grad for value in values):
            raise InvalidValue(
                f"{leaf.name} has shape {leaf.shape} for any number of images",
                "one of its axes must be the images, so that each gradient can be attributed to its patient",
                "give the layer the images, and let it return its parameters once for each of them "
                "(table.expand(len(images), *table.shape)) or combine both itself",
            )
        joined.append(values[0])
    return tree_unflatten(joined, results.structure)


def _require_rows(module: nn.Module, gradients: Tensor, shape: tuple[int, ...]) -> None:
    """Refuse a sampler's gradients that are not one for each image."""
    if gradients.shape != shape:
        raise InvalidValue(
            f"the sampler of {type(module).__name__} returns gradients of shape {tuple(gradients.shape)}",
            f"{BATCH_FIRST}: shape {shape}",
            "return one gradient for each image",
        )
