"""Audits of any mechanism, whoever made it: a function, and the guarantee that is claimed for it.

`search` looks for inputs whose outputs refute the claim, among `neighbours`, by a learnt test (`distinguisher`).
`remote` runs the function in an environment of its own, with `worker` as the script there.
"""

from fedveil.audit.mechanisms.neighbours import Neighbours, default_neighbours
from fedveil.audit.mechanisms.remote import audit_place
from fedveil.audit.mechanisms.search import MechanismAudit, audit_mechanism, epsilon_claim

__all__ = [
    "MechanismAudit",
    "Neighbours",
    "audit_mechanism",
    "audit_place",
    "default_neighbours",
    "epsilon_claim",
]
