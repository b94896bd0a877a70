"""The oracle: one plain backward pass for each patient, clipped and added up."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

cross_entropy = partial(functional.cross_entropy, reduction="none")


def plain_sum(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    units: Tensor,
    clip: Callable[[list[Tensor]], float | list[float]],
    *,
    loss: Any = cross_entropy,
    reduction: str = "mean",
    weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Sum of clipped gradients and each unit's norm, by a loop over units.

    `clip` maps a unit's gradients, one tensor a parameter, to one factor, or to one for each of them.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    total, norms = torch.zeros(sum(p.numel() for p in parameters), dtype=torch.float64), []
    for unit in units.unique():
        mine = units == unit
        losses = loss(model(images[mine]), labels[mine])
        if weights is not None:
            losses = losses * weights[mine]
        reduced = losses.mean() if reduction == "mean" else losses.sum()
        gradients = list(torch.autograd.grad(reduced, parameters, materialize_grads=True))
        factors = clip(gradients)
        if isinstance(factors, float):
            factors = [factors] * len(gradients)
        norms.append(torch.cat([g.flatten() for g in gradients]).norm())
        total += torch.cat([f * g.flatten() for f, g in zip(factors, gradients, strict=True)])
    return total, torch.stack(norms)


def flat(clip_norm: float) -> Callable[[list[Tensor]], float]:
    """Flat clipping."""

    def clip(gradients: list[Tensor]) -> float:
        norm = torch.cat([g.flatten() for g in gradients]).norm().item()
        return min(1.0, clip_norm / norm) if norm else 1.0

    return clip


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Largest difference relative to the largest entry."""
    return ((found.double() - expected.double()).abs().max() / expected.double().abs().max()).item()


@pytest.fixture(scope="session")
def oracle() -> Any:
    """The functions above, under one name."""

    class Oracle:
        sum = staticmethod(plain_sum)
        flat = staticmethod(flat)
        error = staticmethod(relative_error)
        cross_entropy = staticmethod(cross_entropy)

    return Oracle
