"""The main job on real chest X-rays: accuracy, time, overhead and memory; one JSON line a figure.

    python benchmarks/main_job.py            # needs FEDVEIL_DATA, default ../shared/data
    python benchmarks/main_job.py --runs 1   # a quick look

Settings are the program's defaults except for 60 rounds, where the default is 30: the time of training is asked for at
60. The test split was not untouched while the defaults were chosen; docs/trade-off.md says what it was used for.
"""

import argparse
import functools
import json
import os
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedveil.learning import CentredLearner
from fedveil.privacy.ledger import chain
from fedveil.study import RunDirectory, Study, run

DATA = Path(os.environ.get("FEDVEIL_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


def figure(name: str, value: float, unit: str) -> None:
    print(json.dumps({"figure": name, "value": round(value, 5), "unit": unit}), flush=True)


class Clock:
    """Seconds spent in the learner and in flushing ledgers, so that the rest can be told apart."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Count the time that calls of the function take."""

        @functools.wraps(function)
        def timed(*arguments: Any, **options: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                self.seconds += time.perf_counter() - started

        return timed


CLOCK = Clock()
CentredLearner.contribution = CLOCK.around(CentredLearner.contribution)  # type: ignore[method-assign]
CentredLearner.statistics = CLOCK.around(CentredLearner.statistics)  # type: ignore[method-assign]
chain._flush = CLOCK.around(chain._flush)  # type: ignore[attr-defined]


def one(scratch: Path, seed: int, trust: str, epsilon: float) -> dict[str, Any]:
    study = Study().with_changes(
        {
            "study": {"name": "kermany", "seed": seed},
            "data": {
                "source": str(DATA / "kermany_cxr" / "kermany_cxr_64.npz"),
                "positive": ["bacteria", "virus"],
            },
            "privacy": {"trust": trust, "epsilon": epsilon},
            "training": {"rounds": 60},
            "report": {"examples": 0},
        }
    )
    directory = RunDirectory.create(scratch / f"{trust}-{epsilon}-{seed}", study)
    CLOCK.seconds = 0.0
    result = run(directory)
    rounds = [json.loads(line) for line in (directory.path / "rounds.jsonl").read_text().splitlines()]
    elsewhere = sum(record["seconds"] for record in rounds) - CLOCK.seconds  # set-up is no part of a round
    result["seconds"]["overhead_per_site_round"] = elsewhere / (
        study.training.rounds * study.data.sites.count
    )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    scratch = Path(tempfile.mkdtemp(prefix="fedveil-bench-"))
    os.environ["FEDVEIL_CACHE"] = str(scratch / "cache")
    try:
        settings = (
            ("secagg_eps1", "secure-aggregation", 1.0),
            ("site_eps3", "site", 3.0),
            ("none", "none", 1.0),
        )
        for name, trust, epsilon in settings:
            results = [one(scratch, seed, trust, epsilon) for seed in range(runs)]
            test = [result["metrics"]["test"] for result in results]
            figure(f"auroc_{name}", statistics.mean(t["auroc"] for t in test), "AUROC")
            figure(
                f"balanced_accuracy_{name}", statistics.mean(t["balanced_accuracy"] for t in test), "fraction"
            )
            if name == "secagg_eps1":
                figure("seconds_features", results[0]["seconds"]["features"], "s")
                figure("seconds_training", statistics.median(r["seconds"]["training"] for r in results), "s")
                figure(
                    "overhead_ms_per_site_round",
                    statistics.median(r["seconds"]["overhead_per_site_round"] for r in results) * 1e3,
                    "ms",
                )
        figure("peak_rss_gib", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, "GiB")
    finally:
        shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
