"""Random networks whose tables, sequences and colours are as long as the batch: right, or refused."""

import random
from typing import Any

import pytest
import torch
from tests.learning.gradients.small_networks import Gain, Positions
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from fedveil.errors import InvalidValue
from fedveil.learning.gradients import PrivateGradients


class Folding(nn.Linear):
    """Folds tokens into the images, and unfolds them again."""

    def forward(self, x: Tensor) -> Tensor:
        """`(n, t, w)` as `(n * t, w)`."""
        return super().forward(x.flatten(0, 1)).view_as(x)


class Block(nn.Module):
    """One random step `(n, t, w)` to the same shape, from a menu of what networks do."""

    def __init__(self, kind: str, n: int, t: int, w: int) -> None:
        super().__init__()
        self.kind, self.n, self.t, self.w = kind, n, t, w
        self.gain, self.linear, self.tall = Gain(w), nn.Linear(w, w), nn.Linear(t, t)
        self.table, self.line = nn.Buffer(torch.rand(t, 1)), nn.Buffer(torch.rand(t, w))
        self.positions, self.embedding = Positions(t, w), nn.Embedding(t, w)
        self.convolution, self.channels = nn.Conv1d(t, t, 3, padding=1), nn.Conv1d(n, n, 1)
        self.lstm = nn.LSTM(w, w, batch_first="_first" not in kind)
        self.norm, self.group = nn.LayerNorm(w), nn.GroupNorm(1, t)
        self.attention = nn.MultiheadAttention(w, 1, batch_first=True)
        self.folding = Folding(w, w)
        self.bag, self.cut = nn.EmbeddingBag(9, w), nn.LayerNorm((n, w))

    def forward(self, x: Tensor) -> Tensor:
        """Whatever `kind` says."""
        y: Tensor = getattr(self, f"_{self.kind}")(x)
        return x + y

    def _linear(self, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(x))

    def _normalised(self, x: Tensor) -> Tensor:
        return self.group(self.norm(x))

    def _across(self, x: Tensor) -> Tensor:
        return self.tall(x.mT).mT

    def _convolved(self, x: Tensor) -> Tensor:
        return self.convolution(x)

    def _attended(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x)[0]

    def _attended_to_table(self, x: Tensor) -> Tensor:
        return self.attention(x, self.line.expand(len(x), -1, -1), self.line.expand(len(x), -1, -1))[0]

    def _attended_to_one_table(self, x: Tensor) -> Tensor:
        return self.attention(x, self.line[None], self.line[None])[0]

    def _own(self, x: Tensor) -> Tensor:
        return self.gain(x)

    def _own_with_table(self, x: Tensor) -> Tensor:
        return self.gain(x, self.table)

    def _own_with_line(self, x: Tensor) -> Tensor:
        return self.gain(x, self.line, scale=self.table)

    def _own_with_another(self, x: Tensor) -> Tensor:
        return self.gain(x, x.mean(1, keepdim=True), scale=x.flip(1))

    def _own_tokens_first(self, x: Tensor) -> Tensor:
        return self.gain(x.transpose(0, 1)).transpose(0, 1)

    def _own_tokens_first_with_table(self, x: Tensor) -> Tensor:
        return self.gain(x.transpose(0, 1), self.table[:, None]).transpose(0, 1)

    def _own_folded(self, x: Tensor) -> Tensor:
        return self.gain(x.flatten(0, 1)).view_as(x)

    def _own_told_how_many(self, x: Tensor) -> Tensor:
        return self.gain(x, scale=1 / len(x))

    def _linear_tokens_first(self, x: Tensor) -> Tensor:
        return self.linear(x.transpose(0, 1)).transpose(0, 1)

    def _linear_folded(self, x: Tensor) -> Tensor:
        return self.linear(x.reshape(-1, self.w)).view_as(x)

    def _linear_folded_tokens_first(self, x: Tensor) -> Tensor:
        return self.linear(x.transpose(0, 1).reshape(-1, self.w)).view(self.t, -1, self.w).transpose(0, 1)

    def _normalised_folded(self, x: Tensor) -> Tensor:
        return self.norm(x.flatten(0, 1)).view_as(x)

    def _normalised_folded_tokens_first(self, x: Tensor) -> Tensor:
        return self.norm(x.transpose(0, 1).flatten(0, 1)).view(self.t, -1, self.w).transpose(0, 1)

    def _linear_folding(self, x: Tensor) -> Tensor:
        return self.folding(x)

    def _linear_of_line_for_each(self, x: Tensor) -> Tensor:
        return x * self.linear(self.line.expand(len(x), *self.line.shape))

    def _linear_of_line(self, x: Tensor) -> Tensor:
        return x * self.linear(self.line)

    def _normalised_line(self, x: Tensor) -> Tensor:
        return x * self.norm(self.line)

    def _embedded(self, x: Tensor) -> Tensor:
        return x * self.embedding(torch.arange(self.t))

    def _embedded_for_each(self, x: Tensor) -> Tensor:
        return x * self.embedding(torch.arange(self.t).expand(len(x), -1))

    def _positions(self, x: Tensor) -> Tensor:
        return x * self.positions()

    def _positions_for_each(self, x: Tensor) -> Tensor:
        return x * self.positions(x)

    def _channels(self, x: Tensor) -> Tensor:
        return self.channels(x.transpose(0, 1)).transpose(0, 1)

    def _unbatched(self, x: Tensor) -> Tensor:
        return self.channels(x.flatten(1)).view_as(x)

    def _normalised_over_images(self, x: Tensor) -> Tensor:
        return self.cut(x.transpose(0, 1)).transpose(0, 1)

    def _recurrent(self, x: Tensor) -> Tensor:
        return self.lstm(x)[0]

    def _recurrent_with_state(self, x: Tensor) -> Tensor:
        state = x.mean(1)[None].contiguous()
        y, (h, c) = self.lstm(x, (state, state))
        return y + (h + c).transpose(0, 1)

    def _recurrent_tokens_first(self, x: Tensor) -> Tensor:
        return self.lstm(x.transpose(0, 1))[0].transpose(0, 1)

    def _recurrent_images_first(self, x: Tensor) -> Tensor:
        return self.lstm(x)[0]

    def _recurrent_packed(self, x: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, torch.full((len(x),), self.t), batch_first=True)
        return pad_packed_sequence(self.lstm(packed)[0], batch_first=True)[0]

    def _bag(self, x: Tensor) -> Tensor:
        return self.bag((x[..., 0] * 8).long().clamp(0, 8))[:, None]

    def _bag_with_offsets(self, x: Tensor) -> Tensor:
        flat = (x[..., 0] * 8).long().clamp(0, 8).flatten()
        return self.bag(flat, torch.arange(0, len(flat), self.t))[:, None]

    def _turned(self, x: Tensor) -> Tensor:
        return self.linear(x.flip(0)).flip(0)

    def _sorted(self, x: Tensor) -> Tensor:
        order = x.flatten(1).sum(1).argsort()
        return self.linear(x[order])[order.argsort()]

    def _rolled(self, x: Tensor) -> Tensor:
        return self.norm(x.roll(1, 0))

    def _centred(self, x: Tensor) -> Tensor:
        return self.linear(x - x.mean(0))

    def _compared(self, x: Tensor) -> Tensor:
        return torch.einsum("nm,mtw->ntw", torch.softmax(x.flatten(1) @ x.flatten(1).T, 1), self.linear(x))

    def _squeezed(self, x: Tensor) -> Tensor:
        return self.linear(x[:, :1].squeeze())[:, None]

    def _one_by_one(self, x: Tensor) -> Tensor:
        return torch.stack([self.linear(one) for one in x])


KINDS = sorted(
    name[1:] for name, value in vars(Block).items() if name[:1] == "_" != name[1:2] and callable(value)
)
RIGHT = [
    "linear",
    "normalised",
    "across",
    "convolved",
    "attended",
    "attended_to_table",
    "own",
    "own_with_table",
    "own_with_line",
    "own_with_another",
    "own_tokens_first",
    "own_tokens_first_with_table",
    "embedded_for_each",
    "positions_for_each",
    "linear_of_line_for_each",
    "linear_folded",
    "linear_folding",
    "normalised_folded",
    "recurrent",
    "recurrent_with_state",
    "recurrent_tokens_first",
    "bag",
]
"""What treats each image by itself, in a form that the engine knows; the others it must refuse."""


def squared(outputs: Tensor, labels: Tensor) -> Tensor:
    """A smooth loss that no normalisation makes constant."""
    x = outputs.flatten(1)
    return (x * torch.linspace(-1, 2, x.shape[1], dtype=x.dtype)).sum(1).square() + labels * x.sum(1)


def judged(kinds: list[str], n: int, t: int, w: int, seed: int, oracle: Any) -> str:
    """What becomes of one network on n images: "right", "wrong" or "refused"."""
    torch.manual_seed(seed)
    model = nn.Sequential(*(Block(kind, n, t, w) for kind in kinds)).double()
    images, labels = torch.rand(n, t, w, dtype=torch.float64), torch.randn(n, dtype=torch.float64)
    units = torch.randint(max(2, n // 2), (n,))
    try:
        clip_norm = PrivateGradients(model, squared, 1e30).sum(images, labels, units).norms.median().item()
        found = PrivateGradients(model, squared, clip_norm).sum(images, labels, units)
    except InvalidValue:
        return "refused"
    expected, norms = oracle.sum(model, images, labels, units, oracle.flat(clip_norm), loss=squared)
    close = oracle.error(found.norms, norms) < 1e-9 and oracle.error(found.vector, expected) < 1e-9
    return "right" if close else "wrong"


@pytest.mark.parametrize(("n", "t", "w"), [(3, 3, 3), (7, 7, 7), (5, 5, 4), (6, 2, 3)])
@pytest.mark.parametrize("kind", KINDS)
def test_step_that_mistakes_what_a_batch_is_is_refused(
    kind: str, n: int, t: int, w: int, oracle: Any
) -> None:
    """Whatever is as long as the batch: tokens, features, or nothing."""
    assert judged([kind], n, t, w, 0, oracle) == ("right" if kind in RIGHT else "refused")


@pytest.mark.parametrize("seed", range(40))
def test_random_network_is_right_or_refused(seed: int, oracle: Any) -> None:
    draw = random.Random(seed)
    n, kinds = (
        draw.choice([2, 3, 5, 7, 8, 11]),
        draw.choices(RIGHT if seed % 2 else KINDS, k=draw.randint(2, 3)),
    )
    t, w = (draw.choice([2, 3, 5, 7, n]) for _ in range(2))
    assert judged(kinds, n, t, w, seed, oracle) in (("right",) if seed % 2 else ("right", "refused")), kinds
