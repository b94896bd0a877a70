"""What secure aggregation costs: seconds a round, bytes, epsilon and accuracy; one JSON line a figure.

    python benchmarks/secure_aggregation.py [--repeats 5] [--threads 2] [--runs 10]

Accuracy needs the chest X-rays in FEDVEIL_DATA (default ../shared/data); `--runs 0` leaves it out.

A round is everything between the sites' exact sums and the decoded noisy total: rounding, noise, masks, every message
as bytes, recovery, unmasking, for all sites and the server on this machine. Each figure is the median over rounds,
after one to warm up. Sites work in `--threads` threads, the server in one.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedveil.federation.secure_aggregation import (
    MaskedInput,
    SecureAggregationClient,
    SecureAggregationServer,
    Session,
    establish,
    unmask,
)
from fedveil.privacy import Guarantee, Mechanism, calibrate, epsilon, secure_generator
from fedveil.privacy.accounting.integer import IntegerMechanism
from fedveil.study import Silent, Study
from fedveil.study.pipeline import make_task
from fedveil.study.prepare import prepare
from fedveil.sweeps import Setting, measure

DATA = Path(os.environ.get("FEDVEIL_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
ROUNDS = 60
TARGET = Guarantee(1.0, 1e-5, "patient", "secure-aggregation")


def figure(name: str, value: float, unit: str, **more: float) -> None:
    print(json.dumps({"figure": name, "value": round(value, 7), "unit": unit} | more), flush=True)


class Bench:
    """A session of so many sites, each with a vector to sum, that counts the bytes that each site sends."""

    def __init__(
        self, pool: ThreadPoolExecutor, sites: int, dimension: int, sparse: bool | None = None
    ) -> None:
        self.pool = pool
        names = tuple(f"hospital-{number:03}" for number in range(sites))
        identities = {name: Ed25519PrivateKey.generate() for name in names}
        pinned = {name: key.public_key().public_bytes_raw() for name, key in identities.items()}
        self.session = Session.of("benchmark", names, rounds=ROUNDS, sparse=sparse)
        self.clients = {
            name: SecureAggregationClient(
                self.session, name, identity=identities[name], pinned=pinned, claim=lambda _: None
            )
            for name in names
        }
        self.server = SecureAggregationServer(self.session, pinned)
        self.mechanism = IntegerMechanism.fit(
            calibrate(TARGET, steps=ROUNDS),
            dimension=dimension,
            sites=sites,
            shares=self.session.min_honest,
            units=1000,
        )
        generator = np.random.default_rng(0)
        self.vectors = {
            name: (generator.standard_normal(dimension, dtype=np.float32) / np.sqrt(dimension)).astype(
                np.float32
            )
            for name in names
        }
        self.generators = {name: secure_generator() for name in names}
        self.sent = dict.fromkeys(names, 0)
        start = time.perf_counter()
        establish(self.server, self.exchange)
        self.set_up_seconds = time.perf_counter() - start
        self.set_up_bytes = self.sent[names[-1]]
        self.number = 0

    def exchange(self, messages: Mapping[str, bytes]) -> dict[str, bytes]:
        """Set-up and recovery messages to their sites and back."""
        opening = self.session.to_bytes()

        def answer(item: tuple[str, bytes]) -> tuple[str, bytes]:
            site, message = item
            client = self.clients[site]
            reply = client.announce().to_bytes() if message == opening else client.reply(message)
            self.sent[site] += len(reply)
            return site, reply

        return dict(self.pool.map(answer, messages.items()))

    def masked(self, site: str) -> bytes:
        """What a site sends first: its sum, rounded, noised, masked."""
        words = self.mechanism.encode(self.vectors[site], self.generators[site])
        message = self.clients[site].masked_input(self.number, words).to_bytes()
        self.sent[site] += len(message)
        return message

    def round(self, lost: int) -> float:
        """Seconds for a round in which the first `lost` sites send nothing."""
        self.number += 1
        sites = self.session.sites[lost:]
        start = time.perf_counter()
        aggregation = self.server.open(self.number)
        for message in self.pool.map(self.masked, sites):
            aggregation.add(MaskedInput.from_bytes(message))
        total = self.mechanism.decode(unmask(aggregation, self.exchange))
        seconds = time.perf_counter() - start
        self.check(total, sites)
        return seconds

    def check(self, total: np.ndarray, sites: tuple[str, ...]) -> None:
        """A figure for a wrong sum would be worth nothing: what is left is the noise of the survivors' shares."""
        noise = total - np.sum([self.vectors[site] for site in sites], axis=0, dtype=np.float64)
        expected = self.mechanism.mechanism.noise_std * np.sqrt(len(sites) / self.mechanism.shares)
        if not abs(noise.std() / expected - 1) < 0.1:
            raise SystemExit(f"the decoded sum is wrong: noise {noise.std()}, expected {expected}")


def rounds(bench: Bench, repeats: int, lost: int = 0) -> float:
    return statistics.median([bench.round(lost) for _ in range(1 + repeats)][1:])


def expansion(bench: Bench) -> float:
    """Bytes that one site sends in a round, and a round's part of the set-up, over four bytes a parameter."""
    site = bench.session.sites[-1]
    before = bench.sent[site]
    bench.round(0)
    return (bench.sent[site] - before + bench.set_up_bytes / ROUNDS) / (4 * bench.mechanism.dimension)


def epsilon_ratio() -> float:
    """Epsilon of the integer mechanism over that of the exact Gaussian with the same noise, both priced."""
    plain = calibrate(TARGET, steps=ROUNDS)
    integer = IntegerMechanism.fit(plain, dimension=1281, sites=5, shares=3, units=5000)
    deviation = np.sqrt(integer.shares) * integer.noise.std * integer.step
    same = Mechanism(float(deviation), plain.clip_norm, steps=ROUNDS)
    return epsilon([integer.mechanism], TARGET.delta) / epsilon([same], TARGET.delta)


def accuracy(runs: int) -> None:
    """Test AUROC of the main-job study at epsilon 1 under both trusts: masks and integer noise are those above."""
    images = {"source": str(DATA / "kermany_cxr" / "kermany_cxr_64.npz"), "positive": ["bacteria", "virus"]}
    study = Study().with_changes({"data": images, "training": {"rounds": ROUNDS}})
    settings = [
        Setting(epsilon=1.0, trust=trust, unit="patient", sites=5, alpha=0.5, seed=seed)
        for trust in ("secure-aggregation", "server")
        for seed in range(runs)
    ]
    found: dict[str, list[float]] = {}
    for one in measure(make_task(study, prepare(study).dataset, Silent()), settings):
        found.setdefault(one.setting.trust, []).append(one.auroc)
    means = {trust: statistics.mean(values) for trust, values in found.items()}
    for trust, values in found.items():
        figure(
            f"auroc_{trust.replace('-', '_')}", means[trust], "AUROC", sd=round(statistics.stdev(values), 5)
        )
    figure(
        "auroc_difference_to_server_trust", means["secure-aggregation"] - means["server"], "AUROC", runs=runs
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=10)
    options = parser.parse_args()
    with ThreadPoolExecutor(options.threads) as pool:
        costs(lambda *size, **how: Bench(pool, *size, **how), options.repeats)
    if options.runs > 1:
        accuracy(options.runs)


def costs(bench: Callable[..., Bench], repeats: int) -> None:
    large = bench(10, 1_000_000)
    figure("seconds_round_10_sites_1m", rounds(large, repeats), "s")
    figure("seconds_round_10_sites_1m_3_lost", rounds(large, repeats, lost=3), "s")
    figure("expansion", expansion(large), "ratio")
    figure("seconds_set_up_10_sites_60_rounds", large.set_up_seconds, "s")
    many = bench(100, 5_000)
    figure("seconds_round_100_sites_5k", rounds(many, repeats), "s")
    figure("seconds_round_100_sites_5k_15_lost", rounds(many, repeats, lost=15), "s")
    figure("seconds_set_up_100_sites_60_rounds", many.set_up_seconds, "s")
    complete = bench(100, 5_000, sparse=False)
    figure("seconds_round_100_sites_5k_complete_graph", rounds(complete, repeats), "s")
    small = bench(5, 1281)
    figure("milliseconds_per_site_round_5_sites", 1000 / 5 * rounds(small, repeats), "ms")
    figure("epsilon_integer_over_gaussian", epsilon_ratio(), "ratio")


if __name__ == "__main__":
    main()
