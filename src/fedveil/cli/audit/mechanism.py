"""`fedveil audit --mechanism`: any function beside the guarantee that is claimed for it."""

import json
import math
import sys
from dataclasses import dataclass

from fedveil.audit.claims import Claim, MechanismClaim
from fedveil.audit.mechanism import epsilon_claim
from fedveil.audit.remote import audit_place
from fedveil.cli.output.console import console
from fedveil.errors import InvalidValue
from fedveil.privacy import Mechanism

__all__ = ["MechanismOptions", "audit_function"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MechanismOptions:
    """What is given on the command line; see the command's help."""

    mechanism: str
    epsilon: float | None
    delta: float
    mu: float | None
    neighbours: str = ""
    python: str = ""
    dimension: int = 8
    bound: float = 1.0
    runs: int = 2000
    confidence: float = 0.99
    seconds: float | None = None

    @property
    def claim(self) -> Claim:
        """What is to be refuted."""
        if (self.epsilon is None) == (self.mu is None):
            raise InvalidValue(
                "neither a claimed epsilon nor mu is given"
                if self.mu is None
                else "epsilon and mu are given",
                "a mechanism is audited against one claim",
                "give --epsilon and --delta, or --mu for a Gaussian mechanism",
            )
        if self.mu is None or self.epsilon is not None:
            return epsilon_claim(self.epsilon or 0.0, self.delta)
        if not 0 < self.mu < math.inf:
            raise InvalidValue(
                f"mu is {self.mu:g}",
                "it must be positive and finite",
                "give sensitivity over standard deviation",
            )
        return MechanismClaim((Mechanism(1 / self.mu, 1.0, steps=1),), self.delta)


def audit_function(options: MechanismOptions, *, as_json: bool) -> bool:
    """Print what an audit found; whether it refuted the claim."""
    found = audit_place(
        options.mechanism,
        options.claim,
        neighbours=options.neighbours,
        python=options.python or sys.executable,
        dimension=options.dimension,
        bound=options.bound,
        runs=options.runs,
        confidence=options.confidence,
        seconds=math.inf if options.seconds is None else options.seconds,
    )
    if as_json:
        print(json.dumps({"mechanism": options.mechanism} | found.to_dict(), indent=2))
    else:
        console.print(str(found), soft_wrap=True)
    return found.violated
