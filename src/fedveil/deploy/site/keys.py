"""The other hospitals' public keys, as confirmed by the staff of this hospital.

Secure aggregation hides a hospital's sum from the coordinator with the keys of the other hospitals. If the
coordinator could choose those keys it could read the sum. So a hospital uses only keys that its own staff compared
with the other hospital's by telephone, once; after that a changed key is refused."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from fedveil.deploy.identity import check_public_key, fingerprint
from fedveil.errors import Refused

__all__ = ["Peers"]


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
            if site in known and known[site] != key:
                raise Refused(
                    f"the coordinator gives {site} the key {fingerprint(key)}",
                    f"{fingerprint(known[site])} was confirmed here",
                    f"ask {site} by telephone; if it has a new key, delete {self._folder / site}.pub",
                )
            if site not in known:
                new[site] = key
        return new

    def confirm(self, keys: Mapping[str, str]) -> None:
        """Store keys that were compared with their owners."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        for site, key in keys.items():
            (self._folder / f"{site}.pub").write_text(key + "\n")
