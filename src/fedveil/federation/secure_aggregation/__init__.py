"""Secure aggregation: the server sees only the sum of the sites' vectors, even if sites drop out.

Two state machines without I/O: `SecureAggregationClient` at a site and
`SecureAggregationServer` at the coordinator, which exchange frozen messages, as objects or as bytes, over any
transport. A `Session` is set up once for many rounds; a round then takes two exchanges, masked words and recovery.
docs/secure-aggregation.md says what it protects from whom. The words themselves, noise included, come from
`fedveil.privacy.accounting.integer`.
"""

from typing import TYPE_CHECKING

from fedveil.lazy import on_first_use

if TYPE_CHECKING:
    from fedveil.federation.secure_aggregation.client import SecureAggregationClient
    from fedveil.federation.secure_aggregation.disputes import Dispute, suspects
    from fedveil.federation.secure_aggregation.exchange import Exchange, establish, unmask
    from fedveil.federation.secure_aggregation.messages import (
        Announcement,
        MaskedInput,
        Ready,
        Recovery,
        RecoveryRequest,
        Roster,
        SharesDelivered,
        SharesSent,
    )
    from fedveil.federation.secure_aggregation.server import (
        Aggregation,
        RoundAbandoned,
        SecureAggregationServer,
        SetUpFailed,
    )
    from fedveil.federation.secure_aggregation.session import Session

__all__ = [
    "Aggregation",
    "Announcement",
    "Dispute",
    "Exchange",
    "MaskedInput",
    "Ready",
    "Recovery",
    "RecoveryRequest",
    "Roster",
    "RoundAbandoned",
    "SecureAggregationClient",
    "SecureAggregationServer",
    "Session",
    "SetUpFailed",
    "SharesDelivered",
    "SharesSent",
    "establish",
    "suspects",
    "unmask",
]

__getattr__, __dir__ = on_first_use(__name__)
