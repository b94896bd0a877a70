"""The one seam between a coordinator and its sites: the same requests and replies, in process or over a network."""

from collections.abc import Sequence
from typing import Protocol

from fedveil.federation.messages import Declined, Reply, Request
from fedveil.federation.site import Site

__all__ = ["InProcess", "Transport"]


class Transport(Protocol):
    """Carries one request to every participant and brings back what each of them answers."""

    def exchange(self, request: Request) -> Sequence[Reply | Declined]:
        """Deliver the request to each of ``request.participants``; one answer a participant, in any order.

        A participant that cannot be reached is answered for with ``Declined(code="unreachable")``; the call does
        not raise for it.
        """
        ...


class InProcess:
    """Sites in this process: what a study on one machine uses."""

    def __init__(self, sites: Sequence[Site]) -> None:
        self._sites = {site.name: site for site in sites}

    def exchange(self, request: Request) -> Sequence[Reply | Declined]:
        """Ask each participant in turn."""
        return [self._sites[name].handle(request) for name in request.participants]
