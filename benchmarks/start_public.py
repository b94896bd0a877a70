"""What a public start brings to small cohorts; one JSON line per figure.

    python benchmarks/start_public.py                # needs FEDVEIL_DATA, default ../shared/data
    python benchmarks/start_public.py --only chest --runs 3 --epsilon 0.5 1
    python benchmarks/start_public.py --network cnn --runs 3 --epsilon 0.5 2

Private cohorts: 500 patients of BreastMNIST (benign against malignant), and 300 patients of chest X-rays, among five
simulated hospitals under secure aggregation. Public starts, trained without privacy: chest X-rays, the phantom, and the
half of the chest X-ray patients that the cohorts are not drawn from, and the patients of BreastMNIST that are not
among the 500. "none" is the same study without a start, and
"useless" starts from random weights. Prints the mean AUROC over runs, and the start's own AUROC on the same images.

With ``--network`` a network is trained instead, on 300 synthetic patients among three hospitals; its start is trained
on 400 other ones.

Nothing is chosen by test images: with ``--fold`` the figures are those of held-out training patients instead.
"""

import argparse
import json
import os
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fedveil.data.phantom.patients import phantom
from fedveil.learning import auroc
from fedveil.study import RunDirectory, Study, TrainedModel, run

DATA = Path(os.environ.get("FEDVEIL_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
BREAST, CHEST = 500, 300


def chest() -> dict[str, Any]:
    """The X-rays, normal against pneumonia; split 0 for training, 1 for testing."""
    with np.load(DATA / "kermany_cxr" / "kermany_cxr_64.npz") as file:
        arrays = {name: file[name] for name in ("images", "labels", "patient", "split")}
    return arrays | {"labels": np.minimum(arrays["labels"], 1), "classes": np.array(["normal", "ill"])}


def breast() -> dict[str, Any]:
    """BreastMNIST, each image a patient; class 1 is malignant, as disease is in the other sets."""
    with np.load(DATA / "breastmnist" / "breastmnist.npz") as file:
        parts = [
            (file[f"{p}_images"], file[f"{p}_labels"].ravel(), p == "test") for p in ("train", "val", "test")
        ]
    labels = 1 - np.concatenate([one[1] for one in parts]).astype(np.int64)
    split = np.concatenate([np.full(len(one[1]), one[2], np.uint8) for one in parts])
    images = np.concatenate([one[0] for one in parts])
    classes = np.array(["benign", "malignant"])
    return {
        "images": images,
        "labels": labels,
        "patient": np.arange(len(images)),
        "split": split,
        "classes": classes,
    }


def folded(arrays: dict[str, Any]) -> dict[str, Any]:
    """Only training patients, a third of them for testing."""
    train = arrays["split"] == 0
    kept = {k: v if k == "classes" else v[train] for k, v in arrays.items()}
    names, codes = np.unique(kept["patient"], return_inverse=True)
    kept["split"] = (np.random.default_rng(11).permutation(len(names))[codes] % 3 == 0).astype(np.uint8)
    return kept


def parted(arrays: dict[str, Any], share: float) -> tuple[dict[str, Any], dict[str, Any]]:
    """Two sets with disjoint training patients and the same test images; the first has this share of the patients."""
    test = arrays["split"] == 1
    names = np.unique(arrays["patient"][~test])
    own = np.random.default_rng(7).permutation(names)[: round(share * len(names))]
    first = np.isin(arrays["patient"], own)
    parts = [
        {k: v if k == "classes" else v[rows | test] for k, v in arrays.items()} for rows in (first, ~first)
    ]
    return parts[0], parts[1]


def cohort(arrays: dict[str, Any], count: int, seed: int) -> dict[str, Any]:
    """A random cohort of so many training patients, with all test images."""
    train = np.unique(arrays["patient"][arrays["split"] == 0])
    drawn = np.random.default_rng(seed).choice(train, min(count, len(train)), replace=False)
    rows = (arrays["split"] == 1) | np.isin(arrays["patient"], drawn)
    return {k: v if k == "classes" else v[rows] for k, v in arrays.items()}


def saved(arrays: dict[str, Any], path: Path) -> str:
    np.savez(path, **arrays)
    return str(path)


def trained(study: Study, folder: Path) -> dict[str, Any]:
    return run(RunDirectory.create(folder, study))["metrics"]["test"]


def public(source: dict[str, object], folder: Path) -> Path:
    """A model trained on public images without privacy."""
    study = Study().with_changes({"data": source, "privacy": {"trust": "none"}, "report": {"examples": 0}})
    trained(study, folder)
    return folder


def useless(model: Path, folder: Path) -> Path:
    """The model with random weights of the same length."""
    found = TrainedModel.load(model)
    centre, weights, shift, head = found.model.split(found.parameters)  # type: ignore[union-attr]
    drawn = np.random.default_rng(3).standard_normal(head.shape)
    drawn *= np.linalg.norm(head) / np.linalg.norm(drawn)
    folder.mkdir()
    replace(found, parameters=np.concatenate([centre, weights, shift, drawn])).save(folder)
    return folder


def of_start(model: Path, arrays: dict[str, Any]) -> float:
    """The AUROC of the start itself on the test images."""
    rows = arrays["split"] == 1
    images = arrays["images"][rows]
    return auroc(arrays["labels"][rows], TrainedModel.load(model).predict_proba(images))


def compare(
    name: str,
    arrays: dict[str, Any],
    count: int,
    starts: dict[str, Path | None],
    asked: argparse.Namespace,
    scratch: Path,
) -> None:
    """AUROC with and without each start."""
    runs = asked.runs
    for epsilon in asked.epsilon:
        for label, start in starts.items():
            values, balanced = [], []
            for seed in range(runs):
                source = saved(cohort(arrays, count, seed), scratch / f"{name}.npz")
                changes: dict[str, Any] = {
                    "study": {"seed": seed},
                    "data": {"source": source, "sites": {"count": 5, "scheme": "dirichlet", "alpha": 0.5}},
                    "privacy": {"epsilon": epsilon},
                    "report": {"examples": 0},
                }
                if start is not None:
                    changes["model"] = {"start": str(start)}
                found = trained(Study().with_changes(changes), scratch / f"{name}-{epsilon}-{label}-{seed}")
                values.append(found["auroc"])
                balanced.append(found["balanced_accuracy"])
            spread = statistics.stdev(values) if runs > 1 else 0.0
            line = {"figure": "auroc", "value": round(statistics.mean(values), 4), "sd": round(spread, 4)}
            line |= {"balanced_accuracy": round(statistics.mean(balanced), 4)}
            line |= {"set": name, "start": label, "epsilon": epsilon, "patients": count, "runs": runs}
            print(json.dumps(line), flush=True)


def synthetic(patients: int, seed: int) -> dict[str, Any]:
    """Synthetic patients at 32 pixels, other ones for each seed."""
    drawn = phantom(image_size=32, patients=patients, seed=seed)
    images = np.asarray(drawn.images.read(np.arange(len(drawn.images))))
    return {
        "images": (images[:, 0] * 255).round().astype(np.uint8),
        "labels": drawn.labels,
        "patient": drawn.patients.codes if drawn.patients is not None else np.arange(len(images)),
        "split": drawn.splits,
        "classes": np.array(drawn.classes),
    }


def networks(asked: argparse.Namespace, scratch: Path) -> None:
    """AUROC of a network with and without a start."""
    base = Study().with_changes(
        {"model": {"network": asked.network}, "data": {"image_size": 32}, "report": {"examples": 0}}
    )
    source = saved(synthetic(400, 5), scratch / "public.npz")
    free = base.with_changes({"data": {"source": source}, "privacy": {"trust": "none"}})
    trained(free, scratch / "public")
    for epsilon in asked.epsilon:
        for start in (None, str(scratch / "public")):
            found = []
            for seed in range(asked.runs):
                own = saved(synthetic(300, 100 + seed), scratch / "own.npz")
                study = base.with_changes(
                    {
                        "study": {"seed": seed},
                        "data": {"source": own, "sites": {"count": 3, "scheme": "dirichlet", "alpha": 0.5}},
                        "model": {"start": start},
                        "privacy": {"epsilon": epsilon},
                    }
                )
                found.append(trained(study, scratch / f"{epsilon}-{start is None}-{seed}")["auroc"])
            spread = statistics.stdev(found) if len(found) > 1 else 0.0
            line = {"figure": "auroc", "value": round(statistics.mean(found), 4), "sd": round(spread, 4)}
            line |= {
                "set": "phantom",
                "network": asked.network,
                "start": "none" if start is None else "phantom",
            }
            print(json.dumps(line | {"epsilon": epsilon, "patients": 300, "runs": asked.runs}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--epsilon", type=float, nargs="+", default=[0.5, 1.0, 3.0])
    parser.add_argument("--only", choices=["breast", "chest"])
    parser.add_argument("--fold", action="store_true", help="test on held-out training patients")
    parser.add_argument("--network", help="train this network on synthetic patients instead")
    asked = parser.parse_args()
    if asked.network:
        with tempfile.TemporaryDirectory() as name:
            networks(asked, Path(name))
        return
    images, breasts = chest(), breast()
    if asked.fold:
        images, breasts = folded(images), folded(breasts)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        own, other = parted(images, 0.5)
        small, rest = parted(breasts, 0.8)
        phantom = public({"source": "phantom"}, scratch / "phantom")
        half = public({"source": saved(other, scratch / "half.npz")}, scratch / "half")
        left = public({"source": saved(rest, scratch / "rest.npz")}, scratch / "rest")
        starts: dict[str, Path | None] = {
            "none": None,
            "useless": useless(half, scratch / "random"),
            "phantom": phantom,
            "chest-half": half,
        }
        breast_starts = starts | {"breast-rest": left}
        for label, start in breast_starts.items():
            for set_name, arrays in (("chest", own), ("breast", small)):
                if start is not None:
                    value = round(float(of_start(start, arrays)), 4)
                    print(
                        json.dumps(
                            {"figure": "auroc_of_start", "value": value, "set": set_name, "start": label}
                        )
                    )
        if asked.only != "breast":
            compare("chest", own, CHEST, starts, asked, scratch)
        if asked.only != "chest":
            compare("breast", small, BREAST, breast_starts, asked, scratch)


if __name__ == "__main__":
    main()
