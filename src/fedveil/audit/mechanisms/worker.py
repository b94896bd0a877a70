"""Runs a mechanism for an audit, in an interpreter and an environment of its own.

It is a script that needs nothing but the standard library of Python 3.9 or later, so that any environment can run it.
The first line that it reads names the mechanism and the neighbouring inputs, every further one a run; it answers with
one line of JSON each.
"""

import copy
import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any


def flat(output: Any) -> list[float]:
    """The numbers of an output in a fixed order: of dicts by key, of lists one after the other."""
    if hasattr(output, "items"):
        return [number for key in sorted(output, key=str) for number in flat(output[key])]
    if hasattr(output, "detach"):
        output = output.detach().cpu()
    if hasattr(output, "tolist"):
        output = output.tolist()
    if isinstance(output, (list, tuple)):
        return [number for one in output for number in flat(one)]
    return [float(output)]


def find(place: str) -> Any:
    """What ``package.module:name`` names."""
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


def vectors(rows: Any) -> Any:
    """Lists of numbers as arrays, where NumPy is installed."""
    try:
        import numpy
    except ImportError:
        return rows
    return [numpy.array(row, dtype=float) for row in rows]


def inputs(asked: dict[str, Any]) -> tuple[list[tuple[str, Any, Any]], bool]:
    """Neighbouring inputs, as triples of a name and two inputs."""
    if not asked["neighbours"]:
        return [(name, first, second) for name, first, second in asked["pairs"]], True
    found = []
    for one in find(asked["neighbours"])():
        name, first, second = (one.name, one.first, one.second) if hasattr(one, "first") else one
        found.append((str(name), first, second))
    return found, False


def main() -> None:
    """Serve until the input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what the mechanism prints is no answer
    sys.path.insert(0, str(Path.cwd()))

    def answer(**values: Any) -> None:
        answers.write(json.dumps(values) + "\n")
        answers.flush()

    try:
        asked = json.loads(sys.stdin.readline())
        pairs, plain = inputs(asked)
        mechanism = find(asked["mechanism"])
        if not callable(mechanism):
            raise TypeError(asked["mechanism"] + " is not callable")
    except Exception as error:  # noqa: BLE001 - whatever it is, the audit reports it
        answer(error=f"{type(error).__name__}: {error}")
        return
    answer(names=[name for name, _, _ in pairs])
    for line in sys.stdin:
        number, second = json.loads(line)
        given = pairs[number][1 + second]
        try:
            output = mechanism(vectors(given) if plain else copy.deepcopy(given))
            answer(numbers=flat(output))
        except Exception as error:  # noqa: BLE001 - whatever it is, the audit reports it
            answer(error=f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
