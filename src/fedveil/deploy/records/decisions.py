"""What the people of a hospital decided, as lines of ``decisions.jsonl``: nothing in it is ever deleted or replaced.

The service holds the ledger while it runs, so a person's command cannot write to it. A command adds its line here,
and the service copies each line into the ledger before its next answer: no study is charged before the line that
approves it. Both files are hash chains, so a removed line is detected in each of them.
"""

import json
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

from fedveil.deploy.identity import private_files
from fedveil.errors import LedgerError, Refused
from fedveil.privacy import Decision, Ledger
from fedveil.privacy.ledger.chain import Chain, Entry, read_chain

__all__ = ["Decisions", "legacy_approval"]

_FIRST = {"kind": "decisions", "version": 1}
_PATIENCE = 5.0


class Decisions:
    """The decisions of one site.

    Args:
        path: ``decisions.jsonl``.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int, int] | None = None
        self._entries: tuple[tuple[str, Decision], ...] = ()

    def record(self, decision: Decision) -> Decision:
        """Add a decision durably; it takes effect when this returns.

        Raises:
            InvalidValue: a name, role or reason is missing.
            LedgerError: the file is damaged, or cannot be written.
        """
        dated = decision.dated()
        with private_files(), closing(self._open()) as chain:
            chain.append({"kind": "decision", "decision": dated.to_dict()})
        return dated

    def _open(self) -> Chain:
        """The file, waiting for another command that is writing to it."""
        until = time.monotonic() + _PATIENCE
        while True:
            try:
                return Chain(self._path, _FIRST)
            except LedgerError as error:
                if "held by" not in error.found or time.monotonic() > until:
                    raise
                time.sleep(0.05)

    def all(self) -> tuple[Decision, ...]:
        """Every decision, oldest first."""
        return tuple(decision for _, decision in self.lines())

    def lines(self) -> tuple[tuple[str, Decision], ...]:
        """Every decision with the hash of its line, oldest first; the file is read again only if it has changed."""
        try:
            status = self._path.stat()
        except FileNotFoundError:
            if self._entries or self._is_begun():
                raise self._gone() from None
            return ()
        seen = (status.st_ino, status.st_size, status.st_mtime_ns)
        if seen != self._seen:
            self._entries = tuple(
                (entry.hash, self._decision(entry)) for entry in read_chain(self._path).entries[1:]
            )
            self._seen = seen
        return self._entries

    def _is_begun(self) -> bool:
        """Whether the head names a line; a kill during the very first decision leaves an empty head and no file."""
        try:
            return self._path.with_name(self._path.name + ".head").stat().st_size > 0
        except FileNotFoundError:
            return False

    def _decision(self, entry: Entry) -> Decision:
        try:
            values: Mapping[str, object] = entry.body["decision"]
            return Decision.from_dict(values)
        except (KeyError, TypeError, ValueError):
            raise LedgerError(
                f"line {entry.seq + 1} of {self._path} is no decision that this version knows",
                "an approval may be used only if every line is understood",
                "use the version of fedveil that wrote it, or a newer one",
            ) from None

    def _gone(self) -> LedgerError:
        return LedgerError(
            f"{self._path} does not exist any more",
            "it holds every approval and withdrawal of this site",
            "restore it and its .head file from a backup",
        )

    def last(self, digest: str) -> Decision | None:
        """The newest decision on a study, which is the one in force."""
        return next((one for one in reversed(self.all()) if one.subject == digest), None)

    def copy_to(self, ledger: Ledger) -> None:
        """Record in the ledger every decision that it lacks.

        Raises:
            Refused: the ledger holds a decision that this file lacks, so the file was replaced by an older copy.
            LedgerError: the disk is full or fails.
        """
        lines, noted = self.lines(), ledger.noted()
        if missing := noted - {source for source, _ in lines}:
            raise Refused(
                f"{self._path} lacks {len(missing)} decisions that the ledger holds",
                "a withdrawal must not be undone by an older copy of the file",
                "restore the newest copy from a backup; the ledger shows the missing decisions",
            )
        for source, decision in lines:
            if source not in noted:
                ledger.note(decision, source)


def legacy_approval(path: Path) -> str | None:
    """Who approved a study with version 0.1, which wrote a file for each approval; None without such a file."""
    try:
        by = json.loads(path.read_text())
        return f"{by['by']} at {by['at']}"
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Refused(
            f"{path} cannot be read ({error})",
            "the file records an approval",
            "approve the study again, or have the file made readable for the site's user",
        ) from None
