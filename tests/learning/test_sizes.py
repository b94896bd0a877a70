"""Sizes without a model are those of the model, and cost neither memory nor a file."""

import sys

import pytest
from tests.learning.networks.test_foreign import timm as timm

from fedveil.data import Dataset
from fedveil.errors import InvalidValue
from fedveil.learning import NetworkModel, NetworkSizes, Sizes
from fedveil.study import Study
from fedveil.study.pipeline import model_of, sizes_of

NAMES = ("classes", "trained", "parameters", "statistics_size", "calibration_size")


def numbers(sizes: Sizes) -> dict[str, int]:
    return {name: getattr(sizes, name) for name in NAMES}


LITE = "efficientnet-lite0"
NETWORKS = [
    ("cnn", 1),
    ("resnet18", 1),
    ("densenet121", 1),
    (LITE, 0),
    (LITE, 1),
    (LITE, 3),
    (f"{LITE}@40", 1),
]


@pytest.mark.parametrize(("classes", "channels", "image_size"), [(2, 1, 32), (5, 3, 64)])
@pytest.mark.parametrize(("name", "trained_blocks"), NETWORKS)
def test_a_network_has_the_sizes_that_are_worked_out_without_it(
    name, classes, channels, image_size, trained_blocks
):
    settings = {
        "classes": classes,
        "channels": channels,
        "image_size": image_size,
        "trained_blocks": trained_blocks,
    }
    assert numbers(NetworkSizes.of(name, **settings)) == numbers(NetworkModel(name, **settings))


@pytest.mark.usefixtures("timm")
@pytest.mark.parametrize("name", ["timm:tiny", "timm:tiny@scratch", "timm:far@scratch"])
def test_so_has_a_network_of_another_package(name):
    settings = {"classes": 2, "channels": 1, "image_size": 8}
    assert numbers(NetworkSizes.of(name, **settings)) == numbers(NetworkModel(name, **settings))


@pytest.mark.usefixtures("timm")
def test_no_weights_are_looked_for():
    assert NetworkSizes.of("timm:far", classes=2, channels=1, image_size=8).trained == 130


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0", "convnext_atto", "vit_tiny_patch16_224"])
def test_so_have_the_packages_own_networks(name):
    settings = {"classes": 2, "channels": 1, "image_size": 64}
    assert numbers(NetworkSizes.of(f"timm:{name}", **settings)) == numbers(
        NetworkModel(f"timm:{name}@scratch", **settings)
    )


@pytest.mark.parametrize(
    "text",
    [
        '[model]\nfeatures = "pixels"',
        '[model]\nfeatures = "scattering@32+pixels@8"\nwhitened = false',
        '[model]\nfeatures = "efficientnet-lite0"\n[training]\nmethod = "one-shot"',
        '[model]\nnetwork = "cnn"\nfeatures = "none"',
    ],
)
@pytest.mark.parametrize(("classes", "channels"), [(2, 1), (4, 3)])
def test_a_study_has_the_sizes_of_its_model(text, classes, channels):
    study = Study.parse(text)
    empty = Dataset.empty(tuple("abcd"[:classes]), channels=channels, image_size=study.data.image_size)
    assert numbers(sizes_of(study, classes, channels)) == numbers(model_of(study, empty))


def test_a_network_that_nobody_knows_is_refused(monkeypatch):
    with pytest.raises(InvalidValue, match="network is 'vgg'"):
        NetworkSizes.of("vgg", classes=2, channels=1, image_size=8)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InvalidValue, match="timm is not installed"):
        NetworkSizes.of("timm:tiny", classes=2, channels=1, image_size=8)
