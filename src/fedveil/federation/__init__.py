"""The trust boundary: what a coordinator requests, what a site checks, charges and answers, and how sums are computed.

A study's `Agreement` fixes everything that affects privacy: which queries (`fedveil.federation.queries`) sites are
asked, and who adds which noise (`fedveil.federation.noise`). A `Site` holds a cohort behind a learner and answers
`Request`s under its own policy and ledger; the `Coordinator` asks a round's participants over a `Transport` and adds
up their answers. The same code serves sites in this process and sites across a network.
"""

from typing import TYPE_CHECKING

from fedveil.lazy import on_first_use

if TYPE_CHECKING:
    from fedveil.federation.agreement import Agreement
    from fedveil.federation.coordinator import BudgetSpent, Coordinator, Dropped, RoundSum, Seen
    from fedveil.federation.messages import (
        Answer,
        Declined,
        Message,
        Reply,
        Request,
        SecureReply,
        SecureRequest,
    )
    from fedveil.federation.noise import CentralNoise, DistributedNoise, LocalNoise, Noise, default_min_honest
    from fedveil.federation.policy import Policy
    from fedveil.federation.queries import (
        QUERIES,
        HospitalUnits,
        LocalSteps,
        ModelState,
        NoisySum,
        OneSum,
        Query,
        Rounds,
        title_of,
    )
    from fedveil.federation.release import Release
    from fedveil.federation.secure_rounds import Identity
    from fedveil.federation.site import Site, release_of
    from fedveil.federation.transport import InProcess, Transport

__all__ = [
    "QUERIES",
    "Agreement",
    "Answer",
    "BudgetSpent",
    "CentralNoise",
    "Coordinator",
    "Declined",
    "DistributedNoise",
    "Dropped",
    "HospitalUnits",
    "Identity",
    "InProcess",
    "LocalNoise",
    "LocalSteps",
    "Message",
    "ModelState",
    "Noise",
    "NoisySum",
    "OneSum",
    "Policy",
    "Query",
    "Release",
    "Reply",
    "Request",
    "RoundSum",
    "Rounds",
    "SecureReply",
    "SecureRequest",
    "Seen",
    "Site",
    "Transport",
    "default_min_honest",
    "release_of",
    "title_of",
]

__getattr__, __dir__ = on_first_use(__name__)
