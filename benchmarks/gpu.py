"""What a GPU brings: encoders, and the private step over plain SGD; one JSON line per figure, with the card's name.

    make bench-gpu                                    # at most 8 minutes, all figures
    python benchmarks/gpu.py --device cpu --size 32 --seconds 1 --networks resnet18

Random weights: speed does not depend on them. A network that does not run is one line with an `error`, and the next
one is tried. Networks named with `timm:` need timm.
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from fedveil.learning.encoders import feature_extractor
from fedveil.learning.encoders.device import Device, use
from fedveil.learning.networks import network
from private_gradients import MODELS, Bench

NETWORKS = ("resnet18", "timm:resnet50@scratch", "timm:vit_small_patch16_224@scratch")
ENCODERS = ("efficientnet-lite0", "efficientnet-lite2")


def seconds_of(function: Callable[[], object], device: torch.device, budget: float) -> float:
    """Median time of a call, after one that warms up, within the budget."""

    def once() -> float:
        start = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    once()
    times, until = [once()], time.perf_counter() + budget
    while time.perf_counter() < until and len(times) < 50:
        times.append(once())
    return float(np.median(times))


def figure(name: str, value: float, unit: str, device: torch.device, **more: object) -> None:
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    print(
        json.dumps({"figure": name, "value": round(value, 4), "unit": unit, "device": card, **more}),
        flush=True,
    )


def encoders(device: torch.device, arguments: argparse.Namespace) -> None:
    images = np.random.default_rng(0).random(
        (arguments.images, 1, arguments.size, arguments.size), np.float32
    )
    for name in ENCODERS:
        for precision in ("float32", "bfloat16"):
            extractor = feature_extractor(name, arguments.size, 1, precision=precision)
            taken = seconds_of(lambda: extractor(images), device, arguments.seconds)  # noqa: B023
            speed = len(images) / taken
            figure("images_per_second_encoder", speed, "1/s", device, encoder=name, precision=precision)


def steps(name: str, device: torch.device, arguments: argparse.Namespace) -> None:
    """A private step with one image per patient, and Opacus's, over a plain one on the same batch."""
    build = partial(network, name, classes=2, channels=1, image_size=arguments.size, seed=0)
    MODELS[name] = (build, arguments.batch, arguments.size)
    bench = Bench(name, str(device))
    base = seconds_of(bench.plain(), device, arguments.seconds)
    more = {"network": name, "batch": arguments.batch, "size": arguments.size}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    own = seconds_of(bench.private(), device, arguments.seconds)
    figure("step_over_plain_sgd", own / base, "ratio", device, **more)
    if device.type == "cuda":
        figure("peak_memory", torch.cuda.max_memory_allocated(device) / 2**30, "GiB", device, **more)
    for kind, ghost in (("hooks", False), ("ghost", True)):
        taken = seconds_of(bench.opacus(ghost), device, arguments.seconds)
        figure(f"opacus_{kind}_over_step", taken / own, "ratio", device, **more)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--networks", nargs="*", default=NETWORKS)
    arguments = parser.parse_args()
    place = Device.of(arguments.device)
    use(place)
    encoders(place.torch, arguments)
    for name in arguments.networks:
        try:
            steps(name, place.torch, arguments)
        except Exception as error:  # noqa: BLE001 - one figure less, and the next network
            print(
                json.dumps({"figure": "step_over_plain_sgd", "network": name, "error": str(error)[:300]}),
                flush=True,
            )


if __name__ == "__main__":
    main()
