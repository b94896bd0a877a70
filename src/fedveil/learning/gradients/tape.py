"""The record of one backward pass: the inputs of each layer, and the gradients at its output.

While a tape records, the layers of a model run with *detached* parameters, so that the backward pass computes
no parameter gradient at all, and each passes the gradient at its output to its rule (`rules/`).
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from fedveil.errors import InvalidValue
from fedveil.learning.gradients.contributions import Contribution
from fedveil.learning.gradients.parameters import Layout, Target
from fedveil.learning.gradients.trial.calls import BATCH_FIRST, Call, Calls, Leaf, cure, substituted
from fedveil.learning.gradients.units import UnitBatch

__all__ = ["Rule", "Tape", "recording"]

Rule = Callable[..., Any]
"""`rule(module, tape, *args, **kwargs)`: the module's forward pass, recorded on the tape."""


class Tape:
    """Collects the contributions of one forward and backward pass over one batch of images."""

    def __init__(self, layout: Layout, batch: UnitBatch, calls: Calls, device: torch.device) -> None:
        self.layout, self.batch = layout, batch
        self.anchor = torch.zeros((), device=device, requires_grad=True)
        self.contributions: list[Contribution] = []
        self.originals: dict[nn.Module, Callable[..., Any]] = {}
        self._uses = itertools.count()
        self._calls, self._made = calls, Counter[nn.Module]()
        self.current: Call | None = None
        self._arguments: list[tuple[Leaf, Any]] = []

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
        """Call `received` with the gradient at `output`; replace it by the returned value.

        Below the first trained layer nothing requires a gradient, and nothing need be differentiated: there the
        graph starts at the output itself.
        """
        if output.requires_grad:
            output.register_hook(received)  # type: ignore[no-untyped-call]
            return output
        # `data` is the same memory, but never a view in autograd's eyes: a view could not start a graph.
        started: Tensor = _Start.apply(self.anchor, output.data, received)  # type: ignore[no-untyped-call]
        return started

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Begin the next call of a layer, which must be what the trial has seen at this place."""
        known, made = self._calls.of.get(module, ()), self._made[module]
        self._made[module] += 1
        if made >= len(known) and not (known and _alike(known)):
            raise InvalidValue(
                f"a {type(module).__name__} layer is called {made + 1} times, and {len(known)} times in the trial",
                "the axis of the images is only known for calls in the trial",
                "do not change the network's layers, mode and path after the trial",
            )
        self.current = known[min(made, len(known) - 1)]
        values, structure = tree_flatten((args, kwargs))
        self.current.arguments.require(values, structure, self.batch.images)
        self._arguments = list(zip(self.current.arguments.leaves, values, strict=True))

    def finish(self) -> None:
        """End the forward pass; refuse one that left calls out, since those after them were taken for others."""
        self._arguments = []
        for module, made in self._made.items():
            known = self._calls.of[module]
            if made != len(known) and not _alike(known):
                raise InvalidValue(
                    f"a {type(module).__name__} layer is called {made} times, and {len(known)} times in the trial",
                    "calls that differ must come in the same order every time",
                    "give each call that may be left out a layer of its own",
                )

    def check_batch(self, module: nn.Module, tensor: Tensor, *, folded: bool = False) -> int:
        """Refuse an argument of the current call that is not known to have the images first; return rows per image.

        There must be one row for each image, or with `folded` a constant number, such as windows or tokens. The rule
        then takes each image's rows for neighbours, image after image. No shape says that they are. If they are not,
        what is attributed to a patient is not the gradient of this patient's images alone, and the trial refuses.
        """
        leaf = next((leaf for leaf, value in self._arguments if value is tensor), None)
        if leaf is not None and leaf.axis == 0 and (leaf.rows == 1 or (folded and leaf.rows > 1)):
            return leaf.rows
        name = leaf.name if leaf is not None else f"a tensor in a {type(module).__name__} layer"
        if leaf is None or leaf.axis is None:
            found = f"{name} has shape {tuple(tensor.shape)} for any number of images"
            help_ = "give it a row for each image, as in layer(x.expand(len(images), *x.shape)), or freeze the layer"
        elif leaf.axis:
            found = f"{name} has the images along axis {leaf.axis} of {tuple(tensor.shape)}"
            help_ = (
                f"move them to the front (transpose(0, {leaf.axis}); batch_first=True where the layer has it)"
            )
        else:
            found = f"{name} has {leaf.rows} rows for each image"
            help_ = (
                f"keep other axes behind the images (x.unflatten(0, (-1, {leaf.rows}))), or fold them in the forward "
                "of a class that derives from this layer's, which then runs once per patient"
            )
        raise InvalidValue(found, BATCH_FIRST, cure(module, help_))


def _alike(calls: tuple[Call, ...]) -> bool:
    """Whether a layer's calls are interchangeable."""
    return all(call.like(calls[0]) for call in calls[1:])


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
    tape.originals.update({module: module.forward for module in rules})
    with substituted({module: partial(_by_rule, rule, module, tape) for module, rule in rules.items()}):
        yield


def _by_rule(rule: Rule, module: nn.Module, tape: Tape, *args: Any, **kwargs: Any) -> Any:
    """Run a module by its rule, on arguments that are what they were in the trial."""
    tape.enter(module, args, kwargs)
    return rule(module, tape, *args, **kwargs)
