"""Exports compute what the model computes, and say what it is."""

import numpy as np
import pytest

from fedveil.data import load
from fedveil.errors import StudyError
from fedveil.report.exports.graph import TOLERANCE, probabilities_of, write_onnx
from fedveil.study import RunDirectory, Study, TrainedModel, run

STUDY = """
[study]
name = "export"
[data]
source = "{source}"
image_size = {size}
[model]
{model}
[training]
rounds = 2
[privacy]
trust = "site"
[report]
examples = 2
"""


def train(folder, source, model, size=28):
    study = Study.parse(STUDY.format(source=source, model=model, size=size))
    run(RunDirectory.create(folder, study))
    return TrainedModel.load(folder)


@pytest.fixture(scope="module")
def x_rays(shared_data, tmp_path_factory):
    """Real chest X-rays: enough to train on, and some to compare on."""
    with np.load(shared_data / "kermany_cxr" / "kermany_cxr_64.npz") as file:
        rows = np.random.default_rng(0).permutation(len(file["labels"]))[:96]
        arrays = {name: file[name][rows] for name in ("images", "labels", "patient")}
        classes = file["classes"]
    path = tmp_path_factory.mktemp("x-rays") / "x_rays.npz"
    np.savez(path, classes=classes, **arrays)
    return path


@pytest.mark.parametrize(
    ("model", "size"),
    [
        ('features = "efficientnet-lite0"', 64),
        ('features = "efficientnet-lite0@48+pixels@8"\nwhitened = false', 64),
        ('network = "cnn"', 28),
    ],
    ids=["default encoder", "two encoders", "cnn"],
)
def test_onnx_runtime_finds_the_same_probabilities_for_real_images(x_rays, tmp_path, model, size):
    trained = train(tmp_path / "run", x_rays, model, size)
    path = write_onnx(trained, tmp_path / "model.onnx")
    images = load(str(x_rays), image_size=size).images.read(np.arange(40))
    own = trained.probabilities(images)
    assert np.abs(probabilities_of(path.read_bytes(), images) - own).max() <= TOLERANCE
    assert np.ptp(own, axis=0).max() > 0.05, "the images differ"
    assert str(tmp_path).encode() not in path.read_bytes()
    with pytest.raises(StudyError, match="never overwrites"):
        write_onnx(trained, path)
