"""From each unit's gradient norms to the factors that bound its contribution."""

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from fedveil.errors import InvalidValue

__all__ = ["Clipping", "check_clipping", "clip_factors"]

Clipping = Literal["flat", "per-layer", "automatic"]

# Stability constant of automatic clipping (Bu et al., arXiv 2206.07136, equation 3.3).
_GAMMA = 0.01


def check_clipping(clipping: str, clip_norm: float) -> None:
    """Refuse a clipping style or bound that does not exist."""
    if clipping not in get_args(Clipping):
        raise InvalidValue(
            f"clipping is {clipping!r}",
            f"it must be one of {', '.join(get_args(Clipping))}",
            "choose one of them",
        )
    if not (clip_norm > 0 and math.isfinite(clip_norm)):
        raise InvalidValue(
            f"clip_norm is {clip_norm}",
            "it must be a positive number",
            "give the largest L2 norm that one patient's contribution may have",
        )


def clip_factors(squared_norms: Tensor, clip_norm: float, clipping: Clipping) -> Tensor:
    """Factors `(layers, units)` from squared norms `(layers, units)`, so that no unit's product exceeds the bound.

    * flat: min(1, C / ||g||), the same for all layers (Abadi et al., arXiv 1607.00133);
    * per-layer: each layer to C / sqrt(layers), so that together they stay below C;
    * automatic: C / (||g|| + 0.01), whatever the norm: every unit weighs about the same.
    """
    if clipping == "per-layer":
        bound = clip_norm / math.sqrt(max(1, len(squared_norms)))
        return _at_most(bound, squared_norms.sqrt())
    norm = squared_norms.sum(0).sqrt()
    factors = clip_norm / (norm + _GAMMA) if clipping == "automatic" else _at_most(clip_norm, norm)
    return factors.expand_as(squared_norms)


def _at_most(bound: float, norm: Tensor) -> Tensor:
    """min(1, bound / norm), 1 where the norm is 0."""
    return torch.where(norm > bound, bound / norm, torch.ones_like(norm))
