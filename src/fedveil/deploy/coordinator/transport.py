"""`fedveil.federation.Transport` over a carrier: sealed requests out, sealed answers in, each answer checked.

A carrier delivers a message at most once: one that was fetched by a node that then died is lost. So a request is sent
again when its node reconnects, when the carrier reports a failure, and at growing intervals. Asking twice is harmless,
since a site answers a known request with identical bytes.

An answer that is not the site's own, or not to this message, may come from anybody in between: it is dropped and the
site is asked again. An answer that the site signed for this message but that the protocol does not allow counts as
the site's: `Declined` as "invalid" in its name."""

import hashlib
import logging
import re
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from fedveil.deploy.carrier import Carrier
from fedveil.deploy.coordinator.asking import BRIEF, Asking, Patience
from fedveil.deploy.identity import Identity, check_public_key, signing_key
from fedveil.deploy.protocol import common, stated
from fedveil.deploy.receipts import Receipt, Receipts
from fedveil.deploy.sealing import (
    FROM_COORDINATOR,
    FROM_SITE,
    NO_ID,
    Opened,
    introduction,
    new_id,
    seal,
    unseal,
)
from fedveil.errors import FederationError, FedveilError
from fedveil.federation import Declined, Reply, Request
from fedveil.federation.messages import Answer, Message, SecureReply
from fedveil.federation.wire import Array, Frame, WireError, decode, encode, pack, unpack

__all__ = ["SITE_STATES", "Patience", "SealedTransport"]

log = logging.getLogger("fedveil.coordinator")

_IDS = ("study", "release", "round", "attempt")
_VERSION = re.compile(r"[0-9A-Za-z.+!-]{1,20}")

SITE_STATES = ("unknown", "pending", "declined", "loading", "ready", "refused")
"""The states of a study that a site may report; anything else is not an answer."""


class SealedTransport:
    """Exchanges sealed messages with sites through a carrier.

    Args:
        carrier: brings sealed messages to the sites and back.
        identity: the coordinator's keys.
        keys: each site's public key; ``pin`` stores the key of a new site at first contact.
        receipts: the receipts received from the sites so far.
        pin: receives a site's public key at first contact.
        patience: how long to wait for sites.
    """

    def __init__(
        self,
        carrier: Carrier,
        identity: Identity,
        keys: Mapping[str, str],
        receipts: Receipts,
        *,
        pin: Callable[[str, str], None],
        patience: Patience | None = None,
    ) -> None:
        self._carrier, self._identity, self._receipts, self._pin = carrier, identity, receipts, pin
        self._keys = dict(keys)
        self._patience = patience or Patience()
        self._gone: set[str] = set()

    @property
    def signing_keys(self) -> Mapping[str, bytes]:
        """The Ed25519 key of each site that has been contacted."""
        return {site: signing_key(key) for site, key in self._keys.items()}

    def exchange(self, requests: Mapping[str, Message]) -> Mapping[str, Answer]:
        """Ask each site; sites without an answer are absent from the result."""
        answers: dict[str, Answer] = {}
        before = {site: self._receipts.last(site) for site in requests}

        def accept(site: str, frame: Frame) -> None:
            answers[site] = self._accept(requests[site], site, frame, before[site])

        def invalid(site: str) -> None:
            answers[site] = _declined(requests[site], site, "invalid")

        self._ask({site: pack(request) for site, request in requests.items()}, accept, invalid)
        return answers

    def greet(
        self, sites: Sequence[str], study: str, offer: Mapping[str, Any], *, need_keys: bool = False
    ) -> dict[str, str]:
        """The study's state at each site; the study is offered to sites that do not know it.

        With ``need_keys`` it is offered only after the keys of all sites are known.

        Returns:
            by site: absent, stale (its clock and this machine's differ, or messages are held back), one of
            `SITE_STATES`, ``on fedveil X`` without a common protocol, or invalid for an answer that no protocol
            allows.
        """
        status = dict.fromkeys(sites, "absent")
        online = self._carrier.present()
        present = [site for site in sites if site in online]
        self._meet([site for site in present if site not in self._keys])
        status |= self._states({site: self._hello(site, study) for site in present}, study)
        strangers = [site for site in present if status[site] == "unknown"]
        if need_keys and not all(site in self._keys for site in sites):
            return status
        whole = {**offer, "keys": {site: self._keys[site] for site in sites if site in self._keys}}
        return status | self._states({site: Frame("offer", whole) for site in strangers}, study)

    def deliver(self, sites: Sequence[str], study: str, arrays: Mapping[str, Array]) -> tuple[str, ...]:
        """Send each site the finished model of a study; return the sites that did not confirm that they stored it."""
        frame = Frame("model", {"study": study}, arrays)
        answers = self._talk(dict.fromkeys(sites, frame), self._patience)
        return tuple(site for site in sites if site not in answers or answers[site].kind != "kept")

    def _meet(self, strangers: Sequence[str]) -> None:
        """Learn the keys of new sites; the first key that answers in a site's name is pinned."""
        ids = {site: new_id() for site in strangers}

        def receive(site: str, sealed: bytes) -> bool:
            opened = self._open(site, sealed, ids[site])
            if opened is None:
                return False
            try:
                frame = _of(site, opened)
                key = check_public_key(opened.sender)
            except FedveilError as error:
                log.error("%s cannot be introduced: %s", site, error)
                return False
            if frame.kind == "introduced":
                self._keys[site] = key
                self._pin(site, key)
            else:
                _say_refused(site, frame)
            return frame.kind != "stale"

        send = {site: lambda site=site: introduction(self._identity, ids[site]) for site in strangers}
        Asking(self._carrier, send, receive, BRIEF).run()

    def _hello(self, site: str, study: str) -> Frame:
        last = self._receipts.last(site)
        receipt = last.to_dict() if last else None
        return Frame("hello", {"study": study, "receipt": receipt, **stated()})

    def _states(self, frames: Mapping[str, Frame], study: str) -> dict[str, str]:
        """Each site's state of a study, in this side's words."""
        return {site: _state(site, frame, study) for site, frame in self._talk(frames).items()}

    def _talk(self, frames: Mapping[str, Frame], patience: Patience = BRIEF) -> dict[str, Frame]:
        """One short exchange with each site."""
        nonces = {site: secrets.token_hex(16) for site in frames}
        answers: dict[str, Frame] = {}

        def accept(site: str, frame: Frame) -> None:
            _say_refused(site, frame)
            answers[site] = frame

        def invalid(site: str) -> None:
            answers[site] = Frame("invalid")

        bodies = {
            site: encode(replace(frame, head={**frame.head, "nonce": nonces[site]}))
            for site, frame in frames.items()
        }
        self._ask(bodies, accept, invalid, patience)
        return answers

    def _accept(self, request: Message, site: str, frame: Frame, after: Receipt | None) -> Answer:
        """The answer inside a message, if it is valid."""
        if frame.kind in ("refused", "stale"):
            _say_refused(site, frame)
            return _declined(request, site, "refused")
        if frame.kind != "answer" or set(frame.blobs) != {"answer"} or frame.arrays:
            raise WireError(f"{site} sent a {frame.kind}")
        raw = frame.blobs["answer"]
        answer: Answer = unpack(raw, Reply | SecureReply | Declined)
        if answer.site != site or any(
            getattr(answer, name) != value for name, value in _ids(request).items()
        ):
            raise WireError(f"{site} answered another request, or in another site's name")
        if isinstance(answer, Reply) and not self._keep(frame, answer, raw, after):
            return _declined(request, site, "failed")
        return answer

    def _keep(self, frame: Frame, reply: Reply, raw: bytes, after: Receipt | None) -> bool:
        """Store the receipt of a reply; False if it shows that the site's ledger was rolled back."""
        receipt = Receipt.from_dict(frame.head.get("receipt"))
        signature = receipt.check(frame.head.get("signature"), self._keys[reply.site])
        stated = {name: getattr(receipt, name) for name in ("site", *_IDS)}
        if receipt.answer != hashlib.sha256(raw).hexdigest() or stated != {
            name: getattr(reply, name) for name in stated
        }:
            raise WireError(f"{reply.site}'s receipt is for another answer")
        try:
            self._receipts.keep(receipt, signature, after=after)
        except FederationError as error:
            log.error("%s is left out: %s", reply.site, error)
            return False
        return True

    def _ask(
        self,
        bodies: Mapping[str, bytes],
        accept: Callable[[str, Frame], None],
        invalid: Callable[[str], None],
        patience: Patience | None = None,
    ) -> None:
        """Send each site its body until each has answered or is left out.

        ``accept`` receives a site's answer to this message and raises `FedveilError` if it is not allowed;
        ``invalid`` then receives the site. Each transmission of a body has a new date and ciphertext.
        """
        known = {site: body for site, body in bodies.items() if site in self._keys}
        for site in bodies.keys() - known.keys():
            log.warning("%s was never contacted: there is no key to encrypt to", site)
        ids = {site: new_id() for site in known}

        def receive(site: str, sealed: bytes) -> bool:
            opened = self._open(site, sealed, ids[site])
            if opened is None:
                return False
            try:
                frame = _of(site, opened)
                accept(site, frame)
            except FedveilError as error:
                log.error("%s broke the protocol: %s", site, error)
                invalid(site)
                return True
            return frame.kind != "stale"  # a new transmission has another date

        def send(site: str, body: bytes) -> Callable[[], bytes]:
            to, message = self._keys[site], ids[site]
            return lambda: seal(body, self._identity, to=to, purpose=FROM_COORDINATOR, message=message)

        sealing = {site: send(site, body) for site, body in known.items()}
        Asking(self._carrier, sealing, receive, patience or self._patience, self._gone).run()

    def _open(self, site: str, sealed: bytes, asked: bytes) -> Opened | None:
        """The site's own answer to the message with this id; None for anything else.

        A site that could not open a message reports that without its id. An attacker who replays the report only
        causes a dropped message, which anybody in between can do anyway.
        """
        try:
            opened = unseal(sealed, self._identity, sender=self._keys.get(site), purpose=FROM_SITE)
        except FedveilError as error:
            log.error("an answer from %s is refused: %s", site, error)
            return None
        if opened.id in (asked, NO_ID):
            return opened
        log.error("an answer from %s is refused: it is to another message", site)
        return None


def _of(site: str, opened: Opened) -> Frame:
    """A site's answer, if it names itself; without the id of the question it can only be a refusal."""
    frame = decode(opened.body or b"")
    if opened.id == NO_ID and frame.kind != "refused":
        raise WireError(f"{site} sent a {frame.kind} without naming what it answers")
    if frame.head.get("site") != site:
        raise WireError(f"{site} answered in the name of {frame.head.get('site')!r:.80}")
    return frame


def _state(site: str, frame: Frame, study: str) -> str:
    """The study's state at a site; only a word from a fixed list is taken from the answer."""
    state, version = frame.head.get("status"), frame.head.get("version")
    if frame.kind in ("refused", "stale", "invalid"):
        return frame.kind
    if frame.kind == "hello" and common(frame.head.get("protocols")) is None:
        known = isinstance(version, str) and _VERSION.fullmatch(version)
        return f"on fedveil {version if known else 'of an unreadable version'}"
    if frame.kind not in ("hello", "offered") or state not in SITE_STATES:
        log.error("%s broke the protocol: it reports the study as %.80r", site, state)
        return "invalid"
    if frame.head.get("study") != study:
        log.warning("%s derives another agreement from the study; is its fedveil version the same?", site)
        return "refused"
    return str(state)


def _say_refused(site: str, frame: Frame) -> None:
    clock = frame.head.get("clock")
    if frame.kind == "stale" and type(clock) is int and 0 <= clock < 2**40:
        log.warning(
            "%s refuses a message as too old: its clock is %+.0f s from this machine's; synchronise both by NTP, and "
            "if they agree look for somebody who delays messages",
            site,
            clock - time.time(),
        )
    elif frame.kind in ("refused", "stale"):
        log.warning("%s refuses; see its own log for the reason", site)


def _ids(request: Message) -> dict[str, Any]:
    """The fields of a request that its answer must repeat."""
    names = _IDS if isinstance(request, Request) else ("study",)
    return {name: getattr(request, name) for name in names}


def _declined(request: Message, site: str, code: Any) -> Declined:
    ids = {"release": "secure-aggregation", "round": 0, "attempt": 0, **_ids(request)}
    return Declined(site=site, code=code, **ids)
