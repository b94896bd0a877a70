"""The coordinator's side of a round: ask, collect, check that the noise is sufficient, sum.

A round only uses public facts: who took part, and that each vector has the right shape. A site that fails is named
and temporarily left out; a site that violates the protocol is left out for the rest of the run. If the others have
too little noise the attempt is abandoned: none of it is opened, its charge stays, and the round is repeated.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from fedveil.errors import FederationError
from fedveil.federation.agreement import Agreement
from fedveil.federation.messages import Answer, Declined, Reply, Request, Vector, Words32, Words64
from fedveil.federation.release import Release
from fedveil.federation.secure_rounds import RoundAbandoned, SecureRounds, add_masked
from fedveil.federation.transport import Transport

__all__ = ["BudgetSpent", "Coordinator", "Dropped", "RoundSum", "Seen"]

log = logging.getLogger("fedveil.coordinator")

MOST_UNITS = 1e9
"""No hospital has more patients or images: a sum that needs more of them is invalid."""
DISPUTED = "it and other sites contradict each other in secure aggregation, and it is likelier to be at fault"
MOST_TRIES = 8
"""Attempts at one round before the run stops with an error: each of them is charged."""


class BudgetSpent(FederationError):
    """The sites' budgets do not cover another round: training ends early, with a valid result."""


@dataclass(frozen=True, slots=True)
class Dropped:
    """A site that took no part in a round, and its public reason."""

    site: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundSum:
    """The protected sum of one round.

    Attributes:
        total: sum over the survivors, noise included.
        survivors: the sites whose contributions are in the sum.
        dropped: the sites that were asked, in this or an abandoned attempt, and are not in the sum.
    """

    total: Vector
    survivors: tuple[str, ...]
    dropped: tuple[Dropped, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Seen:
    """What a coordinator sees of one round.

    Attributes:
        release: of which it is a round.
        parameters: as sent.
        answers: by site; masked under secure aggregation, exact if the coordinator adds the noise.
        total: their sum, noise included.
    """

    release: Release
    parameters: Vector
    answers: Mapping[str, Vector | Words32 | Words64]
    total: Vector


@dataclass(slots=True)
class Coordinator:
    """Runs rounds over a transport under a fixed agreement.

    Attributes:
        agreement: of all parties.
        transport: carries requests to the sites.
        attempt: counter that never repeats; a resumed run starts above the last one used.
        charged: steps of each release's mechanism that were asked for, abandoned attempts included.
        note: receives ``charged`` before every request, to store it durably.
        watch: told of everything that the coordinator sees in a round that it opened; for audits.
        benched: per site, the number of consecutive failures and the attempt before which it is not asked again.
        left_out: the sites that are not asked again by this process, and why.
    """

    agreement: Agreement
    transport: Transport
    attempt: int = 0
    charged: dict[str, int] = field(default_factory=dict)
    note: Callable[[Mapping[str, int]], None] = lambda _: None
    watch: Callable[["Seen"], None] = lambda _: None
    benched: dict[str, tuple[int, int]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    _secure: SecureRounds | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if self.agreement.trust == "secure-aggregation":
            self._secure = SecureRounds(self.agreement, self.transport)

    def epsilon_spent(self) -> float:
        """Total epsilon of everything asked for so far, at the target's delta, by the accountant."""
        return self.agreement.price(self.agreement.asked(self.charged))

    def collect(self, release: Release, round_number: int, parameters: Vector) -> RoundSum:
        """One round: the protected sum of every survivor's contribution.

        Raises:
            BudgetSpent: no quorum, because budgets are spent.
            FederationError: too few sites remain.
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
                answers = {reply.site: reply.vector for reply in replies}
                self.watch(Seen(release=release, parameters=parameters, answers=answers, total=total))
                return RoundSum(total=total, survivors=survivors, dropped=tuple(dropped))
        raise self._too_few(self._participants(dropped), dropped)

    def _participants(self, dropped: list[Dropped]) -> tuple[str, ...]:
        """The sites to ask next: all except those left out after failures, or not in a session."""
        ready = self._ready()
        if self._secure is None:
            return ready
        while self._secure.enough(ready):
            failed = self._secure.prepare(self.attempt + 1, ready)
            if failed is None:
                return self._secure.members(ready)
            self._drop([Dropped(site, code) for site, code in failed.items()], dropped)
            dropped += [Dropped(site, "disputed") for site in self._expel() if site in ready]
            ready = self._ready()
        return ready

    def _ready(self) -> tuple[str, ...]:
        return tuple(
            site
            for site in self.agreement.sites
            if self.benched.get(site, (0, 0))[1] <= self.attempt and site not in self.left_out
        )

    def _expel(self) -> frozenset[str]:
        """Leave out sites that broke the protocol of secure aggregation; return those that others accuse.

        An accused site returns once another site of the dispute is known to be at fault.
        """
        if self._secure is None:
            return frozenset()
        for site, why in self._secure.invalid().items():
            self._leave_out(site, why)
        suspects = self._secure.suspects
        for site in [site for site, why in self.left_out.items() if why == DISPUTED and site not in suspects]:
            del self.left_out[site]
            log.warning("%s takes part again: others are at fault", site)
        for site in suspects:
            self._leave_out(site, DISPUTED)
        return suspects

    def _leave_out(self, site: str, why: str) -> None:
        """Leave a site out permanently, and name it."""
        if self._secure is not None:
            (self._secure.lose if why == DISPUTED else self._secure.expel)(site)
        known = self.left_out.get(site)
        if known in (None, DISPUTED) and known != why:
            self.left_out[site] = why
            log.error("%s is left out for the rest of this run: %s", site, why)

    def _enough(self, participants: tuple[str, ...]) -> bool:
        """Whether a round of these sites could be opened if all of them answered."""
        if self._secure is not None and not self._secure.complete(participants):
            return False
        return self.agreement.enough(len(participants))

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
            study=self.agreement.digest,
            release=release.name,
            round=round_number,
            attempt=self.attempt,
            participants=participants,
            parameters=parameters,
        )
        answers = self.transport.exchange(dict.fromkeys(participants, request))
        replies = []
        for site in participants:
            answer = answers.get(site)
            why = self._misfit(request, release, site, answer)
            if why is not None:
                self._leave_out(site, why)
                dropped.append(Dropped(site, "invalid"))
            elif isinstance(answer, Reply):
                replies.append(answer)
            else:
                code = answer.code if isinstance(answer, Declined) else "unreachable"
                self._drop([Dropped(site, code)], dropped)
        return replies

    def _total(self, release: Release, replies: Sequence[Reply]) -> tuple[Vector | None, tuple[str, ...]]:
        """The sum and the sites in it; None if it must not, or cannot, be opened."""
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
        finally:
            self._expel()

    def _misfit(self, request: Request, release: Release, site: str, answer: Answer | None) -> str | None:
        """The protocol violation in a site's answer; None if there is none, or no answer."""
        if answer is None:
            return None
        if not isinstance(answer, Reply | Declined) or any(
            getattr(answer, name) != wanted
            for name, wanted in {
                "site": site,
                "study": request.study,
                "release": request.release,
                "round": request.round,
                "attempt": request.attempt,
            }.items()
        ):
            return "its answer is in another site's name, or to another request"
        if isinstance(answer, Declined):
            return "it sent an answer that the protocol does not allow" if answer.code == "invalid" else None
        vector = answer.vector
        kind = release.integer.word if release.integer else np.float64
        if vector.dtype != kind or vector.shape != (release.dimension,):
            return f"it sent {vector.dtype} numbers of shape {vector.shape}, not {release.dimension} of {kind.__name__}"
        if not release.integer and not np.abs(vector).max(initial=0.0) <= self._largest(release):
            return f"it sent numbers that are not finite, or larger than {self._largest(release):.3g}"
        return None

    def _largest(self, release: Release) -> float:
        """A bound above every number of an honest reply: `MOST_UNITS` contributions and a hundred deviations of
        noise."""
        if self.agreement.trust == "none":  # nothing is clipped
            return 1e30
        reach = release.query.carried(release.mechanism.unit) or 0.0
        bound = max(1.0, release.mechanism.clip_norm, reach)
        return MOST_UNITS * bound + 100 * self.agreement.noise_std(release)

    def _bench(self, failure: Dropped) -> None:
        """Leave a failing site out for 2, 4, 8, ... attempts; one whose budget is spent, permanently.

        Under secure aggregation a restarted site has lost its session. A site that the study needs is asked at once
        to join another; that costs nothing.
        """
        failures = self.benched.get(failure.site, (0, 0))[0] + 1
        pause = 2**62 if failure.reason == "over-budget" else 2 ** min(failures, 10)
        lost_session = self._secure is not None and failure.reason in ("refused", "unreachable")
        if lost_session and failures == 1 and self._needed(failure.site):
            pause = 0
        self.benched[failure.site] = (failures, self.attempt + pause)

    def _too_few(self, participants: Sequence[str], dropped: Sequence[Dropped]) -> FederationError:
        absent = list({d.site: f"{d.site} ({d.reason})" for d in dropped}.values()) or sorted(
            set(self.agreement.sites) - set(participants)
        )
        count = len(self.agreement.sites)
        needed = next((some for some in range(1, count) if self.agreement.enough(some)), count)
        found = f"{len(participants)} of {count} sites remain; absent: {', '.join(absent)}"
        kind = BudgetSpent if any(d.reason == "over-budget" for d in dropped) else FederationError
        return kind(
            found,
            f"a round of this study needs {needed}",
            "reconnect the sites and resume, or start a new study that needs fewer",
        )

    def _sum(self, release: Release, replies: Sequence[Reply]) -> Vector:
        total = np.sum([reply.vector for reply in replies], axis=0)
        if not release.noise_inside:
            total = self.agreement.noise.complete(total, release.mechanism)
        return np.asarray(total, dtype=np.float64)
