"""Layers without a rule: Opacus' per-sample gradient samplers, and last of all one unit after the other.

The last resort is right for every layer that treats images one by one, whatever it computes inside: it runs
the layer once a unit, with a copy of its parameters for each, and lets autograd do the rest. It is slow.
"""

import warnings
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from fedveil.learning.private_gradients.contributions import Kept
from fedveil.learning.private_gradients.rules.arithmetic import exact
from fedveil.learning.private_gradients.tape import Rule, Tape, Unchanged

__all__ = ["opacus_rule", "unit_by_unit_rule"]

Sampler = Callable[..., Mapping[nn.Parameter, Tensor]]


@cache
def _samplers() -> Mapping[type[nn.Module], Sampler]:
    """Opacus' registry; imported on first need, since importing it takes a second."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from opacus.grad_sample import GradSampleModule
    return GradSampleModule.GRAD_SAMPLERS  # type: ignore[no-any-return]


def opacus_rule(module: nn.Module) -> Rule | None:
    """A rule around Opacus' sampler for exactly this type of layer, where there is one and it has no children.

    Bags of embeddings are left out: their first axis is not the images.
    """
    sampler = _samplers().get(type(module))
    if sampler is None or any(True for _ in module.children()) or isinstance(module, nn.EmbeddingBag):
        return None

    def rule(module: nn.Module, tape: Tape, *inputs: Tensor) -> Tensor:
        tape.check_batch(module, inputs[0])
        captured, use = [Unchanged(module, x) for x in inputs], tape.use()
        frozen = {name: p.detach() for name, p in module.named_parameters()}

        def received(gradient: Tensor) -> None:
            activations = [x.get() for x in captured]
            for parameter, gradients in sampler(module, activations, gradient).items():
                target = tape.target(parameter)
                if target is not None:
                    tape.add(Kept(target, use, 0, tape.batch.sum(exact(gradients))))

        return tape.watch(_run(module, tape, frozen, inputs, {}), received)

    return rule


def unit_by_unit_rule(module: nn.Module, tape: Tape, *args: Any, **kwargs: Any) -> Any:
    """Any module, with everything inside it, run once for each unit."""
    batch, use = tape.batch, tape.use()
    outputs: list[Any] = []
    for bucket in batch.buckets:
        for unit in range(bucket.first_unit, bucket.last_unit):
            first = bucket.first_image + (unit - bucket.first_unit) * bucket.images_each
            images = slice(first, first + bucket.images_each)
            parameters = {name: _own(tape, p, use, unit) for name, p in module.named_parameters()}
            mine_args, mine_kwargs = tree_map(partial(_of_unit, images, batch.images), (args, kwargs))
            outputs.append(_run(module, tape, parameters, mine_args, mine_kwargs))
    return _joined(module, tape, outputs)


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
    return torch.func.functional_call(
        bare, {f"inner.{name}": p for name, p in parameters.items()}, args, kwargs
    )


def _own(tape: Tape, parameter: nn.Parameter, use: int, unit: int) -> Tensor:
    """A unit's own copy of a parameter (no memory is copied), whose gradient is recorded as that unit's."""
    target = tape.target(parameter)
    if target is None:
        return parameter.detach()

    def received(gradient: Tensor) -> None:
        tape.add(Kept(target, use, unit, exact(gradient)[None]))

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


def _of_unit(images: slice, batch_size: int, value: Any) -> Any:
    """A unit's rows of a tensor with one row an image; anything else as it is."""
    is_batch = isinstance(value, Tensor) and value.ndim > 0 and value.shape[0] == batch_size
    return value[images] if is_batch else value


def _joined(module: nn.Module, tape: Tape, outputs: list[Any]) -> Any:
    """Join the units' outputs along the image axis, whatever structure they come in."""
    structure, counts = tree_flatten(outputs[0])[1], tape.batch.counts.tolist()
    joined: list[Any] = []
    for leaves in zip(*(tree_flatten(output)[0] for output in outputs), strict=True):
        if isinstance(leaves[0], Tensor):
            # The final states of recurrent layers have the images second, even with batch_first.
            axis = 1 if joined and isinstance(module, nn.RNNBase) else 0
            for leaf, count in zip(leaves, counts, strict=True):
                tape.check_rows(module, leaf.transpose(0, axis) if leaf.ndim > axis else leaf, count)
            joined.append(torch.cat(leaves, axis))
        else:
            joined.append(leaves[0])
    return tree_unflatten(joined, structure)
