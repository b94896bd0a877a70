"""Networks by name: shapes, seeds, fitness for private training, public weights."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from fedveil.errors import InvalidValue
from fedveil.learning.encoders.efficientnet import pretrained
from fedveil.learning.gradients import check_private, dimension, flatten_parameters
from fedveil.learning.networks import (
    NETWORKS,
    Centred,
    FixedBatchNorm2d,
    WeightStandardizedConv2d,
    densenet121,
    efficientnet_lite0,
    fix_batch_norm,
    network,
    replace_batch_norm,
    resnet18,
    split_frozen,
)
from fedveil.learning.networks.layers import MeanAndDeviation


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("channels", "size"), [(1, 32), (3, 64)])
def test_network_can_be_trained_privately(name: str, channels: int, size: int) -> None:
    name = f"{name}@{size}" if name.startswith("efficientnet") else name
    net = network(name, classes=3, channels=channels, image_size=size, seed=0)
    assert check_private(net, (channels, size, size)) == ()
    assert net(torch.rand(2, channels, size, size)).shape == (2, 3)


@pytest.mark.parametrize("size", [28, 64, 128])
def test_residual_network_adapts_its_stem_to_the_image(size: int) -> None:
    net = resnet18(2, 1, size)
    maps = nn.Sequential(*list(net)[:-3])(torch.rand(1, 1, size, size))
    assert maps.shape[1] == 512
    assert 4 <= maps.shape[2] <= 8 if size > 64 else maps.shape[2] == 4


def test_parameter_counts_are_the_published_ones() -> None:
    # torchvision's ResNet-18 and DenseNet-121 with 1000 classes have 11,689,512 and 7,978,856 parameters.
    # Group norm has as many as batch norm.
    assert dimension(resnet18(1000, 3, 224, standardize=False)) == 11_689_512
    assert dimension(densenet121(1000, 3, 224)) == 7_978_856


@pytest.mark.parametrize("name", ["cnn", "resnet18"])
def test_seed_fixes_the_parameters_and_nothing_else(name: str) -> None:
    def build(seed: int) -> torch.Tensor:
        return flatten_parameters(network(name, classes=2, channels=1, image_size=32, seed=seed))

    torch.manual_seed(99)
    expected = torch.rand(3)
    torch.manual_seed(99)
    first = build(1)
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(first, build(1))
    assert not torch.equal(first, build(2))


def test_no_network_keeps_statistics_of_its_images() -> None:
    for name in NETWORKS:
        net = network(name, classes=2, channels=1, image_size=32, seed=0).train()
        before = {key: buffer.clone() for key, buffer in net.named_buffers()}
        net(torch.rand(2, 1, 32, 32))
        assert all(torch.equal(before[key], buffer) for key, buffer in net.named_buffers())


def test_preprocessing_constants_are_public() -> None:
    # Input scaling is a constant of the source: no buffer or parameter to be fitted to images.
    scale = network("cnn", classes=2, channels=1, image_size=32, seed=0)[0]
    assert list(scale.parameters()) == list(scale.buffers()) == []
    assert torch.equal(scale(torch.tensor([0.5]).view(1, 1, 1, 1)), torch.zeros(1, 1, 1, 1))


@pytest.mark.parametrize("trained_blocks", [0, 1, 3])
def test_pretrained_network_computes_what_the_package_does(trained_blocks: int) -> None:
    net, images = efficientnet_lite0(2, 64, trained_blocks=trained_blocks), torch.rand(3, 1, 64, 64)
    source, maps = pretrained(64), []
    source._blocks[10].register_forward_hook(lambda module, x, y: maps.append(y))
    source.extract_features((images.expand(-1, 3, -1, -1) * 255 - 127) / 128)
    expected = torch.cat([maps[0].mean((2, 3)), maps[0].std((2, 3), correction=0)], 1)
    found = nn.Sequential(*list(net)[:-2])(images)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


def test_pretrained_network_trains_the_norms_of_its_last_blocks_and_its_head() -> None:
    head, norms = 2 * 2 * 112, 2 * (672 + 672 + 112)
    for blocks in (0, 1, 2):
        net = efficientnet_lite0(2, 64, trained_blocks=blocks)
        assert dimension(net) == head + blocks * norms
        assert sum(isinstance(m, FixedBatchNorm2d) for m in net.modules()) == 3 * blocks
    with pytest.raises(InvalidValue, match="11 of EfficientNet-Lite0's blocks"):
        efficientnet_lite0(2, 64, trained_blocks=12)


def test_centred_features_have_one_length_and_lose_their_centre() -> None:
    layer, features = Centred((3, 5), 2.0), torch.randn(4, 8)
    unit = torch.cat([functional.normalize(part, dim=1) for part in features.split((3, 5), 1)], 1) / 2**0.5
    torch.testing.assert_close(layer.unit(features), unit)
    torch.testing.assert_close(layer(features), 2 * unit)
    layer.centre.copy_(unit[0])
    centred = layer(features)
    assert not centred[0].any()
    torch.testing.assert_close(centred[1:].norm(dim=1), torch.full((3,), 2.0))
    torch.testing.assert_close(centred, 2 * layer.unit(unit - unit[0]))


def test_a_constant_map_has_a_finite_gradient() -> None:
    maps = torch.ones(1, 2, 4, 4, requires_grad=True)
    MeanAndDeviation()(maps).sum().backward()
    assert maps.grad is not None
    assert maps.grad.isfinite().all()


@pytest.mark.parametrize("name", ["cnn", "efficientnet-lite0@64"])
def test_frozen_part_and_rest_make_the_network(name: str) -> None:
    net, images = network(name, classes=2, channels=1, image_size=32, seed=0), torch.rand(2, 1, 32, 32)
    frozen, rest = split_frozen(net)
    torch.testing.assert_close(rest(frozen(images)), net(images))
    assert not any(p.requires_grad for p in frozen.parameters())
    assert dimension(rest) == dimension(net)
    assert (len(frozen) > 0) == name.startswith("efficientnet")


def test_resolution_is_part_of_the_name() -> None:
    coarse = network("efficientnet-lite0@48", classes=2, channels=1, image_size=64, seed=0)
    assert coarse[0].size == 48
    assert coarse(torch.rand(2, 1, 64, 64)).shape == (2, 2)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("resnet", {}, "it must be one of cnn, .*, or timm:NAME"),
        ("cnn@96", {}, "only efficientnet-lite0 takes a resolution"),
        ("cnn@scratch", {}, "only timm:NAME @scratch"),
        ("timm:resnet18@96", {}, "only efficientnet-lite0 takes a resolution"),
        ("efficientnet-lite0@big", {}, "whole number"),
        ("cnn", {"classes": 1}, "classes is 1"),
        ("cnn", {"channels": 0}, "channels is 0"),
        ("cnn", {"image_size": 4}, "image_size is 4"),
    ],
)
def test_impossible_networks_are_refused(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidValue, match=message):
        network(name, **{"classes": 2, "channels": 1, "image_size": 32, "seed": 0, **settings})


def test_standardised_filters_have_no_mean_and_unit_variance() -> None:
    torch.manual_seed(0)
    layer = WeightStandardizedConv2d(3, 4, 3, bias=False)
    layer.weight.data.mul_(5).add_(2)
    filters, _ = layer.standardized()
    torch.testing.assert_close(filters.mean((1, 2, 3)), torch.zeros(4), atol=1e-6, rtol=0)
    torch.testing.assert_close(filters.var((1, 2, 3), correction=0), torch.ones(4), atol=1e-4, rtol=0)
    images = torch.rand(2, 3, 6, 6)
    torch.testing.assert_close(layer(images), functional.conv2d(images, filters))


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d])
def test_fixed_batch_norm_is_batch_norm_in_evaluation_mode(kind: Any) -> None:
    norm = kind(4)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    images = torch.rand(3, 4, *(5,) * (int(kind.__name__[-2])))
    norm.eval()
    expected = norm(images)
    fixed = fix_batch_norm(nn.Sequential(norm)).train()
    assert not fixed[0].training
    assert torch.equal(fixed(images), expected)


@pytest.mark.parametrize(("channels", "groups"), [(64, 16), (24, 12), (7, 7), (17, 1), (1, 1)])
def test_group_norm_takes_over_scale_and_shift(channels: int, groups: int) -> None:
    norm = nn.BatchNorm2d(channels, eps=1e-3)
    norm.weight.data.uniform_()
    norm.bias.requires_grad_(False)
    replaced = replace_batch_norm(norm)
    assert isinstance(replaced, nn.GroupNorm)
    assert (replaced.num_groups, replaced.eps) == (groups, 1e-3)
    assert replaced.weight is norm.weight
    assert not replaced.bias.requires_grad
    plain = replace_batch_norm(nn.BatchNorm2d(channels, affine=False))
    assert list(plain.parameters()) == []


class NormAndActivation(nn.BatchNorm2d):
    """A batch norm with an activation of its own, as timm builds them."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), nn.Hardswish(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise, then activate."""
        return self.act(self.drop(super().forward(x)))


def test_an_activation_inside_a_batch_norm_survives_its_replacement() -> None:
    images = torch.rand(3, 4, 5, 5)
    norm = NormAndActivation(4).eval()
    norm.running_mean.normal_()
    expected = norm(images)
    assert torch.equal(fix_batch_norm(nn.Sequential(norm)).train()(images), expected)
    grouped = replace_batch_norm(nn.Sequential(NormAndActivation(4)))
    torch.testing.assert_close(grouped(images), functional.hardswish(nn.GroupNorm(4, 4)(images)))


@pytest.mark.parametrize("remedy", [fix_batch_norm, replace_batch_norm])
def test_a_batch_norm_that_does_more_is_not_replaced_by_one_that_does_less(remedy: Any) -> None:
    class Gated(nn.BatchNorm2d):
        def __init__(self) -> None:
            super().__init__(4)
            self.gate = nn.Conv2d(4, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * self.gate(x).sigmoid()

    with pytest.raises(InvalidValue, match="Gated, which does more than batch norm"):
        remedy(nn.Sequential(Gated()))
