"""What a private step costs, against plain SGD and against Opacus, in one run: one JSON line a figure.

    python benchmarks/private_gradients.py [--threads 2] [--repeats 7] [--only resnet18 memory] [--cpu-time]

A step is everything from images to updated parameters: forward, backward, clipping, noise, update. All kinds of
step take turns on the same model, and each figure is the median over turns of the ratio within one turn.
Units are images, as Opacus knows no others. On a machine that is busy with other work, `--threads 1 --cpu-time` is
the measurement that suffers least.
"""

import argparse
import copy
import ctypes
import gc
import importlib.util
import json
import multiprocessing
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedveil.learning.gradients import PrivateGradients, trainable_parameters
from fedveil.learning.networks import (
    WeightStandardizedConv2d,
    cnn,
    densenet121,
    efficientnet_lite0,
    replace_batch_norm,
    resnet18,
)
from fedveil.learning.networks.layers import FixedBatchNorm2d

CLIP_NORM, NOISE, RATE = 1.0, 1.0, 0.01
loss_of_each = partial(functional.cross_entropy, reduction="none")
Step = Callable[[], None]


def last_blocks() -> nn.Module:
    """EfficientNet-Lite0 whose last two blocks are trained whole, with group norm: Opacus knows no fixed statistics."""
    model = efficientnet_lite0(2, 64, trained_blocks=2)
    replace_batch_norm(model[3]).requires_grad_(True)
    return model


MODELS: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "resnet18": (lambda: resnet18(2, 1, 28, standardize=False), 64, 28),
    "cnn": (lambda: cnn(2, 1, standardize=False), 256, 28),
    "densenet121": (lambda: densenet121(2, 1, 64, standardize=False), 64, 64),
    "efficientnet-lite0": (last_blocks, 64, 64),
}


class Bench:
    """A model with made-up images, and the kinds of step to compare."""

    def __init__(self, name: str, device: str) -> None:
        build, self.batch, size = MODELS[name]
        torch.manual_seed(0)
        self.model, self.device = build().to(device), device
        self.images = torch.rand(self.batch, 1, size, size, device=device)
        self.labels = torch.randint(0, 2, (self.batch,), device=device)

    def plain(self) -> Step:
        """Ordinary SGD."""
        model = copy.deepcopy(self.model)
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], RATE)

        def step() -> None:
            optimizer.zero_grad()
            functional.cross_entropy(model(self.images), self.labels).backward()
            optimizer.step()

        return step

    def private(self) -> Step:
        """fedveil."""
        model = copy.deepcopy(self.model)
        engine, units = (
            PrivateGradients(model, loss_of_each, CLIP_NORM),
            torch.arange(self.batch, device=self.device),
        )

        def step() -> None:
            vector = engine.sum(self.images, self.labels, units).vector
            parameters = list(trainable_parameters(model).values())
            with torch.no_grad():
                for parameter, part in zip(
                    parameters, vector.split([p.numel() for p in parameters]), strict=True
                ):
                    noised = part.add_(torch.randn_like(part), alpha=NOISE * CLIP_NORM)
                    parameter.sub_(noised.view_as(parameter), alpha=RATE / self.batch)

        return step

    def opacus(self, ghost: bool) -> Step:
        """Opacus, with hooks that keep every gradient, or with its ghost clipping."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping
            from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
            from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping
        model = copy.deepcopy(self.model).train()
        sgd = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], RATE)
        settings = {"noise_multiplier": NOISE, "max_grad_norm": CLIP_NORM, "expected_batch_size": self.batch}
        if ghost:
            hooked = GradSampleModuleFastGradientClipping(
                model, max_grad_norm=CLIP_NORM, use_ghost_clipping=True
            )
            optimizer = DPOptimizerFastGradientClipping(sgd, **settings)
            loss = DPLossFastGradientClipping(hooked, optimizer, nn.CrossEntropyLoss(reduction="mean"))
        else:
            hooked = GradSampleModule(model)
            optimizer, loss = DPOptimizer(sgd, **settings), nn.CrossEntropyLoss()

        def step() -> None:
            optimizer.zero_grad()
            loss(hooked(self.images), self.labels).backward()
            optimizer.step()

        return step


def take_turns(
    steps: dict[str, Step], repeats: int, clock: Callable[[], float], device: str
) -> dict[str, list[float]]:
    """Seconds of each kind of step, turn by turn, after one turn to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(repeats + 1):
        for name, step in steps.items():
            gc.collect()
            start = clock()
            step()
            if device == "cuda":
                torch.cuda.synchronize()
            if turn:
                seconds[name].append(clock() - start)
    return seconds


def ratio(over: list[float], under: list[float]) -> float:
    """Median over turns of the ratio within one turn."""
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


def speed(name: str, arguments: argparse.Namespace) -> Iterator[tuple[str, float, str]]:
    """Ratios of one model's steps."""
    bench = Bench(name, arguments.device)
    steps = {"plain": bench.plain(), "private": bench.private()}
    if name != "cnn" and importlib.util.find_spec("opacus"):
        steps |= {"hooks": bench.opacus(ghost=False), "ghost": bench.opacus(ghost=True)}
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    seconds = take_turns(steps, arguments.repeats, clock, arguments.device)
    suffix = "" if name == "resnet18" else f"_{name.replace('-', '_')}"
    yield f"seconds_plain_sgd{suffix}", statistics.median(seconds["plain"]), "s"
    yield f"seconds_step{suffix}", statistics.median(seconds["private"]), "s"
    yield f"step_over_plain_sgd{suffix}", ratio(seconds["private"], seconds["plain"]), "ratio"
    for kind in ("hooks", "ghost"):
        if kind in seconds:
            yield f"opacus_{kind}_over_step{suffix}", ratio(seconds[kind], seconds["private"]), "ratio"


def memory(arguments: argparse.Namespace) -> Iterator[tuple[str, float, str]]:
    """Peak memory of one step beyond what is held between steps, each kind in a process of its own."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1, maxtasksperchild=1) as pool:
        tasks = [
            (kind, arguments.device, arguments.threads) for kind in ("plain", "private") for _ in range(3)
        ]
        peaks = pool.starmap(peak_mebibytes, tasks, chunksize=1)
    plain, private = statistics.median(peaks[:3]), statistics.median(peaks[3:])
    yield "peak_mebibytes_plain_sgd", plain, "MiB"
    yield "peak_mebibytes_step", private, "MiB"
    yield "memory_over_plain_sgd", private / plain, "ratio"


def peak_mebibytes(kind: str, device: str, threads: int) -> float:
    """Peak of one ResNet-18 step over the memory held before it."""
    torch.set_num_threads(threads)
    bench = Bench("resnet18", device)
    step: Step = getattr(bench, kind)()
    step()
    step()
    gc.collect()
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # give freed memory back, so that it does not count as held
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = resident("VmRSS")
    step()
    return (resident("VmHWM") - before) / 1024


def resident(field: str) -> int:
    """A memory figure of this process, in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])


class Attention(nn.Module):
    """Self-attention over the rows of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """`(n, 4, 16, 16)` to `(n, 64, 16)`."""
        x = x.flatten(1, 2)
        return self.attention(x, x, x)[0]


class Tokens(nn.Module):
    """An embedding of quantised pixels, its weight shared with the output layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.out = nn.Embedding(9, 6), nn.Linear(6, 9, bias=False)
        self.out.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        """Look up one row of pixels."""
        return self.out(torch.tanh(self.embedding((x[:, 0, 0].double().sigmoid() * 9).long())))


LAYERS: tuple[Callable[[], nn.Module], ...] = (
    lambda: nn.Sequential(nn.Flatten(2), nn.Conv1d(4, 8, 5, 2, 2)),
    lambda: nn.Conv2d(4, 8, 3, 2, 1, dilation=2),
    lambda: nn.Conv2d(4, 8, 3, padding=1, groups=2, padding_mode="reflect"),
    lambda: nn.Conv2d(4, 8, 3, padding=1, groups=4),
    lambda: nn.Sequential(nn.Unflatten(1, (1, 4)), nn.Conv3d(1, 8, 3, padding=1)),
    lambda: nn.ConvTranspose2d(4, 8, 3, 2, 1),
    lambda: nn.Sequential(nn.Linear(16, 8), nn.Tanh(), nn.Flatten(), nn.Linear(512, 8)),
    lambda: nn.Sequential(
        nn.Conv2d(4, 8, 1), nn.GroupNorm(4, 8), nn.Tanh(), nn.InstanceNorm2d(8, affine=True)
    ),
    lambda: nn.Sequential(nn.LayerNorm((16, 16)), nn.Tanh(), FixedBatchNorm2d(4)),
    lambda: nn.Sequential(
        WeightStandardizedConv2d(4, 8, 3), nn.GroupNorm(4, 8), WeightStandardizedConv2d(8, 8, 3)
    ),
    Attention,
    Tokens,
)


def exactness(_arguments: argparse.Namespace) -> Iterator[tuple[str, float, str]]:
    """Largest error relative to the largest entry, over layers, against one backward pass a patient."""
    for dtype, name in ((torch.float64, "float64"), (torch.float32, "float32")):
        errors = [error(build, dtype) for build in LAYERS]
        yield f"max_relative_error_{name}", max(errors), "ratio"


def error(build: Callable[[], nn.Module], dtype: torch.dtype) -> float:
    """Error of the sum over patients with one to three images, half of them clipped."""
    torch.manual_seed(0)
    model, images = build().to(dtype), torch.randn(12, 4, 16, 16, dtype=torch.float64).to(dtype)
    labels, patients = (
        torch.randn(12, dtype=torch.float64).to(dtype),
        torch.tensor([0, 1, 1, 2, 2, 2, 3, 4, 4, 5, 5, 5]),
    )

    def loss(outputs: Tensor, labels: Tensor) -> Tensor:
        x = outputs.flatten(1)
        return (x * torch.linspace(-1, 2, x.shape[1], dtype=x.dtype)).sum(1).square() + labels * x.sum(1)

    gradients = []
    for patient in patients.unique():
        mine = patients == patient
        found = torch.autograd.grad(loss(model(images[mine]), labels[mine]).mean(), list(model.parameters()))
        gradients.append(torch.cat([g.flatten() for g in found]).double())
    each = torch.stack(gradients)
    norms = each.norm(dim=1)
    clip_norm = norms.median().item()
    expected = (each * (clip_norm / norms).clamp(max=1)[:, None]).sum(0)
    vector = PrivateGradients(model, loss, clip_norm).sum(images, labels, patients).vector.double()
    return ((vector - expected).abs().max() / expected.abs().max()).item()


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    names = [*MODELS, "memory", "error"]
    parser.add_argument("--only", nargs="*", choices=names, default=names, help="what to measure")
    parser.add_argument("--cpu-time", action="store_true", help="processor time instead of elapsed time")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")  # Opacus warns of its hooks; nothing here depends on it
    parts = {name: partial(speed, name) for name in MODELS} | {"memory": memory, "error": exactness}
    for part in arguments.only:
        for figure, value, unit in parts[part](arguments):
            print(json.dumps({"figure": figure, "value": float(f"{value:.4g}"), "unit": unit}), flush=True)


if __name__ == "__main__":
    main()
