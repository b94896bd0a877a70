"""What tests share: where the real images lie, quiet, repeatable threads, and no clock that decides."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from tests import torchvision_stub

torchvision_stub.install()
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")  # a busy machine, or the first import of a package, must not fail a test

PROJECT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real medical images; tests that need it are skipped, with the reason, where it is absent."""
    folder = Path(os.environ.get("FEDVEIL_DATA", PROJECT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real images not found at {folder}; set FEDVEIL_DATA to the folder that holds them")
    return folder
