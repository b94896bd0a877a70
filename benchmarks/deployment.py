"""A real federation on this machine: what it costs beside the learner, and that it learns as well as one process.

Eight programs: three site services, three nodes, the SuperLink, the coordinator; TLS and node authentication on. The
toy study has tiny images and a linear model. The other is the main job, chest X-rays of three hospitals with the
default features and a linear head, 20 rounds at epsilon 1. Prints one JSON line a figure.

    python benchmarks/deployment.py          # needs FEDVEIL_DATA, default ../shared/data; the toy study does without
    python benchmarks/deployment.py --only toy
"""

import argparse
import functools
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from safetensors.numpy import load_file
from tests.deploy import test_gate as attacks
from tests.deploy import town as programs
from tests.deploy.cohorts import LUNGS, deal_lungs
from tests.deploy.hospital import SITES, edit
from tests.deploy.town import Town
from threadpoolctl import threadpool_limits

from fedveil.deploy.flower.carrier import FlowerCarrier
from fedveil.learning import CentredLearner
from fedveil.study import RunDirectory, Study, run

DATA = Path(os.environ.get("FEDVEIL_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
ROUNDS = 20
LOCAL_RUNS, WIRE_RUNS = 10, 3
REQUESTS = 1000
PATIENCE = programs.DEADLINE = 1800


def tell(figure: str, value: float, unit: str) -> None:
    """Print one figure."""
    print(json.dumps({"figure": figure, "value": round(value, 4), "unit": unit}), flush=True)


def on_the_wire(town: Town, trust: str, name: str = "", **study: Any) -> tuple[float, float]:
    """Median seconds of a round, the first left out since sessions are set up in it, and the model's AUROC."""
    name = name or f"bench-{trust}"
    town.coordinate(name, rounds=ROUNDS, trust=trust, **study)
    town.approve(name)
    result: Any = town.finish(name)
    seconds = [float(str(entry["seconds"])) for entry in town.rounds(name)[1:]]
    return statistics.median(seconds), result["metrics"]["test"]["auroc"]


def toy(engine: str = "flower") -> None:
    over = "" if engine == "flower" else f"_{engine}"
    with tempfile.TemporaryDirectory() as folder:
        town = Town(Path(folder), engine=engine)
        try:
            town.open()
            started = time.perf_counter()
            tell(f"seconds_per_round_3_sites{over}", on_the_wire(town, "site")[0], "s")
            tell(f"seconds_first_study{over}", time.perf_counter() - started, "s")
            tell(f"seconds_per_round_3_sites_secagg{over}", on_the_wire(town, "secure-aggregation")[0], "s")
            tell(f"mebibytes_node_toy{over}", mebibytes(town.processes["north.node"].pid), "MiB")
        finally:
            town.close()


def absent() -> None:
    """A fourth hospital disappears in the middle of a study: its first round, and the slowest later one."""
    names = (*SITES, "east")
    with tempfile.TemporaryDirectory() as folder:
        town = Town(Path(folder), names=names)
        try:
            town.enrol(names)
            edit(town.coordinator / "federation.toml", wait_for_absent=8)
            town.open(names)
            town.coordinate("absent", rounds=ROUNDS, trust="site", min_sites=3)
            town.approve("absent")
            town.in_round("absent", 2, "east")
            town.kill("east.service")
            town.kill("east.node")
            town.finish("absent")
            rounds = town.rounds("absent")
        finally:
            town.close()
    without = [float(str(entry["seconds"])) for entry in rounds if "east" not in str(entry["sites"])]
    tell("seconds_absent_hospital_first_round", without[0], "s")
    tell("seconds_absent_hospital_later_rounds", max(without[1:]), "s")


def mebibytes(process: int, field: str = "VmRSS") -> float:
    """Memory of a process by ``/proc``: resident now (VmRSS), or at most so far (VmHWM)."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def memory() -> None:
    """What the programs of the largest hospital (chest X-rays, default features) and the coordinator hold."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        deal_lungs(DATA / "kermany_cxr" / "kermany_cxr_64.npz", folder, SITES)
        sizes = {site: len(np.load(folder / f"{site}.npz")["labels"]) for site in SITES}
        largest = max(sizes, key=lambda site: sizes[site])
        town = Town(folder, cohorts=folder, delta=1e-5, max_units=5000)
        edit(town.coordinator / "federation.toml", wait_for_approval=PATIENCE)
        try:
            town.open()
            for run in ("first", "again"):
                town.coordinate(run, template=LUNGS, rounds=ROUNDS, trust="site", epsilon=1.0)
                town.approve(run)
                town.after_round(run, ROUNDS - 1)
                held = {key: process.pid for key, process in town.processes.items()}
                cached = "" if run == "first" else "_cached"
                tell(f"mebibytes_site_service{cached}", mebibytes(held[f"{largest}.service"]), "MiB")
                tell(f"mebibytes_coordinator{cached}", mebibytes(held["coordinator"], "VmHWM"), "MiB")
                town.finish(run)
                for site in SITES:  # the second time, features come from the cache
                    town.kill(f"{site}.service")
                    town.serve(site)
            tell("mebibytes_node", mebibytes(held[f"{largest}.node"]), "MiB")
            tell("images_of_that_site", sizes[largest], "images")
        finally:
            town.close()


def hostile() -> None:
    """1,000 requests of strangers to a SuperLink, bodies up to 400 MB, by 8 callers at once: its memory."""
    with tempfile.TemporaryDirectory() as name:
        federation = attacks.found(Path(name))
        with FlowerCarrier(federation.link, federation.nodes()):
            process = attacks.process_of(federation)
            before = attacks.memory(process, "VmRSS")
            with ThreadPoolExecutor(8) as pool:
                statuses = Counter(pool.map(functools.partial(attack, federation), range(REQUESTS)))
            after, most = attacks.memory(process, "VmRSS"), attacks.memory(process, "VmHWM")
    print(json.dumps({"answers": dict(statuses)}), flush=True)
    tell("superlink_mebibytes_before", before / 1024, "MiB")
    tell("superlink_memory_after_1000_hostile_requests", after / before, "times before")
    tell("superlink_memory_during_1000_hostile_requests", most / before, "times before")


def attack(federation: Any, number: int) -> str:
    """One request of a stranger: any path, any size, with a length, in chunks, or endless headers."""
    paths = (*attacks.CONTROL, *sorted(attacks.NODE_CALLS))
    path, size = paths[number % len(paths)], 10 ** (number % 9) * 4
    if number % 10 == 9:
        return attacks.send(federation, b"GET / HTTP/1.1\r\nx: " + b"y" * size, 0)
    chunked = f"transfer-encoding: chunked\r\n\r\n{size:x}\r\n"
    stated = chunked if number % 2 else f"content-length: {size}\r\n\r\n"
    return attacks.send(federation, f"POST {path} HTTP/1.1\r\nhost: x\r\n{stated}".encode(), size)


class Clock:
    """Seconds of each call of a function."""

    def __init__(self) -> None:
        self.calls: list[float] = []

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with the time of each call noted."""

        @functools.wraps(function)
        def timed(*arguments: Any, **options: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                self.calls.append(time.perf_counter() - started)

        return timed


def identical(one: Path, other: Path) -> bool:
    """Whether two runs released the same model, bit for bit."""
    first, second = (load_file(run / "model.safetensors") for run in (one, other))
    return first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)


def in_one_process(
    town: Town, folder: Path, number: object, trust: str = "secure-aggregation"
) -> tuple[float, float]:
    """AUROC of the same study without a wire, and the learner's seconds in a round at the slowest hospital."""
    clock, plain = Clock(), CentredLearner.contribution
    CentredLearner.contribution = clock.around(plain)  # type: ignore[method-assign]
    try:
        settings: dict[str, Any] = {"trust": trust, "rounds": ROUNDS, "epsilon": 1.0}
        study = Study.load(town.study(f"local-{number}", template=LUNGS, **settings))
        study = study.with_changes({"data": {"source": str(folder / "whole.npz")}})
        result = run(RunDirectory.create(folder / f"local-{number}", study))
    finally:
        CentredLearner.contribution = plain  # type: ignore[method-assign]
    rounds = [clock.calls[start : start + len(SITES)] for start in range(0, len(clock.calls), len(SITES))]
    return result["metrics"]["test"]["auroc"], statistics.median(max(calls) for calls in rounds)


def lungs() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        deal_lungs(DATA / "kermany_cxr" / "kermany_cxr_64.npz", folder, SITES)
        town = Town(
            folder, cohorts=folder, delta=1e-5, max_units=5000, epsilon=math.inf
        )  # one study has no privacy
        edit(town.coordinator / "federation.toml", wait_for_approval=PATIENCE)
        os.environ["FEDVEIL_CACHE"] = str(folder / "cache")
        try:
            town.open()
            site, _ = on_the_wire(town, "site", template=LUNGS, epsilon=1.0)
            wired = [
                on_the_wire(town, "secure-aggregation", name=f"wire-{k}", template=LUNGS, epsilon=1.0)
                for k in range(WIRE_RUNS)
            ]
            on_the_wire(town, "none", template=LUNGS, epsilon=1.0)
        finally:
            town.close()
        local = [in_one_process(town, folder, number) for number in range(LOCAL_RUNS)]
        with threadpool_limits(1):  # as the hospitals' programs have; threads add up in another order
            in_one_process(town, folder, "none", "none")
        same = identical(folder / "bench-none", folder / "local-none")
    learner = statistics.median(seconds for _, seconds in local)
    found = [auroc for auroc, _ in local]
    masked = statistics.median(seconds for seconds, _ in wired)
    tell("auroc_wire", statistics.mean(auroc for _, auroc in wired), "AUROC")
    tell("auroc_wire_std", statistics.stdev(auroc for _, auroc in wired), "AUROC")
    tell("auroc_in_process", statistics.mean(found), "AUROC")
    tell("auroc_in_process_std", statistics.stdev(found), "AUROC")
    tell("model_identical_without_noise", float(same), "1 if bit for bit")
    tell("seconds_learner_a_round", learner, "s")
    tell("seconds_per_round_3_sites_lungs", site - learner, "s")
    tell("seconds_per_round_3_sites_lungs_secagg", masked - learner, "s")


def main() -> None:
    """Run both studies, or the toy only."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--only",
        choices=["toy", "nvflare", "absent", "hostile", "memory", "lungs"],
        help="one part; the last two need data",
    )
    only = parser.parse_args().only
    parts = {
        "toy": toy,
        "nvflare": functools.partial(toy, "nvflare"),
        "absent": absent,
        "hostile": hostile,
        "memory": memory,
        "lungs": lungs,
    }
    for name, part in parts.items():
        if only in (None, name):
            part()


if __name__ == "__main__":
    main()
