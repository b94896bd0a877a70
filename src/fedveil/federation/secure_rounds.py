"""Secure aggregation inside a study's rounds: what a site accepts, and how the coordinator runs it.

The protocol itself is `fedveil.federation.secure_aggregation`. A session serves up to `SESSION_ROUNDS` attempts of
a study; its rounds are numbered by the study's attempts, which never repeat, so no mask is ever used twice.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import numpy.typing as npt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedveil.errors import FederationError, FedveilError, InvalidValue, Refused
from fedveil.federation.agreement import Agreement
from fedveil.federation.messages import DeclineCode, Declined, SecureReply, SecureRequest, Vector
from fedveil.federation.release import Release
from fedveil.federation.secure_aggregation import (
    Aggregation,
    Dispute,
    MaskedInput,
    RoundAbandoned,
    SecureAggregationClient,
    SecureAggregationServer,
    Session,
    SetUpFailed,
    establish,
    suspects,
    unmask,
)
from fedveil.federation.transport import Transport
from fedveil.names import attempt_words
from fedveil.privacy import Words

__all__ = ["Identity", "RoundAbandoned", "SecureRounds", "SecureSite", "add_masked"]

SESSION_ROUNDS = 256
_SESSION_START = b"{"  # a session is sent as JSON, every other message as a frame


@dataclass(frozen=True, slots=True)
class Identity:
    """A site's long-term signature key, and the public keys (Ed25519, 32 bytes) of all sites by name.

    The public keys come from the hospitals themselves, not from the coordinator: they detect a server that exchanges
    keys.
    """

    private: Ed25519PrivateKey
    pinned: Mapping[str, bytes]


@final
class SecureSite:
    """A site's side of one study: at most one session at a time, each bound to the admitted agreement."""

    def __init__(self, site: str, agreement: Agreement, identity: Identity) -> None:
        self._site, self._agreement, self._identity = site, agreement, identity
        self._client: SecureAggregationClient | None = None
        self._claimed = 0

    def answer(self, body: bytes) -> bytes:
        """Answer a set-up or recovery message; raises `Refused` for messages that do not match the agreement."""
        if body.startswith(_SESSION_START):
            return self._open(Session.from_bytes(body))
        return self.opened().reply(body)

    def opened(self) -> SecureAggregationClient:
        """The current session; `Refused` if there is none: sessions are never stored, so a restarted site has none."""
        if self._client is None:
            raise Refused(
                "no session is open", "a session must be set up before its rounds", "open a session"
            )
        return self._client

    def mask(self, attempt: int, words: Words, release: str) -> Words:
        """Mask the words of an attempt that the site has charged for, as words of that release."""
        return self.opened().masked_input(attempt, words, release).words

    def _open(self, session: Session) -> bytes:
        agreement = self._agreement
        expected = session_of(agreement, session.sites, session.first_round, session.rounds)
        if (
            session != expected
            or not agreement.enough(len(session.sites))
            or session.first_round <= self._claimed
        ):
            raise Refused(
                "a secure aggregation session was offered that does not follow from the agreement",
                "its sites, thresholds and rounds must follow from the agreement that this site admitted",
                "run the study that was admitted, with a current version of fedveil",
            )
        self._client = SecureAggregationClient(
            session,
            self._site,
            identity=self._identity.private,
            pinned=self._identity.pinned,
            claim=self._claim,
        )
        return self._client.announce().to_bytes()

    def _claim(self, attempt: int) -> None:
        """Attempts only increase; the charge, which names the attempt, was stored durably before."""
        if attempt <= self._claimed:
            raise Refused(
                f"{attempt_words(attempt)} was served before",
                "a round may run only once",
                "increase the attempt",
            )
        self._claimed = attempt

    def claimed(self, attempt: int) -> None:
        """Attempts up to this one were served before the site was restarted."""
        self._claimed = max(self._claimed, attempt)


def session_of(agreement: Agreement, sites: tuple[str, ...], first: int, rounds: int) -> Session:
    """The agreement's session for these sites: one rule for both sides."""
    ordered = tuple(site for site in agreement.sites if site in sites)
    return Session.of(
        agreement.digest,
        ordered,
        first_round=first,
        rounds=min(rounds, SESSION_ROUNDS),
        min_honest=agreement.honest,
    )


@final
class SecureRounds:
    """The coordinator's side: sets sessions up as they are needed, and opens sums."""

    def __init__(self, agreement: Agreement, transport: Transport) -> None:
        self._agreement, self._transport = agreement, transport
        self._server: SecureAggregationServer | None = None
        self._lost: set[str] = set()
        self._disputes = frozenset[Dispute]()
        self._declined: dict[str, DeclineCode] = {}
        self._invalid: dict[str, str] = {}

    def lose(self, site: str) -> None:
        """Exclude a site from the current session: it failed, and may have been restarted without its keys."""
        self._lost.add(site)

    def expel(self, site: str) -> None:
        """Exclude a site from all sessions: it broke the protocol, so those in dispute with it did not."""
        self._lost.add(site)
        self._disputes = frozenset(pair for pair in self._disputes if site not in pair)

    @property
    def suspects(self) -> frozenset[str]:
        """Sites that are left out because of disputes; see `suspects`."""
        return suspects(self._disputes)

    def invalid(self) -> Mapping[str, str]:
        """Errors in answers since the last call, by site."""
        found, self._invalid = self._invalid, {}
        return found

    def prepare(self, attempt: int, sites: tuple[str, ...]) -> Mapping[str, DeclineCode] | None:
        """Ensure that a session covers the attempt and the sites; None if one does.

        Otherwise the sites that failed to join a new one, with reasons; the result may also be empty if only
        `suspects` has changed.

        A session that has lost too many of its sites is replaced by one of the remaining sites; when they return, by
        one of all.
        """
        session = self._server.session if self._server else None
        if (
            session
            and session.first_round <= attempt < session.first_round + session.rounds
            and len(sites) >= session.min_survivors
            and self.members(sites) == sites
        ):
            return None
        self._server = None  # a site that is asked to join another session discards this one
        session = session_of(self._agreement, sites, attempt, SESSION_ROUNDS)
        server = SecureAggregationServer(session, self._transport.signing_keys)
        try:
            establish(server, self._exchange)
        except SetUpFailed as error:
            self._disputes |= error.disputes
            self._invalid |= error.invalid
            return {site: self._declined.get(site, "unreachable") for site in error.silent} | dict.fromkeys(
                self._invalid, "invalid"
            )
        self._server = server
        self._lost.clear()
        return None

    def enough(self, sites: tuple[str, ...]) -> bool:
        """Whether the agreement has a session in which these sites could complete a round.

        A sparse session, of many sites, needs more survivors than the honest ones, compared with a small one.
        """
        try:
            session = session_of(self._agreement, sites, 0, 1)
        except InvalidValue:
            return False
        return self._agreement.enough(len(sites)) and len(sites) >= session.min_survivors

    def complete(self, survivors: tuple[str, ...]) -> bool:
        """Whether a round of the current session may be opened with these sites' answers."""
        return self._server is not None and len(self.members(survivors)) >= self._server.session.min_survivors

    def members(self, sites: tuple[str, ...]) -> tuple[str, ...]:
        """The given sites that are in the current session and were not lost from it."""
        inside = set(self._server.session.sites) - self._lost if self._server else set()
        return tuple(site for site in sites if site in inside)

    def open(self, attempt: int, release: str) -> Aggregation:
        """Begin to collect an attempt's masked words of a release."""
        if self._server is None:
            raise FederationError(
                "no session is open", "a session must be set up before its rounds", "call prepare"
            )
        return self._server.open(attempt, release)

    def total(self, aggregation: Aggregation, release: Release) -> Vector:
        """Unmask the sum of the survivors' words and decode it; raises `RoundAbandoned` if too few remain."""
        if release.integer is None:
            raise FederationError(
                "the release has no integer mechanism", "only integers can be masked", "calibrate it"
            )

        def exchange(messages: Mapping[str, bytes]) -> Mapping[str, bytes]:
            answers = self._exchange(messages)
            self._lost.update(set(messages) - set(answers))
            return answers

        try:
            return release.integer.decode(unmask(aggregation, exchange, self._invalid.__setitem__))
        finally:
            self._disputes |= aggregation.disputes

    def _exchange(self, messages: Mapping[str, bytes]) -> Mapping[str, bytes]:
        requests = {
            site: SecureRequest(study=self._agreement.digest, body=body) for site, body in messages.items()
        }
        answers, keys = self._transport.exchange(requests), {}
        self._declined = {}
        for site in messages:
            answer = answers.get(site)
            if isinstance(answer, SecureReply) and (answer.site, answer.study) == (
                site,
                self._agreement.digest,
            ):
                keys[site] = answer.keys
            elif isinstance(answer, Declined) and answer.site == site:
                self._declined[site] = answer.code
            elif answer is not None:
                self._declined[site] = "invalid"
            if self._declined.get(site) == "invalid":
                self._invalid[site] = "its answer does not match the request"
        return keys


def add_masked(aggregation: Aggregation, site: str, words: npt.NDArray[Any], attempt: int) -> bool:
    """Add a site's masked words to a sum that is being collected; False if they do not belong to it."""
    try:
        aggregation.add(MaskedInput(site, attempt, words))
    except FedveilError:
        return False
    return True
