"""The only messages that cross the trust boundary between a coordinator and a site.

Every field of a reply is named in `PUBLIC_FIELDS` (known to the coordinator already, or a constant of the study)
or in `CHARGED_FIELDS` (charged to the site's ledger before it was computed). There is no field for counts, losses,
metrics or the text of exceptions.

Every text and number has a restricted type, checked before use, so that no name, digest or status contains markup,
control characters, a path, or too many characters.
"""

import re
from collections.abc import Sized
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt

from fedveil.names import SITE_NAME

__all__ = [
    "CHARGED_FIELDS",
    "PUBLIC_FIELDS",
    "Answer",
    "Counter",
    "Declined",
    "Digest",
    "Matching",
    "Message",
    "ReleaseName",
    "Reply",
    "Request",
    "SecureReply",
    "SecureRequest",
    "SiteName",
    "SiteNames",
    "Vector",
    "Within",
]


@dataclass(frozen=True, slots=True)
class Matching:
    """Text that a regular expression describes, from its first character to its last."""

    pattern: re.Pattern[str]

    def holds(self, value: str) -> bool:
        """Whether the text is of this kind."""
        return self.pattern.fullmatch(value) is not None


@dataclass(frozen=True, slots=True)
class Within:
    """A whole number between two others, or so many items."""

    least: int
    most: int

    def holds(self, value: int | Sized) -> bool:
        """Whether the number, or the number of items, is between the two."""
        return self.least <= (value if isinstance(value, int) else len(value)) <= self.most


SiteName = Annotated[str, Matching(re.compile(SITE_NAME))]
SiteNames = Annotated[tuple[SiteName, ...], Within(1, 1000)]
Digest = Annotated[str, Matching(re.compile(r"[0-9a-f]{64}"))]
ReleaseName = Annotated[str, Matching(re.compile(r"[a-z0-9-]{1,64}"))]
Counter = Annotated[int, Within(0, 2**63 - 1)]

Vector = npt.NDArray[np.float64]
Words32 = npt.NDArray[np.uint32]
Words64 = npt.NDArray[np.uint64]

DeclineCode = Literal["over-budget", "refused", "failed", "unreachable", "invalid"]
"""Why a site contributes nothing. The last two are set by the coordinator: for a site that does not answer, and for
one that violates the protocol."""

PUBLIC_FIELDS = frozenset({"site", "study", "release", "round", "attempt", "code", "keys"})
CHARGED_FIELDS = frozenset({"vector"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request of the coordinator to every participant of a round.

    Attributes:
        study: digest of the agreement that the site has admitted; it selects the agreement and cannot change it.
        release: the release of the agreement that this round belongs to.
        round: 1 to the number of rounds of the release.
        attempt: a counter of the coordinator that grows at every repeat and restart. A site never serves the
            same (release, round, attempt) twice.
        participants: the sites asked in this round; their number determines the noise shares.
        parameters: the model, a flat vector; empty for a release that needs none.
    """

    study: Digest
    release: ReleaseName
    round: Counter
    attempt: Counter
    participants: SiteNames
    parameters: Vector


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A site's contribution to one round, protected according to the agreement's trust level.

    ``vector`` is float64, or under secure aggregation masked words: uint32 or uint64, uniform except in the sum.
    """

    site: SiteName
    study: Digest
    release: ReleaseName
    round: Counter
    attempt: Counter
    vector: Vector | Words32 | Words64


@dataclass(frozen=True, slots=True, kw_only=True)
class Declined:
    """A site that sends no contribution. The reason is one of four public words; details are only in its own log."""

    site: SiteName
    study: Digest
    release: ReleaseName
    round: Counter
    attempt: Counter
    code: DeclineCode


@dataclass(frozen=True, slots=True, kw_only=True)
class SecureRequest:
    """A message of the secure aggregation protocol to a site: its set-up, or the recovery that ends a round."""

    study: Digest
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class SecureReply:
    """A site's protocol answer: public keys, encrypted shares, or shares of one round's masks; never of its data."""

    site: SiteName
    study: Digest
    keys: bytes


Message = Request | SecureRequest
Answer = Reply | SecureReply | Declined
