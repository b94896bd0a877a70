"""Networks by the name that a study file gives them."""

import hashlib

import torch
from torch import Tensor, nn

from fedveil.errors import InvalidValue
from fedveil.learning.networks.convolutional import cnn, cnn3d, densenet121, resnet18
from fedveil.learning.networks.foreign import SCRATCH, timm_network
from fedveil.learning.networks.outputs import same_outputs
from fedveil.learning.networks.own import is_own, own_network
from fedveil.learning.networks.partial import ALL, train_part
from fedveil.learning.networks.pretrained import efficientnet_lite0

__all__ = ["NETWORKS", "fixed_key", "layers_of", "network"]

NETWORKS = ("cnn", "cnn3d", "resnet18", "densenet121", "efficientnet-lite0")
"""Names that always work. `efficientnet-lite0@96` sets the resolution that the network sees; by default that
of the images. `timm:NAME` works where timm is installed, `module:package.function` where it can be imported."""


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
    if is_own(name):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return own_network(name, classes, channels, image_size)
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
        f"it must be one of {', '.join(NETWORKS)}, module:package.function, or timm:NAME",
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
    trained: str = ALL,
    weights: bool = True,
) -> nn.Sequential:
    """The network that a study file names, as a sequence; without ``weights`` only its shapes count.

    What is not trained does not depend on the seed: a saved model holds the network's name and what was trained.

    Raises:
        InvalidValue: there is no such network, or its untrained part is another one each time it is built.
    """

    def built(seed: int) -> nn.Module:
        module = network(
            name, classes=classes, channels=channels, image_size=image_size, seed=seed, weights=weights
        )
        if trained != ALL:
            _train_part(module, name, trained, seed)
        return module

    base, _, resolution = name.partition("@")
    module = built(seed)
    if weights and (is_own(name) or trained != ALL):
        fixed = built(0)
        _fix(module, fixed, built(0), name)
        if is_own(name) and not same_outputs(module, fixed, (channels, image_size, image_size)):
            raise InvalidValue(
                f"network is {name}",
                "what it computes depends on the seed other than through its parameters and buffers",
                "make tensors that are not trained buffers (register_buffer), or frozen parameters",
            )
    if is_own(name) or not isinstance(module, nn.Sequential):
        return nn.Sequential(module)  # no part of one's own is run once and stored: its code may change
    if base == "efficientnet-lite0":
        size = int(resolution) if resolution else max(32, image_size)
        module = efficientnet_lite0(classes, size, trained_blocks=trained_blocks, weights=weights)
    return module


def _train_part(module: nn.Module, name: str, trained: str, seed: int) -> None:
    """Freeze all of a timm network but a part."""
    if not name.startswith("timm:") or not isinstance(module, nn.Sequential):
        raise InvalidValue(
            f"model.trained is {trained!r} for the network {name}",
            "it is for timm:NAME",
            "remove it; efficientnet-lite0 has model.trained_blocks, and in a network of your own set requires_grad",
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        train_part(module[-1], trained, name)


def _fix(module: nn.Module, fixed: nn.Module, again: nn.Module, name: str) -> None:
    """Give a network the untrained part that seed 0 makes, in place."""
    mine, state, same = (_untrained(one) for one in (module, fixed, again))
    if not (_alike(state, same) and all(torch.equal(state[key], same[key]) for key in state)):
        raise InvalidValue(
            f"network is {name}",
            "two calls with one seed build networks whose untrained parameters or buffers differ",
            "let it draw from torch's global generator alone, or load what is not trained from a file",
        )
    if not _alike(state, mine):
        raise InvalidValue(
            f"network is {name}",
            "the structure of what is not trained depends on the seed",
            "build the same layers for every seed",
        )
    with torch.no_grad():
        for key, value in mine.items():
            value.copy_(state[key])


def _untrained(module: nn.Module) -> dict[str, Tensor]:
    frozen = {name: p for name, p in module.named_parameters() if not p.requires_grad}
    return {**dict(module.named_buffers()), **frozen}


def _alike(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return {k: (v.shape, v.dtype) for k, v in one.items()} == {
        k: (v.shape, v.dtype) for k, v in other.items()
    }


def fixed_key(module: nn.Module) -> str:
    """Identifies a network's layers and what training does not change: SHA-256 of names, shapes and norms.

    Norms have three digits, since drawn or resampled weights differ in their last bits from machine to machine.
    """
    trained = {name for name, p in module.named_parameters() if p.requires_grad}
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        norm = "trained" if name in trained else f"{float(value.double().norm()):.3g}"
        digest.update(f"{name} {tuple(value.shape)} {norm}\n".encode())
    return digest.hexdigest()
