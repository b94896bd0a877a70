"""Search for the cohort and the parameters under which one patient moves a sum most, for as long as it is given.

    python -m tests.neighbours.hunt --seconds 1800 --seed 1

One JSON line for each release of each kind of model: ``value`` is the largest move found, ``others`` the largest move
of everybody else's part of the sum, both as multiples of the bound that noise is calibrated to. The same kind, seed and
trial give the same figures again:

    python -m tests.neighbours.hunt --kind pixels --seed 1 --trial 17

The modules, in the order in which to read them:

    cohorts, crowds   small cohorts by hand, and cohorts that are drawn
    harness, pairs    a data set and its neighbour behind a hospital's learner, noise left off, figures measured
    spaces            parameters, in pieces that a search turns and scales, brought to what the site accepts
    kinds             every kind of model, as a study file names it
    search            one cohort, one kind: restarts, coordinate and evolutionary steps
    answers, served   what a hospital says beside its sums
    whole_numbers     sums as secure aggregation masks them
    planted           faults of earlier versions, planted again, all of which the search has to find
    checks            fixed lists of parameters for every reader of files
"""

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field

import torch
from tests.neighbours.kinds import KINDS
from tests.neighbours.search import Found, search

AT_LEAST = 1
"""Cohorts of each kind, however little time there is."""


@dataclass
class Worst:
    """The worst of one release over all cohorts."""

    moved: Found
    others: Found
    cohorts: int = 0
    tries: int = 0
    unsound: list[int] = field(default_factory=list)

    def add(self, found: Found) -> None:
        """Take one more cohort into account."""
        self.cohorts, self.tries = self.cohorts + 1, self.tries + found.tries
        if found.moved > self.moved.moved:
            self.moved = found
        if found.others > self.others.others:
            self.others = found
        if not found.sound:
            self.unsound.append(found.trial)

    def line(self) -> str:
        """One JSON line."""
        most = self.moved
        return json.dumps(
            {
                "figure": f"largest move of a sum by one unit: {most.kind}; {most.release}",
                "value": _rounded(most.moved),
                "unit": "bounds",
                "sound": not self.unsound,
                "seed": most.seed,
                "trial": most.trial,
                "cohort": most.cohort,
                "masked": _rounded(most.masked),
                "others": _rounded(self.others.others),
                "others_trial": self.others.trial,
                "rounding": most.rounding,
                "cohorts": self.cohorts,
                "tries": self.tries,
            }
        )


def _rounded(value: float) -> float:
    return float(f"{value:.6g}") if math.isfinite(value) else value


def one_cohort(name: str, seed: int, trial: int) -> list[Found]:
    """What one cohort of one kind gives; run in a process of its own."""
    torch.set_num_threads(1)
    return list(search(KINDS[name], seed, trial))


def hunt(names: list[str], seed: int, seconds: float, jobs: int) -> Iterator[Found]:
    """Cohort after cohort, all kinds in turn, until the time is over."""
    end, tasks, running = time.monotonic() + seconds, _tasks(names), set[Future[list[Found]]]()
    with ProcessPoolExecutor(jobs) as pool:
        for name, trial in tasks:
            if trial >= AT_LEAST and time.monotonic() > end:
                break
            running.add(pool.submit(one_cohort, name, seed, trial))
            if len(running) > jobs:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for one in done:
                    yield from one.result()
        for one in running:
            yield from one.result()


def _tasks(names: list[str]) -> Iterator[tuple[str, int]]:
    trial = 0
    while True:
        yield from ((name, trial) for name in names if not KINDS[name].slow or trial % 4 == 0)
        trial += 1


def collect(found: Iterable[Found]) -> dict[tuple[str, str], Worst]:
    """The worst of each release."""
    worst: dict[tuple[str, str], Worst] = {}
    for one in found:
        worst.setdefault((one.kind, one.release), Worst(one, one)).add(one)
    return worst


def main() -> int:
    """Read the arguments; 1 if anything unsound was found."""
    parser = argparse.ArgumentParser(prog="hunt", description="Look for whoever moves a sum too far.")
    parser.add_argument("--seconds", type=float, default=1800.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--trial", type=int, help="this cohort only")
    parser.add_argument("--kind", choices=sorted(KINDS), action="append", help="this kind of model only")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    names = given.kind or list(KINDS)
    if given.trial is not None:
        found: Iterable[Found] = (one for name in names for one in one_cohort(name, given.seed, given.trial))
    else:
        found = hunt(names, given.seed, given.seconds, given.jobs)
    worst = collect(found)
    for one in worst.values():
        sys.stdout.write(one.line() + "\n")
    return int(any(one.unsound for one in worst.values()))


if __name__ == "__main__":
    sys.exit(main())
