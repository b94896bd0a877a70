"""The studies that a hospital was offered, and which of them it approved.

An offer is stored as received, in the ``studies`` folder, under the digest of the agreement that this side derives
from it. Approvals, refusals and withdrawals are lines of ``decisions.jsonl`` (`fedveil.deploy.records.decisions`); the
newest line about a study is in force. A changed study has another digest, so it is unknown until it is approved again.
"""

import json
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from fedveil.deploy.offer import Offer
from fedveil.deploy.records.decisions import Decisions, legacy_approval
from fedveil.errors import FedveilError, InvalidValue, Refused
from fedveil.federation import Agreement
from fedveil.io import write_json
from fedveil.privacy import Decision

__all__ = ["Listed", "Studies"]

log = logging.getLogger("fedveil.site")

_MAX_PENDING = 50


@dataclass(frozen=True, slots=True)
class Listed:
    """One study offered to this site.

    Attributes:
        digest: of the agreement.
        offer: as received.
        agreement: as derived from the offer here.
        decision: the newest decision of this hospital about it; None if there is none.
        legacy: who approved it with version 0.1, if nothing was decided since.
    """

    digest: str
    offer: Offer
    agreement: Agreement
    decision: Decision | None = None
    legacy: str | None = None

    @property
    def approved(self) -> str | None:
        """Who approved it and when; None unless the approval is in force."""
        if self.decision is None:
            return self.legacy
        return str(self.decision) if self.decision.act == "approved" else None

    @property
    def state(self) -> str:
        """In a word: pending, approved, declined or withdrawn."""
        if self.decision is None:
            return "approved" if self.legacy else "pending"
        return self.decision.act


class Studies:
    """The folder of offers and approvals. The service adds offers; only a person's command decides about them."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder
        self._pricing = threading.Lock()
        self.decisions = Decisions(folder.with_name("decisions.jsonl"))

    def add(self, offer: Offer) -> str:
        """Store an offer if it is new; return the digest of its agreement.

        Pricing takes time, and nobody here has asked for it yet: so one offer is priced at a time.

        Raises:
            Refused: too many offers wait for a decision, or this one would take too long to price.
        """
        with self._pricing:
            digest = offer.agreement().digest
            self._store(digest, offer)
        return digest

    def _store(self, digest: str, offer: Offer) -> None:
        path = self._folder / f"{digest}.json"
        if not path.exists():
            pending = [file for file in self._files() if self._state(file.stem) == "pending"]
            if len(pending) >= _MAX_PENDING:
                raise Refused(
                    f"{len(pending)} offered studies wait for a decision",
                    f"a site stores at most {_MAX_PENDING}",
                    "approve or decline them",
                )
            write_json(path, offer.to_dict())

    def drop_undecided(self, fits: Callable[[Offer], bool]) -> None:
        """Delete offers that nobody has decided about: the coordinator offers them again."""
        for listed in self.all():
            if listed.state == "pending" and fits(listed.offer):
                (self._folder / f"{listed.digest}.json").unlink(missing_ok=True)

    def decide(self, decision: Decision) -> Decision:
        """Record a decision about an offered study."""
        return self.decisions.record(decision)

    def is_approved(self, digest: str) -> bool:
        """Whether an approval of the study is in force."""
        return self._state(digest) == "approved"

    def is_declined(self, digest: str) -> bool:
        """Whether the study was declined here, and the coordinator may know."""
        last = self.decisions.last(digest)
        return last is not None and last.act == "declined" and last.told

    def _state(self, digest: str) -> str:
        last = self.decisions.last(digest)
        if last is not None:
            return last.act
        return "approved" if (self._folder / f"{digest}.approved").exists() else "pending"

    def is_known(self, digest: str) -> bool:
        """Whether the study was offered."""
        return (self._folder / f"{digest}.json").exists()

    def read(self, digest: str) -> Listed:
        """An offered study; its digest is recomputed, so that an edited file is detected."""
        path = self._folder / f"{digest}.json"
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise InvalidValue(
                f"{path} cannot be read ({getattr(error, 'strerror', None) or error})",
                "an offer must be a file that the site's user can read",
                "correct the file's owner, or delete it and have the study offered again",
            ) from None
        offer, agreement = _parsed(text)
        if agreement.digest != digest:
            raise Refused(
                f"{path.name} holds the agreement {agreement.digest[:12]}",
                "a study is approved by its digest",
                "delete the file and have the study offered again",
            )
        decision = self.decisions.last(digest)
        legacy = legacy_approval(path.with_suffix(".approved")) if decision is None else None
        return Listed(digest, offer, agreement, decision, legacy)

    def all(self) -> list[Listed]:
        """Every readable offered study, oldest first; the others are named in the log."""
        found = []
        for digest, listed in self.survey():
            if isinstance(listed, Listed):
                found.append(listed)
            else:
                log.error("study %s is left out: %s", digest[:12], listed)
        return found

    def survey(self) -> Iterator[tuple[str, Listed | FedveilError]]:
        """Every offered study by digest, oldest first, or why its file cannot be used: one file affects no other."""
        for path in self._files():
            try:
                yield path.stem, self.read(path.stem)
            except FedveilError as error:
                yield path.stem, error

    def _files(self) -> list[Path]:
        return sorted(self._folder.glob("*.json"), key=lambda file: file.stat().st_mtime_ns)

    def find(self, text: str) -> Listed:
        """The offered study with this digest, prefix of a digest, or name."""
        if len(text) == 64 and self.is_known(text):
            return self.read(text)
        found = [
            study for study in self.all() if study.digest.startswith(text) or study.agreement.name == text
        ]
        if len(found) != 1:
            raise Refused(
                f"{len(found)} offered studies match {text!r}",
                "the text must match exactly one study",
                "see `fedveil site studies`",
            )
        return found[0]


@lru_cache(maxsize=64)
def _parsed(text: str) -> tuple[Offer, Agreement]:
    """An offer and its agreement, which follow from the file's content alone and take long to price.

    Raises:
        FedveilError: it is no offer, or asks for something impossible.
    """
    try:
        values = json.loads(text)
    except ValueError:
        values = None
    offer = Offer.from_dict(values if isinstance(values, dict) else {})
    return offer, offer.agreement()
