"""Opacus as an independent oracle, and as a fallback."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedveil.errors import InvalidValue
from fedveil.learning.gradients import PrivateGradients, check_private
from fedveil.learning.networks.convolutional import cnn3d

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("opacus", reason="Opacus is an extra")
    from opacus.grad_sample import GradSampleModule, register_grad_sampler
    from opacus.layers import DPGRU, DPLSTM, DPMultiheadAttention
    from opacus.layers.dp_multihead_attention import SequenceBias


def network() -> nn.Module:
    """Convolutions, group norm, depthwise convolution, linear."""
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2, padding=1),
        nn.GroupNorm(4, 8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=8, padding=1),
        nn.GroupNorm(2, 8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 1, bias=False),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 3),
    )


def network_of_volumes() -> nn.Module:
    """The small network of volumes of twelve slices."""
    torch.manual_seed(1)
    return cnn3d(3, 12)


@pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")
@pytest.mark.parametrize(("build", "planes"), [(network, 1), (network_of_volumes, 12)])
def test_sum_agrees_with_opacus_hooks(build: Any, planes: int, oracle: Any) -> None:
    model, labels = build().double(), torch.arange(6) % 3
    images = torch.rand(6, planes, 12, 12, dtype=torch.float64)
    found = PrivateGradients(model, oracle.cross_entropy, 0.5).sum(images, labels, torch.arange(6))
    hooked = GradSampleModule(build().double(), loss_reduction="sum")
    oracle.cross_entropy(hooked(images), labels).sum().backward()
    samples = torch.cat([p.grad_sample.flatten(1) for p in hooked.parameters()], 1)
    norms = samples.norm(dim=1)
    expected = (samples * (0.5 / norms).clamp(max=1)[:, None]).sum(0)
    assert oracle.error(found.norms, norms) < 1e-5
    assert oracle.error(found.vector, expected) < 1e-5


class Shift(nn.Module):
    """A layer whose owner has registered a sampler with Opacus."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.rand(8))

    def forward(self, x: Tensor) -> Tensor:
        """Add the shift to every row."""
        return x + self.shift


@register_grad_sampler(Shift)
def shift_gradients(
    layer: Shift, _activations: list[Tensor], backprops: Tensor
) -> dict[nn.Parameter, Tensor]:
    return {layer.shift: backprops.flatten(1, -2).sum(1)}


@pytest.mark.parametrize("clip_norm", [1e-3, 1e3])
def test_patients_of_several_volumes_are_clipped_as_one_vector(clip_norm: float, oracle: Any) -> None:
    model, volumes = network_of_volumes().double(), torch.rand(7, 12, 12, 12, dtype=torch.float64)
    labels, units = torch.arange(7) % 3, torch.tensor([0, 1, 1, 2, 0, 3, 1])
    expected, norms = oracle.sum(model, volumes, labels, units, oracle.flat(clip_norm))
    found = PrivateGradients(model, oracle.cross_entropy, clip_norm).sum(volumes, labels, units)
    torch.testing.assert_close(found.norms, norms)
    torch.testing.assert_close(found.vector, expected)


@pytest.mark.parametrize(
    ("layer", "notice"),
    [
        (Shift, "uses the sampler registered with Opacus"),
        (lambda: SequenceBias(8, batch_first=True), "runs once per patient, which is slow"),
    ],
)
def test_only_samplers_of_users_are_used(layer: Any, notice: str, oracle: Any) -> None:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Flatten(1, 2), nn.Linear(8, 8), layer(), nn.Flatten(), nn.LazyLinear(3)).double()
    images, labels = torch.rand(5, 1, 4, 8, dtype=torch.float64), torch.arange(5) % 3
    model(images)
    units = torch.tensor([1, 1, 0, 2, 1])
    (found_notice,) = check_private(model, (1, 4, 8))
    assert notice in found_notice
    expected, norms = oracle.sum(model, images, labels, units, oracle.flat(0.2))
    found = PrivateGradients(model, oracle.cross_entropy, 0.2).sum(images, labels, units)
    torch.testing.assert_close(found.norms, norms)
    torch.testing.assert_close(found.vector, expected)


@pytest.mark.parametrize(
    "layer", [lambda: DPLSTM(8, 5, batch_first=False), lambda: DPMultiheadAttention(8, 2)]
)
def test_layers_of_opacus_with_images_second_are_refused(layer: Any) -> None:
    with pytest.raises(InvalidValue, match=r"when other patients are in the batch.*without batch_first=True"):
        check_private(First(layer()), (4, 8))


class First(nn.Module):
    """The first of what a layer returns."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """Sequences `(n, length, 8)`."""
        several = (x, x, x) if isinstance(self.layer, DPMultiheadAttention) else (x,)
        y: Tensor = self.layer(*several)[0]
        return y.flatten(1)


@pytest.mark.parametrize(
    "layer",
    [
        lambda: DPLSTM(8, 5, batch_first=True),
        lambda: DPLSTM(8, 5, num_layers=2, bidirectional=True, batch_first=True),
        lambda: DPGRU(8, 5, batch_first=True),
        lambda: DPMultiheadAttention(8, 2, batch_first=True),
        lambda: DPMultiheadAttention(8, 2, batch_first=True, add_bias_kv=True),
    ],
)
def test_layers_of_opacus_are_right_on_as_many_images_as_tokens(layer: Any, oracle: Any) -> None:
    """The remedy above helps; and a length of 4 is no batch of 4."""
    torch.manual_seed(2)
    model = First(layer()).double()
    images, labels, units = (
        torch.rand(4, 4, 8, dtype=torch.float64),
        torch.arange(4) % 3,
        torch.tensor([1, 0, 1, 2]),
    )
    check_private(model, (4, 8))
    expected, norms = oracle.sum(model, images, labels, units, oracle.flat(0.2))
    found = PrivateGradients(model, oracle.cross_entropy, 0.2).sum(images, labels, units)
    torch.testing.assert_close(found.norms, norms)
    torch.testing.assert_close(found.vector, expected)
