"""The coordinator's side of a round: ask, collect, check that the noise is enough, sum.

What a round needs is public: who took part, and that each vector has the right shape. A site that fails is named and
left out for a while. If the rest hold too little noise the attempt is abandoned: nothing of it is opened, its charge
stays, and the round is repeated.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from fedveil.errors import FederationError
from fedveil.federation.messages import Answer, Declined, Reply, Request, Vector
from fedveil.federation.release import Release
from fedveil.federation.secure import RoundAbandoned, SecureRounds, add_masked
from fedveil.federation.terms import Terms
from fedveil.federation.transport import Transport

__all__ = ["BudgetSpent", "Coordinator", "Dropped", "RoundSum"]

MOST_TRIES = 8
"""Attempts at one round before the run stops and asks for help: each of them is charged."""


class BudgetSpent(FederationError):
    """The sites' budgets do not pay for another round: training ends here, early but sound."""


@dataclass(frozen=True, slots=True)
class Dropped:
    """A site that took no part in a round, and which of the public reasons it gave."""

    site: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundSum:
    """The protected sum of one round.

    Attributes:
        total: sum over the survivors, noise included.
        survivors: the sites whose contributions are in it.
        dropped: the sites that were asked, in this or an abandoned attempt, and are not.
    """

    total: Vector
    survivors: tuple[str, ...]
    dropped: tuple[Dropped, ...]


@dataclass(slots=True)
class Coordinator:
    """Runs rounds over a transport under fixed terms.

    Attributes:
        terms: what was agreed.
        transport: carries requests to the sites.
        attempt: counter that never repeats; a resumed run starts above the last one used.
        charged: steps of each release's mechanism that were asked for, abandoned attempts included.
        note: told of ``charged`` before every request, to keep it where a killed process does not lose it.
        benched: per site, how often it failed in a row and the attempt before which it is not asked again.
    """

    terms: Terms
    transport: Transport
    attempt: int = 0
    charged: dict[str, int] = field(default_factory=dict)
    note: Callable[[Mapping[str, int]], None] = lambda _: None
    benched: dict[str, tuple[int, int]] = field(default_factory=dict)
    _secure: SecureRounds | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if self.terms.trust == "secure-aggregation":
            self._secure = SecureRounds(self.terms, self.transport)

    def epsilon_spent(self) -> float:
        """Total epsilon of everything asked for so far, at the target's delta, by the accountant."""
        return self.terms.price(self.terms.asked(self.charged))

    def collect(self, release: Release, round_number: int, parameters: Vector) -> RoundSum:
        """One round: the protected sum of every survivor's contribution.

        Raises:
            BudgetSpent: no quorum, because budgets are spent.
            FederationError: too few sites are left.
        """
        dropped: list[Dropped] = []
        for _ in range(MOST_TRIES):
            participants = self._participants(dropped)
            if not self._enough(participants):
                raise self._too_few(participants, dropped)
            replies = self._ask(release, round_number, parameters, participants, dropped)
            total, survivors = self._total(release, replies)
            if total is not None:
                for site in survivors:
                    self.benched.pop(site, None)
                return RoundSum(total=total, survivors=survivors, dropped=tuple(dropped))
        raise self._too_few(self._participants(dropped), dropped)

    def _participants(self, dropped: list[Dropped]) -> tuple[str, ...]:
        """The sites to ask next: all but those left out for failing, or that do not join a session."""
        ready = self._ready()
        if self._secure is None:
            return ready
        while self._secure.enough(ready):
            missing = self._secure.prepare(self.attempt + 1, ready)
            if not missing:
                return self._secure.members(ready)
            self._drop([Dropped(site, "unreachable") for site in missing], dropped)
            ready = self._ready()
        return ready

    def _ready(self) -> tuple[str, ...]:
        return tuple(site for site in self.terms.sites if self.benched.get(site, (0, 0))[1] <= self.attempt)

    def _enough(self, participants: tuple[str, ...]) -> bool:
        """Whether a round of these sites could be opened if all of them answered."""
        if self._secure is not None and not self._secure.complete(participants):
            return False
        return self.terms.enough(len(participants))

    def _needed(self, site: str) -> bool:
        """Whether the study cannot go on without this site."""
        others = tuple(other for other in self._ready() if other != site)
        return self._secure is not None and not self._secure.enough(others)

    def _drop(self, failures: Sequence[Dropped], dropped: list[Dropped]) -> None:
        dropped += failures
        for failure in failures:
            self._bench(failure)
            if self._secure is not None:
                self._secure.lose(failure.site)

    def _ask(
        self,
        release: Release,
        round_number: int,
        parameters: Vector,
        participants: tuple[str, ...],
        dropped: list[Dropped],
    ) -> list[Reply]:
        """One attempt: every participant is asked, and charged; those that fail are named and left out."""
        self.attempt += 1
        self.charged[release.name] = self.charged.get(release.name, 0) + release.steps_per_round
        self.note(self.charged)
        request = Request(
            study=self.terms.digest,
            release=release.name,
            round=round_number,
            attempt=self.attempt,
            participants=participants,
            parameters=parameters,
        )
        answers = self.transport.exchange(dict.fromkeys(participants, request))
        checked = [self._checked(request, release, site, answers.get(site)) for site in participants]
        self._drop([Dropped(a.site, a.code) for a in checked if isinstance(a, Declined)], dropped)
        return [answer for answer in checked if isinstance(answer, Reply)]

    def _total(self, release: Release, replies: Sequence[Reply]) -> tuple[Vector | None, tuple[str, ...]]:
        """The sum and whose contributions are in it; None where it must not, or cannot, be opened."""
        survivors = tuple(reply.site for reply in replies)
        if not self._enough(survivors):
            return None, ()
        if self._secure is None:
            return self._sum(release, replies), survivors
        aggregation = self._secure.open(self.attempt, release.name)
        for reply in replies:
            add_masked(aggregation, reply.site, reply.vector, self.attempt)
        try:
            return self._secure.total(aggregation, release), aggregation.survivors
        except RoundAbandoned:
            return None, ()

    @staticmethod
    def _checked(request: Request, release: Release, site: str, answer: Answer | None) -> Reply | Declined:
        """The answer itself if it fits the request; otherwise a refusal in the site's name."""
        fits = (
            isinstance(answer, Reply | Declined)
            and answer.site == site
            and (answer.study, answer.release, answer.round, answer.attempt)
            == (request.study, request.release, request.round, request.attempt)
            and (
                isinstance(answer, Declined)
                or (
                    answer.vector.dtype == (np.uint32 if release.integer else np.float64)
                    and answer.vector.shape == (release.dimension,)
                    and bool(np.isfinite(answer.vector).all())
                )
            )
        )
        if isinstance(answer, Reply | Declined) and fits:
            return answer
        return Declined(
            site=site,
            study=request.study,
            release=request.release,
            round=request.round,
            attempt=request.attempt,
            code="unreachable" if answer is None else "failed",
        )

    def _bench(self, failure: Dropped) -> None:
        """Leave a failing site out for 2, 4, 8, ... attempts; one whose budget is spent, for good.

        Under secure aggregation a site that was restarted has lost its session. One that the study cannot go on
        without is asked at once to join another; that costs nothing.
        """
        failures = self.benched.get(failure.site, (0, 0))[0] + 1
        pause = 2**62 if failure.reason == "over-budget" else 2 ** min(failures, 10)
        lost_session = self._secure is not None and failure.reason in ("refused", "unreachable")
        if lost_session and failures == 1 and self._needed(failure.site):
            pause = 0
        self.benched[failure.site] = (failures, self.attempt + pause)

    def _too_few(self, participants: Sequence[str], dropped: Sequence[Dropped]) -> FederationError:
        absent = list({d.site: f"{d.site} ({d.reason})" for d in dropped}.values()) or sorted(
            set(self.terms.sites) - set(participants)
        )
        count = len(self.terms.sites)
        needed = next((some for some in range(1, count) if self.terms.enough(some)), count)
        found = f"{len(participants)} of {count} sites are left; absent: {', '.join(absent)}"
        kind = BudgetSpent if any(d.reason == "over-budget" for d in dropped) else FederationError
        return kind(
            found,
            f"a round of this study needs {needed}",
            "bring sites back and resume, or begin a new study that goes on with fewer",
        )

    def _sum(self, release: Release, replies: Sequence[Reply]) -> Vector:
        total = np.sum([reply.vector for reply in replies], axis=0)
        if not release.noise_inside:
            total = self.terms.noise.complete(total, release.mechanism)
        return np.asarray(total, dtype=np.float64)
