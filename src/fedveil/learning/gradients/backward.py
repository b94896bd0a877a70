"""One forward and one backward pass on a tape: each unit's contributions, before they are clipped."""

from collections.abc import Callable

import torch
from torch import Tensor

from fedveil.errors import InvalidValue
from fedveil.learning.gradients.contributions import Contribution, merge_shared
from fedveil.learning.gradients.parameters import Layout
from fedveil.learning.gradients.rules import Plan
from fedveil.learning.gradients.tape import Tape, recording
from fedveil.learning.gradients.trial.calls import Calls
from fedveil.learning.gradients.units import UnitBatch

__all__ = ["unit_contributions"]


def unit_contributions(
    plan: Plan, calls: Calls, layout: Layout, batch: UnitBatch, losses_of: Callable[[], Tensor]
) -> tuple[Tensor, list[Contribution]]:
    """Losses `(images,)` of images in the order of `batch`, and each unit's contributions to the gradient of their sum.

    `losses_of()` runs the network. Raises InvalidValue if a layer is called differently than in the trial, or a
    parameter is used outside its layer.
    """
    device = next(iter(layout.parameters.values())).device
    tape = Tape(layout, batch, calls, device)
    with recording(plan.rules, tape):
        losses = losses_of()
        tape.finish()
        _differentiate(losses, tape.anchor, layout)
    return losses.detach(), merge_shared(tape.contributions, batch.units)


def _differentiate(losses: Tensor, anchor: Tensor, layout: Layout) -> None:
    """Send gradients back to every recorded layer."""
    if not losses.requires_grad:
        return
    inputs = [anchor, *layout.parameters.values()]
    found = torch.autograd.grad(losses.sum(), inputs, allow_unused=True)[1:]
    for name, gradient in zip(layout.parameters, found, strict=True):
        if gradient is not None:
            raise InvalidValue(
                f"parameter {name} is used outside the layer that holds it",
                "its gradient cannot be attributed to patients",
                "use the parameter in its own layer's forward, or freeze it",
            )
