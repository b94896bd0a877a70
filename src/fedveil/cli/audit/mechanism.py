"""`fedveil audit --mechanism`: any function beside the guarantee that is claimed for it."""

import json
import math
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from fedveil.cli.output.console import console, speak_plainly
from fedveil.errors import InvalidValue

if TYPE_CHECKING:
    from fedveil.audit.claims import Claim

__all__ = ["audit_function"]


def audit_function(
    mechanism: Annotated[
        str,
        typer.Option(
            help="package.module:function, from a list of contributions, or a training set, to what leaves."
        ),
    ],
    epsilon: Annotated[float | None, typer.Option(help="The claimed epsilon.")] = None,
    delta: Annotated[float, typer.Option(help="The claimed delta.")] = 1e-5,
    mu: Annotated[
        float | None, typer.Option(help="Instead of epsilon: sensitivity over noise of a Gaussian mechanism.")
    ] = None,
    neighbours: Annotated[
        str,
        typer.Option(
            help="package.module:function that returns neighbouring inputs: (name, input, input), ..."
        ),
    ] = "",
    python: Annotated[
        str,
        typer.Option(help="The interpreter of the environment that the mechanism needs; default this one."),
    ] = "",
    dimension: Annotated[int, typer.Option(help="Length of the vectors that are contributed.")] = 8,
    bound: Annotated[float, typer.Option(help="The norm to which the mechanism is said to clip them.")] = 1.0,
    runs: Annotated[int, typer.Option(help="Outputs of each of the two inputs that are compared.")] = 2000,
    confidence: Annotated[float, typer.Option(help="Of the verdict.")] = 0.99,
    seconds: Annotated[
        float | None, typer.Option(help="Use fewer runs, so that it takes about this long.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """Attack a mechanism, and print a lower bound on its epsilon beside the claimed one.

    The exit code is 1 if the claim is refuted. Example: fedveil audit --mechanism my.code:private_sum --epsilon 1
    """
    from fedveil.audit.mechanisms import audit_place

    with speak_plainly():
        found = audit_place(
            mechanism,
            _claim(epsilon, delta, mu),
            neighbours=neighbours,
            python=python or sys.executable,
            dimension=dimension,
            bound=bound,
            runs=runs,
            confidence=confidence,
            seconds=math.inf if seconds is None else seconds,
        )
    if as_json:
        print(json.dumps({"mechanism": mechanism} | found.to_dict(), indent=2))
    else:
        console.print(str(found), soft_wrap=True)
    if found.violated:
        raise SystemExit(1)


def _claim(epsilon: float | None, delta: float, mu: float | None) -> "Claim":
    from fedveil.audit.claims import MechanismClaim
    from fedveil.audit.mechanisms import epsilon_claim
    from fedveil.privacy import Mechanism

    if (epsilon is None) == (mu is None):
        raise InvalidValue(
            "neither a claimed epsilon nor mu is given" if mu is None else "epsilon and mu are both given",
            "a mechanism is audited against one claim",
            "give --epsilon and --delta, or --mu for a Gaussian mechanism",
        )
    if epsilon is not None:
        return epsilon_claim(epsilon, delta)
    if mu is None or not 0 < mu < math.inf:
        raise InvalidValue(
            f"mu is {mu:g}", "it must be positive and finite", "give sensitivity over standard deviation"
        )
    return MechanismClaim((Mechanism(1 / mu, 1.0, steps=1),), delta)
