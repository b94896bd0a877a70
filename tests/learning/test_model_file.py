"""Models on disk: what is written is what is read, and nothing damaged or mismatched is used."""

import json

import numpy as np
import pytest

from fedveil.errors import InvalidValue, StudyError
from fedveil.learning import CentredHead, TrainedModel, load_model, save_model
from fedveil.learning import model_file as module


def model(seed=0, classes=("normal", "pneumonia"), priors=(0.3, 0.7), features="pixels@6+pixels@3"):
    size = CentredHead((36, 9), len(classes)).parameters
    return TrainedModel(
        features=features,
        image_size=12,
        channels=1,
        classes=classes,
        parameters=np.random.default_rng(seed).standard_normal(size),
        priors=priors,
        facts={"guarantee": "epsilon 1"},
    )


def images(count=5):
    return np.random.default_rng(1).random((count, 1, 12, 12), dtype=np.float32)


@pytest.mark.parametrize(
    "written", [model(), model(priors=None), model(classes=("a", "b", "c"), priors=(0.2, 0.3, 0.5))]
)
def test_a_model_predicts_the_same_after_loading(tmp_path, written):
    save_model(tmp_path, written)
    read = load_model(tmp_path)
    np.testing.assert_array_equal(read.parameters, written.parameters)
    probabilities = read.probabilities(images())
    np.testing.assert_array_equal(probabilities, written.probabilities(images()))
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    assert (read.classes, read.priors, read.facts) == (written.classes, written.priors, written.facts)
    np.testing.assert_array_equal(read.decide(probabilities), written.decide(probabilities))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.json", "model.safetensors"]


def test_decisions_use_the_released_class_frequencies():
    assert model().decide(np.array([[0.4, 0.6], [0.2, 0.8]])).tolist() == [0, 1]
    assert model(priors=None).decide(np.array([[0.4, 0.6]])).tolist() == [1]


@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "flipped"])
def test_damaged_files_are_refused(tmp_path, name, damage):
    save_model(tmp_path, model())
    path = tmp_path / name
    content = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    else:
        content[len(content) // 2] ^= 0xFF
        path.write_bytes({"empty": b"", "cut": content[: len(content) // 2], "flipped": content}[damage])
    with pytest.raises(StudyError, match=name):
        load_model(tmp_path)


def test_files_of_two_models_are_not_mixed(tmp_path):
    save_model(tmp_path, model(0))
    tensors = (tmp_path / "model.safetensors").read_bytes()
    save_model(tmp_path, model(1))
    (tmp_path / "model.safetensors").write_bytes(tensors)
    with pytest.raises(StudyError, match="not the file that"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"format": 2}, "format 2"),
        ({"features": "pixels@7+pixels@3"}, "shape"),
        ({"features": "unknown"}, "known extractors"),
        ({"features": None}, "usable features"),
        ({"classes": ["a", "b", "c"]}, "shape"),
        ({"classes": [1, 2]}, "linear"),
        ({"network": "resnet18"}, "resnet18"),
        ({"priors": [0.0, 1.0]}, "priors"),
        ({"priors": ["x", "y"]}, "no usable model"),
        ({"channels": 3}, "shape"),
        ({"extractor": "pixels-0"}, "was trained on features 'pixels-0'"),
    ],
)
def test_descriptions_that_do_not_fit_are_refused(tmp_path, change, match):
    save_model(tmp_path, model())
    path = tmp_path / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(StudyError, match=match):
        load_model(tmp_path)


def test_parameters_that_do_not_fit_are_not_written(tmp_path):
    with pytest.raises(InvalidValue, match="shape"):
        save_model(tmp_path, model(features="pixels@6"))
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_model(tmp_path, monkeypatch):
    save_model(tmp_path, model(0))

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        save_model(tmp_path, model(1))
    np.testing.assert_array_equal(load_model(tmp_path).parameters, model(0).parameters)
    assert len(list(tmp_path.iterdir())) == 2
