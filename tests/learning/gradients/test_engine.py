"""The engine as a whole: bounds, micro-batches, clipping styles, weights, odd batches."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from fedveil.errors import InvalidValue
from fedveil.learning.gradients import PrivateGradients
from fedveil.learning.gradients.rules import arithmetic
from fedveil.learning.networks import WeightStandardizedConv2d


def small(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """Convolution, group norm and two linear layers; five parameterised layers with the second norm."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2),
        nn.GroupNorm(2, 4),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(36, 3),
    ).to(dtype)


def batch(n: int = 9, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Images, labels and patients."""
    generator = torch.Generator().manual_seed(2)
    images = torch.rand(n, 1, 8, 8, generator=generator, dtype=torch.float64).to(dtype)
    return images, torch.arange(n) % 3, torch.tensor([4, 4, 0, 9, 9, 9, 9, 2, 5])[:n]


@pytest.mark.parametrize("micro_batch", [None, 1, 2, 3, 4, 7, 100])
@pytest.mark.parametrize("clipping", ["flat", "per-layer", "automatic"])
def test_micro_batches_change_nothing(micro_batch: int | None, clipping: Any, oracle: Any) -> None:
    model, (images, labels, units) = small(), batch()
    one = PrivateGradients(model, oracle.cross_entropy, 0.3, clipping=clipping).sum(images, labels, units)
    parts = PrivateGradients(
        model, oracle.cross_entropy, 0.3, clipping=clipping, micro_batch=micro_batch
    ).sum(images, labels, units)
    torch.testing.assert_close(parts.vector, one.vector)
    torch.testing.assert_close(parts.norms, one.norms)
    torch.testing.assert_close(parts.losses, one.losses)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("weighted", [False, True])
def test_sum_agrees_with_a_loop(reduction: Any, weighted: bool, oracle: Any) -> None:
    model, (images, labels, units) = small(), batch()
    weights = torch.linspace(0.5, 2, 9, dtype=torch.float64) if weighted else None
    expected, norms = oracle.sum(
        model, images, labels, units, oracle.flat(0.4), reduction=reduction, weights=weights
    )
    engine = PrivateGradients(model, oracle.cross_entropy, 0.4, reduction=reduction)
    found = engine.sum(images, labels, units, weights)
    torch.testing.assert_close(found.vector, expected)
    torch.testing.assert_close(found.norms, norms)


def test_losses_are_each_units_own(oracle: Any) -> None:
    model, (images, labels, units) = small(), batch()
    found = PrivateGradients(model, oracle.cross_entropy, 1.0).sum(images, labels, units)
    expected = [
        oracle.cross_entropy(model(images[units == u]), labels[units == u]).mean() for u in units.unique()
    ]
    torch.testing.assert_close(found.losses, torch.stack(expected).detach())


def test_per_layer_and_automatic_clipping_agree_with_a_loop(oracle: Any) -> None:
    model, (images, labels, units) = small(), batch()

    def per_layer(gradients: list[Tensor]) -> list[float]:
        # Weight and bias of a module are one layer, bounded together: three layers here.
        factors = []
        for weight, bias in zip(gradients[::2], gradients[1::2], strict=True):
            norm = math.sqrt(weight.square().sum().item() + bias.square().sum().item())
            factors += [min(1.0, 0.3 / math.sqrt(3) / norm)] * 2
        return factors

    def automatic(gradients: list[Tensor]) -> float:
        return 0.3 / (torch.cat([g.flatten() for g in gradients]).norm().item() + 0.01)

    for clipping, clip in (("per-layer", per_layer), ("automatic", automatic)):
        expected, _ = oracle.sum(model, images, labels, units, clip)
        engine = PrivateGradients(model, oracle.cross_entropy, 0.3, clipping=clipping)  # type: ignore[arg-type]
        torch.testing.assert_close(engine.sum(images, labels, units).vector, expected)


@settings(max_examples=40, deadline=None)
@given(
    scale=st.floats(-6, 6).map(lambda e: 10**e),
    clip_norm=st.floats(1e-3, 1e3),
    count=st.integers(1, 9),
    clipping=st.sampled_from(["flat", "per-layer", "automatic"]),
    reduction=st.sampled_from(["mean", "sum"]),
    micro_batch=st.sampled_from([None, 2]),
)
def test_patient_contribution_is_bounded_whatever_its_images(
    scale: float, clip_norm: float, count: int, clipping: Any, reduction: Any, micro_batch: int | None
) -> None:
    images, labels, _ = batch(count, torch.float32)
    one = torch.zeros(count, dtype=torch.long)
    engine = PrivateGradients(
        small(torch.float32),
        lambda outputs, y: functional.cross_entropy(outputs, y, reduction="none") * scale,
        clip_norm,
        clipping=clipping,
        reduction=reduction,
        micro_batch=micro_batch,
    )
    contribution = engine.sum(images, labels, one).vector
    assert contribution.norm() <= clip_norm * (1 + 1e-5)


def test_adding_one_patient_moves_the_sum_by_at_most_the_bound(oracle: Any) -> None:
    engine, (images, labels, units) = PrivateGradients(small(), oracle.cross_entropy, 0.1), batch()
    everyone = engine.sum(images, labels, units).vector
    for unit in units.unique():
        others = units != unit
        moved = (everyone - engine.sum(images[others], labels[others], units[others]).vector).norm()
        assert 0.05 < moved <= 0.1 * (1 + 1e-9)


def test_views_of_an_image_are_averaged_before_clipping(oracle: Any) -> None:
    model, (images, labels, units) = small(), batch()
    # Augmentation multiplicity: a patient's image and its mirror image, together one contribution.
    views = torch.cat([images, images.flip(3)])
    engine = PrivateGradients(model, oracle.cross_entropy, 0.3)
    found = engine.sum(views, labels.repeat(2), units.repeat(2))
    expected, _ = oracle.sum(model, views, labels.repeat(2), units.repeat(2), oracle.flat(0.3))
    assert found.units == 5
    torch.testing.assert_close(found.vector, expected)


def test_empty_batch_gives_a_zero_vector(oracle: Any) -> None:
    engine = PrivateGradients(small(), oracle.cross_entropy, 1.0)
    found = engine.sum(
        torch.zeros(0, 1, 8, 8), torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long)
    )
    assert found.units == 0
    assert found.norms.shape == (0,)
    assert torch.equal(found.vector, torch.zeros(4 * 9 + 4 + 8 + 36 * 3 + 3, dtype=torch.float64))


@pytest.mark.parametrize("micro_batch", [None, 3])
@pytest.mark.parametrize("bad", [float("inf"), float("nan"), 1e300])
@pytest.mark.parametrize("unit", [0, 9])
def test_patient_whose_gradient_is_not_finite_adds_nothing(
    micro_batch: int | None, bad: float, unit: int, oracle: Any
) -> None:
    model, (images, labels, units) = small(), batch()
    spoilt = images.clone()
    spoilt[units == unit] = bad
    engine = PrivateGradients(model, lambda o, y: o.square().sum(1), 0.3, micro_batch=micro_batch)
    found = engine.sum(spoilt, labels, units)
    others = units != unit
    expected = engine.sum(images[others], labels[others], units[others])
    if not found.norms.isfinite().all():
        assert found.norms.isfinite().sum() == 4
        torch.testing.assert_close(found.vector, expected.vector)
    else:  # 1e300 is normalised away by group norm: a large image, not a broken one
        assert bad == 1e300
        assert (found.vector - expected.vector).norm() <= 0.3 * (1 + 1e-9)


def test_half_precision_model_still_keeps_the_bound(oracle: Any) -> None:
    images, labels, units = batch(dtype=torch.float32)
    model = small(torch.float32)
    engine = PrivateGradients(model, oracle.cross_entropy, 0.1, precision=torch.bfloat16)
    found = engine.sum(images, labels, units)
    expected, norms = oracle.sum(model, images, labels, units, oracle.flat(0.1))
    assert found.vector.dtype == torch.float32
    assert oracle.error(found.norms, norms) < 0.05
    assert oracle.error(found.vector, expected) < 0.05
    for unit in units.unique():
        mine = units == unit
        assert engine.sum(images[mine], labels[mine], units[mine]).vector.norm() <= 0.1 * (1 + 1e-5)


class Steep(nn.Module):
    """One layer whose input has a large common part, and whose output gradients add up to zero over positions."""

    def __init__(self, layer: nn.Module, common: float) -> None:
        super().__init__()
        self.layer, self.common = layer, common
        generator = torch.Generator().manual_seed(1)
        self.register_buffer("slopes", torch.randn(64, 25, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        """`(images, 64, 7, 7)` to one number an image."""
        x = x + self.common
        linear = isinstance(self.layer, nn.Linear)
        y = self.layer(x.flatten(2).mT).mT[..., :25] if linear else self.layer(x).flatten(2)
        return (y * (self.slopes - self.slopes.mean(1, keepdim=True))).sum((1, 2))


@pytest.mark.parametrize("common", [0.0, 10.0, 1e3, 1e5])
@pytest.mark.parametrize("clipping", ["flat", "per-layer", "automatic"])
@pytest.mark.parametrize(
    "layer",
    [
        lambda: nn.Linear(64, 64),
        lambda: nn.Conv2d(64, 64, 3),
        lambda: nn.Conv2d(64, 64, 3, groups=4, bias=False),
        lambda: WeightStandardizedConv2d(64, 64, 3, bias=False),
    ],
    ids=["linear", "convolution", "grouped", "standardised"],
)
def test_no_cancellation_takes_a_patient_past_the_bound(
    layer: Any, clipping: Any, common: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A coordinator may send any parameters, so that rounding must not decide how far a patient is clipped."""
    monkeypatch.setattr(arithmetic.Cost, "deferred", lambda self, batch: batch.buckets)
    torch.manual_seed(0)
    engine = PrivateGradients(Steep(layer(), common), lambda outputs, _: outputs, 1.0, clipping=clipping)
    contribution = engine.sum(torch.rand(2, 64, 7, 7), torch.zeros(2), torch.zeros(2, dtype=torch.long))
    assert 0 < contribution.vector.double().norm() <= 1 + 1e-5
    if common == 0:
        assert contribution.vector.double().norm() > 0.9


@pytest.mark.parametrize("precision", [None, torch.bfloat16])
def test_arithmetic_that_the_caller_has_set_does_not_touch_the_bound(
    precision: torch.dtype | None, oracle: Any
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3, stride=2), nn.Flatten(), nn.LazyLinear(3)
    )
    images, labels, units = torch.rand(2, 1, 16, 16), torch.tensor([0, 2]), torch.zeros(2, dtype=torch.long)
    model(images)
    engine = PrivateGradients(model, oracle.cross_entropy, 1e-3, precision=precision)
    expected = engine.sum(images, labels, units).vector
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            found = engine.sum(images, labels, units).vector
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
    assert found.double().norm() <= 1e-3 * (1 + 1e-5)


def test_channels_last_images_and_weights(oracle: Any) -> None:
    model, (images, labels, units) = small(), batch()
    expected, _ = oracle.sum(model, images, labels, units, oracle.flat(0.3))
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    found = PrivateGradients(model, oracle.cross_entropy, 0.3).sum(
        images.to(memory_format=torch.channels_last), labels, units
    )
    torch.testing.assert_close(found.vector, expected)


def test_model_and_its_gradients_are_left_alone(oracle: Any) -> None:
    model, (images, labels, units) = small(), batch()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    PrivateGradients(model, oracle.cross_entropy, 1.0).sum(images, labels, units)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not any("forward" in vars(module) for module in model.modules())
    model(images).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_model_is_restored_after_a_failure(oracle: Any) -> None:
    model, (images, labels, units) = small(), batch()
    with pytest.raises(InvalidValue, match=r"layer 4 .* cannot be run on tensors of shape"):
        PrivateGradients(model, oracle.cross_entropy, 1.0).sum(images[..., :4], labels, units)
    assert not any("forward" in vars(module) for module in model.modules())


def test_unused_parameters_have_no_gradient(oracle: Any) -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(64, 3), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x.flatten(1))

    images, labels, units = batch(dtype=torch.float32)
    found = PrivateGradients(Unused(), oracle.cross_entropy, 1.0).sum(images, labels, units).vector
    assert (found[: 64 * 3 + 3] != 0).any()
    assert (found[64 * 3 + 3 :] == 0).all()


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("clip_norm", 0.0, "clip_norm is 0.0; it must be a positive number"),
        ("clip_norm", float("nan"), "clip_norm is nan"),
        ("clip_norm", float("inf"), "clip_norm is inf"),
        ("clipping", "soft", "clipping is 'soft'; it must be one of flat, per-layer, automatic"),
        ("reduction", "max", "reduction is 'max'"),
        ("micro_batch", 0, "micro_batch is 0"),
    ],
)
def test_impossible_settings_are_refused(setting: str, value: Any, message: str, oracle: Any) -> None:
    settings = {"clip_norm": 1.0} | {setting: value}
    with pytest.raises(InvalidValue, match=message):
        PrivateGradients(small(), oracle.cross_entropy, **settings)


def test_loss_over_the_batch_is_refused() -> None:
    images, labels, units = batch()
    with pytest.raises(InvalidValue, match="one loss per image"):
        PrivateGradients(small(), functional.cross_entropy, 1.0).sum(images, labels, units)


def test_lengths_that_differ_are_refused(oracle: Any) -> None:
    images, labels, units = batch()
    engine = PrivateGradients(small(), oracle.cross_entropy, 1.0)
    with pytest.raises(InvalidValue, match="one integer unit"):
        engine.sum(images, labels[1:], units)
    with pytest.raises(InvalidValue, match="one integer unit"):
        engine.sum(images, labels, units.double())


@pytest.mark.parametrize("gone", [0, 3, 7])
def test_a_patient_who_is_not_finite_leaves_the_others_in_a_batch_of_the_same_size(
    gone: int, oracle: Any
) -> None:
    """In a smaller batch the others would be rounded otherwise. Black images are not finite here either."""
    torch.manual_seed(0)
    sizes: list[int] = []

    class Logarithms(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            sizes.append(len(x))
            return self.layer(x.log())

    model, labels, units = Logarithms(), torch.arange(8) % 3, torch.tensor([0, 1, 1, 2, 3, 4, 5, 6])
    images = torch.rand(8, 6) + 0.1
    engine = PrivateGradients(model, oracle.cross_entropy, 1.0, clipping="automatic")
    engine.check(images, labels)
    sizes.clear()
    images[gone] = 0
    found = engine.sum(images, labels, units)
    assert sizes == [8, 8]
    lost = int(units[gone])
    assert found.norms.isnan().nonzero().flatten().tolist() == [lost]
    rest = units != lost
    expected = engine.sum(images[rest], labels[rest], units[rest])
    assert torch.allclose(found.vector, expected.vector, atol=1e-6)
    assert torch.allclose(found.norms[found.norms.isfinite()], expected.norms)
