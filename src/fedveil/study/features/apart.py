"""Features computed by a process that ends afterwards, and takes the memory of torch and its networks with it.

A program that runs for weeks needs them for minutes. The process stores features in the cache, from which the caller
reads them; whatever it could not store, the caller computes itself, as it does without such a process. So the features
are the same, and so is what happens where one image cannot be used.
"""

import json
import logging
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection

import numpy as np

from fedveil.data import Dataset
from fedveil.study.progress import Progress
from fedveil.study.settings.schema import Study

__all__ = ["Inside", "compute", "stored_apart"]

log = logging.getLogger("fedveil.site")
Inside = Callable[[], AbstractContextManager[object]]
"""A context that the process computes in, a function that can be imported by its name."""

_PROGRAM = "from fedveil.study.features.apart import compute; compute(int({}), int({}))"


def stored_apart(study: Study, dataset: Dataset, progress: Progress, inside: Inside) -> list[int] | None:
    """Have the features of a study's images stored by another process; no image's content decides the result.

    Args:
        study: whose linear head is trained on the features.
        dataset: the images.
        progress: advances with each image.
        inside: the context that the process computes in.

    Returns:
        the length of the features of each view; None if they have to be computed here.
    """
    if "torch" in sys.modules or not len(dataset):
        return None  # nothing would be saved
    line, theirs = Pipe(duplex=False)
    with line, theirs:
        command = _PROGRAM.format(theirs.fileno(), os.getpid())
        process = subprocess.Popen(
            [sys.executable, "-P", "-W", "ignore", "-c", command],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
        )
        theirs.close()
        try:
            found = _lengths(line, progress) if _sent(process, (study, dataset, inside)) else None
            if found is None:
                log.warning("the process for features ended early: they are computed here")
            return found
        finally:
            process.kill()  # it has ended, or this process is about to
            process.wait()


def _sent(process: subprocess.Popen[bytes], what: object) -> bool:
    """Send what to compute; False where this data set or context cannot be sent."""
    assert process.stdin is not None
    try:
        with suppress(BrokenPipeError), process.stdin as sink:
            pickle.dump(what, sink, protocol=5)
    except Exception:  # noqa: BLE001 - whatever it is, the caller can compute
        return False
    return True


def _lengths(line: Connection, progress: Progress) -> list[int] | None:
    """What the process says at its end, however it ends."""
    while True:
        try:
            said = json.loads(line.recv_bytes(10_000))
            numbers = [int(one) for one in (said if isinstance(said, list) else [said])]
        except Exception:  # noqa: BLE001 - whatever it says, the caller can compute
            return None
        if isinstance(said, list):
            return numbers or None
        progress.advance(numbers[0])


class _Told:
    """Progress that is told to the process that waits."""

    def __init__(self, line: Connection) -> None:
        self._line = line

    def stage(self, name: str, total: int, done: int = 0) -> None:
        """The caller has announced it."""

    def advance(self, count: int = 1, note: str = "") -> None:  # noqa: ARG002 - the one who waits says nothing more
        """Tell the count."""
        self._line.send_bytes(str(count).encode())


def compute(descriptor: int, parent: int) -> None:
    """The process: read what to compute, store the features, and tell their lengths."""
    from fedveil.learning.encoders.external.confined import end_with
    from fedveil.study.features.isolation import computed
    from fedveil.study.pipeline import views_of

    end_with(parent)
    line = Connection(descriptor, readable=False)
    study, dataset, inside = pickle.load(sys.stdin.buffer)
    with inside():
        rows = computed(views_of(study, dataset), dataset, _Told(line))
        line.send_bytes(json.dumps([view[np.array([0])].shape[1] for view in rows]).encode())
