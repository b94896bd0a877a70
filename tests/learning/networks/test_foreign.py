"""Networks from timm: the package itself where it is installed, and in its place one that has its manners."""

import importlib
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedveil.errors import InvalidValue
from fedveil.learning.gradients import check_private, dimension, flatten_parameters, trainable_parameters
from fedveil.learning.networks import fix_batch_norm, foreign, network


class Tokens(nn.Module):
    """A network that holds parameters beside its layers."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.pos_embed, self.gamma = nn.Parameter(torch.rand(size, size)), nn.Parameter(torch.tensor(1e-6))
        self.stem, self.norm = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Add, convolve, pool, classify."""
        x = self.norm(self.stem(x + self.pos_embed))
        return self.head((self.gamma * x).mean((2, 3)))


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Knows "tiny", of fixed size and with weights, and "far", whose weights are elsewhere."""
    module: Any = ModuleType("timm")

    def create_model(
        name: str, *, pretrained: bool, num_classes: int, in_chans: int, img_size: int = 0
    ) -> nn.Module:
        if name == "far" and pretrained:
            raise OSError("the hub cannot be reached")
        assert (num_classes, in_chans) == (2, 1)
        return Tokens(img_size) if name == "tiny" else nn.Sequential(nn.Flatten(), nn.Linear(64, 2))

    module.create_model, module.is_model = create_model, {"tiny", "far"}.__contains__
    module.get_pretrained_cfg = lambda name: SimpleNamespace(fixed_input_size=name == "tiny")
    monkeypatch.setitem(sys.modules, "timm", module)
    return module


def build(name: str, seed: int = 0) -> nn.Module:
    return network(name, classes=2, channels=1, image_size=8, seed=seed)


def test_a_network_without_its_package_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InvalidValue, match=r"timm is not installed.*fedveil\[timm\]"):
        build("timm:tiny")


@pytest.mark.usefixtures("timm")
def test_a_network_that_cannot_be_had_is_refused_with_the_remedy() -> None:
    with pytest.raises(InvalidValue, match="knows no network of this name"):
        build("timm:unknown")
    with pytest.raises(
        InvalidValue, match=r"the hub cannot be reached.* start from random weights: .*far@scratch"
    ):
        build("timm:far")
    assert dimension(build("timm:far@scratch")) == 130


@pytest.mark.usefixtures("timm")
@pytest.mark.parametrize("name", ["timm:tiny", "timm:tiny@scratch"])
def test_parameters_beside_layers_are_frozen_and_batch_norm_is_gone(name: str) -> None:
    net = build(name)
    assert check_private(net, (1, 8, 8)) == ()
    assert not {"1.pos_embed", "1.gamma"} & trainable_parameters(net).keys()
    assert isinstance(net[1].norm, nn.GroupNorm) == name.endswith("scratch")


@pytest.mark.usefixtures("timm")
def test_what_is_not_trained_does_not_depend_on_the_seed() -> None:
    """`fedveil predict` knows the name of a network and its trained parameters, not the seed."""
    one, other = build("timm:tiny@scratch", 1), build("timm:tiny@scratch", 2)
    assert torch.equal(one[1].pos_embed, other[1].pos_embed)
    assert one[1].gamma == 1
    assert not torch.equal(flatten_parameters(one), flatten_parameters(other))


ARCHITECTURES = [
    "resnet18",
    "densenet121",
    "mobilenetv3_small_050",
    "efficientnet_b0",
    "convnext_atto",
    "vit_tiny_patch16_224",
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_networks_of_the_package_are_private_and_fast(name: str) -> None:
    net = network(f"timm:{name}@scratch", classes=2, channels=1, image_size=64, seed=0).eval()
    assert check_private(net, (1, 64, 64)) == ()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_layers_put_in_the_place_of_others_compute_the_same(name: str) -> None:
    package = importlib.import_module("timm")
    size = {"img_size": 64} if name.startswith("vit") else {}
    net, images = package.create_model(name, num_classes=2, **size).eval(), torch.rand(2, 3, 64, 64)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    expected = net(images)
    assert torch.equal(foreign._plain(fix_batch_norm(net))(images), expected)
