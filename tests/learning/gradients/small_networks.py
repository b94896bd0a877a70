"""Layers and networks that tests are made of."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedveil.errors import InvalidValue
from fedveil.learning.gradients import check_private


class Gain(nn.Module):
    """No rule knows it: scales features, and adds what it is given besides."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x: Tensor, *more: Any, scale: Any = 1) -> Tensor:
        """`(..., width)`; each of `more` is broadcast to it."""
        for one in more:
            x = x + one
        return torch.tanh(x * self.gain) * scale


class Positions(nn.Module):
    """Holds a trained table, and hands it out."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.rand(shape))

    def forward(self, x: Tensor | None = None) -> Tensor:
        """The table; once for each image, where there are any."""
        return self.table if x is None else self.table.expand(len(x), *self.table.shape)


class Called(nn.Module):
    """A layer, and what its network does with it."""

    def __init__(self, forward: Any, **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self._function = forward

    def forward(self, x: Tensor) -> Any:
        """Whatever it says."""
        return self._function(self, x)


def refusal(model: nn.Module, shape: tuple[int, ...], **settings: Any) -> str:
    """Why a model is refused."""
    with pytest.raises(InvalidValue) as refused:
        check_private(model, shape, **settings)
    assert not any("forward" in vars(module) for module in model.modules())
    return str(refused.value)
