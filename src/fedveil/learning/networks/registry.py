"""Networks by the name that a study file gives them."""

import torch
from torch import nn

from fedveil.errors import InvalidValue
from fedveil.learning.networks.convolutional import cnn, cnn3d, densenet121, resnet18
from fedveil.learning.networks.foreign import SCRATCH, timm_network
from fedveil.learning.networks.pretrained import efficientnet_lite0

__all__ = ["NETWORKS", "layers_of", "network"]

NETWORKS = ("cnn", "cnn3d", "resnet18", "densenet121", "efficientnet-lite0")
"""Names that always work. `efficientnet-lite0@96` sets the resolution that the network sees; by default that
of the images. `timm:NAME` works where timm is installed."""


def network(
    name: str, *, classes: int, channels: int, image_size: int, seed: int, weights: bool = True
) -> nn.Module:
    """Build a network that can be trained privately: images `(k, channels, size, size)` in [0, 1] to logits.

    Every site and the coordinator call this with the same arguments and get the same initial parameters; the seed is
    public and affects only them. No network holds batch statistics that follow the images.

    Of volumes, the channels are slices: "cnn3d" takes them.

    Without ``weights`` none that are published are read, and only shapes count, as on PyTorch's meta device.
    """
    for key, value, least in (
        ("classes", classes, 2),
        ("channels", channels, 1),
        ("image_size", image_size, 8),
    ):
        if value < least:
            raise InvalidValue(
                f"{key} is {value}", f"it must be at least {least}", "give what the images have"
            )
    base, _, setting = name.partition("@")
    foreign = base.startswith("timm:") and setting in {"", SCRATCH}
    if (
        setting
        and not foreign
        and (base != "efficientnet-lite0" or not setting.isdigit() or int(setting) < 32)
    ):
        raise InvalidValue(
            f"network is {name!r}",
            "only efficientnet-lite0 takes a resolution, a whole number of at least 32, and only timm:NAME @scratch",
            'write for example "efficientnet-lite0@96"',
        )
    # Layers draw their initial values from the global generator: it is seeded for them, and restored.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if foreign:
            return timm_network(name.removeprefix("timm:"), classes, channels, image_size, weights=weights)
        match base:
            case "cnn":
                return cnn(classes, channels)
            case "cnn3d":
                return cnn3d(classes, channels)
            case "resnet18":
                return resnet18(classes, channels, image_size)
            case "densenet121":
                return densenet121(classes, channels, image_size)
            case "efficientnet-lite0":
                return efficientnet_lite0(classes, int(setting or max(32, image_size)), weights=weights)
    raise InvalidValue(
        f"network is {name!r}",
        f"it must be one of {', '.join(NETWORKS)}, or timm:NAME",
        "choose one of them",
    )


def layers_of(
    name: str,
    classes: int,
    channels: int,
    image_size: int,
    seed: int,
    trained_blocks: int,
    *,
    weights: bool = True,
) -> nn.Sequential:
    """The network that a study file names, as a sequence; without ``weights`` only its shapes count."""
    base, _, resolution = name.partition("@")
    module = network(
        name, classes=classes, channels=channels, image_size=image_size, seed=seed, weights=weights
    )
    if not isinstance(module, nn.Sequential):
        return nn.Sequential(module)
    if base == "efficientnet-lite0":
        size = int(resolution) if resolution else max(32, image_size)
        module = efficientnet_lite0(classes, size, trained_blocks=trained_blocks, weights=weights)
    return module
