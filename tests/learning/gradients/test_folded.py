"""Windows and tokens that a network folds into the images: several rows for each image, in a row or refused."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.learning.gradients.small_networks import Called, refusal
from torch import Tensor, nn

from fedveil.learning.gradients import PrivateGradients, check_private
from fedveil.learning.gradients.rules import arithmetic
from fedveil.learning.networks.layers import FixedBatchNorm1d, FixedBatchNorm2d, WeightStandardizedConv2d

UNITS = torch.tensor([7, 2, 2, 5, 7, 7, 1, 1, 1, 1, 3])


def windows(x: Tensor) -> Tensor:
    """`(n, 4, 8, 8)` cut into four windows each, `(n * 4, 4, 4, 4)`."""
    return x.unflatten(3, (2, 4)).unflatten(2, (2, 4)).permute(0, 2, 4, 1, 3, 5).flatten(0, 2)


def whole(x: Tensor, images: int) -> Tensor:
    """Rows to one for each image."""
    return x.reshape(images, -1)


LAYERS: dict[str, tuple[Callable[[], nn.Module], Callable[[Tensor], Tensor]]] = {
    "linear": (lambda: nn.Linear(4, 6), lambda x: windows(x).permute(0, 2, 3, 1)),
    "linear of one position": (
        lambda: nn.Linear(4, 6),
        lambda x: windows(x).permute(0, 2, 3, 1).reshape(-1, 4),
    ),
    "convolution": (lambda: nn.Conv2d(4, 6, 3, padding=1), windows),
    "strided convolution": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1, dilation=2), windows),
    "grouped convolution": (lambda: nn.Conv2d(4, 8, 3, groups=4), windows),
    "reflected convolution": (
        lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect", bias=False),
        windows,
    ),
    "pointwise convolution": (lambda: nn.Conv2d(4, 6, 1), windows),
    "convolution of lines": (lambda: nn.Conv1d(4, 6, 3), lambda x: windows(x).flatten(2)),
    "layer norm": (lambda: nn.LayerNorm(4), lambda x: windows(x).permute(0, 2, 3, 1)),
    "rms norm": (lambda: nn.RMSNorm(4), lambda x: windows(x).permute(0, 2, 3, 1)),
    "group norm": (lambda: nn.GroupNorm(2, 4), windows),
    "instance norm": (lambda: nn.InstanceNorm2d(4, affine=True), windows),
    "fixed batch norm": (lambda: FixedBatchNorm2d(4), windows),
    "fixed batch norm of tokens": (
        lambda: FixedBatchNorm1d(4),
        lambda x: windows(x).permute(0, 2, 3, 1).reshape(-1, 4),
    ),
}


@pytest.fixture(params=["chosen", "gram", "kept"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Norms as the cost model chooses, all from Gram matrices, or all from instantiated gradients."""
    if request.param != "chosen":
        choice = (lambda self, b: b.buckets) if request.param == "gram" else (lambda self, b: ())
        monkeypatch.setattr(arithmetic.Cost, "deferred", choice)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("twice", [False, True], ids=["once", "twice"])
@pytest.mark.usefixtures("way")
def test_rows_that_belong_to_an_image_are_its_positions(name: str, twice: bool, oracle: Any) -> None:
    """Patients with one to four images, half of them clipped, in double precision; the layer once, or twice."""
    torch.manual_seed(0)
    build, fold = LAYERS[name]
    layer = build().double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    probe = layer(fold(torch.rand(1, 4, 8, 8, dtype=torch.float64)))

    def forward(net: nn.Module, x: Tensor) -> Tensor:
        y = torch.tanh(whole(net.layer(fold(x)), len(x)))
        return net.head(y + whole(net.layer(fold(x * x)), len(x)) if twice else y)

    model = Called(forward, layer=layer, head=nn.Linear(probe.numel(), 3).double())
    assert check_private(model, (4, 8, 8)) == ()
    images, labels = torch.randn(11, 4, 8, 8, dtype=torch.float64), torch.arange(11) % 3
    _, norms = oracle.sum(model, images, labels, UNITS, oracle.flat(1e9))
    bound = float(norms.median())
    expected, _ = oracle.sum(model, images, labels, UNITS, oracle.flat(bound))
    for micro_batch in (None, 5, 3):
        found = PrivateGradients(model, oracle.cross_entropy, bound, micro_batch=micro_batch).sum(
            images, labels, UNITS
        )
        assert oracle.error(found.norms, norms) < 1e-9
        assert oracle.error(found.vector, expected) < 1e-9
        assert (found.norms >= norms * (1 - 1e-12)).all()
    found = PrivateGradients(model.float(), oracle.cross_entropy, bound).sum(images.float(), labels, UNITS)
    assert oracle.error(found.vector, expected) < 3e-3
    assert (found.norms >= norms * (1 - 1e-4)).all()  # of the network in double precision


@pytest.mark.parametrize("name", LAYERS)
def test_windows_before_images_are_refused(name: str) -> None:
    """All first windows, then all second ones: of the same shape, for any number of images."""
    torch.manual_seed(0)
    build, fold = LAYERS[name]
    layer = build()

    def forward(net: nn.Module, x: Tensor) -> Tensor:
        rows = fold(x)
        each = len(rows) // len(x)
        swapped = rows.unflatten(0, (len(x), each)).transpose(0, 1).flatten(0, 1)
        back = net.layer(swapped).unflatten(0, (each, len(x))).transpose(0, 1)
        return net.head(torch.tanh(back.reshape(len(x), -1)))

    probe = layer(fold(torch.rand(1, 4, 8, 8)))
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    model = Called(forward, layer=layer, head=nn.Linear(probe.numel(), 3))
    plain = Called(
        lambda net, x: net.head(torch.tanh(whole(net.layer(fold(x)), len(x)))), layer=layer, head=model.head
    )
    assert torch.allclose(model(x := torch.rand(3, 4, 8, 8)), plain(x), atol=1e-5)
    assert check_private(plain, (4, 8, 8)) == ()
    assert "when other patients are in the batch" in refusal(model, (4, 8, 8))


@pytest.mark.parametrize(
    "mix",
    [
        lambda rows: rows.roll(1, 0),
        lambda rows: rows.flip(0),
        lambda rows: rows - 1e-6 * rows.mean(0),
        lambda rows: rows[rows.flatten(1).sum(1).argsort()],
    ],
)
def test_rows_that_are_mixed_are_found(mix: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    model = Called(
        lambda net, x: net.layer(mix(windows(x).permute(0, 2, 3, 1))).reshape(len(x), -1),
        layer=nn.Linear(4, 2),
    )
    assert "when other patients are in the batch" in refusal(model, (4, 8, 8))


@pytest.mark.parametrize(
    "layer",
    [
        lambda: nn.ConvTranspose2d(4, 4, 3),
        lambda: WeightStandardizedConv2d(4, 4, 3),
        lambda: nn.MultiheadAttention(4, 2, batch_first=True),
    ],
)
def test_layers_whose_rules_take_one_row_an_image_refuse_more(layer: Callable[[], nn.Module]) -> None:
    def forward(net: nn.Module, x: Tensor) -> Tensor:
        rows = windows(x)
        if isinstance(net.layer, nn.MultiheadAttention):
            tokens = rows.flatten(2).mT
            return net.layer(tokens, tokens, tokens)[0].reshape(len(x), -1)
        return net.layer(rows).reshape(len(x), -1)

    assert "has 4 rows for each image" in refusal(Called(forward, layer=layer()), (4, 8, 8))
