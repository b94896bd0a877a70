"""`fedveil.federation.Transport` over Flower: sealed requests out, sealed answers in, each answer checked.

Flower delivers a message at most once: one that was fetched by a node that then died is lost. So a request
is sent again when its node signs on anew, when Flower reports a failure, and at growing intervals. Asking
twice is harmless, since a site answers a request that it knows with the very same bytes."""

import hashlib
import logging
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from flwr.app import Message as FlowerMessage

from fedveil import __version__
from fedveil.deploy.flower.link import Link
from fedveil.deploy.flower.records import MESSAGE_TYPE, bytes_of, content_of
from fedveil.deploy.identity import FROM_COORDINATOR, FROM_SITE, Identity, unseal
from fedveil.deploy.receipts import Receipt, Receipts
from fedveil.errors import FederationError, FedveilError
from fedveil.federation import Declined, Reply, Request
from fedveil.federation.messages import Answer, Message, SecureReply
from fedveil.federation.wire import Array, Frame, WireError, decode, encode, pack, unpack

__all__ = ["FlowerTransport", "Patience"]

log = logging.getLogger("fedveil.coordinator")

_POLL = 0.1
_LOOK = 1.0
_SPOILT = 3
_IDS = ("study", "release", "round", "attempt")


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a site is waited for.

    Attributes:
        away: seconds for which a site whose node is not connected is waited for.
        answer: seconds for which a connected site may take over one answer.
        again: seconds after which an unanswered request is sent once more; doubles each time.
    """

    away: float = 120.0
    answer: float = 3600.0
    again: float = 15.0


BRIEF = Patience(away=5.0, answer=30.0, again=10.0)


@dataclass(slots=True)
class _Waiting:
    """One site that has not answered yet."""

    since: float
    sent: float
    again: float
    session: str
    away_since: float | None = None
    again_at: float = 0.0
    spoilt: int = 0


class FlowerTransport:
    """Exchanges sealed messages with sites through a SuperLink.

    Args:
        link: the SuperLink and this process's run on it.
        identity: the coordinator's signing key.
        keys: each site's public key; a site that has none yet is pinned by ``pin`` at first contact.
        receipts: the receipts that the sites gave so far.
        pin: told of a site's public key at first contact.
        patience: how long sites are waited for.
    """

    def __init__(
        self,
        link: Link,
        identity: Identity,
        keys: Mapping[str, str],
        receipts: Receipts,
        *,
        pin: Callable[[str, str], None],
        patience: Patience | None = None,
    ) -> None:
        self._link, self._identity, self._receipts, self._pin = link, identity, receipts, pin
        self._keys = dict(keys)
        self._patience = patience or Patience()

    def exchange(self, requests: Mapping[str, Any]) -> Mapping[str, Any]:
        """Ask each site; those that stay away are absent from the answers."""
        data = {
            site: self._identity.seal(pack(request), FROM_COORDINATOR) for site, request in requests.items()
        }
        answers: dict[str, Answer] = {}

        def accept(site: str, body: bytes) -> None:
            answers[site] = self._accept(requests[site], site, body)

        self._ask(data, accept)
        return answers

    def greet(
        self, sites: Sequence[str], study: str, offer: Mapping[str, Any], *, need_keys: bool = False
    ) -> dict[str, str]:
        """How a study stands at each site, the study being offered where it is unknown.

        With ``need_keys`` it is offered only once the keys of all sites are known.

        Returns:
            by site: absent, unknown, pending, loading, ready, refused, or ``on fedveil X`` for another version.
        """
        status = dict.fromkeys(sites, "absent")
        online = self._sessions()
        present = [site for site in sites if site in online]
        for site, frame in self._talk({site: self._hello(site, study) for site in present}).items():
            status[site] = str(frame.head.get("status", "refused"))
            if frame.kind == "hello" and frame.head.get("version") != __version__:
                status[site] = f"on fedveil {str(frame.head.get('version'))[:20]}"
        strangers = [site for site in present if status[site] == "unknown"]
        if need_keys and not all(site in self._keys for site in sites):
            return status
        whole = {**offer, "keys": {site: self._keys[site] for site in sites if site in self._keys}}
        for site, frame in self._talk({site: Frame("offer", whole) for site in strangers}).items():
            if frame.head.get("study") != study:
                log.warning("%s derives other terms from the study; is its fedveil version the same?", site)
                status[site] = "refused"
            else:
                status[site] = str(frame.head.get("status", "refused"))
        return status

    def deliver(self, sites: Sequence[str], study: str, arrays: Mapping[str, Array]) -> tuple[str, ...]:
        """Send each site the finished model of a study; return the sites that did not confirm that they keep it."""
        frame = Frame("model", {"study": study}, arrays)
        answers = self._talk(dict.fromkeys(sites, frame), self._patience)
        return tuple(site for site in sites if site not in answers or answers[site].kind != "kept")

    def _hello(self, site: str, study: str) -> Frame:
        last = self._receipts.last(site)
        receipt = last.to_dict() if last else None
        return Frame("hello", {"study": study, "receipt": receipt, "version": __version__})

    def _talk(self, frames: Mapping[str, Frame], patience: Patience = BRIEF) -> dict[str, Frame]:
        """One short exchange with each site; each answer proves by a nonce that it is fresh."""
        nonces = {site: secrets.token_hex(16) for site in frames}
        sealed = {
            site: self._identity.seal(
                encode(replace(frame, head={**frame.head, "nonce": nonces[site]})), FROM_COORDINATOR
            )
            for site, frame in frames.items()
        }
        answers: dict[str, Frame] = {}

        def accept(site: str, body: bytes) -> None:
            frame = decode(body)
            if frame.head.get("site") != site:
                raise WireError(f"{site}'s node answered in the name of {frame.head.get('site')!r}")
            if frame.kind == "refused":
                log.warning("%s refuses; the reason is in its own log", site)
            elif frame.head.get("nonce") != nonces[site]:
                raise WireError(f"{site} answered an older greeting")
            answers[site] = frame

        self._ask(sealed, accept, patience)
        return answers

    def _accept(self, request: Message, site: str, body: bytes) -> Answer:
        """The answer inside, if everything about it is in order."""
        frame = decode(body)
        if frame.kind == "refused":
            return _declined(request, site, "refused")
        if frame.kind != "answer" or set(frame.blobs) != {"answer"}:
            raise WireError(f"{site} sent a {frame.kind}")
        raw = frame.blobs["answer"]
        answer: Answer = unpack(raw, Reply | SecureReply | Declined)
        if answer.site != site or any(
            getattr(answer, name) != value for name, value in _ids(request).items()
        ):
            raise WireError(f"{site} answered another request, or in another's name")
        if isinstance(answer, Reply) and not self._keep(
            Receipt.from_dict(frame.head.get("receipt")), answer, raw
        ):
            return _declined(request, site, "failed")
        return answer

    def _keep(self, receipt: Receipt, reply: Reply, raw: bytes) -> bool:
        """Store the receipt of a reply; False if it shows that the site's ledger went back."""
        stated = {name: getattr(receipt, name) for name in ("site", *_IDS)}
        if receipt.answer != hashlib.sha256(raw).hexdigest() or stated != {
            name: getattr(reply, name) for name in stated
        }:
            raise WireError(f"{reply.site}'s receipt is for another answer")
        try:
            self._receipts.keep(receipt)
        except FederationError as error:
            log.error("%s is left out: %s", reply.site, error)
            return False
        return True

    def _ask(
        self,
        data: Mapping[str, bytes],
        accept: Callable[[str, bytes], None],
        patience: Patience | None = None,
    ) -> list[str]:
        """Send each site its bytes until each has answered or is given up; return the ones given up."""
        return _Asking(self._link, data, self._opened(accept), patience or self._patience).run()

    def _opened(self, accept: Callable[[str, bytes], None]) -> Callable[[str, bytes], bool]:
        """Check the seal, pin the key of a site that is met for the first time, hand the body on."""

        def open_and_accept(site: str, sealed: bytes) -> bool:
            try:
                body, signer = unseal(sealed, signer=self._keys.get(site), purpose=FROM_SITE)
                accept(site, body)
            except FedveilError as error:
                log.error("an answer from %s is refused: %s", site, error)
                return False
            if site not in self._keys:
                self._keys[site] = signer
                self._pin(site, signer)
            return True

        return open_and_accept

    def _sessions(self) -> dict[str, str]:
        return sessions(self._link)


def sessions(link: Link) -> dict[str, str]:
    """The sites whose nodes are connected now, and when each signed on."""
    return {
        node.name: f"{node.node_id} {node.last_activated_at}"
        for node in link.call(lambda g: list(g.get_nodes()))
    }


class _Asking:
    """One message to each of several sites, repeated as long as that may help."""

    def __init__(
        self,
        link: Link,
        data: Mapping[str, bytes],
        accept: Callable[[str, bytes], bool],
        patience: Patience,
    ) -> None:
        self._link, self._data, self._accept, self._patience = link, data, accept, patience
        now = time.monotonic()
        self._waiting = {site: _Waiting(now, 0.0, patience.again, "") for site in data}
        self._sent: dict[str, str] = {}
        self._given_up: list[str] = []

    def run(self) -> list[str]:
        """Ask until nobody is waited for."""
        looked = 0.0
        while self._waiting:
            if time.monotonic() - looked > _LOOK:
                self._look()
                looked = time.monotonic()
            if not self._collect() and self._waiting:
                time.sleep(_POLL)
        return self._given_up

    def _look(self) -> None:
        """Who is connected? Send to those who have to be asked, give up those who stay away."""
        online, now = sessions(self._link), time.monotonic()
        due = []
        for site, state in list(self._waiting.items()):
            session = online.get(site)
            if session is None:
                state.away_since = state.away_since or now
                if now - state.away_since > self._patience.away:
                    self._give_up(site, "its node is not connected")
                continue
            state.away_since = None
            if now - state.since > self._patience.answer:
                self._give_up(site, "it does not answer")
            elif session != state.session or now >= state.again_at:
                due.append(site)
                state.session, state.again_at = session, now + state.again
                state.again *= 2
        if due:
            self._send(due, online)

    def _give_up(self, site: str, why: str) -> None:
        log.warning("%s is given up for this round: %s", site, why)
        del self._waiting[site]
        self._given_up.append(site)

    def _spoilt(self, site: str, reason: str, *, may_recover: bool) -> None:
        """Something unusable came back: ask again, but not for ever."""
        state = self._waiting[site]
        state.spoilt += 1
        state.again_at = min(state.again_at, time.monotonic() + state.spoilt * _LOOK)
        away = time.monotonic() - state.since > self._patience.away
        if state.spoilt >= _SPOILT and (away or not may_recover):
            self._give_up(site, reason)
        else:
            log.warning("%s is asked again: %s", site, reason)

    def _send(self, due: Sequence[str], online: Mapping[str, str]) -> None:
        lifetime = self._patience.answer + 60

        def push(grid: Any) -> list[str]:
            messages = [
                FlowerMessage(
                    content_of(self._data[site]),
                    dst_node_id=int(online[site].split()[0]),
                    message_type=MESSAGE_TYPE,
                    ttl=lifetime,
                )
                for site in due
            ]
            return list(grid.push_messages(messages))

        for name, site in zip(self._link.call(push), due, strict=True):
            if name:
                self._sent[name] = site

    def _collect(self) -> bool:
        """Take in what has arrived; True if anything has."""
        names = [name for name, site in self._sent.items() if site in self._waiting]
        if not names:
            return False
        arrived = self._link.call(lambda grid: list(grid.pull_messages(names)))
        for message in arrived:
            site = self._sent.pop(message.metadata.reply_to_message_id, None)
            if site is None or site not in self._waiting:
                continue
            data = bytes_of(message)
            if data is not None and self._accept(site, data):
                del self._waiting[site]
            else:
                reason = message.error.reason if message.has_error() else None
                self._spoilt(site, reason or "its answer was refused", may_recover=message.has_error())
        return bool(arrived)


def _ids(request: Message) -> dict[str, Any]:
    """What an answer must repeat of its request."""
    names = _IDS if isinstance(request, Request) else ("study",)
    return {name: getattr(request, name) for name in names}


def _declined(request: Message, site: str, code: Any) -> Declined:
    ids = {"release": "secure-aggregation", "round": 0, "attempt": 0, **_ids(request)}
    return Declined(site=site, code=code, **ids)
