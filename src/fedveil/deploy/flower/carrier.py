"""Flower as a `fedveil.deploy.carrier.Carrier`."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

from flwr.app import Message

from fedveil.deploy.carrier import Parcel
from fedveil.deploy.flower.arriving import Arriving
from fedveil.deploy.flower.link import Link
from fedveil.deploy.flower.process import LinkSettings
from fedveil.deploy.flower.records import MESSAGE_TYPE, content_of

__all__ = ["FlowerCarrier"]


class FlowerCarrier:
    """Carries messages through the coordinator's SuperLink.

    Args:
        settings: the SuperLink's address and files.
        nodes: the public key (PEM) of each site's node, by the site's name.
    """

    def __init__(self, settings: LinkSettings, nodes: Mapping[str, bytes]) -> None:
        self._link = Link(settings, nodes)
        self._numbers: dict[str, int] = {}
        self._arriving = Arriving()

    def __enter__(self) -> Self:
        self._link.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._link.close()

    def present(self) -> Mapping[str, str]:
        """By site, the session of each node that is connected now."""
        nodes = self._link.call(lambda grid: list(grid.get_nodes()))
        self._numbers |= {node.name: node.node_id for node in nodes}
        return {node.name: f"{node.node_id} {node.last_activated_at}" for node in nodes}

    def push(self, messages: Mapping[str, bytes], seconds: float) -> Mapping[str, str]:
        """Send bytes to sites that are present."""

        def act(grid: Any) -> list[str]:
            made = [
                Message(
                    content_of(data), dst_node_id=self._numbers[site], message_type=MESSAGE_TYPE, ttl=seconds
                )
                for site, data in messages.items()
            ]
            return list(grid.push_messages(made))

        names = self._link.call(act)
        return {site: name for site, name in zip(messages, names, strict=True) if name}

    def pull(self, names: Iterable[str]) -> Sequence[Parcel]:
        """What has arrived for these messages."""
        wanted = list(names)
        return self._link.call(lambda grid: self._arriving.pull(grid, wanted))
