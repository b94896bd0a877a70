"""Networks of timm as frozen encoders: structure from the package, weights from safetensors, never from pickle."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fedveil.errors import InvalidValue
from fedveil.learning.encoders.external.spec import EncoderSpec

__all__ = ["TimmModule", "cached_weights", "import_timm"]


def import_timm(name: str) -> Any:
    """The package; `InvalidValue` if it or what it needs is not installed."""
    try:
        import timm
    except ImportError as error:
        why = "timm is not installed" if error.name == "timm" else f"timm cannot be imported ({error})"
        raise InvalidValue(f"{name} was named", why, 'install it: pip install "fedveil[timm]"') from None
    return timm


def cached_weights(name: str) -> Path:
    """The weights of a network in timm's cache; nothing is downloaded.

    Raises:
        InvalidValue: timm does not know the network, or its weights are not in the cache as safetensors.
    """
    timm = import_timm(f"timm:{name}")
    from huggingface_hub import try_to_load_from_cache

    repository = getattr(_configuration(timm, name), "hf_hub_id", None)
    repository = f"{repository}{name}" if repository and repository.endswith("/") else repository
    found = try_to_load_from_cache(repository, "model.safetensors") if repository else None
    if isinstance(found, str):
        return Path(found)
    raise InvalidValue(
        f"the weights of timm:{name} are not on this machine",
        "they are never downloaded in a study",
        f"give a file: fedveil encoder add timm:{name} --weights FILE.safetensors; or fetch them into timm's cache: "
        f"python -c \"import timm; timm.create_model('{name}', pretrained=True)\"",
    )


class TimmModule:
    """A network in evaluation mode, without its classifier."""

    def __init__(self, module: nn.Module, layer: int | None) -> None:
        self.module, self.layer = module, layer

    @classmethod
    def load(cls, content: bytes, spec: EncoderSpec) -> tuple["TimmModule", EncoderSpec]:
        """Build the network and fill in the weights; the spec comes back with its input and its graph's hash.

        Raises:
            InvalidValue: the network, the layer or the weights do not exist or do not fit.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        timm = import_timm(spec.features)
        settings = _configuration(timm, spec.name)
        spec = _completed(spec, settings)
        fixed = getattr(settings, "fixed_input_size", False)
        size = {"img_size": spec.input_size} if fixed else {}
        try:
            module = timm.create_model(spec.name, pretrained=False, num_classes=0, **size).eval()
            weights = load(content)
            weights = {
                name: value for name, value in _fitted(module, weights).items() if name in module.state_dict()
            }
            module.load_state_dict(weights)
        except SafetensorError as error:
            raise _refused(spec, f"its weights are no safetensors file ({error})") from None
        except (RuntimeError, ValueError, AssertionError, KeyError, TypeError) as error:
            raise _refused(spec, f"its weights do not fit at {spec.input_size} pixels ({error})") from None
        graph = _graph_hash(timm.__version__, spec.name, module)
        if spec.graph and spec.graph != graph:
            raise InvalidValue(
                f"timm {timm.__version__} builds {spec.features} with the graph {graph}",
                f"the study computes with {spec.graph}",
                "install the version of timm that the study was made with",
            )
        made = cls(module.requires_grad_(False), spec.layer)
        return made, spec.with_defaults(prefix=getattr(module, "num_prefix_tokens", 0)).pinned_to(graph)

    def to(self, device: torch.device) -> None:
        """Move the network."""
        self.module.to(device)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Tokens or maps of images (k, channels, size, size)."""
        module: Any = self.module
        if self.layer is None:
            found: torch.Tensor = module.forward_features(images)
            return found
        try:
            return self._layer(module, images)
        except (AssertionError, ValueError, IndexError, AttributeError) as error:
            raise InvalidValue(
                f"model.encoder.layer is {self.layer}",
                f"it must be a block of the network, counted from 0 ({error})",
                "see what timm calls forward_intermediates, or remove it for the last block",
            ) from None

    def _layer(self, module: Any, images: torch.Tensor) -> torch.Tensor:
        tokens = getattr(module, "num_prefix_tokens", 0)
        extra = {"return_prefix_tokens": True} if tokens else {}
        (last,) = module.forward_intermediates(images, indices=[self.layer], intermediates_only=True, **extra)
        if not tokens:
            return last  # type: ignore[no-any-return]
        maps, prefix = last
        return torch.cat([prefix, maps.flatten(2).transpose(1, 2)], 1)


def _configuration(timm: Any, name: str) -> Any:
    if not timm.is_model(name):
        raise InvalidValue(
            f"features are timm:{name[:100]}",
            "timm knows no network of this name",
            "look it up in timm.list_models()",
        )
    return timm.get_pretrained_cfg(name)


def _completed(spec: EncoderSpec, settings: Any) -> EncoderSpec:
    """The spec with timm's own constants, and the layer checked later by the network itself."""
    return spec.with_defaults(
        input_size=settings.input_size[-1],
        input_channels=settings.input_size[0],
        mean=tuple(settings.mean),
        std=tuple(settings.std),
    )


def _fitted(module: Any, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights as the network names and shapes them: timm resamples position embeddings for another image size."""
    import importlib

    change = getattr(importlib.import_module(type(module).__module__), "checkpoint_filter_fn", None)
    return dict(change(weights, module)) if change else weights


def _graph_hash(version: str, name: str, module: nn.Module) -> str:
    """SHA-256 of what decides how weights are used: the package's version and every module with its settings."""
    shapes = {key: list(value.shape) for key, value in module.state_dict().items()}
    return hashlib.sha256(json.dumps([version, name, repr(module), shapes]).encode()).hexdigest()


def _refused(spec: EncoderSpec, why: str) -> InvalidValue:
    return InvalidValue(
        f"the encoder {spec.features} cannot be used: {why[:500]}",
        "a network of timm takes its own weights as safetensors, at a size that it is made for",
        "give the network's own weights and size",
    )
