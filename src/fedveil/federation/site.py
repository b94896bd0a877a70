"""One hospital: its cohort behind a learner, its policy, its ledger. The only place where a charge meets a pixel."""

import logging
from collections import Counter
from dataclasses import dataclass

import numpy as np

from fedveil.errors import BudgetExceeded, FedveilError, Refused
from fedveil.federation.messages import Declined, DeclineCode, Reply, Request, Vector
from fedveil.federation.terms import STATISTICS, Release, Terms, noise_share
from fedveil.learning import Learner
from fedveil.privacy import Ledger, Mechanism, Trust, check_delta, gaussian, secure_generator

__all__ = ["Policy", "Site"]

log = logging.getLogger("fedveil.site")


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What a hospital admits, set by the hospital. Its budget is in its ledger.

    Attributes:
        trusts: the levels of trust it accepts; ``"none"`` lets un-noised sums out and is never a default.
        min_sites: fewest participants of a round that it joins.
        max_dimension: longest vector that it releases.
    """

    trusts: frozenset[Trust] = frozenset({"site", "secure-aggregation"})
    min_sites: int = 1
    max_dimension: int = 50_000_000

    def check(self, terms: Terms) -> None:
        """Raise `Refused` if the hospital's policy does not admit the terms."""
        if terms.trust not in self.trusts:
            raise Refused(
                f'the study asks for trust "{terms.trust}"',
                f"this site's policy accepts only {', '.join(sorted(self.trusts))}",
                "change the study's privacy.trust, or the site's policy",
            )
        if terms.min_sites < self.min_sites:
            raise Refused(
                f"the study goes on with {terms.min_sites} sites",
                f"this site's policy asks for {self.min_sites} or more",
                "raise federation.min_sites in the study",
            )
        largest = max(release.dimension for release in terms.releases)
        if largest > self.max_dimension:
            raise Refused(
                f"the study releases vectors of length {largest:,}",
                f"this site's policy allows {self.max_dimension:,} at most",
                "choose a smaller model, or raise the site's limit",
            )


class Site:
    """Answers a coordinator's requests under the site's own policy and budget.

    The order of every answer is: check the request, reserve its charge durably, compute, add noise. Whatever goes
    wrong after the reservation leaves the charge in place: a charge is never given back.

    Args:
        name: the site's name in the studies it takes part in.
        learner: the only code that sees the cohort's pixels.
        policy: what the hospital admits.
        ledger: the hospital's open ledger; None only for a site whose policy admits nothing but trust ``"none"``.
    """

    def __init__(self, name: str, learner: Learner, policy: Policy, ledger: Ledger | None) -> None:
        if ledger is None and policy.trusts != {"none"}:
            raise Refused(
                f"site {name} has no ledger",
                "every noisy release must be charged",
                "open a ledger, or admit trust none only",
            )
        self.name = name
        self._learner, self._policy, self._ledger = learner, policy, ledger
        self._admitted: dict[str, Terms] = {}
        self._served: set[tuple[str, str, int, int]] = set()
        self._generator = secure_generator()

    def admit(self, terms: Terms) -> str:
        """Admit a study after checking it against the policy, the cohort and the budget; return its digest.

        Raises:
            Refused: the policy forbids it, or the site is not part of it.
            BudgetExceeded: the whole study would cost more than the budget has left.
            InvalidValue: delta is larger than one over the site's units.
        """
        self._policy.check(terms)
        if self.name not in terms.sites:
            raise Refused(
                f"the study names {', '.join(terms.sites)}",
                f"{self.name} is not among them",
                "add it to the study's sites",
            )
        if terms.trust != "none" and self._ledger is not None:
            if terms.target.unit != "site":
                check_delta(terms.target.delta, self._learner.units)
            self._ledger.admit(*self._outstanding(terms, self._ledger))
        self._admitted[terms.digest] = terms
        return terms.digest

    @staticmethod
    def _outstanding(terms: Terms, ledger: Ledger) -> list[Mechanism]:
        """What the study has yet to charge here: all of it, or the rest of one that is resumed."""
        charged = Counter(charge.label for charge in ledger.state.charges if charge.study == terms.title)
        return [
            release.mechanism.with_steps(release.mechanism.steps - charged[release.name])
            for release in terms.releases
            if release.mechanism.steps > charged[release.name]
        ]

    def handle(self, request: Request) -> Reply | Declined:
        """Answer one request. Never raises for anything that the request or the cohort brings about."""
        try:
            vector = self._answer(request)
        except BudgetExceeded as error:
            return self._decline(request, "over-budget", error)
        except FedveilError as error:
            return self._decline(request, "refused", error)
        except Exception as error:  # noqa: BLE001 - nothing about the cohort may leave in an exception
            return self._decline(request, "failed", error)
        return Reply(
            site=self.name,
            study=request.study,
            release=request.release,
            round=request.round,
            attempt=request.attempt,
            vector=vector,
        )

    def _decline(self, request: Request, code: DeclineCode, error: Exception) -> Declined:
        log.warning("%s: %s round %s declined: %s", self.name, request.release, request.round, error)
        return Declined(
            site=self.name,
            study=request.study,
            release=request.release,
            round=request.round,
            attempt=request.attempt,
            code=code,
        )

    def _answer(self, request: Request) -> Vector:
        terms = self._terms_of(request)
        release = self._check(request, terms)
        self._reserve(request, terms, release)
        total = self._contribution(request, release)
        std = noise_share(terms.trust, release.mechanism, terms.honest(len(request.participants)))
        return total + gaussian(total.shape, std, self._generator) if std > 0 else total

    def _terms_of(self, request: Request) -> Terms:
        try:
            return self._admitted[request.study]
        except KeyError:
            raise Refused(
                f"the request names study {request.study[:12]}",
                "this site has not admitted it",
                "have the hospital read and approve the study first",
            ) from None

    def _check(self, request: Request, terms: Terms) -> Release:
        """Everything about a request that can be wrong, before anything is charged."""
        release = terms.release(request.release)
        if not 1 <= request.round <= release.mechanism.steps:
            raise Refused(
                f"the request is for round {request.round}",
                f"the study has {release.mechanism.steps}",
                "run the study that was admitted",
            )
        unknown = set(request.participants) - set(terms.sites)
        if unknown or len(set(request.participants)) != len(request.participants):
            raise Refused(
                f"the participants are {', '.join(request.participants)}",
                f"they must be different sites among {', '.join(terms.sites)}",
                "ask the sites that the study names",
            )
        if self.name not in request.participants:
            raise Refused(
                "the request leaves this site out", "a site answers for itself only", "ask the participants only"
            )
        if not terms.enough(len(request.participants), len(request.participants)):
            raise Refused(
                f"{len(request.participants)} sites take part",
                f"the study needs {terms.min_sites} and enough honest noise shares",
                "wait until more sites are back",
            )
        parameters = request.parameters
        if parameters.shape != (release.parameters,) or not np.isfinite(parameters).all():
            raise Refused(
                f"the parameters have shape {parameters.shape}",
                f"they must be {release.parameters} finite numbers",
                "send the model that the study describes",
            )
        if (request.study, request.release, request.round, request.attempt) in self._served:
            raise Refused(
                f"round {request.round}, attempt {request.attempt} was served before",
                "a site serves an attempt once",
                "raise the attempt to repeat a round",
            )
        return release

    def _reserve(self, request: Request, terms: Terms, release: Release) -> None:
        self._served.add((request.study, request.release, request.round, request.attempt))
        if terms.trust == "none":
            return
        if self._ledger is None:
            raise Refused("this site has no ledger", "a noisy release must be charged", "open a ledger")
        self._ledger.reserve(
            release.mechanism.with_steps(1),
            study=terms.title,
            round=request.round,
            label=release.name,
            trust=terms.trust,
            alone=terms.alone(release.mechanism.with_steps(1), len(request.participants)),
        )

    def _contribution(self, request: Request, release: Release) -> Vector:
        """The sum over the sampled units of their clipped contributions: the one exact number, and it stays here."""
        if release.name == STATISTICS:
            return self._learner.statistics()
        units = None
        rate = release.mechanism.sampling_rate
        if rate < 1:
            units = np.flatnonzero(self._generator.random(self._learner.units) < rate)
        return self._learner.contribution(request.parameters, clip_norm=release.mechanism.clip_norm, units=units)
