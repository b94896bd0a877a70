"""Finished studies are closed and freed; what a coordinator sees before it begins is what it would offer."""

import pytest
from tests.deploy.hospital import SITES, Hospital, make_offer, study_text, write_images
from tests.deploy.test_models import kept, model_for, send
from typer.testing import CliRunner

from fedveil.cli.main import app
from fedveil.deploy.coordinator.hospitals import Federation
from fedveil.deploy.coordinator.planning import plan_federation
from fedveil.deploy.coordinator.runner import load_test_set, wait_for_sites
from fedveil.deploy.offer import Offer
from fedveil.deploy.provisioning.kits import make_kits
from fedveil.errors import FederationError
from fedveil.federation import Reply
from fedveil.names import attempt_words
from fedveil.study import Study


def test_a_finished_study_is_closed_and_its_features_are_freed(hospital: Hospital):
    service = hospital.service
    assert isinstance(hospital.round(1, 1), Reply)
    assert service._sites
    assert service._cohorts.tasks
    assert send(hospital, model_for(hospital)).kind == "kept"
    assert kept(hospital).is_done
    assert not service._sites
    assert not service._cohorts.tasks
    hospital.restart()
    hospital.service.resume()
    hospital.service.finish()
    assert not hospital.service._opening, "it is not opened at the next start either"
    assert isinstance(hospital.round(2, 2), Reply), "it is if the coordinator asks for more"


def test_a_running_study_keeps_the_features_that_it_shares_with_a_finished_one(make_hospital, tmp_path):
    hospital = make_hospital()
    other = make_offer(tmp_path, name="other")
    hospital.service.studies.add(other)
    assert isinstance(hospital.round(1, 1), Reply)
    hospital.service._cohorts.keep([other])
    assert hospital.service._cohorts.tasks
    hospital.service._cohorts.keep([])
    assert not hospital.service._cohorts.tasks


def test_a_federation_is_priced_as_it_would_be_offered(tmp_path):
    make_kits(tmp_path / "kits", name="town", hospitals=[*SITES, "east"], hosts=["127.0.0.1"], port=9443)
    home = tmp_path / "kits" / "coordinator"
    source = write_images(tmp_path / "test.npz", 40, seed=9)
    (tmp_path / "study.toml").write_text(
        study_text(source=str(source), trust="secure-aggregation", min_sites=3)
    )
    study = Study.load(tmp_path / "study.toml")
    planned = plan_federation(study, Federation.load(home))
    offered = Offer.make(study, (*SITES, "east"), load_test_set(study)).agreement()
    assert planned.agreement.digest == offered.digest
    assert planned.guarantee == offered.planned
    done = CliRunner().invoke(app, ["plan", str(tmp_path / "study.toml"), "--federation", str(home)])
    assert done.exit_code == 0, done.output
    for name in (*SITES, "east"):
        assert name in done.output
    assert "not known here" in done.output
    assert "of 4" in done.output


def test_a_coordinator_is_told_who_declined(tmp_path):
    offer = make_offer(tmp_path)
    found = {"north": "ready", "south": "declined", "west": "declined"}

    class Transport:
        def greet(self, *_: object, **__: object) -> dict[str, str]:
            return found

    with pytest.raises(FederationError, match="south has declined the study; west has declined the study"):
        wait_for_sites(Transport(), offer, offer.agreement(), patience=1e9, say=lambda _: None)


def test_an_attempt_is_named_as_people_count():
    assert attempt_words((1 << 32) + 7) == "attempt 7"
    assert attempt_words((4 << 32) + 1) == "attempt 1 of session 4"
