"""Networks of one's own: what is called, what is refused, and what does not depend on the seed."""

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedveil.errors import InvalidValue
from fedveil.learning import NetworkModel, NetworkSizes

SETTINGS = {"classes": 3, "channels": 1, "image_size": 12}


def small(*, classes: int, channels: int, image_size: int) -> nn.Module:
    assert (channels, image_size) == (1, 12)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(400, classes)
    )


def frozen(*, classes: int, channels: int, image_size: int) -> nn.Module:
    """Random features that are not trained, below a linear layer."""
    body = nn.Sequential(nn.Flatten(), nn.Linear(144, 8)).requires_grad_(False)
    return nn.Sequential(body, nn.Linear(8, classes))


def drawn_elsewhere(*, classes: int, channels: int, image_size: int) -> nn.Module:
    net = frozen(classes=classes, channels=channels, image_size=image_size)
    net[0][1].weight.copy_(torch.from_numpy(np.random.default_rng().random((8, 144), np.float32)))
    return net


def batch_norm(*, classes: int, channels: int, image_size: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(400, classes))


class Mean(nn.Module):
    """Subtracts the mean over the batch: it mixes patients."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


def mixed(*, classes: int, channels: int, image_size: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), Mean(), nn.Linear(144, classes))


class Attribute(nn.Module):
    """A random projection in a plain attribute, below a head of zeros."""

    def __init__(self, classes: int, projection: Tensor) -> None:
        super().__init__()
        self.projection, self.head = projection, nn.Linear(8, classes)
        nn.init.zeros_(self.head.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(x.flatten(1) @ self.projection.to(x)))


def attribute(*, classes: int, channels: int, image_size: int) -> nn.Module:
    return Attribute(classes, torch.randn(144, 8))


def public_attribute(*, classes: int, channels: int, image_size: int) -> nn.Module:
    return Attribute(classes, torch.randn(144, 8, generator=torch.Generator().manual_seed(1)))


def shares_memory(*, classes: int, channels: int, image_size: int) -> nn.Module:
    """The frozen layer's weights are those of the trained one."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(144, 144), nn.Linear(144, classes))
    net[1].requires_grad_(False)
    net[2].weight = nn.Parameter(net[1].weight.detach()[:classes])
    return net


def tied(*, classes: int, channels: int, image_size: int) -> nn.Module:
    """One parameter with two names is no other parameter."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(144, 144), nn.Linear(144, 144), nn.Linear(144, classes))
    net[2].weight = net[1].weight
    return net


class AtSomeSizes(nn.Module):
    """Wrong for some numbers of images: their mean is subtracted, or rows of windows are ordered by window."""

    def __init__(self, classes: int, when: Callable[[int], bool], folded: bool) -> None:
        super().__init__()
        self.when, self.folded = when, folded
        self.inner, self.head = nn.Linear(36, 4), nn.Linear(16, classes)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(1).unflatten(1, (4, 36))
        if not self.when(len(x)):
            rows = self.inner(rows.flatten(0, 1)).unflatten(0, (len(x), 4))
        elif self.folded:
            rows = self.inner(rows.transpose(0, 1).flatten(0, 1)).unflatten(0, (4, len(x))).transpose(0, 1)
        else:
            rows = self.inner((rows - rows.mean(0)).flatten(0, 1)).unflatten(0, (len(x), 4))
        return self.head(torch.tanh(rows.flatten(1)))


def by_fours(*, classes: int, channels: int, image_size: int) -> nn.Module:
    return AtSomeSizes(classes, lambda n: n % 4 == 0, folded=False)


def windows_by_eights(*, classes: int, channels: int, image_size: int) -> nn.Module:
    return AtSomeSizes(classes, lambda n: n % 8 == 0, folded=True)


def by_threes(*, classes: int, channels: int, image_size: int) -> nn.Module:
    return AtSomeSizes(classes, lambda n: n % 3 == 0 and n > 32, folded=True)


def many(*, classes: int, channels: int, image_size: int) -> nn.Module:
    return AtSomeSizes(classes, lambda n: n > 200, folded=False)


def too_few(*, classes: int, channels: int, image_size: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(144, 1))


def in_double(*, classes: int, channels: int, image_size: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(144, classes)).double()


def breaks(*, classes: int, channels: int, image_size: int) -> nn.Module:
    raise RuntimeError("no luck")


def no_module(*, classes: int, channels: int, image_size: int) -> Any:
    return classes


def other_arguments(size: int) -> nn.Module:
    raise AssertionError("it must not be called")


@pytest.fixture(autouse=True)
def clinic(monkeypatch: pytest.MonkeyPatch) -> None:
    """The functions of this file, as the module that a study names."""
    package, module = ModuleType("clinic"), ModuleType("clinic.networks")
    sizes = (by_fours, windows_by_eights, by_threes, many)
    others = (
        shares_memory,
        tied,
        attribute,
        public_attribute,
        drawn_elsewhere,
        batch_norm,
        mixed,
        too_few,
        in_double,
        breaks,
        no_module,
    )
    for one in (small, frozen, *sizes, *others):
        setattr(module, one.__name__, one)
    vars(module).update(other_arguments=other_arguments, number=3)
    monkeypatch.setitem(sys.modules, "clinic", package)
    monkeypatch.setitem(sys.modules, "clinic.networks", module)


def build(name: str, seed: int = 0) -> NetworkModel:
    return NetworkModel(f"module:clinic.networks.{name}", **SETTINGS, seed=seed)


def test_the_function_is_called_and_its_network_tried_out() -> None:
    model = build("small")
    assert model.trial.notices == ()
    assert model.trained == 4 * 9 + 4 + 8 + 400 * 3 + 3
    assert not np.array_equal(model.initial(), build("small", 1).initial())
    assert np.array_equal(model.initial(), build("small").initial())


def test_a_parameter_may_have_two_names() -> None:
    assert build("tied").trained == 144 * 144 + 2 * 144 + 144 * 3 + 3


def test_its_sizes_are_known_without_a_model() -> None:
    sizes, model = NetworkSizes.of("module:clinic.networks.frozen", **SETTINGS), build("frozen")
    assert (sizes.trained, sizes.parameters) == (model.trained, model.parameters) == (27, 30)


def test_what_is_not_trained_does_not_depend_on_the_seed() -> None:
    one, other = build("frozen", 1), build("frozen", 2)
    assert one.fixed == other.fixed == build("frozen").fixed
    assert torch.equal(one.module[0][0][1].weight, other.module[0][0][1].weight)
    assert not np.array_equal(one.initial(), other.initial())


def test_a_constant_that_follows_from_the_seed_is_refused() -> None:
    """A saved model is built with seed 0: a tensor that is no buffer would be another one there."""
    with pytest.raises(
        InvalidValue, match="depends on the seed other than through its parameters and buffers"
    ):
        build("attribute", 5)
    one, other = build("public_attribute", 5), build("public_attribute")
    assert torch.equal(one.module[0].projection, other.module[0].projection)
    assert not np.array_equal(one.initial(), other.initial())
    assert not one.module[0].head.weight.any(), "initial values are as they were built"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("clinic.networks.nothing", "has no function nothing: give the function's full name"),
        ("clinic.networks.number", "has no function number"),
        ("clinic.elsewhere.small", r"cannot be imported here \(ModuleNotFoundError.*: install the package"),
        (
            "clinic.networks.other_arguments",
            "does not name the arguments classes, channels, image_size: define it",
        ),
        ("clinic.networks.breaks", r"raised RuntimeError for 3 classes.*no luck\): correct the function"),
        ("clinic.networks.no_module", "returned a int, which is no torch.nn.Module"),
        ("clinic.networks.shares_memory", "shares memory with another parameter or buffer"),
        ("clinic.networks.in_double", "float64: return model.float"),
        ("clinic.networks.batch_norm", r"normalises over the batch.*replace_batch_norm\(model\)"),
        ("clinic.networks.drawn_elsewhere", "two calls with one seed .* differ: let it draw from torch's"),
    ],
)
def test_what_is_no_suitable_function_is_refused(name: str, why: str) -> None:
    with pytest.raises(InvalidValue, match=why):
        NetworkModel(f"module:{name}", **SETTINGS)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("mixed", "treat each patient's images independently"),
        ("by_fours", "treat each patient's images independently"),
        ("windows_by_eights", "treat each patient's images independently"),
        ("by_threes", "treat each patient's images independently"),
        ("many", "treat each patient's images independently"),
        ("too_few", r"returns \[\(1, 1\)\] for one image"),
    ],
)
def test_what_the_trial_finds_is_refused_before_anything_is_charged(name: str, why: str) -> None:
    with pytest.raises(InvalidValue, match=why):
        _ = build(name).trial
