"""What settings are chosen by: two-fold cross-validation on *training* patients; one JSON line a figure.

    python benchmarks/cross_validation.py                    # needs FEDVEIL_DATA, default ../shared/data
    python benchmarks/cross_validation.py --only whitening --runs 1

The test splits are not touched. A linear head at the program's defaults, five hospitals and secure aggregation unless
the figure says otherwise. "whitening": features as they are against features whitened by synthetic images.
"""

import argparse
import json
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedveil.study import RunDirectory, Study, run

DATA = Path(os.environ.get("FEDVEIL_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
Tables = Mapping[str, Mapping[str, object]]


def chest() -> dict[str, Any]:
    """The training images of the X-rays, normal against pneumonia."""
    with np.load(DATA / "kermany_cxr" / "kermany_cxr_64.npz") as file:
        train = file["split"] == 0
        arrays = {name: file[name][train] for name in ("images", "labels", "patient")}
        return arrays | {"labels": np.minimum(arrays["labels"], 1), "classes": np.array(["normal", "ill"])}


def breast() -> dict[str, Any]:
    """The training and validation images of BreastMNIST, each a patient of its own."""
    with np.load(DATA / "breastmnist" / "breastmnist.npz") as file:
        images, labels = (
            np.concatenate([file[f"{part}_{name}"] for part in ("train", "val")])
            for name in ("images", "labels")
        )
    classes = np.array(["malignant", "benign"])
    return {"images": images, "labels": labels.ravel(), "patient": np.arange(len(images)), "classes": classes}


def folds(name: str, arrays: dict[str, Any], folder: Path) -> list[Path]:
    """The images twice, each time with half of the patients for testing."""
    patients, codes = np.unique(arrays["patient"], return_inverse=True)
    half = np.random.default_rng(5).permutation(len(patients))[codes] % 2
    found = []
    for number in (0, 1):
        path = folder / f"{name}-{number}.npz"
        np.savez(path, **arrays, split=(half == number).astype(np.uint8))
        found.append(path)
    return found


def results(sources: Sequence[Path], runs: int, scratch: Path, tables: Tables) -> Iterator[dict[str, Any]]:
    """One result a fold and seed."""
    for source in sources:
        for seed in range(runs):
            values: dict[str, dict[str, object]] = {
                "study": {"name": "cross-validation", "seed": seed},
                "data": {"source": str(source)},
                "report": {"examples": 0},
            }
            for table, keys in tables.items():
                values[table] = values.get(table, {}) | dict(keys)
            with tempfile.TemporaryDirectory(dir=scratch) as folder:
                yield run(RunDirectory.create(Path(folder) / "run", Study().with_changes(values)))


def figure(name: str, found: Sequence[dict[str, Any]]) -> None:
    aurocs, balanced = (
        [one["metrics"]["test"][metric] for one in found] for metric in ("auroc", "balanced_accuracy")
    )
    line = {
        "figure": name,
        "value": round(statistics.mean(aurocs), 4),
        "unit": "AUROC",
        "runs": len(found),
        "standard_error": round(statistics.stdev(aurocs) / len(aurocs) ** 0.5, 4),
        "balanced_accuracy": round(statistics.mean(balanced), 4),
        "rounds": round(statistics.mean(one["rounds"] for one in found), 1),
        "epsilon_charged": round(statistics.mean(one["sites"][0]["epsilon_spent"] for one in found), 3),
    }
    print(json.dumps(line), flush=True)


def whitening(measure: Callable[[str, str, Tables], None]) -> None:
    site_20 = {"data": {"sites": {"count": 20}}}
    settings: list[tuple[str, str, float, str, Tables]] = [
        ("chest", "secagg", 0.25, "secure-aggregation", {}),
        ("chest", "secagg", 1.0, "secure-aggregation", {}),
        ("chest", "site_20_hospitals", 1.0, "site", site_20),
        ("chest", "one_round", 1.0, "secure-aggregation", {"training": {"method": "one-shot"}}),
        ("breast", "secagg", 1.0, "secure-aggregation", {}),
        ("breast", "secagg", 8.0, "secure-aggregation", {}),
    ]
    for data, name, epsilon, trust, tables in settings:
        for whitened in (False, True):
            changed = {"privacy": {"epsilon": epsilon, "trust": trust}, "model": {"whitened": whitened}}
            words = "whitened" if whitened else "plain"
            measure(data, f"auroc_{data}_{name}_eps{epsilon:g}_{words}", changed | dict(tables))


def budget(measure: Callable[[str, str, Tables], None]) -> None:
    """What privacy costs on patients who are like those in training."""
    for epsilon, trust in ((1.0, "secure-aggregation"), (8.0, "secure-aggregation"), (1.0, "none")):
        name = "without_privacy" if trust == "none" else f"eps{epsilon:g}"
        measure("chest", f"auroc_budget_{name}", {"privacy": {"epsilon": epsilon, "trust": trust}})


PARTS = {"budget": budget, "whitening": whitening}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--runs", type=int, default=4)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fedveil-bench-") as name:
        scratch = Path(name)
        os.environ.setdefault("FEDVEIL_CACHE", str(scratch / "cache"))
        sources = {"chest": folds("chest", chest(), scratch), "breast": folds("breast", breast(), scratch)}

        def measure(data: str, figure_name: str, tables: Tables) -> None:
            figure(figure_name, list(results(sources[data], arguments.runs, scratch, tables)))

        for part in arguments.only:
            PARTS[part](measure)


if __name__ == "__main__":
    main()
