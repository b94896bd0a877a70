"""Small images and manifests to read."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image


def grey(seed: int, height: int = 12, width: int = 10) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)


@pytest.fixture
def images(tmp_path: Path) -> Callable[..., list[str]]:
    """Writes n different grey PNG files into the folder of the test and names them."""

    def write(count: int, folder: str = "") -> list[str]:
        names = [str(Path(folder) / f"image-{number}.png") for number in range(count)]
        for number, name in enumerate(names):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(grey(number)).save(tmp_path / name)
        return names

    return write


@pytest.fixture
def manifest(tmp_path: Path, images: Callable[..., list[str]]) -> Callable[..., Path]:
    """Writes a manifest of eight images, two of each of four patients; lines can be replaced or added."""

    def write(*extra: str, replace: dict[int, str] | None = None, name: str = "set.csv") -> Path:
        lines = ["path,label,patient,site,split"]
        for number, image in enumerate(images(8)):
            patient = number // 2
            split = "test" if patient == 3 else "train"
            lines.append(f"{image},{('clear', 'ill')[number % 2]},p{patient},{'ab'[patient % 2]},{split}")
        for line, text in (replace or {}).items():
            lines[line - 1] = text
        path = tmp_path / name
        path.write_text("\n".join([*lines, *extra]) + "\n", encoding="utf-8")
        return path

    return write
