"""Training of part of a timm network: which numbers are trained, that the engine takes it, and what is refused."""

import numpy as np
import pytest
import torch

from fedveil.errors import InvalidValue, StudyError
from fedveil.learning import NetworkModel, NetworkSizes
from fedveil.learning.gradients import PrivateGradients, trainable_parameters
from fedveil.learning.networks import layers_of
from fedveil.study import Study

pytestmark = pytest.mark.filterwarnings("ignore")
VIT = "timm:vit_tiny_patch16_224@scratch"
SETTINGS = {"classes": 2, "channels": 1, "image_size": 32}
HEAD, BLOCK = 192 * 2 + 2, 12 * 192**2 + 13 * 192
COUNTS = {
    "all": 16 * 16 * 192 + 192 + 12 * BLOCK + 2 * 192 + HEAD,
    "last:0": HEAD,
    "last:2": 2 * BLOCK + 2 * 192 + HEAD,
    "norms": 25 * 2 * 192 + HEAD,
    "lora:4": 12 * 4 * (192 + 576 + 192 + 192 + 2 * (192 + 768)) + HEAD,
}


def model(trained: str, name: str = VIT, seed: int = 0) -> NetworkModel:
    return NetworkModel(name, **SETTINGS, seed=seed, trained=trained)


def names(trained: str, name: str = VIT) -> set[str]:
    return set(trainable_parameters(layers_of(name, 2, 1, 32, 0, 1, trained=trained)))


def test_the_last_layers_are_those_that_timm_calls_the_last() -> None:
    assert names("last:0") == {"1.head.weight", "1.head.bias"}
    last = names("last:2")
    assert {one.split(".")[2] for one in last if "blocks" in one} == {"10", "11"}
    assert {"1.norm.weight", "1.head.bias"} <= last
    assert not any("patch_embed" in one for one in last)


def test_norms_are_norms() -> None:
    found = names("norms")
    assert len(found) == 2 * (2 * 12 + 1) + 2
    assert all("norm" in one or "head" in one for one in found)


def test_adapters_change_nothing_at_first_and_are_all_that_is_trained() -> None:
    found = names("lora:4")
    assert len(found) == 2 * 4 * 12 + 2
    assert all(one.split(".")[-2] in ("up", "down", "head") for one in found)
    images = torch.rand(2, 1, 32, 32)
    whole, adapted = (layers_of(VIT, 2, 1, 32, 0, 1, trained=one).eval() for one in ("last:0", "lora:4"))
    assert torch.allclose(whole(images), adapted(images), atol=1e-6)


@pytest.mark.parametrize("trained", COUNTS)
def test_only_what_is_trained_is_counted(trained: str) -> None:
    sizes = NetworkSizes.of(VIT, **SETTINGS, trained=trained)
    assert (
        sizes.trained
        == model(trained).trained
        == sum(
            p.numel() for p in layers_of(VIT, 2, 1, 32, 0, 1, trained=trained).parameters() if p.requires_grad
        )
    )
    assert sizes.trained == COUNTS[trained]


@pytest.mark.parametrize("trained", ["last:1", "norms", "lora:2"])
def test_a_patients_gradient_is_that_of_a_plain_backward_pass(trained: str) -> None:
    """In double precision, half of the patients clipped; the adapters' second factors are not zero any more."""
    net = layers_of("timm:vit_tiny_patch16_224@scratch", 2, 1, 32, 0, 1, trained=trained).eval().double()
    parameters = list(trainable_parameters(net).values())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in parameters:
            p += 0.05 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    images = torch.rand(6, 1, 32, 32, generator=generator, dtype=torch.float64)
    labels, patients = torch.tensor([0, 1, 0, 1, 1, 0]), torch.tensor([0, 1, 1, 2, 2, 2])

    def loss(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(outputs, labels, reduction="none")

    each = []
    for patient in range(3):
        mine = patients == patient
        found = torch.autograd.grad(loss(net(images[mine]), labels[mine]).mean(), parameters)
        each.append(torch.cat([g.flatten() for g in found]))
    clip_norm = float(torch.stack([g.norm() for g in each]).median())
    expected = sum(g * min(1.0, clip_norm / float(g.norm())) for g in each)
    vector = PrivateGradients(net, loss, clip_norm).sum(images, labels, patients).vector
    assert float((vector - expected).norm() / expected.norm()) < 1e-8


@pytest.mark.parametrize("trained", ["last:1", "norms", "lora:2"])
def test_what_is_not_trained_does_not_depend_on_the_seed(trained: str) -> None:
    one, other = model(trained, seed=1), model(trained, seed=2)
    mine, others = dict(one.module.named_parameters()), dict(other.module.named_parameters())
    trained_names = set(trainable_parameters(one.module))
    assert all(torch.equal(mine[key], others[key]) for key in mine.keys() - trained_names)
    assert one.fixed == other.fixed
    assert not np.array_equal(one.initial(), other.initial())


@pytest.mark.parametrize(
    ("name", "trained", "why"),
    [
        ("timm:resnet18@scratch", "lora:4", 'has no such parameters: set model.trained = "last:1", or "all"'),
        ("timm:resnet18@scratch", "last:99", "has .* layers before its classifier: give at most"),
        ("cnn", "norms", "it is for timm:NAME: remove it"),
    ],
)
def test_a_part_that_is_not_there_is_refused(name: str, trained: str, why: str) -> None:
    with pytest.raises(InvalidValue, match=why):
        model(trained, name)


@pytest.mark.parametrize("trained", ["lora:0", "lora", "last:-1", "some"])
def test_a_part_that_is_none_is_refused(trained: str) -> None:
    with pytest.raises(StudyError, match=r"model\.trained"):
        Study.parse(f'model.network = "{VIT}"\nmodel.trained = "{trained}"')


def test_a_part_of_another_network_is_refused() -> None:
    with pytest.raises(StudyError, match=r"model\.trained is for timm:NAME"):
        Study.parse('model.network = "cnn"\nmodel.trained = "norms"')
