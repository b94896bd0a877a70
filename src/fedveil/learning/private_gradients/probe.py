"""A trial on made-up images: does a model really treat each patient's images by themselves?"""

import torch
from torch import Tensor, nn

from fedveil.errors import InvalidValue
from fedveil.learning.private_gradients.check import check_layers, state_guard
from fedveil.learning.private_gradients.engine import PrivateGradients
from fedveil.learning.private_gradients.parameters import trainable_parameters

__all__ = ["check_private"]

# Far above the rounding of single precision, far below what a mistaken attribution leaves.
_TOLERANCE = 0.01
# Norms are rounded up by what single precision may lose, a percent in deep networks: that is no mistake.
_ROUNDED_UP = 0.1


def check_private(model: nn.Module, image_shape: tuple[int, ...] | None = None) -> tuple[str, ...]:
    """Refuse a model whose gradients cannot be bounded patient by patient; return notices about slow layers.

    Looks at every layer. Given the shape of one image, `(channels, height, width)`, it also compares the engine
    with plain backward passes, one patient at a time, on random images: that finds what no list of layers can,
    such as a `forward` that mixes images or uses a parameter outside its layer. Call it before any budget is
    reserved. The model is left as it was.
    """
    notices = check_layers(model).notices
    if image_shape is not None:
        modes = {module: module.training for module in model.modules()}
        try:
            model.eval()  # dropout would differ between the two computations
            with state_guard(model):
                _compare(model, image_shape)
        finally:
            for module, training in modes.items():
                module.training = training
    return notices


def _compare(model: nn.Module, image_shape: tuple[int, ...]) -> None:
    """Three images of two made-up patients: the engine against plain backward passes."""
    parameters = list(trainable_parameters(model).values())
    images = torch.rand(3, *image_shape, generator=torch.Generator().manual_seed(0)).to(parameters[0])
    weights, patients = torch.tensor([1.0, 0.5, 0.25]).to(parameters[0]), torch.tensor([0, 1, 0])
    found = PrivateGradients(model, _loss, clip_norm=1e30, reduction="sum").sum(images, weights, patients)
    expected = []
    for patient in (0, 1):
        mine = (patients == patient).to(images.device)
        with torch.enable_grad():
            loss = _loss(model(images[mine]), weights[mine]).sum()
        gradients = torch.autograd.grad(loss, parameters, materialize_grads=True)
        expected.append(torch.cat([g.flatten() for g in gradients]).to(found.vector))
    alone = torch.stack([g.norm() for g in expected]).to(found.norms)
    norms = found.norms.clamp(max=torch.maximum(alone, found.norms / (1 + _ROUNDED_UP)))
    error = max(_relative(norms, alone), _relative(found.vector, torch.stack(expected).sum(0)))
    if not error < _TOLERANCE:
        raise InvalidValue(
            f"a patient's gradient differs by {error:.0%} when other patients are in the batch",
            "the network must treat each patient's images by themselves",
            "look for operations over the batch axis (batch statistics, reshaping, attention between images)",
        )


def _loss(outputs: Tensor, weights: Tensor) -> Tensor:
    """Any smooth function of an image's outputs."""
    return outputs.flatten(1).square().sum(1) * weights


def _relative(found: Tensor, expected: Tensor) -> float:
    """Largest difference relative to the largest entry."""
    scale = expected.abs().max().clamp_min(torch.finfo(expected.dtype).tiny)
    return float((found - expected).abs().max() / scale)
