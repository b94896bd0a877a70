"""Studies that train a network on pixels: every method under every trust, on sixteen pixels and a tiny set."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.study.stopping import Stop, StopAfter
from torch import nn

from fedveil.errors import InvalidValue, StudyError
from fedveil.learning.models import network as network_learner
from fedveil.learning.networks import registry
from fedveil.privacy import epsilon, verify_ledger
from fedveil.study import RunDirectory, Study, TrainedModel, predict, run

TRUSTS = ["site", "secure-aggregation", "server", "none"]


def small(classes: int, channels: int) -> nn.Module:
    """A network of a few hundred parameters."""
    return nn.Sequential(
        nn.Conv2d(channels, 6, 5, 2, 2),
        nn.GroupNorm(2, 6),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, 2, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 16, classes),
    )


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """The study's "cnn" is tiny here, so that a test takes a second."""

    def build(name, *, classes, channels, image_size, seed, weights=True):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return small(classes, channels)

    monkeypatch.setattr(registry, "network", build)


@pytest.fixture
def networks(study):
    """A study of the small set that trains a network; keyword arguments change tables."""
    source = study().data.source

    def build(**changes: dict[str, object]) -> Study:
        values: dict[str, dict[str, object]] = {
            "study": {"name": "small", "seed": 1},
            "data": {"source": source, "image_size": 16, "sites": {"count": 3}},
            "model": {"network": "cnn"},
            "training": {"rounds": 6, "sampling_rate": 0.5},
            "privacy": {"epsilon": 20.0, "delta": 1e-3},
            "federation": {"max_units": 1000},
            "report": {"examples": 0},
        }
        for table, keys in changes.items():
            values[table] = values.get(table, {}) | keys
        return Study().with_changes(values)

    return build


AVERAGING = {"method": "averaging", "rounds": 3, "local_steps": 4, "units": 112, "local_learning_rate": 0.3}


@pytest.mark.parametrize("trust", TRUSTS)
@pytest.mark.parametrize("training", [{"learning_rate": 1.0}, AVERAGING], ids=["gradient", "averaging"])
def test_every_method_runs_under_every_trust(networks, tmp_path, trust, training):
    result = run(RunDirectory.create(tmp_path / "out", networks(privacy={"trust": trust}, training=training)))
    assert result["guarantee"]["trust"] == trust
    assert result["rounds"] == training.get("rounds", 6)
    if trust == "none":
        assert result["metrics"]["test"]["auroc"] > 0.8
    else:
        assert 19 < result["guarantee"]["epsilon"] <= 20


@pytest.mark.parametrize("trust", ["site", "secure-aggregation", "server"])
@pytest.mark.parametrize("training", [{}, AVERAGING], ids=["gradient", "averaging"])
def test_charge_matches_steps_executed(networks, tmp_path, monkeypatch, trust, training):
    """What the ledger holds, priced by the accountant, is what the sites did: step by step, at the rate they drew."""
    calls: list[tuple[int, int]] = []
    original = network_learner.NetworkLearner.contribution

    def counted(self, parameters, *, clip_norm, units=None):
        calls.append((self.units, self.units if units is None else len(units)))
        return original(self, parameters, clip_norm=clip_norm, units=units)

    monkeypatch.setattr(network_learner.NetworkLearner, "contribution", counted)
    settings = networks(privacy={"trust": trust}, training=training | {"rounds": 8})
    result = run(RunDirectory.create(tmp_path / "out", settings))
    state = verify_ledger(tmp_path / "out" / "ledgers" / "site-1.jsonl")
    charged = [c.mechanism for c in state.charges if c.label.startswith(("training", "local-steps"))]
    assert sum(mechanism.steps for mechanism in charged) * 3 == len(calls)
    assert {mechanism.sampling_rate for mechanism in charged} == {0.5}
    share = sum(drawn for _, drawn in calls) / sum(units for units, _ in calls)
    units = sum(units for units, _ in calls)
    assert share == pytest.approx(0.5, abs=5 * np.sqrt(0.25 / units))
    whole = epsilon([charge.mechanism for charge in state.charges], 1e-3)
    assert result["guarantee"]["epsilon"] == pytest.approx(whole, rel=1e-9)
    assert whole <= 20.0


@pytest.mark.parametrize("trust", TRUSTS)
@pytest.mark.parametrize("method", ["gradient", "averaging"])
def test_a_whole_hospital_may_be_the_unit(networks, tmp_path, method, trust):
    training = {"method": method, "sampling_rate": 1.0, "rounds": 3, "local_steps": 2}
    settings = networks(privacy={"unit": "site", "trust": trust}, training=training)
    result = run(RunDirectory.create(tmp_path / "out", settings))
    assert result["rounds"] == 3
    assert result["guarantee"]["trust"] == trust
    if trust == "none":
        return
    state = verify_ledger(tmp_path / "out" / "ledgers" / "site-1.jsonl")
    charged = [c.mechanism for c in state.charges if c.label.startswith(("training", "local-steps"))]
    assert [mechanism.steps for mechanism in charged] == [1, 1, 1]
    assert {mechanism.unit for mechanism in charged} == {"site"}


@pytest.mark.parametrize(
    "training",
    [
        {"optimizer": "adam", "views": 3},
        AVERAGING | {"proximal": 0.1, "average_from": 0.0, "average_decay": 0.5},
    ],
    ids=["gradient", "averaging"],
)
def test_without_noise_a_resumed_run_equals_an_uninterrupted_one(networks, tmp_path, training):
    settings = networks(privacy={"trust": "none"}, training=training | {"sampling_rate": 1.0, "rounds": 3})
    run(RunDirectory.create(tmp_path / "whole", settings))
    with pytest.raises(Stop):
        run(RunDirectory.create(tmp_path / "stopped", settings), progress=StopAfter(2))
    run(RunDirectory.reopen(tmp_path / "stopped", settings))
    whole, resumed = ((tmp_path / n / "model.safetensors").read_bytes() for n in ("whole", "stopped"))
    assert whole == resumed


def test_predict_gives_what_the_run_gave(networks, tmp_path):
    settings = networks()
    run(RunDirectory.create(tmp_path / "out", settings))
    with np.load(settings.data.source) as file:
        images = file["images"][file["split"] == 1][:5]
    (tmp_path / "new").mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / "new" / f"{number}.png")
    found = list(csv.DictReader(predict(tmp_path / "out", str(tmp_path / "new")).csv.splitlines()))
    stored = list(csv.DictReader((tmp_path / "out" / "predictions.csv").read_text().splitlines()))
    for one, other in zip(found, stored, strict=False):
        assert float(one["prob:right"]) == pytest.approx(float(other["prob:right"]), abs=2e-6)
        assert one["predicted"] == other["predicted"]
    assert json.loads((tmp_path / "out" / "model.json").read_text())["network"] == "cnn"
    assert TrainedModel.load(tmp_path / "out").parameters.dtype == np.float64


def test_a_network_that_mixes_patients_is_refused_before_any_budget_is_reserved(
    networks, tmp_path, monkeypatch
):
    def build(name, *, classes, channels, image_size, seed, weights=True):
        return nn.Sequential(
            nn.Flatten(), nn.BatchNorm1d(256, track_running_stats=False), nn.Linear(256, classes)
        )

    monkeypatch.setattr(registry, "network", build)
    with pytest.raises(InvalidValue, match="mixes patients"):
        run(RunDirectory.create(tmp_path / "out", networks()))
    assert not list(Path(tmp_path).rglob("*.jsonl"))


def test_the_normaliser_of_local_steps_is_public(networks, tmp_path):
    settings = networks(training={"method": "averaging"})
    with pytest.raises(StudyError, match=r"training\.units"):
        run(RunDirectory.create(tmp_path / "out", settings))


def test_networks_have_defaults_of_their_own_and_say_what_does_not_fit():
    network = Study.parse('[model]\nnetwork = "cnn"')
    assert (network.model.features, network.training.clipping) == ("none", "automatic")
    assert Study.parse(network.to_toml()) == network == Study().with_changes({"model": {"network": "cnn"}})
    assert Study.parse('[model]\nnetwork = "cnn"\n[training]\nrounds = 7').training.rounds == 7
    assert Study.parse("").training.sampling_rate == 1.0
    averaging = Study.parse('[model]\nnetwork = "cnn"\n[training]\nmethod = "averaging"')
    assert averaging.training.momentum == 0.8
    assert averaging.training.local_learning_rate == 1.0
    assert Study.parse(averaging.to_toml()) == averaging
    site = Study().with_changes(
        {"model": {"network": "cnn"}, "training": {"method": "averaging"}, "privacy": {"unit": "site"}}
    )
    assert (site.training.local_learning_rate, site.training.rounds) == (0.2, 40)
    tuned = Study.parse('[model]\nnetwork = "efficientnet-lite0@96"')
    assert tuned.training == Study().training
    assert tuned.privacy == Study().privacy
    assert tuned.model.features == "none"
    for text in (
        '[model]\nfeatures = "none"',
        '[model]\nnetwork = "cnn"\nfeatures = "pixels"',
        '[training]\nclipping = "automatic"',
        '[model]\nnetwork = "vgg"',
        '[model]\nnetwork = "efficientnet-lite0"\n[training]\nviews = 2',
    ):
        with pytest.raises(StudyError, match=r"model\.|training\."):
            Study.parse(text)
