"""The white-box attacker: it sees each noisy sum, sends what it likes, and looks along the canary's own contribution.

With everything else known, the two worlds' exact sums differ by the vector d that the canary adds, and for Gaussian
noise the projection of the noisy sum on d is the most powerful test there is (Neyman and Pearson). The attacker
computes d with the sites' own code, so that d also holds what else the canary moves. It sends parameters at which d is
longest.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, final

import numpy as np
import numpy.typing as npt

from fedveil.audit.arena import Arena, Remembering, colluders_of, plant, small
from fedveil.audit.attacker import STUDY, Attacker, Attempt, Setup, check_enough, claim_of, roc
from fedveil.audit.evidence import TwoWorlds, judge
from fedveil.audit.statistics import Vector
from fedveil.errors import FedveilError
from fedveil.federation import Agreement, ModelState, NoisySum, OneSum, Release, Rounds, Seen
from fedveil.federation.contributions import Contributions
from fedveil.federation.noise import Calibrated
from fedveil.learning import ClassHead
from fedveil.privacy import Mechanism, secure_generator

__all__ = ["Aim", "NoisySums", "WholeProtocol", "aim", "draws", "rounds_of_a_session", "session"]

Indices = npt.NDArray[np.int64]
FAR = 20.0
"""Size of a logit at which a probability is almost 0 or 1."""
MOST_ROUNDS = 64
CHUNK = 1 << 21
"""Numbers drawn at once."""
NUMBERS, SLOW = 8 * 10**7, 2 * 10**4
"""Numbers of noise, or sums of samples, that are drawn for one release in one world by default."""
LONG, HELD, FEW = 1 << 13, 0.7, 0.25
"""Of longer directions, entries that hold so much of the squared length are looked at alone, if so few of all do."""
FEWEST, MOST_TRIALS = 400, 20_000
"""Executions of one world by default."""


@dataclass(frozen=True, slots=True, eq=False)
class Aim:
    """An attack on one release.

    Attributes:
        release: which.
        parameters: as the attacker sends them.
        direction: what the canary adds, exactly, in the entries that the attacker looks at.
        entries: which these are; all by default.
    """

    release: Release
    parameters: Vector
    direction: Vector
    entries: Indices | None = None

    def looked_at(self, total: Vector) -> Vector:
        """The entries of a sum that the attacker looks at."""
        return total if self.entries is None else total[self.entries]

    def narrowed(self) -> "Aim":
        """The same attack on few of many entries, where these hold most of the direction, as in networks: it is
        post-processing, since the noise is independent in each entry, and an execution takes less time."""
        order = np.argsort(-np.square(self.direction), kind="stable")
        held = np.cumsum(np.square(self.direction)[order])
        count = int(np.searchsorted(held, HELD * held[-1])) + 1
        if len(order) <= LONG or count > len(order) * FEW:
            return self
        entries = np.sort(order[:count])
        return replace(self, direction=self.direction[entries], entries=entries)

    def score(self, total: Vector) -> Vector:
        """Noisy sums (..., dimension) along the direction, in units of the clip norm."""
        length = float(np.linalg.norm(self.direction))
        found: Vector = total @ self.direction / (length * self.release.mechanism.clip_norm)
        return found

    @property
    def weight(self) -> float:
        """What turns the score of an execution into a log-likelihood ratio, up to a constant."""
        mechanism = self.release.mechanism
        if mechanism.sampling_rate < 1:
            return 1.0
        return float(np.linalg.norm(self.direction)) / mechanism.clip_norm / mechanism.noise_multiplier**2

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
    hospital = arena.hospital(_rows(arena, release, within))
    if release.mechanism.sampling_rate < 1 and not release.noise_inside and hospital.learner is not None:
        hospital = replace(hospital, learner=Remembering(hospital.learner))
    contributions = Contributions(home, hospital, secure_generator())

    def exact() -> Vector:
        return contributions.of(release, attack.parameters, private=True)

    varies = release.noise_inside or release.mechanism.sampling_rate < 1
    fixed = None if varies else exact()
    size = max(1, CHUNK // (len(attack.direction) * rounds))
    scores = []
    for start in range(0, count, size):
        number = min(size, count - start) * rounds
        found = [exact() if fixed is None else fixed for _ in range(number)]
        sums = np.array([attack.looked_at(_direct(release, one)) for one in found])
        seen = sums if release.noise_inside else _protected(arena, release, sums)
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
    return long.decode(np.asarray(words, long.word)).reshape(sums.shape)


def _direct(release: Release, total: Vector) -> Vector:
    """An answer as a sum of contributions."""
    query = release.query
    return query.direction(NoisySum(total, 1.0), 1.0).total if isinstance(query, Rounds) else total


def _candidates(arena: Arena, release: Release) -> list[Vector]:
    """Parameters that sites accept: the model before training, and models that are wrong or right about the canary."""
    model = arena.task.model
    trained = [model.initial()]
    if isinstance(model, ClassHead):
        row = arena.canaries[0][:1]
        point = model.view(arena.task.features[row], np.zeros(model.features))[0].astype(np.float64)  # type: ignore[attr-defined]
        label = int(arena.task.dataset.labels[row[0]])
        logits = model.head.logits
        sign = np.full(logits, -1.0) if logits > 1 else np.ones(1)
        high = logits > 1 or 2 * label >= model.classes
        sign[label if logits > 1 else 0] = 1.0 if high else -1.0
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


@final
class NoisySums(Attacker):
    """Many executions of each release's sums and noise, and of all releases of the study together."""

    name: ClassVar[str] = "white box"

    def most(self, agreement: Agreement) -> int:
        """Each release, and all together."""
        return 0 if agreement.trust == "none" else len(_requested(agreement)) + 1

    def attack(self, setup: Setup) -> list[Attempt]:
        """Each release, and the whole study."""
        if setup.agreement.trust == "none":
            return []
        worlds = []
        arena = _arena(setup)
        for release in _requested(setup.agreement):
            found = aim(arena, release)
            if found is not None:
                worlds.append(self._scores(setup, arena, found.narrowed()))
            setup.progress.advance()
        attempts = [self._attempt(setup, [one]) for one in worlds]
        return attempts if len(worlds) < 2 else [*attempts, self._attempt(setup, worlds)]

    def _scores(self, setup: Setup, arena: Arena, attack: Aim) -> "_Worlds":
        release = attack.release
        rounds, count = _effort(attack, arena.agreement, setup.trials)

        def scores(within: bool) -> Vector:
            return draws(arena, attack, within=within, count=count, rounds=rounds)

        without = setup.store.get(f"{self.name}.{release.name}.out", lambda: scores(False))
        inside = setup.store.get(f"{self.name}.{release.name}.in", lambda: scores(True))
        return _Worlds(attack, rounds, without, inside)

    def _attempt(self, setup: Setup, worlds: "list[_Worlds]") -> Attempt:
        """Of one release, or of several together: the sum of their log-likelihood ratios."""
        count = min(len(one.without) for one in worlds)
        without = np.sum([one.attack.weight * one.without[:count] for one in worlds], axis=0)
        within = np.sum([one.attack.weight * one.within[:count] for one in worlds], axis=0)
        whole = [one.attack.release for one in worlds]
        return _judged(
            setup,
            self.name,
            whole[0].name if len(worlds) == 1 else STUDY,
            tuple(
                one.mechanism.with_steps(two.rounds * one.steps_per_round)
                for one, two in zip(whole, worlds, strict=True)
            ),
            (without, within),
            f"the noisy sums along one canary's contribution, {count} executions of each world",
            "; ".join(one.covered for one in worlds if one.covered),
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Worlds:
    """Scores of executions of some rounds of one release, without the canary and with it."""

    attack: Aim
    rounds: int
    without: Vector
    within: Vector

    @property
    def covered(self) -> str:
        """The attacked rounds in words, if there are more."""
        release = self.attack.release
        if self.rounds == release.rounds:
            return ""
        return f"{self.rounds} of {release.rounds} rounds of {release.query.title}"


def _effort(attack: Aim, agreement: Agreement, trials: int | None) -> tuple[int, int]:
    """Rounds of one execution, and the number of executions of each world."""
    release = attack.release
    length = release.dimension if release.noise_inside else len(attack.direction)
    most = NUMBERS // (length * (1 if release.integer is None else agreement.honest))
    if release.noise_inside or release.mechanism.sampling_rate < 1:
        most = min(most // release.steps_per_round, SLOW)
    rounds = min(release.rounds, max(1, most // FEWEST))
    return rounds, trials or min(MOST_TRIALS, max(FEWEST, most // rounds))


@final
class WholeProtocol(Attacker):
    """Rounds through requests, ledgers, sites, noise, masks and coordinator, one release at a time."""

    name: ClassVar[str] = "protocol"

    def most(self, agreement: Agreement) -> int:
        """Each release."""
        return 0 if agreement.trust == "none" else len(self._attacked(agreement))

    def attack(self, setup: Setup) -> list[Attempt]:
        """Each release, one round per execution."""
        if setup.agreement.trust == "none":
            return []
        arena, attempts = _arena(setup), []
        for release in self._attacked(setup.agreement):
            found = aim(arena, release)
            if found is None:
                continue
            both = self._scores(setup, arena, found)
            setup.progress.advance()
            mechanism = release.mechanism.with_steps(release.steps_per_round)
            what = f"one round through the whole protocol, {len(both[0])} executions of each world"
            attempts.append(_judged(setup, self.name, release.name, (mechanism,), both, what))
        return attempts

    @staticmethod
    def _attacked(agreement: Agreement) -> list[Release]:
        """Sites answer the releases of a calibrated study's level only after its pilot: these are left out."""
        return [one for one in _requested(agreement) if one.level is None]

    def _scores(self, setup: Setup, arena: Arena, attack: Aim) -> tuple[Vector, Vector]:
        """Of all rounds of all sessions, without the canary and with it."""
        rounds, release = rounds_of_a_session(arena, attack.release), attack.release
        one, _ = claim_of(
            (release.mechanism.with_steps(release.steps_per_round),), setup.agreement.target.delta
        )
        sessions = max(setup.sessions, -(-2 * TwoWorlds.needed(one, setup.significance) // rounds))

        def scores(within: bool, number: int) -> Vector:
            name = f"{self.name}.{attack.release.name}.{'in' if within else 'out'}.{number}"
            return setup.store.get(name, lambda: session(arena, attack, within=within, rounds=rounds))

        without, inside = (
            np.concatenate([scores(within, number) for number in range(sessions)]) for within in (False, True)
        )
        return without, inside


def _requested(agreement: Agreement) -> list[Release]:
    """The releases that leave hospitals."""
    return [one for one in agreement.releases if not one.query.at_site]


def _arena(setup: Setup) -> Arena:
    """Few patients, and one canary at the first hospital; the same one after an interruption."""
    seed = int(setup.store.get("canary", lambda: secure_generator().integers(2**62)))
    return plant(small(setup.prepared), setup.task, setup.agreement.sites[:1], np.random.default_rng(seed))


def _judged(
    setup: Setup,
    attacker: str,
    release: str,
    mechanisms: tuple[Mechanism, ...],
    worlds: tuple[Vector, Vector],
    what: str,
    covered: str = "",
) -> Attempt:
    claim, plain = claim_of(mechanisms, setup.agreement.target.delta)
    without, within = worlds
    needed = 2 * TwoWorlds.needed(claim, setup.significance)
    check_enough(setup, len(without), needed, "executions of each world", "--trials")
    curve, area = roc(without, within)
    return Attempt(
        attacker=attacker,
        release=release,
        claim=claim,
        plain=plain,
        evidence=judge(without, within, claim, setup.significance),
        curve=curve,
        area=area,
        executions=2 * len(without),
        what=what + (f"; {covered}" if covered else ""),
        covered=covered,
    )
