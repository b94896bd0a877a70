"""A site's durable answers: a repeated request gets identical bytes, never fresh noise without a charge.

A lost protected reply may be sent again, since it reveals nothing new. Computing it again would: two noisy copies of
one sum reveal more than one. So an answer is written here, synced, before it is sent, and a repeated request is
answered from here without using the cohort or the ledger."""

import hashlib
import os
import tempfile
from pathlib import Path

from fedveil.errors import Refused
from fedveil.federation import Request
from fedveil.names import attempt_words

__all__ = ["Spool"]

_KEEP = 4


class Spool:
    """Answers of one site, in a folder that only the site can read; only the newest few of each study are stored."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder
        self._journal = folder / "served"
        self._served = set(self._journal.read_text().split("\n")) if self._journal.exists() else set()

    def find(self, request: Request, asked: bytes) -> bytes | None:
        """The stored answer to this request; None if it was never answered.

        Args:
            request: names the round and attempt.
            asked: digest of the whole request message (`Opened.digest`).

        Raises:
            Refused: its round and attempt were answered, but to another request, or the answer was deleted.
        """
        name = _name(request)
        path = self._path(request, name)
        if path.exists():
            stored = path.read_bytes()
            if stored[:32] == asked:
                return stored[32:]
        elif name not in self._served:
            return None
        raise Refused(
            f"round {request.round}, {attempt_words(request.attempt)} was answered before, to another request",
            "a site answers an attempt only once",
            "increase the attempt to repeat a round",
        )

    def keep(self, request: Request, asked: bytes, answer: bytes) -> None:
        """Store an answer durably, before it is sent."""
        name = _name(request)
        path = self._path(request, name)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        _write(path, asked + answer)
        with self._journal.open("a") as journal:
            journal.write(name + "\n")
            journal.flush()
            os.fsync(journal.fileno())
        self._served.add(name)
        answers = sorted(path.parent.glob("answer-*"), key=lambda file: file.stat().st_mtime_ns)
        for old in answers[:-_KEEP]:
            old.unlink()

    def _path(self, request: Request, name: str) -> Path:
        return self._folder / request.study / f"answer-{name}"


def _name(request: Request) -> str:
    key = f"{request.study} {request.release} {request.round} {request.attempt}"
    return hashlib.sha256(key.encode()).hexdigest()


def _write(path: Path, data: bytes) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    Path(name).replace(path)
