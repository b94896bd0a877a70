"""What carries sealed messages between the coordinator and the hospitals' nodes.

A carrier sees who sends, when and how much, and nothing else. It may drop, delay and repeat messages: whoever uses it
(`fedveil.deploy.coordinator.asking`) asks again, and messages are sealed before they reach it
(`fedveil.deploy.sealing`). Flower is one carrier (`fedveil.deploy.flower.carrier`),
NVFlare another (`fedveil.deploy.nvflare.carrier`).
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, Self

from fedveil.errors import InvalidValue

__all__ = ["CELL", "Carrier", "Engine", "Parcel", "check_cell_names"]

Engine = Literal["flower", "nvflare"]
"""What carries messages, as settings name it."""

CELL = "server"
"""The name of the coordinator's cell over NVFlare, which demands this one."""

_CELL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True, slots=True)
class Parcel:
    """What came back for one message.

    Attributes:
        name: the name that `Carrier.push` gave to the message that this answers.
        data: the answer's bytes; None if there are none.
        failure: why the carrier or the node could not obtain an answer; asking again may help. None for an answer.
    """

    name: str
    data: bytes | None
    failure: str | None = None


class Carrier(Protocol):
    """Brings bytes to the hospitals' nodes and their answers back; a context that starts and stops it.

    Raises:
        FederationError: from any method, if there is no connection for longer than its settings allow.
    """

    def __enter__(self) -> Self:
        """Start, or join what runs already."""

    def __exit__(self, *_: object) -> None:
        """Stop what nobody else uses."""

    def present(self) -> Mapping[str, str]:
        """By site, the session of each node that is connected now; a node that reconnects has another one.

        A message that was pushed in one session may be lost in the next.
        """

    def push(self, messages: Mapping[str, bytes], seconds: float) -> Mapping[str, str]:
        """Send bytes to sites that are present; they may be fetched for ``seconds``.

        Returns:
            by site, the name of its message; a site whose message could not be sent is absent.
        """

    def pull(self, names: Iterable[str]) -> Sequence[Parcel]:
        """What has arrived for these messages, each once; does not wait."""


def check_cell_names(sites: Sequence[str]) -> None:
    """Refuse names of hospitals that NVFlare's cells cannot have; a dot would make one a part of another.

    Raises:
        InvalidValue: for the first such name.
    """
    for site in sites:
        if not _CELL_NAME.fullmatch(site) or site == CELL:
            raise InvalidValue(
                f"a hospital is called {site!r}",
                f"over NVFlare a name has 1 to 64 letters, digits, dashes and underscores, and is not {CELL!r}",
                "choose another name, or carry messages over Flower",
            )
