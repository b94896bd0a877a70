"""The studies that a hospital was offered, and which of them it approved: small files in its ``studies``
folder.

An offer is stored as received, under the digest of the agreement that this side derives from it. A second file,
``DIGEST.approved``, exists if and only if somebody here approved it; it names the person and the time. A changed
study has another digest, so it is unknown until it is approved again."""

import getpass
import json
import time
from dataclasses import dataclass
from pathlib import Path

from fedveil.deploy.offer import Offer
from fedveil.errors import Refused
from fedveil.federation import Agreement
from fedveil.io import write_json

__all__ = ["Listed", "Studies"]

_MAX_PENDING = 50


@dataclass(frozen=True, slots=True)
class Listed:
    """One study offered to this site."""

    digest: str
    offer: Offer
    agreement: Agreement
    approved: str | None


class Studies:
    """The folder of offers and approvals. The service adds offers; only a person's command approves them."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder

    def add(self, offer: Offer) -> str:
        """Store an offer if it is new; return the digest of its agreement."""
        digest = offer.agreement().digest
        path = self._folder / f"{digest}.json"
        if not path.exists():
            pending = [
                file for file in self._folder.glob("*.json") if not file.with_suffix(".approved").exists()
            ]
            if len(pending) >= _MAX_PENDING:
                raise Refused(
                    f"{len(pending)} offered studies wait for approval",
                    f"a site stores at most {_MAX_PENDING}",
                    "approve them, or delete their files from the site's studies folder",
                )
            write_json(path, offer.to_dict())
        return digest

    def approve(self, digest: str) -> None:
        """Approve a study."""
        note = {"by": getpass.getuser(), "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
        write_json(self._folder / f"{digest}.approved", note)

    def withdraw(self, digest: str) -> None:
        """Withdraw an approval; past releases remain charged."""
        (self._folder / f"{digest}.approved").unlink(missing_ok=True)

    def is_approved(self, digest: str) -> bool:
        """Whether somebody here approved the study."""
        return (self._folder / f"{digest}.approved").exists()

    def is_known(self, digest: str) -> bool:
        """Whether the study was offered."""
        return (self._folder / f"{digest}.json").exists()

    def read(self, digest: str) -> Listed:
        """An offered study; its digest is recomputed, so that an edited file is detected."""
        path = self._folder / f"{digest}.json"
        offer = Offer.from_dict(json.loads(path.read_text()))
        agreement = offer.agreement()
        if agreement.digest != digest:
            raise Refused(
                f"{path.name} holds the agreement {agreement.digest[:12]}",
                "a study is approved by its digest",
                "delete the file and have the study offered again",
            )
        approval = path.with_suffix(".approved")
        by = json.loads(approval.read_text()) if approval.exists() else None
        return Listed(digest, offer, agreement, f"{by['by']} at {by['at']}" if by else None)

    def all(self) -> list[Listed]:
        """Every offered study, oldest first."""
        files = sorted(self._folder.glob("*.json"), key=lambda file: file.stat().st_mtime_ns)
        return [self.read(file.stem) for file in files]

    def find(self, text: str) -> Listed:
        """The offered study with this digest, prefix of a digest, or name."""
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
