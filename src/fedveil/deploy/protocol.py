"""Which versions of the protocol between coordinator and hospitals this fedveil speaks.

The protocol is what both ends must understand alike: the kinds of messages, their fields and order, the states of a
study, sealing and receipts. Its number changes when one of them changes so that the other end would misread it, not
with each version of fedveil. Both ends state a range when they greet, and work together if the ranges overlap: so the
coordinator and the hospitals are upgraded one after the other. What affects privacy does not depend on it: a hospital
computes a study's agreement itself, and one that computes another has another digest and refuses the study.
"""

from collections.abc import Mapping
from typing import Any

from fedveil import __version__

__all__ = ["PROTOCOLS", "common", "mismatch", "stated"]

PROTOCOLS = (1, 1)
"""The first and the last version of the protocol that this side speaks."""


def common(theirs: object) -> int | None:
    """The newest protocol that both sides speak; None if there is none.

    Args:
        theirs: the other side's range as it was received; version 0.1.0 stated none, and spoke protocol 1.
    """
    first, last = (1, 1) if theirs is None else _range(theirs)
    newest = min(last, PROTOCOLS[1])
    return newest if newest >= max(first, PROTOCOLS[0]) else None


def stated() -> dict[str, Any]:
    """What this side says of itself in a greeting."""
    return {"version": __version__, "protocols": list(PROTOCOLS)}


def mismatch(head: Mapping[str, Any]) -> str | None:
    """Why this side cannot work with the other, from the head of its greeting; None if it can."""
    if common(head.get("protocols")) is not None:
        return None
    theirs, (first, last) = head.get("protocols"), PROTOCOLS
    return (
        f"the coordinator runs fedveil {head.get('version')!r:.22} with protocols {theirs!r:.22}, this site "
        f"{__version__} with protocols {first} to {last}: upgrade the older one"
    )


def _range(theirs: object) -> tuple[int, int]:
    """A range of versions; an empty one for anything else."""
    match theirs:
        case [int(first), int(last)] if 0 < first <= last < 2**16 and not isinstance(first, bool):
            return first, last
        case _:
            return 1, 0
