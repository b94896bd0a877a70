"""The record of one backward pass: which layer saw what, and what reached its output.

While a tape records, the layers of a model run with *detached* parameters, so that the backward pass computes
no parameter gradient at all, and each hands its rule (`rules/`) the gradient at its output as it passes by.
"""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fedveil.errors import InvalidValue
from fedveil.learning.private_gradients.contributions import Contribution
from fedveil.learning.private_gradients.parameters import Layout, Target
from fedveil.learning.private_gradients.units import UnitBatch

__all__ = ["Rule", "Tape", "recording"]

Rule = Callable[..., Any]
"""`rule(module, tape, *args, **kwargs)`: the module's forward pass, recorded on the tape."""


class Tape:
    """Collects the contributions of one forward and backward pass over one batch of images."""

    def __init__(self, layout: Layout, batch: UnitBatch, device: torch.device) -> None:
        self.layout, self.batch = layout, batch
        self.anchor = torch.zeros((), device=device, requires_grad=True)
        self.contributions: list[Contribution] = []
        self.originals: dict[nn.Module, Callable[..., Any]] = {}
        self._uses = itertools.count()

    def use(self) -> int:
        """A number for one use of one layer."""
        return next(self._uses)

    def target(self, parameter: Tensor | None) -> Target | None:
        """Where a parameter's gradient belongs, or None where it is frozen or absent."""
        return self.layout.target(parameter)

    def add(self, *contributions: Contribution) -> None:
        """Keep contributions until every norm is known."""
        self.contributions.extend(contributions)

    def watch(self, output: Tensor, received: Callable[[Tensor], None]) -> Tensor:
        """Call `received` with the gradient at `output`; use what this returns in its place.

        Below the first trained layer nothing requires a gradient, and nothing need be differentiated: there the
        graph starts at the output itself.
        """
        if output.requires_grad:
            output.register_hook(received)  # type: ignore[no-untyped-call]
            return output
        # `data` is the same memory, but never a view in autograd's eyes: a view could not start a graph.
        started: Tensor = _Start.apply(self.anchor, output.data, received)  # type: ignore[no-untyped-call]
        return started

    def check_batch(self, module: nn.Module, tensor: Tensor) -> None:
        """Refuse a layer whose first axis is not the images: whose gradient is whose would be a guess."""
        self.check_rows(module, tensor, self.batch.images)

    def check_rows(self, module: nn.Module, tensor: Tensor, images: int) -> None:
        """Refuse a tensor that does not have one row for each of `images` images."""
        if tensor.ndim < 1 or tensor.shape[0] != images:
            raise InvalidValue(
                f"a {type(module).__name__} layer has a tensor of shape {tuple(tensor.shape)} for {images} images",
                "the first axis must be the images, so that each gradient can be attributed to its patient",
                "keep the batch first (batch_first=True) and do not fold other axes into it",
            )


class _Start(torch.autograd.Function):
    """Identity that makes its input part of the graph and hands over the gradient that arrives.

    Marked as modified in place, the output *is* the input tensor: nothing is copied, and in-place
    activations may follow, which autograd forbids on leaves and on views made by custom functions.
    """

    @staticmethod
    def forward(ctx: Any, _anchor: Tensor, output: Tensor, received: Callable[[Tensor], None]) -> Tensor:
        ctx.mark_dirty(output)
        ctx.received = received
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, None]:
        ctx.received(gradients[0])
        return None, None, None


class Unchanged:
    """A tensor that must still hold what it held when it was captured."""

    def __init__(self, module: nn.Module, tensor: Tensor) -> None:
        self._layer = type(module).__name__
        self._tensor = tensor.detach()
        self._version = self._tensor._version

    def intact(self) -> Tensor | None:
        """The tensor, or None where it has been overwritten in the meantime."""
        return self._tensor if self._tensor._version == self._version else None

    def get(self) -> Tensor:
        """The tensor, which must not have been overwritten."""
        tensor = self.intact()
        if tensor is None:
            raise InvalidValue(
                f"the input of a {self._layer} layer was changed in place after the layer had read it",
                "a layer's gradient is computed from the input that it saw",
                "write x = x + y instead of x += y, relu(x) instead of relu_(x), where x feeds several layers",
            )
        return tensor


@contextmanager
def recording(rules: dict[nn.Module, Rule], tape: Tape) -> Iterator[None]:
    """Run the given modules by their rules, on `tape`, for the duration."""
    replaced: dict[nn.Module, Any] = {}
    try:
        for module, rule in rules.items():
            tape.originals[module] = module.forward
            replaced[module] = vars(module).get("forward")
            vars(module)["forward"] = partial(rule, module, tape)
        yield
    finally:
        for module, own in replaced.items():
            del vars(module)["forward"]
            if own is not None:
                vars(module)["forward"] = own
