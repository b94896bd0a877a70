"""Decisions and intervals at small cohorts; one JSON line a figure.

    python benchmarks/tasks.py                              # needs FEDVEIL_DATA, default ../shared/data
    python benchmarks/tasks.py --only small coverage --runs 10

"small": three classes of the phantom, one of 85 %, 300 patients at epsilon 1, easy and hard to tell apart. "chest":
chest X-rays with two and three classes, on the test split, which was used for no choice here. "coverage": how often
the printed 95 % interval of a test set of 200 patients holds the AUROC on a test set of 20,000 images: the mean over
runs, and that of the run's own model. "grades": five ordered grades of the phantom at epsilon 1, with the ordinal
head, also in one round, and with one logit per class; patients are split into five parts, each of which is tested on
once. "findings": the phantom of five findings per image, in rounds and in one, against training without privacy. Every
run is a whole study as `fedveil run` makes it, without files.
"""

import argparse
import json
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fedveil.data import Dataset, load
from fedveil.data.phantom.grades import phantom_grades
from fedveil.data.phantom.patients import phantom
from fedveil.learning import auroc, decide, quadratic_kappa
from fedveil.library.runs import resolved_study
from fedveil.study import RunDirectory, Silent, Study
from fedveil.study.evaluation import TestSet
from fedveil.study.pipeline import Task, make_task
from fedveil.study.prepare import Prepared, prepare
from fedveil.study.results.training_noise import spread_of
from fedveil.study.simulation import Simulated, train_here

DATA = Path(os.environ.get("FEDVEIL_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))

FOLDS = 5
TRAINING, TESTED = 600, 20_000
"""Training patients, and test images, of the coverage of intervals."""


def figure(name: str, value: float, unit: str, **more: object) -> None:
    print(json.dumps({"figure": name, "value": round(float(value), 4), "unit": unit} | more), flush=True)


def chest(classes: int) -> Dataset:
    names = {2: ["normal", "pneumonia"], 3: ["normal", "bacteria", "virus"]}[classes]
    with np.load(DATA / "kermany_cxr" / "kermany_cxr_64.npz") as file:
        labels = np.minimum(file["labels"], classes - 1)
        split = np.where(file["split"] == 0, "train", "test")
        return Dataset.from_arrays(
            file["images"], labels, patients=file["patient"], split=split, classes=names
        )


def drawn(patients: int, seed: int) -> tuple[Any, Any, Any]:
    """Images of the phantom, their labels and their patients."""
    found = phantom(64, patients=patients, seed=seed)
    pixels = np.rint(np.asarray(found.images.read(np.arange(len(found.labels))))[:, 0] * 255).astype(np.uint8)
    return pixels, np.asarray(found.labels), np.unique(np.array(found.patients), return_inverse=True)[1]


def phantom_hard(train: int = 300, test: int = 1200, seed: int = 1) -> Dataset:
    """Clear (85 %), with an opacity, and with it on both sides: an opacity is small, and both classes of it alike."""
    pixels, ill, owner = drawn(2 * (train + test), seed)
    parts, shares = [], {"train": train, "test": test}
    opaque = np.unique(owner[ill == 1])
    clear = np.setdiff1d(owner, opaque)
    for split, count in shares.items():
        sizes = np.diff(np.rint(np.array([0, 0.85, 0.93, 1]) * count).astype(int))
        for code, size in enumerate(sizes):
            pool = clear if code == 0 else opaque
            chosen, rest = np.split(pool, [size])
            clear, opaque = (rest, opaque) if code == 0 else (clear, rest)
            rows = np.flatnonzero(np.isin(owner, chosen) & (ill == min(code, 1)))
            images = np.maximum(pixels[rows], pixels[rows][:, :, ::-1]) if code == 2 else pixels[rows]
            parts.append((images, np.full(len(rows), code), owner[rows], np.full(len(rows), split)))
    images, labels, patients, splits = (np.concatenate(one) for one in zip(*parts, strict=True))
    names = ["clear", "opacity", "both sides"]
    return Dataset.from_arrays(images, labels, patients=patients, split=splits, classes=names)


def phantom_easy(train: int = 300, test: int = 1200, seed: int = 1) -> Dataset:
    """Negatives (85 %), enlarged details and half-covered images of the phantom: easy classes, of uneven size."""
    pixels, _, owner = drawn(train + test, seed)
    generator = np.random.default_rng(seed)
    number = generator.permutation(train + test)[owner]
    place = np.where(number < train, number / train, (number - train) / test)
    labels = np.digitize(place, [0.85, 0.93])
    images = pixels.copy()
    images[labels == 0] = 255 - pixels[labels == 0]
    images[labels == 1] = np.kron(pixels[labels == 1][:, 16:48, 16:48], np.ones((1, 2, 2), np.uint8))
    images[labels == 2, :, :32] = 0
    split = np.where(number < train, "train", "test")
    names = ["negative", "enlarged", "covered"]
    return Dataset.from_arrays(images, labels, patients=owner, split=split, classes=names)


def prepared(dataset: Dataset, **settings: Any) -> tuple[Task, Prepared]:
    study, _ = resolved_study(Study(**settings), dataset)
    data = prepare(study, dataset)
    return make_task(data.study, data.dataset, Silent()), data


def trained(task: Task, data: Prepared) -> Any:
    """One run: what training returned."""
    with tempfile.TemporaryDirectory() as folder:
        directory = RunDirectory.create(Path(folder) / "run", data.study)
        return train_here(
            data, task, directory, Simulated(), evaluate=lambda _parameters, _priors: None, progress=Silent()
        )[1]


def scores(task: Task, parameters: Any, priors: Any) -> tuple[float, float, float]:
    """AUROC, balanced accuracy and accuracy on the test images."""
    test = TestSet(task)
    probabilities = test.probabilities(parameters)
    predicted = decide(probabilities, priors)
    hits = [(predicted[test.labels == code] == code).mean() for code in np.unique(test.labels)]
    return auroc(test.labels, probabilities), float(np.mean(hits)), float((predicted == test.labels).mean())


def small(runs: int) -> None:
    for name, dataset in (("easy", phantom_easy()), ("hard", phantom_hard())):
        small_one(name, dataset, runs)


def small_one(name: str, dataset: Dataset, runs: int) -> None:
    task, data = prepared(dataset, epsilon=1.0)
    found, without = [], []
    for _ in range(runs):
        one = trained(task, data)
        found.append(scores(task, one.parameters, one.priors))
        without.append(scores(task, task.model.unshifted(one.parameters), one.priors))
    labels = task.dataset.labels[task.dataset.test]
    majority = np.bincount(labels).max() / len(labels)
    table, plain = np.array(found), np.array(without)
    figure(f"{name}_worst_accuracy_minus_majority", table[:, 2].min() - majority, "fraction", runs=runs)
    figure(f"{name}_balanced_accuracy", table[:, 1].mean(), "fraction", worst=table[:, 1].min().round(3))
    figure(
        f"{name}_balanced_accuracy_minus_unshifted",
        table[:, 1].mean() - plain[:, 1].mean(),
        "fraction",
    )


def x_rays(runs: int) -> None:
    for classes in (2, 3):
        task, data = prepared(chest(classes), epsilon=1.0)
        for epsilon, trust in ((1.0, "secure-aggregation"), (0.25, "secure-aggregation"), (1.0, "none")):
            if classes == 3 and epsilon < 1:
                continue
            study = data.study.with_changes({"privacy": {"epsilon": epsilon, "trust": trust}})
            at, its = replace(task, study=study), replace(data, study=study)
            table = []
            for _ in range(1 if trust == "none" else runs):
                one = trained(at, its)
                metrics = TestSet(at).metrics(TestSet(at).probabilities(one.parameters), one.priors)
                names = ("auroc", "balanced_accuracy", "brier", "calibration_error")
                table.append([metrics[name] for name in names])
            means, sd = np.mean(table, axis=0), np.std(table, axis=0)
            figure(
                f"chest_{classes}_classes_{'without_privacy' if trust == 'none' else f'eps{epsilon:g}'}",
                means[1],
                "balanced accuracy",
                sd=sd[1].round(4),
                auroc=means[0].round(4),
                brier=means[2].round(4),
                calibration_error=means[3].round(4),
                runs=len(table),
            )


def coverage(runs: int) -> None:
    images, labels, owner = drawn(14_000, seed=2)
    split = np.where(owner < TRAINING, "train", "test")
    last = np.flatnonzero(np.cumsum(owner >= TRAINING) == TESTED)[0]
    images, labels, owner, split = (one[: last + 1] for one in (images, labels, owner, split))
    dataset = Dataset.from_arrays(images, labels, patients=owner, split=split, classes=["clear", "opacity"])
    task, data = prepared(dataset, epsilon=1.0)
    rows, patients = task.dataset.test, task.dataset.patients
    generator = np.random.default_rng(0)
    for epsilon in (0.5, 1.0, 4.0):
        study = data.study.with_changes({"privacy": {"epsilon": epsilon}})
        at, its = replace(task, study=study), replace(data, study=study)
        own, printed = [], []
        for _ in range(runs):
            one = trained(at, its)
            chosen = generator.choice(np.unique(patients[rows]), 200, replace=False)
            part = TestSet(at, rows[np.isin(patients[rows], chosen)])
            spread = spread_of(at, one)
            probabilities = part.probabilities(one.parameters)
            printed.append(part.metrics(probabilities, one.priors, spread)["auroc_interval"])
            own.append(scores(at, one.parameters, one.priors)[0])
        low, high = np.array(printed).T
        mean = np.mean(own)
        figure(
            f"coverage_eps{epsilon:g}",
            np.mean((low <= mean) & (mean <= high)),
            "fraction",
            of_the_own_model=round(float(np.mean((low <= own) & (own <= high))), 3),
            auroc=round(float(mean), 4),
            images=len(rows),
            sd_over_runs=round(float(np.std(own)), 4),
            runs=runs,
        )


def findings(runs: int) -> None:
    drawn = load("phantom:findings", image_size=64, task="findings")
    for method, name in (("gradient", "findings"), ("one-shot", "findings_in_one_round")):
        task, data = prepared(drawn, epsilon=1.0, method=method)
        test = TestSet(task)
        for trust in ("none", "secure-aggregation"):
            study = data.study.with_changes({"privacy": {"trust": trust}})
            at, its = replace(task, study=study), replace(data, study=study)
            table = []
            for _ in range(1 if trust == "none" else runs):
                one = trained(at, its)
                found = test.metrics(test.probabilities(one.parameters), one.priors)
                each = [entry["auroc"] for entry in found["per_class"]]
                table.append([found["auroc"], found["balanced_accuracy"], *each])
            means = np.mean(table, axis=0)
            figure(
                f"{name}_{'without_privacy' if trust == 'none' else 'eps1'}",
                means[0],
                "macro AUROC",
                sd=np.std(table, axis=0)[0].round(4),
                balanced_accuracy=means[1].round(4),
                each=means[2:].round(3).tolist(),
                runs=len(table),
            )


def grades(runs: int) -> None:
    found = phantom_grades(64)
    pixels = np.rint(np.asarray(found.images.read(np.arange(len(found.labels))))[:, 0] * 255).astype(np.uint8)
    owner = np.unique(np.array(found.patients), return_inverse=True)[1]
    for trust in ("secure-aggregation", "none"):
        for task, method in (("grades", "gradient"), ("classes", "gradient"), ("grades", "one-shot")):
            kappas = []
            for fold in range(FOLDS):
                split = np.where(owner % FOLDS == fold, "test", "train")
                dataset = Dataset.from_arrays(pixels, found.labels, patients=owner, split=split, task=task)
                made, data = prepared(dataset, epsilon=1.0, trust=trust, method=method)
                test = TestSet(made)
                for _ in range(1 if trust == "none" else runs):
                    one = trained(made, data)
                    called = decide(test.probabilities(one.parameters), one.priors)
                    kappas.append(quadratic_kappa(test.labels, called, len(found.classes)))
            rounds = "_in_one_round" * (method == "one-shot")
            figure(
                f"grades_as_{task}{rounds}_{'without_privacy' if trust == 'none' else 'eps1'}",
                np.mean(kappas),
                "quadratic weighted kappa",
                sd=np.std(kappas).round(4),
                worst=np.min(kappas).round(4),
                runs=len(kappas),
            )


PARTS = {
    "findings": (findings, 10),
    "small": (small, 50),
    "chest": (x_rays, 10),
    "coverage": (coverage, 100),
    "grades": (grades, 4),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--runs", type=int, help="of each setting; by default as many as the bars ask for")
    arguments = parser.parse_args()
    for part in arguments.only:
        measure, runs = PARTS[part]
        measure(arguments.runs or runs)


if __name__ == "__main__":
    main()
