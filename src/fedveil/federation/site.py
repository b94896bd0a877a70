"""One hospital: its cohort behind a learner, its policy, its ledger. The only place where a charge meets a pixel."""

import logging

import numpy as np
import numpy.typing as npt

from fedveil.errors import BudgetExceeded, FedveilError, Refused
from fedveil.federation.messages import (
    Answer,
    DeclineCode,
    Declined,
    Message,
    Reply,
    Request,
    SecureReply,
    SecureRequest,
    Vector,
)
from fedveil.federation.policy import Policy
from fedveil.federation.secure import Identity, SecureSite
from fedveil.federation.terms import (
    CALIBRATION,
    EVALUATION,
    PERSONAL,
    PROGRESS,
    STATISTICS,
    LocalSteps,
    Release,
    Terms,
    noise_share,
)
from fedveil.learning import HeldOut, Learner
from fedveil.privacy import Ledger, check_delta, secure_generator
from fedveil.privacy import release as release_noisy

__all__ = ["Site", "release_of"]

ATTEMPT = " attempt "
"""Between a release's name and the attempt in the label of a charge: what a restarted site reads its place from."""
log = logging.getLogger("fedveil.site")


def release_of(label: str) -> str:
    """The release that a charge's label names.

    >>> release_of("training attempt 7")
    'training'
    """
    return label.partition(ATTEMPT)[0]


class Site:
    """Answers a coordinator's requests under the site's own policy and budget.

    The order of every answer is: check the request, reserve its charge durably, compute, add noise. Whatever goes
    wrong after the reservation leaves the charge in place: a charge is never given back.

    Args:
        name: the site's name in the studies it takes part in.
        learner: the only code that sees the cohort's pixels.
        policy: what the hospital admits.
        ledger: the hospital's open ledger; None only for a site whose policy admits nothing but trust ``"none"``.
        identity: signature key and the other sites' public keys; needed for secure aggregation only.
        held_out: the patients that the hospital tests on; None if it holds out none, which nobody else learns.
    """

    def __init__(
        self,
        name: str,
        learner: Learner,
        policy: Policy,
        ledger: Ledger | None,
        identity: Identity | None = None,
        held_out: HeldOut | None = None,
    ) -> None:
        if ledger is None and policy.trusts != {"none"}:
            raise Refused(
                f"site {name} has no ledger",
                "every noisy release must be charged",
                "open a ledger, or admit trust none only",
            )
        self.name = name
        self._learner, self._policy, self._ledger, self._identity = learner, policy, ledger, identity
        self._held_out = held_out
        self._admitted: dict[str, Terms] = {}
        self._secure: dict[str, SecureSite] = {}
        self._served: dict[str, int] = {}
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
                check_delta(terms.target.delta, self._learner.units + self._units_held_out)
            self._check_budget(terms, self._ledger)
        if terms.trust == "secure-aggregation":
            self._secure[terms.digest] = self._secure_site(terms)
        self._admitted[terms.digest] = terms
        return terms.digest

    def _secure_site(self, terms: Terms) -> SecureSite:
        if self._identity is None:
            raise Refused(
                f"site {self.name} has no identity key",
                "secure aggregation needs keys that the sites know each other by",
                "make one with `fedveil site init`",
            )
        largest = min(
            (one.integer.units for one in terms.releases if one.integer and not one.local), default=None
        )
        units = max(self._learner.units, self._units_held_out)
        if largest is not None and units > largest:
            raise Refused(
                f"{self.name} holds {units:,} units",
                f"the study leaves room for {largest:,} a site",
                "raise federation.max_units in the study",
            )
        secure = SecureSite(self.name, terms, self._identity)
        secure.claimed(self._served.get(terms.digest, 0))
        return secure

    @property
    def _units_held_out(self) -> int:
        return 0 if self._held_out is None else self._held_out.units

    def _check_budget(self, terms: Terms, ledger: Ledger) -> None:
        """Check that the whole study fits; one that has begun already is checked charge by charge."""
        labels = [charge.label for charge in ledger.state.charges if charge.study == terms.title]
        self._served[terms.digest] = max((int(label.split(ATTEMPT)[1]) for label in labels), default=0)
        if not labels:
            ledger.admit(*(release.mechanism for release in terms.releases))

    def handle(self, message: Message) -> Answer:
        """Answer one message. Never raises for anything that the message or the cohort brings about."""
        try:
            if isinstance(message, SecureRequest):
                return self._handle_secure(message)
            return self._handle_round(message)
        except BudgetExceeded as error:
            return self._decline(message, "over-budget", error)
        except FedveilError as error:
            return self._decline(message, "refused", error)
        except Exception as error:  # noqa: BLE001 - nothing about the cohort may leave in an exception
            return self._decline(message, "failed", error)

    def _decline(self, message: Message, code: DeclineCode, error: Exception) -> Declined:
        if isinstance(message, Request):
            release, number, attempt = message.release, message.round, message.attempt
        else:
            release, number, attempt = "secure-aggregation", 0, 0
        log.warning("%s: %s round %s declined: %s", self.name, release, number, error)
        return Declined(
            site=self.name, study=message.study, release=release, round=number, attempt=attempt, code=code
        )

    def _handle_secure(self, message: SecureRequest) -> SecureReply:
        terms = self._terms_of(message.study)
        if terms.digest not in self._secure:
            raise Refused(
                "the study does not aggregate securely", "its trust decides how", "run the admitted study"
            )
        keys = self._secure[terms.digest].answer(message.body)
        return SecureReply(site=self.name, study=message.study, keys=keys)

    def _handle_round(self, request: Request) -> Reply:
        terms = self._terms_of(request.study)
        if request.release == PERSONAL:
            raise Refused(
                "the request is for the hospital's own model",
                "a hospital makes it for itself, and shows it to whom it likes",
                "ask for the releases of the study",
            )
        release = self._check(request, terms)
        self._reserve(request, terms, release)
        total = self._contribution(request, release)
        return Reply(
            site=self.name,
            study=request.study,
            release=request.release,
            round=request.round,
            attempt=request.attempt,
            vector=self._protect(request, terms, release, total),
        )

    def personalise(self, study: str, parameters: Vector) -> Vector:
        """The hospital's own model: private steps from the finished one, pulled back to it; charged like a round.

        Mean-regularised personalisation (Liu et al., 2206.07902). Every step has the whole noise of its mechanism, so
        what comes out is private by itself, whoever sees it.

        Args:
            study: digest of admitted terms, which hold a `PERSONAL` release.
            parameters: the finished model.

        Returns:
            The parameters of the hospital's own model.

        Raises:
            BudgetExceeded: the ledger has no room, or this was paid for before, whatever became of the model.
        """
        terms = self._terms_of(study)
        if self._ledger is not None and _has_own(self._ledger, terms):
            raise BudgetExceeded(
                f"{self.name}'s own model of study {terms.name} was charged before",
                "a study pays for one",
                "use it, or the common model if it was lost",
            )
        request = Request(
            study=study,
            release=PERSONAL,
            round=1,
            attempt=self._served.get(study, 0) + 1,
            participants=terms.sites,
            parameters=parameters,
        )
        release = self._check(request, terms)
        if release.local is None:
            raise Refused(
                "the study states no personal steps", "a site takes those that it admitted", "plan them"
            )
        self._reserve(request, terms, release)
        own = parameters.copy()
        own[-release.dimension :] += self._local_steps(parameters, release, release.local)
        return own

    def _protect(
        self, request: Request, terms: Terms, release: Release, total: Vector
    ) -> Vector | npt.NDArray[np.uint32]:
        """The sum as it may leave: with noise, or with its share of the noise and masked."""
        if release.integer is not None:
            words = release.integer.encode(total, self._generator)
            return self._secure[terms.digest].mask(request.attempt, words)
        if release.local_noise:
            return total
        std = noise_share(terms.trust, release.mechanism, terms.honest)
        return release_noisy(total, std, self._generator) if std > 0 else total

    def _terms_of(self, study: str) -> Terms:
        try:
            return self._admitted[study]
        except KeyError:
            raise Refused(
                f"the request names study {study[:12]}",
                "this site has not admitted it",
                "have the hospital read and approve the study first",
            ) from None

    def _check(self, request: Request, terms: Terms) -> Release:
        """Everything about a request that can be wrong, before anything is charged."""
        release = terms.release(request.release)
        if not 1 <= request.round <= release.rounds:
            raise Refused(
                f"the request is for round {request.round}",
                f"the study has {release.rounds}",
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
                "the request leaves this site out",
                "a site answers for itself only",
                "ask the participants only",
            )
        if not terms.enough(len(request.participants)):
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
        if release.integer is not None:
            self._secure[terms.digest].opened()
        if request.attempt <= self._served.get(request.study, 0):
            raise Refused(
                f"attempt {request.attempt}, or a later one, was served before",
                "a site serves an attempt once, and attempts only grow",
                "raise the attempt to repeat a round",
            )
        return release

    def _reserve(self, request: Request, terms: Terms, release: Release) -> None:
        self._served[request.study] = request.attempt
        if terms.trust == "none":
            return
        if self._ledger is None:
            raise Refused("this site has no ledger", "a noisy release must be charged", "open a ledger")
        charge = release.mechanism.with_steps(release.steps_per_round)
        self._ledger.reserve(
            charge,
            study=terms.title,
            round=request.round,
            label=f"{release.name}{ATTEMPT}{request.attempt}",
            trust=terms.trust,
            alone=terms.alone(charge),
        )

    def _contribution(self, request: Request, release: Release) -> Vector:
        """What the round is about, before it is protected: exact, so it stays here, unless local steps had noise."""
        if release.name == EVALUATION:
            if self._held_out is None:
                return np.zeros(release.dimension)
            sample = self._sample(release, self._held_out.units)
            return self._held_out.histogram(request.parameters, sample)
        if release.name == PROGRESS:
            return self._learner.hits(request.parameters, self._sample(release, self._learner.units))
        if release.name in (STATISTICS, CALIBRATION):
            units = self._sample(release, self._learner.units)
            if units is None:
                return self._learner.statistics(request.parameters)
            return self._learner.statistics(request.parameters, units)
        if release.local is not None:
            return self._local_steps(request.parameters, release, release.local)
        return self._sum(request.parameters, release, release.mechanism.clip_norm)

    def _sum(self, parameters: Vector, release: Release, clip_norm: float) -> Vector:
        """The sum over the sampled units of their clipped contributions; each unit is drawn by itself."""
        return self._learner.contribution(
            parameters, clip_norm=clip_norm, units=self._sample(release, self._learner.units)
        )

    def _sample(self, release: Release, units: int) -> npt.NDArray[np.int64] | None:
        """Each unit by itself, at the rate that is accounted; None for all of them."""
        rate = release.mechanism.sampling_rate
        if rate == 1:
            return None
        return np.flatnonzero(self._generator.random(units) < rate)

    def _local_steps(self, start: Vector, release: Release, local: LocalSteps) -> Vector:
        """The difference that local steps make to the trained part, the end of the vector; see `LocalSteps`."""
        std = release.mechanism.noise_std if release.local_noise else 0.0
        clip_norm = release.mechanism.clip_norm if release.local_noise else local.clip_norm
        parameters = start.copy()
        trained, origin = parameters[-release.dimension :], start[-release.dimension :]
        for _ in range(local.steps):
            total = self._sum(parameters, release, clip_norm)
            if std > 0:
                total = release_noisy(total, std, self._generator)
            trained -= local.learning_rate * (total / local.units + local.proximal * (trained - origin))
        bound = local.reach if release.local_noise else release.mechanism.clip_norm
        return _clipped(trained - origin, bound)


def _has_own(ledger: Ledger, terms: Terms) -> bool:
    """Whether the site's own model was charged, by this process or one before it."""
    made = (charge.label for charge in ledger.state.charges if charge.study == terms.title)
    return any(release_of(label) == PERSONAL for label in made)


def _clipped(vector: Vector, bound: float) -> Vector:
    """The vector, scaled down to the bound if it is longer; zero if it is not finite."""
    norm = float(np.linalg.norm(vector))
    if not np.isfinite(norm):
        return np.zeros_like(vector)
    return vector if norm <= bound else vector * (bound / norm)
