"""Answers on their way from the SuperLink: each is taken part by part, and none waits for another.

Flower's own reader waits for the parts of one answer before it looks at the next, and expects every answer to be what
it says it is. A node is not trusted with either: it may announce an answer and never send it, or send another object.
"""

import logging
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

import httpx
from flwr.app import Message

from fedveil.deploy.carrier import Parcel
from fedveil.deploy.flower.private.coordinator import (
    ConfirmMessageReceivedRequest,
    PullAppMessagesRequest,
    PullObjectRequest,
    inflate_object_from_contents,
    iterate_object_tree,
)
from fedveil.deploy.flower.records import bytes_of

__all__ = ["Arriving"]

log = logging.getLogger("fedveil.coordinator")

_MOST_PARTS = 1024
"""A message of the greatest length has fewer."""

_PART_SECONDS, _LONGEST = 20.0, 180.0
"""Seconds without a new part until an answer is given up: for each part that holds data, and at most. The parts of a
long answer are sent at the same time, so the first may arrive late over a slow line."""


class _Announced:
    """An answer whose parts are not all here.

    Args:
        answer: its identifier.
        parts: the identifiers of its parts.
    """

    def __init__(self, answer: str, parts: Sequence[str]) -> None:
        self.answer, self._missing = answer, list(parts)
        self._contents: dict[str, bytes] = {}
        self._seconds = min(_PART_SECONDS * max(1, len(parts) - 2), _LONGEST)
        self._moved = time.monotonic()

    def complete(self, grid: Any) -> bool:
        """Take the parts that are there, each once; whether that was all."""
        while self._missing:
            name = self._missing[-1]
            request = PullObjectRequest(node=grid.node, run_id=grid._run.run_id, object_id=name)
            try:
                found = grid._runtime_client.PullObject(request)
            except httpx.TransportError as error:
                log.debug("no part of an answer: %s", error)
                return False
            if not found.object_found:
                raise ValueError("a part of it is unknown")
            if not found.object_available:
                return False
            self._contents[name] = found.object_content
            self._missing.pop()
            self._moved = time.monotonic()
        return True

    def is_late(self) -> bool:
        """Whether no part has come for too long."""
        return time.monotonic() - self._moved > self._seconds

    def parcel(self, name: str) -> Parcel:
        """What it carries."""
        whole = inflate_object_from_contents(self.answer, self._contents)
        if not isinstance(whole, Message):
            raise TypeError("it is not a message")
        return Parcel(name, bytes_of(whole), str(whole.error.reason) if whole.has_error() else None)


class Arriving:
    """The answers that have been announced, by the name of the message that each answers."""

    def __init__(self) -> None:
        self._announced: dict[str, _Announced] = {}

    def pull(self, grid: Any, names: Iterable[str]) -> list[Parcel]:
        """What has arrived whole, or will not arrive, for these messages; does not wait for parts."""
        asked = list(names)
        self._announced = {name: one for name, one in self._announced.items() if name in asked}
        refused = self._look(grid, [name for name in asked if name not in self._announced])
        arrived = [self._take(grid, name, one) for name, one in list(self._announced.items())]
        return [*refused, *(one for one in arrived if one is not None)]

    def _look(self, grid: Any, names: Sequence[str]) -> list[Parcel]:
        """Note the answers that the SuperLink has; it tells of each once. Those that cannot be noted are returned."""
        if not names:
            return []
        found = grid._runtime_client.PullMessages(PullAppMessagesRequest(message_ids=names))
        refused = []
        for proto, tree in zip(found.messages_list, found.message_object_trees, strict=True):
            name = proto.metadata.reply_to_message_id
            parts = list({item.object_id: None for item in iterate_object_tree(tree)})
            if len(parts) > _MOST_PARTS:
                log.warning("refused: an answer in %s parts", len(parts))
                refused.append(Parcel(name, None))
            else:
                self._announced[name] = _Announced(proto.metadata.message_id, parts)
        return refused

    def _take(self, grid: Any, name: str, announced: _Announced) -> Parcel | None:
        """An answer that is whole, or is given up; None for one to wait for."""
        try:
            if announced.complete(grid):
                parcel = announced.parcel(name)
            elif announced.is_late():
                parcel = Parcel(name, None, "its answer was announced and did not arrive")
            else:
                return None
        except Exception as error:  # noqa: BLE001 - whatever a node's rubbish causes, the others' answers count
            log.warning("refused: an answer cannot be read (%.200r)", str(error))
            parcel = Parcel(name, None)
        del self._announced[name]
        confirm = ConfirmMessageReceivedRequest(
            node=grid.node, run_id=grid._run.run_id, message_object_id=announced.answer
        )
        with suppress(httpx.HTTPError):
            grid._runtime_client.ConfirmMessageReceived(confirm)
        return parcel
