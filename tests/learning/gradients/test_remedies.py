"""What cannot be run is refused with a value, a rule, and a remedy that helps."""

from typing import Any

import pytest
import torch
from tests.learning.gradients.small_networks import Called, Gain, Positions, refusal
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from fedveil.learning.gradients import check_private


class Number(float):
    """Whatever equals it, it may be something else."""


class FoldingConvolution(nn.ConvTranspose1d):
    """Folds tokens into the images, and unfolds them again."""

    def forward(self, x: Tensor) -> Tensor:
        """`(n, tokens, 2, width)`."""
        return super().forward(x.flatten(0, 1)).unflatten(0, x.shape[:2])


def last(outputs: Tensor) -> Tensor:
    """The last of each image's outputs."""
    return outputs[:, -1]


REMEDIES: dict[str, tuple[Any, Any, tuple[int, ...], str]] = {
    "packed sequences": (
        lambda: Called(
            lambda net, x: last(
                pad_packed_sequence(
                    net.rnn(pack_padded_sequence(x, torch.full((len(x),), 4), batch_first=True))[0],
                    batch_first=True,
                )[0]
            ),
            rnn=nn.LSTM(8, 5, batch_first=True),
        ),
        lambda: Called(lambda net, x: last(net.rnn(x)[0]), rnn=nn.LSTM(8, 5, batch_first=True)),
        (4, 8),
        "give it padded sequences (images, length, features) instead of packed ones",
    ),
    "sequences of one step, packed": (
        lambda: Called(
            lambda net, x: net.rnn(pack_padded_sequence(x, torch.ones(len(x)), batch_first=True))[0].data,
            rnn=nn.GRU(8, 5, batch_first=True),
        ),
        lambda: Called(lambda net, x: last(net.rnn(x)[0]), rnn=nn.GRU(8, 5, batch_first=True)),
        (1, 8),
        "give it padded sequences (images, length, features) instead of packed ones",
    ),
    "offsets of bags": (
        lambda: Called(
            lambda net, x: net.bag((x * 8).long().flatten(), torch.arange(0, x.numel(), 6)),
            bag=nn.EmbeddingBag(9, 4),
        ),
        lambda: Called(lambda net, x: net.bag((x * 8).long()), bag=nn.EmbeddingBag(9, 4)),
        (6,),
        "give it indices (images, tokens) and no offsets",
    ),
    "offsets of bags of one": (
        lambda: Called(
            lambda net, x: net.bag((x * 8).long().flatten(), torch.arange(len(x))), bag=nn.EmbeddingBag(9, 4)
        ),
        lambda: Called(lambda net, x: net.bag((x * 8).long()), bag=nn.EmbeddingBag(9, 4)),
        (1,),
        "give it indices (images, tokens) and no offsets",
    ),
    "kernels larger than the image": (
        lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 5)),
        lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 5, padding=1)),
        (1, 6, 6),
        "give larger images, pad the input of this layer, or take a smaller kernel",
    ),
    "pooling of too little": (
        lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.MaxPool2d(3), nn.MaxPool2d(3)),
        lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.MaxPool2d(3), nn.MaxPool2d(3, padding=1)),
        (1, 8, 8),
        "give larger images, pad the input of this layer, or take a smaller kernel",
    ),
    "another width": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(60, 2)),
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 2)),
        (1, 8, 8),
        "layer 1 (Linear) cannot be run on tensors of shape (5, 64) (RuntimeError: mat1 and mat2 shapes cannot be "
        "multiplied (5x64 and 60x2)); the network must take 5 images of shape (1, 8, 8)",
    ),
    "tables that depend on the batch": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.EmbeddingBag(9, 4, max_norm=1.0)),
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 9)),
        (1, 8, 8),
        "build it without these options",
    ),
    "tables that a layer hands out": (
        lambda: Called(lambda net, x: x * net.a(), a=Positions(4, 8)),
        lambda: Called(lambda net, x: x * net.a(x), a=Positions(4, 8)),
        (4, 8),
        "result of layer a (Positions) has shape (4, 8) for any number of images",
    ),
    "tables that a layer is given": (
        lambda: Called(lambda net, x: x * net.a(torch.arange(4)), a=nn.Embedding(4, 8)),
        lambda: Called(lambda net, x: x * net.a(torch.arange(4).expand(len(x), 4)), a=nn.Embedding(4, 8)),
        (4, 8),
        "give it a row for each image, as in layer(x.expand(len(images), *x.shape))",
    ),
    "tokens folded into images": (
        lambda: Called(
            lambda net, x: net.a((9 * x).long().flatten(0, 1)).unflatten(0, (-1, 4)), a=nn.Embedding(9, 2)
        ),
        lambda: Called(
            lambda net, x: net.a((9 * x).long().flatten(0, 1).unflatten(0, (-1, 4))), a=nn.Embedding(9, 2)
        ),
        (4, 8),
        "keep other axes behind the images (x.unflatten(0, (-1, 4)))",
    ),
    "tokens folded into images of a convolution": (
        lambda: Called(
            lambda net, x: net.a(x.flatten(0, 1)).unflatten(0, (-1, 4)), a=nn.ConvTranspose1d(2, 2, 3)
        ),
        lambda: Called(lambda net, x: net.a(x), a=FoldingConvolution(2, 2, 3)),
        (4, 2, 8),
        "fold them in the forward of a class that derives from this layer's, which then runs once per patient",
    ),
    "what is overwritten": (
        lambda: Called(lambda net, x: net.a(x := x * 1.0) + x.mul_(2), a=nn.Linear(8, 8)),
        lambda: Called(lambda net, x: net.a(x * 1.0) + x * 2, a=nn.Linear(8, 8)),
        (8,),
        "write x = x + y instead of x += y",
    ),
    "what is squeezed away": (
        lambda: Called(lambda net, x: net.a(x.squeeze()), a=nn.Linear(8, 2)),
        lambda: Called(lambda net, x: net.a(x.squeeze(1)), a=nn.Linear(8, 2)),
        (1, 8),
        "name the axis where you squeeze one",
    ),
    "what is told apart by the number of images": (
        lambda: Called(lambda net, x: net.a(x, scale=1 / len(x)), a=Gain(8)),
        lambda: Called(lambda net, x: net.a(x, scale=1 / x.shape[1]), a=Gain(8)),
        (8,),
        "argument ['scale'] of layer a (Gain) is 0.2 for 5 images and 0.14285714285714285 for 7",
    ),
    "chance": (
        lambda: Called(lambda net, x: net.a(x + torch.rand_like(x)), a=nn.Linear(8, 2)),
        lambda: Called(lambda net, x: net.a(x + torch.rand_like(x) * net.training), a=nn.Linear(8, 2)),
        (8,),
        "let what is random ask for self.training",
    ),
    "half precision": (
        lambda: Called(lambda net, x: net.a(x).half().to(x), a=nn.Linear(8, 2)),
        lambda: Called(lambda net, x: net.a(x), a=nn.Linear(8, 2)),
        (8,),
        "let it compute in the precision of its parameters",
    ),
    "outputs beside those of images": (
        lambda: Called(lambda net, x: (net.a(x), torch.ones(3)), a=nn.Linear(8, 2)),
        lambda: Called(lambda net, x: (net.a(x), torch.ones(len(x))), a=nn.Linear(8, 2)),
        (8,),
        "return only tensors whose first axis is the images",
    ),
    "an object": (
        lambda: Called(lambda net, x: net.a(x, scale=Number(2.0)), a=Gain(8)),
        lambda: Called(lambda net, x: net.a(x), a=Gain(8)),
        (8,),
        "give and return tensors whose first axis is the images, and constants",
    ),
}


@pytest.mark.parametrize("name", REMEDIES)
def test_what_cannot_be_run_is_refused_with_a_remedy_that_helps(name: str) -> None:
    torch.manual_seed(0)
    broken, repaired, shape, message = REMEDIES[name]
    assert message in refusal(broken(), shape)
    check_private(repaired(), shape)
