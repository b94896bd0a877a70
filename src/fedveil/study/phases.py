"""How the budget of training is spent over its rounds, and where training may stop early.

Training is cut into `PHASES` phases. With `privacy.spending` r the budget of a round, in mu squared, grows
geometrically from phase to phase, r times from the first to the last. A round with weight w (its budget over the mean)
has noise multiplier ``z / sqrt(w)``: over all rounds the sum of ``1 / z^2`` is what it is for even spending, and so is
the price (at full participation Gaussian mechanisms add up in mu squared). A round's step is w times as long: where
gradients stay alike, that weighs them by the inverse of their noise variance, and the model comes out as noisy as with
even spending.

Where `privacy.progress_share` pays for checks, there is one after every phase but the last, see `stops`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedveil.federation import PROGRESS, TRAINING, Terms, phase_name
from fedveil.study.settings import Study

__all__ = ["Check", "Phase", "checks", "make_phases", "notes", "stops"]

PHASES = 5
"""Fewer could not stop early by much; more would leave each check less of the budget."""
UNSURE = 0.01
"""Standard deviation of a check beyond which it tells little: accuracy seldom grows by more from phase to phase."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """Rounds of training in a row.

    Attributes:
        end: rounds that are finished when it ends.
        weight: budget of each of its rounds over that of the mean round.
        release: name of the release that its rounds belong to.
        before: rounds before the first of that release.
        rounds: its own.
    """

    end: int
    weight: float
    release: str
    before: int
    rounds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """A noisy check of progress.

    Attributes:
        round: rounds that were finished.
        accuracy: share of the training units that the model had right, under equal class frequencies; noise may take
            it out of [0, 1]. Their number is the released or stated one, the same in all checks.
        std: standard deviation of the noise in it, beside that number's.
    """

    round: int
    accuracy: float
    std: float


def make_phases(study: Study) -> tuple[Phase, ...]:
    """The phases of a study's training; all belong to one release where every round costs the same.

    >>> study = Study.parse("[privacy]\\nspending = 0.25")
    >>> [(phase.rounds, round(phase.weight, 2), phase.release) for phase in make_phases(study)][::2]
    [(6, 1.78, 'training'), (6, 0.89, 'training-3'), (6, 0.44, 'training-5')]
    """
    rounds, spending = study.training.rounds, study.privacy.spending
    count = min(PHASES, rounds)
    ends = np.rint(np.linspace(0, rounds, count + 1)).astype(int)
    sizes = np.diff(ends)
    growth = spending ** np.linspace(0, 1, count)
    weights = growth * rounds / (sizes @ growth)
    apart = spending != 1
    return tuple(
        Phase(
            end=int(ends[k + 1]),
            weight=float(weights[k]),
            release=phase_name(k + 1) if apart else TRAINING,
            before=int(ends[k]) if apart else 0,
            rounds=int(sizes[k]),
        )
        for k in range(count)
    )


def checks(study: Study) -> int:
    """How many checks of progress a study plans."""
    return len(make_phases(study)) - 1 if study.privacy.progress_share > 0 else 0


def stops(found: Sequence[Check]) -> bool:
    """Whether training stops after these checks: the last one is no better than one before it.

    Post-processing of what was released, so any rule would do. The stated guarantee stays that of the whole plan: when
    to stop depends on releases, and no smaller total could be promised beforehand. What the rounds that are left out
    would have cost is not charged, and stays in the hospitals' budgets.
    """
    return len(found) > 1 and found[-1].accuracy <= max(one.accuracy for one in found[:-1])


def notes(terms: Terms, units: int) -> list[str]:
    """What speaks against a planned study's checks."""
    planned = next((one for one in terms.releases if one.name == PROGRESS), None)
    if planned is None:
        return []
    mechanism = planned.mechanism
    std = math.sqrt(terms.noise_variance(mechanism, len(terms.sites))) / (units * mechanism.sampling_rate)
    if std <= UNSURE:
        return []
    return [
        f"A check of progress knows the model's accuracy to {std:.1%} (standard deviation) only: whether training "
        "stops early is left to chance. Raise privacy.progress_share or epsilon, or set progress_share to 0."
    ]
