"""Features are computed anew for every data set, as where no cache tells two of them how to round."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tests.neighbours.cohorts import Cohort
from tests.neighbours.harness import Hospital, Opened, make_offer
from tests.neighbours.served import Served

from fedveil.federation import Agreement
from fedveil.study import Study

Both = tuple[Opened, Opened, Agreement]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def open_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Both]:
    """Open a study at one hospital, over one data set and then over its neighbour."""
    made: dict[str, Hospital] = {}

    def opened(study: Study, write, images: Cohort, neighbour: Cohort, **settings: object) -> Both:
        unit = study.privacy.unit
        if not made:
            (tmp_path / "north").mkdir()
            made["north"] = Hospital(tmp_path / "north", write, unit, **settings)
        hospital, offer = made["north"], make_offer(study)
        agreement, found = offer.agreement(), []
        for one in (images, neighbour):
            monkeypatch.setenv("FEDVEIL_CACHE", str(tmp_path / f"cache-{hospital.loads}"))
            found.append(hospital.open(offer, agreement, one))
        return found[0], found[1], agreement

    return opened


@pytest.fixture
def open_hospital(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Served]]:
    """A hospital that was offered a study, and has approved it."""
    made: list[Served] = []
    monkeypatch.setenv("FEDVEIL_CACHE", str(tmp_path / "cache"))

    def opened(study: Study, write, images: Cohort) -> Served:
        made.append(Served(tmp_path / str(len(made)) / "north", study, write, images))
        return made[-1]

    yield opened
    for one in made:
        one.service.finish()
        one.service.ledger.close()
