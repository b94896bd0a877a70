"""Networks trained by five hospitals on real chest X-rays; one JSON line a figure.

    python benchmarks/deep_federation.py                      # needs FEDVEIL_DATA, default ../shared/data
    python benchmarks/deep_federation.py --runs 1 --only cnn_secagg_eps8

Each figure is the mean test AUROC over runs with different seeds, unit patient, delta 1e-5. Settings were chosen on
a validation part of the training patients; docs/networks.md says what the test split was looked at for.
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from fedveil.study import RunDirectory, Study, run

DATA = Path(os.environ.get("FEDVEIL_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
PATIENTS = 2800  # roughly how many take part: a public constant, for local steps

Tables = dict[str, dict[str, object]]

CNN: Tables = {"data": {"image_size": 28}, "model": {"network": "cnn"}}
FINETUNE: Tables = {"data": {"image_size": 64}, "model": {"network": "efficientnet-lite0"}}
AVERAGING = {"method": "averaging", "units": PATIENTS}
FIGURES: dict[str, tuple[Tables, dict[str, object], str, float]] = {
    "cnn_none": (CNN, {}, "none", 8.0),
    "cnn_secagg_eps8": (CNN, {}, "secure-aggregation", 8.0),
    "cnn_averaging_site_eps8": (CNN, AVERAGING, "site", 8.0),
    "finetune_secagg_eps3": (FINETUNE, {}, "secure-aggregation", 3.0),
    "cnn_secagg_eps1": (CNN, {}, "secure-aggregation", 1.0),
}


def study(name: str, seed: int) -> Study:
    """The study behind one figure."""
    tables, training, trust, epsilon = FIGURES[name]
    values: Tables = {
        "study": {"name": name.replace("_", " "), "seed": seed},
        "data": {
            "source": str(DATA / "kermany_cxr" / "kermany_cxr_64.npz"),
            "positive": ["bacteria", "virus"],
            "sites": {"count": 5},
            **tables["data"],
        },
        "model": tables["model"],
        "training": training,
        "privacy": {"trust": trust, "epsilon": epsilon, "delta": 1e-5, "unit": "patient"},
        "federation": {"max_units": 2000},
        "report": {"examples": 0},
    }
    return Study().with_changes(values)


def figure(name: str, values: list[float], unit: str, **more: Any) -> None:
    line = {"figure": name, "value": round(statistics.mean(values), 4), "unit": unit, "runs": len(values)}
    print(json.dumps(line | {"each": [round(value, 4) for value in values]} | more), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", nargs="*", choices=FIGURES, default=list(FIGURES))
    arguments = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="fedveil-bench-"))
    os.environ.setdefault("FEDVEIL_CACHE", str(scratch / "cache"))
    try:
        for name in arguments.only:
            started = time.perf_counter()
            results = [
                run(RunDirectory.create(scratch / f"{name}-{seed}", study(name, seed)))
                for seed in range(arguments.runs)
            ]
            tests = [result["metrics"]["test"] for result in results]
            spent = max(result["guarantee"]["epsilon"] for result in results)
            seconds = round((time.perf_counter() - started) / arguments.runs, 1)
            figure(f"auroc_{name}", [t["auroc"] for t in tests], "AUROC", epsilon=spent, seconds=seconds)
            figure(f"balanced_accuracy_{name}", [t["balanced_accuracy"] for t in tests], "fraction")
    finally:
        shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
