"""Networks whose training begins at a public model's weights, and is shrunk towards them as the noise demands."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fedveil.data.phantom.patients import phantom
from fedveil.errors import FedveilError, InvalidValue, StudyError
from fedveil.learning import Averaged, Sgd, Shrunk
from fedveil.learning.models.public_start import fraction_left
from fedveil.learning.networks import registry
from fedveil.study import RunDirectory, Study, TrainedModel, run
from fedveil.study.results.training_noise import coefficients

SIZE = 16
Make = Callable[..., Study]


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """The study's "cnn" is tiny here, so that a test takes a second."""

    def build(
        name: str, *, classes: int, channels: int, image_size: int, seed: int, weights: bool = True
    ) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return nn.Sequential(
                nn.Conv2d(channels, 8, 5, 2, 2),
                nn.GroupNorm(2, 8),
                nn.ReLU(),
                nn.Flatten(),
                nn.Linear(8 * (image_size // 2) ** 2, classes),
            )

    monkeypatch.setattr(registry, "network", build)


def written(path: Path, patients: int, seed: int) -> str:
    """Phantom patients as a file."""
    drawn = phantom(image_size=SIZE, patients=patients, seed=seed)
    images = np.asarray(drawn.images.read(np.arange(len(drawn.images))))
    np.savez(
        path,
        images=(images[:, 0] * 255).round().astype(np.uint8),
        labels=drawn.labels,
        patient=drawn.patients.codes,
        split=drawn.splits,
        classes=np.array(drawn.classes),
    )
    return str(path)


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A study of a few phantom patients; keyword arguments change tables."""
    source = written(tmp_path / "own.npz", 120, 9)

    def build(**changes: dict[str, object]) -> Study:
        values: dict[str, dict[str, object]] = {
            "data": {"source": source, "image_size": SIZE, "sites": {"count": 3}},
            "model": {"network": "cnn"},
            "training": {"rounds": 4, "sampling_rate": 1.0},
            "privacy": {"epsilon": 0.5, "trust": "server"},
            "report": {"examples": 0},
        }
        for table, keys in changes.items():
            values[table] = values.get(table, {}) | keys
        return Study().with_changes(values)

    return build


@pytest.fixture
def public(make: Make, tmp_path: Path) -> Path:
    """A network of other phantom patients, without privacy."""
    data = {"source": written(tmp_path / "public.npz", 200, 5)}
    settings = make(data=data, privacy={"trust": "none"}, training={"rounds": 25})
    run(RunDirectory.create(tmp_path / "public", settings))
    return tmp_path / "public"


def trained(folder: Path) -> np.ndarray:
    model = TrainedModel.load(folder)
    return model.model.split(model.parameters)[-1]


def test_a_start_carries_a_network_where_the_budget_teaches_it_nothing(
    make: Make, public: Path, tmp_path: Path
) -> None:
    """On the phantom at a small epsilon; without noise training moves on from the start."""
    small = make(model={"start": str(public)})
    result = run(RunDirectory.create(tmp_path / "small", small))
    start = trained(public)
    assert np.linalg.norm(trained(tmp_path / "small") - start) < 0.3 * np.linalg.norm(start)
    assert result["metrics"]["test"]["auroc"] > 0.8
    assert any("What it brings to a network is not predicted" in note for note in result["notes"])

    free = make(
        model={"start": str(public)}, privacy={"trust": "none"}, training={"rounds": 1, "learning_rate": 1e-9}
    )
    run(RunDirectory.create(tmp_path / "free", free))
    np.testing.assert_allclose(trained(tmp_path / "free"), start, rtol=1e-4, atol=1e-6)


def test_starts_for_another_network_are_refused(make: Make, tmp_path: Path) -> None:
    public = tmp_path / "public"
    run(RunDirectory.create(public, make(privacy={"trust": "none"}, training={"rounds": 1})))
    settings = make(model={"start": str(public), "network": "linear", "features": "pixels"})
    with pytest.raises(StudyError, match=r"model\.network"):
        run(RunDirectory.create(tmp_path / "linear", settings))
    (public / "model.safetensors").write_bytes(b"none")
    with pytest.raises(FedveilError, match="damaged"):
        run(RunDirectory.create(tmp_path / "damaged", make(model={"start": str(public)})))
    assert not list(tmp_path.glob("[ld]*/ledgers/*"))


RULES = [
    Sgd(learning_rate=0.5, momentum=0.9),
    Averaged(optimizer=Sgd(learning_rate=0.5, momentum=0.9), decay=0.9),
]


@pytest.mark.parametrize("inner", RULES, ids=["momentum", "averaged"])
def test_the_variance_of_the_noise_in_an_iterate_is_known_exactly(inner: Sgd | Averaged) -> None:
    """It is that of the weights on each round's gradient; a state goes through a checkpoint without loss."""
    count, rounds, noise = 400, 5, 0.09
    rule = Shrunk(optimizer=inner, start=np.ones(count), rounds=rounds)
    plain, state = inner.init(np.ones(count)), rule.init(np.ones(count))
    generator = np.random.default_rng(0)
    for _ in range(rounds):
        gradient = generator.normal(1.0, 0.3, count)
        plain = inner.step(plain, gradient)
        state = rule.from_arrays(rule.to_arrays(rule.step(state, gradient, noise_variance=noise)))
    weights = coefficients(inner, rounds)
    assert weights is not None
    variance = noise * float(weights @ weights)
    away = inner.released(plain) - 1
    signal = max(away @ away - count * variance, 2 * np.sqrt(2 * count) * variance)
    left = signal / (signal + count * variance)
    np.testing.assert_allclose(rule.released(state), 1 + left * away)
    assert fraction_left(rule.released(state), rule.start, variance) == pytest.approx(left)
    with pytest.raises(InvalidValue, match="one of those planned"):
        rule.step(state, gradient)


def test_without_noise_nothing_is_shrunk_and_noise_alone_moves_little() -> None:
    inner, count = Sgd(learning_rate=1.0), 10_000
    rule = Shrunk(optimizer=inner, start=np.zeros(count), rounds=1)
    gradient = np.random.default_rng(1).normal(size=count)
    state = rule.step(rule.init(np.zeros(count)), gradient)
    np.testing.assert_array_equal(rule.released(state), -gradient)
    state = rule.step(rule.init(np.zeros(count)), gradient, noise_variance=1.0)
    assert np.linalg.norm(rule.released(state)) < 0.05 * np.linalg.norm(gradient)
    assert fraction_left(rule.released(state), rule.start, 1.0) < 0.05


def test_rules_whose_noise_is_not_known_are_refused() -> None:
    with pytest.raises(InvalidValue, match="without weight decay"):
        Shrunk(optimizer=Sgd(learning_rate=1.0, weight_decay=0.1), start=np.zeros(2), rounds=1)
