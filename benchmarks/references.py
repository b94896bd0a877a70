"""Measure the tasks that `fedveil recommend` predicts from, and write them into the package.

    python benchmarks/references.py FOLDER        # sweeps are kept in FOLDER, and resumed from it

Needs FEDVEIL_DATA (default ../shared/data). Three runs a setting on the three tasks; accuracies are those of the test
images, so a prediction is no evidence about them. Prints one JSON line a task: the mean absolute error of the expected
AUROC (the mean of a setting's runs) at settings of one level of trust at a time, predicted from the runs of the other
two. Where nu is below b, chance decides a single run; the error is given with and without those.
"""

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path

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


def expected(results: list[Measurement]) -> list[Measurement]:
    """Each setting once, with the mean AUROC of its runs."""
    runs: dict[Setting, list[Measurement]] = {}
    for one in results:
        runs.setdefault(replace(one.setting, seed=0), []).append(one)
    return [replace(each[0], auroc=float(np.mean([m.auroc for m in each]))) for each in runs.values()]


def held_out_errors(results: list[Measurement]) -> list[tuple[Measurement, float]]:
    """Absolute errors on each level of trust, predicted from the runs of all others."""
    errors = []
    for trust in TRUSTS:
        law = Reference.fit("", [m for m in results if m.setting.trust != trust])
        left = [m for m in results if m.setting.trust == trust]
        errors += [(m, abs(law.auroc(m.patients, m.ratio) - m.auroc)) for m in expected(left)]
    return errors


def print_error(settings: str, task: str, errors: list[float]) -> None:
    line = {
        "figure": "planner_mean_absolute_error",
        "task": task,
        "settings": settings,
        "number": len(errors),
    }
    print(json.dumps(line | {"value": round(float(np.mean(errors)), 5)}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    grid = Grid(
        epsilon=(0.25, 0.5, 1.0, 2.0, 4.0, 8.0, NO_PRIVACY),
        trust=TRUSTS,
        unit=("patient",),
        sites=(5, 20),
        alpha=(EVEN,),
        method=("gradient", "one-shot"),
        patients=(100, 250, 1000, None),
        seeds=3,
    )
    fitted = {}
    for name, data in TASKS.items():
        sizes = (100, 250, None) if name == "breast-ultrasound" else grid.patients
        study = Study().with_changes({"study": {"name": name}, "data": data})
        results = sweep(folder / name, study, replace(grid, patients=sizes), resume=(folder / name).exists())
        fitted[name] = Reference.fit(name, results)
        errors = held_out_errors(results)
        noise = fitted[name].noise
        print_error("all", name, [error for _, error in errors])
        print_error("ratio_above_b", name, [error for m, error in errors if m.ratio > noise])
    command = "python benchmarks/references.py FOLDER"
    write_json(SHIPPED, {"made_by": command, "references": {k: v.to_dict() for k, v in fitted.items()}})


if __name__ == "__main__":
    main()
