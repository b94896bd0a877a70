"""The other hospitals' public keys, as confirmed by the staff of this hospital.

Secure aggregation hides a hospital's sum from the coordinator with the keys of the other hospitals. If the
coordinator could choose those keys it could read the sum. So a hospital uses only keys that its own staff compared
with the other hospital's by telephone, once; after that a changed key is refused, unless the hospital hands
its key over to a new one and that one is compared too."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from fedveil.deploy.identity import Identity, check_public_key, fingerprint
from fedveil.deploy.records.decisions import Decisions
from fedveil.deploy.records.handover import (
    HandOver,
    check_follows,
    former_keys,
    keep_hand_over,
    kept_hand_overs,
)
from fedveil.errors import InvalidValue, Refused
from fedveil.io import write_private

__all__ = ["HAND_OVERS", "PATIENTS", "Peers", "patients_identity"]

HAND_OVERS = "handovers.jsonl"
"""The hand-overs of this site's own keys."""

PATIENTS = "patients.key"
"""The first identity key of a site that has renewed it: the hashes of patients' names still depend on it."""


def patients_identity(folder: Path, identity: Identity) -> Identity:
    """The key under which patients' names are hashed: it decides who is held out and who withdrew, so it never changes.

    Raises:
        InvalidValue: the identity key was renewed, and the first one or the hand-overs are missing or others.
        LedgerError: the decisions are damaged.
    """
    handed = kept_hand_overs(folder / HAND_OVERS)
    if not handed:
        _check_never_renewed(folder)
    if not handed or identity.public == handed[0].old:
        return identity
    kept = Identity.load(folder / PATIENTS)
    if kept.public != handed[0].old:
        raise InvalidValue(
            f"{folder / PATIENTS} is not this site's first identity key",
            "with another key other patients would be held out, and those who withdrew would come back",
            "restore it from a backup",
        )
    return kept


def _check_never_renewed(folder: Path) -> None:
    decided = Decisions(folder / "decisions.jsonl").all()
    if (folder / PATIENTS).exists() or any(one.act == "renewed" for one in decided):
        raise InvalidValue(
            f"{folder / HAND_OVERS} is missing or empty, and this site's key was renewed",
            "with another key other patients would be held out, and those who withdrew would come back",
            f"restore {HAND_OVERS} and {PATIENTS} from a backup",
        )


class Peers:
    """The ``peers`` folder of a site: one NAME.pub per hospital."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def known(self) -> dict[str, str]:
        """Every confirmed key by name."""
        return {path.stem: check_public_key(path.read_text()) for path in sorted(self._folder.glob("*.pub"))}

    def unconfirmed(self, sites: Sequence[str], offered: Mapping[str, str], own: str) -> dict[str, str]:
        """The offered keys that are not yet confirmed here.

        Raises:
            Refused: a hospital has no key, or not the confirmed one.
        """
        known, new = self.known(), {}
        for site in sites:
            key = offered.get(site, known.get(site))
            if site == own:
                continue
            if key is None:
                raise Refused(
                    f"the key of {site} is not known",
                    "secure aggregation needs the key of every hospital",
                    "wait until it has connected and the study is offered again",
                )
            if site in known and known[site] != key and key not in self.former(site):
                raise Refused(
                    f"the coordinator gives {site} the key {fingerprint(key)}",
                    f"{fingerprint(known[site])} was confirmed here",
                    f"ask {site} by telephone; if it has a new key, give its hand-over to `fedveil site confirm`; "
                    f"if it lost the old one, delete {self._folder / site}.pub",
                )
            if site not in known:
                new[site] = key
        return new

    def confirm(self, keys: Mapping[str, str]) -> None:
        """Store keys that were compared with their owners."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        for site, key in keys.items():
            (self._folder / f"{site}.pub").write_text(key + "\n")

    def former(self, site: str) -> tuple[str, ...]:
        """The keys that a hospital had before the confirmed one."""
        key = self.known().get(site)
        return () if key is None else former_keys(self._handed(site), key)

    def check(self, one: HandOver) -> None:
        """Refuse a hand-over that does not follow from the confirmed key; one of an unknown hospital is accepted.

        Raises:
            Refused: with what to do.
        """
        check_follows(one, self.known().get(one.site), self._folder / f"{one.site}.pub")

    def accept(self, one: HandOver) -> None:
        """Replace a hospital's key by its new one, which was compared with its owner."""
        self.check(one)
        self._folder.mkdir(mode=0o700, exist_ok=True)
        keep_hand_over(self._handed(one.site), one)
        write_private(self._folder / f"{one.site}.pub", f"{one.new}\n".encode())

    def _handed(self, site: str) -> Path:
        return self._folder / f"{site}.{HAND_OVERS}"
