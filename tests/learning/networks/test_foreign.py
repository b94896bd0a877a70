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


FOLDED = ["levit_128s", "mobilevit_xxs"]
"""They fold tokens or windows into the images."""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [*ARCHITECTURES, *FOLDED])
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


def layer(module: str, name: str, **settings: Any) -> nn.Module:
    """A layer of timm, with random parameters, in double precision."""
    torch.manual_seed(0)
    made: nn.Module = getattr(importlib.import_module(f"timm.{module}"), name)(**settings)
    for parameter in made.parameters():
        nn.init.normal_(parameter)
    return made.double().eval()


def trained(net: nn.Module) -> list[nn.Parameter]:
    return [p for p in net.parameters() if p.requires_grad]


MAPS, TOKENS = (5, 8, 6, 6), (5, 9, 8)
REPLACED: dict[str, tuple[Any, tuple[int, ...]]] = {
    "GroupNorm1": (lambda: layer("layers", "GroupNorm1", num_channels=8), MAPS),
    "LayerScale": (lambda: layer("layers", "LayerScale", dim=8), TOKENS),
    "LayerScale2d": (lambda: layer("layers", "LayerScale2d", dim=8), MAPS),
    "LayerScale2d of FastViT": (lambda: layer("models.fastvit", "LayerScale2d", dim=8), MAPS),
    "Scale": (lambda: layer("models.metaformer", "Scale", dim=8), MAPS),
    "Affine": (lambda: layer("models.mlp_mixer", "Affine", dim=8), TOKENS),
    "GlobalResponseNorm": (lambda: layer("layers.grn", "GlobalResponseNorm", dim=8), (5, 6, 6, 8)),
    "GlobalResponseNorm of maps": (
        lambda: layer("layers.grn", "GlobalResponseNorm", dim=8, channels_last=False),
        MAPS,
    ),
    "StdConv2d": (
        lambda: layer("layers", "StdConv2d", in_channel=8, out_channels=4, kernel_size=3, groups=2),
        MAPS,
    ),
    "ScaledStdConv2d": (
        lambda: layer(
            "layers", "ScaledStdConv2d", in_channels=8, out_channels=4, kernel_size=3, stride=2, gamma=1.7
        ),
        MAPS,
    ),
    "ScaledStdConv2d to one channel": (
        lambda: layer("layers", "ScaledStdConv2d", in_channels=8, out_channels=1, kernel_size=3, bias=False),
        MAPS,
    ),
    "WindowAttention": (
        lambda: layer(
            "models.swin_transformer_v2", "WindowAttention", dim=8, window_size=(3, 3), num_heads=2
        ),
        TOKENS,
    ),
    "EvaAttention": (
        lambda: layer("models.eva", "EvaAttention", dim=8, num_heads=2, scale_norm=False),
        TOKENS,
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", REPLACED)
def test_a_layer_put_in_the_place_of_another_has_its_outputs_and_gradients(name: str) -> None:
    build, shape = REPLACED[name]
    old, new = build(), foreign._plain(build())
    for net in (old, new):
        foreign._fix_outside(net, draw=False)
    images = torch.randn(shape, dtype=torch.float64)
    assert torch.allclose(new(images), old(images), rtol=1e-12, atol=1e-12)
    assert check_private(new, shape[1:]) == ()
    each = [
        torch.cat([g.flatten() for g in torch.autograd.grad(net(images).square().sum(), trained(net))])
        for net in (old, new)
    ]
    if "Attention" in name:  # of which the biases are trained only once they belong to the layer
        assert len(each[1]) == len(each[0]) + 24
    else:
        assert torch.allclose(each[0].sort().values, each[1].sort().values, rtol=1e-9, atol=1e-9)


def test_settings_that_timm_starts_at_one_number_are_kept() -> None:
    """A temperature that is drawn around 0 would make attention uniform."""

    class Cosine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.logit_scale, self.cls_token = (
                nn.Parameter(torch.full((2, 1), 2.3)),
                nn.Parameter(torch.zeros(4)),
            )
            self.inner = nn.Linear(2, 2)

    model = Cosine()
    foreign._fix_outside(model, draw=True)
    assert (model.logit_scale == 2.3).all()
    assert model.cls_token.abs().min() > 0
    assert set(trainable_parameters(model)) == {"inner.weight", "inner.bias"}


def test_layers_that_see_positions_only_are_not_trained() -> None:
    torch.manual_seed(0)
    model = nn.Module()
    model.cpb_mlp, model.proj = nn.Linear(2, 2), nn.Linear(2, 2)
    model.table = layer("layers", "RelPosBias", window_size=(2, 2), num_heads=1)
    foreign._fix_outside(model, draw=True)
    assert set(trainable_parameters(model)) == {"proj.weight", "proj.bias"}
