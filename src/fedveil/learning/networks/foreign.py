"""Networks from timm, rebuilt of layers whose gradients are quickly attributed to patients."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fedveil.errors import InvalidValue
from fedveil.learning.networks.batch_norm import fix_batch_norm, replace_batch_norm
from fedveil.learning.networks.layers import Scale, ScaleShift, WeightStandardizedConv2d

__all__ = ["SCRATCH", "timm_network"]

SCRATCH = "scratch"
"""What follows the @ in the name of a network that starts from random weights."""


def timm_network(
    name: str, classes: int, channels: int, image_size: int, *, weights: bool = True
) -> nn.Module:
    """A network from timm: `NAME` with its public weights and fixed batch norm, `NAME@scratch` with group norm.

    Every layer is trained that sees images. Parameters that belong to no layer of their own (class token, position
    embedding, scale of a block) stay as they are: the modules that hold them would have to be run once for each
    patient. So do layers that see positions only: their gradient cannot be attributed to patients.

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


_OF_POSITIONS = {
    ("timm.layers.pos_embed_rel", "RelPosBias"),
    ("timm.layers.pos_embed_rel", "RelPosBiasTf"),
    ("timm.layers.pos_embed_rel", "RelPosMlp"),
    ("timm.models.xcit", "PositionalEncodingFourier"),
}
"""Modules that make a table of positions, whatever the images show."""
_TABLES = {"cpb_mlp", "meta_mlp"}
"""Names of children that do."""


_BIASES_OUTSIDE = {
    ("timm.models.beit", "Attention"),
    ("timm.models.eva", "EvaAttention"),
    ("timm.models.swin_transformer_v2", "WindowAttention"),
}
"""Attention that reads the weight of its layer of queries, keys and values instead of calling it."""


def _fix_outside(model: nn.Module, *, draw: bool) -> None:
    """Freeze what modules hold beside layers of their own; `draw` it, the same for every seed, where it is random.

    `fedveil predict` builds a network by its name alone, so that what is not trained must not depend on the seed.
    """
    generator = torch.Generator().manual_seed(0)
    for name, parameter in list(_outside(model)):
        if not parameter.requires_grad:
            continue
        parameter.requires_grad_(False)
        if draw and "gamma" in name:  # the scale of a block, which training would have let grow from almost 0
            nn.init.ones_(parameter)
        elif draw and not _is_setting(parameter):
            nn.init.normal_(parameter, std=0.02, generator=generator)


def _outside(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    for name, module in model.named_modules():
        named = type(module).__module__, type(module).__name__
        if named in _OF_POSITIONS or name.rpartition(".")[2] in _TABLES:
            yield from module.named_parameters()
        elif not isinstance(module, nn.MultiheadAttention) and any(
            any(True for _ in child.parameters()) for child in module.children()
        ):
            yield from module.named_parameters(recurse=False)


def _is_setting(parameter: nn.Parameter) -> bool:
    """Whether timm starts it at one number that is not 0, such as a temperature."""
    return bool((parameter == parameter.flatten()[0]).all()) and float(parameter.flatten()[0]) != 0


def _plain(module: nn.Module) -> nn.Module:
    """Put layers that have rules of their own in the place of timm's that compute the same, parameters kept."""
    for name, child in module.named_children():
        setattr(module, name, _plain(child))
    if not type(module).__module__.startswith("timm."):
        return module
    known: Any = module
    match type(module).__name__, module:
        case "Linear", nn.Linear():
            linear = nn.Linear(module.in_features, module.out_features, module.bias is not None)
            return _with_parameters(linear, module)
        case "LayerNorm" | "LayerNorm2d" as name, nn.LayerNorm():
            norm = nn.LayerNorm(module.normalized_shape, module.eps, module.elementwise_affine)
            _with_parameters(norm, module)
            images = name == "LayerNorm2d"
            return nn.Sequential(_Permute(0, 2, 3, 1), norm, _Permute(0, 3, 1, 2)) if images else norm
        case "GroupNorm" | "GroupNorm1", nn.GroupNorm():
            plain = nn.GroupNorm(module.num_groups, module.num_channels, module.eps, module.affine)
            return _with_parameters(plain, module)
        case "StdConv2d", nn.Conv2d():
            return _standardised(known)
        case "ScaledStdConv2d", nn.Conv2d():
            affine = ScaleShift(_flat(known.gain), known.bias, 1)
            return nn.Sequential(_standardised(known, bias=False), _Times(known.scale), affine)
        case "LayerScale", _:
            return ScaleShift(_flat(known.gamma), None, -1)
        case "LayerScale2d", _:
            return ScaleShift(_flat(known.gamma), None, 1)
        case "Scale", _ if type(module).__module__ == "timm.models.metaformer":
            return ScaleShift(_flat(known.scale), None, 1 if len(known.shape) == 3 else -1)
        case "Affine", _:
            return ScaleShift(_flat(known.alpha), _flat(known.beta), -1)
        case "GlobalResponseNorm", _:
            return _ResponseNorm(known)
        case _ if (type(module).__module__, type(module).__name__) in _BIASES_OUTSIDE:
            _join_biases(known)
    return module


def _standardised(convolution: Any, *, bias: bool = True) -> nn.Module:
    """A weight-standardised convolution with the parameters of timm's."""
    plain = WeightStandardizedConv2d(
        convolution.in_channels,
        convolution.out_channels,
        convolution.kernel_size,
        convolution.stride,
        convolution.padding,
        convolution.dilation,
        convolution.groups,
        bias=bias and convolution.bias is not None,
        padding_mode=convolution.padding_mode,
    )
    plain.weight, plain.eps = convolution.weight, convolution.eps
    if plain.bias is not None:
        plain.bias = convolution.bias
    return plain


def _flat(parameter: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(parameter.detach().flatten(), parameter.requires_grad)


class _Times(nn.Module):
    """A constant factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """Multiply."""
        return x * self.factor


class _ResponseNorm(nn.Module):
    """Global response normalisation (Woo et al., arXiv 2301.00808), its scale and shift as a layer."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.eps, self.axis, self.over = norm.eps, norm.channel_dim, norm.spatial_dim
        self.affine = ScaleShift(norm.weight, norm.bias, norm.channel_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Scale each channel by its share of the norm over space."""
        norms = x.norm(p=2, dim=self.over, keepdim=True)
        y: Tensor = x + self.affine(x * (norms / (norms.mean(dim=self.axis, keepdim=True) + self.eps)))
        return y


def _join_biases(attention: Any) -> None:
    """Give the layer of queries, keys and values its bias, which timm puts together outside of it.

    The bias of keys, which timm fixes at 0, is trained with the others.
    """
    if attention.qkv is None or attention.q_bias is None:
        return
    joined = torch.cat([attention.q_bias.detach(), attention.k_bias, attention.v_bias.detach()])
    attention.qkv.bias = nn.Parameter(joined)
    attention.q_bias = attention.k_bias = attention.v_bias = None


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
