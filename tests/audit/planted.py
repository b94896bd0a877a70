"""Twenty faults that change what leaves a hospital, or its price, planted one at a time: an audit has to find each.

Each fault is planted by patching the product; the audit knows nothing of it. It runs a hospital, or a federation, as
an attacker would, and compares what it can tell apart with what the ledger says was spent. Without the fault, the
same audit must find nothing. Those of `tests.neighbours.planted` move a sum by more than its bound; here are those that
change the law of what is released, or what is charged for it.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from tests.audit import faults
from tests.audit.masked import DIMENSION, Federation
from tests.audit.rig import EVERYTHING, Asked, Cohort, Hospital

from fedveil.audit.claims import Claim, EpsilonClaim
from fedveil.audit.mechanisms.neighbours import Neighbours
from fedveil.audit.mechanisms.search import MechanismAudit, audit_mechanism

__all__ = ["FAULTS", "Fault"]

STATISTICS, TRAINING, CALIBRATION, EVALUATION = EVERYTHING
NOTHING = EpsilonClaim(0.0, 0.0)
Stack = contextlib.ExitStack


@dataclass(frozen=True)
class Look:
    """What an audit runs, and the claim that it tests."""

    mechanism: Callable[[Any], object]
    claim: Claim
    neighbours: Neighbours


@dataclass(frozen=True)
class Fault:
    """A fault, how it is planted, and where an audit looks.

    Attributes:
        words: what is wrong.
        plant: patches the product for as long as the stack is open.
        look: sets up what is attacked, with or without the fault.
        runs: outputs of each input that the audit compares.
        quick: whether the default tests look for it too.
    """

    words: str
    plant: Callable[[Stack], None]
    look: Callable[[Stack], Look]
    runs: int = 1000
    quick: bool = False

    @property
    def name(self) -> str:
        """Of the function that plants it."""
        return self.plant.__name__

    def audit(self, *, planted: bool = True, confidence: float = 0.99) -> MechanismAudit:
        """Audit the product with the fault, or without it."""
        with contextlib.ExitStack() as stack:
            if planted:
                self.plant(stack)
            look = self.look(stack)
            return audit_mechanism(
                look.mechanism,
                look.claim,
                neighbours=[look.neighbours],
                runs=self.runs,
                confidence=confidence,
            )


def hospital(
    *asked: Asked, few: bool = False, alike: bool = False, **settings: Any
) -> Callable[[Stack], Look]:
    """One hospital, without and with one patient of many images, which all show pneumonia.

    Args:
        asked: the attacker's requests.
        few: beside a single other patient, rather than eight.
        alike: whether the others all have the other class; otherwise half of them do.
        settings: of `Hospital`.
    """

    def look(stack: Stack) -> Look:
        attacked = stack.enter_context(Hospital(asked, **settings))
        own, *ill = attacked.patients(1)
        healthy, rest = attacked.patients(0)[::-1], ill[-4:]
        others = healthy[:1] if few else healthy[:8] if alike else [*healthy[:4], *rest]
        less = Cohort(tuple(others), tuple(healthy[10:14]))
        more = Cohort((*less.trained, own), less.tested)
        return Look(attacked.answer, attacked.claim(less), Neighbours("one patient more", less, more))

    return look


def untouched(*asked: Asked, **settings: Any) -> Callable[[Stack], Look]:
    """The same where the patient has no part in the release, so that nothing may be found."""
    see = hospital(*asked, **settings)

    def look(stack: Stack) -> Look:
        seen = see(stack)
        return Look(seen.mechanism, NOTHING, seen.neighbours)

    return look


def federation(direction: str, **settings: Any) -> Callable[[Stack], Look]:
    """Masked sums, with one patient more at the clip norm: along each coordinate in turn, or along all."""

    def look(stack: Stack) -> Look:
        attacked = stack.enter_context(Federation(**settings))
        extra = np.full((1, DIMENSION), DIMENSION**-0.5)
        less = np.zeros((1, DIMENSION))
        mechanism = attacked.each if direction == "each" else attacked.total
        more = np.concatenate([less, extra])
        return Look(mechanism, attacked.claim(), Neighbours("one more", less, more))

    return look


def words_of_one(stack: Stack) -> Look:
    """The masked words of one hospital, which reveal nothing, whatever its patients are."""
    attacked = stack.enter_context(Federation(sites=3))
    along = np.tile(np.eye(1, DIMENSION), (900, 1))
    return Look(attacked.masked, NOTHING, Neighbours("the opposite of all", -along, along))


def _faults() -> Iterator[Fault]:
    shares = {"curious": "site-2", "silent": ("site-4",), "noise": 0.5}
    yield Fault("half the noise", faults.half_the_noise, hospital(TRAINING), 800, True)
    yield Fault("noise seeded by the study", faults.noise_seeded_by_the_study, hospital(TRAINING), 200, True)
    yield Fault("one noise share too few", faults.one_share_too_few, federation("each", **shares), 4000)
    yield Fault("clip per image", faults.clip_per_image, hospital(TRAINING), 300, True)
    yield Fault("clip per batch", faults.clip_per_batch, hospital(TRAINING), 400)
    yield Fault(
        "a margin by the largest patient",
        faults.margin_by_the_largest_patient,
        hospital(Asked("training", parameters="rare"), alike=True),
        400,
    )
    yield Fault(
        "sampling that is not done", faults.sampling_that_is_not_done, hospital(TRAINING, rate=0.1), 600
    )
    yield Fault(
        "normaliser by private count", faults.normaliser_by_private_count, hospital(TRAINING, few=True), 400
    )
    yield Fault(
        "statistics uncharged",
        faults.statistics_that_are_not_charged,
        hospital(STATISTICS, TRAINING, statistics=0.7),
    )
    yield Fault("an image counted twice", faults.an_image_counted_twice, hospital(TRAINING))
    yield Fault(
        "threshold by exact counts", faults.threshold_by_exact_counts, hospital(CALIBRATION), 200, True
    )
    yield Fault("31-bit masks", faults.masks_of_31_bits, words_of_one, 1500)
    yield Fault(
        "rounding without its sensitivity",
        faults.rounding_without_its_sensitivity,
        federation("all", **shares),
        400,
    )
    yield Fault(
        "a kept seed", faults.kept_seed, hospital(TRAINING, Asked("training", 2, "line"), rounds=2), 200, True
    )
    yield Fault(
        "drop-out without enough shares",
        faults.drop_out_without_enough_shares,
        federation("each", min_honest=3, **shares),
        4000,
    )
    yield Fault("wrong unit", faults.wrong_unit, hospital(STATISTICS), 400)
    yield Fault("noise added before clipping", faults.noise_before_clipping, hospital(TRAINING), 400)
    yield Fault("a buffer that leaks", faults.a_buffer_that_leaks, hospital(TRAINING), 200, True)
    yield Fault(
        "evaluation on training patients",
        faults.evaluation_on_training_patients,
        untouched(EVALUATION, evaluation=0.6),
    )
    yield Fault("a repeated round for free", faults.a_repeated_round_for_free, hospital(*[TRAINING] * 4))


FAULTS = {fault.name: fault for fault in _faults()}
