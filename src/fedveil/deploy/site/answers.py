"""A site's durable answers: a request that is asked again gets the very same bytes, never fresh noise for
free.

A protected reply that was lost on the way may be sent again, since it says nothing new. Computing it a
second time would: two noisy copies of one sum are worth more than one. So an answer is written here,
synced, before it is sent, and a request that comes back is answered from here without touching the cohort
or the ledger."""

import hashlib
import os
import tempfile
from pathlib import Path

from fedveil.errors import Refused
from fedveil.federation import Request

__all__ = ["Spool"]

_KEEP = 4


class Spool:
    """Answers of one site, in a folder that only the site can read; the newest few of each study are kept."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder
        self._journal = folder / "served"
        self._served = set(self._journal.read_text().split("\n")) if self._journal.exists() else set()

    def find(self, request: Request, asked: bytes) -> bytes | None:
        """What this request was answered with; None for one that was never answered.

        Args:
            request: names the round and attempt.
            asked: digest of the whole message that asks (`Opened.digest`).

        Raises:
            Refused: its round and attempt were answered, but the request is another, or the answer is gone.
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
            f"round {request.round}, attempt {request.attempt} was answered before, and not to this request",
            "a site serves an attempt once",
            "raise the attempt to repeat a round",
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
