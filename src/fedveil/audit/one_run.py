"""One run of the whole study with many canaries: guesses about each from everything that the attacker saw.

Canaries are in by independent fair coins. The attacker knows all patients and all canaries, so it subtracts the known
sum from each noisy one, and decodes the coins together: for a sum R = G'b + noise, with one canary's contribution per
row of G and coins b, the best linear estimate of b solves (sum G G' / s^2 + 4) b = sum G R / s^2 + 2. Where units are
sampled the same is done in each round for who was drawn, and each canary's log-likelihood ratio is added up over
rounds. A first run, with coins of its own, chooses how many guesses are made; the second is judged.

Neighbours may be any two cohorts. Where units are sampled, or a network is trained, hospitals have few patients besides
canaries: other patients' samples would hide them, and take time.

What was seen in a run is stored before it is decoded, and the sums over rounds after every few of them: an interrupted
audit goes on there. Decoding is post-processing, so how it is done affects the power of the attack and not its bounds.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, cast, final

import numpy as np
import numpy.typing as npt

from fedveil.audit.arena import Arena, Included, Indices, plant, small
from fedveil.audit.attacker import STUDY, Attacker, Attempt, Setup, check_enough, claim_of, roc
from fedveil.audit.evidence import OneRun, choose_guesses, guess
from fedveil.audit.statistics import Vector
from fedveil.federation import HospitalUnits, LocalSteps, Release, Seen
from fedveil.federation.queries.query import ClippedGradients
from fedveil.privacy import secure_generator
from fedveil.study.pipeline import NetworkTask

if TYPE_CHECKING:
    from fedveil.learning import NetworkLearner

__all__ = ["ManyCanaries", "coins"]

Numbers = npt.NDArray[Any]
AT_ONCE = 5
"""Rounds that are decoded before the sums over rounds are stored."""
MOST_NUMBERS = 5 * 10**7
"""Numbers of all canaries' contributions to one round; fewer canaries are used where they would be more."""


@final
class ManyCanaries(Attacker):
    """The attacker of Steinke, Nasr and Jagielski (2305.08846), judged by Mahloujifar, Melis and Chaudhuri."""

    name: ClassVar[str] = "one run"

    def attack(self, setup: Setup) -> list[Attempt]:
        """Two runs of the whole study."""
        agreement = setup.agreement
        released = [one for one in agreement.releases if not one.query.at_site]
        mechanisms = tuple(one.mechanism for one in released)
        claim, plain = claim_of(mechanisms, agreement.target.delta)
        count = min(setup.canaries, max(1, MOST_NUMBERS // max(one.dimension for one in released)))
        check_enough(setup, count, OneRun.needed(claim, setup.significance), "canaries", "--canaries")
        runs = [self._run(setup, count, number) for number in (1, 2)]
        (first, first_in), (scores, included) = runs
        guesses = choose_guesses(first, first_in, claim, setup.significance)
        curve, area = roc(scores[included == 0], scores[included == 1])
        return [
            Attempt(
                attacker=self.name,
                release=STUDY,
                claim=claim,
                plain=plain,
                evidence=guess(scores, included, guesses),
                curve=curve,
                area=area,
                executions=2,
                what=f"guesses about {count} canaries in one run of the study",
            )
        ]

    def _run(self, setup: Setup, count: int, number: int) -> Vector:
        """(2, canaries): scores and coins of one run."""
        name = f"{self.name}.{number}"
        return setup.store.get(name, lambda: self._made(setup, count, name))

    @staticmethod
    def _made(setup: Setup, count: int, name: str) -> Vector:
        generator = secure_generator()
        seed = setup.store.get(f"{name}.seed", lambda: generator.integers(2**32, size=8))
        included = setup.store.get(f"{name}.coins", lambda: coins(count))
        honest = _honest(setup)
        homes = tuple(honest[one % len(honest)] for one in range(count))
        prepared = small(setup.prepared) if _alone(setup) else setup.prepared
        arena = plant(prepared, setup.task, homes, np.random.default_rng(seed))
        arena = replace(arena, hospitals=setup.hospitals)
        colluders = frozenset(setup.agreement.sites) - frozenset(honest)
        if setup.agreement.trust != "secure-aggregation":
            colluders = frozenset()
        decoder = _Decoder(arena, setup.agreement.trust == "site")

        def trained() -> Vector:
            parts: list[Vector] = []

            def watch(seen: Seen) -> None:
                parts.append(decoder.flat(seen))
                setup.progress.advance(note="training")

            arena.train(included, watch, colluders)
            return np.concatenate(parts)

        exchanges = decoder.exchanges(setup.store.get(f"{name}.seen", trained))
        total = decoder.nothing()
        for start in range(0, len(exchanges), AT_ONCE):
            part, before = exchanges[start : start + AT_ONCE], total

            def decoded(part: list[_Exchange] = part, before: Vector = before) -> Vector:
                for one in part:
                    before = before + decoder.decoded(one)
                    setup.progress.advance(note="decoding")
                return before

            total = setup.store.get(f"{name}.decoded.{start}", decoded)
        return np.stack([decoder.scores(total), included])


def coins(count: int) -> Included:
    """Independent fair coins from the operating system: which canaries are in."""
    return np.asarray(secure_generator().random(count) < 0.5)


def _alone(setup: Setup) -> bool:
    """Whether hospitals have few patients besides canaries; real services have their own."""
    released = [one for one in setup.agreement.releases if not one.query.at_site]
    sampled = any(one.mechanism.sampling_rate < 1 for one in released)
    return setup.hospitals is None and (sampled or isinstance(setup.task, NetworkTask))


def _honest(setup: Setup) -> tuple[str, ...]:
    """The hospitals of canaries: all, or under secure aggregation those that do not collude with the attacker."""
    agreement = setup.agreement
    if setup.hospitals is not None:  # real services: no site colludes
        return agreement.sites
    if any(one.noise_inside for one in agreement.releases if not one.query.at_site):
        return agreement.sites[:1]
    return agreement.sites[: agreement.honest] if agreement.trust == "secure-aggregation" else agreement.sites


@dataclass(frozen=True, slots=True, eq=False)
class _Exchange:
    """One round as the attacker stores it: own parameters as sent, and what it saw of each group of canaries."""

    release: Release
    parameters: Vector
    views: tuple[Vector, ...]


class _Decoder:
    """Scores of canaries from what was seen: sums over rounds of the parts of a linear system, group by group.

    A group is the canaries of one hospital where answers are seen by hospital, otherwise all.
    """

    def __init__(self, arena: Arena, by_site: bool) -> None:
        self._arena = arena
        everyone = np.arange(len(arena.canaries))
        homes = np.array(arena.homes)
        names = sorted(set(arena.homes)) if by_site else [arena.homes[0]]
        self._groups = [(name, everyone[homes == name] if by_site else everyone) for name in names]
        self._sites = {name: [name] for name in names} if by_site else {names[0]: sorted(set(arena.homes))}
        self._hospitals: dict[tuple[str | int, bool], HospitalUnits | None] = {}
        self._together: dict[str, NetworkLearner] = {}
        self._asked = arena.agreement.possible
        released = [one for one in arena.agreement.releases if not one.query.at_site]
        self._sampled = any(one.mechanism.sampling_rate < 1 for one in released)

    def flat(self, seen: Seen) -> Vector:
        """What is stored of a round, as one vector."""
        number = [one.name for one in self._asked].index(seen.release.name)
        parameters = seen.release.own_parameters(seen.parameters)  # without the evidence for a level
        views = [self._arena.view(seen, home) for home, _ in self._groups]
        return np.concatenate([[number, len(parameters)], parameters, *views])

    def exchanges(self, flat: Vector) -> list[_Exchange]:
        """The rounds in a sequence of such vectors."""
        found = []
        while len(flat):
            release, sent = self._asked[int(flat[0])], int(flat[1])
            end = 2 + sent + len(self._groups) * release.dimension
            views = tuple(np.split(flat[2 + sent : end], len(self._groups)))
            found.append(_Exchange(release, flat[2 : 2 + sent], views))
            flat = flat[end:]
        return found

    def nothing(self) -> Vector:
        """The sums over no rounds: of each group's Gram matrix and right side, or of log-likelihood ratios."""
        return np.zeros(sum(self._numbers(members) for _, members in self._groups))

    def _numbers(self, members: Indices) -> int:
        return len(members) if self._sampled else len(members) ** 2 + len(members)

    def decoded(self, one: _Exchange) -> Vector:
        """What one round adds to the sums."""
        mechanism, parts = one.release.mechanism, []
        for (home, members), view in zip(self._groups, one.views, strict=True):
            rows, rest, deviation = self._round(one, home, members, view)
            if deviation == 0:  # without noise: a small one keeps the equations regular
                deviation = 1e-3 * mechanism.clip_norm
            rest = rest.astype(rows.dtype)
            gram = np.asarray(rows @ rows.T, np.float64) / deviation**2
            right = np.asarray(rows @ rest, np.float64) / deviation**2
            parts += (
                [_ratios(gram, right, mechanism.sampling_rate)] if self._sampled else [gram.ravel(), right]
            )
        return np.concatenate(parts)

    def scores(self, total: Vector) -> Vector:
        """One score per canary; higher where it seems to be in."""
        scores = np.zeros(len(self._arena.canaries))
        for _, members in self._groups:
            own, total = np.split(total, [self._numbers(members)])
            if self._sampled:
                scores[members] = own
                continue
            size = len(members)
            gram, right = own[: size**2].reshape(size, size), own[size**2 :]
            scores[members] = np.linalg.solve(gram + 4 * np.eye(size), right + 2)
        return scores

    def _round(
        self, one: _Exchange, home: str, members: Indices, view: Vector
    ) -> tuple[Numbers, Vector, float]:
        """Contributions of canaries, the noisy sum less what is known, and the noise's standard deviation."""
        release = one.release
        scale, steps = _scale(release)
        rows = self._rows(one, home, members)
        known = sum(self._sum(one, site) for site in self._sites[home])
        rate = release.mechanism.sampling_rate
        deviation = release.mechanism.noise_std * np.sqrt(steps)
        return rows * steps if steps > 1 else rows, view * scale - rate * steps * known, float(deviation)

    def _rows(self, one: _Exchange, home: str, members: Indices) -> Numbers:
        """(members, dimension): what each canary adds.

        Gradients of a network are computed in full batches, of one image per canary: all of its images are equal.
        """
        release, arena = one.release, self._arena
        if not (isinstance(arena.task, NetworkTask) and isinstance(release.query, ClippedGradients)):
            return np.array([self._sum(one, int(canary)) for canary in members])
        if home not in self._together:
            rows = np.array([arena.canaries[canary][0] for canary in members])
            self._together[home] = cast("NetworkLearner", arena.task.learner(rows))
        return self._together[home].each(one.parameters, clip_norm=release.mechanism.clip_norm)

    def _sum(self, one: _Exchange, where: str | int) -> Vector:
        """The exact sum of a hospital's own patients, or what one canary adds: what a hospital of it alone sums."""
        release = one.release
        held_out = release.query.part == "held-out"
        key = (where, held_out)
        if key not in self._hospitals:
            self._hospitals[key] = self._hospital(where, held_out)
        hospital = self._hospitals[key]
        if hospital is None:
            return np.zeros(release.dimension)
        return release.query.contribution(hospital, one.parameters, release.mechanism.clip_norm, None)

    def _hospital(self, where: str | int, held_out: bool) -> HospitalUnits | None:
        arena = self._arena
        if isinstance(where, str):
            parts = arena.prepared.held_out if held_out else arena.prepared.sites
            rows = parts.get(where, np.empty(0, dtype=np.int64))
        else:
            rows = arena.canaries[where]
        return arena.hospital(rows) if len(rows) else None


def _scale(release: Release) -> tuple[float, int]:
    """The factor that turns an answer into a sum of contributions, and the steps in it."""
    local = getattr(release.query, "local", None)
    if not release.noise_inside or not isinstance(local, LocalSteps):
        return 1.0, 1
    return local.units / local.learning_rate, local.steps


def _ratios(gram: Vector, right: Vector, rate: float) -> Vector:
    """log of 1 - q + q exp(evidence that the canary was drawn), of each canary in one round.

    The best linear estimate of who was drawn reads, for each, as an observation y of 0 or 1 with some variance. Where
    other patients' samples spread the observations further, the spread of most of them, who were not drawn, is taken.
    """
    prior = rate / 2
    before = prior * (1 - prior)
    inverse = np.linalg.inv(gram + np.eye(len(gram)) / before)
    after = np.diag(inverse)
    gain = np.maximum(1 - after / before, 1e-9)
    seen = prior + (inverse @ (right + prior / before) - prior) / gain
    deviation = np.sqrt(after / gain)
    relative = seen / deviation
    spread = max(1.0, 1.4826 * float(np.median(np.abs(relative - np.median(relative)))))
    exponent = (seen - 0.5) / np.square(spread * deviation)
    if rate == 1:
        return np.asarray(exponent)
    return np.asarray(np.logaddexp(np.log1p(-rate), np.log(rate) + exponent))
