"""Every layer against a plain loop over patients."""

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from fedveil.learning.gradients import PrivateGradients, check_private
from fedveil.learning.gradients.rules import arithmetic
from fedveil.learning.networks import FixedBatchNorm2d, WeightStandardizedConv2d

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
UNITS = torch.tensor([7, 2, 2, 5, 7, 7, 1])


class Attention(nn.Module):
    """Self-attention or attention to a second projection, over the rows of an image."""

    def __init__(self, cross: bool = False, **settings: Any) -> None:
        super().__init__()
        keys = {"kdim": 5, "vdim": 3} if settings.pop("other_dims", False) else {}
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, **keys, **settings)
        self.key, self.value = (nn.Linear(8, keys.get(k, 8)) for k in ("kdim", "vdim"))
        self.cross, self.need_weights = cross, not keys

    def forward(self, x: Tensor) -> Tensor:
        """`(images, 1, 6, 8)` to `(images, 6, 8)`."""
        x = x[:, 0]
        key, value = (self.key(x), self.value(x)) if self.cross else (x, x)
        mask = torch.ones(6, 6, dtype=torch.bool).triu(1) if self.need_weights else None
        return self.attention(x, key, value, attn_mask=mask, need_weights=self.need_weights)[0]


class AttentionTwice(nn.Module):
    """The same attention layer to itself (one product for all three inputs) and across (one for each)."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.key = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        """`(images, 1, 6, 8)` to `(images, 6, 8)`."""
        x = x[:, 0]
        x = self.attention(x, x, x, need_weights=False)[0]
        return self.attention(x, self.key(x), x, need_weights=False)[0]


class Centred(nn.Conv2d):
    """A convolution that is not one: its filters are centred, as other libraries do."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolve with centred filters."""
        return self._conv_forward(x, self.weight - self.weight.mean((1, 2, 3), keepdim=True), self.bias)


class Tied(nn.Module):
    """One convolution used twice and one weight shared by two modules."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1, bias=False)
        self.again.weight = self.first.weight
        self.frozen = nn.Conv2d(3, 3, 1).requires_grad_(False)
        self.biased = nn.Linear(36, 4)
        self.biased.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """Use the same weight three times, at two resolutions."""
        x = self.frozen(torch.relu(self.first(self.frozen(x))))
        x = functional.avg_pool2d(torch.tanh(self.first(x)), 2)
        return self.biased(torch.tanh(self.again(x)).flatten(1))


class Tokens(nn.Module):
    """Embedding of quantised pixels, its weight tied to the output layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6, padding_idx=3)
        self.out = nn.Linear(6, 11, bias=False)
        self.out.weight = self.embedding.weight
        self.plain = nn.Embedding(11, 6)

    def forward(self, x: Tensor) -> Tensor:
        """Look the first row's pixels up."""
        tokens = (x[:, 0, 0].double().sigmoid() * 10).long()
        return self.out(torch.tanh(self.embedding(tokens) + self.plain(tokens)))


class OwnParameter(nn.Module):
    """A module that no rule knows, with a rule's layer inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.rand(3, 1, 1) + 0.5)
        self.inner = nn.Conv2d(3, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Scale, convolve, scale."""
        return self.inner(x * self.gain) * self.gain


class InPlace(nn.Module):
    """In-place operations where autograd allows them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4)
        self.second = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Activation in place right after the first layer; a residual added in place."""
        x = functional.relu(self.norm(functional.relu(self.first(x), inplace=True)), inplace=True)
        y = self.second(x)
        y += x
        return functional.relu_(y)


class Last(nn.Module):
    """The last of a recurrent layer's outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent = nn.LSTM(8, 5, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """Rows in turn."""
        return self.recurrent(x[:, 0])[0][:, -1]


def volume(x: Tensor) -> Tensor:
    """Images `(n, 3, 6, 8)` as volumes `(n, 1, 3, 6, 8)`."""
    return x[:, None]


class Call(nn.Module):
    """A function as a module."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """Call it."""
        return self.function(x)


def fixed_norm() -> nn.Module:
    """Fixed batch norm with statistics that are not the initial ones."""
    norm = FixedBatchNorm2d(3)
    norm.running_mean.copy_(torch.tensor([0.1, -0.2, 0.3]))
    norm.running_var.copy_(torch.tensor([0.5, 1.5, 2.0]))
    return norm


LAYERS: dict[str, Any] = {
    "conv2d": lambda: nn.Conv2d(3, 4, 3, padding=1),
    "conv2d-strided-dilated": lambda: nn.Conv2d(3, 4, 3, stride=2, padding=2, dilation=2),
    "conv2d-uneven": lambda: nn.Conv2d(3, 4, (2, 3), stride=(1, 2), padding=(1, 0), dilation=(2, 1)),
    "conv2d-pointwise": lambda: nn.Conv2d(3, 5, 1),
    "conv2d-pointwise-strided": lambda: nn.Conv2d(3, 5, 1, stride=2, bias=False),
    "conv2d-depthwise": lambda: nn.Conv2d(3, 6, 3, groups=3, padding=1),
    "conv2d-grouped": lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 6, 3, groups=2, stride=2)),
    "conv2d-reflect": lambda: nn.Conv2d(3, 4, 3, padding=2, padding_mode="reflect"),
    "conv2d-circular": lambda: nn.Conv2d(3, 4, 3, padding=(1, 2), padding_mode="circular"),
    "conv2d-replicate": lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="replicate"),
    "conv2d-same": lambda: nn.Conv2d(3, 4, (4, 3), padding="same"),
    "conv2d-same-reflect": lambda: nn.Conv2d(3, 4, 4, padding="same", padding_mode="reflect"),
    "conv2d-valid": lambda: nn.Conv2d(3, 4, 3, padding="valid"),
    "conv2d-over-padded": lambda: nn.Conv2d(3, 4, 3, padding=4, stride=3),
    "conv2d-large-kernel": lambda: nn.Conv2d(3, 2, (6, 8)),
    "conv1d": lambda: nn.Sequential(nn.Flatten(2), nn.Conv1d(3, 4, 5, stride=2, padding=2)),
    "conv3d": lambda: nn.Sequential(Call(volume), nn.Conv3d(1, 4, 3, stride=(1, 2, 1), padding=1)),
    "transposed1d": lambda: nn.Sequential(nn.Flatten(2), nn.ConvTranspose1d(3, 4, 3, 2, 1, 1)),
    "transposed2d": lambda: nn.ConvTranspose2d(3, 4, 3, 2, 1, 1, dilation=2),
    "transposed2d-grouped": lambda: nn.ConvTranspose2d(3, 6, (3, 2), groups=3),
    "transposed3d": lambda: nn.Sequential(Call(volume), nn.ConvTranspose3d(1, 2, 2, 2)),
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(144, 5), nn.Tanh(), nn.Linear(5, 4)),
    "linear-positions": lambda: nn.Sequential(nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 4, bias=False)),
    "group-norm": lambda: nn.Sequential(
        nn.Conv2d(3, 6, 1), nn.GroupNorm(3, 6), nn.Tanh(), nn.GroupNorm(2, 6)
    ),
    "instance-norm": lambda: nn.Sequential(nn.InstanceNorm2d(3, affine=True), nn.Tanh(), nn.Conv2d(3, 2, 2)),
    "layer-norm": lambda: nn.Sequential(nn.LayerNorm(8), nn.Tanh(), nn.LayerNorm((6, 8))),
    "rms-norm": lambda: nn.Sequential(nn.RMSNorm(8), nn.Tanh(), nn.Linear(8, 3)),
    "fixed-batch-norm": lambda: nn.Sequential(nn.Conv2d(3, 3, 1), fixed_norm(), nn.Tanh(), fixed_norm()),
    "standardised": lambda: nn.Sequential(
        WeightStandardizedConv2d(3, 4, 3, padding=1), nn.GroupNorm(2, 4), WeightStandardizedConv2d(4, 4, 3, 2)
    ),
    "standardised-grouped": lambda: WeightStandardizedConv2d(3, 6, (3, 2), groups=3, padding=1, dilation=2),
    "attention": Attention,
    "attention-cross": lambda: Attention(cross=True, add_bias_kv=True, add_zero_attn=True),
    "attention-dimensions": lambda: Attention(cross=True, other_dims=True, bias=False),
    "attention-twice": AttentionTwice,
    "transformer": lambda: nn.Sequential(
        nn.Flatten(1, 2), nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    ),
    "tied": Tied,
    "tokens": Tokens,
    "own-parameter": lambda: nn.Sequential(nn.Conv2d(3, 3, 1), OwnParameter(), nn.Conv2d(3, 2, 1)),
    "in-place": InPlace,
    "lstm": Last,
    "weight-norm": lambda: parametrizations.weight_norm(nn.Conv2d(3, 4, 3)),
    "overridden-forward": lambda: Centred(3, 4, 3),
    "prelu": lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.PReLU(4)),
}


def squared(outputs: Tensor, labels: Tensor) -> Tensor:
    """A smooth loss of outputs of any shape that does not vanish through a normalisation."""
    x = outputs.flatten(1)
    return (x * torch.linspace(-1, 2, x.shape[1], dtype=x.dtype, device=x.device)).sum(
        1
    ).square() + labels * x.sum(1)


def batch(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Seven images of four patients."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(7, 3, 6, 8, generator=generator, dtype=torch.float64)
    return images.to(dtype), torch.randn(7, generator=generator, dtype=torch.float64).to(dtype)


@pytest.fixture(params=["chosen", "gram", "kept"])
def how(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Norms as the cost model chooses, all from Gram matrices, or all from instantiated gradients."""
    if request.param != "chosen":
        choice = (lambda self, b: b.buckets) if request.param == "gram" else (lambda self, b: ())
        monkeypatch.setattr(arithmetic.Cost, "deferred", choice)
    return request.param


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 3e-3)])
def test_layer_agrees_with_a_loop_over_patients(
    layer: str, dtype: torch.dtype, tolerance: float, how: str, oracle: Any
) -> None:
    torch.manual_seed(3)
    model = LAYERS[layer]().to(dtype)
    images, labels = batch(dtype)
    norms = oracle.sum(model, images, labels, UNITS, oracle.flat(1e30), loss=squared)[1]
    clip_norm = norms.median().item()
    expected, _ = oracle.sum(model, images, labels, UNITS, oracle.flat(clip_norm), loss=squared)
    found = PrivateGradients(model, squared, clip_norm).sum(images, labels, UNITS)
    assert found.units == 4
    assert oracle.error(found.norms, norms) < tolerance
    assert oracle.error(found.vector, expected) < tolerance
    assert (found.norms >= norms * (1 - 1e-5)).all()  # rounding makes a norm too large, never too small
    assert found.vector.dtype == dtype


AXIS = st.tuples(
    st.integers(1, 3), st.integers(1, 3), st.integers(0, 3), st.integers(1, 2), st.integers(3, 6)
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    axes=st.lists(AXIS, min_size=1, max_size=3),
    transposed=st.booleans(),
    groups=st.integers(1, 3),
    width=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    bias=st.booleans(),
    counts=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    gram=st.booleans(),
)
def test_convolution_of_any_shape_agrees_with_a_loop(
    axes: Any, transposed: bool, groups: int, width: Any, bias: bool, counts: Any, gram: bool, oracle: Any
) -> None:
    """Stride, padding, dilation, groups up to depthwise, one to three axes, patients with several images."""
    kernel, stride, padding, dilation, size = zip(*axes, strict=True)
    assume(all(n + 2 * p > d * (k - 1) for k, _, p, d, n in axes) or transposed)
    assume(not transposed or all((n - 1) * s - 2 * p + d * (k - 1) >= 0 for k, s, p, d, n in axes))
    torch.manual_seed(0)
    kinds = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d) if transposed else CONVOLUTIONS
    inputs, outputs = (groups * w for w in width)
    layer = kinds[len(axes) - 1](
        inputs, outputs, kernel, stride, padding, groups=groups, bias=bias, dilation=dilation
    ).double()
    units = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    images = torch.randn(len(units), inputs, *size, dtype=torch.float64)
    labels = torch.randn(len(units), dtype=torch.float64)
    norms = oracle.sum(layer, images, labels, units, oracle.flat(1e30), loss=squared)[1]
    clip_norm = norms.median().item() or 1.0
    expected, _ = oracle.sum(layer, images, labels, units, oracle.flat(clip_norm), loss=squared)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(arithmetic.Cost, "deferred", lambda self, batch: batch.buckets if gram else ())
        found = PrivateGradients(layer, squared, clip_norm).sum(images, labels, units)
    # Where terms cancel a norm is rounded up, never down: a norm of zero by 2e-6.
    torch.testing.assert_close(found.norms, norms, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(found.vector, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("layer", LAYERS)
def test_half_precision_keeps_the_bound_in_every_layer(layer: str, how: str) -> None:
    torch.manual_seed(3)
    model = LAYERS[layer]()
    images, labels = batch(torch.float32)
    engine = PrivateGradients(model, squared, 1e-3, precision=torch.bfloat16)
    for unit in UNITS.unique():
        mine = unit == UNITS
        contribution = engine.sum(images[mine], labels[mine], UNITS[mine])
        assert contribution.norms.isfinite().all()
        length = contribution.vector.double().norm().item()
        assert 0.98e-3 < length <= 1e-3 * (1 + 1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("layer", LAYERS)
def test_layer_agrees_with_a_loop_on_a_gpu(layer: str, oracle: Any) -> None:
    torch.manual_seed(3)
    model = LAYERS[layer]()
    images, labels = batch(torch.float32)
    norms = oracle.sum(model, images, labels, UNITS, oracle.flat(1e30), loss=squared)[1]
    expected, _ = oracle.sum(model, images, labels, UNITS, oracle.flat(norms.median().item()), loss=squared)
    engine = PrivateGradients(model.cuda(), squared, norms.median().item())
    found = engine.sum(images.cuda(), labels.cuda(), UNITS)
    assert oracle.error(found.norms, norms) < 3e-3
    assert oracle.error(found.vector.cpu(), expected) < 3e-3


@pytest.mark.parametrize("layer", ["attention", "attention-cross", "attention-twice", "transformer"])
def test_attention_does_not_run_once_per_patient(layer: str) -> None:
    """PyTorch keeps biases of keys that are absent as attributes, beside the parameters."""
    assert check_private(LAYERS[layer]()) == ()


@pytest.mark.parametrize("layer", LAYERS)
def test_trial_accepts_every_layer(layer: str) -> None:
    torch.manual_seed(4)
    check_private(LAYERS[layer](), (3, 6, 8))
