"""Norms from shifted Gram matrices against norms of instantiated gradients, over layer shapes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.grad import conv2d_weight

from fedveil.learning.gradients.gram import Axis, matrix_norms, patch_norms

axis = st.builds(
    dict,
    kernel_size=st.integers(1, 4),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 3),
    padding=st.integers(0, 4),
    size=st.integers(1, 7),
).filter(lambda a: a["size"] + 2 * a["padding"] > a["dilation"] * (a["kernel_size"] - 1))


@settings(max_examples=150, deadline=None)
@given(
    axes=st.lists(axis, min_size=1, max_size=3),
    units=st.integers(1, 4),
    images=st.integers(1, 3),
    inputs=st.integers(1, 3),
    outputs=st.integers(1, 3),
    seed=st.integers(0, 2**31),
)
def test_patch_norms_equal_norms_of_gradients(
    axes: list[dict[str, int]], units: int, images: int, inputs: int, outputs: int, seed: int
) -> None:
    torch.manual_seed(seed)
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(axes) - 1]
    per_axis = {k: tuple(a[k] for a in axes) for k in ("kernel_size", "stride", "dilation", "padding")}
    layer = kind(inputs, outputs, **per_axis, bias=False).double()  # type: ignore[arg-type]
    sizes = tuple(a["size"] for a in axes)
    a = torch.randn(units, images, inputs, *sizes, dtype=torch.float64)
    g = torch.randn(units, images, *layer(a[0]).shape[1:], dtype=torch.float64)
    geometry = [Axis(n, m, *per) for n, m, *per in zip(sizes, g.shape[3:], *_in_order(per_axis), strict=True)]
    expected = []
    for unit in range(units):
        (gradient,) = torch.autograd.grad((layer(a[unit]) * g[unit]).sum(), layer.weight)
        expected.append(gradient.square().sum())
    found = patch_norms(a, g, tuple(geometry))
    # Rounded up by a multiple of the unit roundoff of this product, also where the gradient is 0.
    largest = float((a.square().flatten(1).sum(1) * g.square().flatten(1).sum(1)).max())
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-5, atol=1e-11 * largest)
    single = patch_norms(a.float(), g.float(), tuple(geometry))
    assert (single >= torch.stack(expected) * (1 - 1e-6)).all()


def _in_order(per_axis: dict[str, tuple[int, ...]]) -> tuple[tuple[int, ...], ...]:
    return tuple(per_axis[key] for key in ("kernel_size", "stride", "dilation", "padding"))


@pytest.mark.parametrize("kind", ["linear", "convolution"])
@settings(max_examples=60, deadline=None)
@given(
    common=st.floats(0, 6), images=st.integers(1, 3), channels=st.integers(1, 40), seed=st.integers(0, 2**31)
)
def test_norms_are_rounded_up_where_terms_cancel(
    kind: str, common: float, images: int, channels: int, seed: int
) -> None:
    """Activations with a large common part under output gradients that add up to zero."""
    torch.manual_seed(seed)
    a = torch.rand(3, images, channels, 6, 6) + 10**common
    g = torch.randn(3, images, 4, 6, 6)
    g -= g.mean((1, 3, 4), keepdim=True)
    if kind == "linear":
        x, y = (t.transpose(1, 2).flatten(2).mT for t in (a, g))
        found, exact = matrix_norms(x, y), torch.einsum("upo,upi->uoi", y.double(), x.double())
        assert (found >= exact.square().sum((1, 2))).all()
        return
    found = patch_norms(a, g, (Axis(6, 6, 3, 1, 1, 1),) * 2)
    for unit in range(3):
        exact = conv2d_weight(a[unit].double(), (4, channels, 3, 3), g[unit].double(), padding=1)
        assert found[unit] >= exact.square().sum()


@settings(max_examples=50, deadline=None)
@given(
    units=st.integers(1, 5), positions=st.integers(1, 6), inputs=st.integers(1, 4), outputs=st.integers(1, 4)
)
def test_matrix_norms_equal_norms_of_gradients(units: int, positions: int, inputs: int, outputs: int) -> None:
    a = torch.randn(units, positions, inputs, dtype=torch.float64)
    g = torch.randn(units, positions, outputs, dtype=torch.float64)
    expected = torch.einsum("upo,upi->uoi", g, a).square().sum((1, 2))
    torch.testing.assert_close(matrix_norms(a, g), expected, rtol=1e-5, atol=1e-7)
