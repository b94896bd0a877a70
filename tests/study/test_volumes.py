"""Studies of volumes: from a table to a report and a model that predicts."""

import csv
from dataclasses import dataclass

import numpy as np
import pytest
from tests.data.volumes import write_nifti

import fedveil as fv
from fedveil.data import Dataset
from fedveil.errors import InvalidValue, StudyError
from fedveil.learning.encoders import feature_extractor
from fedveil.report import write_report
from fedveil.study import Study
from fedveil.study.pipeline import model_of, sizes_of
from fedveil.study.results.trained_model import TrainedModel, predict


@dataclass(frozen=True)
class ArraySource:
    """Volumes in memory."""

    volumes: np.ndarray

    def read(self, indices):
        return self.volumes[indices]


SETTINGS = {"features": "pixels@8", "slices": 8, "image_size": 32, "sites": 3, "rounds": 8}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The directory of a study of the phantom's volumes, with secure aggregation."""
    folder = tmp_path_factory.mktemp("volumes") / "run"
    study = Study(source="phantom:volumes", epsilon=8.0, delta=1e-4, seed=1, **SETTINGS)
    return fv.run(study, directory=folder)


def test_a_study_of_volumes_learns_and_is_reported(finished):
    assert finished.metrics.auroc > 0.9
    assert finished.guarantee.epsilon <= 8.0
    with np.load(finished.directory / "examples.npz", allow_pickle=False) as examples:
        assert examples["images"].shape[1:] == (32, 32), "the middle slice"
    assert "image/png" in write_report(finished.directory).read_text(encoding="utf-8")


def test_its_model_predicts_volumes_in_files_as_in_arrays(finished, tmp_path):
    from fedveil.data.phantom.volumes import drawn_volumes

    volumes, _, _ = drawn_volumes(6, seed=5)
    for row, volume in enumerate(volumes):
        write_nifti(tmp_path / f"{row}.nii.gz", volume)
    model = TrainedModel.load(finished.directory)
    assert (model.slices, model.axis, model.spacing) == (8, "axial", None)
    said = predict(finished.directory, str(tmp_path))
    assert not said.problems
    lines = [line.split(",") for line in said.csv.splitlines()]
    place = lines[0].index("prob:nodule")
    found = np.array([float(line[place]) for line in lines[1:]])
    np.testing.assert_allclose(found, model.predict_proba(volumes)[:, 1], atol=1e-4)
    (tmp_path / "0.nii.gz").write_bytes(b"")
    assert "0.nii.gz" in str(predict(finished.directory, str(tmp_path)).problems[0])


def test_volumes_in_memory_are_a_study(finished):
    from fedveil.data.phantom.volumes import drawn_volumes

    volumes, owner, ill = drawn_volumes(60, seed=2)
    labels = np.array(["clear", "nodule"])[ill[owner].astype(int)]
    data = Dataset.from_arrays(volumes, labels, patients=owner, slices=4)
    study = Study(trust="none", delta=1e-3, seed=1, **{**SETTINGS, "slices": 4, "rounds": 2, "image_size": 8})
    assert fv.run(study, data=data).model.slices == 4


def test_a_network_trains_on_volumes_privately(tmp_path):
    from fedveil.data.phantom.volumes import drawn_volumes

    volumes, owner, ill = drawn_volumes(120, seed=2)
    labels = np.array(["clear", "nodule"])[ill[owner].astype(int)]
    data = Dataset.from_arrays(volumes, labels, patients=owner, slices=8)
    study = Study(network="cnn3d", slices=8, image_size=16, sites=3, delta=1e-3, seed=1, epsilon=50.0)
    trained = fv.run(
        study.with_changes({"training": {"rounds": 8, "sampling_rate": 1.0}}),
        data=data,
        directory=tmp_path / "run",
    )
    assert trained.metrics.auroc > 0.8
    assert trained.guarantee.epsilon <= 50.0
    model = TrainedModel.load(tmp_path / "run")
    assert (model.network, model.slices) == ("cnn3d", 8)
    told = model.predict_proba(volumes[data.test])
    with (tmp_path / "run" / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    np.testing.assert_allclose(told[:, 1], [float(row["prob:nodule"]) for row in rows], atol=1e-4)


def test_a_coordinator_without_volumes_has_the_same_network():
    study = Study(network="cnn3d", slices=8, image_size=16)
    network = model_of(study, Dataset.empty(("clear", "nodule"), channels=1, image_size=16))
    sizes = sizes_of(study, 2, 1)
    assert (network.trained, network.parameters) == (sizes.trained, sizes.parameters)
    volumes = ArraySource(np.zeros((1, 8, 16, 16), np.float32))
    assert network.probabilities(network.join(None, network.initial()), volumes, 1).shape == (1, 2)


def test_a_network_of_volumes_needs_volumes():
    with pytest.raises(StudyError, match=r"set data\.slices"):
        Study(network="cnn3d")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": {"network": "cnn", "features": "none"}}, "does not take"),
        ({"model": {"features": "precomputed", "whitened": False}}, "no slices"),
        ({"data": {"slices": 1}}, "slices"),
        ({"data": {"slices": None, "axis": "coronal"}}, "set slices"),
    ],
)
def test_what_volumes_cannot_be_is_refused(changes, said):
    with pytest.raises(StudyError, match=said):
        Study().with_changes(
            {"data": {"slices": 8}} | changes | {"data": {"slices": 8, **changes.get("data", {})}}
        )


@pytest.mark.parametrize("whitened", [False, True])
def test_pooled_features_of_a_volume_do_not_depend_on_others(whitened):
    extractor = feature_extractor("pixels@8", 16, 1, whitened=whitened, slices=5)
    volumes = np.random.default_rng(0).random((7, 5, 16, 16), dtype=np.float32)
    together = extractor(volumes)
    assert together.shape == (7, 3 * 64) == (7, extractor.dimension)
    for row in range(7):
        np.testing.assert_array_equal(extractor(volumes[row : row + 1])[0], together[row])
    if not whitened:
        seen = np.stack([feature_extractor("pixels@8", 16, 1)(volumes[:, [i]]) for i in range(5)])
        np.testing.assert_allclose(
            together, np.concatenate([seen.mean(0), seen.std(0), seen.max(0)], axis=1), atol=1e-6
        )
    with pytest.raises(InvalidValue, match="5, size"):
        extractor(volumes[:, :4])
