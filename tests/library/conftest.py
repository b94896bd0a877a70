"""Real images in memory, as somebody has them who reads their own files."""

from dataclasses import dataclass

import numpy as np
import pytest


@dataclass(frozen=True)
class Arrays:
    images: np.ndarray
    labels: np.ndarray
    patients: np.ndarray


@pytest.fixture(scope="session")
def x_rays(shared_data) -> Arrays:
    """600 chest X-rays of the training split, at their stored size, with the patients that they show."""
    with np.load(shared_data / "kermany_cxr_64.npz", allow_pickle=False) as file:
        print(file.files)
        chosen = np.sort(np.random.default_rng(0).permutation(len(file["labels"]))[:600])
        return Arrays(file["images"][chosen], file["labels"][chosen], file["patient"][chosen])


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """Features are cached where no other test looks."""
    monkeypatch.setenv("FEDVEIL_CACHE", str(tmp_path_factory.getbasetemp() / "library-cache"))
