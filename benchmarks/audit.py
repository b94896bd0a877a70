"""What attacks prove about fedveil's own code, and how often they are wrong about it. Two cores, a few minutes a row.

python benchmarks/audit.py                    # every row
python benchmarks/audit.py white one:10 black demo network alarms:20
"""

import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.random import Generator

from fedveil.audit import Attacker, Attempt, Effort, Setup, audit
from fedveil.audit.attacker import Trials
from fedveil.audit.black_box import ReleasedModel
from fedveil.audit.claims import MechanismClaim
from fedveil.audit.mechanisms.search import MechanismAudit, audit_mechanism
from fedveil.audit.one_run import ManyCanaries
from fedveil.audit.white_box import NoisySums, WholeProtocol
from fedveil.privacy import Mechanism, most_true_positives, release, secure_generator
from fedveil.study import Silent, Study, make_agreement
from fedveil.study.pipeline import make_task
from fedveil.study.prepare import prepare

ONE_SUM = '[training]\nmethod = "one-shot"\n[privacy]\ncalibration_share = 0\n'


WIDE = '[data]\nimage_size = 32\n[model]\nfeatures = "pixels@32"\n[privacy]\n'
CNN = """
[data]
image_size = 28
[data.sites]
count = 3
[model]
network = "cnn"
[privacy]
epsilon = 8
[training]
"""
FOLDER = tempfile.TemporaryDirectory(prefix="fedveil-audit-")
TINY = """
[data]
image_size = 8
[data.sites]
count = 3
[model]
features = "pixels@8"
[training]
rounds = 2
[privacy]
epsilon = 4
calibration_share = 0
trust = "secure-aggregation"
"""
"""A study that takes a second: how often audits are wrong does not depend on the size of what they attack."""


def setup(text: str, attacker: Attacker, confidence: float = 0.95, **effort: int | None) -> Setup:
    """A study under one attack, with trials in a folder that nobody reads again."""
    given = Effort(**effort)  # type: ignore[arg-type]
    prepared = prepare(Study.parse(text))
    task = make_task(prepared.study, prepared.dataset, Silent())
    agreement = make_agreement(prepared.study, sites=tuple(prepared.sites), model=task.model)
    return Setup(
        prepared=prepared,
        task=task,
        agreement=agreement,
        confidence=confidence,
        attempts=attacker.most(agreement),
        trials=given.trials,
        sessions=given.sessions,
        canaries=given.canaries,
        references=given.references,
        store=fresh(),
        progress=Silent(),
    )


def fresh() -> Trials:
    return Trials(Path(tempfile.mkdtemp(dir=FOLDER.name)), {})


def show(name: str, **values: object) -> None:
    print(json.dumps({"row": name} | values), flush=True)


def bound(attempt: Attempt, significance: float) -> dict[str, float]:
    stated, plain = attempt.claim.epsilon(), attempt.plain
    lower = attempt.claim.epsilon(attempt.evidence.leak(attempt.claim, significance))
    return {
        "stated": round(stated, 3),
        "lower": round(lower, 3),
        "ratio": round(lower / stated, 3),
        "ratio_without_assumptions": round(
            plain.epsilon(attempt.evidence.leak(plain, significance)) / stated, 3
        ),
    }


def white() -> None:
    """One Gaussian sum: the statistics of a one-shot study, which use the whole budget."""
    for epsilon in (1, 4, 8):
        started = time.perf_counter()
        made = setup(ONE_SUM + f"epsilon = {epsilon}\n", NoisySums(), trials=60_000)
        (attempt,) = NoisySums().attack(made)
        show(
            f"lower_bound_over_epsilon_whitebox_eps{epsilon}",
            **bound(attempt, 1 - made.confidence),
            seconds=_since(started),
        )


def one(count: int) -> None:
    """One run of a whole study with 1000 canaries, which fit into its 1024 features; so often, by other coins.

    The run that chooses how many guesses are made is the same for all of them.
    """
    for epsilon in (4, 1, 8):
        started, attacker = time.perf_counter(), ManyCanaries()
        made, found, areas = setup(WIDE + f"epsilon = {epsilon}\n", attacker, canaries=1000), [], []
        first: np.ndarray | None = None
        for _ in range(count):
            store = fresh()
            if first is not None:
                store.get("one run.1", lambda kept=first: kept)
            (attempt,) = attacker.attack(replace(made, store=store))
            first = store.get("one run.1", list)
            found.append(bound(attempt, made.significance)["ratio"])
            areas.append(attempt.area)
        show(
            f"lower_bound_over_epsilon_one_run_eps{epsilon}",
            least=min(found),
            median=float(np.median(found)),
            all=sorted(found),
            area=round(float(np.mean(areas)), 3),
            seconds=_since(started),
        )


def black() -> None:
    """Membership of the demo study's patients, with epsilon 1 and without privacy."""
    for name, text in (("eps1", ""), ("none", '[privacy]\ntrust = "none"\n')):
        started = time.perf_counter()
        made = setup(text, ReleasedModel(), references=8)
        (attempt,) = ReleasedModel().attack(made)
        at = float(np.interp(0.01, *np.maximum.accumulate(attempt.curve, axis=0).T))
        values: dict[str, object] = {"area": round(attempt.area, 3), "tpr_at_1_percent": round(at, 3)}
        if name == "eps1":
            rates = np.linspace(0, 1, 2001)
            allowed = most_true_positives(made.agreement.mechanisms, rates)
            values |= {
                "area_allowed": round(float(np.trapezoid(allowed, rates)), 3),
                "tpr_at_1_percent_allowed": round(float(np.interp(0.01, rates, allowed)), 3),
            }
        show(f"black_box_{name}", **values, seconds=_since(started))


def demo() -> None:
    """A whole audit of the demo study."""
    _whole("audit_of_the_demo_study", '[study]\nname = "demo"\n')


def network() -> None:
    """Whole audits of a network on the phantom, of few rounds and of as many as by default."""
    for rounds in (6, 60):
        _whole(f"audit_of_a_cnn_of_{rounds}_rounds", CNN + f"rounds = {rounds}\n")


def _whole(name: str, text: str) -> None:
    started = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        result = audit(Study.parse(text), Path(folder) / "audit")
    show(
        name,
        seconds=round(result.seconds),
        processor_seconds=round(time.process_time() - started),
        stated=round(result.epsilon, 3),
        lower=round(result.lower, 3),
        contradicted=result.contradicted,
    )


def alarms(count: int) -> None:
    """Audits of the sound code at 99 % confidence: how many contradict it, by attacker."""
    started = time.perf_counter()
    wrong = sum(_sound_sum(secure_generator()).violated for _ in range(count))
    show(f"false_alarms_of_{count}", attacker="mechanism", found=wrong, seconds=_since(started))
    for attacker in (NoisySums(), ManyCanaries(), ReleasedModel(), WholeProtocol()):
        # Masks would take five times as long, and no part in how often an interval is wrong.
        text = TINY.replace("secure-aggregation", "site") if attacker.name == WholeProtocol.name else TINY
        made = setup(text, attacker, 0.99, trials=600, sessions=1, canaries=60, references=2)
        started, wrong = time.perf_counter(), 0
        for _ in range(count):
            attempts = attacker.attack(replace(made, store=fresh()))
            wrong += any(one.evidence.leak(one.claim, made.significance) > 1 for one in attempts)
        show(f"false_alarms_of_{count}", attacker=attacker.name, found=wrong, seconds=_since(started))


def _sound_sum(generator: Generator) -> MechanismAudit:
    """An audit, as of anybody's function, of a sum of four numbers of each unit, clipped, with Gaussian noise."""

    def total(contributions: list[np.ndarray]) -> np.ndarray:
        clipped = [one / max(1.0, float(np.linalg.norm(one))) for one in contributions]
        return release(np.sum(clipped, axis=0), 1.0, generator)

    claim = MechanismClaim((Mechanism(1.0, 1.0, 1),), 1e-5)
    return audit_mechanism(total, claim, dimension=4, runs=400)


def _since(started: float) -> float:
    return round(time.perf_counter() - started, 1)


def main() -> None:
    for wanted in sys.argv[1:] or ["white", "one:10", "black", "demo", "network", "alarms:100"]:
        name, _, count = wanted.partition(":")
        counted = {"one": one, "alarms": alarms}
        if name in counted:
            counted[name](int(count or 10))
        else:
            {"white": white, "black": black, "demo": demo, "network": network}[name]()


if __name__ == "__main__":
    main()
