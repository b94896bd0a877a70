"""A trial on made-up images: how a network calls its layers, and whether it treats each patient by itself."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map, tree_unflatten

from fedveil.errors import InvalidValue
from fedveil.learning.private_gradients.backward import unit_contributions
from fedveil.learning.private_gradients.calls import SIZES, Calls, brief, learn_calls
from fedveil.learning.private_gradients.check import check_layers, state_guard
from fedveil.learning.private_gradients.contributions import Contribution
from fedveil.learning.private_gradients.parameters import Layout, trainable_parameters
from fedveil.learning.private_gradients.rules import Plan
from fedveil.learning.private_gradients.rules.arithmetic import exact_products
from fedveil.learning.private_gradients.units import UnitBatch

__all__ = ["Trial", "check_loss", "check_private", "try_out"]

# Whose the made-up images are: patients with one image, with two and with three.
_PATIENTS = (2, 0, 1, 2, 1, 3, 2)
# Draws of images and parameters that gradients are compared for.
_DRAWS = 3
# A parameter's gradient this far below the largest may be rounding alone.
_SMALLEST = 1e-4


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
) -> Trial:
    """Run a model on made-up images; learn how it calls its layers, and compare gradients patient by patient.

    Each patient's gradient in a batch, as the engine attributes it, must be that of the model run on this patient's
    images alone, to the rounding of double precision: for both numbers of images, for the parameters as they are and
    for others, with several images per patient. That finds what no list of layers can, such as a `forward` that mixes
    images. It runs in the mode that the model is in, without dropout; in evaluation mode where it is random all the
    same. The model, and PyTorch's random state, are left as they were.

    Args:
        model: what is to be trained.
        image_shape: of one image.
        dtype: of the images; that of the parameters unless given.
        sizes: two numbers of images without a common divisor.

    Raises:
        InvalidValue: the model cannot be run, or no bound on a patient's contribution would hold.
    """
    if min(sizes) < 3 or math.gcd(*sizes) != 1:
        raise InvalidValue(
            f"sizes are {sizes}", "they must be at least 3, without a common divisor", "give two odd primes"
        )
    plan = check_layers(model)
    some = next(iter(trainable_parameters(model).values()))
    images = _Images(image_shape, dtype or some.dtype, some.device, _highest(model))
    with torch.random.fork_rng([some.device] if some.device.type == "cuda" else []), torch.enable_grad():
        with state_guard(model):
            calls = learn_calls(model, plan.labels, plan.cut, images.draw, sizes)
        with (
            _comparable(model, images) as (precise, tolerance),
            state_guard(model),
            exact_products(some.device),
        ):
            known = learn_calls(model, plan.labels, plan.cut, precise.draw, sizes)
            for draw in range(_DRAWS):
                with _other_parameters(model, draw):
                    _compare(model, plan, known, precise.draw(sizes[draw % 2], draw), draw, tolerance)
    return Trial(plan.notices, calls)


def check_loss(loss: Callable[[Any, Tensor], Tensor], calls: Calls, labels: Tensor) -> None:
    """Refuse a loss that is not one number for each image, which follows from this image alone.

    It is tried on made-up outputs, and labels of zeros that look like `labels`.
    """
    generator = torch.Generator().manual_seed(0)
    for size in SIZES:
        outputs = tree_unflatten(
            [
                torch.randn(size, *leaf.shape[1:], generator=generator).to(labels.device)
                if leaf.shape
                else leaf.value
                for leaf in calls.results.leaves
            ],
            calls.results.structure,
        )
        targets = labels.new_zeros(size, *labels.shape[1:])
        try:
            losses = loss(outputs, targets)
            each = [loss(_rows(outputs, slice(i, i + 1)), targets[i : i + 1]) for i in range(size)]
        except Exception as error:
            raise InvalidValue(
                f"the loss cannot be computed ({type(error).__name__}: {brief(error)})",
                "it must take the network's outputs and labels, of any number of images",
                "correct it, or the labels",
            ) from error
        if losses.shape != (size,):
            raise InvalidValue(
                f"the loss of {size} images has shape {tuple(losses.shape)}",
                "there must be one loss an image",
                'build the loss with reduction="none"',
            )
        if not torch.allclose(losses, torch.cat(each), rtol=1e-3, atol=1e-5, equal_nan=True):
            raise InvalidValue(
                "the loss of an image changes with the other images in the batch",
                "it must follow from this image's output and label alone",
                "take no means or ranks over the batch in it",
            )


@dataclass(frozen=True, slots=True)
class _Images:
    """Images to make up: real ones between 0 and 1, whole ones below `highest`."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    highest: int

    def draw(self, count: int, seed: int = 0) -> Tensor:
        """Some of them."""
        generator, size = torch.Generator().manual_seed(1_000 * count + seed), (count, *self.shape)
        if self.dtype.is_floating_point:
            return torch.rand(size, generator=generator, dtype=torch.float64).to(self.device, self.dtype)
        return torch.randint(self.highest, size, generator=generator).to(self.device, self.dtype)


def _highest(model: nn.Module) -> int:
    """How many values every table of the network has a row for."""
    tables = [m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)]
    return min([*tables, 256])


@contextmanager
def _comparable(model: nn.Module, images: _Images) -> Iterator[tuple[_Images, float]]:
    """In double precision if the network allows it, and with nothing random; and how exact it then is.

    Yields images to match, and what rounding may change.
    """
    modes = {module: module.training for module in model.modules()}
    kept = [(tensor, tensor.data) for tensor in (*model.parameters(), *model.buffers())]
    try:
        for module in modes:
            module.training = module.training and not isinstance(module, _DropoutNd)
        if not _repeats(model, images):
            for module in modes:
                module.training = False
            if not _repeats(model, images):
                raise InvalidValue(
                    "the network's outputs are random in evaluation mode",
                    "a trial must tell chance from patients who are mixed",
                    "let what is random ask for self.training",
                )
        yield _in_double(model, images, kept)
    finally:
        for module, training in modes.items():
            module.training = training
        for tensor, data in kept:
            tensor.data = data


def _in_double(model: nn.Module, images: _Images, kept: list[tuple[Tensor, Tensor]]) -> tuple[_Images, float]:
    """Turn a network's numbers into double precision, unless its code then no longer runs."""
    precise = replace(images, dtype=torch.float64) if images.dtype.is_floating_point else images
    try:
        for tensor, data in kept:
            if data.is_floating_point():
                tensor.data = data.double()
        roughest = _roughest(model, precise)
    except Exception:  # noqa: BLE001 - any code may stand in a network; what it cannot do is told below
        for tensor, data in kept:
            tensor.data = data
        precise, roughest = images, _roughest(model, images)
    if roughest > torch.finfo(torch.float32).eps:
        raise InvalidValue(
            "the network computes in half precision whatever its parameters are",
            "a trial must tell rounding from patients who are mixed",
            "let it compute in the precision of its parameters, and give precision=torch.bfloat16 to PrivateGradients",
        )
    return precise, math.sqrt(roughest)


def _roughest(model: nn.Module, images: _Images) -> float:
    """Largest relative rounding error of any operation in the network."""

    shown, watch = images.draw(SIZES[0]), _Roughness()  # type: ignore[no-untyped-call]
    with watch, torch.enable_grad():
        model(shown)
    return watch.eps


class _Roughness(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the largest rounding unit of any result."""

    eps = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, Tensor) and x.is_floating_point():
                self.eps = max(self.eps, torch.finfo(x.dtype).eps)
        return result


def _repeats(model: nn.Module, images: _Images) -> bool:
    """Whether two runs on the same images agree."""
    shown = images.draw(SIZES[0])
    with state_guard(model):
        one, other = (tree_leaves(model(shown)) for _ in range(2))
    return all(
        torch.allclose(a, b, rtol=1e-4, atol=1e-6, equal_nan=True)
        for a, b in zip(one, other, strict=True)
        if isinstance(a, Tensor)
    )


@contextmanager
def _other_parameters(model: nn.Module, draw: int) -> Iterator[None]:
    """Parameters moved at random, but for the first draw: zeros, such as those of a new head, hide what is below."""
    generator = torch.Generator().manual_seed(draw)
    kept = [(p, p.data) for p in trainable_parameters(model).values()]
    try:
        for parameter, data in kept:
            if draw:
                size = 0.3 * float(data.square().mean().sqrt()) or 0.1
                noise = torch.randn(data.shape, generator=generator, dtype=torch.float64).to(data)
                parameter.data = data + size * noise
        yield
    finally:
        for parameter, data in kept:
            parameter.data = data


def _compare(model: nn.Module, plan: Plan, calls: Calls, images: Tensor, draw: int, tolerance: float) -> None:
    """Some images of some patients: the engine's gradient of each against a plain backward pass over them alone."""
    layout, batch = Layout(model), UnitBatch(_patients(len(images)))
    weights = torch.linspace(0.5, 1.5, len(images)).to(images.device)

    def losses_of(rows: slice) -> Tensor:
        return _loss(model(images[rows]), draw) * weights[rows]

    try:
        _, contributions = unit_contributions(plan, calls, layout, batch, lambda: losses_of(slice(None)))
        found = [_of_unit(layout, contributions, unit) for unit in range(batch.units)]
        ends = batch.counts.cumsum(0).tolist()
        expected = [
            _plain(layout, losses_of(slice(end - count, end)))
            for end, count in zip(ends, batch.counts.tolist(), strict=True)
        ]
    except InvalidValue:
        raise
    except Exception as error:
        raise InvalidValue(
            f"a patient's gradient cannot be taken ({type(error).__name__}: {brief(error)})",
            "the network must take any number of images, also one, and be differentiable",
            "look for the number of images in the network's code, and for changes in place of what is needed later",
        ) from error
    _require_equal(layout, found, expected, tolerance)


def _require_equal(
    layout: Layout, found: list[tuple[Tensor, float]], expected: list[Tensor], tolerance: float
) -> None:
    """Refuse gradients that differ by more than rounding, parameter by parameter, and norms that are too small."""
    largest = max(float(g.abs().max()) for g in expected)
    if not math.isfinite(largest):
        raise InvalidValue(
            "gradients of made-up images are not finite",
            "a trial compares them",
            "start from parameters for which the network's outputs are finite on images between 0 and 1",
        )
    worst = 0.0
    for (vector, norm), alone in zip(found, expected, strict=True):
        for target in layout.targets():
            part = alone[target.start : target.stop]
            scale = max(float(part.abs().max()), _SMALLEST * largest)
            difference = float((vector[target.start : target.stop] - part).abs().max())
            worst = max(worst, difference / scale if difference else 0.0)
        length = float(alone.norm())
        worst = max(worst, (length - norm) / length if length else 0.0)
    if not worst < tolerance:
        raise InvalidValue(
            f"a patient's gradient differs by {worst:.1g} of it when other patients are in the batch",
            "the network must treat each patient's images by themselves",
            "look for operations over the batch axis (batch statistics, reshaping, sorting, attention between images)",
        )


def _of_unit(layout: Layout, contributions: list[Contribution], unit: int) -> tuple[Tensor, float]:
    """A unit's gradient as the engine attributes it, and its norm."""
    some = next(iter(layout.parameters.values()))
    vector, squared = torch.zeros(layout.dimension, dtype=some.dtype, device=some.device), 0.0
    for c in contributions:
        if c.first_unit <= unit < c.last_unit:
            only = vector.new_zeros(c.last_unit - c.first_unit)
            only[unit - c.first_unit] = 1
            vector[c.target.start : c.target.stop] += c.weighted_sum(only)
            squared += float(c.squared_norms()[unit - c.first_unit])
    return vector, math.sqrt(max(0.0, squared))


def _plain(layout: Layout, losses: Tensor) -> Tensor:
    """The gradient of the sum of losses, by autograd."""
    parameters = list(layout.parameters.values())
    if not losses.requires_grad:
        return torch.cat([torch.zeros_like(p).flatten() for p in parameters])
    found = torch.autograd.grad(losses.sum(), parameters, materialize_grads=True)
    return torch.cat([(g if g.layout == torch.strided else g.to_dense()).flatten() for g in found])


def _patients(images: int) -> Tensor:
    """Whose each of so many images is, in the order of `UnitBatch`."""
    units = torch.tensor([_PATIENTS[i % len(_PATIENTS)] for i in range(images)])
    return units[UnitBatch(units).order]


def _loss(outputs: Any, draw: int) -> Tensor:
    """A smooth function of each image's outputs that no normalisation makes constant."""
    generator = torch.Generator().manual_seed(draw)
    total: Tensor | None = None
    for x in tree_leaves(outputs):
        if isinstance(x, Tensor) and x.is_floating_point():
            rows = x.flatten(1) if x.ndim > 1 else x[:, None]
            a, b = torch.randn(2, rows.shape[1], generator=generator, dtype=torch.float64).to(rows)
            loss = (rows @ a).square() / rows.shape[1] + rows @ b
            total = loss if total is None else total + loss
    if total is None:
        raise InvalidValue(
            "the network returns no real numbers",
            "there must be something to train",
            "return a tensor whose first axis is the images",
        )
    return total


def _rows(outputs: Any, rows: slice) -> Any:
    """Some images' part of outputs."""
    return tree_map(lambda x: x[rows] if isinstance(x, Tensor) else x, outputs)
