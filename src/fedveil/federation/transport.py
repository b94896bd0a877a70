"""The interface between a coordinator and its sites: the same requests and replies, in process or over a network."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from fedveil.federation.messages import Answer, Message

__all__ = ["InProcess", "Transport"]


class Transport(Protocol):
    """Carries requests to sites and returns their answers."""

    def exchange(self, requests: Mapping[str, Message]) -> Mapping[str, Answer]:
        """Deliver to each site, by name, its request; return the answers by site.

        A site that cannot be reached is absent from the answers; the call does not raise.
        """
        ...

    @property
    def signing_keys(self) -> Mapping[str, bytes]:
        """The sites' Ed25519 keys, if known to this side."""
        ...


class Handler(Protocol):
    """Answers messages under a name: a `Site`."""

    name: str

    def handle(self, message: Message) -> Answer:
        """Answer one message."""
        ...


class InProcess:
    """Sites in this process, for a study on one machine."""

    def __init__(self, sites: Sequence[Handler]) -> None:
        self._sites = {site.name: site for site in sites}

    def exchange(self, requests: Mapping[str, Message]) -> Mapping[str, Answer]:
        """Ask each site in turn."""
        return {name: self._sites[name].handle(request) for name, request in requests.items()}

    @property
    def signing_keys(self) -> Mapping[str, bytes]:
        """None: sites in this process need no keys."""
        return {}
