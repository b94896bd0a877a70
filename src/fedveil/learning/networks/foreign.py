"""Networks from timm, rebuilt of layers whose gradients are quickly attributed to patients."""

from typing import Any

import torch
from torch import Tensor, nn

from fedveil.errors import InvalidValue
from fedveil.learning.networks.batch_norm import fix_batch_norm, replace_batch_norm
from fedveil.learning.networks.layers import Scale

__all__ = ["SCRATCH", "timm_network"]

SCRATCH = "scratch"
"""What follows the @ in the name of a network that starts from random weights."""


def timm_network(
    name: str, classes: int, channels: int, image_size: int, *, weights: bool = True
) -> nn.Module:
    """A network from timm: `NAME` with its public weights and fixed batch norm, `NAME@scratch` with group norm.

    Every layer is trained. Parameters that belong to no layer of their own (class token, position embedding, scale of
    a block) stay as they are: the modules that hold them would have to be run once for each patient.

    Without ``weights`` none are looked for, and only shapes count.
    """
    base, _, start = name.partition("@")
    try:
        import timm
    except ImportError:
        raise InvalidValue(
            f"network is timm:{name}", "timm is not installed", 'install it: pip install "fedveil[timm]"'
        ) from None
    if not timm.is_model(base):
        raise InvalidValue(
            f"network is timm:{name}",
            "timm knows no network of this name",
            "look it up in timm.list_models()",
        )
    settings: dict[str, Any] = {"num_classes": classes, "in_chans": channels}
    if getattr(timm.get_pretrained_cfg(base), "fixed_input_size", False):
        settings["img_size"] = image_size
    try:
        model: nn.Module = timm.create_model(base, pretrained=weights and start != SCRATCH, **settings)
    except Exception as error:  # noqa: BLE001 - timm and its hub raise many kinds
        raise InvalidValue(
            f"network is timm:{name}",
            f"timm could not build it for {image_size} pixels and find its public weights ({error})",
            "give images of the size that it is made for; a site service never downloads, so fetch weights beforehand "
            f"with python -c \"import timm; timm.create_model('{base}', pretrained=True)\" on every machine of the "
            f'study, or start from random weights: "timm:{base}@{SCRATCH}"',
        ) from None
    model = replace_batch_norm(model) if start == SCRATCH else fix_batch_norm(model)
    _fix_outside(model, draw=weights and start == SCRATCH)
    return nn.Sequential(Scale(0.5, 0.25, channels), _plain(model))


def _fix_outside(model: nn.Module, *, draw: bool) -> None:
    """Freeze what modules hold beside layers of their own; `draw` it, the same for every seed, where it is random.

    `fedveil predict` builds a network by its name alone, so that what is not trained must not depend on the seed.
    """
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.MultiheadAttention) or not any(
            any(True for _ in child.parameters()) for child in module.children()
        ):
            continue
        for name, parameter in module.named_parameters(recurse=False):
            parameter.requires_grad_(False)
            if (
                draw and "gamma" in name
            ):  # the scale of a block, which training would have let grow from almost 0
                nn.init.ones_(parameter)
            elif draw:
                nn.init.normal_(parameter, std=0.02, generator=generator)


def _plain(module: nn.Module) -> nn.Module:
    """Put PyTorch's own layers in the place of timm's that compute the same, parameters kept."""
    for name, child in module.named_children():
        setattr(module, name, _plain(child))
    if not type(module).__module__.startswith("timm.layers"):
        return module
    match type(module).__name__, module:
        case "Linear", nn.Linear():
            linear = nn.Linear(module.in_features, module.out_features, module.bias is not None)
            return _with_parameters(linear, module)
        case "LayerNorm" | "LayerNorm2d" as name, nn.LayerNorm():
            norm = nn.LayerNorm(module.normalized_shape, module.eps, module.elementwise_affine)
            _with_parameters(norm, module)
            images = name == "LayerNorm2d"
            return nn.Sequential(_Permute(0, 2, 3, 1), norm, _Permute(0, 3, 1, 2)) if images else norm
    return module


def _with_parameters(plain: nn.Module, module: nn.Module) -> nn.Module:
    plain.weight, plain.bias = module.weight, module.bias
    return plain


class _Permute(nn.Module):
    """Axes in another order."""

    def __init__(self, *axes: int) -> None:
        super().__init__()
        self.axes = axes

    def forward(self, x: Tensor) -> Tensor:
        """Reorder the axes."""
        return x.permute(self.axes)
