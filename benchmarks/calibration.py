"""Which epsilon? The paper's question on every public set at hand; one JSON line per figure.

    python benchmarks/calibration.py                  # needs FEDVEIL_DATA, default ../shared/data
    python benchmarks/calibration.py --table          # the table of docs/calibration.md, with hashes of the data
    python benchmarks/calibration.py --runs 2 --only breast-ultrasound
    python benchmarks/calibration.py --save runs.jsonl    # continues where an interrupted call stopped
    python benchmarks/calibration.py --held-out       # new patients of the same hospitals instead of the test images
    python benchmarks/calibration.py --shift          # whether test images can be told from training images
    python benchmarks/calibration.py --medmnist FOLDER    # also every MedMNIST file NAME.npz in FOLDER

Each run trains at every epsilon of the grid, without privacy, and with a calibrated epsilon (maximum 8, tolerance 0.01,
pilot at epsilon 0.2), with five simulated hospitals by Dirichlet(0.5), delta 1e-5. Nothing is chosen by test images.
The least epsilon of a full sweep is that of `fedveil.sweeps.knees` on the same runs, on test images: it is what the
calibrated epsilon is compared with. Sets that name their hospitals are split anew, as all others: these are public
data, and nothing is paid. A pilot sees training patients alone. Where a set's test images come from elsewhere, as those
of the chest X-rays do, no pilot can predict what they do to the AUROC; with ``--held-out`` a tenth of the training
patients, other ones in each run, are tested on instead. Features are computed once per set, and ledgers are written
to memory.
"""

import argparse
import hashlib
import json
import math
import os
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fedveil.data import Dataset, hospitals
from fedveil.data.dataset import TEST, TRAIN, VALIDATION
from fedveil.learning import decide
from fedveil.study import RunDirectory, Silent, Study
from fedveil.study.evaluation import TestSet
from fedveil.study.pipeline import Task, make_task
from fedveil.study.prepare import Prepared, prepare
from fedveil.study.simulation import Simulated, train_here
from fedveil.sweeps import NO_PRIVACY, Measurement, Setting, knees

DATA = Path(os.environ.get("FEDVEIL_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
SETS: dict[str, dict[str, Any]] = {
    "breast-ultrasound": {"source": str(DATA / "breastmnist" / "breastmnist.npz")},
    "white-blood-cells": {"source": str(DATA / "wbc" / "manifest.csv")},
    "chest-x-rays": {
        "source": str(DATA / "kermany_cxr" / "kermany_cxr_64.npz"),
        "positive": ["bacteria", "virus"],
    },
}
GRID = (0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 3.0, 4.0, 5.6, 8.0)
SHOWN = (0.5, 1.0, 3.0, 8.0, NO_PRIVACY)
MOST, TOLERANCE, SITES, ALPHA = 8.0, 0.01, 5, 0.5
HELD_OUT = 0.1
SCRATCH = "/dev/shm" if Path("/dev/shm").is_dir() else None
"""Ledgers and checkpoints are written durably, which takes most of a run's time where they lie on a disk."""
METRICS = ("auroc", "balanced_accuracy", "accuracy")


@dataclass(frozen=True)
class Run:
    """One trained model: the epsilon that was asked for, None for a calibrated one, and what it reached."""

    asked: float | None
    epsilon: float
    seed: int
    units: int
    auroc: float
    balanced_accuracy: float
    accuracy: float
    predicted: tuple[float, float, float] | None = None


def held_out(dataset: Dataset, seed: int) -> Dataset:
    """The training patients alone, a share of them for testing; other images take no part."""
    names = np.unique(dataset.patients[dataset.train])
    tested = np.random.default_rng([seed, 17]).permutation(names)[: round(HELD_OUT * len(names))]
    split = np.full(len(dataset), VALIDATION, np.int8)
    split[dataset.train] = np.where(np.isin(dataset.patients[dataset.train], tested), TEST, TRAIN)
    return replace(dataset, split=split)


def train_once(task: Task, study: Study, seed: int, asked: float | None) -> Run:
    """Train on the hospitals of this seed, and evaluate on the test images."""
    dealt = hospitals(task.dataset, SITES, "dirichlet", ALPHA, seed)
    sites = {f"site-{number}": rows for number, rows in enumerate(dealt, 1)}
    data = Prepared(study=study, dataset=task.dataset, sites=sites, simulated=True)
    test = TestSet(replace(task, study=study))
    with tempfile.TemporaryDirectory(dir=SCRATCH) as folder:
        directory = RunDirectory.create(Path(folder) / "run", study)
        agreement, trained = train_here(
            data,
            replace(task, study=study),
            directory,
            Simulated(),
            evaluate=lambda *_: None,
            progress=Silent(),
        )
    probabilities = test.probabilities(trained.parameters)
    point = test.point(trained.parameters, trained.priors) or {}
    hits = float(np.mean(decide(probabilities, trained.priors) == test.labels))
    epsilon, predicted, forecast = asked or math.nan, None, trained.forecast
    if forecast is not None and agreement.calibration is not None:
        epsilon = agreement.calibration.level(forecast.level).epsilon
        one = forecast.levels[forecast.level - 1]
        predicted = (one.expected, one.low, one.high)
    return Run(
        asked=asked,
        epsilon=epsilon,
        seed=seed,
        units=sum(data.units.values()),
        auroc=point["auroc"],
        balanced_accuracy=point["balanced_accuracy"],
        accuracy=hits,
        predicted=predicted,
    )


def settings_of(
    study: Study, trust: str, unit: str, grid: Sequence[float]
) -> Iterator[tuple[float | None, Study]]:
    """What is asked for, with the study that asks for it."""
    for epsilon in grid:
        yield epsilon, study.with_changes({"privacy": {"trust": trust, "unit": unit, "epsilon": epsilon}})
    yield NO_PRIVACY, study.with_changes({"privacy": {"trust": "none", "unit": unit}})
    calibrated = {"epsilon": "calibrated", "max_epsilon": MOST, "tolerance": TOLERANCE}
    yield None, study.with_changes({"privacy": {"trust": trust, "unit": unit, **calibrated}})


def measured(
    task: Task, count: int, where: dict[str, str], saved: Path | None, grid: Sequence[float]
) -> Iterator[Run]:
    """So many runs of every setting; those that the file holds are not repeated."""
    found: dict[tuple[float | None, int], Run] = {}
    for line in saved.read_text().splitlines() if saved and saved.exists() else ():
        values = {"tested": "test images"} | json.loads(line)
        if {key: values.pop(key) for key in where} == where:
            predicted = values["predicted"] and tuple(values["predicted"])
            found[values["asked"], values["seed"]] = Run(**values | {"predicted": predicted})
    for seed in range(count):
        at = task if where["tested"] == "test images" else replace(task, dataset=held_out(task.dataset, seed))
        for epsilon, study in settings_of(task.study, where["trust"], where["unit"], grid):
            run = found.get((epsilon, seed)) or train_once(at, study, seed, epsilon)
            if saved and (epsilon, seed) not in found:
                with saved.open("a") as file:
                    file.write(json.dumps(where | vars(run)) + "\n")
            yield run


def least_of(runs: Sequence[Run], trust: str, unit: str) -> float:
    """The least epsilon of a full sweep over these runs, infinite if none is within the tolerance."""
    measured = [
        Measurement(
            setting=Setting(
                epsilon=run.epsilon,
                trust="none" if math.isinf(run.epsilon) else trust,  # type: ignore[arg-type]
                unit=unit,  # type: ignore[arg-type]
                sites=SITES,
                alpha=ALPHA,
                seed=run.seed,
            ),
            units=run.units,
            patients=run.units,
            ratio=math.nan,
            epsilon_spent=run.epsilon,
            true_positive_rate=math.nan,
            advantage=math.nan,
            auroc=run.auroc,
            balanced_accuracy=run.balanced_accuracy,
            seconds=0.0,
        )
        for run in runs
        if run.asked is not None
    ]
    return knees(measured, TOLERANCE)[0].epsilon


def figure(name: str, value: float, **more: object) -> None:
    shown = None if math.isinf(value) or math.isnan(value) else round(value, 4)
    print(json.dumps({"figure": name, "value": shown} | more), flush=True)


def report(asked: dict[str, str], runs: Sequence[Run]) -> None:
    """The figures of one set, and the bars of the calibrated epsilon."""
    where = asked | {"units": runs[0].units}
    for epsilon in (*SHOWN, None):
        at = [run for run in runs if run.asked == epsilon]
        for metric in METRICS:
            values = [getattr(run, metric) for run in at]
            label = "calibrated" if epsilon is None else "none" if math.isinf(epsilon) else f"{epsilon:g}"
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            figure(
                metric, statistics.mean(values), epsilon=label, sd=round(spread, 4), runs=len(values), **where
            )
    chosen = [run for run in runs if run.asked is None]
    bare = statistics.mean(run.auroc for run in runs if run.asked == NO_PRIVACY)
    least = least_of(runs, asked["trust"], asked["unit"])
    figure("least_epsilon_of_the_sweep", least, **where)
    figure("calibrated_epsilon_median", statistics.median(run.epsilon for run in chosen), **where)
    close = [0.5 <= run.epsilon / least <= 2 for run in chosen]
    figure("calibrated_within_factor_2", statistics.mean(close), unreached=math.isinf(least), **where)
    lost = [bare - run.auroc for run in chosen]
    figure(
        "calibrated_loss_at_most_0.015",
        statistics.mean(one <= 0.015 for one in lost),
        mean=round(statistics.mean(lost), 4),
        **where,
    )
    told = [(run, run.predicted) for run in chosen if run.predicted]
    figure("pilot_mean_absolute_error", statistics.mean(abs(p[0] - run.auroc) for run, p in told), **where)
    figure("pilot_interval_covers", statistics.mean(p[1] <= run.auroc <= p[2] for run, p in told), **where)


def shift(task: Task, split: np.ndarray, seed: int) -> float:
    """AUROC at which features tell test images from training images of the same class, on patients not fitted on.

    A ridge discriminant within each class, fitted on half of the patients and judged on the others; the mean over
    classes. One half: the images are alike.
    """
    data, found = task.dataset, []
    features = np.asarray(task.features[np.arange(len(data))], np.float64)  # type: ignore[attr-defined]
    fitted = np.random.default_rng(seed).random(int(data.patients.max()) + 1) < 0.5
    for label in range(len(data.classes)):
        parts = [
            [
                features[(data.labels == label) & (split == side) & (fitted[data.patients] == half)]
                for side in (TRAIN, TEST)
            ]
            for half in (True, False)
        ]
        (train, test), (judged_train, judged_test) = parts
        spread = sum(np.cov(part.T) for part in (train, test)) / 2
        ridge = 0.1 * np.trace(spread) / features.shape[1] * np.eye(features.shape[1])
        line = np.linalg.solve(spread + ridge, test.mean(axis=0) - train.mean(axis=0))
        found.append(np.mean((judged_test @ line)[:, None] > judged_train @ line))
    return float(np.mean(found))


HEAD = (
    "| set | unit | trust | N | classes | "
    + " | ".join("no privacy" if math.isinf(one) else f"epsilon {one:g}" for one in SHOWN)
    + " | calibrated | picked | sweep |",
    "|" + "---|" * (len(SHOWN) + 8),
)


def row(name: str, trust: str, unit: str, classes: int, runs: Sequence[Run]) -> str:
    """A line of the table: mean and standard deviation over runs."""
    cells = [name, unit, trust, f"{runs[0].units:,}", str(classes)]
    for epsilon in (*SHOWN, None):
        at = [run for run in runs if run.asked == epsilon]
        parts = []
        for metric in METRICS:
            values = [getattr(run, metric) for run in at]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            parts.append(f"{statistics.mean(values):.3f} ± {spread:.3f}")
        cells.append(" / ".join(parts))
    chosen = sorted(run.epsilon for run in runs if run.asked is None)
    cells.append(f"{statistics.median(chosen):g} ({chosen[0]:g} to {chosen[-1]:g})")
    least = least_of(runs, trust, unit)
    cells.append("none" if math.isinf(least) else f"{least:g}")
    return "| " + " | ".join(cells) + " |"


def digest_of(source: str) -> str:
    """The first digits of the SHA-256 of a source file; of a generated set its name."""
    path = Path(source)
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.is_file() else source


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--only", nargs="*", help="sets to measure; default all")
    parser.add_argument("--trust", nargs="*", default=["secure-aggregation"])
    parser.add_argument("--unit", nargs="*", default=["patient"])
    parser.add_argument("--epsilon", type=float, nargs="*", default=GRID, help="grid of the sweep")
    parser.add_argument("--medmnist", type=Path, help="folder of more MedMNIST files")
    parser.add_argument(
        "--save", type=Path, help="append every run to this file, and do not repeat those in it"
    )
    parser.add_argument("--held-out", action="store_true", help="test on held-out training patients")
    parser.add_argument("--shift", action="store_true", help="only compare training and test images")
    parser.add_argument("--table", action="store_true", help="print the Markdown table at the end")
    asked = parser.parse_args()
    sets = dict(SETS)
    for path in sorted(asked.medmnist.glob("*.npz")) if asked.medmnist else ():
        sets[path.stem] = {"source": str(path)}
    if unknown := [name for name in asked.only or () if name not in sets]:
        parser.error(f"no set {', '.join(unknown)}; there are {', '.join(sets)}")
    grid = sorted({*asked.epsilon, *SHOWN} - {NO_PRIVACY})
    rows, sources = [], []
    for name in asked.only or sets:
        study = Study().with_changes({"study": {"name": "calibration"}, "data": sets[name]})
        prepared = prepare(study)
        task = make_task(prepared.study, prepared.dataset, Silent())
        digest = digest_of(str(sets[name]["source"]))
        figure("source", len(prepared.dataset), set=name, sha256=digest)
        sources.append(f"SHA-256 of {name}: {digest}")
        if asked.shift:
            splits = [task.dataset.split, *(held_out(task.dataset, seed).split for seed in range(asked.runs))]
            told = [shift(task, split, seed) for seed, split in enumerate(splits)]
            figure("test_images_told_from_training_images", told[0], set=name)
            figure("held_out_images_told_from_training_images", statistics.mean(told[1:]), set=name)
        for unit in () if asked.shift else asked.unit:
            for trust in asked.trust:
                tested = "held-out patients" if asked.held_out else "test images"
                where = {"set": name, "trust": trust, "unit": unit, "tested": tested}
                runs = list(measured(task, asked.runs, where, asked.save, grid))
                report(where, runs)
                rows.append(row(name, trust, unit, len(prepared.dataset.classes), runs))
    if asked.table:
        print("\n".join([*HEAD, *rows, "", *sources]))


if __name__ == "__main__":
    main()
