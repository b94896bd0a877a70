"""What privacy costs a study of volumes, and what a study of the middle slice alone reaches; one JSON line per figure.

    python benchmarks/volumes.py
    python benchmarks/volumes.py --features scattering --runs 1

The phantom's 800 patients with synthetic volumes of 32 x 32 x 32 voxels, half of them with nodules. Three simulated
hospitals under secure aggregation. Each run has a seed of its own, which splits the patients among hospitals. The test
patients are the same in all runs.
"""

import argparse
import json
import tempfile

import numpy as np

import fedveil as fv
from fedveil.data import load
from fedveil.data.phantom.volumes import SIDE
from fedveil.study import Study

DELTA = 1e-5


def middle() -> fv.Dataset:
    """The same patients with the middle slice of each volume only."""
    whole = load("phantom:volumes", image_size=SIDE, slices=SIDE)
    classes = np.array(whole.classes)
    return fv.Dataset.from_arrays(
        whole.images.read(np.arange(len(whole)))[:, SIDE // 2],
        classes[whole.labels],
        patients=whole.patients,
        split=np.where(whole.split == 1, "test", "train"),
    )


def auroc(
    features: str, slices: int | None, seed: int, epsilon: float | None, data: fv.Dataset | None
) -> float:
    """Of one study; without privacy if epsilon is None."""
    privacy = {"trust": "none"} if epsilon is None else {"epsilon": epsilon}
    study = Study(
        features=features,
        image_size=SIDE,
        sites=3,
        seed=seed,
        examples=0,
        delta=DELTA,
        **privacy,
        **({} if slices is None else {"source": "phantom:volumes", "slices": slices}),
    )
    with tempfile.TemporaryDirectory() as folder:
        return float(fv.run(study, data=data, directory=f"{folder}/run").metrics.auroc)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--features", default="pixels@8")
    parser.add_argument("--slices", type=int, default=8)
    parser.add_argument("--runs", type=int, default=4)
    parser.add_argument("--epsilon", type=float, default=1.0)
    chosen = parser.parse_args()
    flat = middle()
    for what, slices, data in (("volumes", chosen.slices, None), ("middle slice", None, flat)):
        for epsilon in (chosen.epsilon, None):
            found = [
                auroc(chosen.features, slices, seed, epsilon, data) for seed in range(1, chosen.runs + 1)
            ]
            figure = {"benchmark": "volumes", "images": what, "features": chosen.features, "epsilon": epsilon}
            figure |= {"auroc": round(float(np.mean(found)), 4), "worst": round(min(found), 4)}
            print(json.dumps(figure), flush=True)


if __name__ == "__main__":
    main()
