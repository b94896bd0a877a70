"""A site's side: it announces keys, shares secrets, sends masked words, and reveals shares to the survivors of a round.

After Bonawitz et al. (2017) and Bell et al. (2020), double masking. What site i sends in round r is

    y_i = x_i + PRG(b_i) + sum_{j > i} PRG(k_ij) - sum_{j < i} PRG(k_ij)  modulo 2^32 or 2^64

over its neighbours j, with its own seed b_i, and k_ij from an X25519 agreement between keys of i and j that
exist for round r only. From the set-up on, the neighbours hold shares of b_i and of i's private key for r. For each
neighbour a site reveals its share of one of the two: of the seed if the neighbour survived, of the private key if it
is lost. The seed of a lost site is never revealed, so that late words from it stay masked; and rounds have no secret
in common.
"""

import logging
import os
from collections.abc import Callable, Mapping
from typing import final

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fedveil.errors import Refused
from fedveil.federation.secure_aggregation.keys import (
    KEY_BYTES,
    agree,
    derive,
    private_key,
    public_bytes,
    seal,
    sign,
    unseal,
    verify,
)
from fedveil.federation.secure_aggregation.lock import close
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
    kind_of,
)
from fedveil.federation.secure_aggregation.session import Session
from fedveil.federation.secure_aggregation.shamir import split

__all__ = ["Claim", "SecureAggregationClient"]

log = logging.getLogger("fedveil.site")

Claim = Callable[[int], None]
"""Records a round's number durably, or raises Refused if it, or a later one, was recorded before."""


class UnreadableShares(Refused):
    """Shares from some sites for this one cannot be decrypted; it is not ready.

    Attributes:
        senders: those sites.
    """

    def __init__(self, senders: tuple[str, ...]) -> None:
        super().__init__(
            f"the shares from {', '.join(senders)} are missing or cannot be decrypted",
            "both sites must have seen the same roster, and nobody may have altered the shares",
            "run the set-up again; if it happens again, somebody between the sites interferes",
        )
        self.senders = senders

    def __reduce__(self) -> tuple[type["UnreadableShares"], tuple[tuple[str, ...]]]:  # type: ignore[override]
        return type(self), (self.senders,)


@final
class SecureAggregationClient:
    """One site in one session. Secrets are in memory only, and a round's are overwritten after it.

    Args:
        session: the agreed session; the site has checked it against its own policy and the study's agreement.
        site: this site's name.
        identity: its long-term signature key.
        pinned: all sites' long-term public keys (Ed25519, 32 bytes), not from the server.
        claim: called before anything is sent in a round. It ensures that a round is not repeated across restarts.
    """

    def __init__(
        self,
        session: Session,
        site: str,
        *,
        identity: Ed25519PrivateKey,
        pinned: Mapping[str, bytes],
        claim: Claim,
    ) -> None:
        missing = [name for name in session.sites if name not in pinned]
        if site not in session.sites or missing:
            raise Refused(
                f"the session is between {', '.join(session.sites)}",
                f"{site} takes part only in its own sessions, with sites whose public keys it holds",
                f"add the keys of {', '.join(missing)}" if missing else "ask the sites that take part",
            )
        self._session, self._site, self._identity, self._pinned = session, site, identity, dict(pinned)
        self._claim = claim
        self._numbers = {name: number for number, name in enumerate(session.sites, start=1)}
        # All rounds' seeds, then all rounds' private keys; and a neighbour's shares in the same order.
        self._secrets = bytearray(os.urandom(2 * KEY_BYTES * session.rounds))
        self._shares: dict[str, bytearray] = {}
        self._channel_key = os.urandom(KEY_BYTES)
        self._announcement: Announcement | None = None
        self._roster = b""
        self._round_keys: dict[str, tuple[bytes, ...]] = {}
        self._channels: dict[str, bytes] = {}
        self._neighbours: tuple[str, ...] = ()
        self._ready = False
        self._round: int | None = None
        self._revealed: tuple[RecoveryRequest, Recovery] | None = None

    # Set-up

    def announce(self) -> Announcement:
        """This session's public keys, signed; identical at every call."""
        if self._announcement is None:
            rounds = range(self._session.first_round, self._session.first_round + self._session.rounds)
            private = (private_key(bytes(self._secrets[self._slots(number)[1]])) for number in rounds)
            keys = tuple(map(public_bytes, private))
            channel_key = public_bytes(private_key(self._channel_key))
            statement = Announcement.statement(self._session.digest, self._site, channel_key, keys)
            signature = sign(self._identity, *statement)
            self._announcement = Announcement(self._site, channel_key, keys, signature)
        return self._announcement

    def share(self, roster: Roster) -> SharesSent:
        """Check everyone's keys, and encrypt for each neighbour its shares of this site's secrets."""
        if self._roster or self._announcement is None:
            raise _out_of_order("a roster")
        self._check(roster)
        self._roster = roster.digest(self._session)
        channel_key = private_key(self._channel_key)
        for one in roster.announcements:
            if one.site != self._site:
                self._meet(one, channel_key)
        self._neighbours = tuple(name for name in self._channels if self._adjacent(name))
        holders = (self._site, *self._neighbours)
        threshold = self._session.share_threshold(len(holders))
        numbers = [self._numbers[name] for name in holders]
        shares = split(bytes(self._secrets), numbers, threshold, self._session.field)
        self._shares[self._site] = bytearray(shares[self._numbers[self._site]])
        boxes = {
            name: seal(self._box_key(self._site, name), shares[self._numbers[name]], self._roster)
            for name in self._neighbours
        }
        return SharesSent(self._site, boxes)

    def receive(self, delivered: SharesDelivered) -> None:
        """Decrypt the neighbours' shares; the site is then ready for rounds."""
        if self._ready or not self._roster:
            raise _out_of_order("a delivery of shares")
        unreadable = []
        for name in self._neighbours:
            box = delivered.boxes.get(name)
            shares = unseal(self._box_key(name, self._site), box, self._roster) if box is not None else None
            if shares is None or len(shares) != len(self._secrets):
                unreadable.append(name)
            else:
                self._shares[name] = bytearray(shares)
        if unreadable:
            raise UnreadableShares(tuple(unreadable))
        self._channel_key = b""
        self._ready = True

    # A round

    def masked_input(self, round_number: int, words: Words, purpose: str = "") -> MaskedInput:
        """Mask `words`, in place, for a round later than any before; the round is claimed first, durably.

        `words` are a contiguous vector of uint32 or uint64; nothing unmasked is left in them. `purpose` says what is
        summed, as this site was asked: among sites that were asked for different sums masks do not cancel, so that
        the result is random. Otherwise a server could combine noise shares of different sizes.
        """
        first = self._session.first_round if self._round is None else self._round + 1
        end = self._session.first_round + self._session.rounds
        if not self._ready or not first <= round_number < end:
            ready = f"it may take part in rounds {first} to {end - 1}" if self._ready else "it is not set up"
            raise Refused(
                f"masked words are asked for in round {round_number}",
                f"in this session {ready}",
                "a round runs only once; set up a new session for further ones",
            )
        fits = words.dtype in (np.uint32, np.uint64) and words.ndim == 1 and words.flags.c_contiguous
        if not fits or not words.size:
            raise Refused(
                f"the words to mask have type {words.dtype} and shape {words.shape}",
                "they must be a contiguous vector of uint32 or uint64",
                "encode the contribution with IntegerMechanism.encode",
            )
        self._claim(round_number)
        self._forget_before(round_number)
        self._round, self._revealed = round_number, None
        apply_masks(words, *self._mask_keys(round_number, purpose))
        return MaskedInput(self._site, round_number, words)

    def recover(self, request: RecoveryRequest) -> Recovery:
        """Reveal one share for each neighbour, and one for this site, locked to the list of survivors.

        The same request is answered with the same bytes. Another list for the same round is refused, as the
        two could open both secrets of a site.
        """
        if self._revealed is not None and self._revealed[0] == request:
            return self._revealed[1]
        self._check_request(request)
        view = request.view(self._roster)
        seed, key = self._slots(request.round_number)
        text = b"".join(
            bytes(self._shares[name][seed if name in request.survivors else key])
            for name in (self._site, *self._neighbours)
        )
        others = {name: self._channels[name] for name in request.survivors if name != self._site}
        lock = close(text, view, self._numbers, self._site, others, self._session.threshold)
        pads = {name: view.pad(channel, name, self._site) for name, channel in others.items()}
        recovery = Recovery(self._site, request.round_number, lock, pads)
        self._forget_before(request.round_number + 1)
        self._revealed = request, recovery
        return recovery

    def reply(self, message: bytes) -> bytes:
        """Answer, as bytes, any message except the one that starts a round."""
        kind = kind_of(message)
        if kind == Roster.KIND:
            return self.share(Roster.from_bytes(message)).to_bytes()
        if kind == SharesDelivered.KIND:
            return self._readied(SharesDelivered.from_bytes(message)).to_bytes()
        return self.recover(RecoveryRequest.from_bytes(message)).to_bytes()

    def _readied(self, delivered: SharesDelivered) -> Ready:
        try:
            self.receive(delivered)
        except (
            UnreadableShares
        ) as error:  # reported, since the server cannot see it and would blame this site
            log.warning("%s", error)
            return Ready(self._site, error.senders)
        return Ready(self._site)

    # Checks

    def _check(self, roster: Roster) -> None:
        if tuple(one.site for one in roster.announcements) != self._session.sites:
            raise Refused(
                "the roster names other sites than the session",
                "every site of the session must have announced its keys",
                "open a session with the sites that answer",
            )
        if self._announcement not in roster.announcements:
            raise Refused(
                f"the roster holds other keys for {self._site} than it announced",
                "nobody may replace a site's keys",
                "the server, or somebody in between, interferes: do not continue",
            )
        for one in roster.announcements:
            statement = Announcement.statement(
                self._session.digest, one.site, one.channel_key, one.round_keys
            )
            if not verify(self._pinned[one.site], one.signature, *statement):
                raise Refused(
                    f"the keys of {one.site} are not signed by the identity that this site holds for it",
                    "nobody may replace a site's keys, and both must mean the same session",
                    f"ask {one.site} whether its identity or its study changed; if not, somebody interferes",
                )
            if len(one.round_keys) != self._session.rounds:
                raise _bad_key(one.site)

    def _check_request(self, request: RecoveryRequest) -> None:
        survivors, session = request.survivors, self._session
        if self._round is None or request.round_number != self._round or self._revealed is not None:
            raise Refused(
                f"shares are asked for in round {request.round_number}",
                "a site reveals shares once per round, for one list of survivors, in its latest round",
                "run another round",
            )
        ordered = tuple(name for name in session.sites if name in survivors)
        if ordered != survivors or self._site not in survivors:
            raise Refused(
                f"the survivors are {', '.join(survivors)}",
                f"they must be sites of the session, in its order, and {self._site} with them, who took part",
                "name the sites whose masked words arrived",
            )
        if len(survivors) < session.min_survivors:
            raise Refused(
                f"{len(survivors)} of {len(session.sites)} sites survived the round",
                f"with fewer than {session.min_survivors} nothing is revealed",
                "run another round, or a session with the sites that answer",
            )
        holders = (self._site, *self._neighbours)
        alive = sum(name in survivors for name in holders)
        if alive < session.share_threshold(len(holders)):
            raise Refused(
                f"{alive} of the {len(holders)} sites that hold shares for {self._site} survived the round",
                f"with fewer than {session.share_threshold(len(holders))} nothing is revealed",
                "run another round, or a session with the sites that answer",
            )

    # Keys and secrets

    def _meet(self, one: Announcement, channel_key: X25519PrivateKey) -> None:
        channel = agree(channel_key, one.channel_key)
        if channel is None:
            raise _bad_key(one.site)
        self._channels[one.site], self._round_keys[one.site] = channel, one.round_keys

    def _adjacent(self, name: str) -> bool:
        """The coin of two sites, from their shared secret: nobody else can see or influence it."""
        pair = sorted((self._site, name), key=self._numbers.__getitem__)
        coin = int.from_bytes(derive(self._channels[name], self._roster, "neighbours", *pair, length=8))
        return coin < self._session.edge_probability * 2**64

    def _box_key(self, sender: str, receiver: str) -> bytes:
        other = receiver if sender == self._site else sender
        return derive(self._channels[other], self._roster, "shares", sender, receiver)

    def _slots(self, round_number: int) -> tuple[slice, slice]:
        """The positions of a round's seed and private key, or of shares of them."""
        index, rounds = round_number - self._session.first_round, self._session.rounds
        return _slot(index), _slot(rounds + index)

    def _mask_keys(self, round_number: int, purpose: str) -> tuple[list[bytes], list[bytes]]:
        """The keys of a round's masks: to add, and to subtract."""
        seed, key = (bytes(self._secrets[slot]) for slot in self._slots(round_number))
        private = private_key(key)
        own = self_mask_key(seed, self._roster, self._site, round_number, purpose)
        add, subtract = [own], list[bytes]()
        for name in self._neighbours:
            public = self._round_keys[name][round_number - self._session.first_round]
            secret = agree(private, public)
            if secret is None:
                raise _bad_key(name)
            adds, subtracts = sorted((self._site, name), key=self._numbers.__getitem__)
            mask_key = pair_mask_key(secret, self._roster, adds, subtracts, round_number, purpose)
            (add if adds == self._site else subtract).append(mask_key)
        return add, subtract

    def _forget_before(self, round_number: int) -> None:
        """Overwrite all secrets and shares of earlier rounds."""
        done, rounds = round_number - self._session.first_round, self._session.rounds
        for secrets in (self._secrets, *self._shares.values()):
            for first in (0, rounds):
                secrets[KEY_BYTES * first : KEY_BYTES * (first + done)] = bytes(KEY_BYTES * done)


def _slot(index: int) -> slice:
    return slice(KEY_BYTES * index, KEY_BYTES * (index + 1))


def _out_of_order(what: str) -> Refused:
    return Refused(
        f"{what} arrived out of order",
        "a set-up takes each step once",
        "open a new session and run its set-up",
    )


def _bad_key(site: str) -> Refused:
    return Refused(
        f"a key announced by {site} cannot be used",
        "keys are X25519, one for each round",
        f"ask {site} to check its software",
    )
