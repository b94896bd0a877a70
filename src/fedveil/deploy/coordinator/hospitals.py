"""The coordinator's folder: ``federation.toml``, its keys, and its records of each hospital."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedveil.deploy.carrier import Carrier, Engine
from fedveil.deploy.coordinator.asking import Patience
from fedveil.deploy.coordinator.progress import progress
from fedveil.deploy.identity import Identity, check_private, check_public_key
from fedveil.deploy.receipts import Receipts
from fedveil.deploy.records.handover import (
    HandOver,
    check_follows,
    former_keys,
    keep_hand_over,
    kept_hand_overs,
)
from fedveil.errors import InvalidValue, Refused
from fedveil.io import write_atomic
from fedveil.names import SITE_NAME
from fedveil.schema import explain

if TYPE_CHECKING:
    from fedveil.deploy.flower.process import LinkSettings

__all__ = ["Federation", "FederationTable"]

Number = Annotated[float, Field(strict=False)]


class FederationTable(BaseModel):
    """``[federation]`` of federation.toml.

    ``port`` is the port that hospitals connect to; ``listen`` the local address to listen at; ``engine`` what carries
    messages; ``sites`` the hospitals in the order of the studies' agreements; the rest are waiting times for hospitals
    in seconds.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: str = Field(min_length=1, max_length=80)
    port: int = Field(ge=1, le=65535)
    listen: str = "0.0.0.0"
    engine: Engine = "flower"
    sites: tuple[Annotated[str, Field(pattern=f"^{SITE_NAME}$")], ...] = Field(strict=False, min_length=1)
    wait_for_approval: Number = Field(default=86400.0, ge=0)
    wait_for_absent: Number = Field(default=8.0, ge=1)
    wait_for_answer: Number = Field(default=3600.0, ge=1)
    ask_again: Number = Field(default=15.0, ge=1)


@dataclass(frozen=True, slots=True)
class Federation:
    """A coordinator's folder, read and checked."""

    folder: Path
    table: FederationTable
    identity: Identity

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read a folder that ``fedveil federation init`` wrote."""
        path = folder / "federation.toml"
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
            table = FederationTable.model_validate(values.get("federation"))
        except FileNotFoundError:
            raise InvalidValue(
                f"{path} does not exist",
                "a federation needs a coordinator's folder",
                "make one with `fedveil federation init`, or give its path with --federation",
            ) from None
        except ValidationError as error:
            raise explain(error, str(path), InvalidValue, "correct it", FederationTable) from None
        except (OSError, ValueError) as error:
            raise InvalidValue(f"{path} cannot be read ({error})", "it must be TOML", "correct it") from None
        for name in ("superlink.key", "superlink.secret")[: 2 if table.engine == "flower" else 1]:
            check_private(folder / name)
        return cls(folder, table, Identity.load(folder / "identity.key"))

    @property
    def link(self) -> "LinkSettings":
        """The SuperLink's address and files."""
        from fedveil.deploy.flower.process import LinkSettings

        return LinkSettings(folder=self.folder, host=self.table.listen, port=self.table.port)

    def carrier(self) -> Carrier:
        """What carries messages, not yet started."""
        if self.table.engine == "nvflare":
            from fedveil.deploy.nvflare.carrier import NVFlareCarrier

            return NVFlareCarrier(self.folder, self.table.listen, self.table.port, self.table.sites)
        from fedveil.deploy.flower.carrier import FlowerCarrier

        return FlowerCarrier(self.link, self.nodes())

    @property
    def patience(self) -> Patience:
        """The waiting times for hospitals."""
        table = self.table
        return Patience(away=table.wait_for_absent, answer=table.wait_for_answer, again=table.ask_again)

    def nodes(self) -> Mapping[str, bytes]:
        """Public key of each hospital's node."""
        found = {}
        for site in self.table.sites:
            path = self.folder / "nodes" / f"{site}.pub"
            if not path.exists():
                raise InvalidValue(
                    f"{path} does not exist",
                    "each hospital of the federation needs a node key",
                    f"put {site}'s public key there, as its node printed it",
                )
            found[site] = path.read_bytes()
        return found

    def keys(self) -> dict[str, str]:
        """Public key of each hospital that has been contacted before."""
        return {
            path.stem: check_public_key(path.read_text()) for path in (self.folder / "sites").glob("*.pub")
        }

    def pin(self, site: str, key: str) -> None:
        """Store a hospital's public key at first contact."""
        path = self.folder / "sites" / f"{site}.pub"
        path.parent.mkdir(exist_ok=True)
        path.write_text(key + "\n")

    def former(self, site: str) -> tuple[str, ...]:
        """The public keys that a hospital had before its current one, the newest first."""
        key = self.keys().get(site)
        return () if key is None else former_keys(self._handed(site), key)

    def handed(self, site: str) -> tuple[HandOver, ...]:
        """The hand-overs of a hospital's keys, oldest first."""
        return kept_hand_overs(self._handed(site))

    def check(self, one: HandOver) -> None:
        """Refuse a hand-over that does not follow from the pinned key, or while a study needs that key.

        Raises:
            Refused: with what to do.
        """
        path = self.folder / "sites" / f"{one.site}.pub"
        known = self.keys().get(one.site)
        if known is None:
            raise Refused(
                f"{one.site} was never contacted",
                "a new key must follow from a known one",
                "nothing has to be done: its current key is learned at first contact",
            )
        check_follows(one, known, path)
        for study in progress(self.folder):
            if study.state != "finished" and one.site in study.hospitals:
                raise Refused(
                    f"study {study.name} of {one.site} is {study.state}",
                    "a hospital's key is not replaced in the middle of a study",
                    f"finish it first (--resume), or delete its run directory {study.run}",
                )

    def accept(self, one: HandOver) -> None:
        """Replace a hospital's key by its new one, which was compared with its owner."""
        self.check(one)
        keep_hand_over(self._handed(one.site), one)
        path = self.folder / "sites" / f"{one.site}.pub"
        write_atomic(path, lambda file: file.write(f"{one.new}\n".encode()))

    def _handed(self, site: str) -> Path:
        return self.folder / "sites" / f"{site}.handovers.jsonl"

    def receipts(self) -> Receipts:
        """The receipts received from the hospitals so far."""
        return Receipts(self.folder / "receipts")
