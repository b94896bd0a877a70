"""Measure the tasks that `fedveil plan --cohorts` predicts from, and write them into the package.

    python benchmarks/references.py FOLDER                         # sweeps are kept in FOLDER, and resumed from it
    python benchmarks/references.py FOLDER --only chest-x-rays     # all other laws stay as they are

Needs FEDVEIL_DATA (default ../shared/data). Linear heads: three runs a setting on three tasks by two methods, minutes.
Networks on chest X-rays (`--only chest-x-rays-cnn-gradient`, say): one run a setting, a quarter of an hour each on one
core. Accuracies are those of the test images, so a prediction is no evidence about them.

Prints JSON lines for each task, recipe and metric: the mean absolute error of the expected accuracy (the mean of a
setting's runs) at settings of one level of trust at a time, predicted from the runs of the others; by number of
hospitals where one level of trust was swept. Where nu is below b, chance decides a single run and the mean of a few is
itself uncertain. So the error is given with and without those settings, and beside it two more numbers: what a
perfect prediction would show (the mean of n runs with standard deviation s differs from their expectation by s sqrt(2
/ (pi n)) on average), and the root mean square error of the law itself, from which the runs' own variance s^2 / n is
taken off. Neither is known of single runs.
"""

import argparse
import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fedveil.io import write_json
from fedveil.planning import Reference, references
from fedveil.study import METRICS, Metric, Study
from fedveil.sweeps import EVEN, NO_PRIVACY, Grid, Measurement, Setting, sweep

PROJECT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("FEDVEIL_DATA", PROJECT.parent / "shared" / "data"))
SHIPPED = PROJECT / "src" / "fedveil" / "planning" / "references.json"
TASKS = {
    "chest-x-rays": {
        "source": str(DATA / "kermany_cxr" / "kermany_cxr_64.npz"),
        "positive": ["bacteria", "virus"],
    },
    "breast-ultrasound": {"source": str(DATA / "breastmnist" / "breastmnist.npz")},
    "phantom": {"source": "phantom"},
}
TRUSTS = ("site", "secure-aggregation", "server")


LINEAR = Grid(
    epsilon=(0.25, 1.0, 4.0, NO_PRIVACY),
    trust=TRUSTS,
    unit=("patient",),
    sites=(3, 10),
    alpha=(EVEN,),
    method=("gradient", "one-shot"),
    patients=(100, 250, 1000, None),
    seeds=3,
)
DEEP = replace(
    LINEAR,
    epsilon=(1.0, 3.0, 8.0, NO_PRIVACY),
    trust=("site", "server"),
    sites=(5,),
    method=("gradient",),
    patients=(250, 1000, None),
    seeds=1,
)
# Local steps carry all noise whatever the trust, so only the number of hospitals tells.
AVERAGING = replace(DEEP, trust=("site",), sites=(3, 10), method=("averaging",), patients=(250, 1000))
CNN: dict[str, dict[str, object]] = {"data": {"image_size": 28}, "model": {"network": "cnn"}}


class Swept(NamedTuple):
    """One sweep: what its study says beside its task, and its settings."""

    task: str
    changes: dict[str, dict[str, object]]
    grid: Grid


SWEEPS = {
    "chest-x-rays": Swept("chest-x-rays", {}, LINEAR),
    "breast-ultrasound": Swept("breast-ultrasound", {}, replace(LINEAR, patients=(100, 250, None))),
    "phantom": Swept("phantom", {}, LINEAR),
    "chest-x-rays-efficientnet-lite0-gradient": Swept(
        "chest-x-rays", {"model": {"network": "efficientnet-lite0"}}, DEEP
    ),
    "chest-x-rays-cnn-gradient": Swept("chest-x-rays", CNN, DEEP),
    "chest-x-rays-cnn-averaging": Swept(
        "chest-x-rays", CNN | {"training": {"method": "averaging", "units": 2846}}, AVERAGING
    ),
}


class HeldOut(NamedTuple):
    """A setting that a prediction had not seen, with its error and the variance of what it was compared with."""

    measured: Measurement
    error: float
    variance: float


def held_out_errors(results: list[Measurement], metric: Metric = "auroc") -> list[HeldOut]:
    """Absolute errors on each level of trust, predicted from the runs of all others; of one method.

    By number of hospitals, where there is one level of trust.
    """
    private = [m for m in results if m.setting.trust != "none"]
    by_trust = len({m.setting.trust for m in private}) > 1

    def part(one: Measurement) -> object:
        return one.setting.trust if by_trust else one.setting.sites

    errors = []
    for left in dict.fromkeys(part(m) for m in private):
        law = Reference.fit("", [m for m in results if part(m) != left], metric=metric)
        runs: dict[Setting, list[Measurement]] = {}
        for one in (m for m in private if part(m) == left):
            runs.setdefault(replace(one.setting, seed=0), []).append(one)
        for one, *more in runs.values():
            values = [m.value(metric) for m in (one, *more)]
            variance = float(np.var(values, ddof=1)) / len(values) if more else math.nan
            error = abs(law.expected(one.patients, one.ratio) - float(np.mean(values)))
            errors.append(HeldOut(one, error, variance))
    return errors


def print_errors(settings: str, law: Reference, found: list[HeldOut]) -> None:
    if not found:
        return
    error, variance = np.array([one.error for one in found]), np.array([one.variance for one in found])
    values = {"value": float(np.mean(error))}
    if not np.isnan(variance).any():
        values |= {
            "of_a_perfect_prediction": float(np.mean(np.sqrt(2 * variance / math.pi))),
            "root_mean_square_of_the_law": math.sqrt(max(0.0, float(np.mean(error**2 - variance)))),
        }
    line = {"figure": "planner_mean_absolute_error", "task": law.name, "recipe": str(law.recipe)}
    line |= {"metric": law.metric, "settings": settings, "number": len(found)}
    print(json.dumps(line | {name: round(value, 5) for name, value in values.items()}), flush=True)


def measure(folder: Path, name: str, workers: int | None) -> list[Reference]:
    """The laws of one sweep, and their errors printed."""
    swept = SWEEPS[name]
    tables = {"study": {"name": swept.task}, "data": TASKS[swept.task]} | {
        table: keys for table, keys in swept.changes.items() if table != "data"
    }
    tables["data"] = tables["data"] | swept.changes.get("data", {})
    study = Study().with_changes(tables)
    results = sweep(folder / name, study, swept.grid, resume=(folder / name).exists(), workers=workers)
    found = []
    for laws in Reference.fit_each(swept.task, results, study).values():
        for metric in METRICS:
            law = laws[metric]
            errors = held_out_errors([m for m in results if m.setting.method == law.method], metric)
            print_errors("all", law, errors)
            print_errors("ratio_above_b", law, [one for one in errors if one.measured.ratio > law.noise])
            found.append(law)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="*", choices=SWEEPS, default=list(SWEEPS), help="the sweeps to run")
    parser.add_argument("--workers", type=int, help="processes; default one a core")
    arguments = parser.parse_args()
    shipped = {
        task: {(law.recipe, metric): law for laws in by.values() for metric, law in laws.items()}
        for task, by in references().items()
    }
    for name in arguments.only:
        laws = measure(arguments.folder, name, arguments.workers)
        shipped.setdefault(SWEEPS[name].task, {}).update({(law.recipe, law.metric): law for law in laws})
        plain = {task: [law.to_dict() for law in by.values()] for task, by in shipped.items()}
        write_json(SHIPPED, {"made_by": "python benchmarks/references.py FOLDER", "references": plain})


if __name__ == "__main__":
    main()
