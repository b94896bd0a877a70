"""What a trial learns of a network's calls, and what it refuses."""

import functools
import subprocess
import sys
from typing import Any

import pytest
import torch
from tests.learning.gradients.small_networks import Called, Gain, refusal
from torch import Tensor, nn
from torch.nn import functional

from fedveil.errors import InvalidValue
from fedveil.learning.gradients import PrivateGradients, check_private, try_out


class Placed(nn.Module):
    """Scales rows, and multiplies what it is given of a table."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.rand(49, 1) + 0.5)

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """`(n, 49, w)` and `(49, 1)`."""
        return x * positions * self.gain


def test_table_as_long_as_the_batch_is_not_cut(oracle: Any) -> None:
    """49 images, and a table of 49 positions: one patient less must not move the others."""
    torch.manual_seed(0)
    table = 30 * torch.randn(49, 1)
    model = Called(lambda net, x: net.placed(x, table).sum(1), placed=Placed())
    images, labels = torch.rand(49, 49, 3), torch.arange(49) % 3
    units = torch.arange(49)
    assert check_private(model, (49, 3)) == (
        "layer placed (Placed) has no rule of its own and runs once per patient, which is slow",
    )
    engine = PrivateGradients(model, oracle.cross_entropy, 0.1)
    whole = engine.sum(images, labels, units).vector
    expected, _ = oracle.sum(model, images, labels, units, oracle.flat(0.1))
    assert oracle.error(whole, expected) < 1e-4
    less = engine.sum(images[1:], labels[1:], units[1:]).vector
    assert (whole - less).norm() <= 0.1 * (1 + 1e-4)


@pytest.mark.parametrize("layer", [nn.Linear, nn.LayerNorm, Gain])
def test_colours_before_images_are_never_taken_for_images(layer: Any, oracle: Any) -> None:
    """Three colours first: whatever the numbers are, no trial passes by chance."""
    for seed in range(40):
        torch.manual_seed(seed)
        model = Called(
            lambda net, x: net.layer(x.transpose(0, 1)).transpose(0, 1).flatten(1),
            layer=layer(8, 8) if layer is nn.Linear else layer(8),
        )
        if layer is not Gain:
            assert "has the images along axis 1 of (3, 5, 8, 8)" in refusal(model, (3, 8, 8))
            continue
        check_private(model, (3, 8, 8))  # runs once per patient, on its part of the axis that is the images
        batch = torch.rand(3, 3, 8, 8), torch.arange(3), torch.arange(3)
        found = PrivateGradients(model, oracle.cross_entropy, 1e-3).sum(*batch)
        expected, norms = oracle.sum(model, *batch, oracle.flat(1e-3))
        assert oracle.error(found.norms, norms) < 1e-5
        assert oracle.error(found.vector, expected) < 1e-5


@pytest.mark.parametrize(
    "layer", [nn.Embedding, nn.EmbeddingBag, lambda *a: nn.EmbeddingBag(*a, sparse=True)]
)
def test_whole_numbers_are_tried_too(layer: Any, oracle: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(layer(11, 4), nn.Flatten(), nn.LazyLinear(3)).double()
    images, labels = torch.randint(11, (4, 4)), torch.arange(4) % 3
    model(images)
    assert "check_private(model, shape, dtype=torch.long)" in refusal(model, (4,))
    check_private(model, (4,), dtype=torch.long)
    units = torch.tensor([0, 1, 0, 2])
    found = PrivateGradients(model, oracle.cross_entropy, 1e30).sum(images, labels, units)
    table = model[0].weight
    expected = []
    for unit in range(3):
        mine = units == unit
        gradients = torch.autograd.grad(
            oracle.cross_entropy(model(images[mine]), labels[mine]).mean(), [*model.parameters()]
        )
        expected.append(torch.cat([g.to_dense().flatten() for g in gradients]).norm())
    assert table.grad is None
    torch.testing.assert_close(found.norms, torch.stack(expected))


def test_network_of_whole_numbers_that_mixes_patients_is_refused() -> None:
    model = Called(lambda net, x: net.a(x).flip(0), a=nn.Embedding(11, 4))
    assert "when other patients are in the batch" in refusal(model, (4,), dtype=torch.long)


@pytest.mark.parametrize("amount", [1e-5, 1e-3, 1.0])
def test_patients_who_are_mixed_a_little_are_found(amount: float) -> None:
    model = Called(lambda net, x: net.a(x - amount * x.mean(0)), a=nn.Linear(8, 2))
    assert "when other patients are in the batch" in refusal(model, (8,))


def test_patients_who_are_mistaken_below_a_head_of_zeros_are_found() -> None:
    model = Called(lambda net, x: net.head(net.a(x.flip(0)).flip(0)), a=nn.Linear(8, 4), head=nn.Linear(4, 2))
    nn.init.zeros_(model.head.weight)
    assert "when other patients are in the batch" in refusal(model, (8,))


def test_patients_who_are_mixed_in_training_alone_are_found() -> None:
    model = Called(lambda net, x: net.a(x - x.mean(0) if net.training else x), a=nn.Linear(8, 2))
    check_private(model.eval(), (8,))
    assert "when other patients are in the batch" in refusal(model.train(), (8,))


def test_model_is_tried_out_again_in_another_mode(oracle: Any) -> None:
    model = Called(lambda net, x: net.a(x - x.mean(0) if net.training else x), a=nn.Linear(8, 2)).eval()
    engine, batch = (
        PrivateGradients(model, oracle.cross_entropy, 1.0),
        (torch.rand(4, 8), torch.arange(4) % 2),
    )
    engine.sum(*batch, torch.arange(4))
    model.train()
    with pytest.raises(InvalidValue, match="when other patients are in the batch"):
        engine.sum(*batch, torch.arange(4))


def test_engine_tries_a_model_out_by_itself(oracle: Any) -> None:
    model = Called(lambda net, x: net.a(x.flip(0)).flip(0), a=nn.Linear(8, 2))
    with pytest.raises(InvalidValue, match="when other patients are in the batch"):
        PrivateGradients(model, oracle.cross_entropy, 1.0).sum(
            torch.rand(4, 8), torch.arange(4) % 2, torch.arange(4)
        )


def test_single_precision_inside_a_network_is_no_mistake() -> None:
    check_private(Called(lambda net, x: net.a(x).float().tanh().to(x), a=nn.Linear(8, 2)), (8,))
    check_private(Called(lambda net, x: net.a(x.float()), a=nn.Linear(8, 2)), (8,))


def test_constants_that_a_layer_returns_are_no_images() -> None:
    class Several(Gain):
        def forward(self, x: Tensor) -> Any:  # type: ignore[override]
            return super().forward(x), None, "a name", self.gain.detach()

    check_private(Called(lambda net, x: net.a(x)[0] + net.a(x)[3], a=Several(8)), (8,))


class Either(Gain):
    """Multiplies rows by all rows of a table, or each by a row of its own: nothing in the call says which."""

    whole = False

    def forward(self, x: Tensor, other: Tensor) -> Tensor:  # type: ignore[override]
        """`(n, 4)`; `other` is `(6, 4)` or `(n, 4)`."""
        return super().forward((x @ other.T).sum(1, keepdim=True) * x if self.whole else x * other[: len(x)])


class Twice(nn.Module):
    """One layer twice: with a table of six rows, and with a row for each image."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.skips, self.table = Either(4), False, nn.Buffer(torch.rand(6, 4))

    def forward(self, x: Tensor) -> Tensor:
        """`(n, 4)` to the same."""
        self.layer.whole = True
        y = x if self.skips else self.layer(x, self.table)
        self.layer.whole = False
        return self.layer(y, x)


def test_calls_that_differ_are_never_taken_for_each_other(oracle: Any) -> None:
    """Six images: the table and their rows have the same shape."""
    torch.manual_seed(0)
    model = Twice()
    engine = PrivateGradients(model, oracle.cross_entropy, 1e-3, trial=try_out(model, (4,)))
    batch = torch.rand(6, 4), torch.arange(6) % 4, torch.arange(6)
    expected, norms = oracle.sum(model, *batch, oracle.flat(1e-3))
    found = engine.sum(*batch)
    assert oracle.error(found.norms, norms) < 1e-5
    assert oracle.error(found.vector, expected) < 1e-5
    model.skips = True
    with pytest.raises(InvalidValue, match="layer is called 1 times, and 2 times in the trial"):
        engine.sum(*batch)
    assert not any("forward" in vars(module) for module in model.modules())


def test_layers_that_the_trial_has_not_seen_are_refused(oracle: Any) -> None:
    trial = try_out(nn.Linear(8, 2), (8,))
    engine = PrivateGradients(nn.Linear(8, 2), oracle.cross_entropy, 1.0, trial=trial)
    with pytest.raises(InvalidValue, match="called 1 times, and 0 times in the trial"):
        engine.sum(torch.rand(4, 8), torch.arange(4) % 2, torch.arange(4))


def test_layers_may_be_left_out_and_repeated_where_every_call_is_the_same(oracle: Any) -> None:
    model = Called(
        lambda net, x: [x := torch.tanh(net.a(x)) for _ in range(net.times)][-1], a=nn.Linear(3, 3)
    )
    model.times = 2
    engine = PrivateGradients(model, oracle.cross_entropy, 1.0, trial=try_out(model, (3,)))
    batch = torch.rand(4, 3), torch.arange(4) % 3, torch.arange(4)
    for model.times in (1, 2, 3):
        expected, _ = oracle.sum(model, *batch, oracle.flat(1.0))
        torch.testing.assert_close(engine.sum(*batch).vector, expected.float())


def test_shapes_that_follow_from_what_images_show_are_refused(oracle: Any) -> None:
    """Whatever a layer is given must be what it was in the trial, but for the number of images."""
    model = Called(lambda net, x: net.a(x[:, : 6 + 2 * int(x.sum() < 0)], scale=1.0).sum(1), a=Gain(1))
    images, labels = torch.rand(4, 8, 1), torch.zeros(4, dtype=torch.long)
    engine = PrivateGradients(model, oracle.cross_entropy, 1.0)
    engine.sum(images, labels, torch.arange(4))
    with pytest.raises(InvalidValue, match=r"argument \[0\] of layer a .* is not for 4 images what it was"):
        engine.sum(-images, labels, torch.arange(4))
    model = Called(lambda net, x: net.a(x).flatten(1)[:, : 3 + int(x.sum() < 0)], a=nn.Linear(1, 1))
    engine = PrivateGradients(model, oracle.cross_entropy, 1.0)
    engine.sum(images, labels, torch.arange(4))
    with pytest.raises(InvalidValue, match="result of the network is not for 4 images what it was"):
        engine.sum(-images, labels, torch.arange(4))


def test_loss_that_is_as_long_as_the_batch_by_chance_is_refused() -> None:
    """Four classes, four images: a mean over images instead of classes has the same shape."""
    model, images, labels = nn.Linear(8, 4), torch.rand(4, 8), torch.rand(4, 4)
    with pytest.raises(InvalidValue, match="one loss per image"):
        PrivateGradients(model, lambda o, y: (o - y).square().mean(0), 1.0).sum(
            images, labels, torch.arange(4)
        )
    with pytest.raises(InvalidValue, match="loss of an image changes with the other images"):
        PrivateGradients(model, lambda o, y: (o - o.mean(0)).square().mean(1), 1.0).sum(
            images, labels, torch.arange(4)
        )
    with pytest.raises(
        InvalidValue, match=r"loss cannot be computed \(ValueError: Expected input batch_size"
    ):
        PrivateGradients(model, lambda o, y: functional.cross_entropy(o[1:], y), 1.0).sum(
            images, torch.arange(4), torch.arange(4)
        )
    PrivateGradients(model, lambda o, y: (o - y).square().mean(1), 1.0).sum(images, labels, torch.arange(4))


def test_sizes_of_a_trial_have_no_common_divisor() -> None:
    try_out(nn.Linear(8, 2), (8,), sizes=(11, 13))
    for sizes in ((6, 9), (1, 7), (5, 5)):
        with pytest.raises(InvalidValue, match="without a common divisor"):
            try_out(nn.Linear(8, 2), (8,), sizes=sizes)


class MeanOfMany(nn.Module):
    """Subtracts the mean over eight images or more."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0) if len(x) >= 8 else x


@pytest.mark.parametrize(("count", "micro_batch"), [(12, None), (12, 8), (0, 8)])
def test_a_model_is_tried_at_the_length_of_its_first_batch_too(count: int, micro_batch: int | None) -> None:
    model = nn.Sequential(MeanOfMany(), nn.Linear(8, 2))
    loss = functools.partial(functional.cross_entropy, reduction="none")
    engine = PrivateGradients(model, loss, 1.0, micro_batch=micro_batch)
    images, labels = torch.rand(12, 8), torch.arange(12) % 2
    with pytest.raises(InvalidValue, match="independently"):
        engine.check(images[:count], labels[:count])
    engine = PrivateGradients(model, loss, 1.0)
    engine.check(images[:0], labels[:0])  # no length is known yet
    with pytest.raises(InvalidValue, match="independently"):
        engine.sum(images, labels, torch.arange(12))


def test_trial_leaves_model_and_random_numbers_as_they_were() -> None:
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 8), nn.Dropout(0.5), nn.BatchNorm1d(8).eval(), nn.Linear(8, 2)
    )
    before = {
        name: (value, value.clone(), value.dtype) for name, value in model.state_dict(keep_vars=True).items()
    }
    modes, state = [m.training for m in model.modules()], torch.get_rng_state()
    check_private(model, (1, 8, 8))
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in model.modules()] == modes
    for name, value in model.state_dict(keep_vars=True).items():
        original, copy, dtype = before[name]
        assert value is original
        assert value.dtype == dtype
        assert torch.equal(value, copy)


def test_opacus_is_never_imported() -> None:
    """Layers that only Opacus has samplers for run once per patient; Opacus need not be installed."""
    code = (
        "import sys; sys.modules['opacus'] = None\n"
        "import torch; from torch import nn\n"
        "from fedveil.learning.gradients import PrivateGradients, check_private\n"
        "net = nn.Sequential(nn.EmbeddingBag(9, 4), nn.Linear(4, 2))\n"
        "loss = lambda o, y: nn.functional.cross_entropy(o, y, reduction='none')\n"
        "images = torch.randint(9, (4, 3))\n"
        "PrivateGradients(net, loss, 1.0).sum(images, torch.arange(4) % 2, torch.arange(4))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
