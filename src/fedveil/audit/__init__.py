"""Attacks on a study's own code, and the lower bounds on epsilon that they prove, beside what the study states.

`claims` are stated guarantees, `statistics` the theorems that turn right guesses into bounds, `evidence` the guesses.
`arena` puts canary patients into a study's hospitals and runs the real code; attackers are `white_box`, `one_run` and
`black_box`.

`mechanisms` audits any function, whoever made it. `reconstruction` shows what noise leaves of an image.
"""

from typing import TYPE_CHECKING

from fedveil.lazy import on_first_use

if TYPE_CHECKING:
    from fedveil.audit.attacker import Attacker, Attempt, Setup
    from fedveil.audit.result import AuditResult, Finding, read_audit
    from fedveil.audit.runner import ATTACKERS, Effort, audit

__all__ = [
    "ATTACKERS",
    "Attacker",
    "Attempt",
    "AuditResult",
    "Effort",
    "Finding",
    "Setup",
    "audit",
    "read_audit",
]

__getattr__, __dir__ = on_first_use(__name__)
