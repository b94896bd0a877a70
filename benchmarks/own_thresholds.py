"""What a hospital's own threshold and class frequencies are worth at home; one JSON line a figure.

    python benchmarks/own_thresholds.py                    # needs FEDVEIL_DATA, default ../shared/data
    python benchmarks/own_thresholds.py --runs 1 --epsilon 4

Two-fold cross-validation on the *training* patients of the chest X-rays; the test split is not touched. Patients go to
five named hospitals with different mixes of classes (Dirichlet 2.5 for each class), and each hospital's scanner has a
gamma of its own (0.5 to 2). Common and own models are judged on each hospital's held-out patients: balanced accuracy
over images, Brier score with each patient counting as one, since frequencies count patients.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cross_validation import chest
from fedveil.data import Dataset
from fedveil.study import RunDirectory, Study, TrainedModel, run
from fedveil.study.prepare import prepare

GAMMAS = np.array([0.5, 0.75, 1.0, 1.4, 2.0])
SHARE = 0.1


def hospitals(number: int, path: Path) -> None:
    """The images of one fold, with their hospital and as its scanner shows them."""
    arrays = chest()
    patients, codes = np.unique(arrays["patient"], return_inverse=True)
    ill = np.zeros(len(patients), dtype=np.int64)
    np.maximum.at(ill, codes, arrays["labels"])
    mix = np.random.default_rng(7)
    mixes = mix.dirichlet(np.full(len(GAMMAS), 2.5), size=2)
    site = np.array([mix.choice(len(GAMMAS), p=mixes[label]) for label in ill])[codes]
    half = np.random.default_rng(5).permutation(len(patients))[codes] % 2
    seen = (arrays["images"] / 255) ** GAMMAS[site][:, None, None]
    images = np.rint(255 * seen).astype(np.uint8)
    np.savez(path, **arrays | {"images": images, "site": site, "split": (half == number).astype(np.uint8)})


def judge(model: TrainedModel, data: Dataset, rows: npt.NDArray[np.int64]) -> tuple[float, float]:
    """Balanced accuracy and Brier score on some images."""
    probabilities, labels = model.probabilities(data.images.read(rows)), data.labels[rows]
    right = model.decide(probabilities) == labels
    patients = data.patients[rows]
    weights = 1 / np.bincount(patients)[patients]
    brier = np.average((probabilities[:, 1] - labels) ** 2, weights=weights)
    return float(np.mean([right[labels == code].mean() for code in (0, 1)])), float(brier)


def run_once(source: Path, seed: int, epsilon: float, out: Path) -> npt.NDArray[np.float64]:
    """Common and own results, (2, hospitals, 2)."""
    study = Study().with_changes(
        {
            "study": {"name": "own thresholds", "seed": seed},
            "data": {"source": str(source)},
            "privacy": {"epsilon": epsilon, "personal_calibration_share": SHARE},
            "report": {"examples": 0},
        }
    )
    run(RunDirectory.create(out, study))
    data, common, found = prepare(study).dataset, TrainedModel.load(out), []
    for code, name in enumerate(data.site_names):
        rows = np.array([row for row in data.test if data.sites is not None and data.sites[row] == code])
        own = TrainedModel.load(out / "personal" / name)
        found.append([judge(common, data, rows), judge(own, data, rows)])
    return np.array(found).swapaxes(0, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epsilon", type=float, nargs="*", default=[1.0, 4.0, 8.0])
    parser.add_argument("--runs", type=int, default=4)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fedveil-bench-") as name:
        folder = Path(name)
        os.environ.setdefault("FEDVEIL_CACHE", str(folder / "cache"))
        sources = [folder / f"fold-{number}.npz" for number in (0, 1)]
        for number, source in enumerate(sources):
            hospitals(number, source)
        for epsilon in arguments.epsilon:
            results = np.array(
                [
                    run_once(source, seed, epsilon, folder / f"{source.stem}-{seed}-{epsilon}")
                    for source in sources
                    for seed in range(arguments.runs)
                ]
            )
            gains = results[:, 1] - results[:, 0]
            for number, metric in enumerate(("balanced_accuracy", "brier")):
                each = gains[..., number].mean(axis=1)
                line = {
                    "figure": f"own_minus_common_{metric}_eps{epsilon:g}",
                    "value": round(float(each.mean()), 4),
                    "standard_error": round(float(each.std(ddof=1)) / len(each) ** 0.5, 4)
                    if len(each) > 1
                    else None,
                    "runs": len(each),
                    "common": round(float(results[:, 0, :, number].mean()), 4),
                    "by_hospital": gains[..., number].mean(axis=0).round(4).tolist(),
                }
                print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
