"""What crosses the trust boundary between a coordinator and a site, and nothing else.

Every field of a reply is named in `PUBLIC_FIELDS` (known to the coordinator already, or a constant of the study)
or in `CHARGED_FIELDS` (paid for in the site's ledger before it was computed). Counts, losses, metrics and the text
of exceptions have no field to travel in.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

__all__ = [
    "CHARGED_FIELDS",
    "PUBLIC_FIELDS",
    "Answer",
    "Declined",
    "Message",
    "Reply",
    "Request",
    "SecureReply",
    "SecureRequest",
    "Vector",
]

Vector = npt.NDArray[np.float64]

DeclineCode = Literal["over-budget", "refused", "failed", "unreachable"]

PUBLIC_FIELDS = frozenset({"site", "study", "release", "round", "attempt", "code", "keys"})
CHARGED_FIELDS = frozenset({"vector"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request of the coordinator to every participant of a round.

    Attributes:
        study: digest of the terms that the site has admitted; it selects them, it cannot change them.
        release: which of the terms' releases this round belongs to.
        round: 1 to the number of rounds of the release.
        attempt: a counter of the coordinator that grows at every repeat and restart. A site never serves the
            same (release, round, attempt) twice.
        participants: the sites asked in this round; their number sizes the noise shares.
        parameters: the model, a flat vector; empty for a release that needs none.
    """

    study: str
    release: str
    round: int
    attempt: int
    participants: tuple[str, ...]
    parameters: Vector


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A site's contribution to one round, protected as the terms' trust demands.

    ``vector`` is float64, or under secure aggregation masked words: uint32, uniform to anyone but the sum.
    """

    site: str
    study: str
    release: str
    round: int
    attempt: int
    vector: Vector | npt.NDArray[np.uint32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Declined:
    """A site that sends no contribution. The reason is one of four public words; the details stay in its own log."""

    site: str
    study: str
    release: str
    round: int
    attempt: int
    code: DeclineCode


@dataclass(frozen=True, slots=True, kw_only=True)
class SecureRequest:
    """A message of the secure aggregation protocol to a site: its set-up, or the recovery that ends a round."""

    study: str
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class SecureReply:
    """A site's protocol answer: public keys, encrypted shares, or shares of one round's masks; never of its data."""

    site: str
    study: str
    keys: bytes


Message = Request | SecureRequest
Answer = Reply | SecureReply | Declined
