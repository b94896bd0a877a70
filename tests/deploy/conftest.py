"""Hospitals in process, with real folders, keys and ledgers."""

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.deploy.hospital import (
    Hospital,
    MakeHospital,
    make_offer,
    record_approval,
    set_up,
    start_service,
)

from fedveil.deploy.identity import Identity
from fedveil.federation.wire import Frame, encode

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # typer's and Flower's own, at import
    import flwr.superlink.cli  # noqa: F401


@pytest.fixture
def make_hospital(tmp_path: Path) -> Iterator[MakeHospital]:
    """Build a hospital that was offered a study, and has approved it unless told otherwise."""
    made: list[Hospital] = []
    coordinator = Identity.create(tmp_path / "coordinator.key")

    def make(
        name: str = "north",
        *,
        approve: bool = True,
        settings: dict[str, object] | None = None,
        **study: object,
    ) -> Hospital:
        folder = set_up(tmp_path, coordinator, name, **(settings or {}))
        offer = make_offer(tmp_path, **study)
        hospital = Hospital(folder, coordinator, start_service(folder), offer, offer.agreement())
        made.append(hospital)
        hospital.ask(encode(Frame("offer", {**offer.to_dict(), "nonce": "n"})))
        if approve:
            record_approval(hospital.service, hospital.agreement.digest)
        return hospital

    yield make
    for hospital in made:
        hospital.service.finish()
        hospital.service.ledger.close()


@pytest.fixture
def hospital(make_hospital: MakeHospital) -> Hospital:
    return make_hospital()
