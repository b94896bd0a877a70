"""Measure the tasks that `fedveil plan --cohorts` predicts from, and write them into the package.

    python benchmarks/references.py FOLDER        # sweeps are kept in FOLDER, and resumed from it

Needs FEDVEIL_DATA (default ../shared/data). Six runs a setting on three tasks by two methods; accuracies are those of
the test images, so a prediction is no evidence about them. Prints JSON lines for each task and method: the mean
absolute error of the expected AUROC (the mean of a setting's runs) at settings of one level of trust at a time,
predicted from the runs of the other two. Where nu is below b, chance decides a single run and the mean of a few is
itself uncertain; the error is given with and without those settings, and beside it what a perfect prediction would
show: the mean of n runs with standard deviation s differs from their expectation by s sqrt(2 / (pi n)) on average.
"""

import argparse
import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fedveil.study import EVEN, NO_PRIVACY, Grid, Measurement, Reference, Setting, Study, sweep
from fedveil.study.files import write_json

PROJECT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("FEDVEIL_DATA", PROJECT.parent / "shared" / "data"))
SHIPPED = PROJECT / "src" / "fedveil" / "study" / "references.json"
TASKS = {
    "chest-x-rays": {
        "source": str(DATA / "kermany_cxr" / "kermany_cxr_64.npz"),
        "positive": ["bacteria", "virus"],
    },
    "breast-ultrasound": {"source": str(DATA / "breastmnist" / "breastmnist.npz")},
    "phantom": {"source": "phantom"},
}
TRUSTS = ("site", "secure-aggregation", "server")


class HeldOut(NamedTuple):
    """A setting that a prediction had not seen, with its error, and the error of a perfect one."""

    measured: Measurement
    error: float
    perfect: float


def held_out_errors(results: list[Measurement]) -> list[HeldOut]:
    """Absolute errors on each level of trust, predicted from the runs of all others; of one method."""
    errors = []
    for trust in TRUSTS:
        law = Reference.fit("", [m for m in results if m.setting.trust != trust])
        runs: dict[Setting, list[Measurement]] = {}
        for one in (m for m in results if m.setting.trust == trust):
            runs.setdefault(replace(one.setting, seed=0), []).append(one)
        for one, *more in runs.values():
            auroc = [m.auroc for m in (one, *more)]
            spread = float(np.std(auroc, ddof=1)) if more else math.nan
            error = abs(law.auroc(one.patients, one.ratio) - float(np.mean(auroc)))
            errors.append(HeldOut(one, error, spread * math.sqrt(2 / (math.pi * len(auroc)))))
    return errors


def print_errors(settings: str, law: Reference, errors: list[HeldOut]) -> None:
    line = {
        "figure": "planner_mean_absolute_error",
        "task": law.name,
        "method": law.method,
        "settings": settings,
        "number": len(errors),
        "value": round(float(np.mean([one.error for one in errors])), 5),
        "of_a_perfect_prediction": round(float(np.mean([one.perfect for one in errors])), 5),
    }
    print(json.dumps(line), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    grid = Grid(
        epsilon=(0.25, 0.5, 1.0, 2.0, 4.0, 8.0, NO_PRIVACY),
        trust=TRUSTS,
        unit=("patient",),
        sites=(3, 10),
        alpha=(EVEN,),
        method=("gradient", "one-shot"),
        patients=(100, 250, 1000, None),
        seeds=6,
    )
    shipped = {}
    for name, data in TASKS.items():
        sizes = (100, 250, None) if name == "breast-ultrasound" else grid.patients
        study = Study().with_changes({"study": {"name": name}, "data": data})
        results = sweep(folder / name, study, replace(grid, patients=sizes), resume=(folder / name).exists())
        laws = Reference.fit_each(name, results)
        for method, law in laws.items():
            errors = held_out_errors([m for m in results if m.setting.method == method])
            print_errors("all", law, errors)
            print_errors("ratio_above_b", law, [one for one in errors if one.measured.ratio > law.noise])
        shipped[name] = {method: law.to_dict() for method, law in laws.items()}
    write_json(SHIPPED, {"made_by": "python benchmarks/references.py FOLDER", "references": shipped})


if __name__ == "__main__":
    main()
