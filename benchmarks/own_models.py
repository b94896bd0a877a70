"""What a hospital's own model is worth where hospitals differ only in their mix of classes; one JSON line a setting.

    python benchmarks/own_models.py                        # needs FEDVEIL_DATA, default ../shared/data
    python benchmarks/own_models.py --runs 1 --epsilon 8

Chest X-rays, default features, five simulated hospitals by Dirichlet(0.5), secure aggregation, a share of 0.3 for own
models. Common and own models are judged on the official test images, on which nothing is chosen.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path

import numpy as np

from fedveil.study import RunDirectory, Study, run

DATA = Path(os.environ.get("FEDVEIL_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
SETTINGS = ((8.0, 1.0), (3.0, 1.0), (1.0, 3.0))
"""Epsilon, and how strongly own models are pulled to the common one."""


def run_once(seed: int, epsilon: float, pull: float, out: Path) -> tuple[float, list[float]]:
    """AUROC of the common model, and of each hospital's own."""
    study = Study().with_changes(
        {
            "study": {"name": "own models", "seed": seed},
            "data": {
                "source": str(DATA / "kermany_cxr" / "kermany_cxr_64.npz"),
                "positive": ["bacteria", "virus"],
                "sites": {"count": 5, "scheme": "dirichlet", "alpha": 0.5},
            },
            "training": {"units": 2846, "personal_pull": pull},
            "privacy": {"epsilon": epsilon, "personal_share": 0.3},
            "report": {"examples": 0},
        }
    )
    run(RunDirectory.create(out, study))
    result = json.loads((out / "result.json").read_text())
    return result["metrics"]["test"]["auroc"], [site["personal"]["auroc"] for site in result["sites"]]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epsilon", type=float, nargs="*", default=[one for one, _ in SETTINGS])
    parser.add_argument("--runs", type=int, default=5)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fedveil-bench-") as name:
        for epsilon, pull in SETTINGS:
            if epsilon not in asked.epsilon:
                continue
            runs = [
                run_once(seed, epsilon, pull, Path(name) / f"{epsilon:g}-{seed}")
                for seed in range(asked.runs)
            ]
            own = np.array([each for _, each in runs])
            line = {
                "epsilon": epsilon,
                "pull": pull,
                "common": round(float(np.mean([common for common, _ in runs])), 4),
                "own_lowest": round(float(own.min(axis=1).mean()), 4),
                "own_highest": round(float(own.max(axis=1).mean()), 4),
                "runs": len(runs),
            }
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
