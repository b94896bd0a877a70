"""The engine's gradients of made-up patients against plain backward passes, one for each patient.

What the engine attributes to a patient in a batch must be the gradient of the network run on this patient's images
alone, up to rounding in double precision.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves

from fedveil.errors import InvalidValue
from fedveil.learning.gradients.backward import unit_contributions
from fedveil.learning.gradients.contributions import Contribution
from fedveil.learning.gradients.parameters import Layout, trainable_parameters
from fedveil.learning.gradients.rules import Plan
from fedveil.learning.gradients.trial.calls import SIZES, Calls, brief, learn_calls
from fedveil.learning.gradients.units import UnitBatch

__all__ = ["MadeUp", "compare_patients"]

# Whose the made-up images are, by their number: patients with several images, and one with one.
_PATIENTS = (1, 0, 1, 1, 0, 2, 0)
# A parameter's gradient this far below the largest may be rounding alone.
_SMALLEST = 1e-4
_MIXED = (
    "the network must treat each patient's images independently",
    "look for operations over the batch axis (batch statistics, sorting, reshaping, attention between images, "
    "recurrent layers without batch_first=True)",
)


@dataclass(frozen=True, slots=True)
class MadeUp:
    """Images to make up: real ones between 0 and 1, whole ones below `highest`."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    highest: int

    @classmethod
    def of(cls, model: nn.Module, shape: tuple[int, ...], dtype: torch.dtype | None) -> "MadeUp":
        """For a model: of the type of its parameters, or whole numbers that all its tables have a row for."""
        some = next(iter(trainable_parameters(model).values()))
        tables = [m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)]
        return cls(shape, dtype or some.dtype, some.device, min([*tables, 256]))

    def draw(self, count: int) -> Tensor:
        """So many images, always the same."""
        generator, size = torch.Generator().manual_seed(count), (count, *self.shape)
        if self.dtype.is_floating_point:
            return torch.rand(size, generator=generator, dtype=torch.float64).to(self.device, self.dtype)
        return torch.randint(self.highest, size, generator=generator).to(self.device, self.dtype)


def compare_patients(
    model: nn.Module, plan: Plan, calls: Calls, images: MadeUp, sizes: tuple[int, ...]
) -> None:
    """Refuse a model in which a patient's gradient depends on the other patients in the batch.

    Dropout is disabled. A model that is still random is compared in evaluation mode. Modes, parameters and
    buffers are left as they were.
    """
    with _restored(model):
        _set_modes(model, lambda module: module.training and not isinstance(module, _DropoutNd))
        images, tolerance = _in_double(model, images)
        try:
            _compare_draws(model, plan, calls, images, sizes, tolerance)
        except InvalidValue:
            if _repeats(model, images.draw(sizes[0])):
                raise
            _set_modes(model, lambda _: False)
            if not _repeats(model, images.draw(sizes[0])):
                raise InvalidValue(
                    "the network's outputs are random in evaluation mode",
                    "a trial must distinguish randomness from mixed patients",
                    "let what is random ask for self.training",
                ) from None
            calls = learn_calls(model, plan.labels, plan.cut, images.draw, (sizes[0], sizes[1]))
            _compare_draws(model, plan, calls, images, sizes, tolerance)


@contextmanager
def _restored(model: nn.Module) -> Iterator[None]:
    """Restore modes, parameters and buffers."""
    modes = {module: module.training for module in model.modules()}
    kept = [(tensor, tensor.data) for tensor in (*model.parameters(), *model.buffers())]
    try:
        yield
    finally:
        _set_modes(model, modes.__getitem__)
        for tensor, data in kept:
            tensor.data = data


def _set_modes(model: nn.Module, mode: Callable[[nn.Module], bool]) -> None:
    for module in model.modules():
        module.training = mode(module)


def _in_double(model: nn.Module, images: MadeUp) -> tuple[MadeUp, float]:
    """Turn a network's numbers into double precision, unless its code then no longer runs.

    Returns images to match, and the relative difference that rounding may make.
    """
    precise = replace(images, dtype=torch.float64) if images.dtype.is_floating_point else images
    kept = [(tensor, tensor.data) for tensor in (*model.parameters(), *model.buffers())]
    try:
        for tensor, data in kept:
            if data.is_floating_point():
                tensor.data = data.double()
        roughest = _roughest(model, precise)
    except Exception:  # noqa: BLE001 - whatever it is: the network is compared as it is
        for tensor, data in kept:
            tensor.data = data
        precise, roughest = images, _roughest(model, images)
    if roughest > torch.finfo(torch.float32).eps:
        raise InvalidValue(
            "the network computes in half precision",
            "a trial must distinguish rounding from mixed patients",
            "let it compute in the precision of its parameters; PrivateGradients(..., precision=torch.bfloat16) "
            "makes it fast",
        )
    return precise, math.sqrt(roughest)


def _roughest(model: nn.Module, images: MadeUp) -> float:
    """Largest rounding unit of any operation in the network."""
    shown, watch = images.draw(SIZES[0]), _Roughness()  # type: ignore[no-untyped-call]
    with watch:
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


def _repeats(model: nn.Module, images: Tensor) -> bool:
    """Whether two runs on the same images agree."""
    one, other = (tree_leaves(model(images)) for _ in range(2))
    return all(
        torch.allclose(a, b, rtol=1e-4, atol=1e-6, equal_nan=True)
        for a, b in zip(one, other, strict=True)
        if isinstance(a, Tensor)
    )


def _compare_draws(
    model: nn.Module, plan: Plan, calls: Calls, images: MadeUp, sizes: tuple[int, ...], tolerance: float
) -> None:
    """Compare some images with the parameters as they are, then others with other parameters.

    Parameters that are zero, such as those of a new head, hide what is below them.
    """
    _compare(model, plan, calls, images.draw(sizes[0]), tolerance)
    generator = torch.Generator().manual_seed(sizes[1])
    for parameter in trainable_parameters(model).values():
        data = parameter.data
        size = 0.3 * float(data.square().mean().sqrt()) or 0.1
        noise = torch.randn(data.shape, generator=generator, dtype=data.dtype)
        parameter.data = data + size * noise.to(data.device)
    for size in sizes[1:]:
        _compare(model, plan, calls, images.draw(size), tolerance)


def _compare(model: nn.Module, plan: Plan, calls: Calls, images: Tensor, tolerance: float) -> None:
    """Each patient's gradient in this batch against a plain backward pass over their images alone."""
    units = torch.tensor([_PATIENTS[i % len(_PATIENTS)] for i in range(len(images))])
    layout, batch = Layout(model), UnitBatch(units)
    weights = torch.linspace(0.5, 1.5, len(images)).to(images.device)

    def run(rows: slice) -> tuple[list[Any], Tensor]:
        outputs = tree_flatten(model(images[rows]))
        calls.results.require(*outputs, len(weights[rows]))
        return outputs[0], _loss(outputs[0]) * weights[rows]

    try:
        together = [x.detach() if isinstance(x, Tensor) else x for x in run(slice(None))[0]]
        patients = list(_rows_of_units(batch))
        for rows in patients:
            _require_same(together, rows, run(rows)[0], tolerance)
        _, contributions = unit_contributions(plan, calls, layout, batch, lambda: run(slice(None))[1])
        alone = [
            _plain(layout, run(rows)[1]) for rows in patients
        ]  # one graph at a time: batches may be large
    except InvalidValue:
        raise
    except Exception as error:
        raise InvalidValue(
            f"a patient's gradient cannot be taken ({type(error).__name__}: {brief(error)})",
            "the network must take any number of images, also one, and be differentiable",
            "change nothing in place that a layer has read, and look for the number of images in the network's code",
        ) from error
    largest = max(float(g.abs().max()) for g in alone)
    if not math.isfinite(largest):
        raise InvalidValue(
            "gradients of made-up images are not finite",
            "a trial compares them",
            "start from parameters that give finite outputs for images between 0 and 1",
        )
    worst = max(
        _difference(layout, *_attributed(layout, contributions, unit), g, largest)
        for unit, g in enumerate(alone)
    )
    if not worst < tolerance:
        raise InvalidValue(
            f"a patient's gradient differs by {worst:.2g} times its size when other patients are in the batch",
            *_MIXED,
        )


def _rows_of_units(batch: UnitBatch) -> Iterator[slice]:
    """Each unit's images."""
    for bucket in batch.buckets:
        for first in range(bucket.first_image, bucket.last_image, bucket.images_each):
            yield slice(first, first + bucket.images_each)


def _require_same(together: list[Any], rows: slice, alone: list[Any], tolerance: float) -> None:
    """Refuse outputs for some images that differ when these are alone."""
    for x, y in zip(together, alone, strict=True):
        if isinstance(x, Tensor) and x.is_floating_point():
            largest = y.detach().abs().max()
            difference = float(
                (x[rows] - y).detach().abs().max() / largest.clamp_min(torch.finfo(y.dtype).tiny)
            )
            if largest.isfinite() and not difference < tolerance:
                raise InvalidValue(
                    f"the output for a patient's images differs by {difference:.2g} times its size when other patients "
                    "are in the batch",
                    *_MIXED,
                )


def _difference(layout: Layout, vector: Tensor, norm: float, alone: Tensor, largest: float) -> float:
    """The error of a patient's gradient, relative to the size of each parameter's; or its norm, if too small."""
    length = float(alone.norm())
    worst = (length - norm) / length if length else 0.0
    for target in layout.targets():
        part = alone[target.start : target.stop]
        difference = float((vector[target.start : target.stop] - part).abs().max())
        if difference:
            worst = max(worst, difference / max(float(part.abs().max()), _SMALLEST * largest))
    return worst


def _attributed(layout: Layout, contributions: list[Contribution], unit: int) -> tuple[Tensor, float]:
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


def _loss(outputs: list[Any]) -> Tensor:
    """A smooth function of each image's outputs that no normalisation makes constant."""
    generator = torch.Generator().manual_seed(0)
    total: Tensor | None = None
    for x in outputs:
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
