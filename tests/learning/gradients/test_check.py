"""What is refused before any budget is spent, and what a notice says."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedveil.errors import InvalidValue
from fedveil.learning.gradients import PrivateGradients, check_private
from fedveil.learning.networks import fix_batch_norm, replace_batch_norm


def with_batch_norm() -> nn.Sequential:
    """Convolution and batch norm."""
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))


class Mixing(nn.Module):
    """Centres activations over the batch, which no list of layers shows."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Subtract the batch mean."""
        x = x.flatten(1)
        return self.layer(x - x.mean(0))


class Outside(nn.Module):
    """Uses a layer's weight without running the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the weight by hand."""
        return functional.linear(x.flatten(1), self.layer.weight)


class Remembers(nn.Module):
    """Keeps a running mean of its images."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 2)
        self.register_buffer("seen", torch.zeros(64))

    def forward(self, x: Tensor) -> Tensor:
        """Update the buffer in place."""
        x = x.flatten(1)
        self.seen.mul_(0.9).add_(x.detach().mean(0))
        return self.layer(x)


class Folds(nn.Module):
    """Folds patches into the batch axis, all first patches before all second ones."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Four patches an image."""
        return self.layer(x.reshape(len(x), 4, 16).transpose(0, 1).reshape(-1, 16)).view(4, len(x), 2).sum(0)


class Overwrites(nn.Module):
    """Changes a layer's input in place after the layer has read it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        """Double the input afterwards."""
        x = x.flatten(1) * 1.0
        y = self.layer(x)
        x.mul_(2)
        return y + x


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (with_batch_norm, r"layer 1 \(BatchNorm2d\) normalises over the batch; .*replace_batch_norm"),
        (
            lambda: nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3, track_running_stats=False).eval()),
            "normalises",
        ),
        (lambda: nn.InstanceNorm2d(3, affine=True, track_running_stats=True), "running statistics"),
        (lambda: nn.Embedding(3, 3, max_norm=1.0), "depends on the whole batch"),
        (lambda: nn.Embedding(3, 3, scale_grad_by_freq=True), "depends on the whole batch"),
        (lambda: nn.MultiheadAttention(4, 2), "sequence before the batch"),
        (lambda: nn.Conv2d(1, 1, 1).requires_grad_(False), "no trainable parameters"),
        (lambda: nn.LazyLinear(3), "not initialised"),
        (lambda: nn.Linear(3, 3, dtype=torch.complex64), "not real"),
    ],
)
def test_layer_that_cannot_be_private_is_refused(model: Any, message: str) -> None:
    with pytest.raises(InvalidValue, match=message):
        check_private(model())
    with pytest.raises(InvalidValue, match=message):
        PrivateGradients(model(), functional.cross_entropy, 1.0)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Mixing, "differs by .* when other patients are in the batch"),
        (Outside, "parameter layer.weight is used outside the layer that holds it"),
        (Remembers, r"changed its own state \(seen\)"),
        (Folds, "when other patients are in the batch"),
        (Overwrites, "changed in place"),
    ],
)
def test_forward_pass_that_cannot_be_private_is_refused(model: Any, message: str) -> None:
    net = model()
    assert check_private(net) == ()  # every layer by itself is fine
    with pytest.raises(InvalidValue, match=message):
        check_private(net, (1, 8, 8))
    assert net.training


def test_no_unclipped_state_leaves_a_site(oracle: Any) -> None:
    images, labels = torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 0, 1])
    net = Remembers()
    with pytest.raises(InvalidValue, match="without noise"):
        PrivateGradients(net, oracle.cross_entropy, 1.0).sum(images, labels, torch.arange(4))
    assert torch.equal(net.seen, torch.zeros(64))  # what it had learnt is undone, too
    fixed = fix_batch_norm(with_batch_norm()).train()
    before = {name: buffer.clone() for name, buffer in fixed.named_buffers()}
    found = PrivateGradients(fixed, oracle.cross_entropy, 1.0).sum(images, labels, torch.arange(4))
    assert len(found.vector) == sum(p.numel() for p in fixed.parameters())
    assert all(torch.equal(before[name], buffer) for name, buffer in fixed.named_buffers())


@pytest.mark.parametrize("remedy", [replace_batch_norm, fix_batch_norm])
def test_remedies_for_batch_norm_work(remedy: Any, oracle: Any) -> None:
    net = remedy(with_batch_norm()).train()
    assert check_private(net, (1, 8, 8)) == ()


def test_batch_norm_that_returns_to_training_mode_is_refused(oracle: Any) -> None:
    net = with_batch_norm().eval()
    engine = PrivateGradients(net, oracle.cross_entropy, 1.0)
    images, labels = torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 0, 1])
    engine.sum(images, labels, torch.arange(4))
    net.train()
    with pytest.raises(InvalidValue, match="normalises over the batch"):
        engine.sum(images, labels, torch.arange(4))


def test_unknown_layers_come_with_a_notice() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.ones(1))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.gain

    net = nn.Sequential(nn.Linear(8, 2), Own())
    expected = ("layer 1 (Own) has no rule of its own and runs once per patient, which is slow",)
    assert check_private(net, (1, 8, 8)) == expected
    assert PrivateGradients(net, functional.cross_entropy, 1.0).notices == expected


def test_trial_leaves_the_model_as_it_was() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Dropout(0.5).eval(), nn.Flatten(), nn.Linear(72, 2))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    check_private(net, (1, 8, 8))
    assert [m.training for m in net] == [True, False, True, True]
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_dropout_does_not_spoil_the_trial() -> None:
    check_private(
        nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Dropout(0.5), nn.Linear(32, 2)), (1, 8, 8)
    )
