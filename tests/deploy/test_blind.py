"""A coordinator without images: nothing judges but what hospitals release, and everything that is written says so."""

import json
from contextlib import contextmanager
from dataclasses import replace

import pytest
from tests.deploy.hospital import IMAGES, STUDY, write_images

from fedveil.cli.output.tables import accuracy_words
from fedveil.deploy.coordinator.runner import load_test_set
from fedveil.errors import StudyError
from fedveil.planning import make_plan
from fedveil.report import load, write_report
from fedveil.study import HandedOver, Hospitals, Prepared, RunDirectory, Study, run
from fedveil.study.pipeline import make_task
from fedveil.study.progress import Silent
from fedveil.study.simulation import Simulated

TABLES = {"rounds": 3, "epsilon": 20.0, "trust": "secure-aggregation", "min_sites": 3}
NO_IMAGES = STUDY.replace(*IMAGES)


class Elsewhere(Hospitals):
    """Simulated hospitals with images that the coordinator's own study does not know of."""

    def __init__(self, theirs: Study) -> None:
        self.theirs = theirs

    def prepare(self, study):
        return Prepared(study=study, dataset=load_test_set(study), sites={}, simulated=False)

    @contextmanager
    def join(self, prepared, task, directory):
        hospitals = Simulated()
        held = hospitals.prepare(self.theirs)
        with hospitals.join(held, make_task(self.theirs, held.dataset, Silent()), directory) as joined:
            yield replace(joined, hand_over=lambda _: HandedOver(missing=("site-2",)))


@pytest.fixture
def blind(tmp_path):
    """Run a study whose coordinator has no images; return the result and the run directory."""

    def carry_out(**privacy):
        source = write_images(tmp_path / "images.npz", 150, seed=1)
        theirs = Study.parse(STUDY.format(name="theirs", source=source, **TABLES))
        theirs = theirs.with_changes({"privacy": privacy})
        ours = Study.parse(NO_IMAGES.format(name="ours", **TABLES)).with_changes({"privacy": privacy})
        directory = RunDirectory.create(tmp_path / "out", ours, simulated=True)
        return run(directory, Elsewhere(theirs)), directory.path

    return carry_out


def test_nothing_is_judged_and_that_is_said(blind):
    result, folder = blind()
    assert result["metrics"] == {"test": None, "released": None}, "both are there, with nothing in them"
    assert any("no learning curve. The model was not evaluated" in note for note in result["notes"])
    assert any("site-2 did not receive the finished model" in note for note in result["notes"])
    assert result["data"]["images_test"] is None
    assert not (folder / "predictions.csv").exists()
    assert not (folder / "examples.npz").exists()
    rounds = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    assert [entry["test"] for entry in rounds] == [None] * 3
    page = write_report(folder).read_text()
    assert "Accuracy is unknown" in page
    assert "AUROC" not in page
    assert "images were shown" not in page
    assert json.loads((folder / "provenance.json").read_text())["data_digest"] == ""
    assert accuracy_words(result["metrics"]) == "not evaluated"


def test_noisy_histograms_of_the_hospitals_are_the_only_judges(blind):
    result, folder = blind(evaluation_share=0.3)
    assert result["metrics"]["test"] is None
    assert any("is estimated from noisy histograms" in note for note in result["notes"])
    page = write_report(folder).read_text()
    assert "Accuracy is unknown" not in page
    assert "by released histograms" in page
    assert load(folder).released.auroc == pytest.approx(result["metrics"]["released"]["auroc"])
    assert "with noise" in accuracy_words(result["metrics"])


def test_on_one_machine_there_would_be_no_images_at_all(tmp_path):
    study = Study.parse(NO_IMAGES.format(name="ours", **TABLES))
    for attempt in (make_plan, lambda study: run(RunDirectory.create(tmp_path / "out", study))):
        with pytest.raises(StudyError, match="fedveil coordinate"):
            attempt(study)


@pytest.mark.parametrize("features", ["efficientnet-lite0", "scattering"])
def test_a_task_without_images_is_made_whatever_the_features(features):
    study = Study.parse(NO_IMAGES.format(name="ours", **TABLES)).with_changes(
        {"model": {"features": features}, "data": {"image_size": 32}}
    )
    assert make_task(study, load_test_set(study), Silent()).model.classes == 2


def test_a_tuned_network_without_images():
    study = Study.parse(NO_IMAGES.format(name="ours", **TABLES)).with_changes(
        {"model": {"features": "none", "network": "efficientnet-lite0@32"}, "data": {"image_size": 32}}
    )
    assert make_task(study, load_test_set(study), Silent()).model.classes == 2
