"""Real images in memory, as somebody has them who reads their own files."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest


@dataclass(frozen=True)
class Arrays:
    """Chest X-rays (n, 64, 64), uint8, with class names and patients."""

    images: np.ndarray
    labels: np.ndarray
    patients: np.ndarray

    @property
    def embeddings(self) -> np.ndarray:
        """Coarse pixels, in the place of what an encoder makes."""
        coarse = self.images.reshape(len(self.images), 16, 4, 16, 4).mean(axis=(2, 4))
        return coarse.reshape(len(coarse), -1) / 255 - 0.5


@pytest.fixture(scope="session")
def x_rays(shared_data) -> Arrays:
    """The X-rays of 600 patients, normal or pneumonia."""
    with np.load(shared_data / "kermany_cxr" / "kermany_cxr_64.npz", allow_pickle=False) as file:
        patients = file["patient"]
        some = np.random.default_rng(0).choice(np.unique(patients), 600, replace=False)
        rows = np.flatnonzero(np.isin(patients, some))
        labels = np.where(file["labels"][rows] > 0, "pneumonia", "normal")
        return Arrays(file["images"][rows], labels, patients[rows])


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Features are kept in a folder of the test session, not in the user's."""
    monkeypatch.setenv("FEDVEIL_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
