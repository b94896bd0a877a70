"""Sending requests to several sites through a SuperLink, and repeating them while that may help."""

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flwr.app import Message as FlowerMessage

from fedveil.deploy.flower.link import Link
from fedveil.deploy.flower.records import MESSAGE_TYPE, bytes_of, content_of
from fedveil.errors import printable

__all__ = ["BRIEF", "Asking", "Patience", "sessions"]

log = logging.getLogger("fedveil.coordinator")

_POLL = 0.1
_LOOK = 1.0
_SPOILT = 3


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait for a site.

    Attributes:
        away: seconds to wait for a site whose node is not connected, or whose site service does not answer its node.
        gone: the same for a site that was absent when it was last asked.
        answer: seconds that a connected site may take for one answer.
        again: seconds after which an unanswered request is sent again; doubles each time.
    """

    away: float = 8.0
    gone: float = 0.5
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


def sessions(link: Link) -> dict[str, str]:
    """The sites whose nodes are connected now, and their activation times."""
    return {
        node.name: f"{node.node_id} {node.last_activated_at}"
        for node in link.call(lambda g: list(g.get_nodes()))
    }


class Asking:
    """One message to each of several sites, repeated as long as that may help.

    Args:
        link: the SuperLink and this process's run on it.
        make: by site, makes the bytes to send; called for each transmission.
        accept: receives a site's bytes; returns False if they are not an answer and the site must be asked again.
        patience: how long to wait for sites.
        gone: the sites that were absent when they were last asked; kept up to date.
    """

    def __init__(
        self,
        link: Link,
        make: Mapping[str, Callable[[], bytes]],
        accept: Callable[[str, bytes], bool],
        patience: Patience,
        gone: set[str] | None = None,
    ) -> None:
        self._link, self._make, self._accept, self._patience = link, make, accept, patience
        self._gone = set() if gone is None else gone
        now = time.monotonic()
        self._waiting = {site: _Waiting(now, 0.0, patience.again, "") for site in make}
        self._sent: dict[str, str] = {}

    def run(self) -> None:
        """Ask until no answer is outstanding."""
        looked = 0.0
        while self._waiting:
            if time.monotonic() - looked > _LOOK:
                self._look()
                looked = time.monotonic()
            if not self._collect() and self._waiting:
                time.sleep(_POLL)

    def _look(self) -> None:
        """Find the connected sites, send to those that have to be asked, give up those that stay absent."""
        online, now = sessions(self._link), time.monotonic()
        due = []
        for site, state in list(self._waiting.items()):
            session = online.get(site)
            if session is None:
                state.away_since = state.away_since or now
                if now - state.away_since > self._away(site):
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

    def _away(self, site: str) -> float:
        """Seconds to wait for a site that is not there: long the first time only."""
        return min(self._patience.away, self._patience.gone if site in self._gone else math.inf)

    def _give_up(self, site: str, why: str) -> None:
        self._gone.add(site)
        log.warning("%s is left out of this round: %s", site, why)
        del self._waiting[site]

    def _spoilt(self, site: str, reason: str, *, may_recover: bool) -> None:
        """Unusable bytes came back: ask again, a limited number of times."""
        state = self._waiting[site]
        state.spoilt += 1
        state.again_at = min(state.again_at, time.monotonic() + state.spoilt * _LOOK)
        away = time.monotonic() - state.since > self._away(site)
        if away if may_recover else state.spoilt >= _SPOILT:
            self._give_up(site, reason)
        else:
            log.warning("%s is asked again: %s", site, reason)

    def _send(self, due: Sequence[str], online: Mapping[str, str]) -> None:
        lifetime = self._patience.answer + 60

        def push(grid: Any) -> list[str]:
            messages = [
                FlowerMessage(
                    content_of(self._make[site]()),
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
        """Process arrived messages; True if there were any."""
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
                self._gone.discard(site)
                del self._waiting[site]
            else:
                reason = printable(str(message.error.reason))[:200] if message.has_error() else None
                self._spoilt(site, reason or "its answer was refused", may_recover=message.has_error())
        return bool(arrived)
