"""What a hospital says of a study, over two data sets that differ in one unit, whatever is odd about that unit.

Nothing of it is a sum and no noise is on it, so nothing of it may differ.
"""

import contextlib
import logging
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
from tests.neighbours.cohorts import Cohort
from tests.neighbours.harness import start
from tests.neighbours.served import Served

from fedveil.study import Study

__all__ = ["ODD", "differences", "odd_one"]

ODD = ("file", "label", "overlap")
"""What may be odd beside a file: a label that no study knows, a patient both trained and tested on."""


def odd_one(images: Cohort, gone: str, what: str) -> Cohort:
    """The images, with something odd about the one who leaves."""
    mine = next(one for one in images if one.patient == gone)
    if what == "label":
        return [replace(one, label="unheard of") if one is mine else one for one in images]
    if what == "overlap":
        other = "test" if mine.split == "train" else "train"
        return [*images, replace(mine, name=f"{mine.name}9", split=other)]
    return images


def differences(
    folder: Path,
    study: Study,
    write: Callable[[Path, Cohort], str],
    both: tuple[Cohort, Cohort],
    settings: dict[str, int],
) -> int:
    """How many of a hospital's statuses and answers differ."""
    said = [
        _said(folder / str(number) / "north", study, write, one, settings) for number, one in enumerate(both)
    ]
    return sum(one != other for one, other in zip(*said, strict=True))


def _said(
    folder: Path,
    study: Study,
    write: Callable[[Path, Cohort], str],
    images: Cohort,
    settings: dict[str, int],
) -> list[object]:
    log = logging.getLogger("fedveil.site")
    level = log.level
    log.setLevel(logging.CRITICAL)
    with contextlib.ExitStack() as stack:
        stack.callback(log.setLevel, level)
        stack.enter_context(mock.patch.dict(os.environ, {"FEDVEIL_CACHE": str(folder.parent / "cache")}))
        stack.enter_context(np.errstate(all="ignore"))
        served = Served(folder, study, write, images, **settings)
        stack.callback(served.service.ledger.close)
        stack.callback(served.service.finish)
        said: list[object] = [served.status()]
        for number, release in enumerate(served.agreement.releases, 1):
            said.append(served.ask(release.name, number, start(study, release)))
        return [*said, served.status()]
