"""Budget shaped over rounds and training that stops early, by cross-validation; one JSON line a figure.

    python benchmarks/spending.py             # needs FEDVEIL_DATA, default ../shared/data
    python benchmarks/spending.py --runs 1    # a quick look

Two folds of the *training* patients of the chest X-rays: the test split is not touched. Five hospitals, secure
aggregation, a linear head at the program's defaults.
"""

import argparse
import json
import os
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedveil.study import RunDirectory, Study, run

DATA = Path(os.environ.get("FEDVEIL_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
EPSILONS = (1.0, 4.0, 8.0)


def folds(folder: Path) -> list[Path]:
    """The training images twice, each time with half of the patients for testing."""
    with np.load(DATA / "kermany_cxr" / "kermany_cxr_64.npz") as file:
        train = file["split"] == 0
        arrays = {name: file[name][train] for name in ("images", "labels", "patient")}
        classes = file["classes"]
    patients, codes = np.unique(arrays["patient"], return_inverse=True)
    half = np.random.default_rng(5).permutation(len(patients))[codes] % 2
    found = []
    for number in (0, 1):
        path = folder / f"fold-{number}.npz"
        np.savez(path, **arrays, split=(half == number).astype(np.uint8), classes=classes)
        found.append(path)
    return found


def results(sources: Sequence[Path], runs: int, scratch: Path, **privacy: float) -> list[dict[str, Any]]:
    """One result a fold and seed."""
    found = []
    for source in sources:
        for seed in range(runs):
            study = Study().with_changes(
                {
                    "study": {"name": "spending", "seed": seed},
                    "data": {"source": str(source), "positive": ["bacteria", "virus"]},
                    "privacy": dict(privacy),
                    "report": {"examples": 0},
                }
            )
            with tempfile.TemporaryDirectory(dir=scratch) as folder:
                found.append(run(RunDirectory.create(Path(folder) / "run", study)))
    return found


def figure(name: str, found: Sequence[dict[str, Any]]) -> None:
    aurocs = [one["metrics"]["test"]["auroc"] for one in found]
    line = {
        "figure": name,
        "value": round(statistics.mean(aurocs), 4),
        "unit": "AUROC",
        "runs": len(found),
        "standard_error": round(statistics.stdev(aurocs) / len(aurocs) ** 0.5, 4),
        "rounds": round(statistics.mean(one["rounds"] for one in found), 1),
        "epsilon_charged": round(statistics.mean(one["sites"][0]["epsilon_spent"] for one in found), 3),
    }
    print(json.dumps(line), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=4)
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory(prefix="fedveil-bench-") as name:
        scratch = Path(name)
        os.environ.setdefault("FEDVEIL_CACHE", str(scratch / "cache"))
        sources = folds(scratch)
        for epsilon in EPSILONS:
            for spending in (0.1, 0.3, 1.0, 3.0, 10.0):
                found = results(sources, runs, scratch, epsilon=epsilon, spending=spending)
                figure(f"auroc_eps{epsilon:g}_spending{spending:g}", found)
            for share in (0.05, 0.1):
                found = results(sources, runs, scratch, epsilon=epsilon, progress_share=share)
                figure(f"auroc_eps{epsilon:g}_progress{share:g}", found)


if __name__ == "__main__":
    main()
