"""How far rounding in single precision moves a network's sum where one unit is left out; one JSON line a figure.

    python benchmarks/rounding.py                     # about 10 minutes
    python benchmarks/rounding.py --units 10,100,1000 --trials 12

Random images, one per unit. Each figure is the largest ``|(sum of all - sum without one) - that one alone|`` over the
parameters tried, in units of the clip norm: the initial ones, and layers of wildly different scales, up to the largest
that a site accepts. `ROUNDING` in `fedveil.learning.models.network` has to cover it.
"""

import argparse
import json

import numpy as np
import numpy.typing as npt
import torch

from fedveil.learning import NetworkLearner, NetworkModel
from fedveil.learning.models.learner import Indices, Vector

SIZE = 16
LARGEST = 1e6


class Images:
    """Images, or what the frozen part of a network makes of them, in memory."""

    def __init__(self, values: npt.NDArray[np.float32]) -> None:
        self._values = values

    def read(self, indices: Indices) -> npt.NDArray[np.float32]:
        """Some of them."""
        return self._values[indices]


def parameters(model: NetworkModel, trial: int, generator: np.random.Generator) -> Vector:
    """The initial parameters first, then random ones whose layers differ in scale by up to 12 decimal orders."""
    if trial == 0:
        return model.join(None, model.initial())
    sizes = [one.numel() for one in model.body.parameters() if one.requires_grad]
    parts = [10 ** generator.uniform(-6, 6) * generator.normal(size=size) for size in sizes]
    return model.join(None, np.clip(np.concatenate(parts), -LARGEST, LARGEST))


def moved(model: NetworkModel, units: int, trials: int) -> float:
    """How far others moved at most where the first of so many units was left out."""
    generator = np.random.default_rng(0)
    pixels = generator.random((units, 1, SIZE, SIZE)).astype(np.float32)
    values, labels = model.before(pixels), generator.integers(0, model.classes, units)

    def total(rows: Indices, sent: Vector) -> Vector:
        learner = NetworkLearner(
            model, Images(values[rows]), labels[rows], np.arange(len(rows)), clipping="flat"
        )
        return learner.contribution(sent, clip_norm=1.0)

    rows, worst = np.arange(units), 0.0
    for trial in range(trials):
        sent = parameters(model, trial, generator)
        difference = total(rows, sent) - total(rows[1:], sent) - total(rows[:1], sent)
        worst = max(worst, float(np.linalg.norm(difference)))
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--units", default="10,100,1000,10000")
    parser.add_argument("--trials", type=int, default=6)
    parser.add_argument("--networks", default="cnn,efficientnet-lite0")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    for name in chosen.networks.split(","):
        model = NetworkModel(name, classes=2, channels=1, image_size=SIZE)
        for units in map(int, chosen.units.split(",")):
            value = moved(model, units, chosen.trials)
            line = {
                "figure": f"rounding_{name}_{units}_units",
                "value": float(f"{value:.2g}"),
                "unit": "clip norms",
            }
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
