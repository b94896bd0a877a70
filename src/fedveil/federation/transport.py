"""The one seam between a coordinator and its sites: the same requests and replies, in process or over a network."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from fedveil.federation.messages import Declined, Reply, Request
from fedveil.federation.site import Site

__all__ = ["InProcess", "Transport"]


class Transport(Protocol):
    """Carries requests to sites and brings back what each of them answers."""

    def exchange(self, requests: Mapping[str, Request]) -> Mapping[str, Reply | Declined]:
        """Deliver to each site, by name, its request; return the answers by site.

        A site that cannot be reached is simply absent from the answers; the call does not raise for it.
        """
        ...


class InProcess:
    """Sites in this process: what a study on one machine uses."""

    def __init__(self, sites: Sequence[Site]) -> None:
        self._sites = {site.name: site for site in sites}

    def exchange(self, requests: Mapping[str, Request]) -> Mapping[str, Reply | Declined]:
        """Ask each site in turn."""
        return {name: self._sites[name].handle(request) for name, request in requests.items()}
