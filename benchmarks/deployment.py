"""What a real federation costs: seconds a round of three hospitals over Flower, TLS and node authentication
on.

Eight programs on this machine: three site services, three nodes, the SuperLink, the coordinator. The images
are tiny and the model is linear, so that what is measured is everything but the learner. Run from the
project's root: ``python benchmarks/deployment.py``. Prints one JSON line a figure.
"""

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.deploy.town import Town

ROUNDS = 20


def seconds_per_round(town: Town, trust: str) -> float:
    """Median over the rounds of one study; the first is left out, since secure aggregation is set up in it."""
    run = f"bench-{trust}"
    town.coordinate(run, rounds=ROUNDS, trust=trust)
    town.approve(run)
    town.finish(run)
    return statistics.median(float(str(entry["seconds"])) for entry in town.rounds(run)[1:])


def tell(figure: str, value: float, unit: str) -> None:
    """Print one figure."""
    print(json.dumps({"figure": figure, "value": round(value, 3), "unit": unit}), flush=True)


def main() -> None:
    """Start a federation, run a study under each trust, stop it."""
    with tempfile.TemporaryDirectory() as folder:
        town = Town(Path(folder))
        try:
            town.open()
            started = time.perf_counter()
            tell("seconds_per_round_3_sites", seconds_per_round(town, "site"), "s")
            tell("seconds_first_study", time.perf_counter() - started, "s")
            tell("seconds_per_round_3_sites_secagg", seconds_per_round(town, "secure-aggregation"), "s")
        finally:
            town.close()


if __name__ == "__main__":
    main()
