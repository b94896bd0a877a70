"""One run of the whole study with many canaries: guesses about each from everything that the attacker saw.

Canaries are in by independent fair coins. The attacker knows all patients and all canaries, so it subtracts the known
sum from each noisy one, and decodes the coins together: for a sum R = G'b + noise, with one canary's contribution per
row of G and coins b, the best linear estimate of b solves (sum G G' / s^2 + 4) b = sum G R / s^2 + 2. Where units are
sampled the log-likelihood ratio of each canary is added up over rounds. A first run, with coins of its own, chooses how
many guesses are made; the second is judged.
"""

from dataclasses import replace
from typing import ClassVar, final

import numpy as np

from fedveil.audit.arena import Arena, Included, Indices, plant
from fedveil.audit.attacker import STUDY, Attacker, Attempt, Setup, check_enough, claim_of, roc
from fedveil.audit.evidence import OneRun, choose_guesses, guess
from fedveil.audit.statistics import Vector
from fedveil.federation import HospitalUnits, LocalSteps, Release, Seen
from fedveil.privacy import secure_generator

__all__ = ["ManyCanaries", "coins"]

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
        runs = [
            setup.store.get(f"{self.name}.{number}", lambda: self._run(setup, count)) for number in (1, 2)
        ]
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
                what=f"guesses about {count} canary patients in one run of the study",
            )
        ]

    @staticmethod
    def _run(setup: Setup, count: int) -> Vector:
        """(2, canaries): scores and coins of one run."""
        honest = _honest(setup)
        homes = tuple(honest[number % len(honest)] for number in range(count))
        arena = plant(setup.prepared, setup.task, homes, secure_generator())
        arena = replace(arena, hospitals=setup.hospitals)
        included = coins(count)
        colluders = frozenset(setup.agreement.sites) - frozenset(honest)
        if setup.agreement.trust != "secure-aggregation":
            colluders = frozenset()
        seen: list[Seen] = []
        arena.train(included, seen.append, colluders)
        setup.progress.advance()
        return np.stack([_Decoder(arena, setup.agreement.trust == "site").scores(seen), included])


def coins(count: int) -> Included:
    """Independent fair coins from the operating system: which canaries are in."""
    return np.asarray(secure_generator().random(count) < 0.5)


def _honest(setup: Setup) -> tuple[str, ...]:
    """The hospitals of canaries: all, or under secure aggregation those that do not collude with the attacker."""
    agreement = setup.agreement
    if setup.hospitals is not None:  # real services: no site colludes
        return agreement.sites
    if any(one.noise_inside for one in agreement.releases if not one.query.at_site):
        return agreement.sites[:1]
    return agreement.sites[: agreement.honest] if agreement.trust == "secure-aggregation" else agreement.sites


class _Decoder:
    """Scores of canaries from what was seen."""

    def __init__(self, arena: Arena, by_site: bool) -> None:
        self._arena = arena
        everyone = np.arange(len(arena.canaries))
        homes = np.array(arena.homes)
        names = sorted(set(arena.homes)) if by_site else [arena.homes[0]]
        self._groups = [(name, everyone[homes == name] if by_site else everyone) for name in names]
        self._sites = {name: [name] for name in names} if by_site else {names[0]: sorted(set(arena.homes))}
        self._hospitals: dict[tuple[str | int, bool], HospitalUnits | None] = {}

    def scores(self, seen: list[Seen]) -> Vector:
        """One score per canary; higher where it seems to be in."""
        scores = np.zeros(len(self._arena.canaries))
        sampled = any(one.release.mechanism.sampling_rate < 1 for one in seen)
        for home, members in self._groups:
            size = len(members)
            gram, right, ratios = np.zeros((size, size)), np.zeros(size), np.zeros(size)
            for one in seen:
                rows, rest, deviation = self._round(one, home, members)
                if deviation == 0:  # without noise: a small one keeps the equations regular
                    deviation = 1e-3 * one.release.mechanism.clip_norm
                if sampled:
                    ratios += _ratios(rows, rest, deviation, one.release.mechanism.sampling_rate)
                    continue
                gram += rows @ rows.T / deviation**2
                right += rows @ rest / deviation**2
            scores[members] = ratios if sampled else np.linalg.solve(gram + 4 * np.eye(size), right + 2)
        return scores

    def _round(self, seen: Seen, home: str, members: Indices) -> tuple[Vector, Vector, float]:
        """Contributions of canaries, the noisy sum less what is known, and the noise's standard deviation."""
        release, arena = seen.release, self._arena
        scale, steps = _scale(release)
        rows = np.array([self._sum(seen, int(canary)) for canary in members])
        known = sum(self._sum(seen, site) for site in self._sites[home])
        rate = release.mechanism.sampling_rate
        total = arena.view(seen, home) * scale
        deviation = release.mechanism.noise_std * np.sqrt(steps)
        return rows * steps, total - rate * steps * known, float(deviation)

    def _sum(self, seen: Seen, where: str | int) -> Vector:
        """The exact sum of a hospital's own patients, or what one canary adds: what a hospital of it alone sums."""
        release = seen.release
        held_out = release.query.part == "held-out"
        key = (where, held_out)
        if key not in self._hospitals:
            self._hospitals[key] = self._hospital(where, held_out)
        hospital = self._hospitals[key]
        if hospital is None:
            return np.zeros(release.dimension)
        own = release.own_parameters(seen.parameters)  # without the evidence for a level
        return release.query.contribution(hospital, own, release.mechanism.clip_norm, None)

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


def _ratios(rows: Vector, rest: Vector, deviation: float, rate: float) -> Vector:
    """log of 1 - q + q exp(evidence that the canary was drawn), with the spread that others' draws cause."""
    lengths = np.maximum(np.linalg.norm(rows, axis=1), 1e-12)
    along = rows @ (rest - rate / 2 * rows.sum(axis=0)) / lengths
    spread = max(deviation, 1.4826 * float(np.median(np.abs(along - np.median(along)))))
    exponent = (along * lengths - lengths**2 / 2) / spread**2
    if rate == 1:
        return np.asarray(exponent)
    return np.asarray(np.logaddexp(np.log1p(-rate), np.log(rate) + exponent))
