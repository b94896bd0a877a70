"""The command `fedveil audit`."""

from typing import Annotated

import typer

from fedveil.cli.audit.mechanism import MechanismOptions, audit_function
from fedveil.cli.output.console import speak_plainly

__all__ = ["audit"]

Place = Annotated[
    str,
    typer.Option(
        help="package.module:function, from a list of contributions, or a training set, to what is released."
    ),
]
Epsilon = Annotated[float | None, typer.Option(help="The claimed epsilon.")]
Delta = Annotated[float, typer.Option(help="The claimed delta.")]
Mu = Annotated[
    float | None, typer.Option(help="Instead of epsilon: sensitivity over noise of a Gaussian mechanism.")
]
Pairs = Annotated[
    str,
    typer.Option(help="package.module:function that returns neighbouring inputs: (name, input, input), ..."),
]
Python = Annotated[str, typer.Option(help="The interpreter of the environment that the mechanism needs.")]
Dimension = Annotated[int, typer.Option(help="Length of the vectors that are contributed.")]
Bound = Annotated[float, typer.Option(help="The norm to which the mechanism is said to clip them.")]
Runs = Annotated[int, typer.Option(help="Outputs of each of the two inputs that are finally compared.")]
Confidence = Annotated[float, typer.Option(help="Confidence of the verdict.")]
Seconds = Annotated[float | None, typer.Option(help="Use fewer runs, so that it takes about this long.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


def audit(
    mechanism: Place,
    epsilon: Epsilon = None,
    delta: Delta = 1e-5,
    mu: Mu = None,
    neighbours: Pairs = "",
    python: Python = "",
    dimension: Dimension = 8,
    bound: Bound = 1.0,
    runs: Runs = 2000,
    confidence: Confidence = 0.99,
    seconds: Seconds = None,
    as_json: AsJson = False,
) -> None:
    """Attack a mechanism, and print a lower bound on its epsilon beside the claimed one; exit code 3 if it is refuted.

    Example: fedveil audit --mechanism my.code:private_sum --epsilon 1 --delta 1e-5
    """
    options = MechanismOptions(
        mechanism=mechanism,
        epsilon=epsilon,
        delta=delta,
        mu=mu,
        neighbours=neighbours,
        python=python,
        dimension=dimension,
        bound=bound,
        runs=runs,
        confidence=confidence,
        seconds=seconds,
    )
    with speak_plainly():
        violated = audit_function(options, as_json=as_json)
    if violated:
        raise typer.Exit(3)
