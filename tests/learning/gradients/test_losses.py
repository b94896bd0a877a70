"""Losses that follow from each image alone are taken, and losses that look at the batch are refused before a sum."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor, nn
from torch.nn import functional

from fedveil.errors import InvalidValue
from fedveil.learning.gradients import PrivateGradients

INTEGERS, REALS = torch.zeros(0, dtype=torch.int64), torch.zeros(0)


def balanced(outputs: Tensor, labels: Tensor) -> Tensor:
    found = labels.numpy()
    classes = np.unique(found)
    weights = compute_class_weight("balanced", classes=classes, y=found)
    mine = torch.from_numpy(weights[np.searchsorted(classes, found)]).to(outputs)
    return functional.cross_entropy(outputs, labels, reduction="none") * mine


def looked_up(outputs: Tensor, labels: Tensor) -> Tensor:
    """Cannot be computed for an image of class 1 alone."""
    weights = labels.unique(return_counts=True)[1].reciprocal()
    return functional.cross_entropy(outputs, labels, reduction="none") * weights[labels]


def ranked(outputs: Tensor, labels: Tensor) -> Tensor:
    scores = outputs[:, 0]
    pairs = functional.softplus(scores[None] - scores[:, None]) * (labels[:, None] > labels[None])
    return pairs.sum(1)


def rare_last_class(outputs: Tensor, labels: Tensor) -> Tensor:
    last = labels == outputs.shape[1] - 1
    return functional.cross_entropy(outputs, labels, reduction="none") * (1 + last / (1 + last.sum()))


def positive_weight(outputs: Tensor, labels: Tensor) -> Tensor:
    weight = (labels == 0).sum() / (labels == 1).sum().clamp_min(1)
    return functional.binary_cross_entropy_with_logits(
        outputs[:, 0], labels, pos_weight=weight, reduction="none"
    )


def standardized(outputs: Tensor, labels: Tensor) -> Tensor:
    scale = labels.std() if len(labels) > 1 else 1.0
    return (outputs[:, 0] - labels).square() / scale


def hardest(outputs: Tensor, labels: Tensor) -> Tensor:
    losses = functional.cross_entropy(outputs, labels, reduction="none")
    return losses * (losses >= losses.sort(descending=True).values[:16][-1])


class _Unseen(torch.autograd.Function):
    """Its value follows from each image, and its gradient does not."""

    @staticmethod
    def forward(ctx: Any, losses: Tensor) -> Tensor:
        return losses.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * len(gradients[0])


def scaled_gradient(outputs: Tensor, labels: Tensor) -> Tensor:
    return _Unseen.apply(functional.cross_entropy(outputs, labels, reduction="none"))  # type: ignore[no-any-return, no-untyped-call]


@pytest.mark.parametrize(
    ("loss", "labels"),
    [
        (balanced, INTEGERS),
        (looked_up, INTEGERS),
        (ranked, INTEGERS),
        (ranked, REALS),
        (rare_last_class, INTEGERS),
        (positive_weight, REALS),
        (standardized, REALS),
        (hardest, INTEGERS),
        (scaled_gradient, INTEGERS),
    ],
)
def test_losses_that_look_at_the_labels_of_the_batch_are_refused(loss: Any, labels: Tensor) -> None:
    engine = PrivateGradients(nn.Linear(8, 3), loss, 1.0)
    with pytest.raises(InvalidValue, match=r"the loss (of an image changes with|cannot be computed)"):
        engine.check(torch.zeros(0, 8), labels)


class Named(nn.Module):
    """Several outputs by name, of which the network makes probabilities."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"probability": self.layer(x).sigmoid().squeeze(1)}


CROSS_ENTROPY = partial(functional.cross_entropy, reduction="none")


def weighted(outputs: Tensor, labels: Tensor) -> Tensor:
    each = nn.BCEWithLogitsLoss(pos_weight=torch.tensor([0.5, 1.0, 3.0]), reduction="none")
    return each(outputs, labels.float()).mean(1)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("model", "loss", "labels"),
    [
        (nn.Linear(8, 4), nn.CrossEntropyLoss(reduction="none"), INTEGERS),
        (nn.Linear(8, 4), nn.CrossEntropyLoss(torch.rand(4), reduction="none"), INTEGERS),
        (nn.Linear(8, 4), nn.CrossEntropyLoss(torch.rand(4).double(), reduction="none"), INTEGERS),
        (nn.Linear(8, 4), nn.CrossEntropyLoss(reduction="none", label_smoothing=0.1), INTEGERS),
        (nn.Linear(8, 4), CROSS_ENTROPY, torch.zeros(0, 4)),
        (nn.Linear(8, 4), lambda o, y: CROSS_ENTROPY(o[:, :2], y), INTEGERS),
        (
            nn.Unflatten(1, (2, 4)),
            lambda o, y: CROSS_ENTROPY(o, y).mean(1),
            torch.zeros(0, 4, dtype=torch.int64),
        ),
        (
            nn.Linear(8, 1),
            lambda o, y: functional.binary_cross_entropy_with_logits(o[:, 0], y, reduction="none"),
            REALS,
        ),
        (nn.Linear(8, 3), weighted, torch.zeros(0, 3, dtype=torch.uint8)),
        (nn.Linear(8, 1), lambda o, y: functional.mse_loss(o[:, 0], y, reduction="none"), REALS),
        (nn.Linear(8, 3), lambda o, y: (o - y).square().mean(1), torch.zeros(0, 3)),
        (nn.Linear(8, 1), lambda o, y: functional.relu(1 - o[:, 0] * (2 * y - 1)), INTEGERS),
        (Named(), lambda o, y: functional.binary_cross_entropy(o["probability"], y, reduction="none"), REALS),
        (nn.Linear(8, 2), lambda o, y: CROSS_ENTROPY(o, y.long()), torch.zeros(0, dtype=torch.bool)),
    ],
)
def test_ordinary_losses_are_taken(model: nn.Module, loss: Any, labels: Tensor) -> None:
    if isinstance(model, nn.Unflatten):
        model = nn.Sequential(nn.Linear(8, 8), model)
    PrivateGradients(model, loss, 1.0).check(torch.zeros(0, 8), labels)


def test_a_loss_that_is_never_finite_is_refused() -> None:
    engine = PrivateGradients(nn.Linear(8, 2), lambda o, y: o[:, 0] * float("nan") + y, 1.0)
    with pytest.raises(InvalidValue, match="not finite"):
        engine.check(torch.zeros(0, 8), INTEGERS)
