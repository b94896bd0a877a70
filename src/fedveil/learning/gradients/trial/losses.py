"""A trial of a loss on made-up outputs and labels: whether each image's loss follows from this image alone.

A loss that weighs images by the labels of the batch, such as by class frequencies, looks sound while all labels are
equal, and so does one that compares images of different classes. So the made-up labels are mixed.
"""

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from fedveil.errors import InvalidValue
from fedveil.learning.gradients.trial.calls import SIZES, Calls, brief

__all__ = ["check_loss"]

_IMAGES = 2 * sum(SIZES)
_TOLERANCE = 1e-5
"""Of single precision, as a part of the largest loss, or of the largest entry of a gradient."""
_MOST_CLASSES = 8
"""Classes that are tried."""
_Loss = Callable[[Any, Tensor], Tensor]


def check_loss(loss: _Loss, calls: Calls, labels: Tensor, device: torch.device) -> None:
    """Refuse a loss that is not one number for each image, which follows from this image alone.

    Losses and their gradients of made-up outputs with made-up labels are compared: each image alone, and in batches
    of several sizes with other companions. Outputs are normal, or probabilities where the loss takes no others, in
    single precision, or in double where the loss takes no other. They are on the CPU where the loss can be computed
    there, since a label out of range ends all work on a GPU.

    Args:
        loss: from outputs and labels.
        calls: what comes out of the network.
        labels: only their shape for one image, and their type, are looked at.
        device: of the network.

    Raises:
        InvalidValue: the loss is another kind of function, or cannot be computed.
    """
    wrong: Exception | None = None
    for where in dict.fromkeys([torch.device("cpu"), device]):
        for probable, dtype in product((False, True), (torch.float32, torch.float64)):
            outputs = _made_up_outputs(calls, probable, dtype, where)
            tried = [_compare(loss, outputs, one.to(where)) for one in _made_up_labels(calls, labels)]
            if True in tried:
                return
            wrong = wrong or next((error for error in tried if isinstance(error, Exception)), None)
    if wrong is not None:
        raise _not_computed(wrong) from wrong
    raise InvalidValue(
        "the loss of made-up images is not finite",
        "a trial compares losses of an image in several batches",
        "let it be finite for normal outputs, or for probabilities, and labels of 0 and 1",
    )


def _compare(loss: _Loss, outputs: Any, targets: Tensor) -> bool | Exception:
    """Refuse where images are mixed. Return whether losses were finite, or why there are none for such labels."""
    each = [_attempt(loss, outputs, targets, [row]) for row in range(_IMAGES)]
    for rows in _batches():
        found = _attempt(loss, outputs, targets, rows)
        alone = [each[row] for row in rows]
        failed = next((one for one in alone if isinstance(one, Exception)), None)
        if isinstance(found, Exception):
            if failed is None:
                raise _not_computed(found) from found
        elif failed is not None:  # so these are labels, but not for one image
            raise _not_computed(failed) from failed
        else:
            values, gradients = zip(*(one for one in alone if not isinstance(one, Exception)), strict=True)
            _require_same(found[0], torch.cat(values))
            _require_same(found[1], torch.cat(gradients))
    failed = next((one for one in each if isinstance(one, Exception)), None)
    return failed or all(bool(one[0].isfinite().all()) for one in each if not isinstance(one, Exception))


def _attempt(
    loss: _Loss, outputs: Any, targets: Tensor, rows: list[int]
) -> tuple[Tensor, Tensor] | Exception:
    """`_loss_and_gradient`, or what the loss raised."""
    try:
        return _loss_and_gradient(loss, outputs, targets, rows)
    except InvalidValue:
        raise
    except Exception as error:  # noqa: BLE001 - whatever a loss raises
        return error


def _not_computed(error: Exception) -> InvalidValue:
    return InvalidValue(
        f"the loss cannot be computed ({type(error).__name__}: {brief(error)})",
        "it must take the network's outputs and labels, of any number of images, also one",
        "correct it, or the labels, and take nothing from the labels of the batch in it",
    )


def _require_same(together: Tensor, alone: Tensor) -> None:
    """Refuse losses or gradients that are others in a batch, beyond rounding."""
    known = alone[alone.isfinite()]
    largest = float(known.abs().max()) if known.numel() else 0.0
    if not torch.allclose(together, alone, rtol=_TOLERANCE, atol=_TOLERANCE * largest, equal_nan=True):
        raise InvalidValue(
            "the loss of an image changes with the other images in the batch",
            "it must follow from this image's output and label alone",
            "take no means, ranks or class frequencies over the batch in it; give class weights that are public "
            "constants",
        )


def _loss_and_gradient(loss: _Loss, outputs: Any, targets: Tensor, rows: list[int]) -> tuple[Tensor, Tensor]:
    """Some images' losses (n,), and (n, d) the gradient of their sum with respect to all outputs of each image.

    Losses are weighted in this sum, by constants of each image, so that what images exchange does not cancel.
    """
    flat, structure = tree_flatten(outputs)
    leaves = [x[rows].requires_grad_() for x in flat if isinstance(x, Tensor)]
    copies = (x.clone() for x in leaves)  # a loss may change them in place
    shown = tree_unflatten([next(copies) if isinstance(x, Tensor) else x for x in flat], structure)
    with torch.enable_grad():
        losses = loss(shown, targets[rows])
    shape = getattr(losses, "shape", None)
    if shape != (len(rows),):
        raise InvalidValue(
            f"the loss of {len(rows)} images has shape {None if shape is None else tuple(shape)}",
            "there must be one loss per image",
            'build the loss with reduction="none"',
        )
    if losses.requires_grad:
        weights = torch.linspace(0.5, 1.5, _IMAGES).to(losses)[rows]
        found = torch.autograd.grad((losses * weights).sum(), leaves, materialize_grads=True)
    else:
        found = tuple(map(torch.zeros_like, leaves))
    gradient = torch.cat([g.reshape(len(rows), -1) for g in found], dim=1)
    return losses.detach().double(), gradient.double()


def _batches() -> Iterator[list[int]]:
    """Which images are shown together: all; and two ways to cut them, so that each has other companions."""
    generator = torch.Generator().manual_seed(1)
    yield list(range(_IMAGES))
    for order in (torch.arange(_IMAGES), torch.randperm(_IMAGES, generator=generator)):
        for part in torch.split(order, [*SIZES, _IMAGES - sum(SIZES)]):
            yield part.tolist()


def _made_up_outputs(calls: Calls, probable: bool, dtype: torch.dtype, device: torch.device) -> Any:
    generator = torch.Generator().manual_seed(0)

    def draw(shape: tuple[int, ...]) -> Tensor:
        normal = torch.randn(_IMAGES, *shape[1:], generator=generator, dtype=torch.float64)
        if probable:
            normal = normal.softmax(-1) if normal.ndim > 1 and normal.shape[-1] > 1 else normal.sigmoid()
        return normal.to(device, dtype)

    return tree_unflatten(
        [leaf.value if leaf.shape is None else draw(leaf.shape) for leaf in calls.results.leaves],
        calls.results.structure,
    )


def _made_up_labels(calls: Calls, labels: Tensor) -> Iterator[Tensor]:
    """Labels of all images: zeros, a lone 1, a lone 0, both mixed, and others that need not be labels of this loss."""
    generator, size = torch.Generator().manual_seed(2), (_IMAGES, *labels.shape[1:])
    zeros = torch.zeros(size, dtype=torch.int64)
    lone = zeros.clone()
    lone[0] = 1
    found = [zeros, lone, 1 - lone, torch.randint(2, size, generator=generator)]
    if labels.is_floating_point():
        found += [torch.rand(size, generator=generator), torch.randn(size, generator=generator)]
    elif (classes := _classes(calls, tuple(labels.shape[1:]))) > 2:
        some = torch.linspace(0, classes - 1, min(classes, _MOST_CLASSES)).round().long()
        found.append(some[torch.randint(len(some), size, generator=generator)])
    return (one.to(labels.dtype) for one in found)


def _classes(calls: Calls, label: tuple[int, ...]) -> int:
    """How many values a label may have: the length of the axis of the outputs that a label lacks, or of the last."""
    shape = next(leaf.shape for leaf in calls.results.leaves if leaf.shape is not None)[1:]
    if not shape or shape == label:
        return 2
    return shape[0] if label and shape[1:] == label else shape[-1]
