"""A trial on made-up images: how a network calls its layers, and whether it treats each patient by itself."""

import math
from dataclasses import dataclass

import torch
from torch import nn

from fedveil.errors import InvalidValue
from fedveil.learning.gradients.check import check_layers, state_guard
from fedveil.learning.gradients.rules.arithmetic import exact_products
from fedveil.learning.gradients.trial.calls import SIZES, Calls, learn_calls
from fedveil.learning.gradients.trial.comparison import MadeUp, compare_patients

__all__ = ["Trial", "check_private", "try_out"]


@dataclass(frozen=True, slots=True)
class Trial:
    """What a trial has shown of a model; see `try_out`."""

    notices: tuple[str, ...]
    """Which layers will be slow, and why."""
    calls: Calls
    """Which axis of which argument of which layer is the images."""


def check_private(
    model: nn.Module, image_shape: tuple[int, ...] | None = None, dtype: torch.dtype | None = None
) -> tuple[str, ...]:
    """Refuse a model whose gradients cannot be bounded patient by patient; return notices about slow layers.

    Looks at every layer. Given the shape of one image, `(channels, height, width)`, it also tries the model out
    (`try_out`). Call it before any budget is reserved. The model is left as it was.
    """
    return check_layers(model).notices if image_shape is None else try_out(model, image_shape, dtype).notices


def try_out(
    model: nn.Module,
    image_shape: tuple[int, ...],
    dtype: torch.dtype | None = None,
    sizes: tuple[int, int] = SIZES,
    also: tuple[int, ...] = (),
) -> Trial:
    """Run a model on made-up images; learn how it calls its layers, and compare gradients patient by patient.

    Each patient's gradient in a batch, as the engine attributes it, must be that of the model run on this patient's
    images alone, to the rounding of double precision: for two numbers of images, for the parameters as they are and
    for others, with several images per patient. That finds what no list of layers can, such as a `forward` that mixes
    images. Dropout is left out; a model that is random all the same is compared in evaluation mode. The model, and
    PyTorch's random state, are left as they were.

    Args:
        model: what is to be trained.
        image_shape: of one image.
        dtype: of the images; that of the parameters unless given.
        sizes: two numbers of images without a common divisor.
        also: further numbers of images to compare, such as those of training: code may act for some of them only.

    Raises:
        InvalidValue: the model cannot be run, or no bound on a patient's contribution would hold.
    """
    if min(sizes) < 3 or math.gcd(*sizes) != 1:
        raise InvalidValue(
            f"sizes are {sizes}", "they must be at least 3, without a common divisor", "give two odd primes"
        )
    plan, images = check_layers(model), MadeUp.of(model, image_shape, dtype)
    devices = [images.device] if images.device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices),
        torch.enable_grad(),
        exact_products(images.device),
        state_guard(model),
    ):
        calls = learn_calls(model, plan.labels, plan.cut, images.draw, sizes)
        compare_patients(model, plan, calls, images, (*sizes, *also))
    return Trial(plan.notices, calls)
