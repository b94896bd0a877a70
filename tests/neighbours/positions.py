"""A network whose own layer takes a table of positions beside the images: 64 rows, as many as a batch may
have that is filled up.

No network that a study file can name has such a layer today; the slow fallback of the engine has to treat it rightly
all the same.
"""

from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

__all__ = ["POSITIONS", "positions"]

SIDE = 8
POSITIONS = SIDE**2


class _Mixed(nn.Module):
    """No rule of the engine knows it: its parameters are its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(1, 8)), nn.Parameter(torch.ones(1, 8))

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        return x * self.scale + table * self.shift


class _Positions(nn.Module):
    """Images (n, 1, h, w) to (n, 8): 8 x 8 cells, each with its row of a table."""

    def __init__(self) -> None:
        super().__init__()
        self.pool, self.inner = nn.AdaptiveAvgPool2d(SIDE), _Mixed()
        self.register_buffer("table", torch.linspace(-3, 3, POSITIONS)[:, None])

    def forward(self, images: Tensor) -> Tensor:
        cells = self.pool(images).flatten(2).mT
        return torch.tanh(self.inner(cells, self.table)).mean(1)


def positions() -> Any:
    """Within it, every network that a study names is this one."""

    def network(name: str, *, classes: int, **other: Any) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return nn.Sequential(_Positions(), nn.Linear(8, classes))

    return mock.patch("fedveil.learning.networks.registry.network", network)
