"""The white-box attacker: it sees each noisy sum, sends what it likes, and looks along the canary's own contribution.

With everything else known, the two worlds' exact sums differ by the vector d that the canary adds, and for Gaussian
noise the projection of the noisy sum on d is the most powerful test there is (Neyman and Pearson). The attacker
computes d with the sites' own code, so that d also holds what else the canary moves. It sends parameters at which d is
longest.
"""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from fedveil.audit.arena import Arena, colluders_of
from fedveil.audit.statistics import Vector
from fedveil.errors import FedveilError
from fedveil.federation import ModelState, NoisySum, OneSum, Release, Rounds, Seen
from fedveil.federation.contributions import Contributions
from fedveil.federation.noise import Calibrated
from fedveil.learning import CentredHead
from fedveil.privacy import secure_generator

__all__ = ["Aim", "aim", "draws", "rounds_of_a_session", "session"]

Indices = npt.NDArray[np.int64]
FAR = 20.0
"""Size of a logit at which a probability is almost 0 or 1."""
MOST_ROUNDS = 64
CHUNK = 1 << 21
"""Numbers drawn at once."""


@dataclass(frozen=True, slots=True, eq=False)
class Aim:
    """An attack on one release.

    Attributes:
        release: which.
        parameters: as the attacker sends them.
        direction: what the canary adds, exactly.
    """

    release: Release
    parameters: Vector
    direction: Vector

    def score(self, total: Vector) -> Vector:
        """Noisy sums (..., dimension) along the direction, in units of the clip norm."""
        length = float(np.linalg.norm(self.direction))
        found: Vector = total @ self.direction / (length * self.release.mechanism.clip_norm)
        return found

    def evidence(self, scores: Vector) -> Vector:
        """The log-likelihood ratio of each round, up to a constant and a positive factor."""
        mechanism = self.release.mechanism
        if mechanism.sampling_rate == 1:
            return scores
        length = float(np.linalg.norm(self.direction)) / mechanism.clip_norm
        exponent = (scores * length - length**2 / 2) / mechanism.noise_multiplier**2
        rate = mechanism.sampling_rate
        return np.asarray(np.logaddexp(np.log1p(-rate), np.log(rate) + exponent))


def aim(arena: Arena, release: Release) -> Aim | None:
    """The attack with the longest direction; None if no canary adds anything to this release."""
    found = []
    for parameters in _candidates(arena, release):
        direction = _difference(arena, release, parameters)
        if direction is not None:
            found.append(Aim(release, parameters, direction))
    best = max(found, key=lambda one: float(np.linalg.norm(one.direction)), default=None)
    return best if best is not None and best.direction.any() else None


def rounds_of_a_session(arena: Arena, release: Release) -> int:
    """Rounds of one release that the sites of one world afford."""
    count = 1
    while count < MOST_ROUNDS and arena.agreement.affords(
        {release.name: (count + 1) * release.steps_per_round}
    ):
        count += 1
    return count


def session(arena: Arena, attack: Aim, *, within: bool, rounds: int) -> list[float]:
    """Scores of some rounds in the world with the first canary or without it."""
    home, release = arena.homes[0], attack.release
    seen: list[Seen] = []
    included = np.array([within])
    colluders = colluders_of(arena.agreement, home, inside=release.noise_inside)
    with arena.open(included, seen.append, colluders) as coordinator:
        for _ in range(rounds):
            coordinator.collect(release, 1, attack.parameters)
    return [float(attack.score(arena.view(one, home))) for one in seen]


def draws(arena: Arena, attack: Aim, *, within: bool, count: int, rounds: int = 1) -> Vector:
    """Scores (count,) of executions of some rounds: the sites' sums and noise, without ledgers, requests and masks.

    Only the canary's hospital and the honest shares of the noise take part: other sums are known, and subtracted. What
    is the same in every execution is computed once; noise, and samples of units, are drawn anew by the code that sites
    run. The score of an execution is the log-likelihood ratio of its rounds, up to a constant.
    """
    release, home = attack.release, arena.homes[0]
    contributions = Contributions(home, arena.hospital(_rows(arena, release, within)), secure_generator())

    def exact() -> Vector:
        return contributions.of(release, attack.parameters, private=True)

    varies = release.noise_inside or release.mechanism.sampling_rate < 1
    fixed = None if varies else exact()
    size = max(1, CHUNK // (release.dimension * rounds))
    scores = []
    for start in range(0, count, size):
        number = min(size, count - start) * rounds
        sums = np.array([exact() for _ in range(number)]) if fixed is None else np.tile(fixed, (number, 1))
        seen = _direct(release, sums) if release.noise_inside else _protected(arena, release, sums)
        scores.append(attack.evidence(attack.score(seen)).reshape(-1, rounds).sum(axis=1))
    return np.concatenate(scores)


def _protected(arena: Arena, release: Release, sums: Vector) -> Vector:
    """Rows of exact sums with the noise that the trust level adds, independent in each row.

    Integers are drawn for all rows at once, by a mechanism for one long vector: every entry has the same noise, on a
    grid that differs by less than a millionth.
    """
    agreement, generator = arena.agreement, secure_generator()
    noise = agreement.noise_of(release)
    if release.integer is None:
        seen = noise.protect(sums, release.calibrated, generator)
        return noise.complete(np.asarray(seen, np.float64), release.mechanism)
    long = replace(release.integer, dimension=sums.size, units=max(1, release.integer.units) * len(sums))
    made = Calibrated(release.mechanism, long)
    words = noise.protect(sums.ravel(), made, generator)
    for _ in range(agreement.honest - 1):
        words = words + noise.protect(np.zeros(sums.size), made, generator)
    return long.decode(np.asarray(words, np.uint32)).reshape(sums.shape)


def _direct(release: Release, total: Vector) -> Vector:
    """An answer as a sum of contributions."""
    query = release.query
    return query.direction(NoisySum(total, 1.0), 1.0).total if isinstance(query, Rounds) else total


def _candidates(arena: Arena, release: Release) -> list[Vector]:
    """Parameters that sites accept: the model before training, and models that are wrong or right about the canary."""
    model = arena.task.model
    trained = [model.initial()]
    if isinstance(model, CentredHead):
        row = arena.canaries[0][:1]
        point = model.view(arena.task.features[row], np.zeros(model.features))[0].astype(np.float64)  # type: ignore[attr-defined]
        label = int(arena.task.dataset.labels[row[0]])
        logits = model.head.logits
        sign = np.full(logits, -1.0) if logits > 1 else np.ones(1)
        sign[label if logits > 1 else 0] = 1.0 if logits > 1 or label == 1 else -1.0
        trained += [FAR * direction * np.outer(sign, point).ravel() for direction in (-1.0, 1.0)]
    frequencies = np.full(model.classes, 1 / model.classes)
    states = [
        ModelState(model=model, parameters=model.join(None, one), frequencies=frequencies) for one in trained
    ]
    query = release.query
    return [query.sent(state) if isinstance(query, OneSum) else state.parameters for state in states]


def _difference(arena: Arena, release: Release, parameters: Vector) -> Vector | None:
    """What the canary's hospital sums with the canary, less what it sums without."""
    sums = []
    judged = release.query.part == "held-out"
    for within in (True, False):
        rows = _rows(arena, release, within)
        if not len(rows):
            return None
        hospital = arena.hospital(rows)
        try:
            if release.parameters:
                hospital.training.check_parameters(parameters, judged=judged)
        except FedveilError:
            return None
        sums.append(release.query.contribution(hospital, parameters, release.mechanism.clip_norm, None))
    return sums[0] - sums[1]


def _rows(arena: Arena, release: Release, within: bool) -> Indices:
    """Rows of the canary's hospital that a release sums over."""
    world, home = arena.world(np.array([within])), arena.homes[0]
    return world.held_out[home] if release.query.part == "held-out" else world.sites[home]
