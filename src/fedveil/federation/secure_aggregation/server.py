"""The server's side: it forwards boxes, adds masked words, and removes the masks that do not cancel.

The sites do not trust the server: they check its messages, and any other deviation only yields random words.
"""

import secrets
from collections.abc import Iterable, Mapping
from typing import final

from fedveil.errors import FederationError
from fedveil.federation.secure_aggregation.codec import split_evenly
from fedveil.federation.secure_aggregation.disputes import Dispute
from fedveil.federation.secure_aggregation.keys import KEY_BYTES, agree, private_key, public_bytes, verify
from fedveil.federation.secure_aggregation.masks import Words, apply_masks, pair_mask_key, self_mask_key
from fedveil.federation.secure_aggregation.messages import (
    Announcement,
    MaskedInput,
    Ready,
    Recovery,
    RecoveryRequest,
    Roster,
    SharesDelivered,
    SharesSent,
)
from fedveil.federation.secure_aggregation.session import Session
from fedveil.federation.secure_aggregation.shamir import combine

__all__ = ["Aggregation", "RoundAbandoned", "SecureAggregationServer", "SetUpFailed"]

_TAG = 16  # bytes that AES-GCM adds to what it encrypts


class RoundAbandoned(FederationError):
    """Too few sites remain in a round to open its sum. It stays charged; nothing was revealed."""


class SetUpFailed(FederationError):
    """A session was not set up.

    Attributes:
        silent: sites that did not answer.
        invalid: by site, what was wrong with its answer.
        disputes: sites of which at least one is at fault.
    """

    def __init__(
        self,
        silent: tuple[str, ...] = (),
        invalid: Mapping[str, str] | None = None,
        disputes: frozenset[Dispute] = frozenset(),
    ) -> None:
        wrong = [f"{site} did not answer" for site in silent]
        wrong += [f"of {site}: {why}" for site, why in (invalid or {}).items()]
        wrong += [f"{site} cannot use the shares from {other}" for site, other in sorted(disputes)]
        super().__init__(
            "; ".join(wrong) or "nobody answered",
            "every site of a session must take part in its set-up",
            "open a session with the sites that answer",
        )
        self.silent, self.invalid, self.disputes = silent, dict(invalid or {}), disputes

    def __reduce__(self) -> tuple[type["SetUpFailed"], tuple[object, ...]]:  # type: ignore[override]
        return type(self), (self.silent, self.invalid, self.disputes)


@final
class SecureAggregationServer:
    """The coordinator in one session.

    Args: session: the agreed session. pinned: the sites' long-term public keys, if the coordinator has them: it then
    detects damaged announcements before the sites refuse them.
    """

    def __init__(self, session: Session, pinned: Mapping[str, bytes] | None = None) -> None:
        self.session = session
        self._pinned = dict(pinned or {})
        self._keys: dict[str, tuple[bytes, ...]] = {}
        self._neighbours: dict[str, tuple[str, ...]] = {}
        self._roster = b""

    def roster(self, announcements: Iterable[Announcement]) -> Roster:
        """Everyone's announcement; raises FederationError, naming the sites, if one is missing or not its owner's."""
        given = {one.site: one for one in announcements}
        silent = tuple(site for site in self.session.sites if site not in given)
        if silent:
            raise SetUpFailed(silent)
        for site in self.session.sites:
            self.check_announcement(given[site])
        roster = Roster(tuple(given[site] for site in self.session.sites))
        self._keys = {one.site: one.round_keys for one in roster.announcements}
        self._roster = roster.digest(self.session)
        return roster

    def deliver(self, sent: Iterable[SharesSent]) -> dict[str, SharesDelivered]:
        """Each site's boxes, sorted by receiver; raises SetUpFailed if some are missing."""
        given = {one.site: one.boxes for one in sent}
        silent = tuple(site for site in self.session.sites if site not in given)
        if silent:
            raise SetUpFailed(silent)
        disputes = frozenset(
            (site, other) for site in given for other in given[site] if site not in given[other]
        )
        if disputes:
            raise SetUpFailed(disputes=disputes)
        self._neighbours = {site: tuple(given[site]) for site in self.session.sites}
        return {
            site: SharesDelivered({other: given[other][site] for other in neighbours})
            for site, neighbours in self._neighbours.items()
        }

    def open(self, round_number: int, purpose: str = "") -> "Aggregation":
        """A round, to which masked words are added as they arrive; `purpose` identifies the sum that the sites were
        asked for."""
        index = round_number - self.session.first_round
        if not self._neighbours or not 0 <= index < self.session.rounds:
            raise FederationError(
                f"round {round_number} was started",
                "the session must be set up, and hold that round",
                "run the set-up, or open a new session",
            )
        keys = {site: keys[index] for site, keys in self._keys.items()}
        return Aggregation(self.session, self._roster, keys, self._neighbours, round_number, purpose)

    # A site's messages are checked here because all others would refuse them and seem to be at fault.

    def check_announcement(self, one: Announcement) -> None:
        """Raise FederationError for keys that the other sites would refuse."""
        statement = Announcement.statement(self.session.digest, one.site, one.channel_key, one.round_keys)
        pinned = self._pinned.get(one.site)
        if len(one.round_keys) != self.session.rounds or (
            pinned is not None and not verify(pinned, one.signature, *statement)
        ):
            raise _unusable(
                one.site, "announcement of keys is not signed by it, or is not one for each round"
            )
        probe = private_key(secrets.token_bytes(KEY_BYTES))
        if any(agree(probe, key) is None for key in (one.channel_key, *one.round_keys)):
            raise _unusable(one.site, "announcement holds a key of small order")

    def check_shares(self, one: SharesSent) -> None:
        """Raise FederationError for boxes that are not for the site's neighbours, or of another size."""
        others = set(self.session.sites) - {one.site}
        size = 2 * KEY_BYTES * self.session.rounds + _TAG
        expected = set(one.boxes) <= others if self.session.sparse else set(one.boxes) == others
        if not expected or any(len(box) != size for box in one.boxes.values()):
            raise _unusable(one.site, "boxes are not for the others in the session, or not of their size")

    def check_ready(self, one: Ready) -> None:
        """Raise FederationError for complaints about sites that sent it nothing."""
        if not set(one.unreadable) <= set(self._neighbours[one.site]):
            raise _unusable(one.site, "complaints are not about what it was sent")


@final
class Aggregation:
    """One round at the server: `add` masked words, `request` recovery once, `reveal` the answers, take the `total`."""

    def __init__(
        self,
        session: Session,
        roster: bytes,
        keys: Mapping[str, bytes],
        neighbours: Mapping[str, tuple[str, ...]],
        round_number: int,
        purpose: str = "",
    ) -> None:
        self._session, self._roster, self._keys, self._neighbours = session, roster, keys, neighbours
        self._purpose = purpose
        self._numbers = {name: number for number, name in enumerate(session.sites, start=1)}
        self.round_number = round_number
        self._arrived: set[str] = set()
        self._sum: Words | None = None
        self._request: RecoveryRequest | None = None
        self._recoveries: dict[str, Recovery] = {}

    @property
    def survivors(self) -> tuple[str, ...]:
        """The sites whose masked words arrived, in the order of the session."""
        return tuple(site for site in self._session.sites if site in self._arrived)

    def add(self, masked: MaskedInput) -> None:
        """Add a site's masked words to the sum; raises FederationError for words that do not belong to it."""
        if (
            masked.round_number != self.round_number
            or masked.site not in self._numbers
            or masked.site in self._arrived
            or self._request is not None
            or (self._sum is not None and _form(self._sum) != _form(masked.words))
        ):
            raise FederationError(
                f"masked words from {masked.site} for round {masked.round_number} do not belong to the sum",
                f"round {self.round_number} takes one vector per site, of one length and width, until recovery begins",
                "discard them; they stay masked",
            )
        if self._sum is None:
            self._sum = masked.words.copy()
        else:
            self._sum += masked.words
        self._arrived.add(masked.site)

    def request(self) -> RecoveryRequest:
        """The request to the survivors. The list is then final; raises RoundAbandoned if it is too short."""
        if len(self._arrived) < self._session.min_survivors:
            raise self._abandoned(
                f"{len(self._arrived)} of {len(self._session.sites)} sites sent their words"
            )
        if self._request is None:
            self._request = RecoveryRequest(self.round_number, self.survivors)
        return self._request

    def reveal(self, recovery: Recovery) -> None:
        """Accept a survivor's shares; raises FederationError for anything that was not requested."""
        if (
            self._request is None
            or recovery.site not in self._arrived
            or recovery.round_number != self.round_number
            or len(recovery.lock.box) != KEY_BYTES * (1 + len(self._neighbours[recovery.site])) + _TAG
        ):
            raise FederationError(
                f"shares from {recovery.site} for round {recovery.round_number} were not asked for",
                f"only survivors of round {self.round_number} may reveal shares",
                "leave them out",
            )
        self._recoveries[recovery.site] = recovery

    @property
    def disputes(self) -> frozenset[Dispute]:
        """Survivors whose pads do not open each other's locks: one of the two is at fault."""
        return frozenset(
            (owner, holder)
            for owner, recovery in self._recoveries.items()
            for holder, given in self._recoveries.items()
            if owner != holder and not recovery.lock.takes(holder, given.pads.get(owner, b""))
        )

    def total(self) -> Words:
        """The sum of the survivors' words; raises RoundAbandoned if too few of them revealed shares."""
        if self._request is None or self._sum is None:
            raise FederationError(
                "no recovery was requested", "a sum is opened in two exchanges", "call request first"
            )
        opened = self._open_locks(self._request)
        add: list[bytes] = []
        subtract: list[bytes] = []
        for site in self._session.sites:
            secret = self._secret(site, opened)
            if site in self._arrived:
                key = self_mask_key(secret, self._roster, site, self.round_number, self._purpose)
                subtract.append(key)
            else:
                self._cancel(site, secret, add, subtract)
        total = self._sum.copy()
        apply_masks(total, add, subtract)
        return total

    def _open_locks(self, request: RecoveryRequest) -> dict[str, dict[str, bytes]]:
        """By revealing site: by site, its share of that site's secret."""
        view = request.view(self._roster)
        opened = {}
        for site, recovery in self._recoveries.items():
            pads = {
                other: given.pads[site] for other, given in self._recoveries.items() if site in given.pads
            }
            text = recovery.lock.open(view, self._numbers, site, pads, self._session.threshold)
            holders = (site, *self._neighbours[site])
            if text is not None and len(text) == KEY_BYTES * len(holders):
                opened[site] = dict(zip(holders, split_evenly(memoryview(text), KEY_BYTES), strict=True))
        return opened

    def _secret(self, site: str, opened: Mapping[str, Mapping[str, bytes]]) -> bytes:
        """A site's seed, or its private key if it is lost."""
        holders = (site, *self._neighbours[site])
        needed = self._session.share_threshold(len(holders))
        shares = {self._numbers[one]: opened[one][site] for one in holders if one in opened}
        if len(shares) < needed:
            raise self._abandoned(f"{len(shares)} of the {needed} shares needed for {site} were revealed")
        return combine(dict(list(shares.items())[:needed]), self._session.field)

    def _cancel(self, lost: str, secret: bytes, add: list[bytes], subtract: list[bytes]) -> None:
        """Cancel the masks between a lost site and its surviving neighbours."""
        private = private_key(secret)
        if public_bytes(private) != self._keys[lost]:
            raise self._abandoned(f"shares for {lost} are wrong")
        for name in self._neighbours[lost]:
            if name in self._arrived:
                shared = agree(private, self._keys[name])
                if shared is None:
                    raise self._abandoned(f"the key of {name} cannot be used")
                adds, subtracts = sorted((lost, name), key=self._numbers.__getitem__)
                key = pair_mask_key(shared, self._roster, adds, subtracts, self.round_number, self._purpose)
                (subtract if adds == name else add).append(key)

    def _abandoned(self, why: str) -> RoundAbandoned:
        return RoundAbandoned(
            f"round {self.round_number} is abandoned: {why}",
            f"its sum opens only with {self._session.min_survivors} sites or more, until the end of the round",
            "run another round, or a session with the sites that answer",
        )


def _form(words: Words) -> tuple[object, object]:
    return words.shape, words.dtype


def _unusable(site: str, what: str) -> FederationError:
    return FederationError(
        f"{site}'s {what}",
        "a site's messages must be usable by the other sites of its session",
        f"have {site} check its software; continue without it",
    )
