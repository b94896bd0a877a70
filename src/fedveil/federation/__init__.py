"""The trust boundary: what a coordinator asks, what a site checks, charges and answers, and how sums are made.

A study's `Terms` fix everything that touches privacy. A `Site` holds a cohort behind a learner and answers
`Request`s under its own policy and ledger; the `Coordinator` asks a round's participants over a `Transport` and adds
up what comes back. The same code serves sites in this process and sites across a network.
"""

from fedveil.federation.coordinator import BudgetSpent, Coordinator, Dropped, RoundSum
from fedveil.federation.messages import Answer, Declined, Message, Reply, Request, SecureReply, SecureRequest
from fedveil.federation.policy import Policy
from fedveil.federation.secure import Identity
from fedveil.federation.site import Site, release_of
from fedveil.federation.terms import (
    CALIBRATION,
    EVALUATION,
    KEPT,
    PERSONAL,
    PERSONAL_CALIBRATION,
    STATISTICS,
    TRAINING,
    LocalSteps,
    Release,
    Terms,
    default_min_honest,
    noise_share,
)
from fedveil.federation.transport import InProcess, Transport

__all__ = [
    "CALIBRATION",
    "EVALUATION",
    "STATISTICS",
    "TRAINING",
    "Answer",
    "BudgetSpent",
    "Coordinator",
    "Declined",
    "Dropped",
    "Identity",
    "InProcess",
    "LocalSteps",
    "KEPT",
    "PERSONAL",
    "PERSONAL_CALIBRATION",
    "Message",
    "Policy",
    "Release",
    "Reply",
    "Request",
    "RoundSum",
    "SecureReply",
    "SecureRequest",
    "Site",
    "Terms",
    "Transport",
    "default_min_honest",
    "noise_share",
    "release_of",
]
