"""Audits of mechanisms in a process, and if need be an environment, of their own.

Besides what `audit_mechanism` looks for, starting the process twice shows noise that is the same after each start, as
from a generator with a fixed seed: whoever knows the code can then subtract the noise.
"""

import json
import math
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self, final

import numpy as np
from numpy.typing import NDArray

from fedveil.audit.claims import Claim
from fedveil.audit.mechanisms.neighbours import Neighbours, default_neighbours
from fedveil.audit.mechanisms.search import MechanismAudit, audit_mechanism
from fedveil.errors import InvalidValue

__all__ = ["Worker", "audit_place"]

_WORKER = Path(__file__).with_name("worker.py")
_PLACE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_STARTS = 3  # outputs that are compared between two starts


@final
class Worker:
    """A mechanism in another process.

    Args:
        mechanism: ``package.module:function``, importable there or in the current folder.
        pairs: neighbouring inputs, lists of vectors.
        neighbours: ``package.module:function`` that returns other inputs, as `Neighbours` or as triples of a name and
            two inputs; instead of ``pairs``.
        python: the interpreter.
    """

    def __init__(
        self,
        mechanism: str,
        *,
        pairs: Sequence[Neighbours] = (),
        neighbours: str = "",
        python: str = sys.executable,
    ) -> None:
        for place in (mechanism, neighbours) if neighbours else (mechanism,):
            if not _PLACE.fullmatch(place):
                raise InvalidValue(
                    f"{place!r} is given as a function",
                    "it must be of the form package.module:function",
                    "give a function that can be imported",
                )
        plain = [
            [one.name, *([row.tolist() for row in rows] for rows in (one.first, one.second))] for one in pairs
        ]
        try:
            self._process = subprocess.Popen(
                [python, str(_WORKER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        except OSError as error:
            raise InvalidValue(
                f"{python} cannot be run: {error.strerror}", "it must be an interpreter", "check the path"
            ) from error
        try:
            opening = {"mechanism": mechanism, "neighbours": neighbours, "pairs": plain}
            names = self._ask(opening).get("names", [])
        except BaseException:
            self.close()
            raise
        self.neighbours = tuple(
            Neighbours(name, (number, 0), (number, 1)) for number, name in enumerate(names)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()

    def __call__(self, which: tuple[int, int]) -> NDArray[np.float64]:
        """One output on one input, both by number."""
        return np.array(self._ask(which)["numbers"], dtype=np.float64)

    def _ask(self, message: object) -> dict[str, Any]:
        process = self._process
        line = ""
        if process.stdin is not None and process.stdout is not None:
            try:
                process.stdin.write(json.dumps(message) + "\n")
                process.stdin.flush()
                line = process.stdout.readline()
            except BrokenPipeError:
                pass
        if not line:
            raise InvalidValue(
                f"the mechanism's process ended with exit code {process.wait()}",
                "it must answer every input",
                "read what it printed, and call the function by hand",
            )
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise InvalidValue(
                f"the mechanism failed: {str(answer['error'])[:300]}",
                "it must be importable, and answer every input with numbers: a failure that depends on data is an "
                "answer without noise",
                "correct it, or give neighbouring inputs that it can take",
            )
        return answer


def audit_place(
    mechanism: str,
    claim: Claim,
    *,
    neighbours: str = "",
    python: str = sys.executable,
    dimension: int = 8,
    bound: float = 1.0,
    runs: int = 2000,
    confidence: float = 0.99,
    seconds: float = math.inf,
) -> MechanismAudit:
    """Audit ``package.module:function``; see `audit_mechanism` and `Worker` for the arguments."""
    pairs = () if neighbours else default_neighbours(dimension, bound=bound)

    def start() -> Worker:
        return Worker(mechanism, pairs=pairs, neighbours=neighbours, python=python)

    with start() as worker, start() as again:
        if not worker.neighbours:
            raise InvalidValue(
                f"{neighbours} returns no inputs", "one pair is needed", "return a list of pairs"
            )
        first = worker.neighbours[0].first
        beginnings = [np.array([one(first) for _ in range(_STARTS)]) for one in (worker, again)]
        found = audit_mechanism(
            worker,
            claim,
            neighbours=worker.neighbours,
            runs=runs,
            confidence=confidence,
            seconds=seconds,
        )
    if found.constant or not np.array_equal(beginnings[0], beginnings[1]):
        return found
    return replace(found, replayed=True, violated=True)
