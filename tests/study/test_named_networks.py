"""Every network that a study file can name, as a whole study: from the file to a model that predicts."""

import csv
import json
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from tests.study.conftest import write_images
from torch import nn

from fedveil.errors import InvalidValue
from fedveil.study import RunDirectory, Study, TrainedModel, run


def study_of(network: str, source: str, **training: object) -> Study:
    return Study().with_changes(
        {
            "study": {"name": "small", "seed": 1},
            "data": {"source": source, "image_size": 16, "sites": {"count": 2}},
            "model": {"network": network},
            "training": {"rounds": 2} | training,
            "privacy": {"trust": "server", "epsilon": 20.0, "delta": 1e-3},
            "federation": {"max_units": 100},
            "report": {"examples": 0},
        }
    )


@pytest.fixture
def few(tmp_path):
    """Twenty patients."""
    return str(write_images(tmp_path / "few.npz", patients=20))


def check(result, folder, rounds=2):
    assert result["rounds"] == rounds
    assert 0 < result["guarantee"]["epsilon"] <= 20
    with (folder / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 10
    assert all(np.isfinite(float(row["prob:right"])) for row in rows)
    assert np.isfinite(TrainedModel.load(folder).parameters).all()


@pytest.mark.parametrize("network", ["resnet18", "densenet121"])
def test_a_deep_network_is_trained_from_scratch(network, few, tmp_path):
    result = run(RunDirectory.create(tmp_path / "out", study_of(network, few)))
    check(result, tmp_path / "out")


def test_a_pretrained_network_is_tuned_and_tells_classes_apart(tmp_path, study):
    settings = study_of("efficientnet-lite0@32", study().data.source, rounds=8)
    result = run(RunDirectory.create(tmp_path / "out", settings))
    assert result["metrics"]["test"]["auroc"] > 0.9


@pytest.fixture
def timm(monkeypatch):
    """A package with the manners of timm. The package itself is no part of the tests: it would fetch weights."""

    def create_model(name: str, pretrained: bool, num_classes: int, in_chans: int) -> nn.Module:
        if pretrained and name == "far":
            raise OSError("the hub cannot be reached")
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(in_chans, 4, 3, 2, bias=False),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(4 * 49, num_classes),
        )

    package = ModuleType("timm")
    package.create_model = create_model  # type: ignore[attr-defined]
    package.is_model = lambda name: True  # type: ignore[attr-defined]
    package.get_pretrained_cfg = lambda name: None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "timm", package)


@pytest.mark.usefixtures("timm")
@pytest.mark.parametrize("network", ["timm:tiny", "timm:far@scratch"])
def test_a_network_from_timm_is_trained_whole(network, few, tmp_path):
    """With public weights its batch norm is fixed, from random ones it is replaced."""
    result = run(RunDirectory.create(tmp_path / "out", study_of(network, few)))
    check(result, tmp_path / "out")


@pytest.mark.usefixtures("timm")
def test_weights_that_are_elsewhere_stop_a_study_before_any_budget_is_reserved(few, tmp_path):
    with pytest.raises(InvalidValue, match=r"the hub cannot be reached.*far@scratch"):
        run(RunDirectory.create(tmp_path / "out", study_of("timm:far", few)))
    assert not list(tmp_path.rglob("*.jsonl"))


def test_a_model_whose_package_is_missing_says_so(few, tmp_path, monkeypatch):
    run(RunDirectory.create(tmp_path / "out", study_of("cnn", few)))
    described = json.loads((tmp_path / "out" / "model.json").read_text())
    (tmp_path / "out" / "model.json").write_text(json.dumps(described | {"network": "timm:tiny"}))
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InvalidValue, match="timm is not installed"):
        TrainedModel.load(tmp_path / "out")


def test_the_learning_curve_of_a_network_has_few_points(few, tmp_path):
    """Judging a network takes a tenth of a round's time; the last round is always judged."""
    settings = study_of("cnn", few, rounds=43, sampling_rate=0.5)
    directory = RunDirectory.create(tmp_path / "out", settings)
    run(directory)
    lines = (tmp_path / "out" / "rounds.jsonl").read_text().splitlines()
    judged = [line["round"] for line in map(json.loads, lines) if line["test"]]
    assert judged == [*range(3, 43, 3), 43]
