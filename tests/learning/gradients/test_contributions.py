"""Norms of gradients that are kept."""

import pytest
import torch

from fedveil.learning.gradients.contributions import Kept
from fedveil.learning.gradients.parameters import Target


@pytest.mark.parametrize("entries", [1, 7, 1024, 1500, 300_000])
@pytest.mark.parametrize("value", [0.1, 0.3, None])
def test_norms_of_long_gradients_are_exact(entries: int, value: float | None) -> None:
    """Equal entries are the worst case of adding up in single precision: all errors have one sign."""
    torch.manual_seed(0)
    gradients = torch.randn(2, entries) if value is None else torch.full((2, entries), value)
    found = Kept(Target(0, (entries,), 0), 0, 0, gradients).squared_norms()
    torch.testing.assert_close(found, gradients.double().square().sum(1), rtol=2e-6, atol=0)
