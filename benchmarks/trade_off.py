"""How accuracy trades against privacy on real images; one JSON line a figure, the mean of --runs runs.

    python benchmarks/trade_off.py             # needs FEDVEIL_DATA, default ../shared/data
    python benchmarks/trade_off.py --runs 2    # a quick look

Chest X-rays (normal against pneumonia) and breast ultrasound at the program's defaults, delta 1e-5 per patient,
hospitals by Dirichlet(0.5) unless said otherwise. The test split was not untouched while the defaults were chosen:
docs/trade-off.md says what it was used for. Ends with the time that a sweep of 7 x 3 x 2 x 4 settings takes with cached
features, and with the planner's error on it.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fedveil.study import Silent, Study
from fedveil.study.pipeline import make_task
from fedveil.study.prepare import prepare
from fedveil.sweeps import EVEN, NO_PRIVACY, Grid, Measurement, Setting, measure, sweep
from references import held_out_errors

DATA = Path(os.environ.get("FEDVEIL_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
CHEST = {"source": str(DATA / "kermany_cxr" / "kermany_cxr_64.npz"), "positive": ["bacteria", "virus"]}
BREAST = {"source": str(DATA / "breastmnist" / "breastmnist.npz")}
BASE = Setting(epsilon=1.0, trust="secure-aggregation", unit="patient", sites=5, alpha=0.5)
FEATURES = ("efficientnet-lite0", "scattering", "pixels")

Results = dict[Setting, list[Measurement]]


def figure(name: str, value: float, unit: str, **more: object) -> None:
    print(json.dumps({"figure": name, "value": round(value, 5), "unit": unit} | more), flush=True)


def mean(results: Sequence[Measurement], metric: str = "auroc") -> float:
    return statistics.mean(getattr(one, metric) for one in results)


def report(name: str, results: Sequence[Measurement], metric: str = "auroc") -> None:
    values = [getattr(one, metric) for one in results]
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    unit = "AUROC" if metric == "auroc" else "fraction"
    figure(name, mean(results, metric), unit, sd=round(spread, 5), runs=len(values))


def run_all(data: dict[str, object], settings: Sequence[Setting], runs: int, **model: object) -> Results:
    """Every setting ``runs`` times; without privacy it comes out the same each time, so once."""
    study = Study().with_changes({"study": {"name": "trade-off"}, "data": data, "model": model})
    wanted = [replace(s, seed=k) for s in settings for k in range(1 if s.trust == "none" else runs)]
    found: Results = {}
    for one in measure(make_task(study, prepare(study).dataset, Silent()), wanted):
        found.setdefault(replace(one.setting, seed=0), []).append(one)
    return found


def chest(runs: int) -> None:
    bare = replace(BASE, epsilon=NO_PRIVACY, trust="none")
    pooled = replace(BASE, trust="server", sites=1, alpha=EVEN)
    image = replace(BASE, unit="image")
    site3, site3_20 = (replace(BASE, epsilon=3.0, trust="site", sites=sites) for sites in (5, 20))
    quarter = replace(BASE, epsilon=0.25)
    spread = {(n, a): replace(BASE, sites=n, alpha=a) for n in (3, 10, 50) for a in (EVEN, 0.3)}
    found = run_all(CHEST, [BASE, bare, pooled, image, site3, site3_20, quarter, *spread.values()], runs)
    report("auroc_secagg_eps1", found[BASE])
    report("balanced_accuracy_secagg_eps1", found[BASE], "balanced_accuracy")
    report("auroc_without_privacy", found[bare])
    figure("auroc_loss_eps1", mean(found[bare]) - mean(found[BASE]), "AUROC")
    report("auroc_site_eps3", found[site3])
    report("auroc_site_eps3_20_hospitals", found[site3_20])
    report("auroc_secagg_eps025", found[quarter])
    report("auroc_pooled_server_eps1", found[pooled])
    for (sites, alpha), setting in spread.items():
        name = f"federation_tax_{sites}_hospitals_{'iid' if alpha == EVEN else 'dirichlet03'}"
        figure(name, mean(found[pooled]) - mean(found[setting]), "AUROC")
    figure("auroc_patient_minus_image", mean(found[BASE]) - mean(found[image]), "AUROC")


def one_round(runs: int) -> None:
    masked = replace(BASE, method="one-shot")
    site = replace(masked, trust="site")
    found = run_all(CHEST, [masked, site], runs)
    report("auroc_one_round_secagg_eps1", found[masked])
    report("auroc_one_round_site_eps1", found[site])


def breast(runs: int) -> None:
    epsilons = (1.0, 3.0, 8.0)
    for features in FEATURES:
        found = run_all(BREAST, [replace(BASE, epsilon=e) for e in epsilons], runs, features=features)
        for epsilon in epsilons:
            report(f"auroc_breast_{features}_eps{epsilon:g}", found[replace(BASE, epsilon=epsilon)])


def whole_sweep() -> None:
    grid = Grid(
        epsilon=(0.25, 0.5, 1.0, 2.0, 4.0, 8.0, NO_PRIVACY),
        trust=("site", "secure-aggregation", "server"),
        unit=("patient", "image"),
        sites=(3, 5, 10, 20),
        alpha=(0.5,),
    )
    study = Study().with_changes({"study": {"name": "trade-off"}, "data": CHEST})
    make_task(study, prepare(study).dataset, Silent())  # the figure is with cached features
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        results = sweep(Path(folder) / "sweep", study, grid)
        figure("seconds_sweep", time.perf_counter() - started, "s", settings=len(results))
    errors = [one.error for one in held_out_errors(results)]
    figure("planner_mean_absolute_error", statistics.mean(errors), "AUROC", settings=len(errors))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10)
    runs = parser.parse_args().runs
    chest(runs)
    one_round(runs)
    breast(runs)
    whole_sweep()


if __name__ == "__main__":
    main()
