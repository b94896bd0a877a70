"""A small set of images that a study trains on in a second, and studies over it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedveil.study import Study


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Features are kept in a folder of the test session, not in the user's."""
    monkeypatch.setenv("FEDVEIL_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def write_images(path: Path, patients: int = 150, seed: int = 3, contrast: int = 60) -> Path:
    """Blobs on a noisy ground, left for class 0 and right for class 1, two images a patient."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 2, patients).repeat(2)
    images = generator.normal(90, 12, (2 * patients, 16, 16))
    columns = np.where(labels == 0, 3, 9)
    for image, column in zip(images, columns, strict=True):
        image[4:11, column : column + 4] += contrast
    np.savez(
        path,
        images=np.clip(images, 0, 255).astype(np.uint8),
        labels=labels.astype(np.uint8),
        patient=np.arange(patients).repeat(2),
        split=(np.arange(patients) % 4 == 0).repeat(2).astype(np.uint8),
        classes=np.array(["left", "right"]),
    )
    return path


@pytest.fixture
def study(tmp_path: Path) -> Callable[..., Study]:
    """A study of the small set; keyword arguments change tables."""
    source = write_images(tmp_path / "images.npz")

    def build(**changes: dict[str, object]) -> Study:
        values: dict[str, dict[str, object]] = {
            "study": {"name": "small", "seed": 1},
            "data": {"source": str(source), "image_size": 16},
            "model": {"features": "pixels"},
            "training": {"rounds": 6},
            "privacy": {"epsilon": 20.0, "delta": 1e-3},
            "report": {"examples": 2},
        }
        for table, keys in changes.items():
            values[table] = values.get(table, {}) | keys
        return Study().with_changes(values)

    return build
