"""Sending requests to several sites through a carrier, and repeating them while that may help."""

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fedveil.deploy.carrier import Carrier
from fedveil.errors import printable

__all__ = ["BRIEF", "Asking", "Patience"]

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


class Asking:
    """One message to each of several sites, repeated as long as that may help.

    Args:
        carrier: brings the bytes there and back.
        make: by site, makes the bytes to send; called for each transmission.
        accept: receives a site's bytes; returns False if they are not an answer and the site must be asked again.
        patience: how long to wait for sites.
        gone: the sites that were absent when they were last asked; kept up to date.
    """

    def __init__(
        self,
        carrier: Carrier,
        make: Mapping[str, Callable[[], bytes]],
        accept: Callable[[str, bytes], bool],
        patience: Patience,
        gone: set[str] | None = None,
    ) -> None:
        self._carrier, self._make, self._accept, self._patience = carrier, make, accept, patience
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
        online, now = self._carrier.present(), time.monotonic()
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
            self._send(due)

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

    def _send(self, due: Sequence[str]) -> None:
        messages = {site: self._make[site]() for site in due}
        names = self._carrier.push(messages, self._patience.answer + 60)
        self._sent |= {name: site for site, name in names.items()}

    def _collect(self) -> bool:
        """Process arrived messages; True if there were any."""
        names = [name for name, site in self._sent.items() if site in self._waiting]
        if not names:
            return False
        arrived = self._carrier.pull(names)
        for parcel in arrived:
            site = self._sent.pop(parcel.name, None)
            if site is None or site not in self._waiting:
                continue
            if parcel.data is not None and self._accept(site, parcel.data):
                self._gone.discard(site)
                del self._waiting[site]
            else:
                failed = parcel.failure is not None
                reason = printable(parcel.failure or "its answer was refused")[:200]
                self._spoilt(site, reason, may_recover=failed)
        return bool(arrived)
