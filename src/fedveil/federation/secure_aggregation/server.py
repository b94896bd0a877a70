"""The server's side: it passes boxes on, adds masked words, and removes the masks that do not cancel.

Nothing here is trusted by the sites: all that the server could do wrong is checked by them, or leaves it with
random words.
"""

from collections.abc import Iterable, Mapping
from typing import final

from fedveil.errors import FederationError
from fedveil.federation.secure_aggregation.codec import split_evenly
from fedveil.federation.secure_aggregation.keys import KEY_BYTES, agree, private_key, public_bytes, verify
from fedveil.federation.secure_aggregation.masks import Words, apply_masks, pair_mask_key, self_mask_key
from fedveil.federation.secure_aggregation.messages import (
    Announcement,
    MaskedInput,
    Recovery,
    RecoveryRequest,
    Roster,
    SharesDelivered,
    SharesSent,
)
from fedveil.federation.secure_aggregation.session import Session
from fedveil.federation.secure_aggregation.shamir import combine

__all__ = ["Aggregation", "RoundAbandoned", "SecureAggregationServer"]


class RoundAbandoned(FederationError):
    """Too few sites are left in a round to open its sum. It stays charged; nothing was revealed."""


@final
class SecureAggregationServer:
    """The coordinator in one session.

    Args: session: what is agreed. pinned: the sites' long-term public keys, where the coordinator has them:
        it then notices damaged announcements before the sites refuse them.
    """

    def __init__(self, session: Session, pinned: Mapping[str, bytes] | None = None) -> None:
        self.session = session
        self._pinned = pinned
        self._keys: dict[str, tuple[bytes, ...]] = {}
        self._neighbours: dict[str, tuple[str, ...]] = {}
        self._roster = b""

    def roster(self, announcements: Iterable[Announcement]) -> Roster:
        """Everyone's announcement; raises FederationError, naming the sites, where one is missing or not its
        owner's.
        """
        given = {one.site: one for one in announcements}
        bad = [site for site in self.session.sites if site not in given or not self._signed(given[site])]
        if bad:
            raise _unusable("announcement of keys", bad)
        roster = Roster(tuple(given[site] for site in self.session.sites))
        self._keys = {one.site: one.round_keys for one in roster.announcements}
        self._roster = roster.digest(self.session)
        return roster

    def deliver(self, sent: Iterable[SharesSent]) -> dict[str, SharesDelivered]:
        """Each site's boxes, sorted by receiver; raises FederationError where some are missing."""
        given = {one.site: one.boxes for one in sent}
        bad = [
            site
            for site in self.session.sites
            if site not in given or any(site not in given.get(other, ()) for other in given[site])
        ]
        if bad:
            raise _unusable("shares", bad)
        self._neighbours = {site: tuple(given[site]) for site in self.session.sites}
        return {
            site: SharesDelivered({other: given[other][site] for other in neighbours})
            for site, neighbours in self._neighbours.items()
        }

    def open(self, round_number: int, purpose: str = "") -> "Aggregation":
        """A round, to which masked words are added as they arrive; `purpose` says what the sites were asked for."""
        index = round_number - self.session.first_round
        if not self._neighbours or not 0 <= index < self.session.rounds:
            raise FederationError(
                f"round {round_number} was started",
                "the session must be set up, and hold that round",
                "run the set-up, or open a new session",
            )
        keys = {site: keys[index] for site, keys in self._keys.items()}
        return Aggregation(self.session, self._roster, keys, self._neighbours, round_number, purpose)

    def _signed(self, one: Announcement) -> bool:
        if len(one.round_keys) != self.session.rounds:
            return False
        if self._pinned is None:
            return True
        statement = Announcement.statement(self.session.digest, one.site, one.channel_key, one.round_keys)
        return one.site in self._pinned and verify(self._pinned[one.site], one.signature, *statement)


@final
class Aggregation:
    """One round at the server: `add` masked words, `request` recovery once, `reveal` what comes back, take
    the `total`.
    """

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
        """Add a site's masked words to the sum; raises FederationError for anything that does not belong to
        it.
        """
        if (
            masked.round_number != self.round_number
            or masked.site not in self._numbers
            or masked.site in self._arrived
            or self._request is not None
            or (self._sum is not None and self._sum.shape != masked.words.shape)
        ):
            raise FederationError(
                f"masked words from {masked.site} for round {masked.round_number} do not belong to the sum",
                f"round {self.round_number} takes one vector a site, of one length, until recovery begins",
                "leave them out; they stay masked",
            )
        if self._sum is None:
            self._sum = masked.words.copy()
        else:
            self._sum += masked.words
        self._arrived.add(masked.site)

    def request(self) -> RecoveryRequest:
        """What to ask of the survivors. From now on the list stands; raises RoundAbandoned where it is too
        short.
        """
        if len(self._arrived) < self._session.min_survivors:
            raise self._abandoned(
                f"{len(self._arrived)} of {len(self._session.sites)} sites sent their words"
            )
        if self._request is None:
            self._request = RecoveryRequest(self.round_number, self.survivors)
        return self._request

    def reveal(self, recovery: Recovery) -> None:
        """Take what a survivor reveals; raises FederationError for anything that was not asked for."""
        if (
            self._request is None
            or recovery.site not in self._arrived
            or recovery.round_number != self.round_number
        ):
            raise FederationError(
                f"shares from {recovery.site} for round {recovery.round_number} were not asked for",
                f"only survivors of round {self.round_number} reveal shares",
                "leave them out",
            )
        self._recoveries[recovery.site] = recovery

    def total(self) -> Words:
        """The sum of the survivors' words modulo 2^32; raises RoundAbandoned where too few of them revealed
        shares.
        """
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
        return combine(dict(list(shares.items())[:needed]))

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
            f"its sum opens with {self._session.min_survivors} sites or more, to the end of the round",
            "run another round, or a session with the sites that answer",
        )


def _unusable(what: str, sites: list[str]) -> FederationError:
    return FederationError(
        f"the {what} of {', '.join(sites)} is missing or cannot be used",
        "every site of a session takes part in its set-up",
        "open a session with the sites that answer",
    )
