"""One hospital: its cohort behind a learner, its policy, its ledger. The only place with access to both ledger and
images."""

import logging
from collections import Counter
from typing import cast

import numpy as np

from fedveil.errors import BudgetExceeded, FedveilError, Refused
from fedveil.federation.agreement import Agreement
from fedveil.federation.contributions import Contributions
from fedveil.federation.levels.grid import Shown
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
    Words32,
    Words64,
)
from fedveil.federation.noise import LocalNoise
from fedveil.federation.policy import Policy
from fedveil.federation.queries import HospitalUnits, NoisySum
from fedveil.federation.release import Release
from fedveil.federation.secure_rounds import Identity, SecureSite
from fedveil.learning import HeldOut, Learner, Model
from fedveil.names import attempt_words
from fedveil.privacy import Ledger, Words, secure_generator

__all__ = ["Site", "release_of"]

LARGEST = 1e6
"""Parameters of useful models are smaller; larger ones make numbers overflow, for some images only."""
ATTEMPT = " attempt "
"""Separator between a release's name and the attempt in the label of a charge; a restarted site reads its last
attempt from it."""
log = logging.getLogger("fedveil.site")


def release_of(label: str) -> str:
    """The release that a charge's label names.

    >>> release_of("training attempt 7")
    'training'
    """
    return label.partition(ATTEMPT)[0]


class Site:
    """Answers a coordinator's requests under the site's own policy and budget.

    The order of every answer is: check the request, reserve its charge durably, compute, add noise. A failure after
    the reservation does not remove the charge: a charge is never refunded.

    Args:
        name: the site's name in the studies it takes part in.
        learner: the only code that sees the cohort's pixels; None if no image can be used: the site then answers
            with noise alone, charged as usual, since this must not be visible.
        policy: what the hospital admits.
        ledger: the hospital's open ledger; None only for a site whose policy admits nothing but trust ``"none"``.
        identity: signature key and the other sites' public keys; only needed for secure aggregation.
        held_out: the hospital's test patients; None if it holds out none, which is not revealed.
        model: the study's, for a site without a learner: the validity of a request does not depend on images.
    """

    def __init__(
        self,
        name: str,
        learner: Learner | None,
        policy: Policy,
        ledger: Ledger | None,
        identity: Identity | None = None,
        held_out: HeldOut | None = None,
        model: Model | None = None,
    ) -> None:
        if ledger is None and policy.trusts != {"none"}:
            raise Refused(
                f"site {name} has no ledger",
                "every noisy release must be charged",
                "open a ledger, or admit trust none only",
            )
        self.name = name
        self._policy, self._ledger, self._identity = policy, ledger, identity
        self._admitted: dict[str, Agreement] = {}
        self._secure: dict[str, SecureSite] = {}
        self._shown: dict[str, Shown] = {}
        self._served: dict[str, int] = {}
        self._asked: dict[str, Counter[str]] = {}
        self._generator = secure_generator()
        self._hospital = HospitalUnits(learner=learner, held_out=held_out)
        self._contributions = Contributions(name, self._hospital, self._generator, model)

    def admit(self, agreement: Agreement) -> str:
        """Admit a study after checking it against the policy and the budget, never the cohort; return its digest.

        Raises:
            Refused: the policy forbids it, or the site is not part of it.
            BudgetExceeded: the whole study would cost more than the budget has left.
            InvalidValue: delta is larger than one over the policy's bound on units.
        """
        self._policy.check(agreement)
        if self.name not in agreement.sites:
            raise Refused(
                f"the study names {', '.join(agreement.sites)}",
                f"{self.name} is not among them",
                "add it to the study's sites",
            )
        if not agreement.holds:
            raise Refused(
                f"the releases of {agreement.name} cost more than its target",
                f"together they may cost epsilon {agreement.target.epsilon:g} at delta {agreement.target.delta:g}",
                "calibrate them to the target",
            )
        if self._ledger is not None:
            self._check_budget(agreement, self._ledger)
        if agreement.trust == "secure-aggregation":
            self._secure[agreement.digest] = self._secure_site(agreement)
        if agreement.calibration is not None:
            self._shown[agreement.digest] = Shown(agreement.calibration)
        self._admitted[agreement.digest] = agreement
        return agreement.digest

    def _secure_site(self, agreement: Agreement) -> SecureSite:
        if self._identity is None:
            raise Refused(
                f"site {self.name} has no identity key",
                "secure aggregation needs keys that identify the sites to each other",
                "make one with `fedveil site init`",
            )
        secure = SecureSite(self.name, agreement, self._identity)
        secure.claimed(self._served.get(agreement.digest, 0))
        return secure

    def _check_budget(self, agreement: Agreement, ledger: Ledger) -> None:
        """Check that the whole study fits; a study that has already begun is checked charge by charge."""
        charges = [charge for charge in ledger.state.charges if agreement.charged_to(charge)]
        asked, served = Counter[str](), 0
        for charge in charges:
            asked[release_of(charge.label)] += charge.mechanism.steps
            served = max(served, int(charge.label.split(ATTEMPT)[1]))
        self._asked[agreement.digest], self._served[agreement.digest] = asked, served
        if not any(charge.study == agreement.title for charge in charges):
            ledger.admit(*(release.mechanism for release in agreement.releases))

    def handle(self, message: Message) -> Answer:
        """Answer one message. Never raises because of the message or the cohort."""
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
        agreement = self._agreement_of(message.study)
        if agreement.digest not in self._secure:
            raise Refused(
                "the study does not aggregate securely",
                "its trust level must be secure-aggregation",
                "run the admitted study",
            )
        keys = self._secure[agreement.digest].answer(message.body)
        return SecureReply(site=self.name, study=message.study, keys=keys)

    def _handle_round(self, request: Request) -> Reply:
        agreement = self._agreement_of(request.study)
        release = self._check(request, agreement)
        if release.query.at_site:
            raise Refused(
                f"the request is for {request.release}, which stays at a hospital",
                "a coordinator may only request releases that leave the hospital",
                "ask for the releases of the study",
            )
        self._reserve(request, agreement, release)
        own = release.own_parameters(request.parameters)
        total = self._contributions.of(release, own, private=agreement.trust != "none")
        return Reply(
            site=self.name,
            study=request.study,
            release=request.release,
            round=request.round,
            attempt=request.attempt,
            vector=self._protect(request, agreement, release, total),
        )

    def make_own(self, study: str, name: str, parameters: Vector) -> NoisySum:
        """A hospital's own release from a finished model: with all of the noise, charged once.

        Args:
            study: digest of an admitted agreement.
            name: of a release that stays at the site.
            parameters: of its query.

        Raises:
            BudgetExceeded: the ledger has no room, or this was charged before, even if its result was lost.
        """
        agreement, release = self._charge_own(study, name, parameters)
        total = self._contributions.of(release, parameters, private=agreement.trust != "none")
        if not release.noise_inside:
            total = LocalNoise().protect(total, release.calibrated, self._generator)
        return NoisySum(total, agreement.noise_variance(release, 1))

    def _charge_own(self, study: str, name: str, parameters: Vector) -> tuple[Agreement, Release]:
        """Charge a hospital's own release: only once, even if its result was lost."""
        agreement = self._agreement_of(study)
        if not agreement.release(name).query.at_site:
            raise Refused(
                f"{name} is a release of all sites together",
                "a hospital's own release must be one that stays at the site",
                "wait until the coordinator asks for it",
            )
        if self._ledger is not None and _has(self._ledger, agreement, name):
            raise BudgetExceeded(
                f"{name} of study {agreement.name} was charged to {self.name} before",
                "a study charges it only once",
                "use its result, or the common model if that was lost",
            )
        request = Request(
            study=study,
            release=name,
            round=1,
            attempt=self._served.get(study, 0) + 1,
            participants=agreement.sites,
            parameters=parameters,
        )
        release = self._check(request, agreement)
        self._reserve(request, agreement, release)
        return agreement, release

    def _protect(
        self, request: Request, agreement: Agreement, release: Release, total: Vector
    ) -> Vector | Words32 | Words64:
        """The protected sum: with noise, or with its share of the noise and masked."""
        if release.noise_inside and release.integer is None:
            return total
        protected = agreement.noise.protect(total, release.calibrated, self._generator)
        if release.integer is None:
            return cast(Vector, protected)
        words = cast(Words, protected)
        masked = self._secure[agreement.digest].mask(request.attempt, words, release.name)
        return cast(Words32 | Words64, masked)

    def _agreement_of(self, study: str) -> Agreement:
        try:
            return self._admitted[study]
        except KeyError:
            raise Refused(
                f"the request names study {study[:12]}",
                "a site only answers studies that it has admitted",
                "have the hospital read and approve the study first",
            ) from None

    def _check(self, request: Request, agreement: Agreement) -> Release:
        """Check everything about a request before anything is charged."""
        release = agreement.release(request.release)
        if not 1 <= request.round <= release.rounds:
            raise Refused(
                f"the request is for round {request.round}",
                f"the study has {release.rounds}",
                "run the study that was admitted",
            )
        unknown = set(request.participants) - set(agreement.sites)
        if unknown or len(set(request.participants)) != len(request.participants):
            raise Refused(
                f"the participants are {', '.join(request.participants)}",
                f"they must be different sites among {', '.join(agreement.sites)}",
                "ask the sites that the study names",
            )
        if self.name not in request.participants:
            raise Refused(
                "the request leaves this site out",
                "only participants may be asked",
                "ask only the participants",
            )
        if not agreement.enough(len(request.participants)):
            raise Refused(
                f"{len(request.participants)} sites take part",
                f"the study needs {agreement.min_sites} and enough honest noise shares",
                "wait until more sites are connected",
            )
        parameters = request.parameters
        fits = parameters.shape == (release.parameters,)
        if not (fits and np.isfinite(parameters).all() and np.abs(parameters).max(initial=0.0) <= LARGEST):
            raise Refused(
                f"the parameters have shape {parameters.shape}, or are not finite or too large",
                f"they must be {release.parameters} finite numbers, none larger than {LARGEST:g}",
                "send the model that the study describes; reduce the learning rate if it has diverged",
            )
        if agreement.calibration is not None and release.level is not None:
            self._shown[agreement.digest].check(release, parameters, self._asked[agreement.digest])
        self._contributions.check(release, release.own_parameters(parameters))
        if release.integer is not None:
            self._secure[agreement.digest].opened()
        if request.attempt <= self._served.get(request.study, 0):
            raise Refused(
                f"{attempt_words(request.attempt)}, or a later one, was served before",
                "a site answers an attempt only once, and attempts only increase",
                "increase the attempt to repeat a round",
            )
        return release

    def _reserve(self, request: Request, agreement: Agreement, release: Release) -> None:
        """Charge the ledger, within its budget for all studies and within the study's own target.

        So an approved study costs at most what was approved, for any number of requests.
        """
        self._served[request.study] = request.attempt
        if self._ledger is None:
            if agreement.trust != "none":
                raise Refused("this site has no ledger", "a noisy release must be charged", "open a ledger")
            return
        charge = release.mechanism.with_steps(release.steps_per_round)
        asked = self._asked[agreement.digest] + Counter({release.name: charge.steps})
        if not agreement.affords(asked):
            raise BudgetExceeded(
                f"{release.name} is requested more often than the target of {agreement.name} covers",
                f"the study was admitted at epsilon {agreement.target.epsilon:g}, repeated rounds included",
                "end it with fewer rounds, or start another study",
            )
        self._ledger.reserve(
            charge,
            study=agreement.title,
            round=request.round,
            label=f"{release.name}{ATTEMPT}{request.attempt}",
            trust=agreement.trust,
            alone=agreement.alone(release, charge.steps),
        )
        self._asked[agreement.digest] = asked


def _has(ledger: Ledger, agreement: Agreement, release: str) -> bool:
    """Whether the study was charged for a release, by this process or one before it."""
    made = (charge.label for charge in ledger.state.charges if agreement.charged_to(charge))
    return any(release_of(label) == release for label in made)
